"""Checkpoints are sound or refused, and a stranger's file runs no code."""

import io
import zipfile

import numpy as np
import pytest
import torch

from system.checkpoints import SCHEMA_VERSION, checkpoint_bytes, read_checkpoint
from system.errors import RunError
from tests.tools.hostile import accidents, archive, attacks, sealed


@pytest.fixture
def state():
    """What a trainer hands over: tensors, numbers and strings."""
    weights = torch.arange(200, dtype=torch.float32) / 7
    return {"schema_version": SCHEMA_VERSION, "iteration": 3, "meta_parameters": {"theta": weights}, "best": 0.5}


def test_a_checkpoint_is_read_back_as_it_was_by_plain_torch_too(tmp_path, state):
    data = checkpoint_bytes(state)
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        assert file.testzip() is None
    (tmp_path / "a.pt").write_bytes(data)
    theta = state.pop("meta_parameters")["theta"]
    for loaded in (torch.load(io.BytesIO(data), weights_only=True), read_checkpoint(tmp_path / "a.pt")):
        assert torch.equal(loaded.pop("meta_parameters")["theta"], theta)
    assert loaded == state


def test_truncations_flipped_bits_and_bytes_after_the_end_are_found(tmp_path, state):
    data, path = checkpoint_bytes(state), tmp_path / "a.pt"
    lengths = {0, 1, 65, 66, 67, len(data) - 66, len(data) - 2, len(data) - 1, *range(0, len(data), len(data) // 40)}
    damaged = [data + b"\0", *(data[:length] for length in lengths)]
    for bit in np.random.default_rng(0).choice(8 * len(data), 50, replace=False):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << (bit % 8)
        damaged.append(bytes(flipped))
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(RunError, match="damaged"):
            read_checkpoint(path)


def test_a_file_that_is_no_checkpoint_of_ours_is_refused_on_one_line_and_runs_nothing(tmp_path, state):
    schemas = {"none": {}, "a newer one": {"schema_version": SCHEMA_VERSION + 1}, "two": {"schema_version": torch.zeros(2)}}
    files = accidents(checkpoint_bytes(state)) | attacks(tmp_path / "owned")
    files |= {f"schema: {name}": sealed(archive(value)) for name, value in schemas.items()}
    for name, content in files.items():
        (tmp_path / "a.pt").write_bytes(content)
        with pytest.raises(RunError) as caught:
            read_checkpoint(tmp_path / "a.pt")
        assert caught.value.code == 2 and "\n" not in str(caught.value) and str(tmp_path) in str(caught.value), name
        assert not (tmp_path / "owned").exists(), name


@pytest.mark.parametrize("name", ["missing.pt", "."])
def test_a_checkpoint_that_cannot_be_read_is_refused(tmp_path, name):
    with pytest.raises(RunError, match="can't be read"):
        read_checkpoint(tmp_path / name)

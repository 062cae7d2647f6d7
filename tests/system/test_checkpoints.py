"""Checkpoints are sound or refused; tests/robustness has what strangers bring."""

import io
import zipfile

import pytest
import torch

from system.checkpoints import SCHEMA_VERSION, checkpoint_bytes, read_checkpoint
from system.errors import RunError


def test_a_checkpoint_is_read_back_as_it_was_by_plain_torch_too(tmp_path):
    weights = torch.arange(200, dtype=torch.float32) / 7
    state = {"schema_version": SCHEMA_VERSION, "iteration": 3, "meta_parameters": {"theta": weights}, "best": 0.5}
    data = checkpoint_bytes(state)
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        assert file.testzip() is None
    (tmp_path / "a.pt").write_bytes(data)
    del state["meta_parameters"]
    for loaded in (torch.load(io.BytesIO(data), weights_only=True), read_checkpoint(tmp_path / "a.pt")):
        assert torch.equal(loaded.pop("meta_parameters")["theta"], weights)
    assert loaded == state


def test_a_checkpoint_that_cannot_be_read_or_has_two_schemas_is_refused(tmp_path):
    (tmp_path / "two.pt").write_bytes(checkpoint_bytes({"schema_version": torch.zeros(2)}))
    for name, says in {"missing.pt": "can't be read", ".": "can't be read", "two.pt": "schema"}.items():
        with pytest.raises(RunError, match=says):
            read_checkpoint(tmp_path / name)

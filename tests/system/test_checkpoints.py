"""Checkpoints are sound or refused, and a stranger's file runs no code."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from system.checkpoints import SCHEMA_VERSION, checkpoint_bytes, read_checkpoint
from system.errors import RunError


@pytest.fixture
def state() -> dict[str, Any]:
    """What a trainer hands over: tensors, numbers and strings."""
    weights = torch.arange(200, dtype=torch.float32) / 7
    return {"schema_version": SCHEMA_VERSION, "iteration": 3, "meta_parameters": {"theta": weights}, "best": 0.5}


def sealed(body: bytes) -> bytes:
    """A stranger's archive with the digest that our own files carry: what a forger can do."""
    body = body.removesuffix(b"\0\0")
    return body + (64).to_bytes(2, "little") + hashlib.sha256(body).hexdigest().encode()


def archive(value: Any, modern: bool = True) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=modern)
    return buffer.getvalue()


def old_archive(value: Any) -> bytes:
    return archive(value, modern=False)


def plain_zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("readme.txt", "not a checkpoint")
    return buffer.getvalue()


def test_a_checkpoint_loads_with_plain_torch_from_a_sound_zip_archive(state: dict[str, Any]) -> None:
    data = checkpoint_bytes(state)
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        assert file.testzip() is None
    loaded = torch.load(io.BytesIO(data), weights_only=True)
    assert torch.equal(loaded["meta_parameters"]["theta"], state["meta_parameters"]["theta"])


def test_a_checkpoint_is_read_back_as_it_was(tmp_path: Path, state: dict[str, Any]) -> None:
    (tmp_path / "a.pt").write_bytes(checkpoint_bytes(state))
    loaded = read_checkpoint(tmp_path / "a.pt")
    assert torch.equal(loaded.pop("meta_parameters")["theta"], state.pop("meta_parameters")["theta"]) and loaded == state


def test_truncations_flipped_bits_and_bytes_after_the_end_are_found(tmp_path: Path, state: dict[str, Any]) -> None:
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


class Attack:
    """An object whose unpickling makes a folder."""

    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("serialise", [pickle.dumps, old_archive, archive])
@pytest.mark.parametrize("seal", [bytes, sealed], ids=["without our digest", "with our digest"])
def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(
    tmp_path: Path, serialise: Callable[[Any], bytes], seal: Callable[[bytes], bytes]
) -> None:
    (tmp_path / "a.pt").write_bytes(seal(serialise({"schema_version": SCHEMA_VERSION, "a": Attack(tmp_path / "owned")})))
    with pytest.raises(RunError) as caught:
        read_checkpoint(tmp_path / "a.pt")
    assert caught.value.code == 2 and not (tmp_path / "owned").exists()


FOREIGN = {
    "empty": b"",
    "zeros": b"\0" * 1000,
    "text": b"hello, world\n" * 20,
    "random bytes": np.random.default_rng(0).bytes(5000),
    "a plain zip": plain_zip(),
    "a foreign checkpoint": archive({"schema_version": SCHEMA_VERSION}),
    "nothing, sealed": sealed(b""),
    "text, sealed": sealed(b"hello"),
    "a plain zip, sealed": sealed(plain_zip()),
    "random bytes, sealed": sealed(np.random.default_rng(1).bytes(5000)),
    "a list": sealed(archive([1, 2])),
    "a tensor": sealed(archive(torch.zeros(3))),
    "no schema version": sealed(archive({})),
    "a newer schema": sealed(archive({"schema_version": SCHEMA_VERSION + 1})),
    "a schema in words": sealed(archive({"schema_version": "1"})),
    "a schema of two numbers": sealed(archive({"schema_version": torch.zeros(2)})),
    "a module": sealed(archive({"schema_version": torch.nn.Linear(1, 1)})),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_file_that_is_no_checkpoint_of_ours_is_refused_on_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.pt").write_bytes(FOREIGN[name])
    with pytest.raises(RunError) as caught:
        read_checkpoint(tmp_path / "a.pt")
    assert caught.value.code == 2 and "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("name", ["missing.pt", "."])
def test_a_checkpoint_that_cannot_be_read_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(RunError, match="can't be read"):
        read_checkpoint(tmp_path / name)

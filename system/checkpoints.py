"""Checkpoints that are verified: a torch file with its own SHA-256 as the comment of the zip archive."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import torch

from system.errors import RunError

SCHEMA_VERSION = 1
_DIGEST_LENGTH = (64).to_bytes(2, "little")


def checkpoint_bytes(state: dict[str, Any]) -> bytes:
    """Serialise `state`; `torch.load` reads the result like any other file."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    body = buffer.getvalue()[:-2]  # a zip archive ends with the length of its comment, 0 here
    return body + _DIGEST_LENGTH + hashlib.sha256(body).hexdigest().encode()


def is_sound(data: bytes) -> bool:
    body, trailer = data[:-66], data[-66:]
    return trailer == _DIGEST_LENGTH + hashlib.sha256(body).hexdigest().encode()


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Verify and load a checkpoint onto the CPU; raises `RunError` for anything that is not a sound one of ours.

    The digest is checked first: `torch.load` does not notice a flipped bit. `weights_only=True` runs no code.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RunError(f"{path} can't be read (got {error.strerror}; expected a checkpoint)") from None
    if not is_sound(data):
        raise RunError(f"{path} is damaged, or not a checkpoint of this project (got a wrong SHA-256; expected its own)")
    try:
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # a stranger's file can raise anything, and none of it matters to the user
        raise RunError(f"{path} is no checkpoint (got {type(error).__name__}; expected plain tensors and numbers)") from None
    version = state.get("schema_version") if isinstance(state, dict) else None
    if type(version) is not int or version != SCHEMA_VERSION:
        raise RunError(f"{path} has another schema version (got {version!r}; expected {SCHEMA_VERSION})")
    return state

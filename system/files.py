"""Files that are whole or absent, and strict JSON."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

# what a file system answers that lacks a service which is only there for safety
NOT_OFFERED = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)


def write_atomically(path: Path, data: bytes) -> bool:
    """Write a file so that a crash at any moment leaves the old one or the new one.

    Returns whether the file system confirmed that it is on the disk; one that can't confirm it (network and synchronised
    drives) may lose the new file with the power. Raises OSError where the disk is full or read-only; the old file is then
    still there.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            durable = _sync(file.fileno())
        os.replace(temporary, path)
        return _sync_directory(path.parent) and durable
    finally:
        with contextlib.suppress(OSError):  # the error above says more
            temporary.unlink()


def _sync(descriptor: int) -> bool:
    try:
        os.fsync(descriptor)
        return True
    except OSError as error:
        if error.errno in NOT_OFFERED:
            return False
        raise


def _sync_directory(directory: Path) -> bool:
    """Make renames in `directory` durable, where that takes opening it."""
    if sys.platform == "win32":  # no folder can be opened there, and its file systems keep a journal of names
        return True
    try:
        descriptor = os.open(directory, os.O_RDONLY)
    except PermissionError:  # a folder that may be written but not listed
        return False
    try:
        return _sync(descriptor)
    finally:
        os.close(descriptor)


def to_json(value: Any) -> Any:
    """`value` as strict JSON: arrays become lists, numbers that are not finite become null."""
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [to_json(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def json_bytes(value: Any) -> bytes:
    return (json.dumps(to_json(value), indent=1, allow_nan=False) + "\n").encode()

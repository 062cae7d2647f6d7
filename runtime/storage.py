"""Files that are whole or absent, checkpoints that are verified, and the run directories that hold them.

Independent of any method, learners and training: it is handed numbers, tensors, figures and paths.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from runtime.errors import RunError

SCHEMA_VERSION = 1
EXPERIMENTS = Path(__file__).resolve().parent.parent / "experiments"
# what a file system answers that lacks a service which is only there for safety
NOT_OFFERED = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)


# ---- files that are whole or absent


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
        _replace(temporary, path)
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


def _replace(source: Path, target: Path) -> None:
    """`os.replace`, again where somebody (a virus scanner, a program that synchronises) holds the target for a moment."""
    for pause in (0.01, 0.1, 1.0):
        try:
            return os.replace(source, target)
        except OSError as error:
            if error.errno != errno.EBUSY and getattr(error, "winerror", 0) not in (5, 32):
                raise
            time.sleep(pause)
    os.replace(source, target)


def plain(value: Any) -> Any:
    """`value` as strict JSON: arrays become lists, numbers that are not finite become null."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def figure_bytes(figure: Any, suffix: str, dpi: float | str = "figure") -> bytes:
    """The contents of a PNG or PDF file of a matplotlib figure; equal figures give equal bytes."""
    if (layout := figure.get_layout_engine()) is not None:
        layout.execute(figure)
        figure.set_layout_engine(None)  # with one, each format would lay it out again, or at least draw it twice
    buffer = io.BytesIO()
    figure.savefig(buffer, format=suffix, dpi=dpi, metadata={"CreationDate": None} if suffix == "pdf" else {})
    return buffer.getvalue()


def json_bytes(value: Any) -> bytes:
    return (json.dumps(plain(value), indent=1, allow_nan=False) + "\n").encode()


# ---- checkpoints: a torch file with its own SHA-256 as the zip archive's comment

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


# ---- run directories


def new_directory(output: Path, stem: str, name: str | None = None) -> Path:
    """Make the directory STEM_NAME or STEM_TIMESTAMP under `output`, never an existing one. Raises `RunError`."""
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    names = [stamp, *(f"{stamp}-{number}" for number in range(2, 1001))] if name is None else [name]
    try:
        output.mkdir(parents=True, exist_ok=True)
        for directory in (output / f"{stem}_{each}" for each in names):
            with contextlib.suppress(FileExistsError):  # mkdir either makes the directory or tells that another run has it
                directory.mkdir()
                return directory
    except OSError as error:
        got = f"got {error.strerror}; expected a writable folder"
        raise RunError(f"the run directory can't be made in {output} ({got})", 1) from None
    if name is not None:
        raise RunError(f"{directory} exists (got --name {name}; expected a new name)")
    raise RunError(f"no free name for the run (got {stamp}; expected fewer than 1000 starts a second)", 1)


def find_run(text: str, output: Path) -> Path:
    """The directory of RUN: a path, one of its checkpoints, a name under `output`, or `latest`. Raises `RunError`."""
    if text == "latest":
        runs = [path for path in output.glob("*") if (path / "config.json").is_file()]
        if not runs:
            raise RunError(f"there is no run yet (got latest in {output}; expected at least one run)")
        # where the clock of files is coarse, the time in the name decides
        return max(runs, key=lambda path: ((path / "config.json").stat().st_mtime_ns, path.name.split("_")[-1]))
    for path in (Path(text), output / text, *([Path(os.path.abspath(text)).parent.parent] if os.path.isfile(text) else [])):
        if os.path.isfile(path / "config.json"):  # False for what is no name
            return path
    raise RunError(f"no such run (got {text}; expected a run directory with a config.json, a checkpoint in one, or latest)")


def find_launched(output: Path, same: Callable[[Any], bool]) -> Path | None:
    """The newest run under `output` whose launch record is the `same`, if there is one."""
    for path in sorted(output.glob("*/.launch"), key=lambda path: path.stat().st_mtime_ns, reverse=True):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # not one of ours
            if same(json.loads(path.read_text())):
                return path.parent
    return None


def read_newest(directory: Path) -> tuple[dict[str, Any], str]:
    """A run's last checkpoint, or the one before where it is damaged; and then a warning that says so."""
    folder = directory / "checkpoints"
    try:
        return read_checkpoint(folder / "last.pt"), ""
    except RunError as error:
        if not (folder / "previous.pt").exists():
            raise
        state = read_checkpoint(folder / "previous.pt")
        return state, f"{error}; going on from the one before it, previous.pt"


def load_run(text: str, output: Path, best: bool = False) -> tuple[Path, dict[str, Any], str]:
    """The directory of RUN, its last (or `best`) checkpoint, and a warning where that was damaged; a file is itself."""
    directory = find_run(text, output)
    if Path(text).is_file():
        return directory, read_checkpoint(Path(text)), ""
    if best and (directory / "checkpoints" / "best.pt").exists():
        return directory, read_checkpoint(directory / "checkpoints" / "best.pt"), ""
    return directory, *read_newest(directory)

"""A run's directory: checkpoints, TensorBoard, JSON records, figures, and the report on the machine.

This file refuses to know any method by name, learners and training: it is handed numbers, tensors and figures.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import io
import json
import math
import os
import platform
import re
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch.utils import collect_env

SCHEMA_VERSION = 1
LOGGED_DPI = 70  # of pictures in TensorBoard, a third of the size of those on the disk
LIBRARIES = ("torch", "numpy", "matplotlib", "tqdm", "psutil", "tensorboard")
REPORTED_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "WORLD_SIZE", "TORCHINDUCTOR_CACHE_DIR")


class RunError(Exception):
    """A run that can't be made, opened or used: one line, and the exit code that goes with it."""

    def __init__(self, message: str, code: int = 2):
        super().__init__(message)
        self.code = code


# ---- files that are whole or absent


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that a crash at any moment leaves the old one or the new one, on the disk.

    Raises OSError where the disk is full or read-only; the old file is then still there.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_directory(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _sync_directory(directory: Path) -> None:
    """Make renames in `directory` durable."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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


def figure_bytes(figure: Any, suffix: str) -> bytes:
    """The contents of a PNG or PDF file of a matplotlib figure; equal figures give equal bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=suffix, metadata={"CreationDate": None} if suffix == "pdf" else {})
    figure.set_layout_engine("none")  # it is laid out now; for the next format once more takes as long as drawing does
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


def _is_sound(data: bytes) -> bool:
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
    if not _is_sound(data):
        raise RunError(f"{path} is damaged, or not a checkpoint of this project (got a wrong SHA-256; expected its own)")
    try:
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # a stranger's file can raise anything, and none of it matters to the user
        raise RunError(f"{path} is no checkpoint (got {type(error).__name__}; expected plain tensors and numbers)") from None
    version = state.get("schema_version") if isinstance(state, dict) else None
    if type(version) is not int or version != SCHEMA_VERSION:
        raise RunError(f"{path} has another schema version (got {version!r}; expected {SCHEMA_VERSION})")
    return state


# ---- the run


def new_directory(output: Path, stem: str, name: str | None = None) -> Path:
    """Make the directory STEM_NAME or STEM_TIMESTAMP under `output`, never an existing one. Raises `RunError`."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        if name is not None:
            directory = output / f"{stem}_{name}"
            directory.mkdir()
            return directory
        stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
        for suffix in range(1000):  # mkdir either makes the directory or tells that another run has it
            directory = output / (f"{stem}_{stamp}" + (f"-{suffix + 1}" if suffix else ""))
            try:
                directory.mkdir()
                return directory
            except FileExistsError:
                continue
    except OSError as error:
        if name is not None and (output / f"{stem}_{name}").exists():
            raise RunError(f"{output / f'{stem}_{name}'} exists (got --name {name}; expected a new name)") from None
        raise RunError(
            f"the run directory can't be made in {output} (got {error.strerror}; expected a writable folder)", 1
        ) from None
    raise RunError(f"no free name for the run (got {stamp}; expected fewer than 1000 starts a second)", 1)


class ExperimentManager:
    """One run's directory, and everything that is written there.

    Args:
        directory: of the run; it exists.
        method: a name for the TensorBoard tags of the method's own diagnostics.
        command: the command line, for the report.

    A logger or figure that can't be written becomes a warning in the report; a checkpoint that can't be raises.
    """

    def __init__(self, directory: Path, method: str, command: list[str]):
        self.directory, self.method, self.command = directory, method, command
        self.warnings: list[str] = []
        self.history: dict[str, list[Any]] = {"train": [], "validation": []}
        self._lock = self._take_lock()
        self._writer: Any = None
        self._last_is_sound = False  # not known before the first save: a damaged one must not replace the one before it
        self._started = time.time()
        self._log_file = self.attempt("train.log", lambda: open(directory / "train.log", "a", buffering=1))  # noqa: SIM115
        for name in ("checkpoints", "plots", "tensorboard"):
            (directory / name).mkdir(exist_ok=True)
        for leftover in [*directory.glob(".*.tmp"), *directory.glob("*/.*.tmp")]:  # of a process that was killed
            leftover.unlink(missing_ok=True)

    @classmethod
    def create(cls, output: Path, method: str, family: str, name: str | None, command: list[str]) -> ExperimentManager:
        """A manager of a new run directory, METHOD_Family_NAME or METHOD_Family_TIMESTAMP."""
        return cls(new_directory(output, f"{method.upper()}_{family}", name), method, command)

    def _take_lock(self) -> Any:
        """One writer a run: the system drops the lock when its process dies, however it dies."""
        lock = open(self.directory / ".lock", "w")  # noqa: SIM115 (held until the process ends)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            raise RunError(
                f"{self.directory} is in use by another process (got a locked run; expected a free one)", 1
            ) from None
        return lock

    def attempt(self, what: str, action: Callable[[], Any]) -> Any:
        """Do something whose failure must not end a training run: it becomes a warning, once."""
        try:
            return action()
        except Exception as error:
            self.warn(f"{what} could not be written: {error}")
            return None

    def warn(self, message: str) -> None:
        """Say once what went wrong without ending the run, and keep it for the report."""
        if message not in self.warnings:
            self.warnings.append(message)
            print(f"warning: {message}", file=sys.stderr)

    @property
    def shown(self) -> str:
        """The directory as a person wants to read it: relative where that is shorter."""
        return min(str(self.directory), os.path.relpath(self.directory), key=len)

    def completed(self) -> int:
        """How many steps the run had when it was complete, by its report; 0 where it never was."""
        try:
            report = json.loads((self.directory / "full_report.json").read_text())
            return int(report["timing"]["iterations"]) if report["status"] == "complete" else 0
        except (OSError, ValueError, KeyError, TypeError):
            return 0

    def close(self) -> None:
        """Close the event stream and the log, and let the run go."""
        if self._writer is not None:
            self.attempt("tensorboard", self._writer.close)
        if self._log_file is not None:
            self.attempt("train.log", self._log_file.close)
        self._lock.close()

    # ---- what is logged while training

    def log(self, line: str) -> None:
        """Append a line to train.log, with the time."""
        if self._log_file is not None:
            stamp = datetime.now().isoformat(sep=" ", timespec="seconds")
            self.attempt("train.log", lambda: self._log_file.write(f"{stamp} {line}\n"))

    def open_tensorboard(self, first_step: int) -> None:
        """Start the event stream; entries from `first_step` on, of a run that is resumed, are dropped."""

        def writer() -> Any:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # tensorboard's own, on import
                from torch.utils.tensorboard import SummaryWriter
            threading.excepthook = _unless_reported
            purge = first_step if first_step else None
            return SummaryWriter(str(self.directory / "tensorboard"), purge_step=purge, flush_secs=10)

        self._writer = self.attempt("tensorboard", writer)
        layout = {"adaptation": {"validation error": ["Multiline", [r"validation/mse_after_.*"]]}}
        self._write("add_custom_scalars", layout)

    def _write(self, call: str, *args: Any, **kwargs: Any) -> None:
        if self._writer is not None:
            self.attempt("tensorboard", lambda: getattr(self._writer, call)(*args, **kwargs))

    def log_training(self, iteration: int, epoch: int, values: dict[str, float], lr: float, tasks_per_second: float) -> None:
        """Record the log values of one step; a method's own diagnostics go under its own tag."""
        shared = ("meta_loss", "query_mse", "grad_norm")
        own = {name: value for name, value in values.items() if name not in shared}
        record = {name: values[name] for name in shared} | {"learning_rate": lr}
        self.history["train"].append({"iteration": iteration, "epoch": epoch} | record | own)
        for name, value in record.items():
            self._write("add_scalar", f"train/{name}", value, iteration)
        for name, value in own.items():
            self._write("add_scalar", f"{self.method}/{name}", value, iteration)
        self._write("add_scalar", "performance/tasks_per_second", tasks_per_second, iteration)

    def log_validation(self, iteration: int, errors: list[float]) -> None:
        """Record the mean validation error after 0, 1, ... support gradients."""
        self.history["validation"].append({"iteration": iteration, "mse": errors})
        for step, error in enumerate(errors):
            self._write("add_scalar", f"validation/mse_after_{step:02d}", error, iteration)

    # ---- what is saved

    def save_checkpoint(self, state: dict[str, Any], best: dict[str, Any] | None = None) -> None:
        """Save last.pt, keeping the one before it as previous.pt; and `best`, an earlier state, as best.pt before them."""
        folder = self.directory / "checkpoints"

        def data(one: dict[str, Any]) -> bytes:
            whole = {"schema_version": SCHEMA_VERSION, "method": self.method, "history": self.history} | one
            return checkpoint_bytes(whole | {"history": plain(whole["history"])})

        if best is not None:
            write_atomically(folder / "best.pt", data(best))
        last = folder / "last.pt"
        self._last_is_sound = self._last_is_sound or (last.exists() and _is_sound(last.read_bytes()))
        if self._last_is_sound:  # a second name first, so that last.pt is there at every moment
            temporary = folder / ".previous.tmp"
            temporary.unlink(missing_ok=True)
            os.link(last, temporary)
            os.replace(temporary, folder / "previous.pt")
        write_atomically(last, data(state))
        self._last_is_sound = True

    def save_json(self, name: str, value: Any) -> None:
        write_atomically(self.directory / name, json_bytes(value))

    def save_arrays(self, arrays: dict[str, np.ndarray]) -> None:
        """The arrays behind the figures, plots/data.npz."""
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
        self.attempt("plots/data.npz", lambda: write_atomically(self.directory / "plots" / "data.npz", buffer.getvalue()))

    def save_figure(self, name: str, figure: Any, iteration: int) -> None:
        """Save a matplotlib figure as PNG and PDF, and show it in TensorBoard."""

        def save(suffix: str) -> None:
            write_atomically(self.directory / "plots" / f"{name}.{suffix}", figure_bytes(figure, suffix))

        for suffix in ("png", "pdf"):
            self.attempt(f"plots/{name}.{suffix}", functools.partial(save, suffix))
        self.log_figure(name, figure, iteration)

    def log_figure(self, name: str, figure: Any, iteration: int) -> None:
        """Show a matplotlib figure in TensorBoard only, where a small picture does."""

        def show() -> None:
            buffer = io.BytesIO()
            figure.savefig(buffer, format="png", dpi=LOGGED_DPI)
            self._write("add_image", f"figures/{name}", _pixels(buffer.getvalue()), iteration, dataformats="HWC")

        if self._writer is not None:
            self.attempt("tensorboard", show)

    def log_evaluation(
        self, shots: dict[str, dict[str, list[Any]]], config: dict[str, Any], performance: dict[str, float]
    ) -> None:
        """Show the test results in TensorBoard: a curve over gradients for each K, and the hparams table."""
        for count, result in shots.items():
            for step, error in enumerate(result["mse"]):
                self._write("add_scalar", f"evaluation/{count}_shot_mse_after_gradients", error, step)
        self._write("add_scalar", "performance/ms_per_iteration", performance["ms_per_iteration"], performance["iterations"])
        flat = {name: value if isinstance(value, (int, float, str)) else str(value) for name, value in config.items()}
        finals = {f"hparam/{count}_shot_final_mse": result["mse"][-1] for count, result in shots.items()}
        # "." keeps the table in this run's own directory: by default it becomes a run of its own
        self._write("add_hparams", {"method": self.method} | flat, finals, run_name=".")

    def save_report(self, status: str, contents: dict[str, Any]) -> None:
        """full_report.json: `contents`, what the run ran on, and the SHA-256 of every file that it left."""
        if self._writer is not None:
            self.attempt("tensorboard", self._writer.close)  # all its events are in the file before it is hashed
        files = {}
        for path in sorted(self.directory.rglob("*")):
            name = str(path.relative_to(self.directory))
            if path.is_file() and not path.name.startswith(".") and name not in ("full_report.json", "train.log"):
                files[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        report = {"schema_version": SCHEMA_VERSION, "status": status, "method": self.method, "command": self.command}
        report |= contents | {"seconds": time.time() - self._started, "warnings": self.warnings}
        report |= {"environment": system_report(), "git": git_state(), "files": files}
        self.save_json("full_report.json", report)


class Spectator:
    """Stands in for the manager in a process that does not write: whatever it is told, it does nothing."""

    def __init__(self) -> None:
        self.history: dict[str, list[Any]] = {"train": [], "validation": []}

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args, **kwargs: None


def _unless_reported(failure: Any) -> None:
    """What TensorBoard's thread could not write comes up again at the next entry, and is a warning there."""
    if not type(failure.thread).__module__.startswith("tensorboard"):
        threading.__excepthook__(failure)


def _pixels(png: bytes) -> np.ndarray:
    from matplotlib.image import imread

    return (imread(io.BytesIO(png))[..., :3] * 255).astype(np.uint8)


def find_run(text: str, output: Path) -> Path:
    """The directory of RUN: a path, one of its checkpoints, a name under `output`, or `latest`. Raises `RunError`."""
    if text == "latest":
        runs = [path for path in output.glob("*") if (path / "config.json").is_file()]
        if not runs:
            raise RunError(f"there is no run yet (got latest in {output}; expected at least one run)")
        return max(runs, key=lambda path: (path / "config.json").stat().st_mtime_ns)
    for path in (Path(text), output / text, Path(text).parent.parent):
        if (path / "config.json").is_file() and (path.is_dir() or Path(text).is_file()):
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


# ---- where and on what


def git_state() -> dict[str, Any]:
    """Commit of the code that runs, and whether it had changes; nulls where there is no repository."""
    here = Path(__file__).resolve().parent

    def git(*args: str) -> str | None:
        code, text, _ = _run(["git", "-C", str(here), *args])
        return text if code == 0 else None

    changes = git("status", "--porcelain")
    return {"commit": git("rev-parse", "HEAD"), "dirty": None if changes is None else bool(changes)}


def system_report() -> dict[str, Any]:
    """What the run ran on; of the environment variables only those on a short list."""
    memory = psutil.virtual_memory()
    gpus = []
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            gpus.append({"name": properties.name, "memory_gib": properties.total_memory / 2**30})
    return {
        "platform": platform.platform(),
        "os": collect_env.get_os(_run),
        "compiler": collect_env.get_gcc_version(_run),
        "python": platform.python_version(),
        "cpu": {
            "model": _cpu_model(),
            "logical_cores": psutil.cpu_count(),
            "physical_cores": psutil.cpu_count(logical=False),
        },
        "memory": {
            "total_gib": memory.total / 2**30,
            "peak_process_gib": _peak_memory() / 2**30,
        },
        "gpu": gpus,
        "cuda": torch.version.cuda,
        "threads": {"torch": torch.get_num_threads(), "interop": torch.get_num_interop_threads()},
        "libraries": {name: metadata.version(name) for name in LIBRARIES},
        "variables": {name: os.environ[name] for name in REPORTED_VARIABLES if name in os.environ},
    }


def _cpu_model() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor()
    found = re.search(r"^model name\s*:\s*(.*)$", text, re.MULTILINE)
    return found[1] if found else platform.processor()


def _peak_memory() -> int:
    """Bytes of the largest resident set so far."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _run(command: str | list[str]) -> tuple[int, str, str]:
    """Run a short command: (exit code, output, errors); a command that hangs or is missing has failed."""
    try:
        done = subprocess.run(command, shell=isinstance(command, str), capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired) as error:
        return 1, "", str(error)
    return done.returncode, done.stdout.strip(), done.stderr.strip()

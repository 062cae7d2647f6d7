"""A run's directory: checkpoints, TensorBoard, JSON records, figures, and the report. It writes what it is given."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import json
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from system.checkpoints import SCHEMA_VERSION, checkpoint_bytes, is_sound, read_checkpoint
from system.errors import RunError
from system.files import json_bytes, write_atomically
from system.locks import Lock
from system.machine import git_state, system_report
from system.text import printable

WRITTEN_LATER = {"full_report.json", "report.html", "train.log"}  # than the digests of the files
Shots = dict[str, dict[str, list[Any]]]  # the test results of each K: lists over gradients
EXPERIMENTS = Path(__file__).resolve().parent / "experiments"


class ExperimentManager:
    """One run's directory, and everything that is written there.

    Args:
        directory: of the run; it exists.
        method, command: the method's name and the command line, for the report.

    A logger or figure that can't be written becomes a warning in the report; a checkpoint that can't be raises.
    """

    def __init__(self, directory: Path, method: str, command: list[str]):
        self.directory, self.method, self.command = directory, method, command
        self.warnings: list[str] = []
        self._lock = Lock(directory)
        if not self._lock.exclusive:
            self.warn(f"{directory} is on a file system without locks: two processes that write this run are not kept apart")
        self._writer: Any = None
        self._started = time.time()
        (directory / "checkpoints").mkdir(exist_ok=True)
        for name in ("plots", "tensorboard"):
            self.attempt(name, functools.partial((directory / name).mkdir, exist_ok=True))
        for leftover in [*directory.glob(".*.tmp"), *directory.glob("*/.*.tmp")]:  # of a process that was killed
            leftover.unlink(missing_ok=True)

    @classmethod
    def create(cls, output: Path, method: str, family: str, name: str | None, command: list[str]) -> ExperimentManager:
        """A manager of a new run directory, METHOD_Family_NAME or METHOD_Family_TIMESTAMP."""
        return cls(new_directory(output, f"{method.upper()}_{family}", name), method, command)

    def attempt(self, what: str, action: Callable[[], Any]) -> Any:
        """Do something whose failure must not end a training run: it becomes a warning, once."""
        try:
            return action()
        except Exception as error:
            self.warn(f"{what} could not be written: {error}")
            return None

    def warn(self, message: str) -> None:
        """Print a warning once, and keep it for the report."""
        if message not in self.warnings:
            self.warnings.append(message)
            print(f"warning: {printable(message)}", file=sys.stderr)

    @property
    def display_path(self) -> str:
        """The directory for messages: relative where that is shorter."""
        return printable(min(str(self.directory), os.path.relpath(self.directory), key=len))

    def completed(self) -> int:
        """How many steps the run had when it was complete, by its report; 0 where it never was."""
        try:
            report = json.loads((self.directory / "full_report.json").read_text())
            return int(report["timing"]["iterations"]) if report["status"] == "complete" else 0
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
            return 0

    def close(self) -> None:
        """Close the event stream, and release the lock."""
        self._write("close")
        self._lock.release()

    # ---- what is logged while training

    def log(self, line: str) -> None:
        """Append a line to train.log, with the time."""

        def append() -> None:
            with open(self.directory / "train.log", "a", encoding="utf-8") as file:
                file.write(f"{datetime.now().isoformat(sep=' ', timespec='seconds')} {printable(line)}\n")

        self.attempt("train.log", append)

    def open_tensorboard(self, first_step: int) -> None:
        """Start the event stream; entries from `first_step` on, of a run that is resumed, are dropped."""

        def writer() -> Any:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # tensorboard's own, on import
                from torch.utils.tensorboard import SummaryWriter
            threading.excepthook = _ignore_writer_errors
            return SummaryWriter(str(self.directory / "tensorboard"), purge_step=first_step or None, flush_secs=10)

        self._writer = self.attempt("tensorboard", writer)
        layout = {"adaptation": {"validation error": ["Multiline", [r"validation/mse_after_.*"]]}}
        self._write("add_custom_scalars", layout)

    def _write(self, call: str, *args: Any, **kwargs: Any) -> None:
        if self._writer is not None:
            args = tuple(printable(value) if isinstance(value, str) else value for value in args)  # tags
            self.attempt("tensorboard", lambda: getattr(self._writer, call)(*args, **kwargs))

    def log_scalars(self, iteration: int, values: dict[str, float]) -> None:
        """Show numbers of one step in TensorBoard, by their tags."""
        for tag, value in values.items():
            self._write("add_scalar", tag, value, iteration)

    # ---- what is saved

    def save_checkpoint(self, state: dict[str, Any], best: dict[str, Any] | None = None) -> None:
        """Save last.pt, keeping the one before it as previous.pt; and `best`, an earlier state, as best.pt before them."""
        if best is not None:
            self.save_best(best)
        last = self.directory / "checkpoints" / "last.pt"
        if last.exists() and is_sound(before := last.read_bytes()):  # a damaged one must not replace the one before it
            self._save_state("previous.pt", before)
        self._save_state("last.pt", checkpoint_bytes({"schema_version": SCHEMA_VERSION} | state))

    def save_best(self, state: dict[str, Any]) -> None:
        """Save best.pt."""
        self._save_state("best.pt", checkpoint_bytes({"schema_version": SCHEMA_VERSION} | state))

    def _save_state(self, name: str, data: bytes) -> None:
        if not write_atomically(self.directory / "checkpoints" / name, data):
            self.warn(
                f"{self.directory} is on a file system that does not confirm what is written: after a power failure "
                "its newest files may be missing (a kill or a crash loses nothing)"
            )

    def save_json(self, name: str, value: Any) -> None:
        write_atomically(self.directory / name, json_bytes(value))

    def _attempt_file(self, name: str, data: bytes) -> None:
        self.attempt(name, lambda: write_atomically(self.directory / name, data))

    def save_arrays(self, arrays: dict[str, np.ndarray]) -> None:
        """The arrays behind the figures, plots/data.npz."""
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
        self._attempt_file("plots/data.npz", buffer.getvalue())

    def save_figures(self, pictures: Mapping[str, bytes], pdf: bytes, iteration: int) -> None:
        """Save figures, as PNG files by name and as one PDF file, and show them in TensorBoard."""
        for name, png in pictures.items():
            self._attempt_file(f"plots/{name}.png", png)
            self.log_picture(name, png, iteration)
        self._attempt_file("plots/figures.pdf", pdf)

    def log_picture(self, name: str, png: bytes, iteration: int) -> None:
        """Show a picture in TensorBoard."""
        if self._writer is not None:
            from matplotlib.image import imread

            self._write("add_image", f"figures/{name}", imread(io.BytesIO(png))[..., :3], iteration, dataformats="HWC")

    def log_evaluation(self, shots: Shots, config: dict[str, Any], performance: dict[str, float]) -> None:
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
        """full_report.json: `contents`, what the run ran on, and the SHA-256 of the files it left but log and page."""
        self._write("close")  # all its events are in the file before it is hashed
        files = {}
        for path in sorted(self.directory.rglob("*")):
            name = str(path.relative_to(self.directory))
            if path.is_file() and not path.name.startswith(".") and name not in WRITTEN_LATER:
                files[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        report = {"schema_version": SCHEMA_VERSION, "status": status, "method": self.method, "command": self.command}
        report |= contents | {"seconds": time.time() - self._started, "warnings": self.warnings}
        report |= {"environment": system_report(), "git": git_state(), "files": files}
        self.save_json("full_report.json", report)


class NullManager:
    """The manager of a process that does not write: each method of `ExperimentManager` is there, and does nothing."""

    directory = Path()
    display_path = ""

    def __getattr__(self, name: str) -> Callable[..., None]:
        if name.startswith("_") or not hasattr(ExperimentManager, name):
            raise AttributeError(name)
        return lambda *_, **__: None


def _ignore_writer_errors(failure: Any) -> None:
    """Keep quiet about errors of TensorBoard's thread: they are raised again at the next entry, and become a warning."""
    if not type(failure.thread).__module__.startswith("tensorboard"):
        threading.__excepthook__(failure)


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


def find_launched(output: Path, launch: str) -> Path | None:
    """The run under `output` that this `launch` began, if there is one."""
    for path in output.glob("*/.launch"):
        with contextlib.suppress(OSError):
            if path.read_bytes() == json_bytes(launch):
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

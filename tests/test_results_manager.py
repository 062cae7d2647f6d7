"""A run's directory: files that are whole or absent, checkpoints that are sound or refused, one writer, a true report."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import os
import pickle
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

import results_manager
from results_manager import ExperimentManager, Progress, find_run
from system.checkpoints import SCHEMA_VERSION, checkpoint_bytes, read_checkpoint
from system.errors import RunError
from system.files import json_bytes, to_json, write_atomically
from system.machine import git_state, system_report

ROOT = Path(__file__).resolve().parents[1]


@contextlib.contextmanager
def managed(directory: Path, method: str = "wave") -> Iterator[ExperimentManager]:
    """A manager of an existing directory, closed at the end."""
    directory.mkdir(parents=True, exist_ok=True)
    manager = ExperimentManager(directory, method, ["main.py", "--method", method])
    try:
        yield manager
    finally:
        manager.close()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[ExperimentManager]:
    with managed(tmp_path / "run") as manager:
        yield manager


@pytest.fixture
def state() -> dict[str, Any]:
    """What a trainer hands over: tensors, numbers and strings."""
    weights = torch.arange(200, dtype=torch.float32) / 7
    return {"schema_version": SCHEMA_VERSION, "iteration": 3, "meta_parameters": {"theta": weights}, "best": 0.5}


def strict(text: str | bytes) -> Any:
    """JSON that would be refused if it held NaN or infinity."""
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in JSON"))


def sealed(body: bytes) -> bytes:
    """A stranger's archive with the digest that our own files carry: what a forger can do."""
    body = body[:-2] if body[-2:] == b"\0\0" else body
    return body + (64).to_bytes(2, "little") + hashlib.sha256(body).hexdigest().encode()


def a_figure() -> Figure:
    figure = Figure(figsize=(1, 1))
    figure.subplots().plot([0, 1])
    return figure


# ---- files that are whole or absent


def test_a_file_is_synced_then_renamed_then_its_directory_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    happened: list[str] = []
    fsync, replace = os.fsync, os.replace

    def recording_fsync(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        happened.append("sync directory" if path == tmp_path else f"sync file of {path.stat().st_size} bytes")
        fsync(descriptor)

    def recording_replace(source: Path, target: Path) -> None:
        happened.append(f"rename to {Path(target).name}")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", recording_fsync)
    monkeypatch.setattr(os, "replace", recording_replace)
    write_atomically(tmp_path / "file", b"12345")
    assert happened == ["sync file of 5 bytes", "rename to file", "sync directory"]


def test_the_temporary_file_is_in_the_same_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources: list[Path] = []
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda source, target: (sources.append(Path(source)), replace(source, target)))
    write_atomically(tmp_path / "file", b"new")
    assert [source.parent for source in sources] == [tmp_path]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    (tmp_path / "file").write_bytes(b"old")
    monkeypatch.setattr(os, step, full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"old"


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_write_that_fails_leaves_no_temporary_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, step, full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(tmp_path / "file", b"new")
    assert list(tmp_path.iterdir()) == []


def test_a_write_replaces_the_old_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    for content in (b"old", b"new"):
        write_atomically(tmp_path / "file", content)
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("file", b"new")]


@pytest.mark.parametrize("save", ["save_checkpoint", "save_json", "save_arrays", "save_figure", "save_report"])
def test_every_kind_of_file_is_written_atomically(
    manager: ExperimentManager, monkeypatch: pytest.MonkeyPatch, state: dict[str, Any], save: str
) -> None:
    written: list[str] = []
    monkeypatch.setattr(results_manager, "write_atomically", lambda path, data: written.append(path.name))
    monkeypatch.setattr(results_manager, "system_report", dict)
    arguments: dict[str, tuple[Any, ...]] = {
        "save_checkpoint": (state,),
        "save_json": ("metrics.json", {}),
        "save_arrays": ({"x": np.zeros(2)},),
        "save_figure": ("curve", a_figure(), 0),
        "save_report": ("complete", {}),
    }
    getattr(manager, save)(*arguments[save])
    expected = {
        "save_checkpoint": ["last.pt"],
        "save_json": ["metrics.json"],
        "save_arrays": ["data.npz"],
        "save_figure": ["curve.png", "curve.pdf"],
        "save_report": ["full_report.json"],
    }
    assert written == expected[save]


# ---- strict JSON


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, np.float32("nan"), np.float64("inf")], ids=repr)
def test_a_number_that_is_not_finite_is_written_as_null(value: float) -> None:
    assert strict(json_bytes({"a": [value]})) == {"a": [None]}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.arange(3), [0, 1, 2]),
        (np.array([[1.5, np.nan]]), [[1.5, None]]),
        (np.float32(0.5), 0.5),
        (np.int64(3), 3),
        (np.bool_(True), True),
        ((1, 2), [1, 2]),
        ({5: (1,)}, {"5": [1]}),
        ({"a": {"b": np.array([math.inf])}}, {"a": {"b": [None]}}),
        (True, True),
        (None, None),
        ("NaN", "NaN"),
        (2**64 - 1, 2**64 - 1),
    ],
    ids=repr,
)
def test_plain_values_are_strict_json(value: Any, expected: Any) -> None:
    assert strict(json_bytes(value)) == expected == to_json(value)


def test_a_saved_json_file_is_strict(manager: ExperimentManager) -> None:
    manager.save_json("metrics.json", {"mse": np.array([1.0, np.nan])})
    assert strict((manager.directory / "metrics.json").read_bytes()) == {"mse": [1.0, None]}


# ---- checkpoints


def test_a_checkpoint_loads_with_plain_torch(state: dict[str, Any]) -> None:
    loaded = torch.load(io.BytesIO(checkpoint_bytes(state)), weights_only=True)
    assert torch.equal(loaded["meta_parameters"]["theta"], state["meta_parameters"]["theta"])


def test_a_checkpoint_is_read_back_as_it_was(tmp_path: Path, state: dict[str, Any]) -> None:
    (tmp_path / "a.pt").write_bytes(checkpoint_bytes(state))
    loaded = read_checkpoint(tmp_path / "a.pt")
    assert torch.equal(loaded.pop("meta_parameters")["theta"], state.pop("meta_parameters")["theta"]) and loaded == state


def test_a_checkpoint_is_a_sound_zip_archive(state: dict[str, Any]) -> None:
    with zipfile.ZipFile(io.BytesIO(checkpoint_bytes(state))) as archive:
        assert archive.testzip() is None


def test_every_truncation_of_a_checkpoint_is_refused(tmp_path: Path, state: dict[str, Any]) -> None:
    data, path = checkpoint_bytes(state), tmp_path / "a.pt"
    lengths = {0, 1, 65, 66, 67, len(data) - 66, len(data) - 2, len(data) - 1, *range(0, len(data), len(data) // 40)}
    for length in lengths:
        path.write_bytes(data[:length])
        with pytest.raises(RunError, match="damaged"):
            read_checkpoint(path)


def test_every_flipped_bit_of_a_sample_of_50_is_found(tmp_path: Path, state: dict[str, Any]) -> None:
    data, path = checkpoint_bytes(state), tmp_path / "a.pt"
    for place in np.random.default_rng(0).choice(8 * len(data), 50, replace=False):
        damaged = bytearray(data)
        damaged[place // 8] ^= 1 << (place % 8)
        path.write_bytes(damaged)
        with pytest.raises(RunError, match="damaged"):
            read_checkpoint(path)


def test_a_checkpoint_with_bytes_after_its_end_is_refused(tmp_path: Path, state: dict[str, Any]) -> None:
    (tmp_path / "a.pt").write_bytes(checkpoint_bytes(state) + b"\0")
    with pytest.raises(RunError, match="damaged"):
        read_checkpoint(tmp_path / "a.pt")


class Attack:
    """An object whose unpickling makes a file."""

    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.target),)


def legacy_archive(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def modern_archive(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("serialise", [pickle.dumps, legacy_archive, modern_archive])
@pytest.mark.parametrize("seal", [bytes, sealed], ids=["without our digest", "with our digest"])
def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(
    tmp_path: Path, serialise: Callable[[Any], bytes], seal: Callable[[bytes], bytes]
) -> None:
    (tmp_path / "a.pt").write_bytes(seal(serialise({"schema_version": SCHEMA_VERSION, "a": Attack(tmp_path / "owned")})))
    with pytest.raises(RunError) as caught:
        read_checkpoint(tmp_path / "a.pt")
    assert caught.value.code == 2 and not (tmp_path / "owned").exists()


def plain_zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("readme.txt", "not a checkpoint")
    return buffer.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 1000,
        b"hello, world\n" * 20,
        np.random.default_rng(0).bytes(5000),
        plain_zip(),
        modern_archive({"schema_version": SCHEMA_VERSION}),
        sealed(b""),
        sealed(b"hello"),
        sealed(plain_zip()),
        sealed(np.random.default_rng(1).bytes(5000)),
        sealed(modern_archive([1, 2])),
        sealed(modern_archive(torch.zeros(3))),
        sealed(modern_archive({})),
        sealed(modern_archive({"schema_version": SCHEMA_VERSION + 1})),
        sealed(modern_archive({"schema_version": "1"})),
        sealed(modern_archive({"schema_version": torch.zeros(2)})),
        sealed(modern_archive({"schema_version": torch.nn.Linear(1, 1)})),
    ],
    ids=[
        "empty",
        "zeros",
        "text",
        "random bytes",
        "a plain zip",
        "a foreign checkpoint",
        "nothing, sealed",
        "text, sealed",
        "a plain zip, sealed",
        "random bytes, sealed",
        "a list",
        "a tensor",
        "no schema version",
        "a newer schema",
        "a schema in words",
        "a schema of two numbers",
        "a module",
    ],
)
def test_a_file_that_is_no_checkpoint_of_ours_is_refused_on_one_line(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.pt").write_bytes(data)
    with pytest.raises(RunError) as caught:
        read_checkpoint(tmp_path / "a.pt")
    assert caught.value.code == 2 and "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("name", ["missing.pt", "."])
def test_a_checkpoint_that_cannot_be_read_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(RunError, match="can't be read"):
        read_checkpoint(tmp_path / name)


def test_the_checkpoint_before_the_last_is_kept(manager: ExperimentManager, state: dict[str, Any]) -> None:
    for iteration in (1, 2, 3):
        manager.save_checkpoint(state | {"iteration": iteration})
    folder = manager.directory / "checkpoints"
    assert [read_checkpoint(folder / name)["iteration"] for name in ("previous.pt", "last.pt")] == [2, 3]


def test_the_best_checkpoint_is_a_copy_of_its_own(manager: ExperimentManager, state: dict[str, Any]) -> None:
    manager.save_checkpoint(state | {"iteration": 2}, best=state | {"iteration": 1})
    manager.save_checkpoint(state | {"iteration": 3})
    folder = manager.directory / "checkpoints"
    assert read_checkpoint(folder / "best.pt")["iteration"] == 1
    assert not os.path.samefile(folder / "best.pt", folder / "previous.pt")


def test_there_is_no_best_checkpoint_before_one_was_the_best(manager: ExperimentManager, state: dict[str, Any]) -> None:
    manager.save_checkpoint(state)
    assert [path.name for path in (manager.directory / "checkpoints").iterdir()] == ["last.pt"]


def test_a_last_checkpoint_is_there_at_every_moment_of_a_save(
    manager: ExperimentManager, monkeypatch: pytest.MonkeyPatch, state: dict[str, Any]
) -> None:
    manager.save_checkpoint(state)
    last = manager.directory / "checkpoints" / "last.pt"
    sound: list[bool] = []

    def watched(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any) -> Any:
            sound.append(read_checkpoint(last)["iteration"] in (3, 4))
            result = call(*args)
            sound.append(read_checkpoint(last)["iteration"] in (3, 4))
            return result

        return wrapper

    for name in ("fsync", "replace", "link"):
        monkeypatch.setattr(os, name, watched(getattr(os, name)))
    manager.save_checkpoint(state | {"iteration": 4})
    assert sound and all(sound)


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_checkpoint_that_cannot_be_written_raises_and_the_last_one_stays(
    manager: ExperimentManager, monkeypatch: pytest.MonkeyPatch, state: dict[str, Any], step: str
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    manager.save_checkpoint(state)
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(os, step, full)
        manager.save_checkpoint(state | {"iteration": 4})
    assert read_checkpoint(manager.directory / "checkpoints" / "last.pt")["iteration"] == 3


def test_a_checkpoint_carries_the_history_of_the_run(manager: ExperimentManager, state: dict[str, Any]) -> None:
    manager.log_validation(10, [1.0, math.nan])
    manager.save_checkpoint(state)
    saved = read_checkpoint(manager.directory / "checkpoints" / "last.pt")
    assert saved["history"]["validation"] == [{"iteration": 10, "mse": [1.0, None]}]


# ---- directories


@pytest.fixture
def frozen_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    class Frozen(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Frozen:
            return cls(2026, 11, 23, 20, 15, 0)

    monkeypatch.setattr("results_manager.datetime", Frozen)


@pytest.mark.usefixtures("frozen_clock")
def test_a_run_is_named_by_method_family_and_time(tmp_path: Path) -> None:
    manager = ExperimentManager.create(tmp_path, "wave", "Sinusoidal", None, [])
    manager.close()
    assert manager.directory == tmp_path / "WAVE_Sinusoidal_20261123-201500"


@pytest.mark.usefixtures("frozen_clock")
def test_runs_of_the_same_second_have_directories_of_their_own(tmp_path: Path) -> None:
    made = [ExperimentManager.create(tmp_path, "wave", "Sinusoidal", None, []) for _ in range(5)]
    for manager in made:
        manager.close()
    assert len({manager.directory for manager in made}) == 5


def test_a_name_takes_the_place_of_the_time(tmp_path: Path) -> None:
    manager = ExperimentManager.create(tmp_path, "wave", "Sinusoidal", "mine", [])
    manager.close()
    assert manager.directory == tmp_path / "WAVE_Sinusoidal_mine"


def test_a_name_that_is_taken_is_refused(tmp_path: Path) -> None:
    ExperimentManager.create(tmp_path, "wave", "Sinusoidal", "mine", []).close()
    with pytest.raises(RunError, match="mine") as caught:
        ExperimentManager.create(tmp_path, "wave", "Sinusoidal", "mine", [])
    assert caught.value.code == 2


def test_an_output_folder_is_made_with_its_parents(tmp_path: Path) -> None:
    ExperimentManager.create(tmp_path / "a" / "b", "wave", "Sinusoidal", "mine", []).close()
    assert (tmp_path / "a" / "b" / "WAVE_Sinusoidal_mine").is_dir()


@pytest.mark.parametrize("output", ["file", "file/below"])
@pytest.mark.parametrize("name", [None, "mine"])
def test_an_output_path_that_is_a_file_is_refused_as_the_environments_fault(
    tmp_path: Path, output: str, name: str | None
) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunError, match="can't be made") as caught:
        ExperimentManager.create(tmp_path / output, "wave", "Sinusoidal", name, [])
    assert caught.value.code == 1


def test_an_output_path_that_is_a_file_is_not_blamed_on_the_name(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunError) as caught:
        ExperimentManager.create(tmp_path / "file", "wave", "Sinusoidal", None, [])
    assert "--name" not in str(caught.value)


def test_a_read_only_disk_is_refused_as_the_environments_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(self: Path, *_: Any, **__: Any) -> None:
        raise OSError(30, "Read-only file system", str(self))

    monkeypatch.setattr(Path, "mkdir", read_only)
    with pytest.raises(RunError, match="Read-only file system") as caught:
        ExperimentManager.create(tmp_path / "output", "wave", "Sinusoidal", None, [])
    assert caught.value.code == 1


# ---- one writer a run


def test_a_second_manager_of_a_live_run_is_refused(manager: ExperimentManager) -> None:
    with pytest.raises(RunError, match="in use by another process") as caught:
        ExperimentManager(manager.directory, "wave", [])
    assert caught.value.code == 1


def test_another_process_is_refused_a_live_run(manager: ExperimentManager) -> None:
    program = "import fcntl, sys; fcntl.flock(open(sys.argv[1], 'w'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    lock = str(manager.directory / ".lock")
    done = subprocess.run([sys.executable, "-c", program, lock], capture_output=True, text=True, timeout=60)
    assert "BlockingIOError" in done.stderr


def test_a_run_that_was_closed_can_be_opened_again(tmp_path: Path) -> None:
    for _ in range(2):
        with managed(tmp_path / "run"):
            pass


# ---- a broken logger or plot is a warning, never the end


class Broken:
    """A writer whose every call fails as on a full disk."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        def fail(*_: Any, **__: Any) -> None:
            raise OSError(28, "No space left on device")

        return fail


LOGGING: dict[str, Callable[[ExperimentManager], Any]] = {
    "training": lambda m: m.log_training(1, 1, {"meta_loss": 1.0, "query_mse": 1.0, "grad_norm": 1.0}, 0.1, 1.0),
    "validation": lambda m: m.log_validation(1, [1.0]),
    "a line": lambda m: m.log("a line"),
    "evaluation": lambda m: m.log_evaluation({"5": {"mse": [1.0]}}, {}, {"ms_per_iteration": 1.0, "iterations": 1.0}),
    "a figure": lambda m: m.save_figure("curve", a_figure(), 1),
}


@pytest.mark.parametrize("what", LOGGING)
def test_a_logger_that_fails_becomes_one_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    with managed(tmp_path / "run") as manager:
        with monkeypatch.context() as patch:
            patch.setattr(manager, "_writer", Broken())
            patch.setattr(manager, "_log_file", Broken())
            for _ in range(2):
                LOGGING[what](manager)
        assert len(manager.warnings) == 1 and "No space left on device" in manager.warnings[0]
    assert capsys.readouterr().err == f"warning: {manager.warnings[0]}\n"


def test_values_are_in_the_record_even_where_the_logger_fails(
    manager: ExperimentManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(manager, "_writer", Broken())
        manager.log_validation(1, [0.5])
    assert manager.history["validation"] == [{"iteration": 1, "mse": [0.5]}]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_closing_a_log_on_a_full_disk_is_a_warning(tmp_path: Path) -> None:
    with managed(tmp_path / "run") as manager:
        manager._log_file.close()
        manager._log_file = open("/dev/full", "a", buffering=1)  # noqa: SIM115
        manager.log("a line that stays in the buffer")
        manager.close()
    assert len(manager.warnings) >= 1


def test_a_tensorboard_that_cannot_be_imported_is_a_warning(
    manager: ExperimentManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    manager.open_tensorboard(0)
    assert manager.warnings


@pytest.mark.parametrize("save", ["save_figure", "save_arrays"])
def test_plots_that_cannot_be_written_are_warnings(
    manager: ExperimentManager, monkeypatch: pytest.MonkeyPatch, save: str
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(results_manager, "write_atomically", full)
    if save == "save_figure":
        manager.save_figure("curve", a_figure(), 0)
    else:
        manager.save_arrays({"x": np.zeros(2)})
    assert manager.warnings


def test_a_figure_that_cannot_be_drawn_is_a_warning(manager: ExperimentManager, monkeypatch: pytest.MonkeyPatch) -> None:
    figure = a_figure()

    def fail(*_: Any, **__: Any) -> None:
        raise ValueError("cannot be drawn")

    monkeypatch.setattr(figure, "savefig", fail)
    manager.save_figure("curve", figure, 0)
    assert manager.warnings


# ---- what is drawn and stored


@pytest.mark.parametrize(("suffix", "begins"), [("png", b"\x89PNG"), ("pdf", b"%PDF")])
def test_a_figure_is_saved_in_both_formats(manager: ExperimentManager, suffix: str, begins: bytes) -> None:
    manager.save_figure("curve", a_figure(), 0)
    assert (manager.directory / "plots" / f"curve.{suffix}").read_bytes().startswith(begins)


def test_equal_figures_are_equal_files(tmp_path: Path) -> None:
    made = []
    for name in ("a", "b"):
        with managed(tmp_path / name) as manager:
            manager.save_figure("curve", a_figure(), 0)
            made.append([(manager.directory / "plots" / f"curve.{suffix}").read_bytes() for suffix in ("png", "pdf")])
    assert made[0] == made[1]


def test_the_arrays_behind_the_figures_are_stored(manager: ExperimentManager) -> None:
    manager.save_arrays({"errors": np.arange(6.0).reshape(2, 3)})
    with np.load(manager.directory / "plots" / "data.npz", allow_pickle=False) as stored:
        np.testing.assert_array_equal(stored["errors"], [[0, 1, 2], [3, 4, 5]])


def test_a_logged_line_is_in_the_log_with_the_time(manager: ExperimentManager) -> None:
    manager.log("step 1 of 2")
    assert (manager.directory / "train.log").read_text()[10:].endswith("step 1 of 2\n")


def test_a_reopened_run_appends_to_its_log(tmp_path: Path) -> None:
    for line in ("first", "second"):
        with managed(tmp_path / "run") as manager:
            manager.log(line)
    assert [line.split()[-1] for line in (manager.directory / "train.log").read_text().splitlines()] == ["first", "second"]


# ---- TensorBoard


@pytest.fixture(scope="module")
def events(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What TensorBoard sees of a run that logged one of everything."""
    directory = tmp_path_factory.mktemp("events") / "run"
    with managed(directory) as manager:
        manager.open_tensorboard(0)
        values = {"meta_loss": 1.0, "query_mse": 0.5, "kl": 0.25, "grad_norm": 2.0}
        for iteration in (1, 2):
            manager.log_training(iteration, 1, values, 0.001, 1000.0)
        manager.log_validation(2, [3.0, 2.0])
        manager.save_figure("curve", a_figure(), 2)
        shots = {"5": {"mse": [1.0, 0.5]}, "10": {"mse": [0.8, 0.4]}}
        manager.log_evaluation(shots, {"EPOCHS": 1, "EVAL_SHOTS": [5, 10]}, {"ms_per_iteration": 1.0, "iterations": 2.0})
    return accumulated(directory / "tensorboard")


def accumulated(directory: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # tensorboard's own, on import
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    events = EventAccumulator(str(directory))
    events.Reload()
    return events


@pytest.mark.parametrize(
    "tag",
    [
        "train/meta_loss",
        "train/query_mse",
        "train/grad_norm",
        "train/learning_rate",
        "wave/kl",
        "validation/mse_after_00",
        "validation/mse_after_01",
        "evaluation/5_shot_mse_after_gradients",
        "evaluation/10_shot_mse_after_gradients",
        "performance/tasks_per_second",
        "performance/ms_per_iteration",
        "hparam/5_shot_final_mse",
    ],
)
def test_tensorboard_has_the_curve(events: Any, tag: str) -> None:
    assert tag in events.Tags()["scalars"]


def test_tensorboard_has_the_figures(events: Any) -> None:
    assert events.Tags()["images"] == ["figures/curve"]


def test_tensorboard_has_one_run(events: Any) -> None:
    folders = [path for path in Path(events.path).rglob("*") if path.is_dir()]
    assert folders == []


def test_tensorboard_has_the_table_of_hyperparameters(events: Any) -> None:
    assert {"_hparams_/experiment", "_hparams_/session_start_info"} <= set(events.summary_metadata)


def test_tensorboard_has_the_custom_layout(events: Any) -> None:
    assert "custom_scalars__config__" in events.Tags()["tensors"]


def test_tensorboard_has_each_point_once_with_its_value(events: Any) -> None:
    assert [(event.step, event.value) for event in events.Scalars("train/query_mse")] == [(1, 0.5), (2, 0.5)]


def test_a_resumed_run_drops_the_points_that_it_repeats(tmp_path: Path) -> None:
    values = {"meta_loss": 1.0, "query_mse": 1.0, "grad_norm": 1.0}
    for first, last in ((1, 4), (3, 5)):  # stopped after 4 steps, resumed from the checkpoint of step 2
        with managed(tmp_path / "run") as manager:
            manager.open_tensorboard(first if first > 1 else 0)
            for iteration in range(first, last + 1):
                manager.log_training(iteration, 1, values, 0.1, 1.0)
    steps = [event.step for event in accumulated(tmp_path / "run" / "tensorboard").Scalars("train/query_mse")]
    assert steps == [1, 2, 3, 4, 5]


# ---- the report


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The directory and full report of a run that left one of each file."""
    directory = tmp_path_factory.mktemp("report") / "run"
    with managed(directory) as manager:
        manager.open_tensorboard(0)
        manager.save_json("config.json", {"EPOCHS": 1})
        manager.save_checkpoint({"iteration": 1}, best={"iteration": 1})
        manager.save_figure("curve", a_figure(), 1)
        manager.save_arrays({"x": np.zeros(2)})
        manager.log("a line")
        manager.save_json("metrics.json", {})
        manager.log_validation(1, [1.0])
        manager.save_report("complete", {"results": {"mse": np.array([1.0, np.nan])}})
    return directory, strict((directory / "full_report.json").read_bytes())


Report = tuple[Path, dict[str, Any]]


def test_the_report_lists_every_file_that_the_run_left(report: Report) -> None:
    directory, contents = report
    left = {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}
    assert set(contents["files"]) == left - {"full_report.json", "train.log", ".lock"}


def test_the_reports_digests_are_those_of_the_files_that_the_run_left(report: Report) -> None:
    directory, contents = report
    found = {name: hashlib.sha256((directory / name).read_bytes()).hexdigest() for name in contents["files"]}
    assert contents["files"] == found


def test_the_reports_digests_wait_for_what_is_still_on_its_way_to_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results_manager, "system_report", dict)
    with managed(tmp_path / "run") as manager:
        manager.open_tensorboard(0)
        manager.log_validation(1, [1.0] * 500)  # more than the writer's queue holds
        manager.save_report("complete", {})
    listed = strict((manager.directory / "full_report.json").read_bytes())["files"]
    assert listed == {name: hashlib.sha256((manager.directory / name).read_bytes()).hexdigest() for name in listed}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("schema_version", SCHEMA_VERSION),
        ("status", "complete"),
        ("method", "wave"),
        ("command", ["main.py", "--method", "wave"]),
        ("warnings", []),
        ("results", {"mse": [1.0, None]}),
    ],
)
def test_the_report_says_what_ran_and_how_it_ended(report: Report, key: str, value: Any) -> None:
    assert report[1][key] == value


def test_the_report_says_how_long_the_run_took(report: Report) -> None:
    assert 0 < report[1]["seconds"] < 60


@pytest.mark.parametrize("library", ["torch", "numpy", "matplotlib", "tensorboard"])
def test_the_report_gives_the_versions_of_the_libraries(report: Report, library: str) -> None:
    assert report[1]["environment"]["libraries"][library][0].isdigit()


def test_the_report_names_the_commit(report: Report) -> None:
    assert set(report[1]["git"]) == {"commit", "dirty"}


def test_the_report_keeps_the_warnings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results_manager, "system_report", dict)
    with managed(tmp_path / "run") as manager:
        with monkeypatch.context() as patch:
            patch.setattr(manager, "_writer", Broken())
            manager.log_validation(1, [1.0])
        manager.save_report("complete", {})
    assert strict((manager.directory / "full_report.json").read_bytes())["warnings"] == manager.warnings != []


def test_the_report_holds_no_environment_variable_that_is_not_on_the_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_SECRET_TOKEN", "do-not-record-me")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setattr("system.machine._run", lambda command: (1, "", ""))
    found = system_report()
    assert found["variables"]["OMP_NUM_THREADS"] == "3" and "do-not-record-me" not in json.dumps(to_json(found))


def test_a_command_that_hangs_or_is_missing_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(*_: Any, **__: Any) -> None:
        raise subprocess.TimeoutExpired("git", 10)

    monkeypatch.setattr(subprocess, "run", hang)
    assert git_state() == {"commit": None, "dirty": None}


# ---- finding a run


def a_run(directory: Path, when: int) -> Path:
    directory.mkdir(parents=True)
    (directory / "config.json").write_text("{}")
    os.utime(directory / "config.json", (when, when))
    return directory


def test_a_run_is_found_by_its_path(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", 1)
    assert find_run(str(run), tmp_path / "elsewhere") == run


def test_a_run_is_found_by_its_name_in_the_output_folder(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", 1)
    assert find_run("run", tmp_path) == run


def test_latest_is_the_run_that_was_started_last(tmp_path: Path) -> None:
    a_run(tmp_path / "b", 1)
    run = a_run(tmp_path / "a", 2)
    assert find_run("latest", tmp_path) == run


def test_a_run_is_found_by_a_checkpoint_in_it_but_not_by_one_that_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = a_run(tmp_path / "run", 1)
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "last.pt").touch()
    assert find_run(str(run / "checkpoints" / "last.pt"), tmp_path) == run
    monkeypatch.chdir(run / "checkpoints")
    assert find_run("last.pt", tmp_path) == run
    monkeypatch.chdir(run)
    for text in (str(run / "checkpoints" / "lsat.pt"), "checkpoints/lsat.pt", "nowhere", "no/where"):
        with pytest.raises(RunError, match="no such run"):
            find_run(text, tmp_path)


@pytest.mark.parametrize("text", ["latest", "nowhere", ""])
def test_a_run_that_does_not_exist_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(RunError) as caught:
        find_run(text, tmp_path)
    assert caught.value.code == 2


@pytest.mark.parametrize(("steps", "ending"), [(100, "s/s, 90 s left"), (10, "s/s, 16 min left"), (1000, "tasks/s")])
def test_a_line_of_progress_says_how_long_it_still_takes(
    steps: int, ending: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 5.0
    monkeypatch.setattr(results_manager, "time", SimpleNamespace(perf_counter=lambda: now))
    step = SimpleNamespace(names=["meta_loss"])
    trainer = SimpleNamespace(iteration=0, step=step, learning_rate=lambda iteration: 0.1)
    config = SimpleNamespace(META_BATCH_SIZE=4, NUM_TASKS=8)
    manager = SimpleNamespace(log=lambda line: None, log_training=lambda *record: None)
    run = SimpleNamespace(trainer=trainer, config=config, manager=manager, validation_error=None)
    progress = Progress(run, 1000)
    now += 10.0
    progress.log(steps, [0.5])
    assert capsys.readouterr().out.rstrip().endswith(ending)

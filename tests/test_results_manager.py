"""A run's directory: its name, what is kept there, one writer, a logger that may fail, TensorBoard, a true report."""

import contextlib
import hashlib
import itertools
import json
import os
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

import results_manager
from results_manager import ExperimentManager, NullManager, find_launched, find_run
from system.checkpoints import SCHEMA_VERSION, read_checkpoint
from system.errors import RunError
from system.files import to_json
from system.machine import git_state, system_report
from tests.tools.runs import tensorboard_events
from visualization import png_bytes

VALUES = {"train/meta_loss": 1.0, "train/query_mse": 0.5, "wave/kl": 0.25, "validation/mse_after_00": 3.0}


@contextlib.contextmanager
def managed(directory):
    """A manager of an existing directory, closed at the end."""
    directory.mkdir(parents=True, exist_ok=True)
    with contextlib.closing(ExperimentManager(directory, "wave", ["main.py", "--method", "wave"])) as manager:
        yield manager


@pytest.fixture
def manager(tmp_path):
    with managed(tmp_path / "run") as manager:
        yield manager


@pytest.fixture
def without_system(monkeypatch):
    monkeypatch.setattr(results_manager, "system_report", dict)


def created(output, name=None):
    with contextlib.closing(ExperimentManager.create(output, "wave", "Sinusoidal", name, [])) as manager:
        return manager.directory


def strict(text):
    """JSON that would be refused if it held NaN or infinity."""
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in JSON"))


def a_figure():
    figure = Figure(figsize=(1, 1))
    figure.subplots().plot([0, 1])
    return figure


def test_the_null_manager_has_the_public_methods_of_the_real_one():
    null = NullManager()
    for name, value in vars(ExperimentManager).items():
        if callable(value) and not name.startswith("_"):
            assert getattr(null, name)() is None
    assert (null.directory, null.display_path) == (Path(), "")
    with pytest.raises(AttributeError):
        null.no_method_of_a_manager  # noqa: B018


SAVES = {
    "checkpoint": (lambda m: m.save_checkpoint({"iteration": 1}, best={"iteration": 0}), ["best.pt", "last.pt"]),
    "json": (lambda m: m.save_json("metrics.json", {}), ["metrics.json"]),
    "arrays": (lambda m: m.save_arrays({"x": np.zeros(2)}), ["data.npz"]),
    "figure": (lambda m: m.save_figures({"curve": png_bytes(a_figure())}, b"%PDF", 0), ["curve.png", "figures.pdf"]),
    "report": (lambda m: m.save_report("complete", {}), ["full_report.json"]),
}


@pytest.mark.usefixtures("without_system")
def test_every_kind_of_file_is_written_atomically(manager, monkeypatch):
    written = []
    monkeypatch.setattr(results_manager, "write_atomically", lambda path, data: written.append(path.name))
    for save, _ in SAVES.values():
        save(manager)
    assert written == [name for _, names in SAVES.values() for name in names]


def test_the_last_checkpoint_the_one_before_and_the_best_are_files_of_their_own(manager):
    folder = manager.directory / "checkpoints"
    manager.save_checkpoint({"iteration": 1})
    assert [path.name for path in folder.iterdir()] == ["last.pt"]
    manager.save_checkpoint({"iteration": 2}, best={"iteration": 1})
    manager.save_checkpoint({"iteration": 3})
    found = [read_checkpoint(folder / f"{name}.pt") for name in ("best", "previous", "last")]
    assert found == [{"schema_version": SCHEMA_VERSION, "iteration": number} for number in (1, 2, 3)]
    assert len({path.stat().st_ino for path in folder.iterdir()}) == 3


def test_a_last_checkpoint_is_there_at_every_moment_of_a_save_also_of_one_that_fails(manager, monkeypatch, full_disk):
    manager.save_checkpoint({"iteration": 3})
    last, found = manager.directory / "checkpoints" / "last.pt", []
    for step in ("fsync", "replace"):
        with full_disk(step), pytest.raises(OSError, match="No space left"):
            manager.save_checkpoint({"iteration": 4})
        assert read_checkpoint(last)["iteration"] == 3

    def watched(call):
        def wrapper(*args):
            found.append(read_checkpoint(last)["iteration"])
            result = call(*args)
            found.append(read_checkpoint(last)["iteration"])
            return result

        return wrapper

    for name in ("fsync", "replace"):
        monkeypatch.setattr(os, name, watched(getattr(os, name)))
    manager.save_checkpoint({"iteration": 4})
    assert set(found) == {3, 4} and found == sorted(found)


def test_a_reopened_run_appends_to_its_log_with_the_time(tmp_path):
    for line in ("first", "second"):
        with managed(tmp_path / "run") as manager:
            manager.log(line)
    lines = [line.split() for line in (tmp_path / "run" / "train.log").read_text().splitlines()]
    assert [line[-1] for line in lines] == ["first", "second"]
    assert all(datetime.fromisoformat(" ".join(line[:2])) for line in lines)


def test_runs_of_the_same_second_have_names_of_their_own_and_a_given_name_is_taken_once(tmp_path, monkeypatch):
    class Frozen(datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2026, 11, 23, 20, 15, 0)

    monkeypatch.setattr(results_manager, "datetime", Frozen)
    names = [created(tmp_path / "a" / "b").name for _ in range(3)]  # with its parents
    assert names == [f"WAVE_Sinusoidal_20261123-201500{suffix}" for suffix in ("", "-2", "-3")]
    assert created(tmp_path, "mine") == tmp_path / "WAVE_Sinusoidal_mine"
    with pytest.raises(RunError, match="mine") as caught:
        created(tmp_path, "mine")
    assert caught.value.code == 2


def test_an_output_path_that_is_a_file_and_a_read_only_disk_are_the_environments_fault(tmp_path, monkeypatch):
    def read_only(self, *_, **__):
        raise OSError(30, "Read-only file system", str(self))

    (tmp_path / "file").write_text("in the way")
    for output, name in itertools.product(("file", "file/below"), (None, "mine")):
        with pytest.raises(RunError, match="can't be made") as caught:
            created(tmp_path / output, name)
        assert caught.value.code == 1 and "--name" not in str(caught.value)
    monkeypatch.setattr(Path, "mkdir", read_only)
    with pytest.raises(RunError, match="Read-only file system") as caught:
        created(tmp_path / "output")
    assert caught.value.code == 1


class Broken:
    """A writer whose every call fails as on a full disk."""

    def __getattr__(self, name):
        def fail(*_, **__):
            raise OSError(28, "No space left on device")

        return fail


LOGGING = {
    "numbers": lambda m: m.log_scalars(1, VALUES),
    "a line": lambda m: m.log("a line"),
    "evaluation": lambda m: m.log_evaluation({"5": {"mse": [1.0]}}, {}, {"ms_per_iteration": 1.0, "iterations": 1.0}),
    "a figure": lambda m: m.save_figures({"curve": png_bytes(a_figure())}, b"%PDF", 1),
}


@pytest.mark.usefixtures("without_system")
@pytest.mark.parametrize("what", LOGGING)
def test_a_logger_that_fails_becomes_one_warning_that_the_report_keeps(manager, capsys, monkeypatch, what):
    with monkeypatch.context() as patch:
        patch.setattr(manager, "_writer", Broken())
        patch.setattr(results_manager, "open", Broken().open, raising=False)
        for _ in range(2):
            LOGGING[what](manager)
    assert len(manager.warnings) == 1 and "No space left on device" in manager.warnings[0]
    assert capsys.readouterr().err == f"warning: {manager.warnings[0]}\n"
    manager.save_report("complete", {})
    assert strict((manager.directory / "full_report.json").read_bytes())["warnings"] == manager.warnings


def test_a_tensorboard_that_cannot_be_imported_and_plots_that_cannot_be_written_are_warnings(manager, monkeypatch, full_disk):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    manager.open_tensorboard(0)
    assert len(manager.warnings) == 1
    with full_disk("replace"):
        SAVES["figure"][0](manager)
        assert "curve" in manager.warnings[1]
        SAVES["arrays"][0](manager)
    assert "plots" in manager.warnings[-1]


def test_tensorboard_has_one_run_with_curves_figures_and_hyperparameters(tmp_path):
    with managed(tmp_path / "run") as manager:
        manager.open_tensorboard(0)
        for iteration in (1, 2):
            manager.log_scalars(iteration, VALUES)
        manager.save_figures({"curve": png_bytes(a_figure())}, b"%PDF", 2)
        shots = {"5": {"mse": [1.0, 0.5]}, "10": {"mse": [0.8, 0.4]}}
        manager.log_evaluation(shots, {"EPOCHS": 1, "EVAL_SHOTS": [5, 10]}, {"ms_per_iteration": 1.0, "iterations": 2.0})
    events = tensorboard_events(tmp_path / "run" / "tensorboard")
    more = {f"evaluation/{shots}_shot_mse_after_gradients" for shots in (5, 10)} | {"performance/ms_per_iteration"}
    more |= {f"hparam/{shots}_shot_final_mse" for shots in (5, 10)}
    assert set(events.Tags()["scalars"]) == VALUES.keys() | more
    assert events.Tags()["images"] == ["figures/curve"]
    assert {"_hparams_/experiment", "_hparams_/session_start_info"} <= set(events.summary_metadata)
    assert "custom_scalars__config__" in events.Tags()["tensors"]
    assert [(event.step, event.value) for event in events.Scalars("train/query_mse")] == [(1, 0.5), (2, 0.5)]
    assert not [path for path in Path(events.path).rglob("*") if path.is_dir()]  # the table is no run of its own


def test_a_resumed_run_drops_the_points_that_it_repeats(tmp_path):
    for first, last in ((1, 4), (3, 5)):  # stopped after 4 steps, resumed from the checkpoint of step 2
        with managed(tmp_path / "run") as manager:
            manager.open_tensorboard(first if first > 1 else 0)
            for iteration in range(first, last + 1):
                manager.log_scalars(iteration, VALUES)
    steps = [event.step for event in tensorboard_events(tmp_path / "run" / "tensorboard").Scalars("train/query_mse")]
    assert steps == [1, 2, 3, 4, 5]


def test_the_report_says_what_ran_on_what_and_lists_every_file_with_its_digest(tmp_path):
    with managed(tmp_path / "run") as manager:
        manager.open_tensorboard(0)
        for save, _ in SAVES.values():
            save(manager)
        manager.log("a line")
        manager.log_scalars(1, VALUES)
        manager.save_report("complete", {"results": {"mse": np.array([1.0, np.nan])}})
    directory = tmp_path / "run"
    report = strict((directory / "full_report.json").read_bytes())
    about = {"schema_version": SCHEMA_VERSION, "status": "complete", "method": "wave", "warnings": []}
    about |= {"command": ["main.py", "--method", "wave"], "results": {"mse": [1.0, None]}}
    assert {name: report[name] for name in about} == about
    assert 0 < report["seconds"] < 60 and set(report["git"]) == {"commit", "dirty"}
    libraries = report["environment"]["libraries"]
    assert all(libraries[name][0].isdigit() for name in ("torch", "numpy", "matplotlib", "tensorboard"))
    files = {str(path.relative_to(directory)): path for path in directory.rglob("*") if path.is_file()}
    for name in ("full_report.json", "train.log", ".lock"):
        del files[name]
    assert report["files"] == {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}


@pytest.mark.usefixtures("without_system")
def test_the_reports_digests_wait_for_events_on_their_way_to_the_disk(manager):
    manager.open_tensorboard(0)
    manager.log_scalars(1, {f"tag/{number}": 1.0 for number in range(500)})  # more than the writer's queue holds
    manager.save_report("complete", {})
    listed = strict((manager.directory / "full_report.json").read_bytes())["files"]
    assert listed == {name: hashlib.sha256((manager.directory / name).read_bytes()).hexdigest() for name in listed} != {}


def test_the_report_holds_no_environment_variable_that_is_not_on_the_list(monkeypatch):
    monkeypatch.setenv("A_SECRET_TOKEN", "do-not-record-me")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setattr("system.machine._run", lambda command: (1, "", ""))
    found = system_report()
    assert found["variables"]["OMP_NUM_THREADS"] == "3" and "do-not-record-me" not in json.dumps(to_json(found))


def test_a_command_that_hangs_or_is_missing_has_failed(monkeypatch):
    def hang(*_, **__):
        raise subprocess.TimeoutExpired("git", 10)

    monkeypatch.setattr(subprocess, "run", hang)
    assert git_state() == {"commit": None, "dirty": None}


def a_run(directory, when):
    (directory / "checkpoints").mkdir(parents=True)
    (directory / "config.json").write_text("{}")
    (directory / "checkpoints" / "last.pt").touch()
    os.utime(directory / "config.json", (when, when))
    return directory


def test_a_run_is_found_by_path_name_checkpoint_or_as_the_latest(tmp_path, monkeypatch):
    a_run(tmp_path / "b", 1)
    run = a_run(tmp_path / "a", 2)
    checkpoint = run / "checkpoints" / "last.pt"
    assert find_run(str(run), tmp_path / "elsewhere") == run
    assert [find_run(text, tmp_path) for text in ("a", "latest", str(checkpoint))] == [run] * 3
    monkeypatch.chdir(checkpoint.parent)
    assert find_run("last.pt", tmp_path) == run
    monkeypatch.chdir(run)
    for text in (str(run / "checkpoints" / "lsat.pt"), "checkpoints/lsat.pt", "nowhere", "no/where", "latest"):
        with pytest.raises(RunError) as caught:
            find_run(text, run)
        assert caught.value.code == 2


def test_a_run_is_found_by_the_launch_that_began_it(tmp_path):
    for name in ("one", "two"):
        with managed(tmp_path / name) as manager:
            manager.save_json(".launch", f"host {name}")
    (tmp_path / "three" / ".launch").mkdir(parents=True)  # not one of ours
    assert find_launched(tmp_path, "host two") == tmp_path / "two" and find_launched(tmp_path, "host three") is None

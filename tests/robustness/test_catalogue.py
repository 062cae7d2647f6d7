"""Bad input in real processes: the exit code, exactly one `error:` line, and nothing changed on the disk.

test_bad_input.py holds in one process what a flag, a value or a settings file may look like; here are some of each kind.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from system.checkpoints import checkpoint_bytes, read_checkpoint
from tests.tools.bad_input import FILES, FLAGS, settings
from tests.tools.chaos import (
    ROOT,
    Say,
    command,
    finished,
    only_run,
    report_of,
    result_of,
    run,
    same,
    side_by_side,
    start,
    tree,
)
from tests.tools.hostile import accidents, attacks, misfits, saved_on_cuda


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A finished tiny run of each method."""

    def train(method: str) -> Path:
        output = tmp_path_factory.mktemp(method)
        finished(command(output, "--method", method), "plain")
        return only_run(output)

    return {method: train(method) for method in ("maml", "leo")}


def refused(argv: list[str], place: Path, *plants: str, code: int = 2, says: str = "", env: Any = None) -> None:
    """A process that says in one line what is wrong, leaves with `code`, and changes nothing below `place`."""
    before = tree(place)
    child = run(argv, *plants, env=env, cwd=place)
    assert child.poll() == code, child.err
    assert re.search(says, child.error), child.error
    assert child.err.count("\n") == 1 and child.out == ""
    assert tree(place) == before


# ---- flags, values and settings files

WORDS: dict[str, list[str]] = {
    **{name: FLAGS[name] for name in ("a mistyped flag", "a stray word", "a seed of more digits than python reads")},
    "a value in another type": settings(META_LEARNING_RATE='"0.1"'),
    "a value that is not finite": settings(META_LEARNING_RATE="NaN"),
    "a size that does not fit in memory": settings(HIDDEN_DIM=10**6),
    "a settings file nested too deeply": ["--config", "settings.json"],
}


@pytest.mark.parametrize("argv", WORDS.values(), ids=WORDS)
def test_words_that_cannot_be_used_are_refused(argv: list[str], tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_bytes(FILES["200,000 lists in each other"])
    refused([*argv, "--output", str(tmp_path / "output")], tmp_path)


def sparse(path: Path) -> None:
    with open(path, "wb") as file:
        file.truncate(10 * 2**30)


NO_FILES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "ten gigabytes": (sparse, "too large"),
    "a pipe": (os.mkfifo, "no such file"),
    "a link to itself": (lambda path: path.symlink_to(path), "no such file|can't be read"),
}


@pytest.mark.parametrize(("make", "says"), NO_FILES.values(), ids=NO_FILES)
def test_a_settings_file_that_is_no_file_is_refused(make: Callable[[Path], Any], says: str, tmp_path: Path) -> None:
    make(tmp_path / "settings.json")
    refused(["--config", "settings.json", "--output", "output"], tmp_path, says=says)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that any user may enter: pytest's own are closed to others."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield Path(name)


def test_a_settings_file_without_permission_is_refused(open_folder: Path) -> None:
    (open_folder / "settings.json").write_text("{}")
    (open_folder / "settings.json").chmod(0)
    refused(["--config", "settings.json", "--output", "output"], open_folder, "user:65534", says="Permission denied")


# ---- checkpoints


def damaged(run_directory: Path, place: Path, content: bytes | None) -> Path:
    """A copy of a run of which only one checkpoint is left, and that is `content` (None: not even that)."""
    directory = place / run_directory.name
    shutil.copytree(run_directory, directory)
    (directory / "checkpoints" / "previous.pt").unlink()
    last = directory / "checkpoints" / "last.pt"
    last.unlink()
    if content is not None:
        last.write_bytes(content)
    return last


def test_no_hostile_or_damaged_checkpoint_is_used_and_none_runs_code(
    trained: dict[str, Path], tmp_path: Path, say: Say
) -> None:
    sound = trained["maml"] / "checkpoints" / "last.pt"
    mark = tmp_path / "owned"
    files: dict[str, bytes | None] = {"missing": None}
    hostile = attacks(mark)
    files |= accidents(sound.read_bytes()) | hostile | misfits(read_checkpoint(sound))

    def wrong(name: str) -> str:
        """What goes wrong with the file of that name; "" if it is refused as it has to be."""
        place = tmp_path / name.replace("/", "-")
        last = damaged(trained["maml"], place, files[name])
        try:
            refused(["--resume", str(last if files[name] is not None else last.parent.parent)], place)
            return f"{name}: ran code" if mark.exists() else ""
        except AssertionError as error:
            return f"{name}: {str(error)[-700:]}"

    failures = list(filter(None, side_by_side(wrong, files)))
    refusals = len(files) - len(failures)
    say(f"checkpoints: {len(files)} that can't be used tried, {len(hostile)} of them attacks; {refusals} refused")
    assert not failures, "\n".join(failures)
    assert len(hostile) >= 20


OTHER_ACTIONS = {
    "resumed as another method": (["--resume", "maml", "--method", "leo"], "another kind of run"),
    "resumed as another family": (["--resume", "maml", "--tasks", "sine-line"], "another kind of run"),
    "resumed with another network": (["--resume", "maml", "--set", "HIDDEN_DIM=7"], "HIDDEN_DIM can't change"),
    "resumed with another seed": (["--resume", "maml", "--seed", "7"], "RANDOM_SEED can't change"),
    "another method's checkpoint": (["--resume", "leo/checkpoints/last.pt", "--method", "maml"], "another kind of run"),
    "a name that is taken": (["--name", "taken", "--set", "COMPILE=never"], "exists"),
}


@pytest.mark.parametrize(("argv", "says"), OTHER_ACTIONS.values(), ids=OTHER_ACTIONS)
def test_a_run_is_not_continued_as_another(argv: list[str], says: str, trained: dict[str, Path], tmp_path: Path) -> None:
    for method, directory in trained.items():
        shutil.copytree(directory, tmp_path / method)
    (tmp_path / "MAML_Sinusoidal_taken").mkdir()
    refused([*argv, "--output", str(tmp_path)], tmp_path, says=says)


def test_a_step_beyond_the_end_is_already_complete(trained: dict[str, Path], tmp_path: Path) -> None:
    state = read_checkpoint(trained["maml"] / "checkpoints" / "last.pt")
    last = damaged(trained["maml"], tmp_path, checkpoint_bytes(state | {"iteration": 10**6}))
    before = tree(tmp_path)
    child = finished(["--resume", str(last)])
    assert "already complete" in child.out and child.err == "" and tree(tmp_path) == before


def test_a_checkpoint_saved_on_a_gpu_is_read_on_a_machine_without(trained: dict[str, Path], tmp_path: Path) -> None:
    state = read_checkpoint(trained["maml"] / "checkpoints" / "last.pt")
    with saved_on_cuda():
        data = checkpoint_bytes(state)
    assert b"cuda:0" in data
    finished(["--resume", str(damaged(trained["maml"], tmp_path, data))])


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_run_that_asked_for_a_missing_gpu_says_so_and_goes_on_if_told(trained: dict[str, Path], tmp_path: Path) -> None:
    state = read_checkpoint(trained["maml"] / "checkpoints" / "last.pt")
    state["config"]["DEVICE"] = "cuda"
    last = damaged(trained["maml"], tmp_path, checkpoint_bytes(state))
    refused(["--resume", str(last)], tmp_path, says="DEVICE can't be used .got cuda")
    finished(["--resume", str(last), "--device", "cpu"])


def test_a_damaged_best_checkpoint_is_a_warning_and_the_last_one_is_judged(trained: dict[str, Path], tmp_path: Path) -> None:
    directory = tmp_path / "run"
    shutil.copytree(trained["maml"], directory)
    os.truncate(directory / "checkpoints" / "best.pt", 1000)
    child = finished(["--resume", str(directory), "--set", "EPOCHS=3", "--set", "VALIDATION_INTERVAL=1000"], "plain", "worse")
    assert "best.pt is damaged" in child.err and child.err.count("\n") == 1
    assert report_of(directory)["status"] == "complete"


# ---- points


POINTS: dict[str, tuple[bytes, str]] = {
    "a word where a number belongs": (b"x,y\n1,2\n3,four\n", "line 3"),
    "one column": (b"x\n1\n2\n", "no column 'y'"),
    "no points": (b"x,y\n", "no points"),
    "a workbook": (b"PK\3\4", "saved or exported as CSV"),
    "ten million rows": (b"x,y\n" + b"1,2\n" * 10**7, "too long"),
}


@pytest.mark.parametrize(("content", "says"), POINTS.values(), ids=POINTS)
def test_points_that_cannot_be_used_are_refused(content: bytes, says: str, trained: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "points.csv").write_bytes(content)
    refused(["--predict", str(trained["maml"]), "--points", "points.csv"], tmp_path, says=says)


def test_points_that_are_missing_are_refused(trained: dict[str, Path], tmp_path: Path) -> None:
    refused(["--predict", str(trained["maml"]), "--points", "points.csv"], tmp_path, says="no such file")


# ---- environment


def test_an_output_path_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "output").write_text("mine")
    for output in ("output", "output/deeper"):
        refused(command(Path(output)), tmp_path, code=1, says="can't be made")


def test_a_disk_that_cannot_be_written_is_refused(open_folder: Path) -> None:
    (open_folder / "output").mkdir(mode=0o555)
    for output in ("output", "output/deeper"):
        refused(command(Path(output)), open_folder, "user:65534", code=1, says="Permission denied")


def test_a_disk_that_is_full_from_the_start_is_said_in_one_line(tmp_path: Path) -> None:
    child = run(command(tmp_path / "output"), "limit:300")
    assert child.poll() == 1 and "File too large" in child.error and child.err.count("\n") == 1
    assert not list(tmp_path.rglob("config.json"))  # so nobody takes the folder for a run


NO_JOB: dict[str, dict[str, str | None]] = {
    "RANK without WORLD_SIZE": {"RANK": "0"},
    "WORLD_SIZE without RANK": {"WORLD_SIZE": "2"},
    "no address": {"RANK": "0", "WORLD_SIZE": "2"},
    "a RANK beyond WORLD_SIZE": {"RANK": "2", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"},
    "no port": {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "many"},
}


@pytest.mark.parametrize("env", NO_JOB.values(), ids=NO_JOB)
def test_variables_that_describe_no_job_are_refused(env: dict[str, str | None], tmp_path: Path) -> None:
    refused(command(Path("output")), tmp_path, code=1, env=env)


def test_a_reader_of_the_output_who_leaves_does_not_end_the_run(tmp_path: Path) -> None:
    assert finished(command(tmp_path), "plain", "gone").err == ""
    assert report_of(only_run(tmp_path))["status"] == "complete"


def test_a_terminal_without_other_letters_does_not_end_the_run(tmp_path: Path) -> None:
    child = finished(command(tmp_path / "Läufe"), "plain", "ascii")
    assert "complete: " in child.out and "L\\xe4ufe" in child.out
    assert report_of(only_run(tmp_path / "Läufe"))["warnings"] == []


def test_two_starts_in_the_same_second_have_directories_of_their_own(tmp_path: Path) -> None:
    moment = time.time() + 0.3
    children = [start(command(tmp_path), "plain", f"at:{moment}") for _ in range(2)]
    assert [child.wait() for child in children] == [0, 0]
    assert len(list(tmp_path.iterdir())) == 2


def test_a_bare_environment_and_a_reader_who_leaves_early_are_enough(tmp_path: Path) -> None:
    """No HOME, no display, no locale but C, in a process that has imported nothing yet."""
    words = command(tmp_path / "output", NUM_TASKS=4, EPOCHS=1, VALIDATION_INTERVAL=100)
    line = f"set -o pipefail; {shlex.join([sys.executable, str(ROOT / 'main.py'), *words])} | head -n 1"
    bare = {"PATH": os.defpath, "LC_ALL": "C", "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(["bash", "-c", line], env=bare, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1 and done.stderr == ""
    report = report_of(only_run(tmp_path / "output"))
    assert (report["status"], report["warnings"]) == ("complete", [])


def test_figures_that_cannot_be_drawn_do_not_cost_the_run(tmp_path: Path) -> None:
    child = finished(command(tmp_path), "broken")
    warnings = report_of(only_run(tmp_path))["warnings"]
    assert warnings == [f"{what} could not be written: no figure today" for what in ("figures", "plots")]
    assert child.err == "".join(f"warning: {line}\n" for line in warnings)
    assert result_of(only_run(tmp_path))["evaluation"]["shots"]["5"]["mse"]


# ---- divergence


def test_divergence_names_step_quantity_and_the_last_good_checkpoint(tmp_path: Path) -> None:
    wild = {"META_LEARNING_RATE": 10.0, "INNER_LEARNING_RATE": 1000.0, "INNER_STEPS": 20, "META_SCHEDULE": "constant"}
    child = run(command(tmp_path, CHECKPOINT_INTERVAL=1, **wild), "plain")
    assert child.poll() == 3 and child.err.count("\n") == 1
    pattern = (
        r"error: training diverged at iteration (\d+) \(got (\w+) = (?:nan|-?inf); .*at learning rate 10; .* (\S+last.pt)$"
    )
    found = re.fullmatch(pattern, child.error)
    assert found and found[2] in ("meta_loss", "query_mse", "grad_norm")
    state = read_checkpoint(child_path(found[3]))
    assert state["iteration"] <= int(found[1]) - 1
    assert all(tensor.isfinite().all() for tensor in state["meta_parameters"].values())
    assert report_of(only_run(tmp_path))["status"] == "diverged"


def child_path(text: str) -> Path:
    """A path as a child printed it, relative to its working directory or not."""
    from tests.tools.chaos import server

    return server().folder / text


# ---- the same bits


def test_five_runs_with_one_seed_have_the_same_bits(tmp_path: Path) -> None:
    def train(number: int) -> dict[str, Any]:
        finished(command(tmp_path / str(number), "--seed", "7" if number < 5 else "8"), "plain")
        return result_of(only_run(tmp_path / str(number)))

    first, *others, stranger = side_by_side(train, range(6))
    assert [same(first, other) for other in others] == [True] * 4
    assert not same(first, stranger)

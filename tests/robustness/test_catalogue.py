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
from pathlib import Path
from typing import Any

import pytest
import torch

from main import main
from system.checkpoints import checkpoint_bytes, read_checkpoint
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
    "a mistyped flag": ["--metod", "maml"],
    "a stray word": ["maml"],
    "a seed of more digits than python reads": ["--seed", "1" * 5000],
    "a value in another type": ["--set", 'META_LEARNING_RATE="0.1"'],
    "a value that is not finite": ["--set", "META_LEARNING_RATE=NaN"],
    "a size that does not fit in memory": ["--set", "HIDDEN_DIM=1000000"],
    "a settings file nested too deeply": ["--config", "settings.json"],
}


@pytest.mark.parametrize("argv", WORDS.values(), ids=WORDS)
def test_words_that_cannot_be_used_are_refused(argv: list[str], tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_bytes(b"[" * 200_000)
    refused([*argv, "--output", str(tmp_path / "output")], tmp_path)


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
    trained: dict[str, Path], tmp_path: Path, say: Say, capsys: pytest.CaptureFixture[str]
) -> None:
    """In this process: a hundred others would take a minute."""
    sound = trained["maml"] / "checkpoints" / "last.pt"
    mark, place = tmp_path / "owned", tmp_path / "place"
    last, hostile, failures = damaged(trained["maml"], place, b""), attacks(mark), []
    files = accidents(sound.read_bytes()) | hostile | misfits(read_checkpoint(sound))
    for name, content in files.items():
        last.write_bytes(content)
        before = tree(place)
        code, streams = main(["--resume", str(last)]), capsys.readouterr()
        refused_in_one_line = code == 2 and re.fullmatch(r"error: [^\n]+\n", streams.err) and streams.out == ""
        if not refused_in_one_line or mark.exists() or tree(place) != before:
            failures.append(f"{name}: {code}, {streams.err[-700:]}")
    say(f"checkpoints: {len(files)} tried, {len(hostile)} of them attacks; {len(files) - len(failures)} refused")
    assert not failures and len(hostile) >= 20, "\n".join(failures)


def test_a_run_without_a_checkpoint_is_refused(trained: dict[str, Path], tmp_path: Path) -> None:
    refused(["--resume", str(damaged(trained["maml"], tmp_path, None).parent.parent)], tmp_path)


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


# ---- points and environment


def test_points_that_cannot_be_used_are_refused(trained: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "points.csv").write_bytes(b"x,y\n1,2\n3,four\n")
    for name, says in {"points.csv": "line 3", "missing.csv": "no such file"}.items():
        refused(["--predict", str(trained["maml"]), "--points", name], tmp_path, says=says)


def test_a_settings_file_that_is_a_pipe_is_refused_unread(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "settings.json")
    refused(["--config", "settings.json", "--output", "output"], tmp_path, says="no such file")


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


# ---- the same bits


def test_five_runs_with_one_seed_have_the_same_bits(tmp_path: Path) -> None:
    def train(number: int) -> dict[str, Any]:
        finished(command(tmp_path / str(number), "--seed", "7" if number < 5 else "8"), "plain")
        return result_of(only_run(tmp_path / str(number)))

    first, *others, stranger = side_by_side(train, range(6))
    assert [same(first, other) for other in others] == [True] * 4
    assert not same(first, stranger)

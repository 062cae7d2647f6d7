"""Bad input: one line on stderr, the right exit code, nothing created, nothing trained, nothing lost.

Command lines are a walk through tables in this process; some words and variables are tried in real ones.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import psutil
import pytest
import torch

from config import Config
from dataset import stream
from main import main
from registry import METHODS
from results_manager import ExperimentManager
from system.checkpoints import checkpoint_bytes, read_checkpoint
from tests.tools.chaos import ROOT, Say, command, only_run, ranks, report_of, result_of, run, same, side_by_side, tree, whole
from tests.tools.hostile import accidents, attacks, misfits
from tests.tools.methods import TRAINED

Refused = Callable[..., str]
FLAGS = [
    *(["--method", "reptile"], ["--method", "MAML"], ["--method"], ["--method", "maml", "reptile"], ["--tasks", "squares"]),
    *(["--metod", "maml"], ["--meth", "maml"], ["-m", "maml"], ["maml"]),
    *(["--seed", word] for word in ("-1", "1.5", "one", str(2**64), "1" * 5000)),
    *(["--device", "gpu"], ["--device", "cuda:one"], ["--set", "EPOCHS"], ["--set", "=5"]),
    *(["--resume", "latest", "--evaluate", "latest"], ["--resume", "nowhere"], ["--resume", ""], ["--resume"]),
    *(["--evaluate", "nowhere"], ["--resume", "latest", "--name", "mine"], ["--resume", "latest", "--config", "settings.json"]),
    *(["--name", word] for word in ("", "a/b", "..", "a\nb", "a" * 101)),
]
VALUES: list[dict[str, Any]] = [
    *({"META_LEARNING_RATE": "0.1"}, {"EPOCHS": True}, {"EVAL_SHOTS": [5, 5]}, {"EPOCHS": 10**400}),
    *({"AMPLITUDE_MIN": 5.0, "AMPLITUDE_MAX": 0.1}, {"AMPLITUDE_MAX": 0.05}, {"X_MIN": 1.0, "X_MAX": 1.00000001}),
    *({"HIDDEN_DIM": 10**6}, {"HIDDEN_DIM": 10**15}, {"EVAL_TASKS": 10**6, "EVAL_QUERY_SAMPLES": 10**5}),
    *({"TASK_CHUNK": 26}, {"EPOCH": 5}, {"EPOCHS": 5, " ": 1}),
]
UNUSUAL = [
    *(["--seed", str(2**64 - 1)], ["--set", "INNER_STEPS=0"], ["--set", "FIRST_ORDER=True"], ["--set", "EVAL_SHOTS=5,10"]),
    *(["--set", "X_MAX=6"], ["--set", "EPOCHS=0", "--set", "EPOCHS=1"], ["--name", "my-run_1.0"]),
    ["--set", "EPOCHS=0", "NUM_TASKS=8", "--set", "EPOCHS=1", "HIDDEN_DIM=6"],
]


class Accepted(Exception):
    """The command line was good enough to make a run directory."""


@pytest.fixture
def no_run_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """A refusal that fails to come stops here, not after a training."""

    def create(*_: Any, **__: Any) -> None:
        raise Accepted

    monkeypatch.setattr(ExperimentManager, "create", create)


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Asserts that a command line is refused in one line, which is returned, and that nothing below `tmp_path` changes."""

    def check(argv: list[str], says: str = "") -> str:
        argv = argv if "--output" in argv else [*argv, "--output", str(tmp_path / "output")]
        before, code, streams = tree(tmp_path), main(argv), capsys.readouterr()
        assert code == 2 and re.fullmatch(rf"error: [^\n]*{says}[^\n]*\n", streams.err), f"{argv}: {code}, {streams.err[-700:]}"
        assert streams.out == "" and tree(tmp_path) == before
        return streams.err.rstrip("\n")

    return check


def settings(**values: Any) -> list[str]:
    """The settings as --set flags; texts as they are."""
    return [part for key, value in values.items() for part in ("--set", f"{key}={value}")]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A finished tiny run of each method."""
    outputs = {method: tmp_path_factory.mktemp(method) for method in ("maml", "leo")}
    side_by_side(lambda method: whole(outputs[method], "--method", method), outputs)
    return {method: only_run(output) for method, output in outputs.items()}


@pytest.mark.usefixtures("no_run_is_made")
def test_a_flag_that_cannot_be_used_is_refused(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for argv in [*FLAGS, ["--device", "cuda"], ["--device", "cuda:7"]]:
        refused(argv)


@pytest.mark.usefixtures("no_run_is_made")
def test_a_value_that_cannot_be_used_is_refused_by_flag_and_by_file(refused: Refused, tmp_path: Path) -> None:
    for values in VALUES:
        refused(settings(**{key: json.dumps(value) for key, value in values.items()}))
        (tmp_path / "settings.json").write_text(json.dumps(values))
        refused(["--config", str(tmp_path / "settings.json")])
    for key in ("NOISE_STD", "HIDDEN_DIM", "EVAL_SHOTS", "FIRST_ORDER", "COMPILE", "META_SCHEDULE", "DEVICE"):
        message = refused(settings(**{key: "surely-not"}))
        assert re.search(rf"{key} .*\(got .*surely-not.*; expected .+\)$", message)


@pytest.mark.parametrize("method", TRAINED)
def test_a_hidden_size_that_does_not_fit_in_memory_is_refused_unmade(
    method: str, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = 300
    # meta-parameters alone, in float32; for a method that generates weights they are many times the network's
    learner = METHODS[method].from_config(Config(HIDDEN_DIM=size), stream(0, "weights"))
    held = 4 * sum(parameter.numel() for parameter in learner.parameters())
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=held - 1, available=held - 1))
    make = METHODS[method].from_config

    def small(config: Any, rng: Any) -> Any:
        return make(config, rng) if size > config.HIDDEN_DIM else pytest.fail("the weights were made")

    monkeypatch.setattr(METHODS[method], "from_config", small)
    assert "memory" in refused(["--method", method, *settings(HIDDEN_DIM=size)])


@pytest.mark.usefixtures("no_run_is_made")
def test_unusual_but_sound_input_is_accepted(tmp_path: Path) -> None:
    for argv in UNUSUAL:
        with pytest.raises(Accepted):
            main([*argv, "--set", "COMPILE=never", "--set", "NUM_TASKS=10", "--output", str(tmp_path)])


def process_refused(argv: list[str], place: Path, code: int = 2, env: Any = None) -> None:
    """A process that says in one line what is wrong, leaves with `code`, and changes nothing below `place`."""
    before = tree(place)
    child = run(argv, env=env, cwd=place)
    assert child.poll() == code and child.error and child.err.count("\n") == 1 and child.out == "", (argv, child.err)
    assert tree(place) == before


def test_words_and_files_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_bytes(b"[" * 200_000)
    os.mkfifo(tmp_path / "pipe.json")
    values = [["--set", "META_LEARNING_RATE=NaN"], ["--set", "HIDDEN_DIM=1000000"]]
    files = [["--config", "settings.json"], ["--config", "pipe.json"]]
    for argv in [["--metod", "maml"], ["--seed", "1" * 5000], *values, *files]:
        process_refused([*argv, "--output", "output"], tmp_path)


def test_variables_that_describe_no_job_are_refused(tmp_path: Path) -> None:
    alone, address = {"RANK": "0", "WORLD_SIZE": "2"}, {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for env in ({"RANK": "0"}, alone, alone | address | {"RANK": "2"}, alone | address | {"MASTER_PORT": "many"}):
        process_refused(command(Path("output")), tmp_path, code=1, env=env)


def test_a_disk_that_is_full_from_the_start_is_said_in_one_line(tmp_path: Path) -> None:
    child = run(command(tmp_path / "output"), "limit:300")
    assert child.poll() == 1 and "File too large" in child.error and child.err.count("\n") == 1
    assert not list(tmp_path.rglob("config.json"))  # so nobody takes the folder for a run


def test_a_bare_environment_and_a_reader_who_leaves_early_are_enough(tmp_path: Path) -> None:
    """No HOME, no display, no locale but C, in a process that has imported nothing yet."""
    words = command(tmp_path / "output", NUM_TASKS=4, EPOCHS=1, VALIDATION_INTERVAL=100, INPUT_DIM=2)  # few figures
    line = f"set -o pipefail; {shlex.join([sys.executable, str(ROOT / 'main.py'), *words])} | head -n 1"
    bare = {"PATH": os.defpath, "LC_ALL": "C", "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(["bash", "-c", line], env=bare, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1 and done.stderr == ""
    report = report_of(only_run(tmp_path / "output"))
    assert (report["status"], report["warnings"]) == ("complete", [])


def test_five_runs_with_one_seed_have_the_same_bits(tmp_path: Path) -> None:
    seeds = [7, 7, 7, 7, 7, 8]
    first, *others = side_by_side(lambda n: whole(tmp_path / str(n), "--seed", str(seeds[n])), range(6))
    assert [same(first, other) for other in others] == [True] * 4 + [False]


@pytest.mark.parametrize("method", ["alpaca", "leo", "r2d2"])
def test_two_processes_give_the_bits_of_one_with_the_same_chunk(method: str, tmp_path: Path) -> None:
    """A small part of the chaos tests: 7 tasks in chunks of 2; neither the chunk nor the number of processes divides them."""
    settings: dict[str, Any] = {"META_BATCH_SIZE": 7, "TASK_CHUNK": 2, "EPOCHS": 1}
    children = ranks(command(tmp_path / "2", "--method", method, **settings), 2, "plain")
    assert [child.wait() for child in children] == [0, 0] and report_of(only_run(tmp_path / "2"))["processes"] == 2
    assert same(result_of(only_run(tmp_path / "2")), whole(tmp_path / "1", "--method", method, **settings))


def damaged(run_directory: Path, place: Path, content: bytes) -> Path:
    """A copy of a run of which only one checkpoint is left, and that is `content`."""
    directory = place / run_directory.name
    shutil.copytree(run_directory, directory)
    (directory / "checkpoints" / "previous.pt").unlink()
    last = directory / "checkpoints" / "last.pt"
    last.write_bytes(content)
    return last


def test_no_hostile_damaged_or_missing_checkpoint_is_used_and_none_runs_code(
    trained: dict[str, Path], tmp_path: Path, say: Say, refused: Refused
) -> None:
    sound = trained["maml"] / "checkpoints" / "last.pt"
    mark, hostile = tmp_path / "owned", attacks(tmp_path / "owned")
    last = damaged(trained["maml"], tmp_path / "place", b"")
    files = accidents(sound.read_bytes()) | hostile | misfits(read_checkpoint(sound))
    for name, content in files.items():
        last.write_bytes(content)
        refused(["--resume", str(last)])
        assert not mark.exists(), name
    last.unlink()
    refused(["--resume", str(last.parent.parent)])
    say(f"checkpoints: {len(files)} tried, {len(hostile)} of them attacks; all refused")
    assert len(hostile) >= 20


OTHER_ACTIONS = {
    "--resume maml --method leo": "another kind of run",
    "--resume maml --tasks sine-line": "another kind of run",
    "--resume maml --set HIDDEN_DIM=7": "HIDDEN_DIM can't change",
    "--resume maml --seed 7": "RANDOM_SEED can't change",
    "--resume leo/checkpoints/last.pt --method maml": "another kind of run",
    "--name taken --set COMPILE=never": "exists",
    "--predict maml --points points.csv": "line 3",
    "--predict maml --points missing.csv": "no such file",
}


def test_a_run_is_not_continued_as_another_and_bad_points_are_refused(
    trained: dict[str, Path], tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for method, directory in trained.items():
        shutil.copytree(directory, tmp_path / method)
    (tmp_path / "MAML_Sinusoidal_taken").mkdir()
    (tmp_path / "points.csv").write_bytes(b"x,y\n1,2\n3,four\n")
    for words, says in OTHER_ACTIONS.items():
        refused([*words.split(), "--output", str(tmp_path)], says)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_run_of_a_missing_gpu_is_read_and_goes_on_if_told(trained: dict[str, Path], tmp_path: Path, refused: Refused) -> None:
    state = read_checkpoint(trained["maml"] / "checkpoints" / "last.pt")
    with mock.patch("torch.serialization.location_tag", lambda _: "cuda:0"):  # as if its tensors lay on a GPU
        data = checkpoint_bytes(state)
        assert b"cuda:0" in data
        state["config"]["DEVICE"] = "cuda"
        asked = checkpoint_bytes(state)
    last = damaged(trained["maml"], tmp_path, asked)
    refused(["--resume", str(last)], "DEVICE can't be used .got cuda")
    assert main(["--resume", str(last), "--device", "cpu"]) == 0
    last.write_bytes(data)
    assert main(["--resume", str(last)]) == 0

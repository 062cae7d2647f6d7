"""Bad input on the command line: one line on stderr, exit code 2, nothing created, nothing trained."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

from config import Config
from dataset import stream
from main import main
from registry import METHODS
from results_manager import ExperimentManager

Capture = pytest.CaptureFixture[str]
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


@pytest.fixture(autouse=True)
def no_run_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """A refusal that fails to come stops here, not after a training."""

    def create(*_: Any, **__: Any) -> None:
        raise Accepted

    monkeypatch.setattr(ExperimentManager, "create", create)


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "output"


def settings(**values: Any) -> list[str]:
    """The settings as --set flags; texts as they are."""
    return [part for key, value in values.items() for part in ("--set", f"{key}={value}")]


def refused(argv: list[str], output: Path, capsys: Capture) -> str:
    """The one line with which a command line is refused; fails where it is accepted, or refused in another way."""
    code = main([*argv, "--output", str(output)])
    streams = capsys.readouterr()
    assert (code, streams.out, output.exists()) == (2, "", False), argv
    assert re.fullmatch(r"error: [^\n]+\n", streams.err), argv
    return streams.err.rstrip("\n")


def test_a_flag_that_cannot_be_used_is_refused(output: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for argv in [*FLAGS, ["--device", "cuda"], ["--device", "cuda:7"]]:
        refused(argv, output, capsys)


def test_asking_for_help_is_no_error(capsys: Capture) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0 and capsys.readouterr().err == ""


def test_a_value_that_cannot_be_used_is_refused_by_flag_and_by_file(output: Path, tmp_path: Path, capsys: Capture) -> None:
    for values in VALUES:
        refused(settings(**{key: json.dumps(value) for key, value in values.items()}), output, capsys)
        (tmp_path / "settings.json").write_text(json.dumps(values))
        refused(["--config", str(tmp_path / "settings.json")], output, capsys)
    for key in ("NOISE_STD", "HIDDEN_DIM", "EVAL_SHOTS", "FIRST_ORDER", "COMPILE", "META_SCHEDULE", "DEVICE"):
        message = refused(settings(**{key: "surely-not"}), output, capsys)
        assert re.search(rf"{key} .*\(got .*surely-not.*; expected .+\)$", message)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_a_hidden_size_that_does_not_fit_in_memory_is_refused_unmade(
    method: str, output: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
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
    assert "memory" in refused(["--method", method, *settings(HIDDEN_DIM=size)], output, capsys)


def test_memory_that_runs_out_is_one_line_and_exit_code_1(
    output: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(METHODS["maml"], "from_config", exhausted)
    assert main(["--output", str(output)]) == 1
    assert re.fullmatch(r"error: out of memory [^\n]+\n", capsys.readouterr().err)


def test_unusual_but_sound_input_is_accepted(output: Path) -> None:
    for argv in UNUSUAL:
        with pytest.raises(Accepted):
            main([*argv, "--set", "COMPILE=never", "--set", "NUM_TASKS=10", "--output", str(output)])

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


def settings(**values: Any) -> list[str]:
    """The settings as --set flags; texts as they are."""
    return [part for key, value in values.items() for part in ("--set", f"{key}={value}")]


FLAGS = {
    "an unknown method": ["--method", "reptile"],
    "a method in upper case": ["--method", "MAML"],
    "a method that is missing": ["--method"],
    "an unknown task family": ["--tasks", "squares"],
    "a mistyped flag": ["--metod", "maml"],
    "a prefix of a flag": ["--meth", "maml"],
    "a short flag": ["-m", "maml"],
    "a stray word": ["maml"],
    "a second method that is unknown": ["--method", "maml", "reptile"],
    "a seed below zero": ["--seed", "-1"],
    "a seed with a fraction": ["--seed", "1.5"],
    "a seed of 2^64": ["--seed", str(2**64)],
    "a seed of more digits than python reads": ["--seed", "1" * 5000],
    "a seed in words": ["--seed", "one"],
    "an unknown device": ["--device", "gpu"],
    "a device with a word for a number": ["--device", "cuda:one"],
    "an assignment without a value": ["--set", "EPOCHS"],
    "an assignment without a key": ["--set", "=5"],
    "resume with evaluate": ["--resume", "latest", "--evaluate", "latest"],
    "resume of a run that does not exist": ["--resume", "nowhere"],
    "resume of an empty name": ["--resume", ""],
    "resume of a missing name": ["--resume"],
    "evaluate of a run that does not exist": ["--evaluate", "nowhere"],
    "resume with a name": ["--resume", "latest", "--name", "mine"],
    "resume with a settings file": ["--resume", "latest", "--config", "settings.json"],
    "an empty name": ["--name", ""],
    "a name with a slash": ["--name", "a/b"],
    "a name that climbs": ["--name", ".."],
    "a name with a line break": ["--name", "a\nb"],
    "a name of 101 letters": ["--name", "a" * 101],
}


VALUES: dict[str, dict[str, Any]] = {
    "a number as text": {"META_LEARNING_RATE": "0.1"},
    "true for a whole number": {"EPOCHS": True},
    "shots twice": {"EVAL_SHOTS": [5, 5]},
    "a whole number beyond any float": {"EPOCHS": 10**400},
    "a range of amplitudes upside down": {"AMPLITUDE_MIN": 5.0, "AMPLITUDE_MAX": 0.1},
    "a range of amplitudes below its default start": {"AMPLITUDE_MAX": 0.05},
    "a range of inputs that is one number in float32": {"X_MIN": 1.0, "X_MAX": 1.00000001},
    "a hidden size that does not fit in memory": {"HIDDEN_DIM": 10**6},
    "a hidden size beyond any memory": {"HIDDEN_DIM": 10**15},
    "a chunk beyond the meta-batch": {"TASK_CHUNK": 26},
    "more test tasks than fit in memory": {"EVAL_TASKS": 10**6, "EVAL_QUERY_SAMPLES": 10**5},
    "an unknown key": {"EPOCH": 5},
    "an empty key beside a good one": {"EPOCHS": 5, " ": 1},
}


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


def refused(argv: list[str], output: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line with which a command line is refused; fails where it is accepted, or refused in another way."""
    code = main([*argv, "--output", str(output)])
    streams = capsys.readouterr()
    assert code == 2
    assert re.fullmatch(r"error: [^\n]+\n", streams.err)
    assert streams.out == ""
    assert not output.exists()
    return streams.err.rstrip("\n")


# ---- flags


@pytest.mark.parametrize("argv", FLAGS.values(), ids=FLAGS)
def test_a_flag_that_cannot_be_used_is_refused(argv: list[str], output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(argv, output, capsys)


@pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:7"])
def test_a_gpu_that_is_not_there_is_refused(
    device: str, output: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device in refused(["--device", device], output, capsys)


def test_asking_for_help_is_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0 and capsys.readouterr().err == ""


# ---- values, by --set and by file


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_a_value_that_cannot_be_used_is_refused_by_flag_and_by_file(
    values: dict[str, Any], output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(settings(**{key: json.dumps(value) for key, value in values.items()}), output, capsys)
    (tmp_path / "settings.json").write_text(json.dumps(values))
    refused(["--config", str(tmp_path / "settings.json")], output, capsys)


@pytest.mark.parametrize("key", ["NOISE_STD", "HIDDEN_DIM", "EVAL_SHOTS", "FIRST_ORDER", "COMPILE", "META_SCHEDULE", "DEVICE"])
def test_a_refused_value_is_named_with_its_key_and_what_was_expected(
    key: str, output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = refused(settings(**{key: "surely-not"}), output, capsys)
    assert re.search(rf"{key} .*\(got .*surely-not.*; expected .+\)$", message)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_a_hidden_size_that_does_not_fit_in_memory_is_refused_unmade(
    method: str, output: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
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


@pytest.mark.parametrize("message", ["", "unable to allocate 5 TiB"], ids=["without words", "with words"])
def test_memory_that_runs_out_is_one_line_and_exit_code_1(
    message: str, output: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(*_: Any) -> None:
        raise MemoryError(message) if message else MemoryError

    monkeypatch.setattr(METHODS["maml"], "from_config", exhausted)
    assert main(["--output", str(output)]) == 1
    assert re.fullmatch(r"error: out of memory [^\n]+\n", capsys.readouterr().err)


ACCEPTED = {
    "the largest seed": ["--seed", str(2**64 - 1)],
    "no inner steps": ["--set", "INNER_STEPS=0"],
    "flags in any case": ["--set", "FIRST_ORDER=True"],
    "shots without brackets": ["--set", "EVAL_SHOTS=5,10"],
    "a whole number for a number": ["--set", "X_MAX=6"],
    "a value that is set again": ["--set", "EPOCHS=0", "--set", "EPOCHS=1"],
    "several settings after one flag": ["--set", "EPOCHS=0", "NUM_TASKS=8", "--set", "EPOCHS=1", "HIDDEN_DIM=6"],
    "a name": ["--name", "my-run_1.0"],
}


@pytest.mark.parametrize("argv", ACCEPTED.values(), ids=ACCEPTED)
def test_unusual_but_sound_input_is_accepted(argv: list[str], output: Path) -> None:
    with pytest.raises(Accepted):
        main([*argv, "--set", "COMPILE=never", "--set", "NUM_TASKS=10", "--output", str(output)])

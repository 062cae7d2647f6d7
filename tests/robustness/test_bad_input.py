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
from tests.tools.bad_input import FILES, FLAGS, NOT_FINITE, VALUES, settings


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


def test_a_gpu_beyond_the_last_is_refused(
    output: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    refused(["--device", "cuda:2"], output, capsys)


def test_asking_for_help_is_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0 and capsys.readouterr().err == ""


# ---- values, by --set and by file


NUMBERS = [
    "META_LEARNING_RATE",
    "INNER_LEARNING_RATE",
    "META_GRADIENT_CLIP",
    "NOISE_STD",
    "X_MAX",
    "AMPLITUDE_MIN",
    "LEO_KL_WEIGHT",
    "EPOCHS",
]


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_a_value_on_the_command_line_that_cannot_be_used_is_refused(
    values: dict[str, Any], output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(settings(**{key: json.dumps(value) for key, value in values.items()}), output, capsys)


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_a_value_in_a_file_that_cannot_be_used_is_refused(
    values: dict[str, Any], output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "settings.json").write_text(json.dumps(values))
    refused(["--config", str(tmp_path / "settings.json")], output, capsys)


@pytest.mark.parametrize("value", NOT_FINITE)
@pytest.mark.parametrize("key", NUMBERS)
def test_a_number_that_is_not_finite_is_refused_by_its_key(
    key: str, value: str, output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert key in refused(settings(**{key: value}), output, capsys)


@pytest.mark.parametrize("key", [*NUMBERS, "HIDDEN_DIM", "EVAL_SHOTS", "FIRST_ORDER", "COMPILE", "META_SCHEDULE", "DEVICE"])
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
    "a name": ["--name", "my-run_1.0"],
}


@pytest.mark.parametrize("argv", ACCEPTED.values(), ids=ACCEPTED)
def test_unusual_but_sound_input_is_accepted(argv: list[str], output: Path) -> None:
    with pytest.raises(Accepted):
        main([*argv, "--set", "COMPILE=never", "--set", "NUM_TASKS=10", "--output", str(output)])


# ---- settings files


@pytest.mark.parametrize("content", FILES.values(), ids=FILES)
def test_a_settings_file_that_holds_no_settings_is_refused(
    content: bytes, output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "settings.json").write_bytes(content)
    refused(["--config", str(tmp_path / "settings.json")], output, capsys)


@pytest.mark.parametrize("name", ["missing.json", ".", "x" * 300, "a\nb.json"], ids=lambda name: repr(name)[:20])
def test_a_settings_file_that_is_no_file_is_refused(
    name: str, output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(["--config", str(tmp_path / name)], output, capsys)


def test_an_unused_settings_file_is_refused_all_the_same(
    output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "settings.json").write_text('{"EPOCH": 5}')
    refused(["--config", str(tmp_path / "settings.json"), "--set", "EPOCHS=5"], output, capsys)

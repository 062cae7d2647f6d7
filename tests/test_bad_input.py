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


def settings(**values: Any) -> list[str]:
    """The settings as --set flags; texts as they are."""
    return [part for key, value in values.items() for part in ("--set", f"{key}={value}")]


# ---- flags


FLAGS = {
    "an unknown method": ["--method", "reptile"],
    "a method in upper case": ["--method", "MAML"],
    "an empty method": ["--method", ""],
    "a method that is missing": ["--method"],
    "an unknown task family": ["--tasks", "squares"],
    "a mistyped flag": ["--metod", "maml"],
    "a prefix of a flag": ["--meth", "maml"],
    "another prefix of a flag": ["--out", "elsewhere"],
    "a short flag": ["-m", "maml"],
    "a stray word": ["maml"],
    "a stray word after a flag": ["--seed", "1", "leo"],
    "a second method that is unknown": ["--method", "maml", "reptile"],
    "a seed below zero": ["--seed", "-1"],
    "a seed below zero with an equals sign": ["--seed=-1"],
    "a seed with a fraction": ["--seed", "1.5"],
    "a seed of 2^64": ["--seed", str(2**64)],
    "a seed beyond any float": ["--seed", "1" * 400],
    "a seed of more digits than python reads": ["--seed", "1" * 5000],
    "a seed in words": ["--seed", "one"],
    "an empty seed": ["--seed", ""],
    "a seed that is true": ["--seed", "true"],
    "an unknown device": ["--device", "gpu"],
    "an empty device": ["--device", ""],
    "a device with a word for a number": ["--device", "cuda:one"],
    "an assignment without a value": ["--set", "EPOCHS"],
    "an assignment without a key": ["--set", "=5"],
    "an empty assignment": ["--set", ""],
    "resume with evaluate": ["--resume", "latest", "--evaluate", "latest"],
    "resume of a run that does not exist": ["--resume", "nowhere"],
    "resume of the latest of no runs": ["--resume", "latest"],
    "resume of an empty name": ["--resume", ""],
    "resume of a missing name": ["--resume"],
    "evaluate of a run that does not exist": ["--evaluate", "nowhere"],
    "evaluate of an empty name": ["--evaluate", ""],
    "resume with a name": ["--resume", "latest", "--name", "mine"],
    "resume with a settings file": ["--resume", "latest", "--config", "settings.json"],
    "an empty name": ["--name", ""],
    "a name with a slash": ["--name", "a/b"],
    "a name that climbs": ["--name", ".."],
    "a name with a line break": ["--name", "a\nb"],
    "a name that looks hidden": ["--name", ".mine"],
    "a name of 101 letters": ["--name", "a" * 101],
}


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


VALUES: dict[str, dict[str, Any]] = {
    "a number as text": {"META_LEARNING_RATE": "0.1"},
    "a whole number as text": {"EPOCHS": "5"},
    "true for a whole number": {"EPOCHS": True},
    "true for a number": {"META_LEARNING_RATE": True},
    "one for a flag": {"FIRST_ORDER": 1},
    "a fraction for a whole number": {"INNER_STEPS": 1.5},
    "a list for a number": {"HIDDEN_DIM": [40, 40]},
    "an object for a number": {"HIDDEN_DIM": {"a": 1}},
    "null for a number": {"HIDDEN_DIM": None},
    "a number for a choice": {"COMPILE": 1},
    "an unknown choice": {"META_SCHEDULE": "linear"},
    "an unknown device": {"DEVICE": "gpu"},
    "a number for a device": {"DEVICE": 0},
    "an outer step of zero": {"META_LEARNING_RATE": 0},
    "an outer step below zero": {"META_LEARNING_RATE": -0.001},
    "an inner step of zero": {"INNER_LEARNING_RATE": 0.0},
    "an inner step below zero": {"INNER_LEARNING_RATE": -0.01},
    "a step in the latent space of zero": {"LEO_LATENT_LEARNING_RATE": 0},
    "an outer clip below zero": {"META_GRADIENT_CLIP": -1},
    "an inner clip below zero": {"INNER_GRADIENT_CLIP": -1.0},
    "no epochs": {"EPOCHS": 0},
    "epochs below zero": {"EPOCHS": -3},
    "no tasks": {"NUM_TASKS": 0},
    "an empty meta-batch": {"META_BATCH_SIZE": 0},
    "no support points": {"SUPPORT_SAMPLES": 0},
    "no query points": {"QUERY_SAMPLES": 0},
    "inner steps below zero": {"INNER_STEPS": -1},
    "no hidden units": {"HIDDEN_DIM": 0},
    "no input dimension": {"INPUT_DIM": 0},
    "a chunk below zero": {"TASK_CHUNK": -1},
    "a checkpoint every 0 steps": {"CHECKPOINT_INTERVAL": 0},
    "one test task": {"EVAL_TASKS": 1},
    "no shots at evaluation": {"EVAL_SHOTS": []},
    "shots of zero": {"EVAL_SHOTS": [5, 0]},
    "shots below zero": {"EVAL_SHOTS": [-5]},
    "shots twice": {"EVAL_SHOTS": [5, 5]},
    "shots in words": {"EVAL_SHOTS": ["five"]},
    "shots with a fraction": {"EVAL_SHOTS": [5.5]},
    "shots that are true": {"EVAL_SHOTS": [True]},
    "noise below zero": {"NOISE_STD": -0.3},
    "a range of amplitudes upside down": {"AMPLITUDE_MIN": 5.0, "AMPLITUDE_MAX": 0.1},
    "an empty range of amplitudes": {"AMPLITUDE_MIN": 1.0, "AMPLITUDE_MAX": 1.0},
    "a range of amplitudes below its default start": {"AMPLITUDE_MAX": 0.05},
    "a range of phases upside down": {"PHASE_MIN": 1, "PHASE_MAX": 0},
    "an empty range of phases": {"PHASE_MIN": 1, "PHASE_MAX": 1},
    "a range of inputs upside down": {"X_MIN": 5, "X_MAX": -5},
    "an empty range of inputs": {"X_MIN": 0.0, "X_MAX": 0.0},
    "a seed of 2^64": {"RANDOM_SEED": 2**64},
    "a seed below zero": {"RANDOM_SEED": -1},
    "a whole number beyond any float": {"EPOCHS": 10**400},
    "a whole number for a number beyond any float": {"META_LEARNING_RATE": 10**400},
    "a hidden size that does not fit in memory": {"HIDDEN_DIM": 10**6},
    "a hidden size beyond any memory": {"HIDDEN_DIM": 10**15},
    "an inner step that is zero in float32": {"INNER_LEARNING_RATE": 1e-50},
    "noise that is zero in float32": {"NOISE_STD": 1e-50},
    "a range of inputs that is one number in float32": {"X_MIN": 1.0, "X_MAX": 1.00000001},
    "a chunk beyond the meta-batch": {"TASK_CHUNK": 26},
    "more test tasks than fit in memory": {"EVAL_TASKS": 10**6, "EVAL_QUERY_SAMPLES": 10**5},
    "a latent size of zero": {"LEO_LATENT_DIM": 0},
    "a weight of the divergence below zero": {"LEO_KL_WEIGHT": -1e-4},
    "an unknown key": {"EPOCH": 5},
    "a key in lower case": {"epochs": 5},
    "an empty key beside a good one": {"EPOCHS": 5, " ": 1},
}
NOT_FINITE = ["NaN", "Infinity", "-Infinity", "1e400", "-1e400", "nan", "inf"]
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
def test_a_refused_value_is_named_with_its_key_the_value_and_what_was_expected(
    key: str, output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = refused(settings(**{key: "surely-not"}), output, capsys)
    assert re.search(rf"{key} .*\(got .*surely-not.*; expected .+\)$", message)


@pytest.mark.parametrize(("key", "near"), [("EPOCH", "EPOCHS"), ("epochs", "EPOCHS"), ("SUPPORT_SAMPLE", "SUPPORT_SAMPLES")])
@pytest.mark.parametrize("by_file", [False, True], ids=["--set", "file"])
def test_an_unknown_key_is_answered_with_the_nearest(
    key: str, near: str, by_file: bool, output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "settings.json").write_text(json.dumps({key: 5}))
    argv = ["--config", str(tmp_path / "settings.json")] if by_file else settings(**{key: 5})
    assert f"did you mean {near}?" in refused(argv, output, capsys)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_a_hidden_size_whose_weights_do_not_fit_in_memory_is_refused_before_any_is_made(
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


FILES: dict[str, bytes] = {
    "empty": b"",
    "a list": b"[]",
    "a number": b"5",
    "null": b"null",
    "words": b"EPOCHS = 5",
    "a trailing comma": b'{"EPOCHS": 5,}',
    "a comment": b'{"EPOCHS": 5} // five',
    "UTF-16": '{"EPOCHS": 5}'.encode("utf-16"),
    "UTF-16 without a mark": '{"EPOCHS": 5}'.encode("utf-16-le"),
    "UTF-32": '{"EPOCHS": 5}'.encode("utf-32"),
    "Latin-1": '{"é": 5}'.encode("latin-1"),
    "a NaN": b'{"NOISE_STD": NaN}',
    "an infinity": b'{"NOISE_STD": Infinity}',
    "a number beyond any float": b'{"NOISE_STD": 1e400}',
    "more digits than python reads": b'{"EPOCHS": ' + b"1" * 5000 + b"}",
    "a key twice": b'{"EPOCHS": 5, "EPOCHS": 5}',
    "a key with a line break": b'{"EPO\\nCHS": 5}',
    "a key that is no character": b'{"\\ud800": 5}',
    "200,000 lists in each other": b"[" * 200_000,
    "200,000 objects in each other": b'{"a":' * 200_000,
    "200,000 lists under a key": b'{"EPOCHS": ' + b"[" * 200_000,
    "900 lists under a key": b'{"EPOCHS": ' + b"[" * 900 + b"]" * 900 + b"}",
    "zeros": b"\0" * 1000,
    "a picture": b"\x89PNG\r\n\x1a\n" + bytes(range(256)),
}


@pytest.mark.parametrize("content", FILES.values(), ids=FILES)
def test_a_settings_file_that_holds_no_settings_is_refused(
    content: bytes, output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "settings.json").write_bytes(content)
    refused(["--config", str(tmp_path / "settings.json")], output, capsys)


@pytest.mark.parametrize(
    "name", ["missing.json", ".", "no/such/folder.json", "x" * 300, "a\nb.json"], ids=lambda name: repr(name)[:20]
)
def test_a_settings_file_that_is_no_file_is_refused(
    name: str, output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(["--config", str(tmp_path / name)], output, capsys)


def test_an_empty_name_of_a_settings_file_is_refused(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(["--config", ""], output, capsys)


def test_a_trailing_comma_is_answered_with_line_and_column(
    output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "settings.json").write_text('{\n  "EPOCHS": 5,\n}\n')
    message = refused(["--config", str(tmp_path / "settings.json")], output, capsys)
    assert re.search(r"at line (2 column 14|3 column 1)\b", message)  # which one depends on the version of Python


def test_an_unreadable_settings_file_is_refused(
    output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(path: Path) -> bytes:  # a mode of 0 would not stop root
        raise PermissionError(13, "Permission denied", str(path))

    (tmp_path / "settings.json").write_text("{}")
    monkeypatch.setattr(Path, "read_bytes", denied)
    assert "Permission denied" in refused(["--config", str(tmp_path / "settings.json")], output, capsys)


def test_a_settings_file_of_ten_gigabytes_is_refused(output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with open(tmp_path / "settings.json", "wb") as sparse:
        sparse.truncate(10 * 2**30)
    assert "too large" in refused(["--config", str(tmp_path / "settings.json")], output, capsys)


def test_a_settings_file_with_a_byte_order_mark_is_accepted(output: Path, tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_bytes(b'\xef\xbb\xbf{"NUM_TASKS": 10, "COMPILE": "never"}')
    with pytest.raises(Accepted):
        main(["--config", str(tmp_path / "settings.json"), "--output", str(output)])


def test_an_unused_settings_file_is_refused_all_the_same(
    output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "settings.json").write_text('{"EPOCH": 5}')
    refused(["--config", str(tmp_path / "settings.json"), "--set", "EPOCHS=5"], output, capsys)

"""Command lines and files that must be refused."""

from __future__ import annotations

from typing import Any


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
    "one for a flag": {"FIRST_ORDER": 1},
    "a fraction for a whole number": {"INNER_STEPS": 1.5},
    "an object for a number": {"HIDDEN_DIM": {"a": 1}},
    "null for a number": {"HIDDEN_DIM": None},
    "an unknown choice": {"META_SCHEDULE": "linear"},
    "an outer step of zero": {"META_LEARNING_RATE": 0},
    "no epochs": {"EPOCHS": 0},
    "shots twice": {"EVAL_SHOTS": [5, 5]},
    "shots in words": {"EVAL_SHOTS": ["five"]},
    "noise below zero": {"NOISE_STD": -0.3},
    "a range of amplitudes upside down": {"AMPLITUDE_MIN": 5.0, "AMPLITUDE_MAX": 0.1},
    "an empty range of amplitudes": {"AMPLITUDE_MIN": 1.0, "AMPLITUDE_MAX": 1.0},
    "a range of amplitudes below its default start": {"AMPLITUDE_MAX": 0.05},
    "a seed of 2^64": {"RANDOM_SEED": 2**64},
    "a seed below zero": {"RANDOM_SEED": -1},
    "a whole number beyond any float": {"EPOCHS": 10**400},
    "a whole number for a number beyond any float": {"META_LEARNING_RATE": 10**400},
    "a hidden size that does not fit in memory": {"HIDDEN_DIM": 10**6},
    "a hidden size beyond any memory": {"HIDDEN_DIM": 10**15},
    "an inner step that is zero in float32": {"INNER_LEARNING_RATE": 1e-50},
    "a range of inputs that is one number in float32": {"X_MIN": 1.0, "X_MAX": 1.00000001},
    "a chunk beyond the meta-batch": {"TASK_CHUNK": 26},
    "more test tasks than fit in memory": {"EVAL_TASKS": 10**6, "EVAL_QUERY_SAMPLES": 10**5},
    "an unknown key": {"EPOCH": 5},
    "an empty key beside a good one": {"EPOCHS": 5, " ": 1},
}


NOT_FINITE = ["NaN", "Infinity", "-Infinity", "1e400", "-1e400", "nan", "inf"]


FILES: dict[str, bytes] = {
    "empty": b"",
    "a list": b"[]",
    "null": b"null",
    "words": b"EPOCHS = 5",
    "a trailing comma": b'{"EPOCHS": 5,}',
    "a comment": b'{"EPOCHS": 5} // five',
    "UTF-16": '{"EPOCHS": 5}'.encode("utf-16"),
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
    "a picture": b"\x89PNG\r\n\x1a\n" + bytes(range(256)),
}

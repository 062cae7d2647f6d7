"""Settings: defaults, refusals, layers, and strict JSON files."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest

from config import KEYS, MAX_JSON_BYTES, Config, ConfigError, load_settings, parse_assignment, variants


def keys_of(*types: str) -> list[str]:
    return [name for name, field in KEYS.items() if field.type in types]


def refusal(**settings: Any) -> str:
    """The message with which these settings are refused."""
    with pytest.raises(ConfigError) as caught:
        Config(**settings)
    return str(caught.value)


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "settings.json"


def test_defaults_are_the_papers_experiment() -> None:
    paper = {"META_BATCH_SIZE": 25, "SUPPORT_SAMPLES": 10, "QUERY_SAMPLES": 10, "INNER_STEPS": 1, "META_LEARNING_RATE": 0.001}
    network = {"INPUT_DIM": 1, "HIDDEN_DIM": 40, "FIRST_ORDER": False, "EVAL_STEPS": 10, "EVAL_SHOTS": (5, 10, 20)}
    waves = {"AMPLITUDE_MIN": 0.1, "AMPLITUDE_MAX": 5.0, "PHASE_MIN": 0.0, "PHASE_MAX": math.pi}
    inputs = {"X_MIN": -5.0, "X_MAX": 5.0, "NOISE_STD": 0.0, "RANDOM_SEED": 0}
    wanted = paper | network | waves | inputs | {"iterations": 70_000}
    assert {name: getattr(Config(), name) for name in wanted} == wanted


def test_shots_at_evaluation_follow_those_of_training() -> None:
    cases = {1: (1, 2), 5: (5, 10, 20), 6: (3, 6, 12), 10: (5, 10, 20), 10**6: (10**4,)}
    for trained, judged in cases.items():
        config = Config(SUPPORT_SAMPLES=trained)
        assert judged == config.EVAL_SHOTS and config.to_dict()["EVAL_SHOTS"] == list(judged)
        assert judged == Config.resolve(config.to_dict(), {"EPOCHS": 1}).EVAL_SHOTS
        assert Config(SUPPORT_SAMPLES=trained, EVAL_SHOTS=(3,)).EVAL_SHOTS == (3,)
    assert Config(SUPPORT_SAMPLES=6, EVAL_SHOTS=(20, 2)).evaluation_shots == (0, 2, 6, 20)


def test_several_values_of_settings_are_tried_in_every_combination() -> None:
    words = ["HIDDEN_DIM=20, 40", "EVAL_SHOTS=5,10", "COMPILE=auto,never", "DATA=a,b.csv", "EPOCHS=3", "ODD=1,2"]
    same = ("EVAL_SHOTS=5,10", "DATA=a,b.csv", "EPOCHS=3", "ODD=1,2")
    found = [(set(chosen) - set(same), len(chosen)) for chosen in variants(words)]
    assert found == [({f"HIDDEN_DIM={units}", f"COMPILE={mode}"}, 6) for units in (20, 40) for mode in ("auto", "never")]
    for wrong, reason in {"EVAL_TASKS=10,20": "equal tasks", "X_MAX=3,4": "equal tasks", "EPOCHS=3,3": "twice"}.items():
        with pytest.raises(ConfigError, match=reason):
            variants([wrong])


def test_a_config_counts_its_iterations_and_cannot_be_changed() -> None:
    config = Config(EPOCHS=2, NUM_TASKS=5, META_BATCH_SIZE=4)
    assert config.iterations == 3  # the last partial meta-batch is one
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.EPOCHS = 3  # type: ignore[misc]


NO_NUMBERS = ["0.1", True, None, [1], {}, math.nan, math.inf, -math.inf, 10**400, -(10**400)]


def test_what_is_no_number_in_the_range_of_its_key_and_a_range_without_width_are_refused() -> None:
    for name in keys_of("int", "float"):
        low, high, above = (KEYS[name].metadata[limit] for limit in ("low", "high", "above"))
        for value in NO_NUMBERS:
            assert name in refusal(**{name: value})
        for value in (low if above else low - 1, high * 2):
            assert f"{name} can't be used (got {value}; expected" in refusal(**{name: value})
    for name, high in (("AMPLITUDE", 1.0), ("PHASE", 2.0), ("X", 1.0)):
        message = refusal(**{f"{name}_MIN": 2.0, f"{name}_MAX": high})
        assert f"{name}_MIN must be below {name}_MAX (got 2.0; expected below {high})" in message
    for name in keys_of("int"):
        assert f"{name} can't be used (got 2.0; expected a whole number" in refusal(**{name: 2.0})


def test_zero_is_accepted_only_where_it_means_none_and_a_whole_number_as_a_real_one() -> None:
    counts = "EPOCHS NUM_TASKS META_BATCH_SIZE SUPPORT_SAMPLES QUERY_SAMPLES INPUT_DIM HIDDEN_DIM LEO_LATENT_DIM LOG_INTERVAL"
    steps = "META_LEARNING_RATE INNER_LEARNING_RATE LEO_LATENT_LEARNING_RATE CHECKPOINT_INTERVAL VALIDATION_INTERVAL"
    for name in f"{counts} {steps}".split():
        assert name in refusal(**{name: 0})
    for name in ["INNER_STEPS", "EVAL_STEPS", "NOISE_STD", "META_GRADIENT_CLIP", "TASK_CHUNK", "LEO_KL_WEIGHT"]:
        assert getattr(Config(**{name: 0}), name) == 0
    special = {"AMPLITUDE_MAX": 6, "PHASE_MAX": 6, "X_MIN": -6, "X_MAX": 6}
    for name in keys_of("float"):
        value = special.get(name, 0 if name.endswith("_MIN") else 1)
        assert type(getattr(Config(**{name: value}), name)) is float


def test_flags_and_choices_that_are_not_offered_are_refused_with_the_offers() -> None:
    for name in keys_of("bool"):
        for value in (1, 0, "true", None):
            assert "expected true or false" in refusal(**{name: value})
    for name in [name for name, field in KEYS.items() if "choices" in field.metadata]:
        for other in ("sometimes", 1, None, ["auto"]):
            assert f"expected {' or '.join(KEYS[name].metadata['choices'])}" in refusal(**{name: other})


def test_a_device_may_be_named_before_it_is_looked_for_but_must_be_one() -> None:
    for value in ("gpu", "", "cuda:", "cuda:-1", "cuda:x", "cuda:1000", "cpu:0", "CUDA", 0, None):
        assert "DEVICE can't be used" in refusal(DEVICE=value)
    for value in ("auto", "cpu", "cuda", "cuda:0", "cuda:7"):
        assert value == Config(DEVICE=value).DEVICE


def test_shots_that_are_no_list_of_distinct_counts_are_refused_in_one_short_line() -> None:
    for value in (5, "5", [5, 5], [-5], [5.0], [True], [math.nan], [None], [[5]], {"5": 1}, [10**9], [10**400]):
        assert "EVAL_SHOTS can't be used" in refusal(EVAL_SHOTS=value)
    assert len(refusal(COMPILE="x" * 10_000)) < 200 and "\n" not in refusal(COMPILE="a\nb")


def test_a_later_layer_wins_and_an_earlier_one_is_kept_where_it_is_silent() -> None:
    config = Config.resolve({"EPOCHS": -1, "NUM_TASKS": 7}, {"EPOCHS": 2}, {"EPOCHS": 3})
    assert (config.EPOCHS, config.NUM_TASKS) == (3, 7)
    assert Config.resolve() == Config()


def test_an_unknown_key_is_refused_with_the_nearest_name_if_there_is_one() -> None:
    near = {"EPOCH": "EPOCHS", "epochs": "EPOCHS", "META_LR_RATE": "META_LEARNING_RATE", "LEO_LATENT_DIMS": "LEO_LATENT_DIM"}
    for name, nearest in near.items():
        with pytest.raises(ConfigError, match=rf'unknown key \(got "{name}"; did you mean {nearest}\?'):
            Config.resolve({name: 1})
    with pytest.raises(ConfigError, match="unknown key") as caught:
        Config.resolve({"qqqq": 1})
    assert "did you mean" not in str(caught.value)


def test_a_config_survives_json_in_the_order_of_the_keys() -> None:
    changed = Config(EPOCHS=3, EVAL_SHOTS=(1, 2), FIRST_ORDER=True, META_LEARNING_RATE=1 / 3, RANDOM_SEED=2**64 - 1)
    assert Config.resolve(json.loads(json.dumps(changed.to_dict(), allow_nan=False))) == changed
    assert list(changed.to_dict()) == list(KEYS)


ASSIGNMENTS: dict[str, Any] = {
    **{"EPOCHS=5": 5, "EPOCHS= 5": 5, "EPOCHS=": "", "EPOCHS=05": "05", "EPOCHS=NaN": "NaN", "EPOCHS=1=2": "1=2"},
    **{"META_LEARNING_RATE=1e-3": 1e-3, "META_LEARNING_RATE=.5": ".5"},
    **{"COMPILE=never": "never", 'COMPILE="never"': "never", "DEVICE=cuda:1": "cuda:1"},
    **{"FIRST_ORDER=true": True, "FIRST_ORDER=True": True, "FIRST_ORDER=FALSE": False, "FIRST_ORDER=yes": "yes"},
    **{"EVAL_SHOTS=5,10": [5, 10], "EVAL_SHOTS=5": [5], "EVAL_SHOTS=[5, 10]": [5, 10], "EVAL_SHOTS=": []},
}


def test_an_assignment_is_read_as_json_where_it_is_json_or_else_as_text() -> None:
    for text, value in ASSIGNMENTS.items():
        parsed = parse_assignment(text)[1]
        assert (type(parsed), parsed) == (type(value), value), text
    for text in ("EPOCHS", "", "=5", "=", "EPOCHS:5"):
        with pytest.raises(ConfigError, match="KEY=VALUE"):
            parse_assignment(text)
    with pytest.raises(ConfigError, match="EPOCHS can't be used"):
        Config.resolve(dict([parse_assignment("EPOCHS=" + "[" * 200_000)]))


NO_SETTINGS: list[tuple[str | bytes, str]] = [
    ("", "line 1 column 1"),
    ('{\n "EPOCHS": 5,\n}', "line 3 column 1|line 2 column 13"),  # where depends on the version of Python
    ('{"EPOCHS": 5} {}', "line 1 column 15"),
    ('{"EPOCHS": NaN}', "NaN"),
    ('{"EPOCHS": Infinity}', "Infinity"),
    ('{"EPOCHS": 5, "EPOCHS": 6}', '"EPOCHS" twice'),
    ("[" * 200_000, "recursion"),
    ("[]", "holds no settings"),
    ('{"EPOCHS": 5}'.encode("utf-16"), "codec can't decode"),
    (b'{"EPOCHS": 5, "\x00": 1}', "is not strict JSON"),
    (b'{"EPOCHS": ' + b"1" * 5000 + b"}", "digits|is not strict JSON"),
    (b"\x89PNG\r\n\x1a\n" + bytes(range(256)), "codec can't decode"),
]


def test_a_file_that_is_not_one_strict_json_object_is_refused(file: Path) -> None:
    for content, message in NO_SETTINGS:
        with pytest.raises(ConfigError, match=message) as caught:
            load_settings(write(file, content))
        assert str(file) in str(caught.value)


def test_what_is_no_file_that_can_be_read_is_refused(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, message in {"missing.json": "no such file", ".": "no such file", "x" * 300: "can't be read"}.items():
        with pytest.raises(ConfigError, match=message):
            load_settings(file.parent / name)
    write(file, "{}")

    def denied(path: Path) -> bytes:  # a mode of 0 would not stop root
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", denied)
    with pytest.raises(ConfigError, match=r"can't be read \(got Permission denied"):
        load_settings(file)


def test_a_file_beyond_the_largest_size_is_refused_unread(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings(write(file, b'\xef\xbb\xbf{"EPOCHS": 5}')) == {"EPOCHS": 5}  # a byte order mark is accepted
    assert load_settings(write(file, "{}" + " " * (MAX_JSON_BYTES - 2))) == {}
    with open(file, "wb") as sparse:
        sparse.truncate(10 * 2**30)
    monkeypatch.setattr(Path, "read_bytes", lambda _: pytest.fail("the file was read"))
    with pytest.raises(ConfigError, match="too large"):
        load_settings(file)

"""Settings at work: each has an effect or is refused, they fit together, and whatever they are, no run ends in a traceback."""

from __future__ import annotations

import contextlib
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import main
import registry
from commands.evaluate import evaluated
from commands.runs import build
from config import KEYS, Config, ConfigError
from learner import gradient_descent
from results_manager import NullManager
from system.errors import RunError
from tests.tools.runs import TINY
from training.loop import Diverged

PAIRS = [(method, tasks) for method in registry.METHODS for tasks in ("sinusoid", "sine-line", "table")]
FAMILIES = {"leo": "sine-line", "r2d2": "table"}
CASES = [(method, FAMILIES.get(method, "sinusoid")) for method in registry.METHODS]
LEO_SIZES = ("LEO_LATENT_DIM", "LEO_ENCODER_DIM", "LEO_RELATION_DIM", "LEO_DECODER_DIM", "CONTEXT_DIM")
SMALLER: dict[str, Any] = TINY | dict.fromkeys(LEO_SIZES, 2)
SMALLER |= {"EPOCHS": 1, "META_OPTIMISER": "adam", "NUM_TASKS": 8, "SUPPORT_SAMPLES": 3, "QUERY_SAMPLES": 3, "INNER_STEPS": 1}
SMALLER |= {"EVAL_TASKS": 3, "EVAL_QUERY_SAMPLES": 3, "EVAL_STEPS": 2, "EVAL_SHOTS": [3], "VALIDATION_TASKS": 2}
SMALLER |= {"HIDDEN_DIM": 4, "LOG_INTERVAL": 1, "VALIDATION_INTERVAL": 2, "CHECKPOINT_INTERVAL": 2, "FOLDS": 1}


@pytest.fixture(autouse=True)
def two_tables(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """`toy.csv` and `other.csv` where the test runs: twelve subjects with eight points each."""
    monkeypatch.chdir(folder := tmp_path_factory.mktemp("tables"))
    for name, shift in {"toy": 0.0, "other": 0.7}.items():
        rows = [f"{task},{x},{math.sin(x + shift + task)},{x * task}" for task in range(12) for x in range(8)]
        Path(folder, f"{name}.csv").write_text("\n".join(["task,x,y,product", *rows]))


class Effect(Exception):
    """A run is not as another was."""


class Record(NullManager):
    """Keeps what a run would write; raises `Effect` at the first difference to `plain`, another's `events`."""

    def __init__(self, plain: list[Any] | None = None) -> None:
        self.plain, self.events = plain, list[Any]()

    def note(self, *event: Any) -> None:
        self.events.append(repr(event))  # in which every bit counts
        if self.plain is not None and self.plain[: len(self.events)] != self.events:
            raise Effect

    def log_scalars(self, iteration: int, values: dict[str, float]) -> None:
        self.note(iteration, {tag: value for tag, value in values.items() if not tag.startswith("performance/")})

    def save_checkpoint(self, state: dict[str, Any], best: Any = None) -> None:
        self.note(state["history"]["train"])
        self.note("checkpoint", state["iteration"], [tensor.tolist() for tensor in state["meta_parameters"].values()])


class StopAfter(SimpleNamespace):
    """The signals of a run that is stopped after some steps."""

    def __getattr__(self, name: str) -> int:
        """Of `stop`, as long as no process has set it."""
        self.left -= 1
        return 15 if self.left <= 0 else 0


def run(method: str, tasks: str, values: dict[str, Any], plain: list[Any] | None = None, steps: float = math.inf) -> list[Any]:
    """All that a tiny run would record, trained to its end or for `steps` steps, and evaluated."""
    config = Config.resolve(registry.defaults(method, tasks), SMALLER, {"DATA": "toy.csv"} if tasks == "table" else {}, values)
    generator = registry.TASKS[tasks](config)
    experiment = build(method, tasks, Config.resolve(config.to_dict(), generator.implied_settings()), generator)
    trainer, record = experiment.trainer, Record(plain)
    experiment.manager = record
    cut = 0 if trainer.learner.is_fitted() else trainer.step.micro_batches.size
    record.note("start", trainer.compile_note, cut, str(trainer.device), trainer.meta.flat.tolist())
    experiment.train(StopAfter(left=steps, save=0))  # type: ignore[arg-type]
    folds = experiment.judged() if generator.folds and steps == math.inf else []
    record.note("evaluation", evaluated(experiment.facts(), experiment.learner, folds, None))
    return record.events


def has_effect(method: str, tasks: str, plain: list[Any], key: str) -> bool:
    with contextlib.suppress(Effect):
        return run(method, tasks, {key: another(key)}, plain) != plain
    return True


def another(key: str) -> Any:
    """A value that a key does not have in a tiny run."""
    if key in SPECIAL:
        return SPECIAL[key]
    value = Config.resolve(SMALLER).to_dict()[key]
    if key.endswith("_MIN"):
        return value - 1.5 if value else 0.5
    return value + 1 if isinstance(value, int) else 1.5 * value


SPECIAL: dict[str, Any] = {
    **{"DATA": "other.csv", "FOLDS": 2, "COLUMNS": ["y=product"], "SPLIT_SEED": 5, "SUPPORT_FROM": "first"},
    **{"TRAIN_SHARE": 20.0, "VALIDATION_SHARE": 60.0, "TEST_SHARE": 60.0},
    **{"META_SCHEDULE": "constant", "META_OPTIMISER": "muon", "META_AVERAGE": 0.5, "FIRST_ORDER": True, "ALPACA_SPLINES": True},
    **{"COMPILE": "never", "TASK_CHUNK": 2, "EVAL_SHOTS": [4], "NOISE_STD": 0.7, "AMPLITUDE_MIN": 0.2},
    **{"INNER_GRADIENT_CLIP": 0.01, "LEO_L2_WEIGHT": 1.0, "LEO_ENCODER_PENALTY": 1.0, "DEVICE": "cuda"},
    **{"GP_KERNEL": "matern", "ACTIVATION": "tanh", "VALIDATION_INTERVAL": 1, "CHECKPOINT_INTERVAL": 1},
}


@pytest.mark.parametrize(("method", "tasks"), CASES)
def test_every_setting_has_an_effect_or_is_one_that_is_refused(
    method: str, tasks: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices = {"auto": "cpu", "cuda": "cpu:0"}
    monkeypatch.setattr("training.experiment.resolve_device", lambda name: torch.device(devices[name]))
    plain, unused = run(method, tasks, {}), registry.unused(method, tasks)
    follow = {"INPUT_DIM", "NUM_TASKS"} if tasks == "table" else set()  # others than the table's are refused
    assert [key for key in KEYS.keys() - unused - follow if not has_effect(method, tasks, plain, key)] == []
    assert run(method, tasks, {key: another(key) for key in unused}) == plain


def test_a_setting_that_nothing_reads_is_refused_with_those_that_read_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--method", "r2d2", "--tasks", "sine-line", "--set", "FIRST_ORDER=True"]
    assert main.main([*words, "--output", str(tmp_path / "output")]) == 2 and not (tmp_path / "output").exists()
    error = capsys.readouterr().err
    assert error.startswith(
        "error: FIRST_ORDER has no effect on r2d2 with sine-line tasks (got True; expected with maml, leo, "
    )
    assert "tnet" in error and "alpaca" not in error and error.endswith(" only)\n") and error.count("\n") == 1


def test_no_default_is_without_effect_and_a_table_is_judged_at_shots_that_follow_those_asked_for() -> None:
    for method, tasks in PAIRS:
        assert registry.unused(method, tasks) & set(registry.defaults(method, tasks)) == set()
    generator = registry.TASKS["table"](Config(DATA="toy.csv"))  # twelve subjects with eight points
    assert [generator.defaults(shots)["EVAL_SHOTS"] for shots in (None, 1, 4)] == [[1, 2, 4], [1, 2], [2, 4]]


def test_a_number_that_is_zero_in_float32_is_refused() -> None:
    for key in [key for key, field in KEYS.items() if field.type == "float"]:
        for value in (1e-50, 1.17e-38, 5e-324, -1e-40):
            with pytest.raises(ConfigError, match=rf"{key} .*\(got {value}; expected .*\)$"):
                Config(**{key: value})
        other = {key.replace("_MAX", "_MIN"): KEYS[key].metadata["low"]} if key.endswith("_MAX") else {}
        assert getattr(Config(**other, **{key: 1.18e-38}), key) == 1.18e-38


def test_a_bound_on_the_gradient_whose_square_is_zero_still_bounds_it() -> None:
    for clip in (1e-30, 1.18e-38):
        for start in (torch.zeros(3), torch.ones(3)):
            end = gradient_descent(lambda point: point.square().sum(), start, 1.0, 1, clip=clip)[-1]
            assert end.isfinite().all() and (end - start).norm() <= 1.01 * clip


TOO_LARGE: list[tuple[str, dict[str, Any]]] = [
    ("leo", {"EVAL_SHOTS": [10_000], "LEO_ENCODER_DIM": 1000}),
    ("r2d2", {"EVAL_SHOTS": [10_000], "HIDDEN_DIM": 10_000, "META_BATCH_SIZE": 1}),
    ("maml", {"VALIDATION_TASKS": 10**6, "EVAL_STEPS": 1000, "EVAL_QUERY_SAMPLES": 1000}),
    ("maml", {"NUM_TASKS": 10**8, "INPUT_DIM": 10**4}),
]


def test_sizes_that_do_not_fit_in_memory_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(total=2**37))
    for method, values in TOO_LARGE:
        with pytest.raises(ConfigError, match=f"do not fit in memory .got .*{next(iter(values))}="):
            build(method, "sinusoid", Config.resolve(values))


def test_equations_without_a_solution_are_a_divergence(monkeypatch: pytest.MonkeyPatch) -> None:
    def unsolvable(*_: Any) -> None:
        raise torch.linalg.LinAlgError

    experiment = build("r2d2", "sinusoid", Config.resolve(SMALLER))
    before = experiment.trainer.meta.flat.clone()
    monkeypatch.setattr(experiment.trainer.step, "_gradient_of", unsolvable)
    with pytest.raises(Diverged, match="meta_loss = nan"):
        list(experiment.trainer.train())
    assert torch.equal(experiment.trainer.meta.flat, before)


def values_of(key: str) -> st.SearchStrategy[Any]:
    """Values of a key over its whole range; what would take long or much memory stays small."""
    field = KEYS[key]
    meta, kind = field.metadata, str(field.type)
    if key in ("DEVICE", "COMPILE"):
        return st.just({"DEVICE": "cpu", "COMPILE": "never"}[key])
    if key in ("DATA", "COLUMNS"):
        return st.sampled_from({"DATA": ("toy.csv", "other.csv"), "COLUMNS": ((), ("y=product",), ("x=y", "y=x"))}[key])
    if "choices" in meta or kind == "bool":
        return st.sampled_from(meta.get("choices", (True, False)))
    if kind == "float":
        low, high = meta["low"], meta["high"]
        odd = [low, high, 0.0, 1.0, -1.0, 1e-50, 1e-45, 1.2e-38, 1e-20, 1e-7, 1 + 1e-9, 1 + 1e-7, 1e5, -1e5]
        usual = st.floats(max(low, -10), min(high, 10))
        return usual | st.floats(low, high) | st.sampled_from([number for number in odd if low <= number <= high])
    if kind.startswith("tuple"):
        return st.lists(st.integers(1, 12), min_size=1, max_size=3, unique=True)
    endless = key in ("RANDOM_SEED", "EPOCHS") or key.endswith("_INTERVAL")
    return st.integers(meta["low"], meta["high"] if endless else meta["low"] + 12) | st.integers(meta["low"], meta["low"] + 2)


@st.composite
def settings_of_a_run(draw: st.DrawFn) -> tuple[str, str, dict[str, Any]]:
    method, tasks = draw(st.sampled_from(PAIRS))
    keys = draw(st.lists(st.sampled_from(sorted(set(KEYS) - registry.unused(method, tasks))), max_size=8, unique=True))
    return method, tasks, {key: draw(values_of(key)) for key in keys}


calm = settings(derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize("count", [40, pytest.param(400, marks=pytest.mark.chaos)])
def test_random_settings_train_and_evaluate_or_are_refused_in_one_line(count: int) -> None:
    @settings(calm, max_examples=count)
    @given(settings_of_a_run())
    def check(case: tuple[str, str, dict[str, Any]]) -> None:
        method, tasks, values = case
        torch.set_flush_denormal(True)  # as in training
        try:
            run(method, tasks, values, steps=2)
        except (ConfigError, RunError, Diverged) as error:
            assert str(error) and "\n" not in str(error)
        finally:
            torch.set_flush_denormal(False)  # without denormals hypothesis draws no numbers

    check()

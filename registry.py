"""What there is to choose from: methods, task families, and the settings that suit them.

The one file that a new method or family adds a line to. It does not know how anything is done.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from config import Config, keys_for
from dataset import FunctionFamily, SineLineTaskGenerator, SinusoidalTaskGenerator, TaskGenerator, stream
from families.damped import DampedTaskGenerator
from families.five import FiveTaskGenerator
from families.gaussian_process import GaussianProcessTaskGenerator
from learner import MetaLearner, in_one_vector
from leo import LEO
from maml import MAML
from methods.alpaca import ALPaCA
from methods.anil import ANIL
from methods.cavia import CAVIA
from methods.cnp import CNP
from methods.mean import Mean
from methods.meta_sgd import MetaSGD
from methods.mixed_model import MixedModel
from methods.r2d2 import R2D2
from methods.tnet import TNet
from system.errors import RunError
from system.host import resolve_device
from tables.scaled import in_usual_units
from tables.table import read_table
from tables.tasks import TableTaskGenerator

Range = tuple[float, float]


def sinusoid(config: Config) -> TaskGenerator:
    return SinusoidalTaskGenerator(*_shared_arguments(config))


def sine_line(config: Config) -> TaskGenerator:
    lines = (config.SLOPE_MIN, config.SLOPE_MAX), (config.INTERCEPT_MIN, config.INTERCEPT_MAX)
    return SineLineTaskGenerator(*_shared_arguments(config), *lines)


def damped(config: Config) -> TaskGenerator:
    return DampedTaskGenerator(*_shared_arguments(config)[:3])


def five(config: Config) -> TaskGenerator:
    return FiveTaskGenerator(*_shared_arguments(config)[:3])


def gaussian_process(config: Config) -> TaskGenerator:
    if config.INPUT_DIM > 1:
        raise RunError(f"functions of a Gaussian process have one input (got INPUT_DIM={config.INPUT_DIM}; expected 1)")
    dim, x_range, noise = _shared_arguments(config)[:3]
    kernel = config.GP_KERNEL, config.GP_LENGTH, config.GP_SCALE, config.GP_PERIOD
    return GaussianProcessTaskGenerator(dim, x_range, noise, *kernel)


def table(config: Config) -> TaskGenerator:
    if not config.DATA:
        raise RunError("tasks from a table need the table (got none; expected --data FILE.csv)")
    split_seed = config.RANDOM_SEED if config.SPLIT_SEED < 0 else config.SPLIT_SEED
    shares = (config.TRAIN_SHARE, config.VALIDATION_SHARE, config.TEST_SHARE)
    measured = read_table(Path(config.DATA), config.COLUMNS, shares, split_seed, config.FOLDS)
    return TableTaskGenerator(measured, config.SUPPORT_FROM, config.EVAL_REPEATS)


def _shared_arguments(config: Config) -> tuple[int, Range, float, Range, Range]:
    waves = (config.AMPLITUDE_MIN, config.AMPLITUDE_MAX), (config.PHASE_MIN, config.PHASE_MAX)
    return config.INPUT_DIM, (config.X_MIN, config.X_MAX), config.NOISE_STD, *waves


METHODS: dict[str, type[MetaLearner]] = {
    "maml": MAML,
    "leo": LEO,
    "meta-sgd": MetaSGD,
    "anil": ANIL,
    "cavia": CAVIA,
    "r2d2": R2D2,
    "alpaca": ALPaCA,
    "tnet": TNet,
    "cnp": CNP,
    "mixed-model": MixedModel,
}
TABLE_METHODS = ["mixed-model", "alpaca", "r2d2"]  # where none is named: their mean errs less than each
MEAN = "mean"  # of trained learners; a run of it is made from theirs
TASKS: dict[str, Callable[[Config], TaskGenerator]] = {
    "sinusoid": sinusoid,
    "sine-line": sine_line,
    "damped": damped,
    "five": five,
    "gp": gaussian_process,
    "table": table,
}

# which settings each of these families reads; another family of formulas reads FORMULA
FORMULA = ("X_MIN", "X_MAX", "NOISE_STD", "EVAL_TASKS", "EVAL_QUERY_SAMPLES", "VALIDATION_TASKS")
WAVES = ("AMPLITUDE_MIN", "AMPLITUDE_MAX", "PHASE_MIN", "PHASE_MAX")
LINES = ("SLOPE_MIN", "SLOPE_MAX", "INTERCEPT_MIN", "INTERCEPT_MAX")
TABLE = (
    "DATA",
    "COLUMNS",
    "SUPPORT_FROM",
    "TRAIN_SHARE",
    "VALIDATION_SHARE",
    "TEST_SHARE",
    "FOLDS",
    "SPLIT_SEED",
    "EVAL_REPEATS",
)
PROCESS = ("GP_KERNEL", "GP_LENGTH", "GP_SCALE", "GP_PERIOD")
TASK_SETTINGS = {"sinusoid": FORMULA + WAVES, "sine-line": FORMULA + WAVES + LINES, "gp": FORMULA + PROCESS, "table": TABLE}

TASK_DEFAULTS: dict[str, dict[str, Any]] = {
    "sine-line": {"NOISE_STD": 0.3, "SUPPORT_SAMPLES": 5},  # as Rusu et al. 2019
    "damped": {"X_MIN": 0.0, "X_MAX": 10.0},
    "five": {"NOISE_STD": 0.3},
    "gp": {"X_MIN": -2.0, "X_MAX": 2.0, "NOISE_STD": 0.1},
}
PAIR_DEFAULTS: dict[tuple[str, str], dict[str, Any]] = {
    # lines reach 18, four times as far as sinusoids: without a bound, 5 points send a few test tasks off for good
    ("maml", "sine-line"): {"INNER_GRADIENT_CLIP": 300.0},
    ("r2d2", "sinusoid"): {"META_LEARNING_RATE": 0.005},
    # trained for the gradients that are taken: a few percent less error than ten of a network trained for one
    ("maml", "table"): {"INNER_STEPS": 5, "EVAL_STEPS": 5, "INNER_LEARNING_RATE": 0.01},
    ("meta-sgd", "table"): {"INNER_STEPS": 5, "EVAL_STEPS": 5, "INNER_GRADIENT_CLIP": 10.0},  # it diverges without
    ("anil", "table"): {"INNER_STEPS": 5, "EVAL_STEPS": 5},
    ("cavia", "table"): {"INNER_STEPS": 5, "EVAL_STEPS": 5},
    # one layer of smooth units beside the splines: two err as little, ReLU more in forecasts
    ("alpaca", "table"): {
        **{"ALPACA_SPLINES": True, "ACTIVATION": "tanh", "HIDDEN_LAYERS": 1, "META_LEARNING_RATE": 0.003, "EVAL_STEPS": 1}
    },
    ("r2d2", "table"): {"EVAL_STEPS": 1},
    # more query points, which cost LEO little, and less weight of the KL term: a tenth less error, about what seeds differ by;
    # with Muon half the steps leave as little error as with Adam, after one gradient half of it (no gain on tables and lines)
    ("leo", "sinusoid"): {"QUERY_SAMPLES": 40, "LEO_KL_WEIGHT": 1e-5, "META_OPTIMISER": "muon", "EPOCHS": 24},
    # Noise of variance 0.09 weighs the error of Q points against the KL term with 2 * 0.09 / Q; 0.01 errs less than 0.02. All
    # gradients are taken in z: five noisy points say too little about 1761 weights, and samples lose what tells them apart.
    ("leo", "sine-line"): {"QUERY_SAMPLES": 40, "LEO_KL_WEIGHT": 0.01, "EPOCHS": 80, "INNER_STEPS": 5, "EVAL_STEPS": 5},
}


def defaults(method: str, tasks: str, generator: TaskGenerator | None = None, shots: int | None = None) -> dict[str, Any]:
    """Settings that suit a method on a task family better than the shared defaults, and on these tasks of it.

    `shots` is the SUPPORT_SAMPLES that was asked for, where it was.
    """
    found = METHODS[method].defaults | TASK_DEFAULTS.get(tasks, {}) | PAIR_DEFAULTS.get((method, tasks), {})
    found |= generator.defaults(shots) if generator else {}
    without_effect = unused(method, tasks)
    suitable = {key: value for key, value in found.items() if key not in without_effect}
    return suitable | (generator.implied_settings() if generator else {})


def tasks_of(name: str, config: Config) -> TaskGenerator:
    """The tasks of a family, in usual units. Raises `RunError` where they can't be made."""
    generator = TASKS[name](config)
    return in_usual_units(generator) if isinstance(generator, FunctionFamily) else generator


def parse_checkpoint(state: Mapping[str, Any], where: Path) -> tuple[str, str, dict[str, Any]]:
    """The method, tasks and settings that a checkpoint names; raises `RunError` where they are unknown."""
    method, tasks, settings = (state.get(name) for name in ("method", "tasks", "config"))
    if method not in [*METHODS, MEAN] or tasks not in list(TASKS) or not isinstance(settings, dict):
        raise RunError(f"{where} can't be continued (got method {method!r}, tasks {tasks!r}; expected known ones)")
    return method, tasks, settings


def restored(state: Mapping[str, Any], method: str, config: Config, fold: int | None = None) -> MetaLearner:
    """The learner of a checkpoint, or what was trained without a fold; raises what Python raises where it is not one."""
    if method == MEAN:
        configs = [Config.resolve(part["config"], {"DEVICE": config.DEVICE}) for part in state["members"]]
        members = [restored(part, part["method"], own, fold) for part, own in zip(state["members"], configs, strict=True)]
        return Mean(members, [own.EVAL_STEPS for own in configs], state["weights"])
    learner = METHODS[method].from_config(config, stream(0, "weights"))
    learner.load_state_dict(state["meta_parameters"] if fold is None else state["finished"][fold])
    if not all(parameter.isfinite().all() for parameter in learner.parameters()):
        raise ValueError("numbers that are not finite")
    return in_one_vector(learner.to(resolve_device(config.DEVICE)))


def mean_state(states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The checkpoint of the mean of runs on the same tasks, from theirs; each method weighs the same, whatever its seeds.

    Raises `RunError` for runs on other tasks or splits.
    """
    tasks, first = states[0]["tasks"], states[0].get("data", {})
    for state in states:
        digests = [state.get("data", {}).get(name) == first.get(name) for name in ("points_sha256", "splits_sha256")]
        if state["method"] == MEAN or state["tasks"] != tasks or not all(digests):
            got = f"{state['method']} on {state['tasks']}"
            raise RunError(
                f"the mean is of trained methods on the same tasks (got {got}; expected runs on one table and split)"
            )
    methods = [state["method"] for state in states]
    kept = ("method", "config", "meta_parameters", "finished")
    members = [{name: state[name] for name in kept if name in state} for state in states]
    weights = [1 / len(set(methods)) / methods.count(method) for method in methods]
    curve = next((state["mean_curve"] for state in states if state.get("mean_curve")), None)  # better than one poor prior
    about = {"method": MEAN, "tasks": tasks, "config": states[0]["config"] | {"EVAL_STEPS": 1}, "data": dict(first)}
    return about | {"members": members, "weights": weights, "mean_curve": curve}


def settings_read(name: str) -> tuple[str, ...]:
    """The keys that a method or a task family reads, beside those that every run reads."""
    if name not in METHODS:
        return TASK_SETTINGS.get(name, FORMULA)
    return METHODS[name].settings + (() if METHODS[name].is_fitted() else keys_for("trained"))


def unused(method: str, tasks: str) -> set[str]:
    """The keys without an effect on a method and a task family: those that only others read."""
    read_by_some = {key for name in (*METHODS, *TASKS) for key in settings_read(name)}
    return read_by_some - {*settings_read(method), *settings_read(tasks)}

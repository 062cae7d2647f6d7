"""What MAML and LEO have to be better than, on the same frozen test tasks; each comes out as a `comparison.Entry`.

* random: a network before any training, fine-tuned;
* pretrained: one network fitted to all tasks at once (MAML without an inner step), fine-tuned;
* oracle: a network that is told the true amplitude and phase, and has nothing to adapt to.

The first two are fine-tuned with the step size that is best on the validation tasks. This file refuses to know how
runs are trained, and what is made of the entries.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from runs import OracleTaskGenerator  # first: it puts the project on the path

from analysis.comparison import Entry
from commands.runs import build
from config import Config
from dataset import Points
from evaluation import errors, predict
from experiment import Experiment
from runtime.storage import read_checkpoint

# Wide enough that the best one is never at an end: from 0.02 on some tasks diverge.
STEP_SIZES = (0.0003, 0.0005, 0.001, 0.002, 0.003, 0.005, 0.01, 0.02)


class Tuned(NamedTuple):
    """A fine-tuned baseline: its entry, and for each K the step size and the mean validation errors it was chosen by."""

    entry: Entry
    step_sizes: dict[int, float]  # shots -> step size
    validation: dict[int, dict[float, float]]  # shots -> step size -> error after the last gradient


def load_best(directory: Path, changes: Mapping[str, Any] | None = None) -> Experiment:
    """A finished run's experiment with its best checkpoint, to be judged but not trained; `changes` to its settings."""
    state = read_checkpoint(directory / "checkpoints" / "best.pt")
    config = Config.resolve(state["config"], {"COMPILE": "never"}, changes or {})
    experiment = build(state["method"], state["tasks"], config)
    experiment.trainer.load(state)
    return experiment


def tuned(label: str, build_at: Callable[[float], Experiment], step_sizes: Sequence[float] = STEP_SIZES) -> Tuned:
    """Fine-tune with the best step size for each K, by the mean validation error after the last gradient.

    Args:
        build_at: the network at a given inner step size.
    """
    experiments = {size: build_at(size) for size in step_sizes}
    config = next(iter(experiments.values())).config
    found, chosen, validation = {}, {}, {}
    for shots in config.EVAL_SHOTS:
        validation[shots] = {
            size: float(errors(one.learner, one.held_out("validation", shots)[1], config.EVAL_STEPS)[:, -1].mean())
            for size, one in experiments.items()
        }
        known = {size: error for size, error in validation[shots].items() if np.isfinite(error)}
        chosen[shots] = min(known, key=known.__getitem__)
        best = experiments[chosen[shots]]
        found[shots] = errors(best.learner, best.held_out("test", shots)[1], config.EVAL_STEPS)
    return Tuned(Entry(label, found), chosen, validation)


def tuning(config: Config, step_size: float) -> dict[str, Any]:
    """Settings for one candidate. As many validation as test tasks: a step too long ruins one task in a thousand."""
    return {"COMPILE": "never", "INNER_LEARNING_RATE": step_size, "VALIDATION_TASKS": config.EVAL_TASKS}


def random_start(config: Config, step_sizes: Sequence[float] = STEP_SIZES) -> Tuned:
    """The network from which MAML's training with `config` starts, fine-tuned."""

    def build_at(size: float) -> Experiment:
        return build("maml", "sinusoid", Config.resolve(config.to_dict(), tuning(config, size)))

    return tuned("random", build_at, step_sizes)


def pretrained(directory: Path, config: Config, step_sizes: Sequence[float] = STEP_SIZES) -> Tuned:
    """The network of a run without inner steps, fine-tuned and judged as MAML with `config` is."""
    return tuned("pretrained", lambda size: load_best(directory, tuning(config, size)), step_sizes)


def oracle(directory: Path, config: Config) -> Entry:
    """The oracle of a run on `OracleTaskGenerator`, on the test tasks of `config`: the same error after any gradients."""
    experiment = load_best(directory)
    family = experiment.generator
    assert isinstance(family, OracleTaskGenerator)
    tasks_of = build("maml", "sinusoid", Config.resolve(config.to_dict(), {"COMPILE": "never"}))
    found = {}
    for shots in config.EVAL_SHOTS:
        params, tasks = tasks_of.held_out("test", shots)
        nothing = Points(np.zeros((len(params), 1, 3), np.float32), np.zeros((len(params), 1, 1), np.float32))
        predictions, _ = predict(experiment.learner, nothing, family.inputs(params, tasks.query.x), 0)  # [T, 1, Q]
        error = np.square(predictions[:, 0] - tasks.query.y[..., 0], dtype=np.float64).mean(1)
        found[shots] = np.repeat(error[:, None], config.EVAL_STEPS + 1, axis=1)
    return Entry("oracle", found)

"""The baselines that the methods are compared with, on the same test tasks.

* random: the untrained network, fine-tuned;
* pretrained: one network fitted to all tasks at once (MAML without an inner step), fine-tuned;
* oracle: a network that has the true amplitude and phase as inputs, and does not adapt.

The first two are fine-tuned with the step size that is best on the validation tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import registry
from benchmarks.paper.oracle import OracleTaskGenerator
from benchmarks.project import Experiment, build, errors, load_best
from config import Config
from dataset import Points
from evaluation.comparison import Entry
from learner import predict_tasks

# Wide enough that the best one is never at an end: from 0.02 on some tasks diverge.
STEP_SIZES = (0.0003, 0.0005, 0.001, 0.002, 0.003, 0.005, 0.01, 0.02)


class FineTuned(NamedTuple):
    """A fine-tuned baseline: its test errors, and for each K the step size and the validation errors it was chosen by."""

    entry: Entry
    step_sizes: dict[int, float]  # shots -> step size
    validation: dict[int, dict[float, float]]  # shots -> step size -> mean error after the last gradient


def fine_tuned(label: str, build_at: Callable[[float], Experiment], step_sizes: Sequence[float] = STEP_SIZES) -> FineTuned:
    """Fine-tune with the best step size for each K, by the mean validation error after the last gradient.

    Args:
        build_at: the network with a given inner step size.
    """
    experiments = {size: build_at(size) for size in step_sizes}
    config = next(iter(experiments.values())).config
    test_errors, chosen, validation = {}, {}, {}
    for shots in config.EVAL_SHOTS:
        validation[shots] = {
            size: float(errors(one.learner, one.held_out("validation", shots)[1], config.EVAL_STEPS)[:, -1].mean())
            for size, one in experiments.items()
        }
        finite = {size: error for size, error in validation[shots].items() if np.isfinite(error)}
        chosen[shots] = min(finite, key=finite.__getitem__)
        best = experiments[chosen[shots]]
        test_errors[shots] = errors(best.learner, best.held_out("test", shots)[1], config.EVAL_STEPS)
    return FineTuned(Entry(label, test_errors), chosen, validation)


def candidate(config: Config, step_size: float) -> dict[str, Any]:
    """Settings for one step size. As many validation as test tasks: a step too long ruins one task in a thousand."""
    return {"COMPILE": "never", "INNER_LEARNING_RATE": step_size, "VALIDATION_TASKS": config.EVAL_TASKS}


def random_start(config: Config, step_sizes: Sequence[float] = STEP_SIZES) -> FineTuned:
    """The network from which MAML's training with `config` starts, fine-tuned."""

    def build_at(size: float) -> Experiment:
        return build("maml", "sinusoid", Config.resolve(config.to_dict(), candidate(config, size)))

    return fine_tuned("random", build_at, step_sizes)


def pretrained(directory: Path, config: Config, step_sizes: Sequence[float] = STEP_SIZES) -> FineTuned:
    """The network of a run without inner steps, fine-tuned and evaluated as MAML with `config` is."""
    return fine_tuned("pretrained", lambda size: load_best(directory, candidate(config, size)), step_sizes)


def oracle(directory: Path, config: Config) -> Entry:
    """A run on `OracleTaskGenerator`, evaluated on the test tasks of `config`: the same error after any number of gradients."""
    experiment = load_best(directory)
    family = experiment.generator
    assert isinstance(family, OracleTaskGenerator)
    sinusoids = registry.TASKS["sinusoid"](config)
    test_errors = {}
    for shots in config.EVAL_SHOTS:
        params, tasks, _ = sinusoids.held_out("test", config.EVAL_TASKS, shots, config.EVAL_QUERY_SAMPLES)
        support = Points(np.zeros((len(params), 1, 3), np.float32), np.zeros((len(params), 1, 1), np.float32))  # not used
        predictions, _ = predict_tasks(experiment.learner, support, family.inputs(params, tasks.query.x), 0)  # [T, 1, Q]
        error = np.square(predictions[:, 0] - tasks.query.y[..., 0], dtype=np.float64).mean(1)
        test_errors[shots] = np.repeat(error[:, None], config.EVAL_STEPS + 1, axis=1)  # [T, S+1]
    return Entry("oracle", test_errors)

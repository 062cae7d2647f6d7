"""The sine-line tasks on which a method errs most, beside the exact posterior there: what they have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from benchmarks.common import table
from benchmarks.paper.sampling import posterior_curves
from dataset import Points, SineLineTaskGenerator, stream
from evaluation.errors import errors
from training.experiment import Experiment

MOST = 20


class WorstTasks(NamedTuple):
    """Some test tasks of a run, in numbers; errors are against the noise-free function."""

    seed: int
    share: float  # of the mean error over all test tasks
    error: float
    posterior_error: float  # of the exact posterior's mean, on the same tasks
    other_error: float  # the run's, on all other tasks
    other_posterior_error: float  # the exact posterior's mean, on as many others
    width: float  # range of the support inputs
    other_width: float
    wrong_family: int  # tasks on which the exact posterior gives the other family more than half
    count: int


def worst_tasks(experiment: Experiment, shots: int) -> WorstTasks:
    """The `MOST` test tasks (or half of them) with the largest error after the last gradient, of a run on sine-line."""
    generator = experiment.generator
    assert isinstance(generator, SineLineTaskGenerator)
    params, tasks, _ = experiment.held_out("test", shots)
    found = errors(experiment.learner, tasks, experiment.config.EVAL_STEPS)[:, -1]
    order = np.argsort(-found, kind="stable")
    most = min(MOST, len(order) // 2)
    worst, others = order[:most], order[most:]

    def posterior(chosen: np.ndarray) -> tuple[float, np.ndarray]:
        support = Points(tasks.support.x[chosen], tasks.support.y[chosen])
        curves, drawn = posterior_curves(generator, support, tasks.query.x[chosen], stream(0, "samples", 2))
        right = (drawn[:, :, 0] == params[chosen, None, 0]).mean(1)
        return float(np.square(curves.mean(1) - tasks.query.y[chosen, :, 0]).mean()), right

    error, right = posterior(worst)
    random = stream(0, "samples", 6).permutation(others)[:most]
    widths = np.ptp(tasks.support.x[:, :, 0], axis=1)
    return WorstTasks(
        experiment.config.RANDOM_SEED,
        float(found[worst].sum() / found.sum()),
        float(found[worst].mean()),
        error,
        float(found[others].mean()),
        posterior(random)[0],
        float(widths[worst].mean()),
        float(widths[others].mean()),
        int((right < 0.5).sum()),
        len(worst),
    )


def worst_table(found: Sequence[WorstTasks]) -> str:
    rows = [
        [
            str(one.seed),
            f"{one.share:.0%}",
            f"{one.error:.3g} / {one.other_error:.3g}",
            f"{one.posterior_error:.3g} / {one.other_posterior_error:.3g}",
            f"{one.width:.1f} / {one.other_width:.1f}",
            f"{one.wrong_family} of {one.count}",
        ]
        for one in found
    ]
    header = ["seed", "share of the mean error", "LEO's error", "exact posterior's error", "range of support inputs"]
    return table([*header, "posterior prefers the wrong family"], rows)

"""Adapt to many tasks without a graph, by the `adapt` that training uses: predictions, samples, errors.

Independent of any method by name, of the trainer, and of files, plots and logs.
"""

from __future__ import annotations

import numpy as np

from dataset import HeldOut, Points, Task
from learner import MetaLearner, predict_tasks
from system.threads import EVAL_CHUNK


def errors(learner: MetaLearner, task: Task, steps: int) -> np.ndarray:
    """Mean squared error [T, steps + 1] on the query points after 0 to `steps` support gradients; NaN targets don't count.

    It is infinite where a prediction is NaN: the task diverged.
    """
    results = []
    for first in range(0, len(task.query.x), EVAL_CHUNK):
        support, query = (Points(*(part[first : first + EVAL_CHUNK] for part in points)) for points in task)
        predictions, _ = predict_tasks(learner, support, query.x, steps)
        with np.errstate(over="ignore", invalid="ignore"):  # a diverged task is a result, not a warning
            squares = np.square(predictions - query.y[:, None, :, 0], dtype=np.float64)  # [T, S+1, N]
            squares[np.isnan(predictions)] = np.inf
            counted = ~np.isnan(query.y[..., 0])
            results.append(np.where(counted[:, None], squares, 0).sum(-1) / counted.sum(-1)[:, None])
    return np.concatenate(results)


def held_out_errors(learner: MetaLearner, held_out: HeldOut, steps: int) -> np.ndarray:
    """Mean squared error [T, steps + 1] over all query points of each task; NaN for a task that is not judged."""
    rows, owners = errors(learner, held_out.tasks, steps), held_out.owners
    if owners is None:
        return rows
    points = (~np.isnan(held_out.tasks.query.y[..., 0])).sum(1)
    sums = np.zeros((len(held_out.params), steps + 1))
    with np.errstate(over="ignore", invalid="ignore"):
        np.add.at(sums, owners, rows * points[:, None])
        return sums / np.bincount(owners, points, len(sums))[:, None]

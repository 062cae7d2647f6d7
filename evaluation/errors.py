"""Adapt to held-out tasks, once each, by the `adapt` that training uses: errors, residuals and codes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from dataset import HeldOut, Points, Task, TaskGenerator
from evaluation.intervals import Residuals, difficulty_features
from evaluation.statistics import geometric_mean
from learner import MetaLearner, adapt_tasks, predict_tasks
from system.threads import EVAL_CHUNK

INTERVAL_TASKS = 500  # most from a formula that intervals are calibrated or evaluated on: coverage is sure to a hundredth
INTERVAL_POINTS = 20  # most of each task from a formula; tasks from a table have all their points


class Adapted(NamedTuple):
    """What adapting once to the T tasks of a split gave."""

    errors: np.ndarray  # [T, S+1], NaN for a task that can't be evaluated
    codes: np.ndarray  # [T, Z], NaN for a task that can't be evaluated
    residuals: Residuals  # what intervals are made of


def errors(learner: MetaLearner, task: Task, steps: int) -> np.ndarray:
    """Mean squared error [T, steps + 1] on the query points after 0 to `steps` support gradients; NaN targets don't count.

    It is infinite where a prediction is NaN: the task diverged.
    """
    found = [squared_errors(predict_tasks(learner, part.support, part.query.x, steps)[0], part.query) for part in _chunks(task)]
    return np.concatenate(found)


def held_out_errors(learner: MetaLearner, held_out: HeldOut, steps: int) -> np.ndarray:
    """Mean squared error [T, steps + 1] over all query points of each task; NaN for a task that can't be evaluated."""
    return _by_task(errors(learner, held_out.tasks, steps), held_out)


def validation_error(errors: np.ndarray, held_out: HeldOut) -> float:
    """What a checkpoint and a method are chosen by, from errors [T, S+1] on validation tasks: the one after the last gradient.

    It is the mean over tasks, and over a table's subjects the geometric mean: one hard subject among ten would decide a mean.
    """
    evaluated = errors[held_out.evaluable]
    with np.errstate(over="ignore"):  # a diverged task is a result
        return float(evaluated.mean(0)[-1]) if held_out.owners is None else geometric_mean(evaluated[:, -1])


def adapt_held_out(
    learner: MetaLearner, generator: TaskGenerator, held_out: HeldOut, steps: int, rng: np.random.Generator
) -> Adapted:
    """Errors as of `held_out_errors`, with codes and residuals from the same adaptation.

    Args:
        rng: draws the noise of the measurements that intervals have to hold.
    """
    found, codes, features, last = [], [], [], []
    most = INTERVAL_POINTS if held_out.owners is None else None  # None: all of them
    for support, query in _chunks(held_out.tasks):
        adapted = adapt_tasks(learner, support, query.x, steps)
        found.append(squared_errors(adapted.predictions, query))
        codes.append(adapted.codes)
        path, std = adapted.predictions[..., :most], adapted.std[:, :most]
        features.append(difficulty_features(path, adapted.at_support, support, query.x[:, :most], std))
        last.append(path[:, -1])
    rows = slice(INTERVAL_TASKS if held_out.owners is None else None)
    y, owners = held_out.tasks.query.y[rows, :most, 0], held_out.row_owners
    prediction = np.concatenate(last)[rows].astype(float)
    prediction[np.isnan(prediction)] = np.inf  # a diverged task is evaluated, unlike padding
    measured = generator.measured(y, rng) - prediction
    residuals = Residuals(np.concatenate(features)[rows], y - prediction, measured, owners[rows])
    return Adapted(_by_task(np.concatenate(found), held_out), _codes_by_task(np.concatenate(codes), held_out), residuals)


def squared_errors(predictions: np.ndarray, query: Points) -> np.ndarray:
    """Mean squared error [T, S+1] of predictions [T, S+1, N] over the query targets that are not NaN."""
    with np.errstate(over="ignore", invalid="ignore"):  # a diverged task is a result, not a warning
        squares = np.square(predictions - query.y[:, None, :, 0], dtype=np.float64)  # [T, S+1, N]
        squares[np.isnan(predictions)] = np.inf
        counted = ~np.isnan(query.y[..., 0])
        return np.where(counted[:, None], squares, 0).sum(-1) / counted.sum(-1)[:, None]


def _chunks(task: Task) -> Iterator[Task]:
    """The tasks, as many at a time as are adapted together."""
    for first in range(0, len(task.query.x), EVAL_CHUNK):
        yield Task(*(Points(*(part[first : first + EVAL_CHUNK] for part in points)) for points in task))


def _by_task(rows: np.ndarray, held_out: HeldOut) -> np.ndarray:
    """Errors [T, S+1] of tasks from those of their rows [B, S+1], each of which weighs as many points as it has."""
    owners = held_out.owners
    if owners is None:
        return rows
    points = (~np.isnan(held_out.tasks.query.y[..., 0])).sum(1)
    sums = np.zeros((len(held_out.params), rows.shape[1]))
    with np.errstate(over="ignore", invalid="ignore"):
        np.add.at(sums, owners, rows * points[:, None])
        return sums / np.bincount(owners, points, len(sums))[:, None]


def _codes_by_task(rows: np.ndarray, held_out: HeldOut) -> np.ndarray:
    """Codes [T, Z] of tasks: those of each task's first row [B, Z]."""
    codes = np.full((len(held_out.params), rows.shape[1]), np.nan, rows.dtype)
    codes[held_out.row_owners[::-1]] = rows[::-1]
    return codes

"""Baselines: what a statistician would predict from the same support points, without any network.

They know the training tasks alone, and predict for rows of points as a network does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import torch

from config import Config
from dataset import Array, HeldOut, Points, TaskGenerator, stream, training_points
from learner import predict_tasks
from methods.mixed_model import Estimate, MixedModel, Splines, choose_mixed_model, spline_features

Baseline = Callable[[Points, Array], Array]  # support [B, K, D], [B, K, 1] and places x [B, N, D] -> predictions [B, N]

MOST_FUNCTIONS = 300  # of formulas: the mean of so many has an error 1/300 of their variance above the best one's
CHUNK = 20_000  # points predicted at a time
MIXED_MODEL, CONSTANT, MEAN_CURVE = "linear mixed model", "one number for all", "mean curve, without points"


def baselines(generator: TaskGenerator) -> dict[str, Baseline]:
    """Every baseline that suits the family, by name, fitted to its training tasks."""
    if generator.measurements("train") is None:
        known: dict[str, Baseline] = {"best single function": mean_function(generator)}
        origin = np.zeros((1, 1, generator.input_dim))
        if generator.posterior(Points(origin, origin[..., :1]), origin) is not None:
            known["exact posterior"] = cast(Baseline, generator.posterior)
        return known
    train = training_points(generator)
    curve, level = mean_curve(train), np.concatenate([points.y for points in train]).mean()
    return {
        CONSTANT: lambda _, x: np.full(x.shape[:2], level),
        MEAN_CURVE: lambda _, x: predict_tasks(curve, Points(x[:, :0], x[:, :0, :1]), x, 0)[0][:, 0],
        "mean curve, shifted": shifted_mean_curve(curve),
        "nearest training subject": nearest_subject(train),
        MIXED_MODEL: mixed_model(*choose_mixed_model(train)),
    }


def baseline_errors(predict: Baseline, held_out: HeldOut) -> Array:
    """Mean squared error [T] over all query points of each task, as of a network; NaN for a task that is not judged."""
    (support, query), tasks = held_out.tasks, len(held_out.params)
    owners = held_out.row_owners
    counted = ~np.isnan(query.y[..., 0])
    sums = np.zeros(len(counted))
    rows = max(1, CHUNK // query.x.shape[1])
    for first in range(0, len(sums), rows):
        here = slice(first, first + rows)
        found = predict(Points(*(part[here].astype(float) for part in support)), query.x[here].astype(float))
        sums[here] = np.square(found - query.y[here, :, 0], where=counted[here], out=np.zeros(found.shape)).sum(1)
    with np.errstate(invalid="ignore"):
        return np.bincount(owners, sums, tasks) / np.bincount(owners, counted.sum(1), tasks)


# ---- the training tasks' curves


def mean_function(generator: TaskGenerator) -> Baseline:
    """The mean of MOST_FUNCTIONS functions as in training: nothing that ignores the support points has a lower error."""
    params = generator.split("train", MOST_FUNCTIONS, 0)[:MOST_FUNCTIONS]

    def predict(support: Points, x: Array) -> Array:
        at = x.astype(np.float32)
        values: Any = [generator.truth(np.broadcast_to(row, (len(at), *row.shape)), at) for row in params]
        return np.stack(values)[..., 0].mean(0)

    return predict


def mean_curve(train: Sequence[Points]) -> MixedModel:
    """A spline through all training points by least squares, the same for every task: a mixed model without random effects."""
    x, y = (torch.from_numpy(np.concatenate(parts)) for parts in zip(*train, strict=True))
    splines = spline_features(x, 10)
    weights = (splines(x).T @ y)[:, 0] / len(x)  # the features are orthonormal
    return _mixed_model(splines, Estimate(weights, weights.new_zeros(len(weights), len(weights)), 1.0, -np.inf))


def shifted_mean_curve(curve: MixedModel) -> Baseline:
    """The mean curve, moved up or down to the mean of the support points, if there are any."""

    def predict(support: Points, x: Array) -> Array:
        at_support, at_x = (predict_tasks(curve, support, part, 0)[0][:, 0] for part in (support.x, x))
        shifts = support.y[..., 0] - at_support  # [B, K]
        return at_x + shifts.sum(1, keepdims=True) / max(1, shifts.shape[1])

    return predict


def nearest_subject(train: Sequence[Points]) -> Baseline:
    """The curve of the training task with the lowest squared error on the support points.

    A task's curve joins its points by straight lines; of several inputs it has the value at the nearest point.
    """

    def curve(points: Points) -> Callable[[Array], Array]:
        order = np.argsort(points.x[:, 0], kind="stable")
        known, values = points.x[order], points.y[order, 0]
        if known.shape[1] == 1:
            return lambda x: np.interp(x[..., 0], known[:, 0], values)
        lengths = np.square(known).sum(1)
        return lambda x: values[(lengths - 2 * x @ known.T).argmin(-1)]

    curves = [curve(points) for points in train]

    def predict(support: Points, x: Array) -> Array:
        if not support.x.shape[1]:  # nobody is nearest: the mean of all
            return np.mean([own(x) for own in curves], axis=0)
        distances = [np.square(own(support.x) - support.y[..., 0]).sum(1) for own in curves]  # [M, B]
        chosen = np.argmin(distances, axis=0)
        result = np.empty(x.shape[:2])
        for place in np.unique(chosen):
            result[chosen == place] = curves[place](x[chosen == place])
        return result

    return predict


def mixed_model(splines: Splines, estimate: Estimate) -> Baseline:
    """The linear mixed model, as the method of that name has it."""
    learner = _mixed_model(splines, estimate)
    return lambda support, x: predict_tasks(learner, support, x, 1)[0][:, -1]


def _mixed_model(splines: Splines, estimate: Estimate) -> MixedModel:
    learner = MixedModel(Config(INPUT_DIM=len(splines.knots)), stream(0, "weights"))
    learner.keep(splines, estimate)
    return learner

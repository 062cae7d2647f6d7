"""Baselines: what a statistician would predict from the same support points, without any network.

They know the training tasks alone, and predict for rows of points as a network does. Numpy only; independent of families
by name, of learners and of the disk.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from dataset import Array, HeldOut, Points, TaskGenerator

Baseline = Callable[[Points, Array], Array]  # support [B, K, D], [B, K, 1] and places x [B, N, D] -> predictions [B, N]
Features = Callable[[Array], Array]  # x [..., D] -> [..., F]

MOST_TASKS, MOST_POINTS = 200, 100  # training tasks, and points of each, that a baseline looks at: bounds time and memory
MOST_FUNCTIONS = 300  # of formulas: the mean of so many has an error 1/300 of their variance above the best one's
MOST_FEATURES = 16
CHUNK = 20_000  # points predicted at a time


def baselines(generator: TaskGenerator) -> dict[str, Baseline]:
    """Every baseline that suits the family, by name, fitted to its training tasks.

    Of measured tasks at most MOST_TASKS with MOST_POINTS points each are looked at, a fixed random choice.
    """
    measured = generator.measurements("train")
    if measured is None:
        return {"best single function": mean_function(generator)}
    rng = np.random.default_rng(0)
    few = [measured[place] for place in np.sort(rng.permutation(len(measured))[:MOST_TASKS])]
    kept = [np.sort(rng.permutation(len(points.y))[:MOST_POINTS]) for points in few]
    train = [Points(*(part[rows].astype(float) for part in points)) for points, rows in zip(few, kept, strict=True)]
    return {
        "mean curve, shifted": shifted_mean_curve(train),
        "nearest training subject": nearest_subject(train),
        "linear mixed model": choose_mixed_model(train).predict,
    }


def baseline_errors(predict: Baseline, held_out: HeldOut) -> Array:
    """Mean squared error [T] over all query points of each task, as of a network; NaN for a task that is not judged."""
    (support, query), tasks = held_out.tasks, len(held_out.params)
    owners = np.arange(tasks) if held_out.owners is None else held_out.owners
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


def spline_features(x: Array, knots: int) -> Features:
    """Orthonormal features on the training points `x` [N, D]: constant, and a natural cubic spline of each input.

    The knots are quantiles, from the lowest to the highest point; beyond these a spline goes on as a straight line
    (Hastie, Tibshirani and Friedman 2009, equations 5.4 and 5.5). Of collinear features the needed ones are kept, at most 16.
    """
    places = [np.unique(np.quantile(column, np.linspace(0, 1, knots))) for column in x.T]

    def raw(x: Array) -> Array:
        columns = [np.ones(x.shape[:-1])]
        for dimension, at in enumerate(places):
            value = x[..., dimension, None]
            cubes = (np.maximum(value - at[:-1], 0) ** 3 - np.maximum(value - at[-1:], 0) ** 3) / (at[-1] - at[:-1])
            columns += [value[..., 0], *np.moveaxis(cubes[..., :-1] - cubes[..., -1:], -1, 0)]
        return np.stack(columns, -1)

    features = raw(x)
    scale = np.linalg.norm(features, axis=0) + 1e-300
    _, singular, axes = np.linalg.svd(np.linalg.qr(features / scale, mode="r"))
    kept = (singular > 1e-7 * singular[0])[:MOST_FEATURES].nonzero()[0]
    turn = axes[kept].T / singular[kept] / scale[:, None] * np.sqrt(len(x))
    return lambda x: raw(x) @ turn


def mean_function(generator: TaskGenerator) -> Baseline:
    """The mean of MOST_FUNCTIONS functions as in training: nothing that ignores the support points has a lower error."""
    params = generator.split("train", MOST_FUNCTIONS, 0)[:MOST_FUNCTIONS]

    def predict(support: Points, x: Array) -> Array:
        at = x.astype(np.float32)
        values: Any = [generator.truth(np.broadcast_to(row, (len(at), *row.shape)), at) for row in params]
        return np.stack(values)[..., 0].mean(0)

    return predict


def shifted_mean_curve(train: Sequence[Points]) -> Baseline:
    """A spline through all training points, moved up or down to the mean of the support points."""
    x, y = (np.concatenate(parts) for parts in zip(*train, strict=True))
    features = spline_features(x, 10)
    weights = features(x).T @ y / len(x)  # least squares: the features are orthonormal

    def predict(support: Points, x: Array) -> Array:
        shift = (support.y - features(support.x) @ weights).mean(1)  # [B, 1]
        return (features(x) @ weights)[..., 0] + shift

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
        distances = [np.square(own(support.x) - support.y[..., 0]).sum(1) for own in curves]  # [M, B]
        chosen = np.argmin(distances, axis=0)
        result = np.empty(x.shape[:2])
        for place in np.unique(chosen):
            result[chosen == place] = curves[place](x[chosen == place])
        return result

    return predict


# ---- the linear mixed model


class MixedModel(NamedTuple):
    """y = features(x) (beta + b) + noise, where b differs from task to task: Gaussian with mean 0 (Laird and Ware 1982)."""

    features: Features
    beta: Array  # [F, 1], fixed effects
    covariance: Array  # [F, F], of the random effects
    noise: float  # variance
    likelihood: float  # log of the marginal one, of the training points

    def predict(self, support: Points, x: Array) -> Array:
        """The best linear unbiased predictions: the mean given the support points (Robinson 1991)."""
        given = self.features(support.x)  # [B, K, F]
        spread = given @ self.covariance
        variance = spread @ given.swapaxes(1, 2) + self.noise * np.eye(given.shape[1])
        effects = self.beta + spread.swapaxes(1, 2) @ np.linalg.solve(variance, support.y - given @ self.beta)
        return (self.features(x) @ effects)[..., 0]


def fit_mixed_model(train: Sequence[Points], features: Features, steps: int = 200, tolerance: float = 0.01) -> MixedModel:
    """Maximum likelihood by EM, the fixed effects by generalised least squares (Laird and Ware 1982, section 4).

    Ends where a step raises the log likelihood by less than `tolerance`. Nothing is inverted that could be singular: there may
    be fewer tasks or points of a task than features. Orthonormal features, as from `spline_features`, start it well.
    """
    pairs = [(features(points.x), points.y) for points in train]
    gram = np.stack([given.T @ given for given, _ in pairs])  # [M, F, F]
    moment = np.stack([given.T @ y for given, y in pairs])  # [M, F, 1]
    square, count, unit = sum(float(np.square(y).sum()) for _, y in pairs), sum(len(y) for _, y in pairs), np.eye(gram.shape[1])
    beta = np.linalg.lstsq(gram.sum(0), moment.sum(0), rcond=None)[0]
    lowest = 1e-8 * square / count + 1e-30  # a variance of the noise of 0 would end it
    noise = max(lowest, (square - float((moment.sum(0) * beta).sum())) / count / 2)
    covariance, likelihood = unit * noise / len(unit), -np.inf
    for _ in range(steps):
        shrink = covariance @ np.linalg.inv(noise * unit + gram @ covariance)  # [M, F, F]; times `noise` b's covariance
        left = gram @ shrink
        beta = np.linalg.lstsq((gram - left @ gram).sum(0), (moment - left @ moment).sum(0), rcond=None)[0]
        rest = moment - gram @ beta
        effects = shrink @ rest  # [M, F, 1]
        squares = square - 2 * float((moment.sum(0) * beta).sum()) + float((beta.T @ gram.sum(0) @ beta).item())
        before, spread = likelihood, np.linalg.slogdet(unit + gram @ covariance / noise)[1].sum()
        likelihood = -(count * np.log(2 * np.pi * noise) + spread + (squares - float((rest * effects).sum())) / noise) / 2
        if likelihood - before < tolerance:
            break
        second = effects @ effects.swapaxes(1, 2) + noise * shrink  # E[b b']
        noise = max(lowest, (squares - 2 * float((rest * effects).sum()) + float((gram * second).sum())) / count)
        covariance = (second + second.swapaxes(1, 2)).mean(0) / 2
    return MixedModel(features, beta, covariance, noise, likelihood)


def choose_mixed_model(train: Sequence[Points]) -> MixedModel:
    """The mixed model with the number of knots, 2, 4, ... 12, up to where its information criterion gets worse.

    That is Schwarz's, with the number of tasks: they are what is independent. A model has F fixed effects, F (F + 1) / 2
    covariances and the noise; fewer features than tasks.
    """
    x, best, highest = np.concatenate([points.x for points in train]), None, -np.inf
    for knots in range(2, 13, 2):
        features = spline_features(x, knots)
        size = features(x[:1]).shape[-1]
        if best is not None and not len(best.beta) < size < len(train):
            break
        model = fit_mixed_model(train, features)
        criterion = 2 * model.likelihood - np.log(len(train)) * (size * (size + 1) / 2 + size + 1)
        if criterion <= highest:
            break
        best, highest = model, criterion
    assert best is not None
    return best

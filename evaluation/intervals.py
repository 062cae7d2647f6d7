"""Prediction intervals from residuals on validation tasks: calibrate, apply, evaluate. Arrays in, arrays and plain lists out.

The half-width at a point is a scale times a quantile. The scale follows how hard the point is (`difficulty_features`, by
ridge regression of the log residual), whatever the method. The quantile is that of residual / scale over validation tasks,
all of which weigh the same however many points they have (split conformal prediction for hierarchical data: Lee, Barber,
Willett 2023; Dunn, Wasserman, Ramdas 2022). All numbers are as the network sees them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from dataset import Points

LEVELS = np.arange(1, 200) / 200  # for which quantiles are kept; above the last one an interval is the whole line
FOLDS = 10
LINEAR, SQUARES = 10.0, 100.0  # ridge penalties, in numbers of tasks: with few tasks the squares hardly count
STD = 9  # the place of the learner's own standard deviation among the features
GROWING = [2, STD]  # features in proportion to which widths grow beyond what was seen: residuals after adapting, and the std
SURE = 100  # from so many tasks on, conformal quantiles exist up to 0.99; with fewer, plain quantiles are taken
FEW = 10  # with fewer tasks the scale is the learner's own standard deviation: a regression on them says nothing of others
LEVEL = 5  # standard deviations of the target that a prediction's level counts up to
LARGEST = 1e100  # of a residual: one beyond it counts as diverged
LOG_MEAN = 0.53  # exp(E log |e|) of a standard normal e
PIECE = 512  # rows of a product that starts no threads
Entry = Mapping[str, Any]  # what `calibrate` found for one K; plain numbers and lists
Calibration = Mapping[str, Entry]  # K -> its entry


class Residuals(NamedTuple):
    """What `calibrate` and `evaluate_intervals` are given, see there."""

    features: np.ndarray  # [B, N, F]
    clean: np.ndarray  # [B, N]
    measured: np.ndarray  # [B, N]
    owners: np.ndarray  # [B]


def joined_residuals(parts: Sequence[Residuals]) -> Residuals:
    """Those of different tasks, one after another, padded with NaN; of one part, itself."""
    if len(parts) == 1:
        return parts[0]
    widest = max(part.clean.shape[1] for part in parts)
    padded = []
    for part in parts:
        free = widest - part.clean.shape[1]
        features = np.pad(part.features, ((0, 0), (0, free), (0, 0)))
        padded.append([features, *(np.pad(one, ((0, 0), (0, free)), constant_values=np.nan) for one in part[1:3])])
    ends = np.cumsum([0, *(part.owners.max(initial=-1) + 1 for part in parts[:-1])])
    owners = np.concatenate([first + part.owners for first, part in zip(ends, parts, strict=True)])
    features, clean, measured = (np.concatenate(arrays) for arrays in zip(*padded, strict=True))
    return Residuals(features, clean, measured, owners)


def cross_calibrated(residuals: Residuals, sizes: Sequence[int]) -> list[Entry]:
    """For each of several parts of the rows, of these `sizes`, the calibration on all others."""
    part = np.repeat(np.arange(len(sizes)), sizes)
    return [calibrate(*(array[part != number] for array in residuals)) for number in range(len(sizes))]


def difficulty_features(
    path: np.ndarray, at_support: np.ndarray, support: Points, x: np.ndarray, std: np.ndarray
) -> np.ndarray:
    """How hard predictions at `x` [T, N, D] are: numbers of at least 0, not finite where adapting diverged; [T, N, 11].

    Root mean squares of the residuals on the support set before, halfway and after; how far the prediction moved in all, and
    since halfway; the distances to the two nearest support points; the largest coordinate; the prediction's size; `std`; and
    what grows with the prediction itself, as the spread of many measurements does with their level.

    Args:
        path, at_support: predictions after 0 to S gradients at x [T, S+1, N], and at the support points [T, S+1, K].
        support: x [T, K, D], y [T, K, 1].
        std: the posterior standard deviation that `learner.adapt_tasks` finds, [T, N].
    """
    steps = path.shape[1] - 1
    stages = [0, (steps + 1) // 2, steps]
    first, middle, last = np.moveaxis(path[:, stages].astype(float), 1, 0)
    near = np.full((2, *x.shape[:2]), np.inf)
    with np.errstate(over="ignore", invalid="ignore"):
        squares = np.square(at_support[:, stages].astype(float) - support.y[:, None, :, 0])  # [T, 3, K]
        residuals = np.sqrt(squares.sum(-1) / max(1, squares.shape[-1]))  # [T, 3]
        for point in range(support.x.shape[1]):
            distance = np.sqrt(np.square(x - support.x[:, point : point + 1], dtype=float).sum(-1))
            near[1] = np.minimum(near[1], np.maximum(near[0], distance))
            near[0] = np.minimum(near[0], distance)
        near[1] = np.where(np.isinf(near[1]), near[0], near[1])  # of a single point
        near[np.isinf(near)] = 0  # without any point
        moves = np.abs(last - first), np.abs(last - middle)
    rows = (np.broadcast_to(part[:, None], last.shape) for part in residuals.T)
    level = np.where(np.isfinite(last), np.exp(last.clip(-LEVEL, LEVEL)), np.inf)
    return np.stack([*rows, *moves, *near, np.abs(x).max(-1).astype(float), np.abs(last), std, level], axis=-1)


def calibrate(features: np.ndarray, clean: np.ndarray, measured: np.ndarray, owners: np.ndarray) -> dict[str, Any]:
    """One K's calibration, as plain lists.

    Args:
        features: [B, N, F], at least 0; not finite where adapting diverged.
        clean: residuals [B, N] without the noise of the target, where it is known; NaN is padding.
        measured: residuals [B, N] of measurements: what an interval has to hold.
        owners: which task a row belongs to, [B]; of two tasks or more.
    """
    weights = task_weights(measured, owners)
    fine = (weights > 0) & np.isfinite(features).all(-1) & (np.abs(clean) < LARGEST) & (np.abs(measured) < LARGEST)
    tasks, rows = np.unique(owners, return_inverse=True)
    noise = np.average(measured[fine] ** 2 - clean[fine] ** 2, weights=weights[fine]) if fine.any() else 0.0
    floor = 0.1 * np.median(features[fine], 0) + 1e-9 if fine.any() else np.ones(features.shape[-1])
    logs = np.log(np.where(np.isfinite(features), features, 1) + floor)
    centre, deviation = (logs[fine].mean(0), logs[fine].std(0) + 1e-6) if fine.any() else (floor, floor)
    seen = (features[fine].min(0), features[fine].max(0)) if fine.any() else (floor, floor)
    entry: dict[str, Any] = {"tasks": len(tasks), "noise": max(0.0, float(noise)), "floor": floor.tolist()}
    entry |= {"centre": centre.tolist(), "feature_std": deviation.tolist(), "seen": np.stack(seen).tolist()}
    scales, folds = np.empty(clean.shape), min(FOLDS, len(tasks))
    for fold in range(folds):  # each task is scaled by what was learned from others
        here = rows % folds == fold
        learned = entry | {"coefficients": _regression(entry, features, clean, weights, fine & ~here[:, None])}
        scales[here] = scale(learned, features[here])
    entry["coefficients"] = _regression(entry, features, clean, weights, fine)
    size = np.abs(measured)
    for name, scores in (("quantiles", size / np.where(np.isfinite(scales), scales, 1)), ("constant", size)):
        scores = np.where(np.isfinite(scores) & np.isfinite(scales), scores, np.inf)
        entry[name] = task_quantiles(scores, weights, LEVELS).tolist()
    return entry


def task_weights(values: np.ndarray, owners: np.ndarray) -> np.ndarray:
    """Weights [B, N] of points: the same sum, 1, for each task with points; NaN values, which are padding, weigh nothing."""
    known = ~np.isnan(values)
    counts = np.bincount(owners, known.sum(1))
    return known / np.maximum(counts, 1)[owners][:, None]


def task_quantiles(scores: np.ndarray, weights: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Conformal quantiles of `scores` at `levels`; `weights` sum to 1 over each task's points.

    A new task is one more of T + 1, whose scores may be anything: 1 / (T + 1) of the weight is at infinity (Lee et al.
    2023, eq. 5). Fewer than `SURE` tasks would reach too few levels; there the quantiles of the T known ones are taken.
    """
    known = weights > 0
    order = np.argsort(scores[known], kind="stable")
    total = round(float(weights.sum()))
    shares = weights[known][order].cumsum() / (total + (total >= SURE))
    places = np.searchsorted(shares, levels - 1e-9)
    if total < SURE:
        places = np.minimum(places, len(order) - 1)
    return np.append(scores[known][order], np.inf)[places]


def _terms(entry: Entry, features: np.ndarray) -> np.ndarray:
    """What the log scale is linear in, [..., 1 + 2F]: 1, the standardised logs of the features, their squares."""
    logs = (np.log(features.clip(*entry["seen"]) + np.array(entry["floor"])) - entry["centre"]) / entry["feature_std"]
    return np.concatenate([np.ones((*logs.shape[:-1], 1)), logs, logs**2], -1)


def _growth(entry: Entry, features: np.ndarray) -> np.ndarray:
    """By which factor, at least 1, points [..., F] exceed the highest that was seen: beyond it nobody knows the regression."""
    growing = [place for place in GROWING if place < features.shape[-1]]
    floor, highest = np.array(entry["floor"])[growing], np.array(entry["seen"][1])[growing]
    return ((features[..., growing] + floor) / (highest + floor)).max(-1, initial=1)


def _regression(entry: Entry, features: np.ndarray, clean: np.ndarray, weights: np.ndarray, fine: np.ndarray) -> list[float]:
    """Coefficients [1 + 2F] of the log of the residual on the points `fine`."""
    count = features.shape[-1]
    if not fine.any():
        return [0.0] * (1 + 2 * count)
    terms, shares = _terms(entry, features[fine]), weights[fine] / weights[fine].sum()
    size = np.abs(clean[fine])
    target = np.log(size + 0.01 * np.median(size) + 1e-9)
    if weights.sum() < FEW and count > STD:
        proportional = np.zeros(1 + 2 * count)
        proportional[1 + STD] = entry["feature_std"][STD]
        proportional[0] = shares @ (target - terms @ proportional)
        return proportional.tolist()
    penalty = np.diag([0.0] + [LINEAR] * count + [SQUARES] * count) / max(1.0, weights[fine].sum())
    weighted, right = terms * shares[:, None], np.column_stack([terms, target])
    # in pieces for which the linear algebra starts no threads: where the cores are taken these wait for each other for seconds
    products = sum(weighted[at : at + PIECE].T @ right[at : at + PIECE] for at in range(0, len(right), PIECE))
    return np.linalg.solve(products[:, :-1] + penalty, products[:, -1]).tolist()


def scale(entry: Entry, features: np.ndarray) -> np.ndarray:
    """The expected size of a measurement's residual at points with `features` [..., F]; infinite where adapting diverged."""
    features = features[..., : len(entry["floor"])]  # of an older run fewer
    fine = np.isfinite(features).all(-1)
    known = np.where(fine[..., None], features, 1)
    logs = np.einsum("...f,f->...", _terms(entry, known), entry["coefficients"])  # without threads, as above
    sizes = np.exp(logs.clip(-50, 50)) / LOG_MEAN * _growth(entry, known)
    return np.where(fine, np.sqrt(sizes**2 + entry["noise"]), np.inf)


def entry_for(calibration: Calibration, shots: int) -> Entry:
    """What is used for `shots` support points: the entry of the nearest K below, or of the smallest; K = 0 has one of its own.

    Raises KeyError where there is none.
    """
    known = sorted(count for count in map(int, calibration) if count) if shots else [0]
    return calibration[str(max([count for count in known if count <= shots], default=known[0]))]


def half_widths(entry: Entry, features: np.ndarray, coverage: float) -> np.ndarray:
    """Half the width [...] of intervals that hold `coverage`, above 0 and below 1, of new measurements."""
    return quantile(entry["quantiles"], coverage) * scale(entry, features)


def quantile(curve: Sequence[float], coverage: float) -> float:
    """A calibrated curve at any level: a line between neighbours, infinite above the last one."""
    if coverage > LEVELS[-1] or not np.isfinite(curve[int(np.searchsorted(LEVELS, coverage - 1e-9))]):
        return np.inf
    return float(np.interp(coverage, [0, *LEVELS], [0, *curve]))


# ---- evaluating


def evaluate_intervals(
    entries: Sequence[Entry], residuals: Residuals, which: np.ndarray, coverage: float = 0.9
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """How good intervals are on other tasks than they were calibrated on. Means over points, then over tasks.

    Args:
        residuals: as in `calibrate`; which: the place among `entries` of the one for each row, [B].

    Returns coverage, mean width, interval score, those of a constant width, the rank correlation over tasks of width
    and error; and arrays: "nominal" and "coverage" at many levels [L], "width" and "error" (root mean square) of tasks [T].
    """
    features, clean, measured, owners = residuals
    weights, scales = task_weights(measured, owners), np.empty(measured.shape)
    for place, entry in enumerate(entries):
        scales[which == place] = scale(entry, features[which == place])

    def quantiles(curve: str, level: float) -> np.ndarray:
        """Of each row, [B, 1]."""
        return np.array([quantile(entry[curve], level) for entry in entries])[which][:, None]

    known, size = weights > 0, np.abs(measured)
    size, half = np.where(np.isfinite(size), size, np.inf), quantiles("quantiles", coverage) * scales

    def mean(values: Any) -> float:
        return float((weights * np.where(known, values, 0)).sum() / weights.sum())

    result: dict[str, float] = {}
    constant = np.broadcast_to(quantiles("constant", coverage), half.shape)
    for name, width in (("", half), ("constant_", constant)):
        held = (size <= width) | np.isinf(width)  # what diverged is held by an interval that is the whole line
        scores = interval_score(size, width, coverage)
        result |= {f"{name}coverage": mean(held), f"{name}width": mean(2 * width), f"{name}score": mean(scores)}
    levels = LEVELS[9::10]
    shares = [mean(~(size > quantiles("quantiles", level) * scales)) for level in levels]
    rows = np.unique(owners, return_inverse=True)[1]
    widths = np.bincount(rows, (weights * np.where(known, 2 * half, 0)).sum(1))
    with np.errstate(over="ignore"):
        errors = np.bincount(rows, (weights * np.where(known, np.square(clean), 0)).sum(1))
    result["rank_correlation"] = rank_correlation(widths, errors)
    return result, {"nominal": levels, "coverage": np.array(shares), "width": widths, "error": np.sqrt(errors)}


def interval_score(size: np.ndarray, half: np.ndarray, coverage: float) -> np.ndarray:
    """Width plus a penalty for what lies outside, of symmetric intervals (Gneiting and Raftery 2007, eq. 43)."""
    with np.errstate(invalid="ignore"):
        scores = 2 * half + 2 / (1 - coverage) * np.maximum(size - half, 0)
    return np.where(np.isinf(half), np.inf, scores)


def rank_correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman's correlation of two arrays [T] over the entries where both are finite; NaN where one of them is constant."""
    fine = np.isfinite(first) & np.isfinite(second)
    ranks = []
    for values in (first[fine], second[fine]):
        _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
        if len(counts) < 2:
            return np.nan
        ranks.append((counts.cumsum() - (counts - 1) / 2)[places])  # ties share their mean rank
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])

"""Means, intervals and paired differences of errors over tasks. Arrays in, numbers out."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


def t_quantile(degrees: int) -> float:
    """The 97.5% quantile of Student's t; beyond 10 degrees of freedom by the expansion around the normal's."""
    if degrees <= len(T_975):
        return T_975[degrees - 1]
    return 1.959964 + 2.372272 / degrees + 2.822499 / degrees**2 + 2.555850 / degrees**3


def mean_and_interval(errors: np.ndarray, subjects: bool = False) -> dict[str, np.ndarray]:
    """Mean, 95% half-width and median over tasks: [T, S+1] -> [S+1] each.

    The half-width is 1.96 standard errors (Finn et al. 2017); of a table's `subjects`, or of seeds, both few, Student's t.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # a diverged task makes its means infinite, which is the result
        quantile = t_quantile(len(errors) - 1) if subjects else 1.96
        spread = quantile * errors.std(0, ddof=1) / np.sqrt(len(errors))
        return {"mse": errors.mean(0), "ci95": spread, "median": np.median(errors, 0)}


def geometric_mean(errors: Any) -> float:
    """Of one or more errors: 0 if there is a 0 among them, infinite if one diverged."""
    with np.errstate(divide="ignore"):
        return float(np.exp(np.mean(np.log(errors)))) if np.isfinite(errors).all() else math.inf


def relative_difference(own: np.ndarray, other: np.ndarray) -> tuple[float, float, float]:
    """The relative difference of root mean errors, `own` [T] against `other` [T] (0.1: 10% higher), with its 95% interval.

    The interval is Student's around the logarithm of the ratio, whose standard error is that of its linear approximation
    (delta method). Its degrees of freedom are those of the effective number of tasks (Kish 1965): a few hard ones make most
    of both means. NaN where an error is not finite or the means are 0.
    """
    with np.errstate(all="ignore"):
        parts = own / own.mean(), other / other.mean()
        weights = parts[0] + parts[1]
        degrees = np.nan_to_num(weights.sum() ** 2 / np.square(weights).sum() - 1).clip(1)
        whole = [int(degrees), int(degrees) + 1]
        quantile = np.interp(degrees, whole, [t_quantile(number) for number in whole])
        error = (parts[0] - parts[1]).std(ddof=1) / math.sqrt(len(own))
        ratio = np.log(own.mean() / other.mean())
        centre, low, high = np.expm1((ratio + quantile * error * np.array([0, -1, 1])) / 2).tolist()
    return centre, low, high


def shown_steps(last: int) -> list[int]:
    """The numbers of gradients that tables and figures show: 0, 1, 5 and the last."""
    return sorted({0, min(1, last), min(5, last), last})

"""Metrics of sampled curves, for LEO's own experiment (Rusu et al. 2019, section 4.1).

Curves are sampled for many support sets and compared with held-out points: whether their spread is larger where their
error is, whether their intervals cover as many noisy targets as they should, and whether both families appear where a
support set leaves the family open. Samples of the exact posterior, for families whose prior can be sampled, are measured
by the same functions: no method can do better on average.

Notation: T tasks, M sampled curves a task (1 = a single prediction), N points; "grid" is a vector of inputs.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.project import rank_correlation
from dataset import FunctionFamily, Points, SineLineTaskGenerator
from learner import MetaLearner, predict_tasks

Array = NDArray[np.floating]
Flags = NDArray[np.bool_]

NUM_SAMPLES = 100  # curves a task
LEVEL = 0.9  # of the central interval


class Estimate(NamedTuple):
    """A number with its 95% interval over tasks."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def mean_over_tasks(values: Array) -> Estimate:
    """The mean of one number per task, [T], with 1.96 standard errors to each side."""
    values = np.asarray(values, np.float64)
    mean, half = float(values.mean()), float(1.96 * values.std(ddof=1) / math.sqrt(len(values)))
    return Estimate(mean, mean - half, mean + half)


# ---- curves


def single_curves(learner: MetaLearner, support: Points, x: Array, steps: int) -> Array:
    """The prediction without randomness after `steps` gradients, [T, 1, N], for support [T, K, ...] and x [T, N, D]."""
    return predict_tasks(learner, support, x, steps)[0][:, -1:]


def posterior_curves(
    generator: FunctionFamily,
    support: Points,
    x: Array,
    rng: np.random.Generator,
    num_samples: int = NUM_SAMPLES,
    proposals: int = 200_000,
) -> tuple[Array, Array]:
    """Functions drawn from the exact posterior: importance sampling, with the prior as proposal.

    Args:
        generator: the prior over functions, and the noise on targets, which must not be zero.
        support: x [T, K, D], y [T, K, 1].
        x: where the curves are wanted, [T, N, D].
        proposals: functions drawn from the prior, the same for all tasks.

    Returns:
        curves [T, M, N], and the parameters [T, M, F] behind them.
    """
    params = generator.draw(proposals, rng)
    chosen = []
    for support_x, support_y in zip(*support, strict=True):
        log_likelihood = np.zeros(proposals)
        for place, target in zip(support_x, support_y[:, 0], strict=True):
            value = generator.curve(params, np.broadcast_to(place, (proposals, 1, len(place))))[:, 0, 0]
            log_likelihood -= 0.5 * np.square((value - target) / generator.noise_std)
        weight = np.exp(log_likelihood - log_likelihood.max())
        chosen.append(params[rng.choice(proposals, num_samples, p=weight / weight.sum())])
    drawn = np.stack(chosen)  # [T, M, F]
    at = np.broadcast_to(x[:, None], (len(x), num_samples, *x.shape[1:]))  # [T, M, N, D]
    return generator.curve(drawn, at)[..., 0], drawn


# ---- sampled curves against held-out points


def family_errors(prediction: Array, truth: Array, is_line: Flags) -> dict[str, Estimate]:
    """Mean squared error for each family and for all, from prediction and truth [T, N] and the families [T]."""
    errors = np.square(prediction - truth, dtype=np.float64).mean(1)  # [T]
    groups = {"sinusoid": ~is_line, "line": is_line, "all": np.ones_like(is_line)}
    return {name: mean_over_tasks(errors[chosen]) for name, chosen in groups.items()}


def coverage(curves: Array, targets: Array, noise_std: float, level: float = LEVEL) -> Array:
    """Share of noisy `targets` [T, N] in the central interval of the curves [T, M, N] plus the known noise, [T].

    What the curves predict is a mixture of M Gaussians around them. A target lies between its quantiles exactly
    where the distribution function does, so that no quantile has to be searched for.
    """
    deviation = torch.from_numpy((targets[:, None] - curves) / noise_std)  # [T, M, N]
    below = torch.special.ndtr(deviation).mean(1).numpy()
    return ((below >= (1 - level) / 2) & (below <= (1 + level) / 2)).mean(1)


def negative_log_likelihood(curves: Array, targets: Array, noise_std: float) -> Array:
    """Mean over points of -log p(target), in nats, p the mixture of M Gaussians around the curves: [T].

    Args: as of `coverage`. A single curve (M = 1) gives a single Gaussian.
    """
    deviation = torch.from_numpy((targets[:, None] - curves) / noise_std).double()  # [T, M, N]
    log_density = torch.logsumexp(-0.5 * deviation.square(), dim=1) - math.log(curves.shape[1] * noise_std)  # [T, N]
    return (0.5 * math.log(2 * math.pi) - log_density).mean(1).numpy()


def spread_against_error(curves: Array, truth: Array, rng: np.random.Generator, resamples: int = 1000) -> Estimate:
    """Rank correlation over all held-out points between the curves' spread and the error of their mean.

    Args:
        curves: [T, M, N]; truth: noise-free, [T, N].
        rng: draws the bootstrap; whole tasks are drawn, because the points of a task are not independent.
    """
    spread, error = curves.std(1), np.abs(curves.mean(1) - truth)  # [T, N]
    draws = rng.integers(0, len(truth), (resamples, len(truth)))
    values = [rank_correlation(spread[tasks].ravel(), error[tasks].ravel()) for tasks in draws]
    low, high = np.quantile(values, [0.025, 0.975])
    return Estimate(rank_correlation(spread.ravel(), error.ravel()), float(low), float(high))


def spread_against_error_within(curves: Array, truth: Array) -> Estimate:
    """The same within each task, averaged over tasks: where on the axis, rather than for which task."""
    spread, error = curves.std(1), np.abs(curves.mean(1) - truth)  # [T, N]
    return mean_over_tasks(np.array([rank_correlation(*pair) for pair in zip(spread, error, strict=True)]))


class SampleMetrics(NamedTuple):
    """How well the curves sampled for each task fit held-out points."""

    mse: dict[str, Estimate]  # of the mean curve: sinusoid, line, all
    coverage: Estimate  # of the central 90% interval, noise included
    nll: Estimate  # nats a point
    correlation: Estimate  # Spearman's, of spread and error, over all points; NaN for a single curve
    correlation_within: Estimate  # within a task, mean over tasks; NaN for a single curve


def sample_metrics(curves: Array, truth: Array, is_line: Flags, noise_std: float, rng: np.random.Generator) -> SampleMetrics:
    """Compare curves [T, M, N] with noise-free `truth` [T, N], and with targets that have noise from `rng` added."""
    targets = truth + noise_std * rng.standard_normal(truth.shape)
    undefined = Estimate(math.nan, math.nan, math.nan)
    several = curves.shape[1] > 1
    return SampleMetrics(
        mse=family_errors(curves.mean(1), truth, is_line),
        coverage=mean_over_tasks(coverage(curves, targets, noise_std)),
        nll=mean_over_tasks(negative_log_likelihood(curves, targets, noise_std)),
        correlation=spread_against_error(curves, truth, rng) if several else undefined,
        correlation_within=spread_against_error_within(curves, truth) if several else undefined,
    )


# ---- lines or sinusoids


def looks_sinusoidal(grid: Array, curves: Array) -> Flags:
    """Which `curves` [..., N] on `grid` [N] are nearer to a sinusoid A sin(x - phase) than to a line: booleans [...].

    Each family is fitted by least squares with its two free numbers; a curve belongs to the one that leaves less.
    """
    line = np.stack([np.ones_like(grid), grid], axis=1)
    wave = np.stack([np.sin(grid), np.cos(grid)], axis=1)  # spans all amplitudes and phases
    return _unexplained(wave, curves) < _unexplained(line, curves)


def _unexplained(features: Array, curves: Array) -> Array:
    """Squared length [...] of what the columns of `features` [N, 2] leave of the curves [..., N]."""
    basis, _ = np.linalg.qr(features.astype(np.float64))
    return np.square(curves - (curves @ basis) @ basis.T).sum(-1)


def ambiguous_supports(
    generator: SineLineTaskGenerator,
    num_tasks: int,
    shots: int,
    rng: np.random.Generator,
    reach: float = 1.0,
    slopes: tuple[float, float] = (0.8, 2.0),
) -> tuple[Points, Array]:
    """Support sets from a sinusoid's nearly straight stretch around its rising zero, which a line could have given.

    Args:
        generator: supplies the noise; the functions are chosen so that its default ranges hold both of them.
        shots: K points, evenly spread within `reach` (radians) of the zero.
        slopes: range of the amplitude, and so of the slope at the zero.

    Returns:
        the points x [T, K, 1], y [T, K, 1], and the parameters [T, 6] of the sinusoids.
    """
    amplitude = rng.uniform(*slopes, num_tasks)
    phase = rng.uniform(0.2, np.minimum(1.2, 2.5 / amplitude))  # the zero; the line's intercept stays within 3
    offsets = np.linspace(-reach, reach, shots)
    zeros, ones = np.zeros(num_tasks), np.ones(num_tasks)
    waves = np.stack([zeros, amplitude, phase, zeros, zeros, ones], axis=1).astype(np.float32)
    x = (phase[:, None, None] + offsets[:, None]).astype(np.float32)  # [T, K, 1]
    y = generator.curve(waves, x) + generator.noise_std * rng.standard_normal(x.shape)
    return Points(x, y.astype(np.float32)), waves

"""The metrics of sampled curves, on samples for which they are known: Gaussians, plain curves, an exact posterior."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from benchmarks.paper import sampling
from dataset import SineLineTaskGenerator

TASKS, SAMPLES, POINTS = 60, 200, 40
GRID = np.linspace(-5, 5, 101)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(5)


@pytest.fixture
def generator() -> SineLineTaskGenerator:
    return SineLineTaskGenerator()


def calibrated(rng: np.random.Generator, factor: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Truth [T, N], and curves [T, M, N] drawn as it was, from Gaussians of many widths; `factor` stretches the curves."""
    middle, width = rng.normal(0, 2, (TASKS, 1, POINTS)), rng.uniform(0.05, 2.0, (TASKS, 1, POINTS))
    truth = middle + width * rng.standard_normal((TASKS, 1, POINTS))
    return truth[:, 0], middle + factor * width * rng.standard_normal((TASKS, SAMPLES, POINTS))


@pytest.mark.parametrize(
    ("factor", "level", "low", "high"), [(1, 0.5, 0.48, 0.52), (1, 0.9, 0.88, 0.92), (0, 0.9, 0, 0.6), (4, 0.9, 0.97, 1)]
)
def test_samples_cover_as_their_spread_says(
    rng: np.random.Generator, factor: float, level: float, low: float, high: float
) -> None:
    """Calibrated ones as often as they say, overconfident ones too little, timid ones too much."""
    truth, curves = calibrated(rng, factor)
    covered = sampling.coverage(curves, truth + 0.3 * rng.standard_normal(truth.shape), 0.3, level)
    assert low < sampling.mean_over_tasks(covered).value < high


def test_a_single_curve_has_the_gaussian_interval_and_likelihood(rng: np.random.Generator) -> None:
    targets = np.array([[-1.66, -1.63, 0.0, 1.63, 1.66]]) * 0.3  # the 95% point is 1.645
    assert sampling.coverage(np.zeros((1, 1, 5)), targets, 0.3) == pytest.approx(0.6)
    curve, targets = rng.normal(size=(3, 1, 7)), rng.normal(size=(3, 7))
    expected = 0.5 * np.square((targets - curve[:, 0]) / 0.3) + math.log(0.3) + 0.5 * math.log(2 * math.pi)
    assert_allclose(sampling.negative_log_likelihood(curve, targets, 0.3), expected.mean(1))


def test_calibrated_spread_goes_with_error(rng: np.random.Generator) -> None:
    truth, curves = calibrated(rng)
    within = sampling.spread_against_error_within(curves, truth)
    for estimate in (sampling.spread_against_error(curves, truth, rng, 200), within):
        assert 0.3 < estimate.low < estimate.value < estimate.high < 0.9


def test_lines_and_sinusoids_are_distinguished(rng: np.random.Generator, generator: SineLineTaskGenerator) -> None:
    params = generator.draw(500, rng)
    params[:, 1] = np.maximum(params[:, 1], 1)  # a sinusoid flatter than the wobble below is none
    curves = generator.curve(params, np.broadcast_to(GRID[:, None], (500, 101, 1)))[..., 0]
    wobble = 0.2 * np.sin(2.3 * GRID + rng.uniform(0, 6, (500, 1)))
    clear = (params[:, 0] == 0) | (np.abs(params[:, 3]) > 0.3)
    assert_array_equal(sampling.looks_sinusoidal(GRID, curves + wobble)[clear], params[clear, 0] == 0)


def test_exact_posterior_is_calibrated_by_every_metric(generator: SineLineTaskGenerator) -> None:
    rng = np.random.default_rng(0)
    params, task, _ = generator.held_out("test", 60, 5, 50)
    curves, _ = sampling.posterior_curves(generator, task.support, task.query.x, rng, 100, 50_000)
    truth, is_line = task.query.y[..., 0], params[:, 0] == 1
    metrics, single = (sampling.sample_metrics(some, truth, is_line, 0.3, rng) for some in (curves, curves[:, :1]))
    assert 0.86 < metrics.coverage.value < 0.94
    assert metrics.correlation.low > 0.1 and metrics.correlation.value > 0.3
    assert metrics.nll.value < single.nll.value and math.isnan(single.correlation.value)
    assert metrics.mse["all"].value < single.mse["all"].value  # the mean is the best single prediction


def test_ambiguous_supports_leave_the_family_open(rng: np.random.Generator, generator: SineLineTaskGenerator) -> None:
    support, waves = sampling.ambiguous_supports(generator, 8, 5, rng)
    assert support.x.shape == support.y.shape == (8, 5, 1) and (waves[:, 2] <= math.pi).all()  # within the prior's range
    assert np.abs(generator.curve(waves, support.x) - support.y).max() < 5 * 0.3
    curves, drawn = sampling.posterior_curves(generator, support, support.x, rng, 100, 50_000)
    share = (drawn[..., 0] == 0).mean(1)  # of sinusoids
    assert ((share > 0.02) & (share < 0.98)).all() and 0.2 < share.mean() < 0.8
    assert np.abs(curves.mean(1) - support.y[..., 0]).mean() < 0.3, "the posterior fits what it has seen"

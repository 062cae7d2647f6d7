"""The metrics of sampled curves, on samples for which they are known: Gaussians, plain curves, an exact posterior."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import registry
from benchmarks.paper.sampling import (
    Estimate,
    ambiguous_supports,
    coverage,
    family_errors,
    looks_sinusoidal,
    mean_over_tasks,
    negative_log_likelihood,
    posterior_curves,
    sample_metrics,
    single_curves,
    spread_against_error,
    spread_against_error_within,
)
from commands import runs
from config import Config
from dataset import Points, SineLineTaskGenerator
from learner import MetaLearner, sample_tasks

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


# ---- intervals and likelihood


@pytest.mark.parametrize("level", [0.5, 0.9])
def test_calibrated_samples_cover_as_often_as_they_say(rng: np.random.Generator, level: float) -> None:
    truth, curves = calibrated(rng)
    covered = mean_over_tasks(coverage(curves, truth + 0.3 * rng.standard_normal(truth.shape), 0.3, level))
    assert abs(covered.value - level) < 0.02


@pytest.mark.parametrize(("factor", "expected"), [(0.0, "low"), (4.0, "high")])
def test_overconfident_samples_cover_too_little_and_timid_ones_too_much(
    rng: np.random.Generator, factor: float, expected: str
) -> None:
    truth, curves = calibrated(rng, factor)
    covered = coverage(curves, truth + 0.3 * rng.standard_normal(truth.shape), 0.3).mean()
    assert covered < 0.6 if expected == "low" else covered > 0.97


def test_a_single_exact_curve_covers_by_its_noise_alone(rng: np.random.Generator) -> None:
    truth = rng.normal(0, 2, (TASKS, POINTS))
    targets = truth + 0.3 * rng.standard_normal(truth.shape)
    assert abs(coverage(truth[:, None], targets, 0.3).mean() - 0.9) < 0.02


def test_interval_of_a_single_curve_ends_where_the_gaussian_table_says() -> None:
    targets = np.array([[-1.66, -1.63, 0.0, 1.63, 1.66]]) * 0.3  # the 95% point is 1.645
    assert coverage(np.zeros((1, 1, 5)), targets, 0.3) == pytest.approx(0.6)


def test_likelihood_of_a_single_curve_is_the_gaussian_one(rng: np.random.Generator) -> None:
    curve, targets = rng.normal(size=(3, 1, 7)), rng.normal(size=(3, 7))
    expected = 0.5 * np.square((targets - curve[:, 0]) / 0.3) + math.log(0.3) + 0.5 * math.log(2 * math.pi)
    assert_allclose(negative_log_likelihood(curve, targets, 0.3), expected.mean(1))


def test_likelihood_of_two_curves_is_their_average_density() -> None:
    def density(deviation: float) -> float:
        return math.exp(-0.5 * deviation**2) / (0.5 * math.sqrt(2 * math.pi))

    curves = np.array([[[0.0], [1.0]]])
    expected = -math.log((density(0.25 / 0.5) + density(0.75 / 0.5)) / 2)
    assert_allclose(negative_log_likelihood(curves, np.array([[0.25]]), 0.5), expected)


def test_likelihood_is_finite_far_from_all_curves() -> None:
    assert negative_log_likelihood(np.zeros((1, 3, 1)), np.array([[1e4]]), 0.3)[0] == pytest.approx(0.5 * (1e4 / 0.3) ** 2)


def test_likelihood_is_best_at_the_true_spread(rng: np.random.Generator) -> None:
    values = {}
    for factor in (0.3, 1.0, 3.0):
        truth, curves = calibrated(np.random.default_rng(5), factor)
        values[factor] = negative_log_likelihood(curves, truth + 0.3 * rng.standard_normal(truth.shape), 0.3).mean()
    assert values[1.0] == min(values.values())


# ---- spread and error


def test_calibrated_spread_goes_with_error(rng: np.random.Generator) -> None:
    truth, curves = calibrated(rng)
    for estimate in (spread_against_error(curves, truth, rng, 200), spread_against_error_within(curves, truth)):
        assert 0.3 < estimate.low < estimate.value < estimate.high < 0.9


def test_spread_unrelated_to_error_has_an_interval_around_zero(rng: np.random.Generator) -> None:
    truth, curves = rng.normal(size=(TASKS, POINTS)), rng.normal(size=(TASKS, SAMPLES, POINTS))
    for estimate in (spread_against_error(curves, truth, rng, 200), spread_against_error_within(curves, truth)):
        assert estimate.low < 0.02 and estimate.high > -0.02 and abs(estimate.value) < 0.1


# ---- families


def test_family_errors_are_means_over_their_own_tasks() -> None:
    truth = np.zeros((4, 3))
    prediction = np.array([1.0, 2.0, 3.0, 3.0])[:, None] * np.ones(3)
    errors = family_errors(prediction, truth, np.array([False, False, True, True]))
    assert errors["sinusoid"].value == 2.5 and errors["all"].value == 5.75
    assert errors["line"] == Estimate(9, 9, 9)


def test_lines_and_sinusoids_are_distinguished(rng: np.random.Generator, generator: SineLineTaskGenerator) -> None:
    params = generator.draw(500, rng)
    params[:, 1] = np.maximum(params[:, 1], 1)  # a sinusoid flatter than the wobble below is none
    curves = generator.curve(params, np.broadcast_to(GRID[:, None], (500, 101, 1)))[..., 0]
    wobble = 0.2 * np.sin(2.3 * GRID + rng.uniform(0, 6, (500, 1)))
    clear = (params[:, 0] == 0) | (np.abs(params[:, 3]) > 0.3)
    assert_array_equal(looks_sinusoidal(GRID, curves + wobble)[clear], params[clear, 0] == 0)


def test_classifier_keeps_leading_dimensions() -> None:
    curves = np.stack([np.sin(GRID), 2 * GRID + 1])[:, None].repeat(3, axis=1)  # [2, 3, N]
    assert_array_equal(looks_sinusoidal(GRID, curves), [[True] * 3, [False] * 3])


# ---- the exact posterior


def test_exact_posterior_is_calibrated_by_every_metric(generator: SineLineTaskGenerator) -> None:
    rng = np.random.default_rng(0)
    params, task, _ = generator.held_out("test", 60, 5, 50)
    curves, _ = posterior_curves(generator, task.support, task.query.x, rng, 100, 50_000)
    metrics = sample_metrics(curves, task.query.y[..., 0], params[:, 0] == 1, 0.3, rng)
    assert 0.86 < metrics.coverage.value < 0.94
    assert metrics.correlation.low > 0.1 and metrics.correlation.value > 0.3
    single = sample_metrics(curves[:, :1], task.query.y[..., 0], params[:, 0] == 1, 0.3, rng)
    assert metrics.nll.value < single.nll.value and math.isnan(single.correlation.value)
    assert metrics.mse["all"].value < single.mse["all"].value  # the mean is the best single prediction


def test_exact_posterior_fits_what_it_has_seen(rng: np.random.Generator, generator: SineLineTaskGenerator) -> None:
    _, task, _ = generator.held_out("test", 20, 5, 10)
    curves, _ = posterior_curves(generator, task.support, task.support.x, rng, 100, 50_000)
    assert np.abs(curves.mean(1) - task.support.y[..., 0]).mean() < 0.3


def test_ambiguous_supports_leave_the_family_open(rng: np.random.Generator, generator: SineLineTaskGenerator) -> None:
    support, waves, lines = ambiguous_supports(generator, 8, 5, rng)
    assert support.x.shape == support.y.shape == (8, 5, 1)
    for params in (waves, lines):
        assert np.abs(generator.curve(params, support.x) - support.y).max() < 5 * 0.3
    assert (np.abs(lines[:, 3:5]) <= 3).all() and (waves[:, 2] <= math.pi).all()  # within the ranges of the prior
    _, drawn = posterior_curves(generator, support, support.x, rng, 100, 50_000)
    share = (drawn[..., 0] == 0).mean(1)  # of sinusoids
    assert ((share > 0.02) & (share < 0.98)).all() and 0.2 < share.mean() < 0.8


# ---- curves from a trainer


@pytest.fixture(scope="module")
def leo() -> MetaLearner:
    config = Config.resolve(
        registry.METHODS["leo"].defaults, registry.TASK_DEFAULTS["sine-line"], {"NUM_TASKS": 25, "DEVICE": "cpu"}
    )
    return runs.build("leo", "sine-line", config).learner


def test_sampled_curves_differ_and_repeat(leo: MetaLearner, generator: SineLineTaskGenerator) -> None:
    _, task, _ = generator.held_out("test", 3, 5, 7)
    first, again = (sample_tasks(leo, task.support, task.query.x, 2, np.random.default_rng(1), 4) for _ in range(2))
    assert first.shape == (3, 4, 7)
    assert_array_equal(first, again)
    assert (first.std(1) > 1e-6).all()
    assert single_curves(leo, task.support, task.query.x, 2).shape == (3, 1, 7)


def test_temperature_scales_the_spread_down_to_the_single_curve(leo: MetaLearner, generator: SineLineTaskGenerator) -> None:
    _, task, _ = generator.held_out("test", 3, 5, 7)
    cold, cool, usual = (
        sample_tasks(leo, task.support, task.query.x, 0, np.random.default_rng(1), 20, temperature=temperature)
        for temperature in (0.0, 0.5, 1.0)
    )
    assert_allclose(cold, single_curves(leo, task.support, task.query.x, 0).repeat(20, axis=1), atol=1e-5)
    assert (cool.std(1) < usual.std(1)).all()


def test_samples_of_a_task_do_not_depend_on_those_that_follow(leo: MetaLearner, generator: SineLineTaskGenerator) -> None:
    _, task, _ = generator.held_out("test", 3, 5, 7)
    everything = sample_tasks(leo, task.support, task.query.x, 2, np.random.default_rng(1), 4, batch=7)  # a task in two parts
    alone = Points(task.support.x[:1], task.support.y[:1])
    assert_allclose(sample_tasks(leo, alone, task.query.x[:1], 2, np.random.default_rng(1), 4), everything[:1], atol=1e-5)

"""Means, intervals and the gradients that tables and figures show."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from evaluation.statistics import mean_and_interval, shown_steps


@pytest.mark.parametrize(("last", "steps"), [(0, [0]), (1, [0, 1]), (3, [0, 1, 3]), (5, [0, 1, 5]), (10, [0, 1, 5, 10])])
def test_the_steps_shown_are_0_1_5_and_the_last(last, steps):
    assert shown_steps(last) == steps


def test_the_interval_is_196_standard_errors_over_tasks():
    errors = np.random.default_rng(0).uniform(0.1, 2.0, (50, 3))
    deviation = np.sqrt(np.square(errors - errors.mean(0)).sum(0) / 49)
    assert_allclose(mean_and_interval(errors)["ci95"], 1.96 * deviation / np.sqrt(50))


def test_mean_and_median_are_taken_over_tasks():
    result = mean_and_interval(np.array([[1.0, 10.0], [2.0, 20.0], [6.0, 90.0]]))
    assert_allclose([result["mse"], result["median"]], [[3, 40], [2, 20]])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_diverged_task_shows_in_the_mean(bad):
    assert not np.isfinite(mean_and_interval(np.array([[1.0], [bad], [2.0]]))["mse"]).any()


def test_a_diverged_task_leaves_the_median_of_the_others():
    assert mean_and_interval(np.array([[1.0], [np.inf], [2.0]]))["median"] == [2.0]

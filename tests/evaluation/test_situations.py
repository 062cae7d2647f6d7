"""Intervals hold what they say for questions that tables are asked: any K, early points, late questions, high levels."""

import numpy as np
import pytest

import main
from regressor import FewShotRegressor
from tests.tools.tables import write

KNOWN, NEW = 50, 200  # subjects


def subject(rng):
    """Growth whose noise is in proportion to its level."""
    start, rate = rng.normal(1, 0.5), rng.normal(0.15, 0.05)
    return lambda x: np.exp(start + rate * x + 0.1 * rng.normal(size=len(x)))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder, rng, rows = tmp_path_factory.mktemp("growth"), np.random.default_rng(0), []
    for number in range(KNOWN):
        x = np.sort(rng.uniform(0, 10, 12))
        rows += [[f"s{number}", repr(float(a)), repr(float(b))] for a, b in zip(x, subject(rng)(x), strict=True)]
    data = ["--data", str(write(folder / "growth.csv", rows)), "--output", str(folder), "--name", "g"]
    assert main.main(["--method", "mixed-model", *data]) == 0
    return FewShotRegressor.load(folder / "MIXED-MODEL_Table_g")


def held(model, given, asked):
    """For each of NEW subjects the share of measurements at `asked` that the 90% intervals hold, and its mean level."""
    rng = np.random.default_rng(1)
    subjects = [subject(rng) for _ in range(NEW)]
    xs, ats = ([at(rng) for _ in subjects] for at in (given, asked))
    model.fit_many(xs, [one(x) for one, x in zip(subjects, xs, strict=True)])
    ends, truths = model.predict_interval_many(ats), [one(x) for one, x in zip(subjects, ats, strict=True)]
    shares = [np.mean((low <= y) & (y <= high)) for (low, high), y in zip(ends, truths, strict=True)]
    return np.array(shares), np.array([y.mean() for y in truths])


def anywhere(count):
    return lambda rng: rng.uniform(0, 10, count)


@pytest.mark.parametrize("shots", [0, 1, 2, 3, 5, 7])
def test_at_any_k_of_random_points(model, shots):
    assert 0.84 < held(model, anywhere(shots), anywhere(10))[0].mean() < 0.96


def test_three_early_points_and_questions_at_the_end_of_the_range_and_beyond(model):
    def early(rng):
        return rng.uniform([0.1, 0.9, 1.9], [0.3, 1.1, 2.1])

    assert 0.83 < held(model, early, lambda rng: rng.uniform(7, 10, 10))[0].mean() < 0.95
    assert held(model, early, lambda rng: rng.uniform(10, 13, 10))[0].mean() > 0.80


def test_at_low_and_high_levels_of_a_target_whose_noise_grows_with_it(model):
    shares, level = held(model, anywhere(3), anywhere(10))
    fifths = [shares[part].mean() for part in np.array_split(np.argsort(level), 5)]
    assert min(fifths) > 0.78


def test_a_standard_deviation_is_there_for_every_method_that_is_calibrated(model):
    prediction, std = model.fit([1.0, 3.0], [3.0, 4.0]).predict([2.0, 9.0], return_std=True)
    low, high = model.predict_interval([2.0, 9.0], 0.683)
    assert (std == (high - low) / 2).all() and std[1] > std[0] > 0 and (low < prediction).all()

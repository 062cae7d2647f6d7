"""Families of functions of unusual size reach a learner in usual units, and are answered in their own."""

import json

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import main
from dataset import SineLineTaskGenerator, SinusoidalTaskGenerator, stream
from regressor import FewShotRegressor
from tables.scaled import ScaledFamily, in_usual_units

TURN = 16 * 2 * np.pi  # a sinusoid is the same there
MOVED = {  # the family, its unit, and where its inputs are
    "larger": (SinusoidalTaskGenerator(amplitude_range=(10.0, 500.0)), 100.0, 0.0),
    "smaller": (SinusoidalTaskGenerator(amplitude_range=(0.001, 0.05)), 0.01, 0.0),
    "aside": (SinusoidalTaskGenerator(x_range=(TURN - 5, TURN + 5)), 1.0, TURN),
}


@pytest.mark.parametrize("family", [SinusoidalTaskGenerator, SineLineTaskGenerator])
def test_usual_families_are_left_as_they_are(family):
    generator = family()
    assert in_usual_units(generator) is generator


@pytest.mark.parametrize("name", MOVED)
def test_a_learner_sees_the_tasks_of_the_usual_family(name):
    moved, unit, centre = MOVED[name]
    scaled, usual = in_usual_units(moved), SinusoidalTaskGenerator()
    assert isinstance(scaled, ScaledFamily) and scaled.x_range == (-5, 5) and scaled.y_scale == unit
    for found, expected in zip(scaled.held_out("test", 20, 5, 7).tasks, usual.held_out("test", 20, 5, 7).tasks, strict=True):
        assert_allclose(found.x, expected.x, atol=2e-5)
        assert_allclose(found.y, expected.y, atol=1e-4)
    params = scaled.split("train", 9, 0)
    support, _ = scaled.tasks(params, 4, 3, stream(0, "points"))
    assert_allclose(support.y, scaled.truth(params, support.x), atol=1e-4)
    own = scaled.unscale(support)
    assert_allclose(own.y, moved.truth(params, own.x.astype(np.float32)), atol=1e-4 * unit)
    assert np.abs(own.x - centre).max() <= 5.001


def test_noise_has_the_size_that_was_asked_for_in_own_units():
    scaled = in_usual_units(SinusoidalTaskGenerator(amplitude_range=(10.0, 500.0), noise_std=30.0))
    clean = np.zeros((1, 4000, 1), np.float32)
    assert_allclose(scaled.measured(clean, np.random.default_rng(0)).std(), 0.3, rtol=0.05)


def test_targets_far_from_zero_are_centred():
    class Far(SinusoidalTaskGenerator):
        def curve(self, params, x):
            return super().curve(params, x) + 100

    scaled = in_usual_units(Far())
    assert_array_equal(scaled.coding.centre, [0, 100])
    expected = SinusoidalTaskGenerator().held_out("test", 9, 5, 7).tasks.query.y
    assert_allclose(scaled.held_out("test", 9, 5, 7).tasks.query.y, expected, atol=1e-4)


def test_a_run_reports_and_predicts_in_own_units(tmp_path, capsys):
    settings = ["EPOCHS=2", "NUM_TASKS=500", "COMPILE=never", "EVAL_TASKS=40", "AMPLITUDE_MIN=10", "AMPLITUDE_MAX=500"]
    assert (
        main.main(["--method", "r2d2", "--output", str(tmp_path), "--name", "a", "--set", *settings, "X_MIN=0", "X_MAX=6"]) == 0
    )
    assert "in units of 100, squared" in capsys.readouterr().out
    run = tmp_path / "R2D2_Sinusoidal_a"
    found = json.loads((run / "metrics.json").read_text())["evaluation"]["shots"]["10"]
    assert_allclose(found["rmse"], 100 * np.sqrt(found["mse"]))
    model = FewShotRegressor.load(run)
    assert_allclose(model.x_range[:, 0], [0, 6])
    x = np.linspace(0, 6, 20)
    error = np.square(model.fit(x, 300 * np.sin(x - 1)).predict(x) - 300 * np.sin(x - 1)).mean()
    assert error < 300**2 / 8  # of a short training

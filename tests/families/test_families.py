"""The families of functions beside the papers': what their curves are, and that what learners see does not depend on units."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

import main
from config import Config
from dataset import Points, stream
from evaluation.baselines import baselines
from families.damped import DampedTaskGenerator
from families.five import FiveTaskGenerator
from families.gaussian_process import GaussianProcessTaskGenerator
from registry import defaults, tasks_of
from tables.scaled import in_usual_units

GRID = np.linspace(-2, 2, 50)[:, None]


def test_a_damped_oscillation_is_the_formula_from_the_lower_end_on():
    x = np.linspace(0, 10, 9)[:, None]
    expected = 1.5 * np.exp(-0.2 * x) * np.cos(1.2 * x + 0.7)
    for low in (0.0, -5.0):
        family = DampedTaskGenerator(x_range=(low, low + 10))
        assert_allclose(family.curve(np.array([1.5, 0.2, 1.2, 0.7], np.float32), x + low), expected, atol=1e-5)


@pytest.mark.parametrize("moved", [(-5.0, 5.0), (100.0, 110.0)])
def test_a_learner_sees_the_same_damped_tasks_wherever_they_lie(moved):
    tasks = [
        in_usual_units(DampedTaskGenerator(x_range=x_range)).held_out("test", 9, 5, 7).tasks for x_range in ((0, 10), moved)
    ]
    for one, other in zip(*tasks, strict=True):
        assert_allclose(one.x, other.x, atol=2e-5)
        assert_allclose(one.y, other.y, atol=1e-3)


def test_each_of_five_kinds_is_its_formula_and_a_fifth_of_the_tasks():
    x, family = np.array([[-2.0], [0.5], [3.0]]), FiveTaskGenerator()
    rest = [2.0, 0.5, -1.5, 0.1, 1.0, 0.25, -1.0]
    found = [family.curve(np.array([kind, *rest], np.float32), x) for kind in range(5)]
    curved = -0.1 * (x - 1) ** 2 + 0.25
    expected = [2 * np.sin(x - 0.5), -1.5 * x + 0.25, curved, -1.5 * np.tanh(x - 1) + 0.25, -1.5 * np.abs(x - 1) + 0.25]
    assert_allclose(found, expected, rtol=1e-5)
    kinds = family.draw(20_000, stream(0, "functions"))[:, 0]
    assert_allclose(np.bincount(kinds.astype(int)) / len(kinds), 0.2, atol=0.01)


@pytest.mark.parametrize(("kernel", "tolerance"), [("rbf", 1e-5), ("matern", 1e-4), ("periodic", 1e-5)])
def test_the_functions_of_a_process_have_its_covariance(kernel, tolerance):
    family = GaussianProcessTaskGenerator(x_range=(-2.0, 2.0), kernel=kernel)
    features = family.covariance(GRID[:, 0], family.grid) @ family.basis
    assert_allclose(features @ features.T, family.covariance(GRID[:, 0], GRID[:, 0]), atol=tolerance)


def test_the_kernels_are_those_of_the_textbook():
    at = {
        kernel: GaussianProcessTaskGenerator(kernel=kernel, length=2.0, scale=3.0, period=4.0)
        for kernel in ("rbf", "matern", "periodic")
    }
    found = {kernel: family.covariance(np.array([1.0]), np.array([2.0])).item() / 9 for kernel, family in at.items()}
    root = np.sqrt(5) / 2
    assert_allclose(found["rbf"], np.exp(-1 / 8))
    assert_allclose(found["matern"], (1 + root + root**2 / 3) * np.exp(-root))
    assert_allclose(found["periodic"], np.exp(-2 * np.sin(np.pi / 4) ** 2 / 4))


def test_the_exact_posterior_is_that_of_the_joint_gaussian_and_nothing_is_better():
    family = GaussianProcessTaskGenerator(x_range=(-2.0, 2.0), noise_std=0.1)
    support, query = family.held_out("test", 300, 6, 20).tasks
    x = np.concatenate([support.x[0], query.x[0]]).astype(float)[:, 0]
    joint = family.covariance(x, x)
    precision = np.linalg.inv(joint + np.diag([0.01] * 6 + [1e-6] * 20))  # the mean by the other partition of its inverse
    expected = -np.linalg.solve(precision[6:, 6:], precision[6:, :6] @ support.y[0].astype(float))
    assert_allclose(family.posterior(support, query.x)[0], expected[:, 0], atol=1e-4)
    assert_allclose(
        in_usual_units(family).posterior(Points(2.5 * support.x, support.y), 2.5 * query.x)[0], expected[:, 0], atol=1e-4
    )
    error = np.square(family.posterior(support, query.x) - query.y[..., 0]).mean()
    for kernel, length in (("rbf", 0.8), ("rbf", 0.3), ("matern", 0.5)):
        other = GaussianProcessTaskGenerator(x_range=(-2.0, 2.0), noise_std=0.1, kernel=kernel, length=length)
        assert error < np.square(other.posterior(support, query.x) - query.y[..., 0]).mean()


@pytest.mark.parametrize(
    ("setting", "reason"),
    [("INPUT_DIM=2", "one input"), ("GP_PERIOD=2", "GP_KERNEL=periodic"), ("GP_LENGTH=0.01", "too short")],
)
def test_settings_that_do_not_suit_the_process_are_refused(setting, reason, tmp_path, capsys):
    assert main.main(["--tasks", "gp", "--set", setting, "--output", str(tmp_path)]) == 2
    assert reason in capsys.readouterr().err


def test_the_exact_posterior_stands_with_the_baselines_where_it_is_known():
    for tasks, known in (("gp", True), ("damped", False), ("sinusoid", False)):
        generator = tasks_of(tasks, Config.resolve(defaults("maml", tasks)))
        assert ("exact posterior" in baselines(generator)) == known

"""The linear mixed model: its likelihood, its predictions, and a run of it."""

import itertools
import json

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

import main
from config import Config
from dataset import Points, stream
from evaluation.baselines import mixed_model
from learner import adapt_tasks
from methods.mixed_model import MixedModel, choose_mixed_model, fit_mixed_model, spline_features
from regressor import FewShotRegressor
from report.figures import run_figures
from tests.tools.tables import COVARIANCE, NOISE, lines, stacked, toy_rows, write


def constant_and_line(x):
    return torch.cat([torch.ones_like(x[..., :1]), x[..., :1]], -1)


def features_of(x):
    return constant_and_line(torch.from_numpy(x)).numpy()


def fitted(subjects):
    learner = MixedModel(Config(INPUT_DIM=subjects[0].x.shape[1]), stream(0, "weights"))
    learner.fit(subjects)
    return learner


def test_the_effects_that_were_simulated_are_recovered():
    model = fit_mixed_model(lines(2000), constant_and_line)
    assert_allclose(model.beta, [2, 3], atol=0.07)
    assert_allclose(model.covariance, COVARIANCE, atol=0.06)
    assert_allclose(model.noise, NOISE, rtol=0.05)


def test_its_likelihood_is_that_of_the_gaussian_and_no_step_lowers_it():
    subjects = lines(9)
    model = fit_mixed_model(subjects, constant_and_line)
    expected = 0.0
    for points in subjects:
        given = features_of(points.x)
        variance = given @ model.covariance.numpy() @ given.T + model.noise * np.eye(len(given))
        rest = points.y[:, 0] - given @ model.beta.numpy()
        expected -= 0.5 * (np.linalg.slogdet(2 * np.pi * variance)[1] + rest @ np.linalg.solve(variance, rest))
    assert_allclose(model.likelihood, expected, atol=0.02)  # of the step before the last
    values = [fit_mixed_model(lines(5, 4), constant_and_line, steps, -np.inf).likelihood for steps in range(1, 40)]
    assert (np.diff(values) >= -1e-9).all() and values[-1] > values[0] + 1


@pytest.mark.parametrize("shots", [1, 4])
def test_predictions_and_their_spread_are_those_of_bayes_rule(shots):
    learner = fitted(lines(20))
    beta, covariance, noise = (part.detach().numpy() for part in (learner.beta[:2], learner.covariance[:2, :2], learner.noise))
    support, query = stacked(lines(3, 9, seed=1), shots)
    found = adapt_tasks(learner, support, query.x, 2)
    for row in range(3):
        given, asked = (learner._features(torch.from_numpy(x[row])).detach().numpy()[:, :2] for x in (support.x, query.x))
        precision = given.T @ given / noise + np.linalg.inv(covariance)  # of the effects
        mean = np.linalg.solve(precision, given.T @ (support.y[row, :, 0] - given @ beta) / noise)
        assert_allclose(found.predictions[row, 0], asked @ beta, rtol=1e-9)
        for stage in (1, 2):
            assert_allclose(found.predictions[row, stage], asked @ (beta + mean), rtol=1e-9)
        variance = (asked @ np.linalg.inv(precision) * asked).sum(1)
        assert_allclose(found.std[row], np.sqrt(variance / noise), rtol=1e-9)


def test_few_subjects_with_few_points_give_finite_and_sensible_predictions():
    for subjects, inputs in itertools.product((2, 3, 5), (1, 3)):
        train = [*lines(subjects, 2, inputs=inputs), Points(np.zeros((1, inputs)), np.zeros((1, 1)))]
        support, query = stacked(lines(50, 9, seed=1, inputs=inputs), 1)
        assert np.abs(mixed_model(*choose_mixed_model(train))(support, query.x) - query.y[..., 0]).mean() < 4


def test_targets_without_noise_are_fitted_without_it_and_a_curve_gets_more_features_than_a_line():
    support, query = stacked(lines(20, noise=0, seed=1), 2)
    assert_allclose(mixed_model(*choose_mixed_model(lines(30, noise=0)))(support, query.x), query.y[..., 0], atol=0.1)
    curves = [Points(points.x, points.y + 3 * np.sin(6 * points.x)) for points in lines(30)]
    line, curve = (choose_mixed_model(subjects)[1] for subjects in (lines(30), curves))
    assert len(line.beta) == 2 < len(curve.beta)


def test_features_are_orthonormal_on_the_points_and_straight_beyond_them():
    x = np.random.default_rng(0).lognormal(0, 1, (400, 2))
    features = spline_features(torch.from_numpy(x), 5)
    values = features(torch.from_numpy(x)).numpy()
    assert values.shape == (400, 9)
    assert_allclose(values.T @ values / 400, np.eye(9), atol=1e-9)
    beyond = features(torch.linspace(50, 60, 5, dtype=torch.float64)[:, None].expand(5, 2)).numpy()
    assert_allclose(np.diff(beyond, 2, axis=0), 0, atol=1e-6 * np.abs(beyond).max())
    x = torch.tensor([[0.0, 0.0, 5.0], [1.0, 1.0, 5.0]], dtype=torch.float64).repeat(20, 1)
    assert spline_features(x, 6)(x).shape == (40, 2)  # equal and constant inputs leave fewer


# ---- a run


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folder of a finished run on a table, and of one of another method on the same."""
    folder = tmp_path_factory.mktemp("mixed")
    data = write(folder / "toy.csv", toy_rows())
    common = ["--data", str(data), "--output", str(folder), "--name", "toy", "--set", "EVAL_REPEATS=2"]
    assert main.main(["--method", "mixed-model", *common]) == 0
    assert main.main(["--method", "anil", *common, "EPOCHS=2", "COMPILE=never"]) == 0
    return folder


def metrics_of(runs, method):
    return json.loads((runs / f"{method}_Table_toy" / "metrics.json").read_text())


def test_a_run_has_the_errors_that_other_runs_show_as_a_baseline(runs):
    own, other = (metrics_of(runs, method)["evaluation"] for method in ("MIXED-MODEL", "ANIL"))
    for shots, found in own["shots"].items():
        assert_allclose(found["mse"][1], other["baselines"]["linear mixed model"][shots]["mse"], rtol=1e-5)
    assert list(own["baselines"]) == [name for name in other["baselines"] if name != "linear mixed model"]


def test_it_is_fitted_in_one_step_without_a_training_curve(runs):
    metrics = metrics_of(runs, "MIXED-MODEL")
    assert (metrics["train"], metrics["performance"]["iterations"]) == ([], 6)  # five folds, and everybody
    with np.load(runs / "MIXED-MODEL_Table_toy" / "plots" / "data.npz") as arrays:
        names = list(run_figures(dict(arrays), 3, (), {}, ""))
    assert "task_predictions" in names and "training_curves" not in names


def test_its_run_predicts_compares_and_is_complete(runs, tmp_path, capsys):
    run = runs / "MIXED-MODEL_Table_toy"
    points = write(tmp_path / "points.csv", [["4", "52"], ["9", "61"], ["12", ""]], "x,y")
    assert main.main(["--predict", str(run), "--points", str(points)]) == 0
    header, row = (tmp_path / "predictions.csv").read_text().splitlines()
    model = FewShotRegressor.load(run).fit([4, 9], [52, 61])
    assert_allclose(float(row.split(",")[header.split(",").index("prediction_after")]), model.predict([12])[0], rtol=1e-6)
    low, high = model.predict_interval([12])
    assert low < model.predict([12]) < high
    assert main.main(["--compare", str(run), str(runs / "ANIL_Table_toy"), "--output", str(tmp_path)]) == 0
    capsys.readouterr()
    assert main.main(["--resume", str(run)]) == 0
    assert capsys.readouterr().out.rstrip().endswith(run.name)  # nothing to raise


def test_settings_of_training_are_refused(tmp_path, capsys):
    assert main.main(["--method", "mixed-model", "--set", "EPOCHS=3", "--output", str(tmp_path)]) == 2
    assert "EPOCHS has no effect on mixed-model with sinusoid tasks" in capsys.readouterr().err


def test_what_can_not_be_fitted_is_a_divergence(tmp_path, monkeypatch, capsys):
    def unsolvable(*_):
        raise torch.linalg.LinAlgError

    monkeypatch.setattr("methods.mixed_model.choose_mixed_model", unsolvable)
    assert main.main(["--method", "mixed-model", "--output", str(tmp_path)]) == 3
    assert "training diverged at iteration 1 (got what was fitted = nan" in capsys.readouterr().err

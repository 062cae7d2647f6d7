"""Prediction intervals: they hold what they say on other tasks, follow difficulty, survive divergence, and stay with a run."""

import json

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

import main
from config import Config
from dataset import Points, SinusoidalTaskGenerator, stream
from evaluation import errors as errors_module
from evaluation import intervals
from evaluation.intervals import (
    LEVELS,
    SURE,
    Residuals,
    calibrate,
    cross_calibrated,
    evaluate_intervals,
    half_widths,
    joined_residuals,
    task_weights,
)
from learner import AdaptedTasks, adapt_tasks
from registry import METHODS, TASKS, defaults
from regressor import FewShotRegressor
from report.figures import run_figures
from system.checkpoints import read_checkpoint
from tests.tools.methods import learner_of
from tests.tools.tables import toy_rows, write
from training.experiment import Experiment


def tasks(count, points, seed, alike=0.0):
    """Hints [B, N, 2], residuals without and with noise of 0.1, owners. A residual's size is that of its first hint, which
    the points of a task share; `alike` is the share of its variance that is one number for the whole task.
    """
    rng = np.random.default_rng(seed)
    size = np.exp(rng.normal(0, 0.8, count))[:, None]
    features = np.stack([np.broadcast_to(size, (count, points)), rng.uniform(0.1, 1, (count, points))], -1)
    together, alone = rng.normal(size=(count, 1)), rng.normal(size=(count, points))
    clean = size * (np.sqrt(alike) * together + np.sqrt(1 - alike) * alone)
    return features, clean, clean + 0.1 * rng.normal(size=clean.shape), np.arange(count)


def judge(entry, *residuals, coverage=0.9):
    return evaluate_intervals([entry], Residuals(*residuals), np.zeros(len(residuals[3]), int), coverage)


def test_intervals_hold_their_share_of_new_tasks_and_a_few_are_off_by_no_more_than_their_number_explains():
    for alike in (0.0, 0.9):
        entry = calibrate(*tasks(400, 20, 0, alike))
        for coverage in (0.5, 0.8, 0.9, 0.95):
            assert abs(judge(entry, *tasks(400, 20, 1, alike), coverage=coverage)[0]["coverage"] - coverage) < 0.05
    pairs = ((tasks(8, 30, 2 * seed, 0.3), tasks(50, 30, 2 * seed + 1, 0.3)) for seed in range(20))
    held = [judge(calibrate(*few), *others)[0]["coverage"] for few, others in pairs]
    assert abs(np.mean(held) - 0.9) < 0.03


def test_width_follows_difficulty_and_beats_a_constant_width():
    result, arrays = judge(calibrate(*tasks(200, 20, 0)), *tasks(200, 20, 1))
    assert result["rank_correlation"] > 0.8
    assert result["score"] < 0.9 * result["constant_score"]
    assert arrays["width"].shape == arrays["error"].shape == (200,)
    assert_allclose(arrays["coverage"], arrays["nominal"], atol=0.05)


def test_noise_of_the_measurements_is_part_of_the_width_and_hints_that_say_nothing_cost_nothing():
    rng = np.random.default_rng(0)
    features, clean = np.full((100, 20, 1), 0.5), 0.01 * rng.normal(size=(100, 20))
    measured = clean + rng.normal(size=clean.shape)
    entry = calibrate(features, clean, measured, np.arange(100))
    assert_allclose(entry["noise"], 1.0, rtol=0.1)
    assert_allclose(half_widths(entry, features, 0.9), 1.645, rtol=0.1)
    generator, y = SinusoidalTaskGenerator(noise_std=0.5), np.zeros((1000, 10), np.float32)  # of its measured targets
    assert_allclose(generator.measured(y, stream(0, "measured")).std(), 0.5, rtol=0.05)
    assert_array_equal(SinusoidalTaskGenerator().measured(y, stream(0, "measured")), y)
    residuals = rng.normal(size=(2, 200, 10))
    known, new = ((rng.uniform(0.1, 1, (200, 10, 3)), part, part, np.arange(200)) for part in residuals)
    result, _ = judge(calibrate(*known), *new)
    assert_allclose(result["score"], result["constant_score"], rtol=0.03)


def test_quantiles_are_conformal_where_there_are_enough_tasks_and_lie_on_lines_between_levels():
    values = np.array([[1.0, np.nan, np.nan], [1.0, 2.0, 3.0], [4.0, np.nan, np.nan]])  # every task weighs the same
    assert_allclose(task_weights(values, np.array([0, 1, 1])), [[1, 0, 0], [0.25, 0.25, 0.25], [0.25, 0, 0]])
    scores, weights = np.arange(1.0, SURE + 1), np.ones(SURE)
    assert intervals.task_quantiles(scores, weights, np.array([0.5, 0.9]))[1] == np.ceil(0.9 * (SURE + 1))
    assert intervals.task_quantiles(scores, weights, np.array([0.999]))[0] == np.inf
    assert intervals.task_quantiles(scores[:10], weights[:10], np.array([0.9, 0.999])).tolist() == [9, 10]
    curve = (LEVELS * 10).tolist()
    assert_allclose([intervals.quantile(curve, level) for level in (0.001, 0.5, 0.9025)], [0.01, 5, 9.025])
    assert intervals.quantile(curve, 0.9999) == np.inf
    assert intervals.quantile([*curve[:-1], np.inf], 0.993) == np.inf and intervals.quantile([*curve[:-1], np.inf], 0.99) < 10


def test_each_part_of_cross_calibration_is_judged_by_what_the_others_say():
    parts = [Residuals(*tasks(60, points, seed)) for seed, points in enumerate((12, 20, 16))]
    everything, sizes = joined_residuals(parts), [60, 60, 60]
    assert everything.features.shape == (180, 20, 2) and len(set(everything.owners)) == 180
    entries = cross_calibrated(everything, sizes)
    alone = joined_residuals([parts[0], parts[2]])
    assert entries[1]["quantiles"] == calibrate(*alone)["quantiles"]
    found, _ = evaluate_intervals(entries, everything, np.repeat([0, 1, 2], sizes))
    assert abs(found["coverage"] - 0.9) < 0.03


def test_what_diverged_has_the_whole_line_and_spoils_no_other_interval():
    features, clean, measured, owners = tasks(200, 5, 0)
    entry = calibrate(features, clean, measured, owners)
    for part in (features, clean, measured):
        part[::20] = np.inf
    again = calibrate(features, clean, measured, owners)
    assert intervals.scale(again, features[:1])[0, 0] == np.inf
    fine = half_widths(again, features[1:2], 0.5)
    assert np.isfinite(fine).all() and abs(np.log(fine / half_widths(entry, features[1:2], 0.5))).max() < 0.3
    result, _ = judge(again, features, clean, measured, owners)
    assert result["coverage"] > 0.9 and result["width"] == np.inf


def test_any_residuals_give_an_entry_and_intervals_without_a_warning():
    for value in (0.0, np.inf, 1e300):
        features, clean = np.full((3, 4, 2), min(value, 1e30)), np.full((3, 4), value)
        entry = calibrate(features, clean, clean, np.arange(3))
        assert not np.isnan(half_widths(entry, features, 0.9)).any()
        judge(entry, features, clean, clean, np.arange(3))
        json.dumps(entry)


def test_hints_are_residuals_moves_distances_sizes_and_the_spread():
    x, support = np.array([[[2.0], [-7.0]]]), Points(np.array([[[1.0], [4.0]]]), np.array([[[1.0], [3.0]]]))
    path = np.array([[[0.0, 0.0], [1.0, 2.0], [1.0, 3.0], [2.0, 5.0]]])  # [1, S+1, N]
    at_support = np.array([[[0.0, 0.0], [9.0, 9.0], [1.0, 2.0], [1.0, 3.0]]])
    found = intervals.difficulty_features(path, at_support, support, x, np.array([[0.1, 0.2]]))
    expected = [[np.sqrt(5), np.sqrt(0.5), 0, 2, 1, 1, 2, 2, 2, 0.1], [np.sqrt(5), np.sqrt(0.5), 0, 5, 2, 8, 11, 7, 5, 0.2]]
    assert_allclose(found[0, :, :-1], expected)
    assert_allclose(found[0, :, -1], np.exp([2, 5]))  # the level


def test_of_fewer_than_ten_tasks_widths_are_the_learners_own_deviation_times_a_factor():
    rng = np.random.default_rng(0)
    features = rng.uniform(0.5, 2, (9, 20, 11))
    clean = features[..., intervals.STD] * rng.normal(size=(9, 20))
    entry = calibrate(features, clean, clean, np.arange(9))
    ratio = half_widths(entry, features, 0.9) / features[..., intervals.STD]
    assert ratio.std() < 0.1 * ratio.mean() and 1.3 < ratio.mean() < 2


@pytest.mark.parametrize("shots", [4, 12])  # fewer points than features, and more
def test_the_spread_is_the_posterior_deviation_of_ridge_regression_on_the_last_hidden_layer(shots):
    learner = METHODS["r2d2"].from_config(Config(HIDDEN_DIM=6), stream(0, "weights"))
    torch.nn.init.normal_(learner.log_precision, generator=torch.Generator().manual_seed(0))
    rng = np.random.default_rng(0)
    support = Points(*(rng.normal(size=(3, shots, 1)).astype(np.float32) for _ in range(2)))
    x = rng.normal(size=(3, 5, 1)).astype(np.float32)
    found = adapt_tasks(learner, support, x, 1).std
    precision = np.diag(np.exp(learner.log_precision.detach().double().numpy()))
    for task in range(3):
        known, asked = (
            np.append(learner.network.hidden(learner.theta, torch.from_numpy(part)).detach().double().numpy(), one, axis=1)
            for part, one in ((support.x[task], np.ones((shots, 1))), (x[task], np.ones((5, 1))))
        )
        variance = np.diag(asked @ np.linalg.inv(known.T @ known + precision) @ asked.T)
        assert_allclose(found[task], np.sqrt(variance), rtol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_the_spread_of_any_method_grows_away_from_the_support_points_whatever_becomes_of_other_tasks(method):
    learner = learner_of(method, Config(HIDDEN_DIM=20))
    support = Points(np.array([[[-1.0], [1.0]], [[-1.0], [1e30]]], np.float32), np.array([[[0.5], [1.0]]] * 2, np.float32))
    x = np.array([[[1.0], [5.0]]] * 2, np.float32)  # the second task's support point at 1e30 makes most methods diverge
    near, far = adapt_tasks(learner, support, x, 5).std[0]
    assert 0 < near < far
    assert_allclose(adapt_tasks(learner, Points(*(part[:1] for part in support)), x[:1], 5).std[0], [near, far], rtol=1e-4)


def test_beyond_what_was_seen_widths_grow_with_the_residuals_at_the_support_points_and_with_nothing_unknown():
    rng = np.random.default_rng(0)
    features, clean = rng.uniform(0.5, 1, (60, 5, 10)), rng.normal(size=(60, 5))
    entry, known = calibrate(features, clean, clean, np.arange(60)), features[0, 0]

    def width(place, value):
        changed = known.copy()
        changed[place] = value
        return float(half_widths(entry, changed, 0.9))

    for place in (2, 9):  # the residuals after adapting, and the spread
        assert_allclose(width(place, 1000.0) / width(place, 100.0), 10, rtol=0.02)
    for place in (0, 1, 3, 4, 5, 6, 7, 8):
        assert width(place, 1000.0) == width(place, 100.0) and width(place, 0.0) == width(place, 0.1)


def test_the_score_is_width_and_a_penalty_outside_and_ranks_are_shared():
    assert_allclose(intervals.interval_score(np.array([0.5, 3.0]), np.array([1.0, 1.0]), 0.9), [2, 2 + 20 * 2])
    assert intervals.interval_score(np.array([np.inf]), np.array([np.inf]), 0.9)[0] == np.inf
    assert_allclose(intervals.rank_correlation(np.array([1.0, 2, 3, np.inf]), np.array([1.0, 8, 27, 0])), 1)
    assert_allclose(intervals.rank_correlation(np.array([1.0, 1, 2]), np.array([3.0, 2, 1])), -np.sqrt(3) / 2)
    assert np.isnan(intervals.rank_correlation(np.ones(3), np.arange(3.0)))
    calibration = {"5": {"tasks": 5}, "10": {"tasks": 10}, "20": {"tasks": 20}}  # of the number of points, or the next below
    assert [intervals.entry_for(calibration, shots)["tasks"] for shots in (1, 5, 7, 10, 19, 500)] == [5, 5, 5, 10, 10, 20]


TINY = ["EPOCHS=1", "NUM_TASKS=8", "META_BATCH_SIZE=4", "HIDDEN_DIM=6", "EVAL_TASKS=20", "VALIDATION_TASKS=4", "EVAL_STEPS=2"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory, figures):
    """Runs on a formula and on a table, of whose figures only that of the intervals is drawn."""
    output = tmp_path_factory.mktemp("intervals")
    write(output / "toy.csv", toy_rows())
    own = ["EPOCHS=2", "HIDDEN_DIM=6", "EVAL_STEPS=2", "VALIDATION_INTERVAL=10", "EVAL_REPEATS=2"]
    with figures(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(Experiment, "show_progress", lambda *_: None)
        patch.setattr("report.figures.run_figures", lambda *args: {"intervals": run_figures(*args)["intervals"]})
        for method, tasks, settings in (("maml", [], TINY), ("r2d2", ["--data", str(output / "toy.csv")], own)):
            words = [word for text in (*settings, "COMPILE=never") for word in ("--set", text)]
            assert main.main(["--method", method, *tasks, "--name", "a", "--output", str(output), *words]) == 0
    return output


def test_intervals_are_judged_on_the_first_test_tasks_and_a_diverged_one_is_among_them(monkeypatch):
    few = {"EVAL_TASKS": 8, "EVAL_STEPS": 2, "HIDDEN_DIM": 6, "COMPILE": "never"}
    config = Config.resolve(defaults("maml", "sinusoid"), few)
    experiment = Experiment("maml", METHODS["maml"], "sinusoid", TASKS["sinusoid"](config), config)

    def adapted(learner, support, x, steps):
        found = np.zeros((len(x), steps + 1, x.shape[1]), np.float32)
        found[2] = np.nan
        return AdaptedTasks(found, np.zeros((len(x), steps + 1, 10)), np.ones(x.shape[:2]), np.zeros((len(x), 0)))

    monkeypatch.setattr(errors_module, "INTERVAL_TASKS", 5)
    monkeypatch.setattr(errors_module, "adapt_tasks", adapted)
    held_out = experiment.held_out("test", 10)
    found = errors_module.adapt_held_out(experiment.learner, experiment.generator, held_out, 2, stream(0, "measured"))
    _, clean, measured, owners = found.residuals
    y = held_out.tasks.query.y[:5, : clean.shape[1], 0]
    experiment.close()
    assert np.isinf(clean[2]).all() and np.isinf(measured[2]).all() and (task_weights(measured, owners).sum(1) > 0.99).all()
    assert_array_equal(np.delete(clean, 2, 0), np.delete(y, 2, 0))


@pytest.mark.parametrize("name", ["MAML_Sinusoidal_a", "R2D2_Table_a"])
def test_a_run_keeps_its_calibration_and_says_what_it_is_worth(name, runs):
    metrics = json.loads((runs / name / "metrics.json").read_bytes())
    calibration = read_checkpoint(runs / name / "checkpoints" / "best.pt")["calibration"]["2"]
    for count, result in metrics["evaluation"]["shots"].items():
        found = result["interval"]
        assert found["level"] == 0.9 and 0.5 < found["coverage"] <= 1 and found["width"] > 0
        assert found["calibrated_on"] == calibration[count]["tasks"] >= 2
    assert (runs / name / "plots" / "intervals.png").exists()
    assert "90% interval: holds, width" in (runs / name / "train.log").read_text()
    assert "90% interval" in (runs / name / "report.html").read_text()
    if name == "R2D2_Table_a":  # widths are in its own units
        model = FewShotRegressor.load(runs / name).fit([1.0, 2, 3, 4, 5], [50.0, 52, 51, 53, 52])
        low, high = model.predict_interval(np.linspace(0, 9, 50))
        widths = [result["interval"]["width"] for result in metrics["evaluation"]["shots"].values()]
        assert 0.2 * min(widths) < (high - low).mean() < 5 * max(widths)


def test_evaluating_after_other_gradients_adds_a_calibration_and_the_same_again_changes_no_bit(runs):
    best = runs / "MAML_Sinusoidal_a" / "checkpoints" / "best.pt"
    before = read_checkpoint(best)
    assert main.main(["--evaluate", str(best.parent.parent), "--set", "EVAL_STEPS=3"]) == 0
    after = read_checkpoint(best)
    assert set(after["calibration"]) == {"2", "3"} and after["calibration"]["2"] == before["calibration"]["2"]
    data = best.read_bytes()
    assert main.main(["--evaluate", str(best.parent.parent), "--set", "EVAL_STEPS=3"]) == 0
    assert best.read_bytes() == data
    model = FewShotRegressor.load(best).set_params(steps=3)
    assert model.has_intervals and not model.set_params(steps=4).has_intervals


def test_intervals_that_fail_cost_a_run_a_warning_and_nothing_else(runs, monkeypatch, capsys):
    monkeypatch.setattr("evaluation.evaluate.calibrate", lambda *_: 1 / 0)
    assert main.main(["--evaluate", str(runs / "R2D2_Table_a")]) == 0
    assert "there are no intervals at K = 1 (ZeroDivisionError" in capsys.readouterr().err
    evaluation = json.loads((runs / "R2D2_Table_a" / "metrics.json").read_bytes())["evaluation"]
    assert evaluation["verdict"] and all("interval" not in result for result in evaluation["shots"].values())

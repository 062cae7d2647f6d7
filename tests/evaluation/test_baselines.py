"""Baselines: what they predict, what they may know, and where a run shows them."""

import json

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import main
from dataset import Points, SinusoidalTaskGenerator
from evaluation.baselines import (
    baseline_errors,
    baselines,
    mean_curve,
    mean_function,
    mixed_model,
    nearest_subject,
    shifted_mean_curve,
)
from evaluation.statistics import relative_difference
from methods.mixed_model import choose_mixed_model
from report.figures import adaptive_results, error_against_gradients
from tests.tools.tables import generator_of, lines, stacked, toy_rows, train, write

KINDS = {
    "mean": lambda subjects: shifted_mean_curve(mean_curve(subjects)),
    "nearest": nearest_subject,
    "mixed": lambda subjects: mixed_model(*choose_mixed_model(subjects)),
}


def test_the_nearest_subject_is_found_and_its_curve_is_interpolated():
    for inputs in (1, 2):
        subjects = lines(30, inputs=inputs)
        support, query = stacked(subjects, 5)
        assert_allclose(nearest_subject(subjects)(support, query.x), query.y[..., 0])
    subjects = [Points(np.array([[0.0], [2.0]]), np.array([[0.0], [4.0]])), Points(np.zeros((1, 1)), np.full((1, 1), 9.0))]
    found = nearest_subject(subjects)(Points(np.ones((1, 1, 1)), np.full((1, 1, 1), 3.0)), np.array([[[1.5], [3.0]]]))
    assert_array_equal(found, [[3.0, 4.0]])


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_point_a_baseline_answers_with_the_population(kind):
    subjects, (support, query) = lines(40), stacked(lines(10, seed=1), 0)
    found = KINDS[kind](subjects)(support, query.x)
    assert np.square(found - (2 + 3 * query.x[..., 0])).mean() < 0.2


@pytest.mark.parametrize("kind", KINDS)
def test_predictions_move_and_scale_with_all_targets_and_a_row_does_not_depend_on_the_others(kind):
    subjects, (support, query) = lines(25), stacked(lines(10, seed=1), 3)
    predict = KINDS[kind](subjects)
    one = predict(support, query.x)
    other = KINDS[kind]([Points(x, 5 * y - 30) for x, y in subjects])(Points(support.x, 5 * support.y - 30), query.x)
    assert_allclose(other, 5 * one - 30, rtol=1e-3)
    assert_allclose(predict(Points(*(part[4:5] for part in support)), query.x[4:5])[0], one[4])
    if kind == "mean":  # the curve goes through the mean of the support points
        assert_allclose(predict(support, support.x).mean(1), support.y.mean((1, 2)))


def test_the_best_single_function_has_the_error_that_the_family_implies():
    family = SinusoidalTaskGenerator()
    x = np.linspace(-5, 5, 41, dtype=np.float32)[None, :, None]
    mean = 2.55 * 2 / np.pi * -np.cos(x[..., 0])  # E[A] E[sin(x - phase)], phase uniform in [0, pi]
    found = mean_function(family)(Points(x, x), x)
    assert np.square(found - mean).mean() < 0.02
    tasks = (held_out := family.held_out("test", 30, 5, 20)).tasks  # whose rows are the tasks
    expected = np.square(mean_function(family)(tasks.support, tasks.query.x) - tasks.query.y[..., 0]).mean(1)
    assert_allclose(baseline_errors(mean_function(family), held_out), expected, rtol=1e-5)


@pytest.fixture
def toy(tmp_path):
    return generator_of(write(tmp_path / "toy.csv", toy_rows(splits=True)))


def test_baselines_are_made_of_all_points_of_training_subjects_and_of_no_others(tmp_path, toy):
    rows = [[*row[:2], str(-9 * float(row[2])) if row[3] != "train" else row[2], row[3]] for row in toy_rows(splits=True)]
    other = generator_of(write(tmp_path / "other.csv", rows))
    support, query = toy.held_out("test", 0, 3, 0).tasks
    for one, same in zip(baselines(toy).values(), baselines(other).values(), strict=True):
        assert_array_equal(one(support, query.x), same(support, query.x))
    members = toy.split("train", 0, 0)[:, 0]
    found = toy.measurements("train")
    assert found is not None and [len(points.y) for points in found] == toy.counts[members].tolist()
    own = np.isin(np.repeat(np.arange(len(toy.counts)), toy.counts), members)
    assert_array_equal(np.concatenate([points.y for points in found]), toy.y[own])


def test_errors_are_means_over_all_points_of_a_subject_in_one_part_or_many(monkeypatch, toy):
    held_out = toy.held_out("test", 0, 8, 0)
    found = baseline_errors(lambda support, x: np.zeros(x.shape[:2]), held_out)
    assert_array_equal(np.isnan(found), ~held_out.evaluable)
    for place in np.flatnonzero(held_out.evaluable):
        assert_allclose(found[place], np.nanmean(np.square(held_out.tasks.query.y[held_out.owners == place], dtype=float)))
    whole = [baseline_errors(one, held_out) for one in baselines(toy).values()]
    monkeypatch.setattr("evaluation.baselines.CHUNK", 1)
    assert_allclose([baseline_errors(one, held_out) for one in baselines(toy).values()], whole)


def test_the_relative_difference_covers_the_true_one_as_often_as_it_says():
    rng, hits = np.random.default_rng(0), 0
    for _ in range(400):
        hard = rng.gamma(3, 1, 40)
        _, low, high = relative_difference(hard * rng.gamma(4, 0.25, 40) * 0.64, hard * rng.gamma(4, 0.25, 40))
        hits += low <= -0.2 <= high
    assert 0.91 <= hits / 400 <= 0.98


@pytest.mark.parametrize("subjects", [3, 5, 8, 12])
def test_of_few_subjects_with_a_few_hard_ones_equals_are_told_apart_as_seldom_as_it_says(subjects):
    for spread in (0.5, 1.0, 1.5):
        covariance = spread**2 * np.array([[1, 0.8], [0.8, 1]])
        trials = np.exp(np.random.default_rng(subjects).multivariate_normal([0, 0], covariance, (500, subjects)))
        told = sum(low > 0 or high < 0 for _, low, high in (relative_difference(*errors.T) for errors in trials))
        assert told / 500 <= 0.09  # 0.05, give or take; with as many degrees of freedom as subjects up to 0.23
    other = np.array([0.004, 0.009, 0.025, 0.006, 0.1, 0.017, 0.01])  # a difference that all share is told
    assert relative_difference(other * np.array([1.5, 1.4, 1.6, 1.5, 1.45, 1.55, 1.5]), other)[1] > 0.1


NAMES = ["one number for all", "mean curve, without points"]
NAMES += ["mean curve, shifted", "nearest training subject", "linear mixed model"]


def test_a_run_shows_its_baselines_everywhere_and_completes_without_them(tmp_path, monkeypatch, capsys):
    def fail(*args):
        raise MemoryError("too little")

    data, settings = write(tmp_path / "toy.csv", toy_rows()), ("--set", "EVAL_SHOTS=2,8")
    with monkeypatch.context() as patch:
        patch.setattr("evaluation.evaluate.baseline_errors", fail)
        bare = train(tmp_path, data, "bare", "--method", "anil", *settings)
    assert "warning: there are no baselines (MemoryError: too little)" in capsys.readouterr().err
    assert "baselines" not in json.loads((bare / "metrics.json").read_text())["evaluation"]

    run = train(tmp_path, data, "whole", *settings)
    printed = capsys.readouterr().out
    evaluation = json.loads((run / "metrics.json").read_text())["evaluation"]
    assert list(evaluation["baselines"]) == NAMES and evaluation["verdict"] in printed
    assert " of a new task y is off by " in evaluation["verdict"] and " 12 subjects)" not in evaluation["verdict"]
    with np.load(run / "plots" / "data.npz") as arrays:
        assert arrays["baselines"].tolist() == NAMES
        for shots in ("2", "8"):
            left_out, errors = arrays[f"test_left_out_{shots}_shot"], arrays[f"baseline_errors_{shots}_shot"]
            assert_array_equal(np.isnan(errors), np.tile(left_out, (5, 1)))
            for name, found in zip(NAMES, errors, strict=True):
                result = evaluation["baselines"][name][shots]
                assert_allclose(result["mse"], found[~left_out].mean())
                assert f"{result['mse']:.4g} +- {result['ci95']:.2g}" in (run / "train.log").read_text() and name in printed

    assert main.main(["--compare", str(bare), str(run), "--output", str(tmp_path / "c")]) == 0
    rows = next(tmp_path.glob("c/*/comparison.csv")).read_text().splitlines()
    assert [sum(name in row for row in rows) > 0 for name in ("ANIL", "MAML", *NAMES)] == [True] * 7
    shown = [line.split("  ")[0] for line in capsys.readouterr().out.splitlines()]
    assert sorted(set(shown) & {"ANIL", "MAML", *NAMES}) == sorted({"ANIL", "MAML", *NAMES})


def test_a_figure_has_a_line_for_each_baseline():
    arrays = {"baselines": np.array(["one", "two"]), "baseline_errors_4_shot": np.array([[3.0, np.nan], [1.0, np.nan]])}
    axis = error_against_gradients(adaptive_results({4: np.ones((2, 3))}, arrays), "a title").axes[0]
    found = {str(line.get_label()): line.get_ydata().tolist() for line in axis.lines}
    assert found == {"adapted network": [1, 1, 1], "one": [3, 3, 3], "two": [1, 1, 1]}

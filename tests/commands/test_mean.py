"""The mean of several methods as a run: judged, loaded, asked and compared as any other."""

import json

import numpy as np
import pytest
from numpy.testing import assert_allclose

import main
from regressor import FewShotRegressor
from tests.tools.tables import SETTINGS, toy_rows, write

METHODS = ("mixed-model", "alpaca", "r2d2")


@pytest.fixture(scope="module")
def series(tmp_path_factory):
    """The folder of `--data` without `--method`, and what it printed is in its log."""
    folder = tmp_path_factory.mktemp("mean")
    data = write(folder / "toy.csv", toy_rows())
    assert main.main(["--data", str(data), "--output", str(folder / "runs"), "--name", "t", *SETTINGS]) == 0
    return folder / "runs"


def runs_of(series):
    return [series / f"{method.upper()}_Table_t" for method in METHODS]


def test_a_table_without_a_method_has_three_runs_their_mean_and_a_comparison_that_says_how_to_predict(series):
    assert {path.name for path in series.glob("*_t")} == {path.name for path in runs_of(series)} | {"MEAN_Table_t"}
    (comparison,) = series.glob("Comparison_*/comparison.md")
    assert "to use: " in comparison.read_text() and "--predict " in comparison.read_text()


def test_it_predicts_the_mean_and_is_calibrated(series):
    model, x = FewShotRegressor.load(series / "MEAN_Table_t"), np.linspace(0, 30, 7)
    for points in (([], []), ([3.0, 9.0], [51.0, 55.0])):
        prediction, (low, high) = model.fit(*points).predict(x), model.predict_interval(x)
        assert (low < prediction).all() and (prediction < high).all() and np.isfinite(high - low).all()
    each = [FewShotRegressor.load(run).fit(*points).predict(x) for run in runs_of(series)]
    for run in (series / "MEAN_Table_t", runs_of(series)):
        assert_allclose(FewShotRegressor.load(run).fit(*points).predict(x), np.mean(each, 0), rtol=1e-5)
    with pytest.raises(ValueError, match="no calibrated intervals"):
        FewShotRegressor.load(runs_of(series)).fit([], []).predict_interval(x)


def test_its_errors_are_of_every_subject_out_of_fold_and_the_same_when_it_is_evaluated_again(series, capsys):
    run = series / "MEAN_Table_t"
    before = json.loads((run / "metrics.json").read_text())["evaluation"]
    assert main.main(["--evaluate", str(run)]) == 0
    again = json.loads((run / "metrics.json").read_text())["evaluation"]
    assert again == before and before["num_tasks"] == 12
    assert before["verdict"] in capsys.readouterr().out


def test_methods_weigh_the_same_whatever_their_seeds_and_runs_on_other_splits_are_refused(series, tmp_path, capsys):
    mixed, _, ridge = runs_of(series)
    data = ["--data", str(series / "R2D2_Table_t" / "table.csv"), "--columns", "task=task", "split=split"]
    common = ["--method", "r2d2", *data, "--output", str(tmp_path), *SETTINGS]
    assert main.main([*common, "--seed", "1", "--name", "one"]) == 0
    runs = [mixed, ridge, tmp_path / "R2D2_Table_one"]
    each = [FewShotRegressor.load(run).fit([3.0], [51.0]).predict([9.0]) for run in runs]
    found = FewShotRegressor.load(runs).fit([3.0], [51.0]).predict([9.0])
    assert_allclose(found, np.average(each, axis=0, weights=[0.5, 0.25, 0.25]), rtol=1e-5)
    other = ["--data", str(series.parent / "toy.csv"), "--set", "FOLDS=3"]
    assert main.main(["--method", "r2d2", *other, "--output", str(tmp_path), *SETTINGS, "--name", "other"]) == 0
    capsys.readouterr()
    assert main.main(["--mean", str(ridge), str(tmp_path / "R2D2_Table_other"), "--output", str(tmp_path)]) == 2
    assert "other test tasks" in capsys.readouterr().err and not list(tmp_path.glob("MEAN_*"))
    assert main.main(["--resume", str(series / "MEAN_Table_t")]) == 2
    assert "is a mean, which is not trained" in capsys.readouterr().err

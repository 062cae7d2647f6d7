"""Somebody's own points: what is predicted, and what is written of it (tests/tables/test_cells.py: how they are read)."""

import csv
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from numpy.testing import assert_allclose

from commands import predict
from commands.predict import grid_of, output_files
from config import Config
from dataset import Points, stream
from evaluation.intervals import LEVELS, LOG_MEAN
from learner import Adaptation, MetaLearner
from registry import METHODS
from regressor import FewShotRegressor
from system.errors import RunError
from tables.coding import Coding
from tables.points import PointsFile, read_points
from tests.tools.methods import learner_of

RANGE = (-5.0, 5.0)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "points.csv"


@pytest.fixture(autouse=True)
def laid_out(monkeypatch):
    """Figures are laid out once, not drawn for each kind of file."""
    monkeypatch.setattr("visualization.png_bytes", lambda figure: repr(figure.draw_without_rendering()).encode())
    monkeypatch.setattr("visualization.pdf_bytes", lambda *figures: b"%PDF")


class Slope:
    """A network of one weight: weight * mean(x), and 1e30 times as much above `limit`."""

    shapes, num_weights = [(1, 1)], 1

    def __init__(self, limit):
        self.limit = limit

    def hidden(self, weights, x):
        return 0 * x

    def __call__(self, weights, x):
        mean = x.mean(-1, keepdim=True)
        return weights * torch.where(mean > self.limit, torch.inf, mean)


class Lines(MetaLearner):
    """A learner whose predictions after s gradients are (s + noise) * mean(x)."""

    def __init__(self, noise_dim=0, limit=np.inf):
        torch.nn.Module.__init__(self)
        self.noise_dim, self.network, self.input_dim = noise_dim, Slope(limit), 1
        self.start = torch.nn.Parameter(torch.zeros(1))

    @classmethod
    def from_config(cls, config, rng):
        return cls()

    def adapt(self, support, noise, steps=None):
        shift = noise[:1] if self.noise_dim else 0
        return Adaptation([self.start + step + shift for step in range((steps or 0) + 1)], self.start.sum(), {}, noise[:0])


def points_at(*inputs, y=1.0):
    x = np.array(inputs, np.float32)[:, None]
    return Points(x, np.full_like(x, y))


def model_of(learner, dim=1, steps=3, calibration=None):
    return FewShotRegressor(learner, steps, Coding.identity(dim, RANGE), calibration=calibration)


class Case:
    """A file about one task, and what a learner says about it."""

    def __init__(self, learner, points, steps=3, calibration=None, queries=None):
        dim = points.x.shape[1]
        self.model = model_of(learner, dim, steps, calibration)
        self.found = predict.predict_subjects(self.model, [points], [] if queries is None else [queries])
        (self.prediction,) = self.found
        names = ["x"] if dim == 1 else [f"x{number + 1}" for number in range(dim)]
        values = np.concatenate(points, axis=1)
        if queries is not None:
            values = np.concatenate([values, np.column_stack([queries, np.full(len(queries), np.nan)])])
        self.file = PointsFile(("", *names, "y"), [""], np.zeros(len(values), int), values, False)

    def rows(self):
        return list(csv.DictReader(predict.predictions_csv(self.found, self.model, self.file).splitlines()))

    def warnings(self):
        return predict.warnings_about(self.found, self.model)

    def write(self, files):
        predict.write(files, self.found, self.model, self.file, "a title")


def test_the_grid_spans_the_trained_range_and_the_points():
    for inputs, ends in (((-1, 2), (-5, 5)), ((0, 10), (-5, 10)), ((-1e15, 1.7e9), (-1e15, 1.7e9))):
        grid = grid_of(model_of(Lines()), points_at(*inputs))
        assert grid.shape == (201, 1) and grid.dtype == np.float64 and (np.diff(grid[:, 0]) > 0).all()
        assert_allclose([grid[0, 0], grid[-1, 0]], ends)


def test_a_table_and_a_figure_of_points_far_away_need_no_warning(file):
    for inputs, high in (([1.7e9], 1e15), ([300, 300, 300], -1e15), ([-1e15, 1e15], 1e15)):
        case = Case(Lines(4), Points(np.array(inputs, float)[:, None], np.full((len(inputs), 1), high)))
        case.write(output_files(file.parent, file, 1))
        xs = [row["x"] for row in case.rows()]
        assert len(set(xs)) == len(xs) == 201
        assert_allclose(np.array(xs, float), case.prediction.x[:, 0], rtol=1e-11, atol=1e-11)


def test_what_lies_outside_the_trained_range_is_marked_and_its_ends_are_not():
    rows = Case(Lines(), points_at(0, 10)).rows()
    assert list(rows[0]) == ["x", "prediction_before", "prediction_after", "extrapolated"] and len(rows) == 201
    assert [float(rows[0][name]) for name in rows[0]] == [-5, 0, -15, 0]
    assert [row["extrapolated"] for row in rows] == [str(int(float(row["x"]) > 5)) for row in rows]
    assert 0 < sum(int(row["extrapolated"]) for row in rows) < 201
    for high in (3.3, 0.1, 1e-3):
        model = FewShotRegressor(Lines(), 1, Coding.identity(1, (-high, high)))
        (prediction,) = predict.predict_subjects(model, [points_at(0, 0)])
        assert not model.extrapolates(prediction.x).any()


def test_errors_are_those_on_the_points_before_and_after_adapting():
    case = Case(Lines(), points_at(1, 2))
    prediction = case.prediction
    assert_allclose(prediction.errors(), [1, (4 + 25) / 2])
    assert_allclose([prediction.before, prediction.answer.stages[-1]], np.outer([0, 3], prediction.x), rtol=1e-6)
    assert len(prediction.answer.interval) == 0
    line = predict.summary(case.found, case.model, case.file)
    assert line == "mean squared error on the 2 points: 1 before adapting, 14.5 after 3 gradients"


def test_samples_are_of_the_stream_of_samples():
    noise = stream(0, "samples").standard_normal((8, 4), dtype=np.float32)[:, :1]
    for count in (2, 200):
        case = Case(Lines(4), points_at(*np.linspace(-1, 1, count)))
        (picture,) = predict.curves(case.found, case.model)
        assert_allclose(picture["samples"], (3 + noise) * picture["grid"], rtol=1e-5, atol=1e-6)
        assert np.array_equal(case.prediction.answer.stages, Case(Lines(), case.prediction.points).prediction.answer.stages)


def test_more_points_or_tasks_than_the_memory_allows_are_refused(monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=400 * 50**2))
    Case(Lines(4), points_at(*range(50)))
    Case(Lines(), points_at(*range(51)))
    with pytest.raises(RunError, match=r"do not fit in memory \(got 51; expected at most 50"):
        Case(Lines(4), points_at(*range(51)))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=100))
    with pytest.raises(RunError, match=r"do not fit in memory \(got 7 tasks; expected at most 6 at once"):
        model_of(Lines()).fit_many([[1.0]] * 7, [[1.0]] * 7)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_adapts_to_points(method):
    tiny = {"HIDDEN_DIM": 6, "LEO_LATENT_DIM": 3, "LEO_ENCODER_DIM": 4, "LEO_RELATION_DIM": 4, "LEO_DECODER_DIM": 4}
    for dim in (1, 2):
        config = Config.resolve(METHODS[method].defaults, tiny, {"INPUT_DIM": dim})
        learner, rng = learner_of(method, config), np.random.default_rng(0)
        points = Points(*(rng.uniform(-4, 4, (7, size)).astype(np.float32) for size in (dim, 1)))
        first, again = Case(learner, points, 8), Case(learner, points, 8)
        before, after = first.prediction.errors()
        assert (
            (after < before or method == "cnp")
            and np.isfinite(first.prediction.answer.stages).all()
            and first.rows() == again.rows()
        )


@pytest.mark.parametrize("method", ["leo", "r2d2"])
def test_subjects_in_several_batches_are_predicted_as_one_by_one(method, monkeypatch):
    monkeypatch.setattr(predict, "STATE_BYTES", 1)
    rng, learner = np.random.default_rng(0), METHODS[method].from_config(Config(HIDDEN_DIM=6), stream(0, "weights"))
    support = [Points(rng.uniform(-4, 4, (count, 1)), rng.uniform(-1, 1, (count, 1))) for count in (3, 5, 3, 1)]
    queries = [rng.uniform(-4, 4, (count, 1)) for count in (2, 0, 4, 1)]
    apart = predict.predict_subjects(model_of(learner), support, queries)
    monkeypatch.setattr(predict, "STATE_BYTES", 2**27)
    for one, other in zip(apart, predict.predict_subjects(model_of(learner), support, queries), strict=True):
        assert_allclose(one.answer.stages, other.answer.stages, rtol=1e-4, atol=1e-4)
        assert_allclose(one.errors(), other.errors(), rtol=1e-3)


def test_points_and_questions_outside_are_warned_about_and_counted():
    assert Case(Lines(4), points_at(-5, 5)).warnings() == []
    (line,) = Case(Lines(), points_at(-6, 0, 5)).warnings()
    assert "1 of 3 points lie outside the range of meta-training" in line
    assert "(got x from -6 to 5; expected -5 to 5)" in line
    (line,) = Case(Lines(), points_at(100, 200)).warnings()
    assert "all 2 points lie outside the range of meta-training" in line
    x = 1.7e9 + np.arange(10.0)[:, None]  # one number in float32
    lines = Case(Lines(), Points(x, np.ones_like(x))).warnings()
    assert "got x from 1700000000 to 1700000009; expected -5 to 5" in lines[0]
    assert "got 10 different x, 1 after rounding" in lines[1]
    case = Case(Lines(4), points_at(-5, 5), queries=np.array([[4.0], [7.0]]))
    (line,) = case.warnings()
    assert line.startswith("1 of 2 questions lie outside the range") and "(got x from 4 to 7; expected -5 to 5)" in line
    (picture,) = predict.curves(case.found, case.model)
    assert picture["asked"][0].tolist() == [4.0]


def test_an_adaptation_that_diverged_is_warned_about_and_written(file):
    case = Case(Lines(4, limit=2.0), points_at(0, 1), calibration=CALIBRATED)
    (line,) = case.warnings()
    assert line.startswith("adapting diverged (got predictions that are not finite after 3 gradients")
    last = case.rows()[-1]
    assert (last["prediction_after"], last["lower_5"], last["upper_95"]) == ("inf", "-inf", "inf")
    (picture,) = predict.curves(case.found, case.model)
    assert len(picture["samples"]) == 0
    case.write(output_files(file.parent, file, 1))


ENTRY = {"quantiles": (LEVELS * 10).tolist(), "noise": 0.0, "coefficients": [0.0] * 21, "seen": [[0.0] * 10, [1e9] * 10]}
ENTRY |= {"floor": [1.0] * 10, "centre": [0.0] * 10, "feature_std": [1.0] * 10}
CALIBRATED = {"3": {"1": ENTRY}}  # a constant width


def test_the_table_has_the_interval_where_there_is_one():
    case = Case(Lines(), points_at(0, 1), calibration=CALIBRATED)
    rows = case.rows()
    assert list(rows[0])[3:] == ["lower_5", "upper_95", "extrapolated"]
    half = 9 / LOG_MEAN
    for row, after in zip(rows, case.prediction.answer.stages[-1], strict=True):
        assert_allclose([float(row["lower_5"]), float(row["upper_95"])], [after - half, after + half], rtol=1e-6)


def test_several_dimensions_are_predicted_at_the_points_in_all_their_digits():
    x, y = [[1700000000.25, 0.1], [1700000001, -1e15 / 3]], [[123456.789012345], [1e-7]]
    rows = Case(Lines(), Points(np.array(x), np.array(y))).rows()
    assert list(rows[0]) == ["x1", "x2", "y", "prediction_before", "prediction_after", "extrapolated"]
    digits = [["1700000000.25", "0.1", "123456.789012345"], ["1700000001", "-333333333333333", "1e-07"]]
    assert [[row["x1"], row["x2"], row["y"]] for row in rows] == digits


def test_table_and_figure_are_written_and_the_points_stay(file):
    file.write_text("x,y\n0,1\n7,2\n")
    files = output_files(file.parent / "out", file, 1)
    Case(Lines(4), read_points(file, 1).support[0]).write(files)
    assert {path.name for path in files} == {path.name for path in (file.parent / "out").iterdir()}
    assert {path.name for path in files} == {f"predictions.{suffix}" for suffix in ("csv", "png", "pdf")}
    assert file.read_text() == "x,y\n0,1\n7,2\n"
    points = Points(np.zeros((2, 2), np.float32), np.zeros((2, 1), np.float32))
    Case(Lines(), points).write(output_files(file.parent / "plain", file, 0))  # several dimensions have no figure
    assert [path.name for path in (file.parent / "plain").iterdir()] == ["predictions.csv"]


def test_the_points_are_never_written_over(tmp_path):
    for name in ("predictions.csv", "predictions.png"):
        points, link = tmp_path / name, tmp_path / f"link to {name}"
        points.write_text("x,y\n0,1\n1,2\n")
        link.symlink_to(points)
        for same in (points, link):
            with pytest.raises(RunError, match="is the file of points"):
                output_files(tmp_path, same, 1)
        assert output_files(tmp_path / "elsewhere", points, 1)

"""Somebody's own points: what is predicted, and what is written of it (tests/tables/test_cells.py: how they are read)."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
from numpy.testing import assert_allclose

import learner
import main
import registry
from commands import predict
from commands.predict import Prediction, grid_over, output_files, predict_points, warnings_about
from config import Config
from dataset import Points, stream
from evaluation.intervals import LEVELS, LOG_MEAN
from regressor import FewShotRegressor
from system.errors import RunError
from tables.points import Request, read_request

ROOT = Path(main.__file__).parent
RANGE = (-5.0, 5.0)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "points.csv"


def test_the_example_holds_ten_points_of_a_sinusoid() -> None:
    points = read_request(ROOT / "docs" / "points.csv", 1).points(0)
    assert len(points.x) == 10 and (points.x.min(), points.x.max()) == (-4.5, 4.5)
    assert_allclose(points.y, 2.5 * np.sin(points.x - 1.0), atol=1e-5)


# ---- predicting


class Lines:
    """A learner whose predictions after s gradients are s * mean(x) + noise."""

    def __init__(self, noise_dim: int = 0, bad: float | None = None):
        self.noise_dim, self.bad, self.calls = noise_dim, bad, []

    def predict(self, support: Points, x: Any, steps: int, noise: Any = None) -> tuple[np.ndarray, np.ndarray]:
        assert len(support.x) == len(support.y) == len(x) and (noise is None or len(noise) == len(x))
        assert {array.dtype for array in (*support, x)} == {np.dtype(np.float32)}
        self.calls.append(len(x))
        outputs = np.arange(steps + 1, dtype=np.float32)[None, :, None] * x.mean(-1)[:, None]  # [T, S+1, N]
        if noise is not None:
            outputs = outputs + noise[:, None, :1]
            if self.bad is not None:
                outputs[0] = self.bad
        return outputs, np.zeros((len(x), 0))


@pytest.fixture(autouse=True)
def predictions_of_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """`Lines` answers for itself, every other learner adapts."""
    adapting, uncertain = learner.predict_tasks, learner.posterior_std

    def answer(asked: Any, *args: Any) -> tuple[np.ndarray, np.ndarray]:
        return asked.predict(*args) if isinstance(asked, Lines) else adapting(asked, *args)

    monkeypatch.setattr("learner.predict_tasks", answer)
    monkeypatch.setattr("regressor.predict_tasks", answer)
    nothing = lambda _, support, x, steps: np.zeros(x.shape[:2])  # noqa: E731
    monkeypatch.setattr("regressor.posterior_std", lambda *of: (nothing if isinstance(of[0], Lines) else uncertain)(*of))


def points_at(*inputs: float, y: float = 1.0) -> Points:
    x = np.array(inputs, np.float32)[:, None]
    return Points(x, np.full_like(x, y))


def predicted(learner: Any, points: Points, steps: int = 3, calibration: Any = None) -> Prediction:
    return predict_points(FewShotRegressor(learner, steps, points.x.shape[1], RANGE, calibration=calibration), points)


def request(prediction: Prediction) -> Request:
    """What the file of a prediction holds."""
    dim = prediction.x.shape[1]
    names = ["x"] if dim == 1 else [f"x{number + 1}" for number in range(dim)]
    values = np.concatenate(prediction.points, axis=1)
    return Request(("", *names, "y"), [""], np.zeros(len(values), int), values, False)


def csv_table(prediction: Prediction) -> str:
    return predict.csv_table([prediction], request(prediction))


def summary(prediction: Prediction) -> str:
    return predict.summary([prediction], request(prediction))


def write(files: list[Path], prediction: Prediction, title: str) -> None:
    predict.write(files, [prediction], request(prediction), title)


@pytest.mark.parametrize(
    ("inputs", "ends"),
    [([-1, 2], (-5, 5)), ([-5, 5], (-5, 5)), ([0, 10], (-5, 11.5)), ([-10, 10], (-12, 12)), ([20, 25], (-5, 28))],
)
def test_the_grid_spans_training_and_points_with_a_margin_where_they_leave_it(inputs: Any, ends: tuple[float, float]) -> None:
    grid = grid_over(np.array(inputs, float), RANGE)
    assert len(grid) == 201 and grid.dtype == np.float64
    assert_allclose([grid[0], grid[-1]], ends)


@pytest.mark.parametrize(
    ("asked", "ends"),
    [([], (-5, 5)), ([4], (-5, 5)), ([6], (-5, 7)), ([-7, 6], (-8.3, 7)), ([6, 1e6], (-5, 7)), ([-1e6], (-5, 5))],
)
def test_the_grid_reaches_questions_outside_the_range_but_not_those_far_away(asked: Any, ends: tuple[float, float]) -> None:
    grid = grid_over(np.array([-1.0, 2.0]), RANGE, np.array(asked, float))
    assert_allclose([grid[0], grid[-1]], ends)


FAR = {  # inputs of points, and the ends of the grid
    "one point": ([1.7e9], (1.7e9 - 10, 1.7e9 + 10)),
    "one point below": ([-1000], (-1010, -990)),
    "a week in seconds since 1970": ([1.7e9, 1.7e9 + 604800], (1.7e9 - 60480, 1.7e9 + 665280)),
    "all at one x": ([300, 300, 300], (290, 310)),
    "the largest number": ([1e15], (1e15 - 1e6, 1e15 + 1e6)),
    "from end to end": ([-1e15, 1e15], (-1.2e15, 1.2e15)),
}


@pytest.mark.parametrize("name", FAR)
def test_the_grid_is_around_the_points_alone_where_they_would_be_a_dot_beside_the_trained_range(name: str) -> None:
    inputs, ends = FAR[name]
    grid = grid_over(np.array(inputs, float), RANGE)
    assert_allclose([grid[0], grid[-1]], ends, rtol=1e-15)
    assert (np.diff(grid) > 0).all()


@pytest.mark.parametrize(
    ("name", "bad", "high"),
    [
        ("one point", None, 1e15),
        ("a week in seconds since 1970", 3e38, 0.5),
        ("all at one x", np.inf, 1e15),
        ("the largest number", None, -1e15),
        ("from end to end", 3e38, 1e15),
    ],
)
def test_a_table_and_a_figure_of_points_far_away_need_no_warning(file: Path, name: str, bad: float | None, high: float) -> None:
    inputs, _ = FAR[name]
    points = Points(np.array(inputs, float)[:, None], np.full((len(inputs), 1), high))
    prediction = predicted(Lines(4, bad), points)
    if bad:
        prediction.outputs[:] = bad
    write(output_files(file.parent, file, 1), prediction, "a title")
    xs = [row["x"] for row in table(prediction)]
    assert len(set(xs)) == len(xs) == 201
    assert_allclose(np.array(xs, float), prediction.x[:, 0], rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("high", [3.3, 0.1, 1e-3])
def test_the_ends_of_the_trained_range_are_no_extrapolation(high: float) -> None:
    prediction = predict_points(FewShotRegressor(Lines(), 1, 1, (-high, high)), points_at(0, 0))  # type: ignore[arg-type]
    assert not prediction.extrapolated.any()


def test_what_lies_outside_the_trained_range_is_marked() -> None:
    prediction = predicted(Lines(), points_at(0, 10))
    assert np.array_equal(prediction.extrapolated, prediction.x[:, 0] > 5)
    assert 0 < prediction.extrapolated.sum() < 201


def test_errors_are_those_on_the_points_after_each_number_of_gradients() -> None:
    prediction = predicted(Lines(), points_at(1, 2))
    assert_allclose(prediction.errors, [1, (0 + 1) / 2, (1 + 9) / 2, (4 + 25) / 2])
    assert prediction.outputs.shape == (4, 201)
    assert_allclose(prediction.outputs[2], 2 * prediction.x[:, 0])


def test_a_learner_without_randomness_is_asked_once_and_has_no_samples() -> None:
    learner = Lines()
    prediction = predicted(learner, points_at(1, 2))
    assert (learner.calls, prediction.band, len(prediction.samples)) == ([1], None, 0)


def test_samples_are_of_the_stream_of_samples() -> None:
    prediction = predicted(Lines(noise_dim=4), points_at(1, 2))
    noise = stream(0, "samples").standard_normal((8, 4), dtype=np.float32)[:, :1]
    assert_allclose(prediction.samples, 3 * prediction.x[:, 0] + noise, rtol=1e-6, atol=1e-6)


def test_the_prediction_itself_is_made_without_noise() -> None:
    assert np.array_equal(predicted(Lines(4), points_at(1, 2)).outputs, predicted(Lines(), points_at(1, 2)).outputs)


def test_many_points_are_sampled_a_few_copies_at_a_time_with_the_same_result() -> None:
    learner = Lines(noise_dim=4)
    prediction = predicted(learner, points_at(*np.linspace(-1, 1, 200)))
    assert learner.calls == [1, 5, 3]
    noise = stream(0, "samples").standard_normal((8, 4), dtype=np.float32)[:, :1]
    assert_allclose(prediction.samples, 3 * prediction.x[:, 0] + noise, rtol=1e-6, atol=1e-6)


def test_more_points_than_the_memory_allows_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=400 * 50**2))
    predicted(Lines(4), points_at(*range(50)))
    predicted(Lines(), points_at(*range(51)))
    with pytest.raises(RunError, match=r"do not fit in memory \(got 51; expected at most 50"):
        predicted(Lines(4), points_at(*range(51)))


def test_several_dimensions_are_predicted_at_the_points() -> None:
    points = Points(np.array([[0, 0, 0], [1, 2, 9]], np.float32), np.ones((2, 1), np.float32))
    prediction = predicted(Lines(noise_dim=4), points)
    assert np.array_equal(prediction.x, points.x)
    assert (prediction.outputs.shape, prediction.samples.shape) == ((4, 2), (8, 2))
    assert prediction.extrapolated.tolist() == [False, True]
    assert_allclose(prediction.errors, [1, (1 + 9) / 2, (1 + 49) / 2, (1 + 121) / 2])


@pytest.mark.parametrize("method", sorted(registry.METHODS))
@pytest.mark.parametrize("dim", [1, 2])
def test_every_method_adapts_to_points(method: str, dim: int) -> None:
    tiny = {"HIDDEN_DIM": 6, "LEO_LATENT_DIM": 3, "LEO_ENCODER_DIM": 4, "LEO_RELATION_DIM": 4, "LEO_DECODER_DIM": 4}
    config = Config.resolve(registry.METHODS[method].defaults, tiny, {"INPUT_DIM": dim})
    learner = registry.METHODS[method].from_config(config, stream(0, "weights"))
    rng = np.random.default_rng(0)
    points = Points(*(rng.uniform(-4, 4, (7, size)).astype(np.float32) for size in (dim, 1)))
    first, again = predicted(learner, points, 8), predicted(learner, points, 8)
    assert first.errors[-1] < first.errors[0] and np.isfinite(first.outputs).all()
    assert len(first.samples) == (8 if learner.noise_dim else 0)
    assert np.array_equal(first.samples, again.samples) and csv_table(first) == csv_table(again)
    if learner.noise_dim:
        assert first.samples.std(0).min() > 0


# ---- warnings


def test_points_within_the_trained_range_need_no_warning() -> None:
    assert warnings_about([predicted(Lines(4), points_at(-5, 5))]) == []


def test_points_partly_outside_are_counted() -> None:
    (line,) = warnings_about([predicted(Lines(), points_at(-6, 0, 5))])
    assert line.startswith("1 of 3 points lie outside the range of meta-training")
    assert "(got x from -6 to 5; expected -5 to 5)" in line


def test_different_inputs_that_are_one_number_in_float32_are_warned_about() -> None:
    x = 1.7e9 + np.arange(10.0)[:, None]
    lines = warnings_about([predicted(Lines(), Points(x, np.ones_like(x)))])
    assert "got x from 1700000000 to 1700000009; expected -5 to 5" in lines[0]
    assert "got 10 different x, 1 after rounding" in lines[1]


def test_questions_outside_are_warned_about_and_shown() -> None:
    prediction = predict_points(FewShotRegressor(Lines(4), 3, 1, RANGE), points_at(-5, 5), np.array([[0.0], [7.0]]))
    (line,) = warnings_about([prediction])
    assert line.startswith("1 of 2 questions lie outside the range") and "(got x from 0 to 7; expected -5 to 5)" in line
    assert predict.curves(prediction)["asked"][0].tolist() == [0.0, 7.0]


def test_points_wholly_outside_are_warned_about() -> None:
    (line,) = warnings_about([predicted(Lines(), points_at(100, 200))])
    assert line.startswith("all 2 points lie outside the range of meta-training")


def test_an_adaptation_that_diverged_is_warned_about() -> None:
    prediction = predicted(Lines(), points_at(1, 2))
    prediction.outputs[-1, 3] = np.inf
    assert warnings_about([prediction])[0].startswith(
        "adapting diverged (got predictions that are not finite after 3 gradients"
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_samples_that_diverged_are_not_drawn(bad: float) -> None:
    assert len(predicted(Lines(4, bad), points_at(1, 2)).samples) == 7


def test_the_summary_names_the_errors_before_and_after() -> None:
    line = summary(predicted(Lines(), points_at(1, 2)))
    assert line == "mean squared error on the 2 points: 1 before adapting, 14.5 after 3 gradients"


# ---- writing


def table(prediction: Prediction) -> list[dict[str, str]]:
    return list(csv.DictReader(csv_table(prediction).splitlines()))


def test_the_table_has_a_row_for_each_place_on_the_grid() -> None:
    rows = table(predicted(Lines(), points_at(0, 10)))
    assert list(rows[0]) == ["x", "prediction_before", "prediction_after", "extrapolated"] and len(rows) == 201
    assert [float(rows[0][name]) for name in rows[0]] == [-5, 0, -15, 0]
    assert rows[-1]["extrapolated"] == "1"


ENTRY = {"quantiles": (LEVELS * 10).tolist(), "floor": [1.0] * 9, "centre": [0.0] * 9, "spread": [1.0] * 9, "noise": 0.0}
CALIBRATED = {"3": {"1": ENTRY | {"coefficients": [0.0] * 19}}}  # a constant width


def test_the_table_has_the_interval_where_there_is_one() -> None:
    prediction = predicted(Lines(), points_at(0, 1), calibration=CALIBRATED)
    rows = table(prediction)
    assert list(rows[0])[3:] == ["lower_5", "upper_95", "extrapolated"]
    half = 9 / LOG_MEAN
    for row, after in zip(rows, prediction.outputs[-1], strict=True):
        assert_allclose([float(row["lower_5"]), float(row["upper_95"])], [after - half, after + half], rtol=1e-6)


def test_where_adapting_diverged_the_interval_is_the_whole_line(tmp_path: Path) -> None:
    learner = Lines()
    learner.predict = lambda support, x, steps, *_: (  # type: ignore[method-assign]
        np.where(x[:, None, :, 0] > 2, np.inf, x[:, None, :, 0]).repeat(steps + 1, 1),
        np.zeros((len(x), 0)),
    )
    prediction = predicted(learner, points_at(0, 1), calibration=CALIBRATED)
    last = table(prediction)[-1]
    assert (last["lower_5"], last["upper_95"]) == ("-inf", "inf")
    write(output_files(tmp_path, tmp_path / "points.csv", 1), prediction, "title")


def test_the_table_of_several_dimensions_has_the_points() -> None:
    points = Points(np.array([[0, 1], [2, 3]], np.float32), np.array([[4], [5]], np.float32))
    rows = table(predicted(Lines(), points))
    assert list(rows[0]) == ["x1", "x2", "y", "prediction_before", "prediction_after", "extrapolated"]
    assert [[float(row[name]) for name in ("x1", "x2", "y")] for row in rows] == [[0, 1, 4], [2, 3, 5]]


def test_the_table_repeats_given_points_in_all_their_digits() -> None:
    x, y = [[1700000000.25, 0.1], [1700000001, -1e15 / 3]], [[123456.789012345], [1e-7]]
    rows = table(predicted(Lines(), Points(np.array(x), np.array(y))))
    assert [[row["x1"], row["x2"], row["y"]] for row in rows] == [
        ["1700000000.25", "0.1", "123456.789012345"],
        ["1700000001", "-333333333333333", "1e-07"],
    ]


@pytest.mark.parametrize("noise_dim", [0, 4])
def test_table_and_figure_are_written_and_the_points_stay(file: Path, noise_dim: int) -> None:
    file.write_text("x,y\n0,1\n7,2\n")
    prediction = predicted(Lines(noise_dim), read_request(file, 1).points(0))
    files = output_files(file.parent / "out", file, 1)
    write(files, prediction, "a title")
    assert {path.name for path in files} == {path.name for path in (file.parent / "out").iterdir()}
    assert {path.name for path in files} == {f"predictions.{suffix}" for suffix in ("csv", "png", "pdf")}
    assert file.read_text() == "x,y\n0,1\n7,2\n"


def test_several_dimensions_have_a_table_and_no_figure(file: Path) -> None:
    points = Points(np.zeros((2, 2), np.float32), np.zeros((2, 1), np.float32))
    files = output_files(file.parent, file, 0)
    write(files, predicted(Lines(), points), "a title")
    assert [path.name for path in file.parent.iterdir()] == ["predictions.csv"]


@pytest.mark.parametrize("name", ["predictions.csv", "predictions.png"])
def test_the_points_are_never_written_over(tmp_path: Path, name: str) -> None:
    points = tmp_path / name
    points.write_text("x,y\n0,1\n1,2\n")
    (tmp_path / "link.csv").symlink_to(points)
    for same in (points, tmp_path / "link.csv"):
        with pytest.raises(RunError, match="is the file of points"):
            output_files(tmp_path, same, 1)
    assert output_files(tmp_path / "elsewhere", points, 1)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e38])
def test_a_prediction_that_diverged_can_still_be_written(file: Path, bad: float) -> None:
    prediction = predicted(Lines(4), points_at(0, 7))
    prediction.outputs[-1] = bad
    prediction.outputs[0, ::2] = bad
    write(output_files(file.parent, file, 1), prediction, "a title")
    assert math.isclose(float(table(prediction)[0]["prediction_after"]), bad, rel_tol=1e-6) or math.isnan(bad)

"""Somebody's own points: what is read and what is refused, what is predicted, and what is written of it."""

from __future__ import annotations

import csv
import math
import re
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

import evaluation
import main
import registry
from commands.predict import Prediction, csv_table, grid_over, output_files, predict_points, summary, warnings_about, write
from config import Config
from dataset import Points, stream
from runtime.csv_files import MAX_POINTS, read_points
from runtime.errors import RunError

ROOT = Path(main.__file__).parent
RANGE = (-5.0, 5.0)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "points.csv"


def refusal(file: Path, dim: int = 1) -> str:
    """The one line with which a file is refused."""
    with pytest.raises(RunError) as caught:
        read_points(file, dim)
    assert caught.value.code == 2
    assert re.fullmatch(r"[ -~]+ \(got [ -~]+; expected [ -~]+\)", str(caught.value))
    return str(caught.value)


# ---- reading


def test_points_are_read_as_columns(file: Path) -> None:
    file.write_text("x,y\n1,2\n-3.5,4e-1\n")
    points = read_points(file, 1)
    assert (points.x.tolist(), points.y.tolist()) == ([[1], [-3.5]], [[2], [np.float32(0.4)]])
    assert (points.x.dtype, points.y.dtype) == (np.float32, np.float32)


def test_columns_may_stand_in_any_order(file: Path) -> None:
    file.write_text("x2,y,x1\n1,2,3\n4,5,6\n")
    points = read_points(file, 2)
    assert (points.x.tolist(), points.y.tolist()) == ([[3, 1], [6, 4]], [[2], [5]])


ACCEPTED = {
    "a byte order mark": b"\xef\xbb\xbfx,y\n1,2\n3,4\n",
    "windows line ends": b"x,y\r\n1,2\r\n3,4\r\n",
    "old line ends": b"x,y\r1,2\r3,4\r",
    "spaces": b" x , y \n 1 , 2 \n3 ,4\n",
    "quotes": b'"x","y"\n"1","2"\n3,4\n',
    "no line end at the end": b"x,y\n1,2\n3,4",
    "empty lines": b"x,y\n\n1,2\n\n3,4\n\n\n",
    "a number behind x": b"x1,y\n1,2\n3,4\n",
    "signs, points and exponents": b"x,y\n+1.,2e0\n.3E+1,40e-1\n",
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_usual_ways_to_write_csv_are_read(file: Path, name: str) -> None:
    file.write_bytes(ACCEPTED[name])
    points = read_points(file, 1)
    assert (points.x.tolist(), points.y.tolist()) == ([[1], [3]], [[2], [4]])


def test_ten_thousand_points_are_read(file: Path) -> None:
    file.write_text("x,y\n" + "1,2\n" * MAX_POINTS)
    assert read_points(file, 1).x.shape == (MAX_POINTS, 1)


REFUSED = {
    "an empty file": (b"", "no header"),
    "a byte order mark alone": (b"\xef\xbb\xbf", "no header"),
    "an empty first line": (b"\nx,y\n1,2\n3,4\n", "no header"),
    "no header": (b"1,2\n3,4\n5,6\n", "got '1, 2'; expected x, y"),
    "one column": (b"x\n1\n2\n", "got 'x'; expected x, y"),
    "another column": (b"x,y,time\n1,2,3\n4,5,6\n", "got 'x, y, time'"),
    "a column twice": (b"x,x,y\n1,2,3\n4,5,6\n", "got 'x, x, y'"),
    "the target twice": (b"y,y\n1,2\n3,4\n", "got 'y, y'"),
    "no target": (b"x,x1\n1,2\n3,4\n", "got 'x, x1'"),
    "semicolons": (b"x;y\n1;2\n3;4\n", "got 'x;y'"),
    "a header alone": (b"x,y\n", "got 0; expected at least 2"),
    "one point": (b"x,y\n1,2\n", "got 1; expected at least 2"),
    "a word": (b"x,y\n1,2\n3,four\n", "line 3 can't be used (got 'four'"),
    "a word after an empty line": (b"x,y\n1,2\n\n3,four\n", "line 4 can't be used"),
    "an empty cell": (b"x,y\n1,2\n3,\n", "line 3 can't be used (got ''"),
    "a cell too few": (b"x,y\n1,2\n3\n", "line 3 can't be used (got 1 columns; expected 2)"),
    "a decimal comma": (b"x,y\n1,5,2\n3,4\n", "line 2 can't be used (got 3 columns"),
    "not a number": (b"x,y\n1,2\nnan,4\n", "line 3 can't be used (got 'nan'; expected a finite number"),
    "infinity": (b"x,y\n1,2\n3,-inf\n", "got '-inf'; expected a finite number"),
    "beyond any float": (b"x,y\n1,2\n3,1e400\n", "got '1e400'"),
    "beyond what squares": (b"x,y\n1,2\n3,2e6\n", "got '2e6'; expected a finite number from -1e+06 to 1e+06"),
    "an underscore": (b"x,y\n1,2\n3,1_000\n", "got '1_000'"),
    "foreign digits": ("x,y\n1,2\n3,٤\n".encode(), r"got '\u0664'"),
    "a hexadecimal number": (b"x,y\n1,2\n3,0x10\n", "got '0x10'"),
    "control characters": (b"x,y\n1,2\n3,\x1b[31m\x00\n", r"got '\x1b[31m\x00'"),
    "a cell of many lines": (b'x,y\n1,2\n3,"a\nb"\n', r"got 'a\nb'"),
    "an open quote": (b'x,y\n1,2\n3,"4\n', "is not CSV"),
    "UTF-16": ("x,y\n1,2\n3,4\n".encode("utf-16"), "is not text in UTF-8"),
    "latin-1": (b"x,y\n1,2\n3,\xb54\n", "is not text in UTF-8"),
    "a long line": (b"x,y\n" + b"1" * 10_000, "has too long a line 2"),
    "a long cell": (b"x,y\n1,2\n3," + b"9" * 500, "got '" + "9" * 40 + "'..."),
    "a picture": (b"\x89PNG\r\n\x1a\n\x00\x00", "is not text in UTF-8"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_that_can_not_be_used_is_refused_in_one_line(file: Path, name: str) -> None:
    contents, expected = REFUSED[name]
    file.write_bytes(contents)
    assert expected in refusal(file)


@pytest.mark.parametrize(("header", "dim"), [("x,y", 2), ("x1,y", 2), ("x1,x2,y", 1), ("x1,x3,y", 2), ("x1,x2,y", 100)])
def test_columns_have_to_fit_the_runs_dimension(file: Path, header: str, dim: int) -> None:
    file.write_text(f"{header}\n1,2,3\n4,5,6\n")
    assert "has no header that can be used" in refusal(file, dim)


def test_a_missing_file_is_refused(file: Path) -> None:
    assert refusal(file) == f"no such file (got {file}; expected a CSV file of points)"


def test_a_directory_is_refused(tmp_path: Path) -> None:
    assert "no such file" in refusal(tmp_path)


@pytest.mark.parametrize("name", ["/dev/zero", "/dev/null"])
def test_a_device_is_refused(name: str) -> None:
    assert "no such file" in refusal(Path(name))


def test_a_name_that_is_too_long_is_refused(tmp_path: Path) -> None:
    refusal(tmp_path / ("a" * 5000))


def test_an_unreadable_file_is_refused_with_the_systems_reason(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text("x,y\n1,2\n3,4\n")

    def denied(*_: Any, **__: Any) -> None:  # a mode of 0 would not stop root
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", denied)
    assert "can't be read (got Permission denied" in refusal(file)


@pytest.mark.parametrize("line", [b"1,2\n", b"\n", b'"'], ids=["points", "empty lines", "one cell"])
def test_ten_million_rows_are_refused_at_once(file: Path, line: bytes) -> None:
    with open(file, "wb") as stream:
        stream.write(b"x,y\n")
        for _ in range(10):
            stream.write(line * 1_000_000)
    before, began = psutil.Process().memory_info().rss, time.perf_counter()
    assert f"expected at most {MAX_POINTS}" in refusal(file) or line == b'"'
    assert time.perf_counter() - began < 2
    assert psutil.Process().memory_info().rss - before < 50 * 2**20


FUZZ = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
PIECES = st.sampled_from(
    [b"x", b"y", b"x1", b",", b"\n", b"\r", b'"', b"1", b"-2.5", b"1e9", b"nan", b" ", b"\x00", b"\xff", b"\xc3"]
)


def read_or_refused(file: Path, contents: bytes) -> None:
    """Reading gives finite points of the right shape, or one clean line."""
    file.write_bytes(contents)
    try:
        points = read_points(file, 1)
    except RunError as error:
        assert error.code == 2 and re.fullmatch(r"[ -~]+", str(error))
    else:
        assert points.x.shape == points.y.shape and len(points.x) >= 2
        assert np.isfinite(points.x).all() and np.isfinite(points.y).all()


@FUZZ
@given(contents=st.binary(max_size=200))
def test_random_bytes_are_refused_cleanly(tmp_path: Path, contents: bytes) -> None:
    read_or_refused(tmp_path / "points.csv", contents)


@FUZZ
@given(pieces=st.lists(PIECES, max_size=30))
def test_random_pieces_of_csv_are_read_or_refused_cleanly(tmp_path: Path, pieces: list[bytes]) -> None:
    read_or_refused(tmp_path / "points.csv", b"x,y\n1,2\n" + b"".join(pieces))


@FUZZ
@given(place=st.integers(0, 40), removed=st.integers(0, 3), inserted=st.binary(max_size=4))
def test_a_mutated_file_is_read_or_refused_cleanly(tmp_path: Path, place: int, removed: int, inserted: bytes) -> None:
    whole = b"\xef\xbb\xbfx,y\r\n-1.5,2\r\n3,4e-1\r\n5,-6.25\r\n"
    read_or_refused(tmp_path / "points.csv", whole[:place] + inserted + whole[place + removed :])


@FUZZ
@given(st.lists(st.tuples(*[st.integers(-(10**9), 10**9).map(lambda n: n / 1000)] * 3), min_size=2, max_size=20))
def test_what_was_written_is_what_is_read(tmp_path: Path, rows: list[tuple[float, float, float]]) -> None:
    file = tmp_path / "points.csv"
    with open(file, "w", newline="") as stream:
        csv.writer(stream).writerows([("y", "x1", "x2"), *rows])
    points = read_points(file, 2)
    assert np.array_equal(np.concatenate([points.y, points.x], axis=1), np.array(rows, np.float32))


def test_the_example_holds_ten_points_of_a_sinusoid() -> None:
    points = read_points(ROOT / "docs" / "points.csv", 1)
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
    adapting = evaluation.predict

    def predict(learner: Any, *args: Any) -> tuple[np.ndarray, np.ndarray]:
        return learner.predict(*args) if isinstance(learner, Lines) else adapting(learner, *args)

    monkeypatch.setattr("evaluation.predict", predict)
    monkeypatch.setattr("commands.predict.predict_tasks", predict)


def points_at(*inputs: float, y: float = 1.0) -> Points:
    x = np.array(inputs, np.float32)[:, None]
    return Points(x, np.full_like(x, y))


def predicted(learner: Any, points: Points, steps: int = 3, count: int = 20) -> Prediction:
    return predict_points(learner, points, steps, RANGE, stream(0, "samples"), count)


@pytest.mark.parametrize(
    ("inputs", "ends"),
    [([-1, 2], (-5, 5)), ([-5, 5], (-5, 5)), ([0, 10], (-5, 11.5)), ([-10, 10], (-12, 12)), ([20, 25], (-5, 28))],
)
def test_the_grid_spans_training_and_points_with_a_margin_where_they_leave_it(inputs: Any, ends: tuple[float, float]) -> None:
    grid = grid_over(np.array(inputs, np.float32), RANGE)
    assert len(grid) == 201 and grid.dtype == np.float32
    assert_allclose([grid[0], grid[-1]], ends)


@pytest.mark.parametrize("high", [3.3, 0.1, 1e-3])
def test_the_ends_of_the_trained_range_are_no_extrapolation(high: float) -> None:
    prediction = predict_points(Lines(), points_at(0, 0), 1, (-high, high), stream(0, "samples"))
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


def test_a_learner_without_randomness_is_asked_once_and_has_no_band() -> None:
    learner = Lines()
    prediction = predicted(learner, points_at(1, 2))
    assert (learner.calls, prediction.band, len(prediction.samples)) == ([1], None, 0)


def test_the_band_is_made_of_quantiles_of_the_samples() -> None:
    prediction = predicted(Lines(noise_dim=4), points_at(1, 2))
    noise = stream(0, "samples").standard_normal((20, 4), dtype=np.float32)[:, :1]
    assert prediction.band is not None
    assert_allclose(prediction.samples, 3 * prediction.x[:, 0] + noise, rtol=1e-6)
    assert_allclose(prediction.band[:, 7], np.quantile(prediction.samples[:, 7], [0.05, 0.5, 0.95]))


def test_the_prediction_itself_is_made_without_noise() -> None:
    assert np.array_equal(predicted(Lines(4), points_at(1, 2)).outputs, predicted(Lines(), points_at(1, 2)).outputs)


def test_many_points_are_sampled_a_few_copies_at_a_time_with_the_same_result() -> None:
    learner = Lines(noise_dim=4)
    prediction = predicted(learner, points_at(*np.linspace(-1, 1, 200)))
    assert learner.calls == [1, 5, 5, 5, 5]
    noise = stream(0, "samples").standard_normal((20, 4), dtype=np.float32)[:, :1]
    assert_allclose(prediction.samples, 3 * prediction.x[:, 0] + noise, rtol=1e-6)


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
    assert (prediction.outputs.shape, prediction.samples.shape) == ((4, 2), (20, 2))
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
    assert len(first.samples) == (20 if learner.noise_dim else 0)
    assert np.array_equal(first.samples, again.samples) and csv_table(first) == csv_table(again)
    if learner.noise_dim:
        assert first.samples.std(0).min() > 0


# ---- warnings


def test_points_within_the_trained_range_need_no_warning() -> None:
    assert warnings_about(predicted(Lines(4), points_at(-5, 5))) == []


def test_points_partly_outside_are_counted() -> None:
    (line,) = warnings_about(predicted(Lines(), points_at(-6, 0, 5)))
    assert line.startswith("1 of 3 points lie outside the range of meta-training")
    assert "(got x from -6 to 5; expected -5 to 5)" in line


def test_points_wholly_outside_are_warned_about() -> None:
    (line,) = warnings_about(predicted(Lines(), points_at(100, 200)))
    assert line.startswith("all 2 points lie outside the range of meta-training")


def test_an_adaptation_that_diverged_is_warned_about() -> None:
    prediction = predicted(Lines(), points_at(1, 2))
    prediction.outputs[-1, 3] = np.inf
    assert warnings_about(prediction)[0].startswith("adapting diverged (got predictions that are not finite after 3 gradients")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_samples_that_diverged_are_left_out_and_counted(bad: float) -> None:
    prediction = predicted(Lines(4, bad), points_at(1, 2))
    assert (len(prediction.samples), prediction.num_left_out) == (19, 1)
    assert "got 1 of 20 not finite" in warnings_about(prediction)[0]


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


def test_the_table_has_the_band_where_there_is_one() -> None:
    prediction = predicted(Lines(4), points_at(0, 1))
    rows = table(prediction)
    assert list(rows[0])[3:] == ["lower_5", "median_50", "upper_95", "extrapolated"]
    assert prediction.band is not None
    assert_allclose([float(row["lower_5"]) for row in rows], prediction.band[0], rtol=1e-5, atol=1e-5)
    assert all(float(row["lower_5"]) <= float(row["median_50"]) <= float(row["upper_95"]) for row in rows)


def test_the_table_of_several_dimensions_has_the_points() -> None:
    points = Points(np.array([[0, 1], [2, 3]], np.float32), np.array([[4], [5]], np.float32))
    rows = table(predicted(Lines(), points))
    assert list(rows[0]) == ["x1", "x2", "y", "prediction_before", "prediction_after", "extrapolated"]
    assert [[float(row[name]) for name in ("x1", "x2", "y")] for row in rows] == [[0, 1, 4], [2, 3, 5]]


@pytest.mark.parametrize("noise_dim", [0, 4])
def test_table_and_figure_are_written_and_the_points_stay(file: Path, noise_dim: int) -> None:
    file.write_text("x,y\n0,1\n7,2\n")
    prediction = predicted(Lines(noise_dim), read_points(file, 1))
    files = output_files(file.parent / "out", file, 1)
    write(files, prediction, "a title")
    assert {path.name for path in files} == {path.name for path in (file.parent / "out").iterdir()}
    assert {path.name for path in files} == {f"predictions.{suffix}" for suffix in ("csv", "png", "pdf")}
    assert file.read_text() == "x,y\n0,1\n7,2\n"


def test_several_dimensions_have_a_table_and_no_figure(file: Path) -> None:
    points = Points(np.zeros((2, 2), np.float32), np.zeros((2, 1), np.float32))
    files = output_files(file.parent, file, 2)
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

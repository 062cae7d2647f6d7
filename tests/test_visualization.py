"""Figures: arrays in, labelled figures out, whatever the arrays hold."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Polygon
from numpy.testing import assert_allclose

from dataset import Published
from report import figures
from report.figures import error_against_gradients, error_against_shots, errors_by_subject, interval_quality, run_figures
from visualization import (
    binned_median,
    latent_space,
    limits,
    pdf_bytes,
    performance_over_tasks,
    png_bytes,
    smoothed,
    task_curves,
    training_curves,
)

NAMES = ("amplitude", "phase (rad)")
PUBLISHED = {5: {1: 0.67, 5: 0.38, 10: 0.35}}
GRID = np.linspace(-5, 5, 21)
STEPS = [0, 1, 5, 10]


def drawn(figure: Figure, layout: bool = False) -> Figure:
    """The figure, after every part of it was drawn: where most faults of a figure show. Laying it out is slow."""
    figure.set_dpi(30)
    if not layout:
        figure.set_layout_engine("none")
    FigureCanvasAgg(figure).draw()
    return figure


def numbers(*shape: int) -> np.ndarray:
    """Positive numbers of a fixed seed."""
    return np.random.default_rng(0).uniform(0.1, 2.0, shape)


def curves(train: int = 30, validation: int = 4, steps: int = 10) -> Figure:
    return training_curves(
        {"iteration": np.arange(train) * 100, "query_mse": numbers(train)},
        {"iteration": np.arange(validation) * 1000, "mse": numbers(validation, steps + 1)},
        "a title",
    )


def task(*curves: np.ndarray) -> dict[str, np.ndarray]:
    return {"grid": GRID, "predictions": np.array(curves), "support_x": GRID[:4], "support_y": numbers(4)}


def few_tasks(tasks: int = 5, steps: list[int] = STEPS) -> Figure:
    more = {"truth": numbers(len(GRID))}, {"points_x": numbers(6), "points_y": numbers(6), "asked": numbers(2, 3)}
    shown = {f"task {number}": task(*numbers(len(steps), len(GRID))) | more[number % 2] for number in range(tasks)}
    return task_curves(shown, steps, "a title", ("day", "mass"))


def performance(tasks: int = 40, reference: Published = PUBLISHED, names: Sequence[str] = NAMES) -> Figure:
    errors = {count: numbers(tasks) / count for count in (5, 10)}
    return performance_over_tasks(errors, numbers(tasks, 3), names, 10, reference, "a title")


def latent(tasks: int = 40, names: Sequence[str] = NAMES) -> Figure:
    return latent_space(numbers(tasks, 4), numbers(tasks, 3), names, "a title")


def results(steps: int = 10, groups: int = 2, seeds: int = 3) -> dict[int, dict[str, dict[str, np.ndarray]]]:
    def one(shots: int) -> dict[str, np.ndarray]:
        values = numbers(seeds, steps + 1) / shots
        with np.errstate(all="ignore"):
            return {"mse": values.mean(0), "ci95": values[0] / 10, "seeds": values}

    return {shots: {f"method {number}": one(shots) for number in range(groups)} for shots in (5, 10)}


def against_gradients(**kwargs: int) -> Figure:
    return error_against_gradients(results(**kwargs), "a title", PUBLISHED)


def against_shots(**kwargs: int) -> Figure:
    found = results(**kwargs)
    return error_against_shots(found, sorted({min(1, kwargs.get("steps", 10)), kwargs.get("steps", 10)}), "a title")


def prediction(outside: bool = True, sampled: bool = True, families: bool = False) -> Figure:
    more = {"band": np.sort(numbers(2, len(GRID)), 0), "samples": numbers(8, len(GRID))} if sampled else {}
    more |= {"is_sine": numbers(8) < 1} if families else {}
    x_range = (-3.0, 3.0) if outside else (-5.0, 5.0)
    return task_curves({"": task(*numbers(2, len(GRID))) | more}, (0, 10), "a title", x_range=x_range)


def intervals(few: int = 9, many: int = 200) -> Figure:
    arrays = {"interval_nominal": np.arange(1, 20) / 20}
    for shots, tasks in ((5, few), (10, many)):
        sizes = {f"interval_{name}_{shots}_shot": numbers(tasks) for name in ("width", "error")}
        arrays |= sizes | {f"interval_coverage_{shots}_shot": arrays["interval_nominal"] ** 1.1}
    return interval_quality(arrays, (5, 10), "a title")


FIGURES: dict[str, Callable[..., Figure]] = {
    "training_curves": curves,
    "task_curves": few_tasks,
    "performance_over_tasks": performance,
    "latent_space": latent,
    "error_against_gradients": against_gradients,
    "error_against_shots": against_shots,
    "task_curves of one": prediction,
    "interval_quality": intervals,
}


def shown(figure: Figure) -> list[Axes]:
    return [axis for axis in figure.axes if axis.get_visible()]


def legends(figure: Figure) -> list[list[str]]:
    """What each of a figure's axes has for a legend."""
    return [axis.get_legend_handles_labels()[1] for axis in figure.axes]


def outer(figure: Figure, side: str) -> list[Axes]:
    """The axes at the bottom or at the left of a figure: those that carry the labels of all."""
    found = []
    for axis in shown(figure):
        place = axis.get_subplotspec()
        if place is not None and (place.is_last_row() if side == "bottom" else place.is_first_col()):
            found.append(axis)
    return found


# ---- every figure


@pytest.mark.parametrize("figure_name", FIGURES)
def test_a_drawn_figure_has_its_title_and_outer_axes_with_units(figure_name: str) -> None:
    figure = drawn(FIGURES[figure_name](), layout=True)
    assert "a title" in [figure.get_suptitle(), *(axis.get_title() for axis in figure.axes)]
    assert all(axis.get_xlabel() for axis in outer(figure, "bottom"))
    assert all(axis.get_ylabel() for axis in outer(figure, "left"))
    names = {name for axis in figure.axes for name in (axis.get_xlabel(), axis.get_ylabel())}
    assert ("phase (rad)" in names) == (figure_name in ("performance_over_tasks", "latent_space"))


# ---- little to show


FEW_TASKS, FEW_STEPS = [{"tasks": 1}, {"tasks": 2}], [{"steps": 0}, {"steps": 1}, {"steps": 3}]
LITTLE: dict[str, list[dict[str, Any]]] = {
    "training_curves": [*FEW_STEPS, *({"train": train, "validation": few} for train, few in ((0, 0), (0, 3), (3, 0), (1, 1)))],
    "task_curves": FEW_TASKS,
    "performance_over_tasks": [*FEW_TASKS, {"names": ()}],
    "latent_space": [*FEW_TASKS, {"names": ()}],
    "error_against_gradients": FEW_STEPS,
    "error_against_shots": FEW_STEPS,
}


@pytest.mark.parametrize("name", LITTLE)
def test_few_tasks_steps_gradients_or_parameters_are_enough(name: str) -> None:
    for little in LITTLE[name]:
        drawn(FIGURES[name](**little))


def test_published_figures_are_marked_for_the_shots_that_have_them() -> None:
    assert legends(performance())[0] == ["K = 5", "Finn et al. 2017, mean, K = 5", "K = 10"]
    for reference in ({}, {20: {10: 0.1}}, {5: {}}):  # none, for another K, without values
        assert legends(drawn(performance(reference=reference)))[0] == ["K = 5", "K = 10"]
    assert ["Finn et al. 2017" in panel for panel in legends(against_gradients())] == [True, False]


# ---- values that are not finite, and values far off


def test_a_diverged_task_counts_among_all_in_the_distribution() -> None:
    errors = np.array([1.0, 2.0, np.inf, np.nan])
    left = performance_over_tasks({5: errors}, numbers(4, 3), NAMES, 5, {}, "a title").axes[0]
    assert_allclose(left.lines[0].get_ydata(), [0.25, 0.5])
    assert len(left.lines) == 1  # no marker: their mean is not finite


def test_a_diverged_subject_stands_below_all_others_as_an_arrow() -> None:
    axis = errors_by_subject(list("abcd"), np.array([3.0, np.inf, 1.0, 1e300]), 5, "weight", "a title").axes[0]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["c", "a", "b", "d"]
    assert axis.lines[1].get_marker() == ">" and axis.lines[1].get_ydata().tolist() == [2, 3]
    assert len(errors_by_subject(list("ab"), np.array([3.0, 1.0]), 5, "weight", "a title").axes[0].lines) == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_latent_space_shows_the_codes_that_are_finite(bad: float) -> None:
    codes = numbers(40, 4)
    codes[3, 1] = bad
    dots = drawn(latent_space(codes, numbers(40, 3), NAMES, "a title")).axes[0].collections[0]
    assert np.isfinite(np.ma.filled(dots.get_offsets(), np.nan)).all(1).sum() == 39


# ---- any numbers


def filled(*values: float, dtype: type = float) -> Callable[..., np.ndarray]:
    """A stand-in for `numbers`: these values again and again."""
    return lambda *shape: np.resize(np.array(values, dtype), shape)


KINDS: dict[str, Callable[..., np.ndarray]] = {
    "zero": filled(0.0),
    "nan": filled(np.nan),
    "equal but for the last digit": filled(1e9, np.nextafter(1e9, 2e9)),
    "the ends of float32": filled(3e38, -3e38, 1e-45, dtype=np.float32),
    "the ends of float64": filled(1e308, 1e-310, 1e-300),
    "everything": filled(1.0, np.nan, np.inf, 0.0, -1.0, 1e30, 1e-30, -np.inf, 1e300, 5e-324, -1e308),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FIGURES)
def test_any_numbers_make_a_figure_of_something_and_change_no_setting(
    name: str, kind: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "numbers", KINDS[kind])
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # whatever the tests before have left
        before = dict(matplotlib.rcParams)
        figure = FIGURES[name]()
        assert dict(matplotlib.rcParams) == before
    for axis in shown(figure):
        assert axis.texts or np.isfinite(axis.dataLim.get_points()).all()
        for side in (axis.xaxis, axis.yaxis):  # where most warnings come from, and much faster than drawing
            assert np.isfinite([*side.get_view_interval(), *side.get_majorticklocs(), *side.get_minorticklocs()]).all()
        for line in axis.lines:
            line.get_transform().transform_path(line.get_path())
    assert not caplog.records


def test_a_panel_without_values_says_so() -> None:
    left, right = curves(train=0).axes
    assert [text.get_text() for text in left.texts] == ["no values to show"] and not right.texts


@pytest.mark.parametrize("count", [1, 9])
def test_one_x_without_samples_is_enough_for_a_figure(count: int) -> None:
    grid, values = np.full(count, 2.0), np.ones((2, count))
    one = {"grid": grid, "support_x": grid, "support_y": grid, "predictions": values, "samples": values[:0]}
    drawn(task_curves({"": one}, (0, 1), "a title", x_range=(2.0, 2.0)))


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e9])
def test_curves_fill_the_picture_in_any_unit(scale: float) -> None:
    low, high = limits([scale * GRID], 0.1)
    assert_allclose([low, high], [-6 * scale, 6 * scale])
    assert limits([], 0.1) == (-1.0, 1.0) and limits([np.full(3, scale)], 0.1)[0] < scale


# ---- what the figures compute


@pytest.mark.parametrize("width", [1, 3, 5, 99])
def test_smoothing_is_the_geometric_mean_of_the_window(width: int) -> None:
    values, half = numbers(12), width // 2
    expected = [np.exp(np.log(values[max(0, i - half) : i + half + 1]).mean()) for i in range(12)]
    assert_allclose(smoothed(values, width), expected)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 0.0])
def test_a_value_without_a_logarithm_spoils_only_the_windows_around_it(bad: float) -> None:
    values = np.ones(12)
    values[3] = bad
    assert_allclose(smoothed(values, 3)[[0, 1, *range(5, 12)]], 1)
    assert np.isfinite(smoothed(values, 3)[2:5]).all() == (bad == 0) and len(smoothed(values[:0], 5)) == 0


@pytest.mark.parametrize("bins", [1, 4, 12])
def test_binned_medians_are_the_medians_of_the_bins(bins: int) -> None:
    rng = np.random.default_rng(1)
    x, y = rng.uniform(0, 1, 200), rng.standard_normal(200)
    edges = np.linspace(x.min(), x.max(), bins + 1)
    members = [(x >= low) & (x < high) for low, high in itertools.pairwise(edges)]
    members[-1] |= x == x.max()
    centres, medians = binned_median(x, y, bins)
    assert_allclose(centres, (edges[:-1] + edges[1:]) / 2)
    assert_allclose(medians, [np.median(y[member]) for member in members])


def test_bins_without_points_have_no_median() -> None:
    def found(x: list[float], y: list[float]) -> list[list[float]]:
        return [part.tolist() for part in binned_median(np.array(x), np.array(y), 4)]

    assert found([0.0, 0.1, 1.0], [1.0, 3.0, 5.0]) == [[0.125, 0.875], [2.0, 5.0]]
    assert found([], []) == [[], []] and found([2.0] * 3, [1.0, 2.0, 9.0]) == [[2.0], [2.0]]


# ---- all figures of a run


@pytest.fixture
def arrays() -> dict[str, np.ndarray]:
    """What plots/data.npz holds, for a run with everything in it."""
    return {
        "test_params": numbers(30, 3),
        "test_errors_5_shot": numbers(30, 11),
        "test_errors_20_shot": numbers(30, 11),
        "train_iteration": np.arange(10),
        "train_query_mse": numbers(10),
        "validation_iteration": np.arange(2),
        "validation_mse": numbers(2, 11),
        "grid": GRID,
        "grid_truth": numbers(6, 21),
        "grid_support_x": numbers(6, 5),
        "grid_support_y": numbers(6, 5),
        "grid_predictions": numbers(6, 11, 21),
        "codes": numbers(30, 4),
    }


COMMON = {"training_curves", "performance", "adaptive_learning"}


@pytest.mark.parametrize(
    ("left_out", "more"),
    [("none", {"task_predictions", "latent_space"}), ("codes", {"task_predictions"}), ("grid", {"latent_space"})],
)
def test_a_run_has_the_figures_that_its_arrays_allow(arrays: dict[str, np.ndarray], left_out: str, more: set[str]) -> None:
    kept = {name: array for name, array in arrays.items() if left_out not in name}
    assert set(run_figures(kept, 5, NAMES, PUBLISHED, "a run")) == COMMON | more


def test_drawing_stored_arrays_leaves_them_as_they_were(arrays: dict[str, np.ndarray], tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "data.npz", **arrays)
    with np.load(tmp_path / "data.npz", allow_pickle=False) as stored:
        given = dict(stored)
    for figure in run_figures(given, 5, NAMES, {}, "a run").values():
        drawn(figure)
    assert all(np.array_equal(array, given[name]) for name, array in arrays.items())


def test_errors_of_a_table_are_shown_in_its_own_unit() -> None:
    found = {5: {"a method": {"mse": np.array([4.0, 1.0]), "ci95": np.zeros(2)}}}
    axis = error_against_gradients(found, "a title", own_unit=("mass (g)", 10.0)).axes[0]
    assert axis.get_ylabel().startswith("mass (g)") and axis.lines[0].get_ydata().tolist() == [20, 10]


def test_a_miss_of_the_network_is_in_the_picture_and_a_wild_one_leaves_room_for_the_points() -> None:
    def top(last: float) -> float:
        one = {"grid": GRID, "support_x": np.arange(2.0), "support_y": np.arange(2.0), "predictions": np.full((1, 21), 0.5)}
        one["predictions"][0, -1] = last
        return float(task_curves({"": one}, [1], "a title").axes[0].get_ylim()[1])

    assert 1 < top(0.5) < 1.3 < top(1.4) and top(1e9) == top(1e6) < 2.5


# ---- methods side by side, predictions, samples


def texts(figure: Figure) -> set[str]:
    return {text.get_text() for legend in figure.legends for text in legend.get_texts()}


@pytest.mark.parametrize("draw", [against_gradients, against_shots])
@pytest.mark.parametrize("groups", [1, 6, 13])
def test_every_method_stands_once_in_the_legend(draw: Callable[..., Figure], groups: int) -> None:
    figure = draw(groups=groups)
    found = [text.get_text() for text in figure.legends[0].get_texts()]
    assert sorted(text for text in found if "method" in text) == sorted(f"method {number}" for number in range(groups))


def test_no_two_methods_look_alike() -> None:
    looks = [figures._line_style(place) for place in range(24)]
    assert all(first != second for first, second in itertools.combinations(looks, 2))


def test_every_seed_has_a_line_of_its_own() -> None:
    lines = [len(against_gradients(groups=2, seeds=seeds).axes[1].lines) for seeds in (1, 3)]
    assert lines == [2, 2 + 2 * 3]


@pytest.mark.parametrize("draw", [error_against_gradients, lambda found, title: error_against_shots(found, [1, 10], title)])
@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e77])  # the last is about the square of the largest float32
def test_a_comparison_shows_what_is_left_of_methods_that_diverged(draw: Callable[..., Figure], bad: float) -> None:
    found = results(groups=5)
    for shots in found:
        for label, key, where in [(1, "mse", 5), (2, "ci95", 5), (3, "mse", 0), (4, "ci95", 0)]:
            for name in (key, "seeds"):
                found[shots][f"method {label}"][name][..., where:] = bad
    top = drawn(draw(found, "a title")).axes[0].get_ylim()[1]
    assert top < 1e4  # the methods that work are still to be seen


@pytest.mark.parametrize("outside", [True, False])
@pytest.mark.parametrize("sampled", [True, False])
def test_a_prediction_labels_what_it_has_and_shades_what_lies_outside(outside: bool, sampled: bool) -> None:
    figure = drawn(prediction(outside, sampled))
    labels = texts(figure)
    assert {"before adapting", "after 10 gradients", "support points"} <= labels
    assert ("extrapolation" in labels, len(figure.axes[0].patches)) == (outside, 2 * outside)
    assert ("90% interval for a measurement" in labels, "sampled curves" in labels) == (sampled, sampled)
    families = {"samples like a sinusoid", "samples like a line"}  # told apart where it is known
    assert families <= texts(prediction(families=True)) and not families & labels


@pytest.mark.parametrize("x_range", [(10.0, 20.0), (-20.0, -10.0)])
def test_a_grid_wholly_outside_is_shaded_wholly(x_range: tuple[float, float]) -> None:
    curve = numbers(len(GRID))
    figure = task_curves({"": task(curve, curve)}, (0, 1), "a title", x_range=x_range)
    (shade,) = figure.axes[0].patches
    corners = shade.get_path().vertices if isinstance(shade, Polygon) else shade.get_corners()  # a Rectangle since 3.9
    assert_allclose([corners[:, 0].min(), corners[:, 0].max()], [-5, 5])


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
def test_a_prediction_far_off_leaves_the_points_in_the_picture(bad: float) -> None:
    curve = np.full(len(GRID), bad)
    figure = task_curves({"": task(curve, numbers(len(GRID))) | {"samples": curve[None]}}, (0, 10), "a title")
    low, high = drawn(figure).axes[0].get_ylim()
    assert -10 < low < numbers(4).min() and numbers(4).max() < high < 10


@pytest.mark.parametrize("tasks", [1, 3, 4, 5])
def test_every_task_has_a_panel_and_the_lowest_of_a_column_has_the_axis(tasks: int) -> None:
    panels = shown(drawn(few_tasks(tasks)))
    assert [axis.get_title() for axis in panels] == [f"task {number}" for number in range(tasks)]
    lowest = [("day", True)] * min(3, tasks)
    labels = [(axis.get_xlabel(), axis.xaxis.get_major_ticks()[0].label1.get_visible()) for axis in panels]
    assert labels == [("", False)] * (tasks - len(lowest)) + lowest


# ---- files


@pytest.mark.parametrize(("file", "magic"), [(png_bytes, b"\x89PNG"), (pdf_bytes, b"%PDF")])
def test_equal_figures_are_equal_files(file: Callable[[Figure], bytes], magic: bytes) -> None:
    first, second = (file(against_shots()) for _ in range(2))
    assert first == second and first.startswith(magic) and b"/Type3" not in first
    assert (b"/FontFile2" in first) == (file is pdf_bytes)  # its text is TrueType

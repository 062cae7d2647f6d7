"""Figures: arrays in, labelled figures out, whatever the arrays hold."""

import itertools
import sys

import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.patches import Polygon
from numpy.testing import assert_allclose

from evaluation.statistics import shown_steps
from report import figures
from report.figures import error_against_gradients, error_against_shots, errors_by_subject, run_figures, sample_bundle
from report.prediction_figures import interval_quality, prediction_curves
from system.files import figure_bytes
from visualization import (
    adaptive_learning,
    binned_median,
    latent_space,
    limits,
    performance_over_tasks,
    smoothed,
    task_predictions,
    training_curves,
)

NAMES = ("amplitude", "phase (rad)")
PUBLISHED = {5: {1: 0.67, 5: 0.38, 10: 0.35}}
GRID = np.linspace(-5, 5, 21)
STEPS = [0, 1, 5, 10]


def drawn(figure):
    """The figure, laid out and drawn, which is slow: the usual one of each kind."""
    figure.set_dpi(30)
    FigureCanvasAgg(figure).draw()
    return figure


def sound(figure):
    """The figure, whose axes have finite limits and ticks and whose lines have places: where most faults show."""
    for axis in shown(figure):
        for side in (axis.xaxis, axis.yaxis):
            assert np.isfinite([*side.get_view_interval(), *side.get_majorticklocs(), *side.get_minorticklocs()]).all()
        for line in axis.lines:
            line.get_transform().transform_path(line.get_path())
    return figure


def numbers(*shape):
    """Positive numbers of a fixed seed."""
    return np.random.default_rng(0).uniform(0.1, 2.0, shape)


def curves(train=30, validation=4, steps=10):
    history = {"iteration": np.arange(train) * 100, "query_mse": numbers(train)}
    validated = {"iteration": np.arange(validation) * 1000, "mse": numbers(validation, steps + 1)}
    return training_curves(history, validated, "a title")


def predictions(tasks=6, steps=STEPS):
    shape = (tasks, len(GRID))
    points = numbers(tasks, 5)
    return task_predictions(GRID, numbers(*shape), points, points, numbers(tasks, len(steps), len(GRID)), steps, "a title")


def performance(tasks=40, reference=PUBLISHED):
    errors = {count: numbers(tasks) / count for count in (5, 10)}
    return performance_over_tasks(errors, numbers(tasks, 3), NAMES, 10, reference, "a title")


def adapting(steps=10, reference=PUBLISHED):
    results = {count: {"mse": numbers(steps + 1), "ci95": numbers(steps + 1) / 10} for count in (5, 10)}
    return adaptive_learning(results, reference, "a title")


def latent(tasks=40, size=4):
    return latent_space(numbers(tasks, size), numbers(tasks, 3), NAMES, "a title")


def results(steps=10, groups=2, seeds=3):
    def one(shots):
        values = numbers(seeds, steps + 1) / shots
        with np.errstate(all="ignore"):
            return {"mse": values.mean(0), "ci95": values[0] / 10, "seeds": values}

    return {shots: {f"method {number}": one(shots) for number in range(groups)} for shots in (5, 10)}


def against_gradients(**kwargs):
    return error_against_gradients(results(**kwargs), "a title", PUBLISHED)


def against_shots(**kwargs):
    found = results(**kwargs)
    return error_against_shots(found, sorted({min(1, kwargs.get("steps", 10)), kwargs.get("steps", 10)}), "a title")


def prediction(outside=True, sampled=True):
    more = {"band": np.sort(numbers(2, len(GRID)), 0), "samples": numbers(8, len(GRID))} if sampled else {}
    inner = (-3.0, 3.0) if outside else (-5.0, 5.0)
    return prediction_curves({"": task(*numbers(2, len(GRID))) | more}, 10, inner, "a title")


def task(before, after):
    return {"grid": GRID, "before": before, "after": after, "support_x": GRID[:4], "support_y": numbers(4)}


def subjects(count=5):
    tasks = {f"subject {number}": task(*numbers(2, len(GRID))) for number in range(count)}
    tasks["subject 0"] |= {"asked": numbers(2, 3), "band": np.sort(numbers(2, len(GRID)), 0)}
    return prediction_curves(tasks, 10, (-3.0, 3.0), "a title", ("day", "mass"), 0.5)


def bundle(tasks=2, families=True, samples=9):
    points, is_sine = numbers(tasks, 5), numbers(tasks, samples) < 1
    curves = numbers(tasks, samples, len(GRID))
    truth = numbers(tasks, len(GRID)) if families else None
    names = [f"task {number}" for number in range(tasks)]
    return sample_bundle(GRID, points, points, curves, "a title", truth, is_sine if families else None, names)


def intervals(few=9, many=200):
    arrays = {"interval_nominal": np.arange(1, 20) / 20}
    for shots, tasks in ((5, few), (10, many)):
        sizes = {f"interval_{name}_{shots}_shot": numbers(tasks) for name in ("width", "error")}
        arrays |= sizes | {f"interval_coverage_{shots}_shot": arrays["interval_nominal"] ** 1.1}
    return interval_quality(arrays, (5, 10), "a title")


FIGURES = {
    "training_curves": curves,
    "task_predictions": predictions,
    "performance_over_tasks": performance,
    "adaptive_learning": adapting,
    "latent_space": latent,
    "error_against_gradients": against_gradients,
    "error_against_shots": against_shots,
    "prediction_curves": prediction,
    "prediction_curves of several": subjects,
    "sample_bundle": bundle,
    "interval_quality": intervals,
}


def shown(figure):
    return [axis for axis in figure.axes if axis.get_visible()]


def outer(figure, edge):
    """The axes at an edge of a figure: those that carry the labels of all."""
    places = [(axis, axis.get_subplotspec()) for axis in shown(figure)]
    return [axis for axis, place in places if place is not None and getattr(place, edge)()]


@pytest.mark.parametrize("name", FIGURES)
def test_a_drawn_figure_has_its_title_names_its_outer_axes_and_changes_no_setting_of_matplotlib(name):
    before = dict(matplotlib.rcParams)
    figure = drawn(FIGURES[name]())
    assert dict(matplotlib.rcParams) == before
    assert "a title" in [figure.get_suptitle(), *(axis.get_title() for axis in figure.axes)]
    assert all(axis.get_xlabel() for axis in outer(figure, "is_last_row"))
    assert all(axis.get_ylabel() for axis in outer(figure, "is_first_col"))
    if name in ("performance_over_tasks", "latent_space"):
        assert "phase (rad)" in {label for axis in figure.axes for label in (axis.get_xlabel(), axis.get_ylabel())}


def test_few_tasks_short_histories_and_few_gradients_can_be_drawn():
    for tasks, name in itertools.product((1, 2), ("task_predictions", "performance_over_tasks", "latent_space")):
        sound(FIGURES[name](tasks=tasks))
    for train, validation in ((0, 0), (0, 3), (3, 0), (1, 1)):
        sound(curves(train, validation))
    for steps in (0, 1, 3):
        for figure in (curves(steps=steps), adapting(steps=steps), predictions(tasks=2, steps=shown_steps(steps))):
            sound(figure)
        for draw in (against_gradients, against_shots):
            sound(draw(steps=steps))


@pytest.mark.parametrize("draw", [performance, adapting])
def test_published_figures_are_marked_for_the_shots_that_have_them(draw):
    for reference in ({}, {20: {10: 0.1}}, {5: {}}, PUBLISHED):
        labels = {text for axis in sound(draw(reference=reference)).axes for text in axis.get_legend_handles_labels()[1]}
        assert {"K = 5", "K = 10"} <= labels
        marked = [label for label in labels if "Finn" in label]
        assert bool(marked) == (reference == PUBLISHED) and all("K = 5" in label for label in marked)


def test_codes_of_equal_tasks_and_a_family_without_named_parameters_can_be_drawn():
    sound(latent_space(np.ones((10, 4)), numbers(10, 3), NAMES, "a title"))
    sound(latent_space(numbers(10, 4), numbers(10, 3), (), "a title"))
    sound(performance_over_tasks({5: numbers(10)}, numbers(10, 3), (), 5, {}, "a title"))


def test_what_diverged_counts_among_all_tasks_and_stands_below_the_other_subjects_as_an_arrow():
    errors = np.array([1.0, 2.0, np.inf, np.nan])
    left = performance_over_tasks({5: errors}, numbers(4, 3), NAMES, 5, {}, "a title").axes[0]
    assert_allclose(left.lines[0].get_ydata(), [0.25, 0.5])
    assert len(left.lines) == 1  # no marker: their mean is not finite
    axis = errors_by_subject(list("abcd"), np.array([3.0, np.inf, 1.0, 1e300]), 5, "weight", "a title").axes[0]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["c", "a", "b", "d"]
    assert axis.lines[1].get_marker() == ">" and axis.lines[1].get_ydata().tolist() == [2, 3]
    assert len(errors_by_subject(list("ab"), np.array([3.0, 1.0]), 5, "weight", "a title").axes[0].lines) == 1
    codes = numbers(40, 4)
    codes[3, 1], codes[5, 0] = np.nan, np.inf  # not shown among the codes
    dots = sound(latent_space(codes, numbers(40, 3), NAMES, "a title")).axes[0].collections[0]
    assert np.isfinite(np.ma.filled(dots.get_offsets(), np.nan)).all(1).sum() == 38


def test_a_baseline_that_is_alike_at_every_k_is_one_line():
    results = {count: {"mse": numbers(11), "ci95": numbers(11) / 10} for count in (5, 10)}
    for second, labels in ((3.0, ["mean curve"]), (2.0, ["mean curve, K = 5", "mean curve, K = 10"])):
        figure = sound(adaptive_learning(results, {}, "a title", {5: ("mean curve", 3.0), 10: ("mean curve", second)}))
        assert [text.get_text() for text in figure.legends[0].get_texts() if "mean" in text.get_text()] == labels


def filled(*values, dtype=float):
    """A stand-in for `numbers`: these values again and again."""
    return lambda *shape: np.resize(np.array(values, dtype), shape)


KINDS = {
    "zero": filled(0.0),
    "nan": filled(np.nan),
    "equal but for the last digit": filled(1e9, np.nextafter(1e9, 2e9)),
    "the ends of float32": filled(3e38, -3e38, 1e-45, dtype=np.float32),
    "the ends of float64": filled(1e308, 1e-310, 1e-300),
    "everything": filled(1.0, np.nan, np.inf, 0.0, -1.0, 1e30, 1e-30, -np.inf, 1e300, 5e-324, -1e308),
}


@pytest.mark.parametrize("kind", KINDS)
def test_any_numbers_make_a_figure_that_says_something(kind, monkeypatch, caplog):
    monkeypatch.setattr(sys.modules[__name__], "numbers", KINDS[kind])
    for axis in (axis for draw in FIGURES.values() for axis in shown(sound(draw()))):
        assert axis.texts or np.isfinite(axis.dataLim.get_points()).all()
    assert not caplog.records


def test_a_panel_without_values_says_so_and_one_x_is_enough_for_a_figure():
    left, right = curves(train=0).axes
    assert [text.get_text() for text in left.texts] == ["no values to show"] and not right.texts
    sound(adaptive_learning({}, {}, "a title"))
    sound(sample_bundle(GRID, numbers(1, 3), numbers(1, 3), numbers(1, 0, 21), "a title"))
    for count in (1, 9):
        grid, values = np.full(count, 2.0), np.ones((1, count))
        one = dict.fromkeys(("before", "after", "support_y"), values[0]) | {"grid": grid, "support_x": grid}
        sound(prediction_curves({"": one}, 1, (2.0, 2.0), "a title"))
        sound(sample_bundle(grid, values, values, values[None], "a title"))
        sound(task_predictions(grid, values, values, values, values[None], [0], "a title"))


def test_curves_fill_the_picture_in_any_unit():
    for scale in (1e-12, 1.0, 1e9):
        assert_allclose(limits([scale * GRID], 0.1), [-6 * scale, 6 * scale])
        assert limits([np.full(3, scale)], 0.1)[0] < scale
    assert limits([], 0.1) == (-1.0, 1.0)


def test_smoothing_is_the_geometric_mean_of_the_window_and_bad_values_spoil_only_theirs():
    values = numbers(12)
    for width in (1, 3, 5, 99):
        windows = [values[max(0, i - width // 2) : i + width // 2 + 1] for i in range(12)]
        assert_allclose(smoothed(values, width), [np.exp(np.log(window).mean()) for window in windows])
    assert len(smoothed(np.empty(0), 5)) == 0 and np.isfinite(smoothed(np.array([1.0, 0.0, 1.0]), 3)).all()
    for bad in (np.nan, np.inf):
        assert_allclose(smoothed(np.array([1, 1, bad, *np.ones(9)]), 3)[4:], 1)


def test_binned_medians_are_the_medians_of_the_bins_that_have_points():
    rng = np.random.default_rng(1)
    x, y = rng.uniform(0, 1, 200), rng.standard_normal(200)
    for bins in (1, 4, 12):
        edges = np.linspace(x.min(), x.max(), bins + 1)
        members = [(x >= low) & (x < high) for low, high in itertools.pairwise(edges)]
        members[-1] |= x == x.max()
        centres, medians = binned_median(x, y, bins)
        assert_allclose(centres, (edges[:-1] + edges[1:]) / 2)
        assert_allclose(medians, [np.median(y[member]) for member in members])
    cases = [([0.0, 0.1, 1.0], [1.0, 3.0, 5.0], [[0.125, 0.875], [2.0, 5.0]]), ([], [], [[], []])]
    for x, y, expected in (*cases, ([2.0] * 3, [1.0, 2.0, 9.0], [[2.0], [2.0]])):
        assert [part.tolist() for part in binned_median(np.array(x), np.array(y), 4)] == expected


@pytest.mark.parametrize(
    ("left_out", "more"),
    [("none", {"task_predictions", "latent_space"}), ("codes", {"task_predictions"}), ("grid", {"latent_space"})],
)
def test_a_run_has_the_figures_that_its_arrays_allow_and_they_stay_as_they_were(left_out, more):
    points = {f"grid_support_{axis}": numbers(6, 5) for axis in "xy"}
    grid = {"grid": GRID, "grid_truth": numbers(6, 21), "grid_predictions": numbers(6, 11, 21)} | points
    train = {"train_iteration": np.arange(10), "train_query_mse": numbers(10)}
    validation = {"validation_iteration": np.arange(2), "validation_mse": numbers(2, 11)}
    test = {f"test_errors_{shots}_shot": numbers(30, 11) for shots in (5, 20)}
    test |= {"test_params": numbers(30, 3), "codes": numbers(30, 4)}
    given = {name: array for name, array in (grid | train | validation | test).items() if left_out not in name}
    before = {name: array.copy() for name, array in given.items()}
    made = run_figures(given, 5, NAMES, PUBLISHED, "a run")
    assert set(made) == {"training_curves", "performance", "adaptive_learning"} | more
    assert all(np.array_equal(array, before[name]) for name, array in given.items())
    for figure in made.values():
        sound(figure)


def test_a_miss_of_the_adapted_network_is_in_the_picture_of_a_table_and_a_wild_one_leaves_room_for_the_points():
    points = np.array([[0.0, 1.0]]), np.array([[0.0, 1.0]])

    def top(last):
        curves = np.full((1, 4, len(GRID)), 0.5)
        curves[0, -1, -1] = last
        return float(task_predictions(GRID, None, *points, curves, STEPS, "a title", points=points).axes[0].get_ylim()[1])

    assert 1 < top(0.5) < 1.3 < top(1.4) and top(1e9) == top(1e6) < 2.5


def texts(figure):
    return {text.get_text() for legend in figure.legends for text in legend.get_texts()}


@pytest.mark.parametrize("draw", [against_gradients, against_shots])
def test_every_method_stands_once_in_the_legend_and_looks_like_no_other(draw):
    for groups in (1, 6, 13):
        found = [text.get_text() for text in draw(groups=groups).legends[0].get_texts()]
        assert sorted(text for text in found if "method" in text) == sorted(f"method {number}" for number in range(groups))
    looks = [figures._line_style(place) for place in range(24)]
    assert all(first != second for first, second in itertools.combinations(looks, 2))


def test_every_seed_has_a_line_of_its_own_and_published_figures_the_panel_of_their_shots():
    lines = [len(against_gradients(groups=2, seeds=seeds).axes[1].lines) for seeds in (1, 3)]
    assert lines == [2, 2 + 2 * 3]
    panels = [axis.get_legend_handles_labels()[1] for axis in against_gradients().axes]
    assert ["Finn et al. 2017" in labels for labels in panels] == [True, False]


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e77])  # the last is about the square of the largest float32
def test_a_comparison_shows_what_is_left_of_methods_that_diverged(bad):
    found = results(groups=5)
    for shots in found:
        for label, key, where in [(1, "mse", 5), (2, "ci95", 5), (3, "mse", 0), (4, "ci95", 0)]:
            for name in (key, "seeds"):
                found[shots][f"method {label}"][name][..., where:] = bad
    for figure in (error_against_gradients(found, "a title"), error_against_shots(found, [1, 10], "a title")):
        assert sound(figure).axes[0].get_ylim()[1] < 1e4  # the methods that work are still to be seen


def test_a_prediction_labels_what_it_has_and_shades_what_is_outside():
    for outside, sampled in itertools.product((True, False), (True, False)):
        figure = sound(prediction(outside, sampled))
        labels = texts(figure)
        assert {"before adapting", "after 10 gradients", "given points"} <= labels
        assert ("extrapolation" in labels) == outside
        assert ("90% interval for a measurement" in labels, "some sampled curves" in labels) == (sampled, sampled)
        assert len(figure.axes[0].patches) == 2 * outside
    curve = numbers(len(GRID))
    for x_range in ((10.0, 20.0), (-20.0, -10.0)):  # with the grid wholly outside
        (shade,) = prediction_curves({"": task(curve, curve)}, 1, x_range, "a title").axes[0].patches
        corners = shade.get_path().vertices if isinstance(shade, Polygon) else shade.get_corners()  # a Rectangle since 3.9
        assert_allclose([corners[:, 0].min(), corners[:, 0].max()], [-5, 5])


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
def test_predictions_and_samples_far_off_leave_the_others_in_the_picture(bad):
    curve = np.full(len(GRID), bad)
    figure = prediction_curves({"": task(curve, numbers(len(GRID)))}, 10, (-5.0, 5.0), "a title")
    low, high = sound(figure).axes[0].get_ylim()
    assert -10 < low < numbers(4).min() and numbers(4).max() < high < 10
    curves = numbers(2, 9, len(GRID))
    curves[0, 3] = bad
    figure = sound(sample_bundle(GRID, numbers(2, 5), numbers(2, 5), curves, "a title"))
    assert figure.axes[0].get_ylim()[1] < 10


def test_the_lowest_panel_of_each_column_has_the_axis_name_and_numbers():
    figure = drawn(subjects(5))
    labels = [(axis.get_xlabel(), axis.xaxis.get_major_ticks()[0].label1.get_visible()) for axis in shown(figure)]
    assert labels == [("", False), ("", False), ("day", True), ("day", True), ("day", True)]


def test_a_bundle_has_a_panel_for_each_task_and_tells_the_families_of_samples_apart():
    for tasks in (1, 3, 4):
        assert [axis.get_title() for axis in shown(sound(bundle(tasks)))] == [f"task {number}" for number in range(tasks)]
    assert {"samples like a sinusoid", "samples like a line", "true function"} <= texts(bundle(families=True))
    assert texts(bundle(families=False)) == {"sampled networks", "support points"}


@pytest.mark.parametrize(("suffix", "magic"), [("png", b"\x89PNG"), ("pdf", b"%PDF")])
def test_equal_figures_are_equal_files(suffix, magic):
    first, second = (figure_bytes(against_shots(), suffix) for _ in range(2))
    assert first == second and first.startswith(magic)


def test_the_text_of_a_pdf_is_true_type():
    contents = figure_bytes(against_shots(), "pdf")
    assert b"/FontFile2" in contents and b"/Type3" not in contents

"""Figures of runs and their comparisons: which figures there are, from which arrays.

Arrays in, `matplotlib.figure.Figure` out, in the style of `visualization.py`.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

import visualization as draw
from dataset import Published
from evaluation.statistics import mean_and_interval, shown_steps
from visualization import BLACK, BLUE, CYCLE, MARKERS, VERMILION, Arrays, figure_function

# shots -> label -> {"mse" [S+1], "ci95" [S+1], "seeds" [R, S+1] (the mean of each seed; may be missing)}
Results = Mapping[int, Mapping[str, Mapping[str, np.ndarray]]]

MSE = "mean squared error on query points"
HAIR_SPACE = "\u200a"
DASHES = ("solid", (0, (5, 2)), (0, (1, 1)), (0, (5, 1, 1, 1)))  # beyond six labels the colours come again


def _line_style(place: int) -> dict[str, Any]:
    """Colour, marker and dash of the curve number `place`: no two of the first 24 are alike."""
    return {"color": CYCLE[place % 6], "marker": MARKERS[place % 6], "ls": DASHES[place // 6 % 4]}


def _legend_label(name: str) -> str:
    """`name` as a label: matplotlib leaves those that begin with an underscore out of legends."""
    return f"{HAIR_SPACE}{name}" if name.startswith("_") else name


def _usual_range(curves: Sequence[np.ndarray]) -> tuple[float, float]:
    """The lowest error above zero, and where to cut the axis; infinity where nothing has to be cut.

    It is cut at the highest error that is at most 1000 times the largest of the curves' lowest errors.
    """
    values = np.concatenate([curve.ravel() for curve in curves])
    known = [curve[np.isfinite(curve) & (curve > 0)] for curve in curves]
    lows = np.array([curve.min() for curve in known if len(curve)])
    if not len(lows):
        return 1e-3, np.inf
    highest = 1000 * lows[lows < 1e20 * lows.min()].max()
    exploded = not np.isfinite(values).all() or values.max() > highest
    return lows.min(), values[values <= highest].max() if exploded else np.inf


def _panels_of_errors(count: int, width: float, what: str = MSE) -> tuple[Figure, np.ndarray]:
    """A figure with `count` panels of `width` inches side by side, with one axis of errors, `what`."""
    figure, axes = draw.figure_grid(1, count, max(4.6, width * count + 0.4), 4.2, sharey=True)
    axes[0, 0].set_ylabel(what)
    return figure, axes


def _finish(figure: Figure, axes: np.ndarray, lowest: float, highest: float, title: str) -> Figure:
    """The axis of errors is logarithmic, and a curve that explodes leaves it at the top."""
    draw.log_scale(axes[0, 0])
    if np.isfinite(highest):
        axes[0, 0].set_ylim(lowest / 2, 2 * highest)
    draw.shared_legend(figure, axes, title)
    return figure


@figure_function
def error_against_gradients(
    results: Results, title: str, reference: Published | None = None, own_unit: tuple[str, float] | None = None
) -> Figure:
    """Mean error against support gradients with 95% bands over tasks: a panel for each K, a curve for each label.

    Args:
        results: the mean of each seed is drawn as a thin line where there are several.
        reference: shots -> gradients -> published mean of Finn et al. 2017, drawn as crosses.
        own_unit: the target's name and what 1 is in its unit: the roots of the errors are shown in that.
    """

    def shown(errors: Any) -> Any:
        return errors if own_unit is None else own_unit[1] * np.sqrt(errors)

    what = f"{own_unit[0]}: root mean squared error" if own_unit else MSE
    figure, axes = _panels_of_errors(len(results), 3.4, what)
    lowest, highest = _usual_range([values["mse"] for result in results.values() for values in result.values()])
    for axis, (shots, result) in zip(axes[0], results.items(), strict=True):
        for place, (label, values) in enumerate(result.items()):
            mean, half = values["mse"], values["ci95"]
            seeds = values.get("seeds", mean[None])
            for seed in seeds if len(seeds) > 1 else []:
                axis.plot(shown(seed), color=CYCLE[place % 6], lw=0.6, alpha=0.7)
            low = np.maximum(mean - half, lowest / 3)  # a band may reach below zero, where a log axis has no place
            style = _line_style(place) | {"label": _legend_label(label)}
            draw.curve_with_band(axis, shown(mean), shown(low), shown(mean + half), **style)
        if known := (reference or {}).get(shots):
            axis.plot(list(known), list(known.values()), "x", color=BLACK, ms=8, mew=1.8, label="Finn et al. 2017")
        axis.set(title=f"K = {shots}", xlabel="gradients taken on the support set")
        axis.xaxis.get_major_locator().set_params(integer=True)
    return _finish(figure, axes, shown(lowest), shown(highest), title)


@figure_function
def error_against_shots(results: Results, steps: Sequence[int], title: str) -> Figure:
    """Mean error with 95% intervals over tasks against K: a panel for each number of gradients in `steps`."""
    figure, axes = _panels_of_errors(len(steps), 3.8)
    shots = sorted(results)
    labels = list(results[shots[0]])
    errors, intervals = (  # [labels, shots, gradients]
        np.array([[results[count][label][name][list(steps)] for count in shots] for label in labels])
        for name in ("mse", "ci95")
    )
    lowest, highest = _usual_range(list(errors))
    for panel, (axis, step) in enumerate(zip(axes[0], steps, strict=True)):
        for place, label in enumerate(labels):
            mean, half = errors[place, :, panel], np.nan_to_num(intervals[place, :, panel]).clip(0)
            down = np.minimum(half, np.maximum(mean - lowest / 3, 0))  # a log axis has no place for zero
            x = np.array(shots) * 1.012 ** (place - (len(labels) - 1) / 2)  # side by side: bars over bars can't be read
            axis.errorbar(x, mean, [down, half], ms=5, lw=1.5, capsize=3, label=_legend_label(label), **_line_style(place))
        axis.set_xscale("log")
        axis.set_xticks(shots, [str(count) for count in shots])
        axis.set_xticks([], minor=True)
        axis.set_xlim(shots[0] / 1.25, shots[-1] * 1.25)
        axis.set(title=f"after {draw.gradients(step)}", xlabel="support points K")
    return _finish(figure, axes, lowest, highest, title)


@figure_function
def interval_quality(arrays: Arrays, shots: Sequence[int], title: str) -> Figure:
    """Intervals on test tasks: how many measurements they hold against what they say, and a task's width against its error.

    Args:
        arrays: "interval_nominal" [L]; of each K in `shots`, "interval_coverage_K_shot" [L], and of T tasks
            "interval_width_K_shot" [T] (at 90%) and "interval_error_K_shot" [T] (root mean square); of a table "y_scale" and
            "axis_names", whose second one is the target's.
    """
    figure, axes = draw.figure_grid(1, 2, 9.0, 4.4)
    left, right = axes[0]
    left.plot([0, 1], [0, 1], color="0.6", lw=1, label="as they should be")
    for place, count in enumerate(shots):
        colour, marker = CYCLE[place % 6], MARKERS[place % 6]
        style: Any = {"color": colour, "marker": marker, "lw": 1.5, "ms": 4}
        left.plot(arrays["interval_nominal"], arrays[f"interval_coverage_{count}_shot"], label=f"K = {count}", **style)
        width, error = (arrays[f"interval_{name}_{count}_shot"] for name in ("width", "error"))
        fine = np.isfinite(width) & np.isfinite(error) & (width > 0) & (error > 0)
        many = fine.sum() >= 60  # fewer are worth seeing one by one, and have no medians
        dots: Any = {"marker": ".", "ms": 3, "alpha": 0.3} if many else {"marker": marker, "ms": 5, "alpha": 0.8}
        right.plot(width[fine], error[fine], ls="none", color=colour, **dots)
        if many:
            centres, medians = draw.binned_median(np.log10(width[fine]), error[fine], 6)
            right.plot(10**centres, medians, mec="white", **style)
    left.set(xlabel="coverage asked for", ylabel="share of measurements inside", title="coverage", aspect="equal")
    unit = f" of {arrays['axis_names'][1]}" if "y_scale" in arrays else ""
    right.set(xlabel=f"mean width of a task's 90% intervals{unit}", ylabel=f"root mean squared error{unit}")
    right.set_title("width against error")
    for name in "xy":
        draw.log_scale(right, name)
    draw.shared_legend(figure, axes, title)
    return figure


@figure_function
def errors_by_subject(names: Sequence[str], errors: np.ndarray, shots: int, target: str, title: str) -> Figure:
    """Each test subject's error in the target's own unit, [T], the lowest first; of many 150, evenly; arrows: not finite."""
    order = np.argsort(errors)  # NaN is last
    if len(order) > 150:
        order = order[np.linspace(0, len(order) - 1, 150).round().astype(int)]
    figure, ((axis,),) = draw.figure_grid(1, 1, 5.6, 1.4 + 0.19 * max(4, len(order)))
    axis.plot(errors[order], np.arange(len(order)), "o", color=BLUE, ms=4)
    if len(bad := np.flatnonzero(np.isnan(errors[order]))):
        axis.plot(1 + 0 * bad, bad, ">", color=VERMILION, transform=axis.get_yaxis_transform(), clip_on=False, label="diverged")
        axis.legend(loc="upper right")
    axis.set_yticks(range(len(order)), [draw.drawable_text(names[place], 28) for place in order])
    axis.set(xlabel=f"{target}: root mean squared error at K = {shots}", ylabel="subject", title=title, xlim=(0, None))
    axis.invert_yaxis()
    return figure


# ---- the figures of a run


def example_tasks(arrays: Arrays, left_out: str = "", most: int = 6) -> dict[str, Arrays]:
    """The first `most` example tasks, by name, from the arrays grid_* but one."""
    about = {name[5:]: values for name, values in arrays.items() if name.startswith("grid_") and name != left_out}
    count = len(about["support_x"])
    names = map(str, about.pop("names", [f"task {number}" for number in range(1, count + 1)]))
    tasks = ({"grid": arrays["grid"]} | {name: values[task] for name, values in about.items()} for task in range(count))
    return dict(itertools.islice(zip(names, tasks, strict=True), most))


def example_figure(arrays: Arrays, title: str, most: int = 6) -> Figure:
    """The first `most` example functions of the arrays grid_*, and the network before and after adapting to them."""
    steps = shown_steps(arrays["grid_predictions"].shape[1] - 1)
    tasks = {}
    for name, task in example_tasks(arrays, "grid_samples", most).items():
        few = task["predictions"][steps]
        if "truth" in task:
            before, after = np.square(few[[0, -1]] - task["truth"], dtype=np.float64).mean(1)
            name = f"{name}: error {before:.2g} → {after:.2g}"
        tasks[name] = {**task, "predictions": few}
    return draw.task_curves(tasks, steps, title, _axis_names(arrays))


def _axis_names(arrays: Arrays) -> tuple[str, str]:
    x, y = arrays.get("axis_names", ("input x", "output y"))
    return str(x), str(y)


def _judged_errors(arrays: Arrays) -> dict[int, np.ndarray]:
    """Test errors [T, S+1] for each K above 0, without tasks that were left out there."""
    errors = {int(name.split("_")[2]): values for name, values in arrays.items() if name.startswith("test_errors_")}
    errors.pop(0, None)  # there is nothing to take gradients on
    for count in errors:
        if (left_out := arrays.get(f"test_left_out_{count}_shot")) is not None:
            errors[count] = errors[count][~left_out]
    return errors


def adaptive_results(errors: Mapping[int, np.ndarray], arrays: Arrays) -> Results:
    """The errors of a run and of its baselines, which take no gradients, as figures of comparisons have them."""
    results = {}
    for shots, values in errors.items():
        results[shots] = {"adapted network": mean_and_interval(values, "y_scale" in arrays)}
        for name, found in zip(arrays.get("baselines", ()), arrays.get(f"baseline_errors_{shots}_shot", ()), strict=False):
            flat = np.full(values.shape[1], np.nanmean(found))
            results[shots][str(name)] = {"mse": flat, "ci95": np.full_like(flat, np.nan)}
    return results


def run_figures(arrays: Arrays, shots: int, param_names: Sequence[str], reference: Published, title: str) -> dict[str, Figure]:
    """Every figure of a run, by file name, from the arrays of plots/data.npz.

    Args:
        arrays: docs/run_directory.md says what they hold; codes and grid_* may be missing.
        shots: the K of the detailed figures.
        param_names: of the first columns of "test_params".
        reference: published means.
    """
    errors = _judged_errors(arrays)
    params, last = arrays["test_params"], next(iter(errors.values())).shape[1] - 1
    final = {count: values[:, -1] for count, values in errors.items()}
    train = {"iteration": arrays["train_iteration"], "query_mse": arrays["train_query_mse"]}
    validation = {"iteration": arrays["validation_iteration"], "mse": arrays["validation_mse"]}
    about = f"{title}: {len(params)} test tasks after {draw.gradients(last)}"
    own = (_axis_names(arrays)[1], float(arrays["y_scale"])) if "y_scale" in arrays else None
    result = {}
    if len(arrays["train_iteration"]):
        result["training_curves"] = draw.training_curves(train, validation, f"{title}: learning to learn")
    result |= {
        "performance": draw.performance_over_tasks(final, params, param_names, shots, reference, about),
        "adaptive_learning": error_against_gradients(adaptive_results(errors, arrays), f"{title}: adapting", reference, own),
    }
    if own and "test_names" in arrays:
        names, roots = arrays["test_names"][~arrays[f"test_left_out_{shots}_shot"]].tolist(), own[1] * np.sqrt(final[shots])
        result["subjects"] = errors_by_subject(names, roots, shots, own[0], f"{title}: test subjects, best first")
    if "interval_nominal" in arrays:
        result["intervals"] = interval_quality(arrays, list(errors), f"{title}: prediction intervals on test tasks")
    if "grid" in arrays:
        about = f", error before → after {draw.gradients(last)}" if "grid_truth" in arrays else ""
        result["task_predictions"] = example_figure(arrays, f"{title}: test tasks, {shots} support points{about}")
    if "grid_samples" in arrays:
        about = f"{title}: {arrays['grid_samples'].shape[1]} samples each, {shots} support points"
        result["samples"] = draw.task_curves(example_tasks(arrays, "grid_predictions"), (), about, _axis_names(arrays))
    if "codes" in arrays:
        about = f"{title}: codes of test tasks, K = {shots}"
        result["latent_space"] = draw.latent_space(arrays["codes"], params, param_names, about)
    return result

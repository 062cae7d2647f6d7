"""Figures of runs and their comparisons: which figures there are, from which arrays.

Arrays in, `matplotlib.figure.Figure` out, in the style of `visualization.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

import visualization as draw
from dataset import Published
from evaluation.statistics import mean_and_interval, shown_steps
from report.prediction_figures import interval_quality
from visualization import BLACK, BLUE, CYCLE, MARKERS, VERMILION, Arrays, figure_function

# shots -> label -> {"mse" [S+1], "ci95" [S+1], "seeds" [R, S+1] (the mean of each seed; may be missing)}
Results = Mapping[int, Mapping[str, Mapping[str, np.ndarray]]]

HAIR_SPACE = "\u200a"
DASHES = ("solid", (0, (5, 2)), (0, (1, 1)), (0, (5, 1, 1, 1)))  # beyond six labels the colours come again


def _line_style(place: int) -> dict[str, Any]:
    """Colour, marker and dash of the curve number `place`: no two of the first 24 are alike."""
    return {"color": CYCLE[place % 6], "marker": MARKERS[place % 6], "ls": DASHES[place // 6 % 4]}


def _legend_label(name: str) -> str:
    """`name` as a label: matplotlib leaves those that begin with an underscore out of legends."""
    return f"{HAIR_SPACE}{name}" if name.startswith("_") else name


def _usual_range(curves: Sequence[np.ndarray]) -> tuple[float, float]:
    """The lowest error above zero, and the highest of those that are not of a curve that explodes: infinity if none does."""
    values = np.concatenate([curve.ravel() for curve in curves])
    known = [curve[np.isfinite(curve) & (curve > 0)] for curve in curves]
    lows = np.array([curve.min() for curve in known if len(curve)])
    if not len(lows):
        return 1e-3, np.inf
    highest = 1000 * lows[lows < 1e20 * lows.min()].max()
    exploded = not np.isfinite(values).all() or values.max() > highest
    return lows.min(), values[values <= highest].max() if exploded else np.inf


def _panels_of_errors(count: int, width: float) -> tuple[Figure, np.ndarray]:
    """A figure with `count` panels of `width` inches side by side, with one axis of errors."""
    figure, axes = draw.figure_grid(1, count, max(4.6, width * count + 0.4), 4.2, sharey=True)
    axes[0, 0].set_ylabel("mean squared error on query points")
    return figure, axes


def _finish(figure: Figure, axes: np.ndarray, lowest: float, highest: float, title: str) -> Figure:
    """The axis of errors is logarithmic, and a curve that explodes leaves it at the top."""
    draw.log_scale(axes[0, 0])
    if np.isfinite(highest):
        axes[0, 0].set_ylim(lowest / 2, 2 * highest)
    draw.shared_legend(figure, axes, title)
    return figure


@figure_function
def error_against_gradients(results: Results, title: str, reference: Published | None = None) -> Figure:
    """Mean error against support gradients with 95% bands over tasks: a panel for each K, a curve for each label.

    Args:
        results: the mean of each seed is drawn as a thin line where there are several.
        reference: shots -> gradients -> published mean of Finn et al. 2017, drawn as crosses.
    """
    figure, axes = _panels_of_errors(len(results), 3.4)
    lowest, highest = _usual_range([values["mse"] for result in results.values() for values in result.values()])
    for axis, (shots, result) in zip(axes[0], results.items(), strict=True):
        for place, (label, values) in enumerate(result.items()):
            mean, half = values["mse"], values["ci95"]
            seeds = values.get("seeds", mean[None])
            for seed in seeds if len(seeds) > 1 else []:
                axis.plot(seed, color=CYCLE[place % 6], lw=0.6, alpha=0.7)
            low = np.maximum(mean - half, lowest / 3)  # a band may reach below zero, where a log axis has no place
            draw.curve_with_band(axis, mean, low, mean + half, label=_legend_label(label), **_line_style(place))
        if known := (reference or {}).get(shots):
            axis.plot(list(known), list(known.values()), "x", color=BLACK, ms=8, mew=1.8, label="Finn et al. 2017")
        axis.set(title=f"K = {shots}", xlabel="gradients taken on the support set")
        axis.xaxis.get_major_locator().set_params(integer=True)
    return _finish(figure, axes, lowest, highest, title)


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
def sample_bundle(
    grid: np.ndarray,
    support_x: np.ndarray,
    support_y: np.ndarray,
    curves: np.ndarray,
    title: str,
    truth: np.ndarray | None = None,
    is_sine: np.ndarray | None = None,
    names: Sequence[str] = (),
    axis_names: tuple[str, str] = ("input x", "output y"),
) -> Figure:
    """Sampled curves for each of several support sets: a bundle where the points decide, spread where they don't.

    Args:
        grid: inputs [N]; support_x, support_y: [T, K], a panel for each of the T tasks.
        curves: [T, M, N], M samples a task (thin lines).
        truth: the functions [T, N].
        is_sine: which samples look like a sinusoid rather than a line, [T, M] booleans; they differ in colour.
        names: of the tasks, one for each panel.
    """
    figure, axes = draw.panels(len(curves), 3.3, 2.7, 0.8)
    known = [support_y, *([truth] if truth is not None else [])]
    for task, axis in enumerate(axes.flat[: len(curves)]):
        for sample, curve in enumerate(curves[task]):
            colour, label = (BLUE, "sampled networks") if is_sine is None else SAMPLE_STYLES[bool(is_sine[task, sample])]
            axis.plot(grid, curve, color=colour, lw=0.8, alpha=min(0.5, max(0.08, 12 / max(1, curves.shape[1]))), label=label)
        if truth is not None:
            axis.plot(grid, truth[task], color=BLACK, lw=1.6, ls=(0, (4, 2)), label="true function")
        axis.plot(support_x[task], support_y[task], "o", color=BLACK, ms=6, mec="white", mew=1, label="support points")
        axis.set(title=names[task] if names else "", xlim=draw.limits([grid], 0.03))
    low, high = draw.limits(known, 0.0)
    reach = 0.6 * max(high - low, 0.5)
    axes[0, 0].set_ylim(draw.limits([*known, curves], 0.06, low - reach, high + reach))
    draw.name_axes(axes, axis_names)
    draw.shared_legend(figure, axes, title)
    for handle in figure.legends[0].legend_handles:
        handle.set_alpha(1)  # type: ignore[union-attr]  # the lines are faint because they are many
    return figure


SAMPLE_STYLES = {True: (BLUE, "samples like a sinusoid"), False: (VERMILION, "samples like a line")}


@figure_function
def errors_by_subject(names: Sequence[str], errors: np.ndarray, shots: int, target: str, title: str) -> Figure:
    """Each test subject's error in the target's own unit, [T], the lowest first; of many 40, evenly; arrows: not finite."""
    order = np.argsort(errors)  # NaN is last
    if len(order) > 40:
        order = order[np.linspace(0, len(order) - 1, 40).round().astype(int)]
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


def _examples(arrays: Arrays) -> dict[str, Any]:
    """The arguments that both figures of example tasks take."""
    return {
        "grid": arrays["grid"],
        "truth": arrays.get("grid_truth"),
        "support_x": arrays["grid_support_x"],
        "support_y": arrays["grid_support_y"],
        "names": list(map(str, arrays.get("grid_names", ()))),
        "axis_names": _axis_names(arrays),
    }


def example_figure(arrays: Arrays, title: str, most: int = 6) -> Figure:
    """The first `most` example functions of the arrays grid_*, and the network before and after adapting to them."""
    few = {name: values[:most] if name.startswith("grid_") else values for name, values in arrays.items()}
    steps = shown_steps(few["grid_predictions"].shape[1] - 1)
    points = (few["grid_points_x"], few["grid_points_y"]) if "grid_points_x" in few else None
    predictions = few["grid_predictions"][:, steps]
    return draw.task_predictions(**_examples(few), predictions=predictions, steps=steps, title=title, points=points)


def _axis_names(arrays: Arrays) -> tuple[str, str]:
    x, y = arrays.get("axis_names", ("input x", "output y"))
    return str(x), str(y)


def _judged_errors(arrays: Arrays) -> dict[int, np.ndarray]:
    """Test errors [T, S+1] for each K, without tasks that were left out there."""
    errors = {int(name.split("_")[2]): values for name, values in arrays.items() if name.startswith("test_errors_")}
    for count in errors:
        if (left_out := arrays.get(f"test_left_out_{count}_shot")) is not None:
            errors[count] = errors[count][~left_out]
    return errors


def best_baselines(arrays: Arrays) -> dict[int, tuple[str, float]]:
    """The name and the mean error of the best baseline for each K."""
    result = {}
    for name in [name for name in arrays if name.startswith("baseline_errors_")]:
        means = np.nanmean(arrays[name], axis=1)
        result[int(name.split("_")[2])] = (str(arrays["baselines"][means.argmin()]), float(means.min()))
    return result


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
    means = {count: mean_and_interval(values, "y_scale" in arrays) for count, values in errors.items()}
    train = {"iteration": arrays["train_iteration"], "query_mse": arrays["train_query_mse"]}
    validation = {"iteration": arrays["validation_iteration"], "mse": arrays["validation_mse"]}
    about = f"{title}: {len(params)} test tasks after {draw.gradients(last)}"
    own = (_axis_names(arrays)[1], float(arrays["y_scale"])) if "y_scale" in arrays else None
    result = {
        "training_curves": draw.training_curves(train, validation, f"{title}: learning to learn"),
        "performance": draw.performance_over_tasks(final, params, param_names, shots, reference, about),
        "adaptive_learning": draw.adaptive_learning(means, reference, f"{title}: adapting", best_baselines(arrays), own),
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
        result["samples"] = sample_bundle(**_examples(arrays), curves=arrays["grid_samples"], title=about)
    if "codes" in arrays:
        about = f"{title}: codes of test tasks, K = {shots}"
        result["latent_space"] = draw.latent_space(arrays["codes"], params, param_names, about)
    return result

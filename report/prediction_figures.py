"""Figures of `--predict`, given points and a network before and after adapting to them; and of what intervals are worth.

Arrays in, `matplotlib.figure.Figure` out, in the style of `visualization.py`. Independent of torch, models and the disk.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from visualization import (
    BLACK,
    BLUE,
    CYCLE,
    MARKERS,
    ORANGE,
    SKY,
    VERMILION,
    Arrays,
    binned_median,
    figure_function,
    figure_grid,
    gradients,
    limits,
    log_scale,
    name_axes,
    panels,
    shared_legend,
)


@figure_function
def prediction_curves(
    tasks: Mapping[str, Arrays],
    steps: int,
    x_range: tuple[float, float],
    title: str,
    axis_names: tuple[str, str] = ("input x", "output y"),
    least: float = 0.5,
) -> Figure:
    """Given points, and the network before and after adapting to them; what lies outside `x_range` is shaded.

    Args:
        tasks: of each name "grid", "before" and "after" [N], "support_x" and "support_y" [K]; and where there are any,
            "band", lower and upper ends [2, N] of intervals, "samples", a few sampled curves [M, N], and "asked" [2, Q],
            places that were asked for and the predictions there. Several tasks are small multiples on common axes.
        steps: the gradients between before and after.
        x_range: the inputs of meta-training.
        least: a range of y that is worth a picture.
    """
    figure, axes = figure_grid(1, 1, 7.2, 4.6) if len(tasks) == 1 else panels(len(tasks), 3.3, 2.5, 0.8)
    views = []
    for axis, (name, task) in zip(axes.flat, tasks.items(), strict=False):
        views.append(_draw(axis, task, steps, x_range, least))
        axis.set_title(name)
    grids = [task["grid"] for task in tasks.values()]
    axes[0, 0].set(xlim=limits(grids, 0.02), ylim=(np.min(views), np.max(views)))
    name_axes(axes, axis_names)
    shared_legend(figure, axes, title)
    return figure


def _draw(axis: Axes, task: Arrays, steps: int, x_range: tuple[float, float], least: float) -> tuple[float, float]:
    """Draw one task; returns the range of y that shows its points well."""
    grid, support_y, before, after = (task[name] for name in ("grid", "support_y", "before", "after"))
    low, high = limits([support_y], 0.0)
    reach = 1.5 * max(high - low, least)  # a network far off the points may leave the picture
    view = limits([support_y, before, after, *task.get("band", ())], 0.06, low - reach, high + reach)
    outside = [(grid[0], min(x_range[0], grid[-1])), (max(x_range[1], grid[0]), grid[-1])]
    for start, end in [ends for ends in outside if ends[0] < ends[1]]:
        axis.axvspan(start, end, color="0.5", alpha=0.15, lw=0, label="extrapolation")
    if "band" in task:
        ends = np.clip(task["band"], view[0] - reach, view[1] + reach)  # the whole line, where adapting diverged
        axis.fill_between(grid, *ends, color=SKY, alpha=0.35, lw=0, label="90% interval for a measurement")
    for curve in task.get("samples", ()):
        axis.plot(grid, curve, color=BLUE, lw=0.6, alpha=0.45, label="some sampled curves")
    axis.plot(grid, before, color=ORANGE, lw=1.5, ls=(0, (4, 2)), label="before adapting")
    axis.plot(grid, after, color=BLUE, lw=2, label=f"after {gradients(steps)}")
    if "asked" in task:
        axis.plot(*task["asked"], "|", color=BLACK, ms=9, mew=1.2, label="asked for")
    ms, mew = (2, 0.2) if len(support_y) > 200 else (5, 0.7)
    axis.plot(task["support_x"], support_y, "o", color=VERMILION, ms=ms, mec="white", mew=mew, label="given points")
    return view


@figure_function
def interval_quality(arrays: Arrays, shots: Sequence[int], title: str) -> Figure:
    """Intervals on test tasks: how many measurements they hold against what they say, and a task's width against its error.

    Args:
        arrays: "interval_nominal" [L]; of each K in `shots`, "interval_coverage_K_shot" [L], and of T tasks
            "interval_width_K_shot" [T] (at 90%) and "interval_error_K_shot" [T] (root mean square); of a table "y_scale" and
            "axis_names", whose second one is the target's.
    """
    figure, axes = figure_grid(1, 2, 9.0, 4.4)
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
            centres, medians = binned_median(np.log10(width[fine]), error[fine], 6)
            right.plot(10**centres, medians, mec="white", **style)
    left.set(xlabel="coverage asked for", ylabel="share of measurements inside", title="coverage", aspect="equal")
    unit = f" of {arrays['axis_names'][1]}" if "y_scale" in arrays else ""
    right.set(xlabel=f"mean width of a task's 90% intervals{unit}", ylabel=f"root mean squared error{unit}")
    right.set_title("width against error")
    for name in "xy":
        log_scale(right, name)
    shared_legend(figure, axes, title)
    return figure

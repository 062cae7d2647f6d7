"""Figures of the paper comparison: error curves of all methods, and the animation of networks that adapt to one task."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.animation import PillowWriter
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from benchmarks.paper.methods import ROWS
from benchmarks.project import mean_and_interval
from dataset import Published
from evaluation.comparison import Comparison
from visualization import BLACK, BLUE, ORANGE, VERMILION, figure_grid, gradients, shared_legend

HIGHEST = 1e3  # errors above are of networks that diverge, and stay outside of the figures


Curve = tuple[np.ndarray, np.ndarray]  # mean squared errors [N], and half-widths [N] of their 95% intervals over tasks


def curves(found: Comparison) -> dict[int, dict[str, Curve]]:
    """shots -> label -> the curve over 0 to S gradients, of the errors' mean over seeds."""
    result: dict[int, dict[str, Curve]] = {}
    for shots, groups in found.errors.items():
        with np.errstate(over="ignore", invalid="ignore"):
            numbers = {label: mean_and_interval(errors.mean(0)) for label, errors in groups.items()}
        result[shots] = {label: (number["mse"], number["ci95"]) for label, number in numbers.items()}
    return result


def error_against_gradients(found: Comparison, published: Published) -> Figure:
    """A panel for each K; crosses for the `published` means, shots -> gradients -> mean."""
    panels = {f"K = {shots}": labelled for shots, labelled in curves(found).items()}
    figure, axes = error_panels(panels, np.arange(found.last + 1), "gradients taken on the support set")
    for axis, shots in zip(axes, found.errors, strict=True):
        if known := published.get(shots):
            axis.plot(list(known), list(known.values()), "x", color=BLACK, ms=8, mew=1.8, label="MAML, Finn et al. 2017")
        axis.xaxis.get_major_locator().set_params(integer=True)
    shared_legend(figure, axes[None])
    figure.suptitle("Sinusoids: error against gradients")
    return figure


def error_against_shots(found: Comparison, steps: Sequence[int]) -> Figure:
    """A panel for each number of gradients in `steps`."""
    by_shots = curves(found)
    shots, panels = sorted(by_shots), dict[str, dict[str, Curve]]()
    for step in steps:
        panels[f"after {gradients(step)}"] = {
            label: tuple(np.array([[part[step] for part in by_shots[count][label]] for count in shots]).T)
            for label in found.labels
        }
    figure, axes = error_panels(panels, np.array(shots), "support points K")
    for axis in axes:
        axis.set_xscale("log")
        axis.set_xticks(shots, [str(count) for count in shots])
        axis.set_xticks([], minor=True)
    shared_legend(figure, axes[None])
    figure.suptitle("Sinusoids: error against the number of support points")
    return figure


def error_panels(panels: Mapping[str, Mapping[str, Curve]], x: np.ndarray, xlabel: str) -> tuple[Figure, np.ndarray]:
    """Labelled curves over `x` [N] in a row of panels with a common logarithmic axis: the figure and its axes [panels]."""
    figure, grid = figure_grid(1, len(panels), max(6.5, 3.6 * len(panels)), 4.8, sharey=True)
    axes = grid[0]
    drawn = np.concatenate([mean for labelled in panels.values() for mean, _ in labelled.values()])
    drawn = drawn[(drawn > 0) & (drawn < HIGHEST)]
    lowest, highest = (drawn.min(), drawn.max()) if len(drawn) else (1e-3, 1.0)
    for axis, (title, labelled) in zip(axes, panels.items(), strict=True):
        for label, (mean, half) in labelled.items():
            style = {"ls": "solid", "lw": 1.5, "ms": 4, "mew": 1} | ROWS[label].style
            low = np.maximum(mean - half, lowest / 3)  # a band may reach below zero, which a logarithm has no place for
            finite = np.isfinite(mean + half)
            axis.fill_between(x, low, mean + half, where=finite.tolist(), color=style["color"], alpha=0.12, lw=0)
            axis.plot(x, mean, label=label, **style)
        axis.set(title=title, xlabel=xlabel, yscale="log")
    axes[0].set(ylabel="mean squared error on query points", ylim=(lowest / 2, highest * 2))
    return figure, axes


# ---- the animation


def adaptation_animation(
    grid: np.ndarray,
    truth: np.ndarray,
    support_x: np.ndarray,
    support_y: np.ndarray,
    predictions: Mapping[str, np.ndarray],
    title: str = "",
    seconds: float = 0.6,
    hold: int = 4,
) -> bytes:
    """A GIF of networks that adapt to one task gradient by gradient, a panel for each label, as the bytes of a file.

    Args:
        grid, truth: [N]; support_x, support_y: [K].
        predictions: label -> [S+1, N], after 0 to S gradients; the same S for all.
        seconds: how long a frame stays; hold: how many times as long the last one stays.
    """
    figure, moving = _first_frame(grid, truth, support_x, support_y, predictions)
    frames = len(next(iter(predictions.values())))
    buffer = io.BytesIO()
    buffer.name = "animation.gif"  # how the writer knows the format
    writer = PillowWriter(fps=1 / seconds)  # type: ignore[arg-type]  # it divides by it, and ours is below one
    writer.setup(figure, "animation.gif")
    writer.outfile = buffer  # type: ignore[assignment]  # written once, at the end, by Pillow, which takes a stream
    for step in [*range(frames), *[frames - 1] * (hold - 1)]:
        for axis, label, path, line in moving:
            line.set_ydata(path[step])
            axis.set_title(f"{label}: error {np.square(path[step] - truth, dtype=np.float64).mean():.3g}", fontsize=11)
        figure.suptitle(f"{title}: after {gradients(step)}" if title else f"after {gradients(step)}", fontsize=11)
        writer.grab_frame()
    writer.finish()
    return buffer.getvalue()


def _first_frame(
    grid: np.ndarray, truth: np.ndarray, support_x: np.ndarray, support_y: np.ndarray, predictions: Mapping[str, np.ndarray]
) -> tuple[Figure, list[tuple[Axes, str, np.ndarray, Line2D]]]:
    """The figure before any gradient, and what changes in it: (axis, label, path, line) of each panel."""
    figure, axes = figure_grid(1, len(predictions), 3.7 * len(predictions) + 0.2, 3.9, sharex=True, sharey=True)
    figure.set_dpi(90)
    moving = []
    for axis, (label, path) in zip(axes[0], predictions.items(), strict=True):
        axis.plot(grid, truth, color=BLACK, lw=2.6, alpha=0.35, label="true function")
        axis.plot(grid, path[0], color=ORANGE, lw=1.4, ls=(0, (4, 2)), label="before adapting")
        moving.append((axis, label, path, axis.plot(grid, path[0], color=BLUE, lw=2, label="the network now")[0]))
        axis.plot(support_x, support_y, "o", color=VERMILION, ms=6, mec="white", mew=0.8, label="support points")
        axis.set(xlabel="input x", xlim=(grid[0], grid[-1]))
    axes[0, 0].set_ylabel("output y")
    low, high = float(min(truth.min(), support_y.min())), float(max(truth.max(), support_y.max()))
    reach = 0.35 * max(high - low, 0.5)
    axes[0, 0].set_ylim(low - reach, high + reach)
    shared_legend(figure, axes)
    return figure, moving

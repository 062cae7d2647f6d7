"""The animation of networks that adapt to one task, gradient by gradient."""

from __future__ import annotations

import io
from collections.abc import Mapping

import numpy as np
import paths  # noqa: F401  puts the project on the path
from matplotlib.animation import PillowWriter

from visualization import BLACK, BLUE, ORANGE, VERMILION, figure_grid, shared_legend


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
    figure, axes = figure_grid(1, len(predictions), 3.7 * len(predictions) + 0.2, 3.9, sharex=True, sharey=True)
    figure.set_dpi(90)
    moving = []
    for axis, (label, path) in zip(axes[0], predictions.items(), strict=True):
        axis.plot(grid, truth, color=BLACK, lw=2.6, alpha=0.35, label="true function")
        axis.plot(grid, path[0], color=ORANGE, lw=1.4, ls=(0, (4, 2)), label="before adapting")
        moving.append((axis, label, path, axis.plot(grid, path[0], color=BLUE, lw=2, label="the network now")[0]))
        axis.plot(support_x, support_y, "o", color=VERMILION, ms=6, mec="white", mew=0.8, label="support points")
        axis.set(xlabel="input x", xlim=(grid[0], grid[-1]))
        axis.grid(alpha=0.25, lw=0.5)
    axes[0, 0].set_ylabel("output y")
    low, high = float(min(truth.min(), support_y.min())), float(max(truth.max(), support_y.max()))
    reach = 0.35 * max(high - low, 0.5)
    axes[0, 0].set_ylim(low - reach, high + reach)
    shared_legend(figure, axes)
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
        head = f"{title}: " if title else ""
        figure.suptitle(f"{head}after {step} gradient{'' if step == 1 else 's'}", fontsize=11)
        writer.grab_frame()
    writer.finish()
    return buffer.getvalue()

"""A few tasks on a grid, for figures: what was given, what is true, and what a learner predicts."""

from __future__ import annotations

import numpy as np

from dataset import Points, TaskGenerator
from evaluation.intervals import Entry, difficulty_features, half_widths
from learner import MetaLearner, adapt_tasks, predict_tasks, sample_tasks

EXAMPLES, GRID_POINTS = 6, 201
SAMPLES = 100  # of a stochastic method, for each example task


def example_arrays(
    learner: MetaLearner, without: MetaLearner, generator: TaskGenerator, shots: int, steps: int, subject: str = ""
) -> tuple[dict[str, np.ndarray], Points, np.ndarray]:
    """Example tasks and the predictions of `learner` without any point, and after 1 to `steps` gradients on `shots` points.

    Args:
        without: what answers where no point is known.
        subject: what a task is called where its own name is a bare number.

    Returns arrays for figures, in own units; and in the network's units the support and the grid [T, 201, 1].
    """
    params, support = generator.examples(EXAMPLES, shots)
    grid = np.linspace(*generator.x_range, GRID_POINTS, dtype=np.float32)
    x = np.repeat(grid[None, :, None], len(params), axis=0)
    unscale = generator.unscale
    shown = unscale(support)
    arrays = {"axis_names": np.array(generator.axis_names), "grid": unscale(Points(grid[:, None], grid)).x[:, 0]}
    arrays |= {"grid_support_x": shown.x[..., 0], "grid_support_y": shown.y[..., 0]}
    if (truth := generator.truth(params, x)) is not None:
        arrays["grid_truth"] = truth[..., 0]
    if names := generator.task_names(params):
        arrays["grid_names"] = np.array([f"{subject} {name}".strip() if name.isdecimal() else name for name in names])
    arrays |= _measured_points(generator, params)
    predictions = predict_tasks(learner, support, x, steps)[0]
    predictions[:, 0] = predict_tasks(without, Points(support.x[:, :0], support.y[:, :0]), x, 0)[0][:, 0]
    arrays["grid_predictions"] = unscale(Points(grid[:, None], predictions)).y
    return arrays, support, x


def example_samples(
    learner: MetaLearner, generator: TaskGenerator, support: Points, x: np.ndarray, steps: int, rng: np.random.Generator
) -> np.ndarray:
    """Sampled predictions [T, 100, N] in own units, of a stochastic method, for the tasks that `example_arrays` returns."""
    return generator.unscale(Points(x[0], sample_tasks(learner, support, x, steps, rng, SAMPLES))).y


def example_band(
    learner: MetaLearner, generator: TaskGenerator, support: Points, x: np.ndarray, steps: int, entry: Entry
) -> np.ndarray:
    """The ends [T, 2, N] of 90% intervals in own units for the tasks that `example_arrays` returns."""
    adapted = adapt_tasks(learner, support, x, steps)
    half = half_widths(entry, difficulty_features(adapted.predictions, adapted.at_support, support, x, adapted.std), 0.9)
    ends = adapted.predictions[:, -1, None].astype(float) + np.array([[-1.0], [1.0]]) * half[:, None]
    return generator.unscale(Points(x[0], ends)).y


def _measured_points(generator: TaskGenerator, params: np.ndarray) -> dict[str, np.ndarray]:
    """All measured points of the tasks `params` in own units, NaN behind the last one; nothing where there are none."""
    if (measured := generator.measurements("test")) is None:
        return {}
    numbers = np.searchsorted(generator.split("test", 0, 0)[:, 0], params[:, 0])
    found = [np.hstack(generator.unscale(measured[number])) for number in numbers]  # [N, 2]
    known = np.full((len(found), max(map(len, found)), 2), np.nan)
    for row, points in zip(known, found, strict=True):
        row[: len(points)] = points
    return {"grid_points_x": known[..., 0], "grid_points_y": known[..., 1]}

"""`--predict RUN --points FILE.csv`: adapt a trained learner to somebody's own points.

Points are read strictly, the run's best checkpoint is adapted to them, and what it says on a fine grid is written as a
table and a figure.
"""

from __future__ import annotations

import argparse
import csv
import io
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil

from analysis.figures import prediction_curves
from commands.runs import EXPERIMENTS, build_from_checkpoint, load_run, runs_folder
from dataset import Points, stream
from evaluation import predict as predict_tasks
from evaluation import sample
from learner import MetaLearner
from runtime.csv_files import read_points
from runtime.errors import RunError
from runtime.processes import print_once
from runtime.storage import figure_bytes, write_atomically
from runtime.text import printable

GRID_POINTS = 201
FAR = 20  # times the longer one of the trained range and the range of the points
SAMPLES_SHOWN = 8
PAIR_BYTES = 400  # about what a learner that compares all pairs of points needs for each
PAIRS_AT_ONCE = 200_000  # bounds the memory of the copies that are adapted together


def predict(args: argparse.Namespace) -> int:
    """Adapt a run's best checkpoint to the points of a file; writes beside the points or to --output."""
    try:
        directory, state, warning = load_run(args.predict, runs_folder(args), best=True)
    except RunError:
        if args.output is None:
            raise
        directory, state, warning = load_run(args.predict, EXPERIMENTS, best=True)  # --output is for what is written
    experiment = build_from_checkpoint(args, directory, state)
    config = experiment.config
    if experiment.record:
        raise RunError(f"{directory} learned from a table (got --predict; expected a run on tasks from formulas)")
    points = read_points(args.points, config.INPUT_DIM)
    files = output_files(args.output or args.points.parent, args.points, config.INPUT_DIM)
    experiment.load(state)
    rng = stream(config.RANDOM_SEED, "samples")
    prediction = predict_points(experiment.learner, points, config.EVAL_STEPS, experiment.generator.x_range, rng)
    for line in [*([warning] if warning else []), *warnings_about(prediction)]:
        print(f"warning: {printable(line)}", file=sys.stderr)
    write(files, prediction, f"{experiment.method.upper()} on {args.points.name}: {len(points.x)} points")
    print_once(summary(prediction))
    print_once(f"written: {printable(', '.join(map(str, files)))}")
    return 0


# ---- predicting


class Prediction(NamedTuple):
    """What a learner says about given points; `x` is a fine grid for D = 1, and the points themselves otherwise."""

    points: Points  # x [K, D], y [K, 1]
    x: np.ndarray  # where it was asked, [N, D]
    outputs: np.ndarray  # after 0 to S gradients, [S+1, N]
    errors: np.ndarray  # mean squared error on the given points after 0 to S gradients, [S+1]
    extrapolated: np.ndarray  # whether x lies outside the meta-trained range, [N] booleans
    x_range: tuple[float, float]  # the meta-trained range, in each dimension
    samples: np.ndarray  # curves after S gradients [M, N]; none (M = 0) from a learner without randomness
    num_left_out: int  # sampled curves left out, because they are not finite

    @property
    def band(self) -> np.ndarray | None:
        """The 5%, 50% and 95% quantiles of the sampled curves, [3, N]."""
        with np.errstate(over="ignore", invalid="ignore"):  # between samples at the ends of float32
            return np.quantile(self.samples, [0.05, 0.5, 0.95], axis=0) if len(self.samples) else None


def predict_points(
    learner: MetaLearner,
    points: Points,
    steps: int,
    x_range: tuple[float, float],
    rng: np.random.Generator,
    num_samples: int = 100,
) -> Prediction:
    """Adapt the learner to `points` with `steps` gradients; a learner with randomness is sampled as well.

    Args:
        points: x [K, D], y [K, 1]; the learner is handed them in float32.
        x_range: the inputs of meta-training, in each dimension.
        rng: for the samples; curves that are not finite are left out of them.

    Raises `RunError` where there are more points than the memory allows.
    """
    count, dim = points.x.shape
    noise_dim = learner.noise_dim
    _check_memory(count if noise_dim else 0)
    x = grid_over(points.x[:, 0], x_range)[:, None] if dim == 1 else points.x
    support = Points(*(np.asarray(part, np.float32)[None] for part in points))
    at = np.asarray(x, np.float32)[None]
    everywhere = np.concatenate([at, support.x], axis=1)  # [1, N + K, D]
    with np.errstate(over="ignore", invalid="ignore"):  # points far from the trained tasks may diverge: a result
        predicted = predict_tasks(learner, support, everywhere, steps)[0][0]  # [S+1, N + K]
        outputs, at_points = np.split(predicted, [len(x)], axis=1)
        errors = np.square(at_points - support.y[0, :, 0], dtype=np.float64).mean(1)
    curves = np.empty((0, len(x)), np.float32)
    if noise_dim:
        batch = max(1, PAIRS_AT_ONCE // count**2)
        curves = sample(learner, support, at, steps, rng, num_samples, batch=batch)[0]
    low, high = x_range
    outside = np.any((x < low) | (x > high), axis=1)
    finite = np.isfinite(curves).all(1)
    return Prediction(points, x, outputs, errors, outside, x_range, curves[finite], int((~finite).sum()))


def _check_memory(count: int) -> None:
    available = psutil.virtual_memory().available
    if PAIR_BYTES * count**2 > available:
        most = math.isqrt(available // PAIR_BYTES)
        raise RunError(f"the points do not fit in memory (got {count}; expected at most {most} for this run)")


def grid_over(inputs: np.ndarray, x_range: tuple[float, float]) -> np.ndarray:
    """A fine grid [N], float64, over `x_range` and all `inputs` [K], with a margin of a tenth on a side where they leave it.

    Where they are so far from `x_range` that they would be a dot in the picture, the grid is around the inputs alone.
    """
    (low, high), (first, last) = x_range, (float(inputs.min()), float(inputs.max()))
    if max(first - high, low - last) > FAR * max(high - low, last - first):
        margin = max(high - low, 0.1 * (last - first), 1e-9 * abs(first))  # the last: a grid of different numbers
        return np.linspace(first - margin, last + margin, GRID_POINTS)
    ends = min(low, first), max(high, last)
    margin = 0.1 * (ends[1] - ends[0])
    return np.linspace(ends[0] - margin * (first < low), ends[1] + margin * (last > high), GRID_POINTS)


def warnings_about(prediction: Prediction) -> list[str]:
    """What a user should know before trusting the prediction, one line each."""
    inputs, (low, high) = prediction.points.x, prediction.x_range
    outside = np.any((inputs < low) | (inputs > high), axis=1)
    lines = []
    if outside.any():
        what = f"{outside.sum()} of {len(inputs)} points lie" if not outside.all() else f"all {len(inputs)} points lie"
        lines.append(
            f"{what} outside the range of meta-training, where the network was never asked to be right "
            f"(got x from {inputs.min():.10g} to {inputs.max():.10g}; expected {low:g} to {high:g})"
        )
    different, left = (len(np.unique(values, axis=0)) for values in (inputs, inputs.astype(np.float32)))
    if left < different:
        lines.append(
            f"some inputs are one number to the network, which computes with 7 digits "
            f"(got {different} different x, {left} after rounding; expected no less)"
        )
    if not np.isfinite(prediction.outputs[-1]).all():
        last = len(prediction.errors) - 1
        lines.append(f"adapting diverged (got predictions that are not finite after {last} gradients; expected finite ones)")
    if prediction.num_left_out:
        every = prediction.num_left_out + len(prediction.samples)
        lines.append(f"the band leaves out sampled curves (got {prediction.num_left_out} of {every} not finite; expected none)")
    return lines


def summary(prediction: Prediction) -> str:
    """The error on the given points before and after adapting, in one line."""
    last = len(prediction.errors) - 1
    return (
        f"mean squared error on the {len(prediction.points.x)} points: {prediction.errors[0]:.4g} before adapting, "
        f"{prediction.errors[-1]:.4g} after {last} gradient{'' if last == 1 else 's'}"
    )


# ---- writing


def csv_table(prediction: Prediction) -> str:
    """A row for each x: predictions before and after adapting, the band where there is one, and 1 for extrapolation."""
    dim = prediction.x.shape[1]
    given = {"x" if dim == 1 else f"x{number + 1}": prediction.x[:, number] for number in range(dim)}
    if dim > 1:
        given["y"] = prediction.points.y[:, 0]
    table = given | {"prediction_before": prediction.outputs[0], "prediction_after": prediction.outputs[-1]}
    if (band := prediction.band) is not None:
        table |= {"lower_5": band[0], "median_50": band[1], "upper_95": band[2]}
    table["extrapolated"] = prediction.extrapolated.astype(int)
    digits = dict.fromkeys(table, 7) | dict.fromkeys(given, 12 if dim == 1 else 15)  # a grid has rounding errors after 12
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table)
    writer.writerows(zip(*([f"{value:.{digits[name]}g}" for value in values] for name, values in table.items()), strict=True))
    return text.getvalue()


def output_files(directory: Path, input_file: Path, input_dim: int) -> list[Path]:
    """Where `write` will write; raises `RunError` where that is the file of points itself."""
    names = ["predictions.csv", *(["predictions.png", "predictions.pdf"] if input_dim == 1 else [])]
    files = [directory / name for name in names]
    for file in files:
        if file.exists() and input_file.exists() and file.samefile(input_file):
            raise RunError(f"{file} is the file of points (got it as output too; expected another --output or file name)")
    return files


def write(files: Sequence[Path], prediction: Prediction, title: str) -> None:
    """Write the table, and for D = 1 the figure, to `output_files`; makes their directory where it is missing.

    Raises OSError where the disk is full or read-only.
    """
    files[0].parent.mkdir(parents=True, exist_ok=True)
    contents = {".csv": csv_table(prediction).encode()}
    if len(files) > 1:
        points, band = prediction.points, None if prediction.band is None else prediction.band[[0, 2]]
        curves = prediction.x[:, 0], points.x[:, 0], points.y[:, 0], prediction.outputs[0], prediction.outputs[-1]
        about = len(prediction.errors) - 1, prediction.x_range, title
        figure = prediction_curves(*curves, *about, band, prediction.samples[:SAMPLES_SHOWN])
        contents |= {f".{suffix}": figure_bytes(figure, suffix) for suffix in ("png", "pdf")}
    for file in files:
        write_atomically(file, contents[file.suffix])

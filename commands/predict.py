"""`--predict RUN --points FILE.csv`: adapt a trained learner to somebody's own points.

Points are read strictly, the run's best checkpoint is adapted to them by the class that programs use, and what it says
where it was asked, or on a fine grid, is written as a table and as figures.
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from commands.runs import EXPERIMENTS, runs_folder, settings_of_run
from dataset import Points
from regressor import NO_INTERVALS, FewShotRegressor
from results_manager import find_run, load_run
from system.errors import RunError
from system.files import figure_bytes, write_atomically
from system.terminal import print_once
from system.text import printable
from tables.arrays import finite_curves
from tables.points import Request, read_request

GRID_POINTS = 201
FAR_OUT = 10  # standard deviations
FAR = 20  # times the longer one of the trained range and the range of the points
SAMPLES_SHOWN = 8
PANELS = 12  # of a figure
MOST_PAGES = 10
NOWHERE = np.empty(0)


def predict(args: argparse.Namespace) -> int:
    """Adapt a run's best checkpoint to the points of a file; writes beside the points or to --output."""
    folder = runs_folder(args)
    try:
        find_run(args.predict, folder)
    except RunError:
        folder = EXPERIMENTS  # --output may be for what is written alone
    directory, state, warning = load_run(args.predict, folder, best=True)
    method, tasks, config = settings_of_run(args, directory, state)
    request = read_request(args.points, config.INPUT_DIM, (state.get("data") or {}).get("columns", ()))
    pages = min(MOST_PAGES, -(-len(request.subjects) // PANELS)) if config.INPUT_DIM == 1 else 0
    files = output_files(args.output or args.points.parent, args.points, pages)
    model = FewShotRegressor.from_checkpoint(state, method, tasks, config)
    found = [predict_points(model, request.points(place), request.asked(place)) for place in range(len(request.subjects))]
    missing = "" if model.has_intervals else NO_INTERVALS.format(model.steps)
    for line in filter(None, [warning, missing, *warnings_about(found, request.names[1:])]):
        print(f"warning: {printable(line)}", file=sys.stderr)
    write(files, found, request, f"{method.upper()} on {args.points.name}")
    print_once(printable(summary(found, request)))
    print_once(f"written: {printable(', '.join(map(str, files)))}")
    return 0


# ---- predicting


class Prediction(NamedTuple):
    """What a learner says about the points of one task, in own units."""

    points: Points  # x [K, D], y [K, 1]
    x: np.ndarray  # where it was asked, [N, D]: a fine grid for D = 1 and the points themselves otherwise, then the questions
    questions: int | None  # how many of the last x are questions of the file; None where it has none about any task
    outputs: np.ndarray  # after 0 to S gradients, [S+1, N]
    errors: np.ndarray  # mean squared error on the given points after 0 to S gradients, [S+1]
    outside: np.ndarray  # which of the points lie outside the meta-trained range, [K] booleans
    extrapolated: np.ndarray  # which x do, [N]
    merged: int  # how many different inputs of the points are no longer different to the network
    x_range: np.ndarray  # lowest and highest inputs of meta-training, [2, D]
    unit: float  # of the target: what is 1 to the network
    y_range: tuple[float, float]  # targets that may be meant: `FAR_OUT` deviations around the training subjects' mean
    samples: np.ndarray  # a few finite curves after S gradients [M, N]; none (M = 0) from a learner without randomness
    band: np.ndarray | None  # lower and upper ends of intervals that hold 90% of measurements, [2, N]; None where unknown

    @property
    def answers(self) -> slice:
        """The places of x that the table is about."""
        return slice(0 if self.questions is None else len(self.x) - self.questions, None)


def predict_points(model: FewShotRegressor, points: Points, asked: np.ndarray | None = None) -> Prediction:
    """Adapt the model to `points` x [K, D], y [K, 1], and predict at `asked` [Q, D] and around; sample it if it can be.

    Raises `RunError` where there are more points than the memory allows.
    """
    model.fit(*points)
    outside, x_range = model.extrapolates(points.x), model.x_range
    inputs = np.where(outside[:, None], points.x, np.clip(points.x, *x_range))  # an end may be off by a rounding error
    questions, asked = (None, points.x[:0]) if asked is None else (len(asked), asked)
    x = points.x
    if model.input_dim == 1:
        x = grid_over(inputs[:, 0], (x_range[0, 0], x_range[1, 0]), asked[:, 0])[:, None]
    x = np.concatenate([x, asked])
    predicted = model.staged_predict(np.concatenate([x, points.x]))  # [S+1, N + K]
    outputs, at_points = np.split(predicted, [len(x)], axis=1)
    with np.errstate(over="ignore", invalid="ignore"):  # of a prediction that diverged, and between samples at float32's ends
        errors = np.square(at_points - points.y[:, 0].astype(predicted.dtype), dtype=np.float64).mean(1)
    different, left = (len(np.unique(values, axis=0)) for values in (points.x, model.support_[0].x))
    unit, centre = float(model.unit[-1]), float(model.centre[-1])
    y_range = (centre - FAR_OUT * unit, centre + FAR_OUT * unit) if model.scaled else (-np.inf, np.inf)
    about = outside, model.extrapolates(x), different - left, x_range, unit, y_range
    samples = finite_curves(model.sample(x, SAMPLES_SHOWN)) if model.learner.noise_dim else np.empty((0, len(x)))
    band = np.stack(model.predict_interval(x)) if model.has_intervals else None
    return Prediction(points, x, questions, outputs, errors, *about, samples, band)


def grid_over(inputs: np.ndarray, x_range: tuple[float, float], asked: np.ndarray = NOWHERE) -> np.ndarray:
    """A fine grid [N], float64, over `x_range` and all `inputs` [K], with a margin of up to a tenth where they leave it.

    Where they are so far from `x_range` that they would be a dot in the picture, the grid is around the inputs alone.
    Questions `asked` [Q] count as inputs, but for those farther off than all of this is wide.
    """
    ends = min(x_range[0], inputs.min()), max(x_range[1], inputs.max())
    width = ends[1] - ends[0]
    inputs = np.concatenate([inputs, asked[(asked >= ends[0] - width) & (asked <= ends[1] + width)]])
    (low, high), (first, last) = x_range, (float(inputs.min()), float(inputs.max()))
    if max(first - high, low - last) > FAR * max(high - low, last - first):
        margin = max(high - low, 0.1 * (last - first), 1e-9 * abs(first))  # the last: a grid of different numbers
        return np.linspace(first - margin, last + margin, GRID_POINTS)
    ends = min(low, first), max(high, last)
    before, behind = (min(0.1 * (ends[1] - ends[0]), max(0.0, by)) for by in (low - first, last - high))
    return np.linspace(ends[0] - before, ends[1] + behind, GRID_POINTS)


def warnings_about(found: Sequence[Prediction], names: Sequence[str] = ("x", "y")) -> list[str]:
    """What a user should know before trusting the predictions, one line each; `names` are those of D inputs and the target."""
    points = [(one.points.x, one.outside) for one in found]
    asked = [(one.x[one.answers], one.extrapolated[one.answers]) for one in found if one.questions]
    parts = (("points", points), ("questions", asked))
    lines = [line for what, part in parts if (line := _outside(what, part, found[0].x_range, names[:-1]))]
    targets, (low, high) = np.concatenate([one.points.y[:, 0] for one in found]), found[0].y_range
    if far := int(((targets < low) | (targets > high)).sum()):
        lines.append(
            f"{far} of {len(targets)} points lie {FAR_OUT} standard deviations or more from the mean of training: another unit?"
            f" (got {names[-1]} from {targets.min():.6g} to {targets.max():.6g}; expected {low:.6g} to {high:.6g})"
        )
    if merged := [one for one in found if one.merged]:
        different = sum(len(np.unique(one.points.x, axis=0)) for one in merged)
        left = different - sum(one.merged for one in merged)
        lines.append(
            f"some inputs are one number to the network, which computes with 7 digits "
            f"(got {different} different {' and '.join(names[:-1])}, {left} after rounding; expected no less)"
        )
    if diverged := sum(not np.isfinite(one.outputs[-1]).all() for one in found):
        last = f"{len(found[0].errors) - 1} gradients" + f" for {diverged} of {len(found)} subjects" * (len(found) > 1)
        lines.append(f"adapting diverged (got predictions that are not finite after {last}; expected finite ones)")
    return lines


def _outside(what: str, parts: Sequence[tuple[np.ndarray, np.ndarray]], x_range: np.ndarray, names: Sequence[str]) -> str:
    """A line about points or questions that lie outside of `x_range`, if any; `parts` are x [N, D] and whether, [N]."""
    if not any(outside.any() for _, outside in parts):
        return ""
    (low, high), inputs, outside = x_range, *(np.concatenate(part) for part in zip(*parts, strict=True))
    lie = f"{outside.sum()} of {len(inputs)} {what} lie" if not outside.all() else f"all {len(inputs)} {what} lie"
    column = int(np.argmax(np.any((inputs < low) | (inputs > high), axis=0)))
    got = f"{names[column]} from {inputs[:, column].min():.10g} to {inputs[:, column].max():.10g}"
    where = f"{lie} outside the range of meta-training, where the network was never asked to be right"
    return f"{where} (got {got}; expected {low[column]:.10g} to {high[column]:.10g})"


def summary(found: Sequence[Prediction], request: Request) -> str:
    """The error on the given points before and after adapting, in one line."""
    counts = [len(one.points.x) for one in found]
    errors, last = np.average([one.errors for one in found], axis=0, weights=counts), len(found[0].errors) - 1
    what, unit = f"mean squared error on the {sum(counts)} points", ""
    if request.of_table:
        errors, what, unit = np.sqrt(errors), f"root {what}", f" (in the unit of {request.names[-1]})"
    what += f" of {len(found)} subjects" * (len(found) > 1)
    after = f"{errors[-1]:.4g} after {last} gradient{'' if last == 1 else 's'}"
    return f"{what}: {errors[0]:.4g} before adapting, {after}{unit}"


# ---- writing


def csv_table(found: Sequence[Prediction], request: Request) -> str:
    """A row for each question in the file's order, or for each x of one subject after another: predictions before and after
    adapting, the interval where it is known, and 1 for extrapolation.
    """
    dim, asked = found[0].x.shape[1], request.questions.any()
    members = np.repeat(np.arange(len(found)), [len(one.x[one.answers]) for one in found])
    by_subject = np.argsort(request.members[request.questions], kind="stable")
    order = np.argsort(by_subject) if asked else np.arange(len(members))

    def joined(parts: Sequence[Any]) -> np.ndarray:
        """[N, ...] of all tasks, in the order of the rows."""
        return np.concatenate([part[one.answers] for one, part in zip(found, parts, strict=True)])[order]

    x, outputs = joined([one.x for one in found]), joined([one.outputs.T for one in found])
    digits, given = (7 if outputs.dtype == np.float32 else 12), (15 if asked or dim > 1 else 12)  # a grid's are wrong after 12
    columns = [(name, x[:, number], given) for number, name in enumerate(request.names[1:-1])]
    if dim > 1 and not asked:
        columns.append((request.names[-1], joined([one.points.y[:, 0] for one in found]), given))
    columns += [("prediction_before", outputs[:, 0], digits), ("prediction_after", outputs[:, -1], digits)]
    if found[0].band is not None:
        band = joined([one.band.T for one in found if one.band is not None])
        columns += [(name, band[:, place], digits) for place, name in enumerate(("lower_5", "upper_95"))]
    columns.append(("extrapolated", joined([one.extrapolated for one in found]).astype(int), 7))
    names = [[request.subjects[member] for member in members[order]]] if request.names[0] else []
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*([request.names[0]] if names else []), *(name for name, _, _ in columns)])
    cells = ([f"{value:.{digits}g}" for value in values] for _, values, digits in columns)
    writer.writerows(zip(*names, *cells, strict=True))
    return text.getvalue()


def figures(found: Sequence[Prediction], request: Request, title: str) -> Iterator[Any]:
    """A figure of one task, or pages of several, for D = 1."""
    from report.prediction_figures import prediction_curves, subject_curves  # takes half a second: for those who draw

    x_range, steps = (float(found[0].x_range[0, 0]), float(found[0].x_range[1, 0])), len(found[0].errors) - 1
    names = (request.names[1], request.names[-1]) if request.of_table else ("input x", "output y")
    least = 2 * found[0].unit if request.of_table else 0.5
    if not request.names[0]:
        one, about = found[0], f"{title}: {len(found[0].points.x)} points"
        yield prediction_curves(curves(one, SAMPLES_SHOWN), steps, x_range, about, names, least)
        return
    for first in range(0, min(len(found), MOST_PAGES * PANELS), PANELS):
        some = range(first, min(first + PANELS, len(found)))
        tasks = {request.subjects[place]: curves(found[place]) for place in some}
        about = f"{title}: {len(found)} subject{'' if len(found) == 1 else 's'}"
        about += f", {some[0] + 1} to {some[-1] + 1}" * (len(found) > PANELS)
        yield subject_curves(tasks, steps, x_range, about, names, least)


def curves(one: Prediction, samples: int = 0) -> dict[str, np.ndarray]:
    """The arrays of a task's picture."""
    line, answers = slice(0, GRID_POINTS), (one.x[one.answers, 0], one.outputs[-1, one.answers])
    arrays = {"grid": one.x[line, 0], "before": one.outputs[0, line], "after": one.outputs[-1, line]}
    arrays |= {"support_x": one.points.x[:, 0], "support_y": one.points.y[:, 0], "samples": one.samples[:samples, line]}
    arrays |= {} if one.band is None else {"band": one.band[:, line]}
    inside = (answers[0] >= one.x[0, 0]) & (answers[0] <= one.x[GRID_POINTS - 1, 0])
    return arrays | ({"asked": np.stack(answers)[:, inside]} if one.questions and inside.any() else {})


def output_files(directory: Path, input_file: Path, pages: int) -> list[Path]:
    """Where `write` will write; raises `RunError` where that is the file of points itself."""
    stems = ["predictions", *(f"predictions-{page}" for page in range(2, pages + 1))][:pages]
    files = [directory / name for name in ("predictions.csv", *(f"{stem}.{kind}" for stem in stems for kind in ("png", "pdf")))]
    for file in files:
        if file.exists() and input_file.exists() and file.samefile(input_file):
            raise RunError(f"{file} is the file of points (got it as output too; expected another --output or file name)")
    return files


def write(files: Sequence[Path], found: Sequence[Prediction], request: Request, title: str) -> None:
    """Write the table, and for D = 1 the figures, to `output_files`; makes their directory where it is missing.

    Raises OSError where the disk is full or read-only.
    """
    files[0].parent.mkdir(parents=True, exist_ok=True)
    write_atomically(files[0], csv_table(found, request).encode())
    if len(files) > 1:
        for figure, *pictures in zip(figures(found, request, title), files[1::2], files[2::2], strict=True):
            for file in pictures:
                write_atomically(file, figure_bytes(figure, file.suffix[1:]))

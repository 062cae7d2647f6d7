"""`--predict RUN --points FILE.csv`: adapt a trained learner to somebody's own points, of one task or of many subjects.

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

from commands.runs import runs_folder, settings_of_run
from dataset import Points
from regressor import NO_INTERVALS, Answer, FewShotRegressor
from results_manager import EXPERIMENTS, find_run, load_run
from system.errors import RunError
from system.files import write_atomically
from system.terminal import print_once
from system.text import printable
from tables.arrays import finite_curves
from tables.points import PointsFile, read_points

GRID_POINTS = 201
UNUSUAL_TARGET = 10  # standard deviations from the mean of training
SAMPLES_SHOWN = 8
PANELS = 12  # of a figure
MOST_PAGES = 3
COVERAGE = 0.9
STATE_BYTES = 2**27  # bounds the memory of the networks that are adapted together

Array = np.ndarray


def predict(args: argparse.Namespace) -> int:
    """Adapt a run's best checkpoint to the points of a file; writes beside the points or to --output."""
    folder = runs_folder(args)
    try:
        find_run(args.predict, folder)
    except RunError:
        folder = EXPERIMENTS  # --output may be for what is written alone
    directory, state, warning = load_run(args.predict, folder, best=True)
    method, tasks, config = settings_of_run(args, directory, state)
    file = read_points(args.points, config.INPUT_DIM, (state.get("data") or {}).get("columns", ()))
    pages = min(MOST_PAGES, -(-len(file.subjects) // PANELS)) if config.INPUT_DIM == 1 else 0
    files = output_files(args.output or args.points.parent, args.points, pages)
    model = FewShotRegressor.from_checkpoint(state, method, tasks, config)
    found = predict_subjects(model, file.support, file.query_inputs)
    missing = "" if model.has_intervals else NO_INTERVALS.format(model.steps)
    for line in [warning, missing, *warnings_about(found, model, file.names[1:])]:
        if line:
            print(f"warning: {printable(line)}", file=sys.stderr)
    write(files, found, model, file, f"{method.upper()} on {args.points.name}")
    print_once(printable(summary(found, model, file)))
    print_once(f"written: {printable(', '.join(map(str, files)))}")
    return 0


# ---- predicting


class Prediction(NamedTuple):
    """The points of one task, and what a learner says where it was asked."""

    points: Points  # x [K, D], y [K, 1]
    x: Array  # [N, D]: the questions of the file; where it has none a fine grid for D = 1, and the points themselves otherwise
    is_query: bool  # whether these are questions
    answer: Answer  # after adapting: 1 stage
    before: Array  # [N], the prediction at x if no point were known
    before_at_support: Array  # [K], the same at the points

    def errors(self) -> Array:
        """The mean squared error on the given points before and after adapting, [2]; 0 where there are none."""
        at_support = np.stack([self.before_at_support, self.answer.at_support[-1]])
        with np.errstate(over="ignore", invalid="ignore"):  # of a prediction that diverged
            squares = np.square(at_support - self.points.y[:, 0].astype(at_support.dtype), dtype=np.float64)
            return squares.sum(1) / max(1, squares.shape[1])


def predict_subjects(
    model: FewShotRegressor, support: Sequence[Points], query_inputs: Sequence[Array] = ()
) -> list[Prediction]:
    """Adapt the model to the points x [K, D], y [K, 1] of each subject, and predict at its inputs [Q, D] or around its points.

    Raises `RunError` where there are more points than the memory allows.
    """
    found, together = [], max(1, STATE_BYTES // model.state_bytes)
    for first in range(0, len(support), together):
        some = support[first : first + together]
        model.fit_many(*zip(*some, strict=True))
        places = query_inputs[first : first + together] or [grid_of(model, points) for points in some]
        inputs = [part for points, x in zip(some, places, strict=True) for part in (x, points.x)]
        before = iter(np.split(model.predict_prior(np.concatenate(inputs)), np.cumsum([len(part) for part in inputs[:-1]])))
        for points, x, answer in zip(some, places, model.answers(places, coverage_of(model)), strict=True):
            ends = answer._replace(stages=answer.stages[-1:], at_support=answer.at_support[-1:])  # nothing else is written
            found.append(Prediction(points, x, bool(query_inputs), ends, next(before), next(before)))
    return found


def coverage_of(model: FewShotRegressor) -> float | None:
    """The share of measurements that the intervals hold; None where the run has no intervals."""
    return COVERAGE if model.has_intervals else None


def grid_of(model: FewShotRegressor, points: Points) -> Array:
    """From the lowest to the highest x of the trained range and of a task's points, [201, 1]; for D > 1 the points, [K, D]."""
    if model.input_dim > 1:
        return points.x
    ends = np.append(points.x, model.x_range)
    return np.linspace(ends.min(), ends.max(), GRID_POINTS)[:, None]


# ---- what to know before trusting them


def warnings_about(found: Sequence[Prediction], model: FewShotRegressor, names: Sequence[str] = ("x", "y")) -> list[str]:
    """What a user should know before trusting the predictions, one line each; `names` are those of D inputs and the target."""
    lines = [outside_range("points", np.concatenate([one.points.x for one in found]), model, names)]
    if found[0].is_query:
        lines.append(outside_range("questions", np.concatenate([one.x for one in found]), model, names))
    lines.append(unusual_targets(np.concatenate([one.points.y[:, 0] for one in found]), model, names[-1]))
    lines.append(merged_inputs(found, model, names))
    if diverged := sum(not np.isfinite(one.answer.stages[-1]).all() for one in found):
        last = f"{model.steps} gradients"
        if len(found) > 1:
            last += f" for {diverged} of {len(found)} subjects"
        lines.append(f"adapting diverged (got predictions that are not finite after {last}; expected finite ones)")
    return [line for line in lines if line]


def outside_range(what: str, inputs: Array, model: FewShotRegressor, names: Sequence[str]) -> str:
    """A line about the points or questions among `inputs` [N, D] that lie outside of the range of meta-training, if any do."""
    outside = model.extrapolates(inputs)
    if not outside.any():
        return ""
    low, high = model.x_range
    count = f"all {len(inputs)}" if outside.all() else f"{outside.sum()} of {len(inputs)}"
    column = int(np.argmax(np.any((inputs < low) | (inputs > high), axis=0)))
    got = f"{names[column]} from {inputs[:, column].min():.10g} to {inputs[:, column].max():.10g}"
    where = f"{count} {what} lie outside the range of meta-training, where the network was never asked to be right"
    return f"{where} (got {got}; expected {low[column]:.10g} to {high[column]:.10g})"


def unusual_targets(targets: Array, model: FewShotRegressor, name: str) -> str:
    """A line about targets [N] that may be in another unit than those of the table, if there are any."""
    low, high = model.coding.decode_targets(np.array([-UNUSUAL_TARGET, UNUSUAL_TARGET]))
    count = int(((targets < low) | (targets > high)).sum())
    if not count or not model.coding.of_table:
        return ""
    return (
        f"{count} of {len(targets)} points lie {UNUSUAL_TARGET} standard deviations or more from the mean of training: another"
        f" unit? (got {name} from {targets.min():.6g} to {targets.max():.6g}; expected {low:.6g} to {high:.6g})"
    )


def merged_inputs(found: Sequence[Prediction], model: FewShotRegressor, names: Sequence[str]) -> str:
    """A line about different inputs of a subject that are no longer different in float32, if there are any."""
    members = np.repeat(np.arange(len(found)), [len(one.points.x) for one in found])
    own = np.concatenate([one.points.x for one in found])
    seen = model.coding.encode_inputs(own).astype(np.float32)
    different, left = (len(np.unique(np.column_stack([members, x]), axis=0)) for x in (own, seen))
    if different == left:
        return ""
    got = f"got {different} different {' and '.join(names[:-1])}, {left} after rounding; expected no less"
    return f"some inputs are one number to the network, which computes with 7 digits ({got})"


def summary(found: Sequence[Prediction], model: FewShotRegressor, file: PointsFile) -> str:
    """The error on the given points before and after adapting, in one line."""
    counts = [len(one.points.x) for one in found]
    if not any(counts):
        return "no point is known: all tasks have the prediction for an unknown task like those of training"
    errors = np.average([one.errors() for one in found], axis=0, weights=counts)
    what, unit = f"mean squared error on the {sum(counts)} points", ""
    if file.of_table:
        errors, what, unit = np.sqrt(errors), f"root {what}", f" (in the unit of {file.names[-1]})"
    if len(found) > 1:
        what += f" of {len(found)} subjects"
    gradients = "1 gradient" if model.steps == 1 else f"{model.steps} gradients"
    return f"{what}: {errors[0]:.4g} before adapting, {errors[1]:.4g} after {gradients}{unit}"


# ---- writing


def predictions_csv(found: Sequence[Prediction], model: FewShotRegressor, file: PointsFile) -> str:
    """A row for each question in the file's order, or for each x of one subject after another: predictions before and after
    adapting, the interval where it is known, and 1 for extrapolation.
    """
    is_query, dim = found[0].is_query, model.input_dim
    members = np.repeat(np.arange(len(found)), [len(one.x) for one in found])
    # questions are answered in the file's order: the inverse of the order subject after subject
    order = np.argsort(np.argsort(file.members[file.is_query], kind="stable")) if is_query else np.arange(len(members))
    x = np.concatenate([one.x for one in found])[order]
    outputs = np.concatenate([np.stack([one.before, one.answer.stages[-1]], 1) for one in found])[order]
    digits = 7 if outputs.dtype == np.float32 else 12
    given = 15 if is_query or dim > 1 else 12  # a grid's x are exact to 12 digits
    columns = [(name, x[:, number], given) for number, name in enumerate(file.names[1:-1])]
    if dim > 1 and not is_query:
        columns.append((file.names[-1], np.concatenate([one.points.y[:, 0] for one in found]), given))
    columns += [("prediction_before", outputs[:, 0], digits), ("prediction_after", outputs[:, 1], digits)]
    if model.has_intervals:
        band = np.concatenate([one.answer.interval.T for one in found])[order]
        columns += [("lower_5", band[:, 0], digits), ("upper_95", band[:, 1], digits)]
    columns.append(("extrapolated", model.extrapolates(x).astype(int), 7))
    header = [name for name, _, _ in columns]
    cells: list[Any] = [map(f"{{:.{digits}g}}".format, values.tolist()) for _, values, digits in columns]
    if file.names[0]:
        header = [file.names[0], *header]
        cells = [(file.subjects[member] for member in members[order].tolist()), *cells]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(zip(*cells, strict=True))
    return text.getvalue()


def figures(found: Sequence[Prediction], model: FewShotRegressor, file: PointsFile, title: str) -> Iterator[Any]:
    """Pages of at most twelve tasks each, for D = 1."""
    from visualization import task_curves  # takes half a second: for those who draw

    x_range, shown = (float(model.x_range[0, 0]), float(model.x_range[1, 0])), found[: MOST_PAGES * PANELS]
    names, least = ("input x", "output y"), 0.5
    if file.of_table:
        names, least = (file.names[1], file.names[-1]), 2 * float(model.coding.unit[-1])
    pictures = curves(shown, model)
    subjects = "1 subject" if len(found) == 1 else f"{len(found)} subjects"
    about = f"{title}: {subjects if file.names[0] else f'{len(found[0].points.x)} points'}"
    for first in range(0, len(shown), PANELS):
        tasks = dict(zip(file.subjects[first : first + PANELS], pictures[first : first + PANELS], strict=False))
        page = f"{about}, {first + 1} to {first + len(tasks)}" if len(found) > PANELS else about
        yield task_curves(tasks, (0, model.steps), page, names, x_range, least)


def curves(found: Sequence[Prediction], model: FewShotRegressor) -> list[dict[str, Array]]:
    """The arrays of each task's picture; those of a single task have sampled curves, where the method samples."""
    model.fit_many(*zip(*(one.points for one in found), strict=True))
    grids = [grid_of(model, one.points) for one in found]
    pictures = []
    for one, grid, answer in zip(found, grids, model.answers(grids, coverage_of(model)), strict=True):
        picture = {"grid": grid[:, 0], "predictions": np.stack([model.predict_prior(grid), answer.stages[-1]])}
        picture |= {"support_x": one.points.x[:, 0], "support_y": one.points.y[:, 0]}
        picture |= {"band": answer.interval} if len(answer.interval) else {}
        if one.is_query:
            inside = (one.x[:, 0] >= grid[0]) & (one.x[:, 0] <= grid[-1])
            picture["asked"] = np.stack([one.x[:, 0], one.answer.stages[-1]])[:, inside]
        pictures.append(picture)
    if len(found) == 1 and len(found[0].points.x) and model.learner.noise_dim:
        pictures[0]["samples"] = finite_curves(model.sample(grids[0], SAMPLES_SHOWN))
    return pictures


def output_files(directory: Path, input_file: Path, pages: int) -> list[Path]:
    """Where `write` will write; raises `RunError` where that is the file of points itself."""
    names = ["predictions.csv"]
    if pages:
        names += ["predictions.png", *(f"predictions-{page}.png" for page in range(2, pages + 1)), "predictions.pdf"]
    files = [directory / name for name in names]
    if input_file.resolve() in [file.resolve() for file in files]:
        raise RunError(f"{input_file} is the file of points (got it as output too; expected another --output or file name)")
    return files


def write(files: Sequence[Path], found: Sequence[Prediction], model: FewShotRegressor, file: PointsFile, title: str) -> None:
    """Write the table, and for D = 1 the figures, to `output_files`; makes their directory where it is missing.

    Raises OSError where the disk is full or read-only.
    """
    files[0].parent.mkdir(parents=True, exist_ok=True)
    write_atomically(files[0], predictions_csv(found, model, file).encode())
    if len(files) > 1:
        from visualization import pdf_bytes, png_bytes  # takes half a second: for those who draw

        pages = list(figures(found, model, file, title))
        for path, page in zip(files[1:-1], pages, strict=True):
            write_atomically(path, png_bytes(page))
        write_atomically(files[-1], pdf_bytes(*pages))

"""The tables of a run and of a comparison: cells and notes, which report/text.py and report/page.py render."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from dataset import Published
from evaluation.comparison import Comparison
from evaluation.statistics import shown_steps
from system.text import printable


class Table(NamedTuple):
    """Text that is printable, and not yet escaped for Markdown or HTML."""

    cells: list[list[str]]  # the first row is the header; the first column is K
    notes: list[str]  # what the numbers mean, and what is missing
    answer: str = ""  # what the table says, in a sentence


def number(value: float | None, digits: int = 4, missing: str = "-") -> str:
    """A number as text; `missing` where it is not finite, for which JSON has null."""
    return missing if value is None or not math.isfinite(value) else f"{value:.{digits}g}"


def with_interval(value: float | None, half: float | None) -> str:
    return f"{number(value)} +- {number(half, 2)}"


# ---- a run


def run_table(evaluation: Mapping[str, Any], method: str, reference: Published) -> Table:
    """The errors of a method, of what is published of it, and of the baselines, at each K.

    Args:
        evaluation: the "evaluation" record of metrics.json.
        reference: published mean errors, K -> gradients -> error.
    """
    first = next(iter(evaluation["shots"].values()))
    last = len(first["mse"]) - 1
    steps = sorted({0, last}) if "rmse" in first else shown_steps(last)  # with its own unit a table would be too wide for paper
    gradients = ["1 gradient" if step == 1 else f"{step} gradients" for step in steps]
    cells = [["K", "", *gradients, "in own unit", "90% interval: holds, width"]]
    for shots, found in evaluation["shots"].items():
        errors = [_error(found, step) for step in steps]
        if shots == "0":  # there is nothing to take gradients on
            errors[:-1] = [""] * (len(errors) - 1)
        own_unit = number(found["rmse"][-1]) if "rmse" in found else ""
        cells.append([shots, method, *errors, own_unit, _interval(found.get("interval"))])
        if known := reference.get(int(shots)):
            cells.append(
                [shots, "Finn et al. 2017", *(f"{known[step]:.2f}" if step in known else "" for step in steps), "", ""]
            )
        for name, by_shots in evaluation.get("baselines", {}).items():
            error = by_shots[shots]
            own_unit = number(error["rmse"]) if "rmse" in error else ""
            cells.append([shots, name, *[""] * (len(steps) - 1), with_interval(error["mse"], error["ci95"]), own_unit, ""])
    used = [column for column in range(len(cells[0])) if column < 2 or any(row[column] for row in cells[1:])]
    return Table([[row[column] for column in used] for row in cells], _run_notes(evaluation), evaluation.get("verdict", ""))


def _error(found: Mapping[str, Any], step: int) -> str:
    """A mean error; where the tasks that diverged make more than half of it, the mean of the others."""
    mean, others = found["mse"][step], found.get("others")
    if others and (mean is None or not mean <= 2 * others["mse"][step]):  # JSON has null for what is not finite
        return with_interval(others["mse"][step], others["ci95"][step]) + " *"
    return with_interval(mean, found["ci95"][step])


def _interval(record: Mapping[str, Any] | None) -> str:
    return f"{record['coverage']:.1%}, {number(record['width'], missing='unbounded')}" if record else ""


def _run_notes(evaluation: Mapping[str, Any]) -> list[str]:
    notes = [f"Mean squared errors over {evaluation['num_tasks']} test tasks, with 95% intervals over tasks."]
    if any("rmse" in found for found in evaluation["shots"].values()):
        unit = "standard deviations of the training subjects' target"
        if "y_scale" in evaluation:
            unit = f"units of {evaluation['y_scale']:g}"
        notes.append(f"They are in {unit}, squared; in own unit: the root of the last.")
    skipped = {shots: found["left_out"] for shots, found in evaluation["shots"].items() if found.get("left_out")}
    notes += [f"Skipped, too few points: {count} at K = {shots}." for shots, count in skipped.items()]
    if evaluation.get("without_points") == "mean curve":
        notes.append("At K = 0 the answer is the mean curve of the training tasks: without points the method itself errs more.")
    diverged = {shots: found["diverged"] for shots, found in evaluation["shots"].items() if found.get("diverged")}
    return notes + [
        f"Test tasks that diverged: {count} at K = {shots}; means with * leave them out." for shots, count in diverged.items()
    ]


MOST_ANSWERS = 10  # rows


class Answer(NamedTuple):
    """What the owner of a table reads of one predictor at the K that was asked for."""

    name: str
    mse: float | None  # None where it is not finite, as in JSON
    ci95: float | None
    coverage: float | None = None  # of its 90% intervals
    seconds: float | None = None  # of training


def answer_table(answers: Sequence[Answer], shots: int, scale: float, target: str) -> Table:
    """At most ten predictors, the best first: root mean squared errors in the target's own unit, intervals over subjects."""
    shown = "1 point" if shots == 1 else f"{shots} points"
    cells = [[f"with {shown}", f"off by ({printable(target)})", "95% interval", "90% intervals hold", "seconds"]]
    for one in sorted(answers, key=lambda answer: math.inf if answer.mse is None else answer.mse)[:MOST_ANSWERS]:
        ends = [math.nan, math.nan]
        if one.mse is not None and one.ci95 is not None:
            ends = [scale * math.sqrt(max(0.0, one.mse + sign * one.ci95)) for sign in (-1, 1)]
        held = "" if one.coverage is None else f"{one.coverage:.0%}"
        root = None if one.mse is None else scale * math.sqrt(one.mse)
        seconds = "" if one.seconds is None else f"{one.seconds:.0f}"
        cells.append([printable(one.name), number(root, 3), " to ".join(number(end, 3) for end in ends), held, seconds])
    used = [column for column in range(len(cells[0])) if any(row[column] for row in cells[1:])]
    return Table(
        [[row[column] for column in used] for row in cells], ["Root mean squared errors over subjects, with 95% intervals."]
    )


def run_answers(evaluation: Mapping[str, Any], method: str, shots: int, seconds: float | None) -> list[Answer]:
    """A method and its baselines, from the "evaluation" of metrics.json."""
    found = evaluation["shots"][str(shots)]
    coverage = found.get("interval", {}).get("coverage")
    own = Answer(method, found["mse"][-1], found["ci95"][-1], coverage, seconds)
    baselines = evaluation.get("baselines", {}).items()
    return [own, *(Answer(name, one[str(shots)]["mse"], one[str(shots)]["ci95"]) for name, one in baselines)]


# ---- a comparison


def comparison_table(comparison: Comparison) -> Table:
    """Every method after 0, 1, 5 and the last gradient, without the rows that the next one repeats."""
    cells = [["K", "gradients", "method", "mean squared error", "seeds", "over seeds", "minus the first", "in words"]]
    following = dict(pairwise([*shown_steps(comparison.last), -1]))
    for row in comparison.rows:
        after = following.get(row.gradients)
        if after is None or (after > 0 and _unchanged(comparison.errors[row.shots][row.group], row.gradients, after)):
            continue
        over_seeds = f"+- {number(row.ci_seeds, 2)}" if row.seeds > 1 else ""
        difference = f"{number(row.difference, 3)} +- {number(row.difference_ci, 2)}"
        where = [str(row.shots), str(row.gradients), printable(row.group), with_interval(row.mean, row.ci_tasks)]
        compared = "" if row.group == comparison.labels[0] else difference
        cells.append([*where, str(row.seeds), over_seeds, compared, row.in_words])
    return Table(cells, _comparison_notes(comparison), printable(comparison.choice))


def _unchanged(errors: np.ndarray, before: int, after: int) -> bool:
    return np.array_equal(errors[..., before], errors[..., after], equal_nan=True)


def _comparison_notes(comparison: Comparison) -> list[str]:
    tasks = " or ".join(dict.fromkeys(str(row.tasks) for row in comparison.rows))
    fewer = [f"{printable(label)} {count}" for label, count in comparison.taken.items() if count < comparison.last]
    return [
        *([f"Fewer gradients are taken by {', '.join(fewer)}: their last rows are after these."] if fewer else []),
        f"+- are 95% intervals: over {tasks} test tasks (these trained networks), and over seeds.",
        f"Differences to {printable(comparison.labels[0])} are taken task by task; in words where their interval excludes 0.",
    ]

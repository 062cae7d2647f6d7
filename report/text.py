"""Results as text: for terminals, as Markdown, as CSV. A label is whatever somebody called a run."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any

import numpy as np

from dataset import Published
from evaluation.comparison import Comparison, Row
from evaluation.statistics import relative_difference, shown_steps
from system.text import columns, padded, printable


def results_table(evaluation: Mapping[str, Any], reference: Published) -> str:
    """Mean test error after 0, 1, 5 and the last gradient for each K, beside the published figures, as text.

    Args:
        evaluation: the "evaluation" record of metrics.json.
    """
    shots = evaluation["shots"]
    steps = _columns(list(shots.values()))

    def line(head: str, cells: Iterable[str]) -> str:
        return head + "".join(f"{cell:<22}" for cell in cells).rstrip()

    title = f"mean squared error on {evaluation['num_tasks']} test tasks (95% interval), after this many gradients:"
    lines = [title, line("   K      ", steps.values())]
    for count, result in shots.items():
        means, halves = ([math.nan if v is None else v for v in result[name]] for name in ("mse", "ci95"))  # null in JSON
        lines.append(line(f"{count:>4}      ", (f"{means[step]:.4g} +- {halves[step]:.2g}" for step in steps)))
        if known := reference.get(int(count)):
            lines.append(line(" Finn+17  ", (f"{known[step]:.2f}" if step in known else "-" for step in steps)))
        if "rmse" in result:
            lines.append(line("    rmse  ", (f"{result['rmse'][step]:.4g}" for step in steps)))
        if about := result.get("interval"):
            widths = f"mean width {_number(about['width'])} ({_number(about['constant_width'])} if all had one width)"
            widths += f", calibrated on {about['calibrated_on']} subjects" if "rmse" in result else ""
            lines.append(f"    {about['level']:.0%}   intervals hold {about['coverage']:.1%} of measurements, {widths}")
        for name, found in evaluation.get("baselines", {}).items():
            error, half, rmse = (math.nan if (v := found[count].get(key)) is None else v for key in ("mse", "ci95", "rmse"))
            own_unit = f", rmse {rmse:.4g}" if "rmse" in found[count] else ""
            lines.append(f"          {error:.4g} +- {half:.2g}{own_unit}: {name}")
    if left_out := [f"{result['left_out']} at K = {count}" for count, result in shots.items() if result.get("left_out")]:
        lines.append(f"skipped, too few points: {', '.join(left_out)}")
    if "rmse" in result:
        lines.append("errors are in standard deviations of the training subjects' target, squared; rmse is in its own unit")
    if evaluation["diverged"]:
        lines.append(f"{evaluation['diverged']} test tasks diverged")
    lines += [evaluation["verdict"]] if "verdict" in evaluation else []
    return "\n".join(lines)


def _columns(results: list[Mapping[str, Any]]) -> dict[int, str]:
    """The numbers of gradients in a table of results, and their names: on a table of subjects, for which nothing is published,
    without those that change nothing."""
    steps = shown_steps(last := len(results[0]["mse"]) - 1)
    if "rmse" in results[0]:
        repeated = [all(one["mse"][step] == one["mse"][before] for one in results) for before, step in pairwise(steps)]
        steps = [0, *(step for step, same in zip(steps[1:], repeated, strict=True) if not same)]
    return {step: f"{step} or more" if step == steps[-1] < last else str(step) for step in steps}


def _number(value: float | None) -> str:
    return "unbounded" if value is None or not math.isfinite(value) else f"{value:.4g}"  # null in JSON


def verdict(method: str, own: np.ndarray, others: Mapping[str, np.ndarray], scale: float, target: str, shots: int) -> str:
    """Whether meta-learning was worth it, in a line: root mean squared errors in the target's own unit, and their difference.

    Args:
        own: each test task's mean squared error [T] after the last gradient, in units of `scale`, squared.
        others: the same of every baseline; compared is the one with the lowest mean, chosen on these same tasks.
    """
    best = min(others, key=lambda name: float(others[name].mean()))
    change, low, high = (100 * value for value in relative_difference(own, others[best]))
    words = "which can't be compared"
    if low > 0 or high < 0:
        ends = sorted([abs(low), abs(high)])
        words = f"{abs(change):.0f}% {'lower' if change < 0 else 'higher'}, interval {ends[0]:.0f} to {ends[1]:.0f}%"
    elif low <= 0 <= high:
        words = f"not distinguishable, interval {round(low):+d} to {round(high):+d}%"
    with np.errstate(over="ignore", invalid="ignore"):
        roots = [f"{name} {scale * np.sqrt(errors.mean()):.3g}" for name, errors in ((method, own), (best, others[best]))]
    return f"{printable(target)}, root mean squared error at K = {shots}: {roots[0]}, {roots[1]}: {words}"


def csv_table(comparison: Comparison) -> str:
    """Every row as CSV: full precision, empty cells where there is no interval."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(Row._fields)
    for row in comparison.rows:
        plain = row._replace(group=printable(row.group))  # one line a row, and letters that UTF-8 has
        writer.writerow("" if isinstance(value, float) and math.isnan(value) else value for value in plain)
    return text.getvalue()


def text_table(comparison: Comparison) -> str:
    """The comparison after 0, 1, 5 and the last gradient for a terminal."""
    cells = [list(HEADER), *comparison_cells(comparison)]
    widths = [max(columns(line[column]) for line in cells) for column in range(len(HEADER))]
    lines = ["  ".join(padded(cell, width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]
    for place in range(len(cells) - 1, 0, -1):
        if cells[place][0] != cells[place - 1][0]:  # another K begins
            lines.insert(place, "  ".join("-" * width for width in widths))
    return "\n".join([*lines, *comparison_notes(comparison)])


def markdown_table(comparison: Comparison, title: str = "") -> str:
    """The same table in Markdown, where no name is taken for markup."""
    lines = [f"# {_unmarked(title)}", ""] if title else []
    lines += [f"| {' | '.join(HEADER)} |", "|" + " --- |" * len(HEADER)]
    lines += ["| " + " | ".join(map(_unmarked, line)) + " |" for line in comparison_cells(comparison)]
    return "\n".join([*lines, "", *(f"* {_unmarked(note)}" for note in comparison_notes(comparison))]) + "\n"


def _unmarked(text: str) -> str:
    """`text` with a backslash before all that Markdown takes for markup; an underscore inside a word is none."""
    return re.sub(r"[\\`*|<>\[\]~$&#]|(?<!\w)_|_(?!\w)", r"\\\g<0>", printable(text))


HEADER = ("K", "gradients", "method", "mean squared error", "seeds", "over seeds", "minus the first", "in words")


def comparison_cells(comparison: Comparison) -> list[list[str]]:
    """The rows of a comparison's table under `HEADER`, after 0, 1, 5 and the last gradient, but those that the next repeats."""
    following, result = dict(pairwise([*shown_steps(comparison.last), -1])), []
    for row in comparison.rows:
        errors, after = comparison.errors[row.shots][row.group], following.get(row.gradients)
        if after is None or (after > 0 and np.array_equal(errors[..., row.gradients], errors[..., after], equal_nan=True)):
            continue
        error, over_seeds = f"{row.mean:.4g} +- {row.ci_tasks:.2g}", f"+- {row.ci_seeds:.2g}" if row.seeds > 1 else ""
        difference = f"{row.difference:.3g} +- {row.difference_ci:.2g}" if row.group != comparison.labels[0] else ""
        where = [str(row.shots), str(row.gradients), printable(row.group)]
        result.append([*where, error, str(row.seeds), over_seeds, difference, row.verdict])
    return result


def comparison_notes(comparison: Comparison) -> list[str]:
    """What the table's numbers mean, a line each; the last one says which of several methods to use."""
    tasks = " or ".join(dict.fromkeys(str(row.tasks) for row in comparison.rows))
    fewer = [f"{printable(label)} {count}" for label, count in comparison.taken.items() if count < comparison.last]
    return [
        *([f"Fewer gradients are taken by {', '.join(fewer)}: their last rows are after these."] if fewer else []),
        f"+- are 95% intervals: over {tasks} test tasks (these trained networks), and over seeds.",
        f"Differences to {printable(comparison.labels[0])} are taken task by task; in words where their interval excludes 0.",
        *([printable(comparison.choice)] if comparison.choice else []),
    ]

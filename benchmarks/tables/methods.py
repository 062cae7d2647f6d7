"""Every method and baseline on every table: one command makes the numbers of TABLES.md and its figure.

    python benchmarks/tables/methods.py                                  # the tables of examples/, all methods, 3 splits
    python benchmarks/tables/methods.py --table mine.csv task=Patient x=Hours y=Level
    python benchmarks/tables/methods.py --methods leo r2d2 --splits 0
    python benchmarks/tables/methods.py --quick                          # a tiny version that tests the script

Runs are in benchmarks/runs/tables: one that is complete is not made again. Splits are over subjects, by the seeds 0, 1, ...;
support points are random, and for forecasting (--forecast) the first ones of a subject.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the project, wherever the script is called from

from matplotlib.figure import Figure

from benchmarks.common import ROOT, filled, machine, machine_line, new_parser, parse, table, write
from benchmarks.project import geometric_mean
from benchmarks.runs import Run, new_run, train
from registry import METHODS
from system.errors import RunError
from visualization import CYCLE, MARKERS, figure_grid, shared_legend

TABLES = {"chicks": ["task=Chick", "x=Time", "y=weight"], "spruce": []}  # in examples/
CHOSEN = "chosen by validation"
FARTHEST = 50  # times the best baseline's error: the end of the figure's axis
QUICK = {"EPOCHS": 2, "HIDDEN_DIM": 8, "COMPILE": "never", "VALIDATION_INTERVAL": 1}


class Result(NamedTuple):
    """What one run says of the test subjects at its own K."""

    shots: str
    errors: dict[str, float]  # mean squared errors in standardised units: the method's and the baselines'
    validation: float  # geometric mean of the validation errors at all K
    unit: float  # one standard deviation in the target's own unit
    interval: dict[str, float]  # of 90%: coverage and width
    seconds: float  # of training
    verdict: str


class Table(NamedTuple):
    """All results on one table."""

    title: str
    results: dict[str, list[Result]]  # by method, over splits
    errors: dict[str, list[float]]  # by method, baseline, and the method that validation chooses, over splits
    chosen: list[str]  # by validation, over splits

    @property
    def means(self) -> dict[str, float]:
        return {name: float(np.mean(errors)) for name, errors in self.errors.items()}


# ---- results


def finite(error: float | None) -> float:
    """An error of metrics.json, which has null where it was not finite."""
    return math.inf if error is None else error


def read_result(run: Run) -> Result:
    metrics = run.read("metrics.json")
    evaluation, shots = metrics["evaluation"], str(run.config.SUPPORT_SAMPLES)
    here = evaluation["shots"][shots]
    errors = {run.method.upper(): finite(here["mse"][-1])}
    errors |= {name: one[shots]["mse"] for name, one in evaluation.get("baselines", {}).items()}
    validation = geometric_mean([finite(one["validation"]) for one in evaluation["shots"].values()])
    unit = here["rmse"][-1] / np.sqrt(here["mse"][-1])
    seconds = metrics["performance"]["train_seconds"]
    return Result(shots, errors, validation, unit, here.get("interval") or {}, seconds, evaluation["verdict"])


def read_table(title: str, runs: Sequence[Run]) -> Table:
    results: dict[str, list[Result]] = {}
    for run in runs:
        results.setdefault(run.method.upper(), []).append(read_result(run))
    errors: dict[str, list[float]] = {}
    chosen = []
    for split in zip(*results.values(), strict=True):
        found = {name: error for result in split for name, error in result.errors.items()}
        chosen.append(min(results, key=lambda name: split[list(results).index(name)].validation))
        for name, error in (found | {CHOSEN: found[chosen[-1]]}).items():
            errors.setdefault(name, []).append(error)
    return Table(title, results, errors, chosen)


# ---- the document


def number(error: float) -> str:
    return f"{error:.4f}" if error < 100 else f"{error:.3g}"


def table_text(one: Table) -> str:
    first = next(iter(one.results.values()))[0]
    rows = []
    for name, mean in sorted(one.means.items(), key=lambda item: item[1]):
        each = " / ".join(f"{error:.4g}" for error in one.errors[name])
        rows.append([name, number(mean), each, f"{first.unit * np.sqrt(mean):.4g}", *training_cells(one.results.get(name, []))])
    header = ["", "mean squared error", "each split", "in own unit, about", "90% interval: holds, width", "seconds of training"]
    verdicts = [f"* split {split}, {one.results[name][split].verdict}" for split, name in enumerate(one.chosen)]
    parts = [f"## {one.title}, K = {first.shots}", table(header, rows), f"Chosen by validation error: {', '.join(one.chosen)}."]
    return "\n\n".join([*parts, "\n".join(verdicts)])


def training_cells(results: Sequence[Result]) -> list[str]:
    """What the 90% intervals hold and how wide they are, and seconds of training; means over splits, empty for a baseline."""
    intervals = [one.interval for one in results if one.interval]
    coverage, width = ([one[key] for one in intervals] for key in ("coverage", "width"))
    held = f"{np.mean(coverage):.1%}, {np.mean(width):.3g}" if intervals else ""
    return [held, f"{np.mean([one.seconds for one in results]):.0f}" if results else ""]


def overall(tables: Sequence[Table]) -> dict[str, float]:
    """The geometric mean over tables of each method and baseline."""
    return {name: geometric_mean([one.means[name] for one in tables]) for name in tables[0].errors}


def figure(tables: Sequence[Table]) -> Figure:
    """Each error relative to the best baseline of the table, a panel for each table, the best one overall on top."""
    columns = min(4, len(tables))
    rows = -(-len(tables) // columns)
    made, axes = figure_grid(rows, columns, 3.6 * columns, 4.2 * rows, sharey=True)
    means = overall(tables)
    names = sorted(means, key=means.__getitem__, reverse=True)
    for axis in axes.flat[len(tables) :]:
        axis.set_visible(False)
    for axis, one in zip(axes.flat, tables, strict=False):
        best = min(error for name, error in one.means.items() if name not in one.results and name != CHOSEN)
        for place, name in enumerate(names):
            ratio = one.means[name] / best
            marker = ">" if ratio > FARTHEST else MARKERS[place % 6]
            axis.plot([min(ratio, FARTHEST)], [place], marker, color=CYCLE[place % 6], ms=7)
        axis.axvline(1, color="0.6", lw=1, label="best baseline")
        axis.set(title=one.title, xlabel="error, relative to the best baseline", xscale="log")
        low, high = axis.get_xlim()
        ticks = [tick for tick in (0.5, 0.7, 1, 1.5, 2, 3, 5, 10, 20, 50) if low <= tick <= high]
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.set_xticks([], minor=True)
    axes[0, 0].set_yticks(range(len(names)), names)
    shared_legend(made, axes)
    return made


# ---- the command


def measure(args: argparse.Namespace, support: str, suffix: str) -> list[Table]:
    """All tables with "random" or the "first" points of each subject as support points; `suffix` of their titles."""
    sources = [(name, ROOT / "examples" / f"{name}.csv", columns) for name, columns in TABLES.items()]
    sources += [(Path(path).stem, Path(path).resolve(), columns) for path, *columns in args.table]
    folder, smaller = args.output / "benchmarks" / "runs" / "tables", QUICK if args.quick else {}
    runs: dict[str, list[Run]] = {}
    for name, path, columns in sources:
        settings: dict[str, Any] = {"DATA": str(path), "SUPPORT_FROM": support, "COLUMNS": columns}
        runs[name] = [
            new_run(f"{name} {support}", method, "table", folder, settings | {"RANDOM_SEED": split}, smaller)
            for method in args.methods
            for split in args.splits
        ]
    train([run for of_table in runs.values() for run in of_table], args.workers)
    return [read_table(name + suffix, of_table) for name, of_table in runs.items()]


def compare(args: argparse.Namespace, arguments: Sequence[str]) -> None:
    found = {"random support points": measure(args, "random", "")}
    if args.forecast:
        found["forecast"] = measure(args, "first", ", forecast")
    tables = [one for of_protocol in found.values() for one in of_protocol]
    means = {protocol: overall(of_protocol) for protocol, of_protocol in found.items()}
    order = sorted(means["random support points"], key=means["random support points"].__getitem__)
    rows = [[name, *(number(one[name]) for one in means.values())] for name in order]
    command = " ".join(["python benchmarks/tables/methods.py", *(Path(word).name for word in arguments)])
    splits = ", ".join(map(str, args.splits))
    parts = {
        "provenance": f"* command: `{command}`\n* machine: {machine_line(machine())}\n* splits over subjects: {splits}",
        "overall": table(["mean squared error", *means], rows),
        "tables": "\n\n".join(map(table_text, tables)),
    }
    document = filled(args.output, "benchmarks/TABLES.md", parts)
    write(args.output, {"benchmarks/TABLES.md": document, "benchmarks/results/tables.png": figure(tables)})


def main(argv: Sequence[str] | None = None) -> int:
    parser = new_parser(__doc__)
    parser.add_argument("--table", nargs="+", action="append", default=[], metavar="WORD", help="a file, then its columns")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--splits", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--forecast", action="store_true", help="also from the first points of each subject")
    args = parse(parser, argv, usual={"workers": 1}, quick={"workers": 0})
    try:
        compare(args, sys.argv[1:] if argv is None else argv)
    except RunError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.code
    return 0


if __name__ == "__main__":
    sys.exit(main())

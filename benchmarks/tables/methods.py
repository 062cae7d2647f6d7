"""Every method and baseline on every table: one command makes TABLES.md and its figure.

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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the project, wherever the script is called from

from matplotlib.figure import Figure

from benchmarks.common import ROOT, add_output_flag, machine, machine_line, new_parser, parse, table, write
from benchmarks.project import geometric_mean
from benchmarks.runs import Run, new_run, train
from registry import METHODS
from system.errors import RunError
from visualization import CYCLE, MARKERS, figure_grid, shared_legend

TABLES = {"chicks": ("task=Chick", "x=Time", "y=weight"), "spruce": ()}  # in examples/
CHOSEN = "chosen by validation"
FARTHEST = 50  # times the best baseline's error: the end of the figure's axis
QUICK = {"EPOCHS": 2, "HIDDEN_DIM": 8, "COMPILE": "never", "VALIDATION_INTERVAL": 1}


class Source(NamedTuple):
    """A table, and what is asked of it: `support` says which points are known, "random" or "first"."""

    name: str
    path: Path
    columns: Sequence[str]
    support: str

    @property
    def title(self) -> str:
        return self.name + (", forecast" if self.support == "first" else "")


class Result(NamedTuple):
    """What one run says of the test subjects at its own K."""

    method: str
    metrics: dict[str, Any]
    shots: str

    @property
    def here(self) -> dict[str, Any]:
        return dict(self.metrics["evaluation"]["shots"][self.shots])

    @property
    def validation(self) -> float:
        """The geometric mean over all K; infinite where an error was not finite, which is null in JSON."""
        errors = [one["validation"] for one in self.metrics["evaluation"]["shots"].values()]
        return geometric_mean([math.inf if error is None else error for error in errors])

    def errors(self) -> dict[str, float]:
        """Mean squared errors in standardised units: the method's (under its own name) and the baselines'."""
        own = self.here["mse"][-1]
        baselines = self.metrics["evaluation"].get("baselines", {})
        others = {name: one[self.shots]["mse"] for name, one in baselines.items()}
        return {self.method: math.inf if own is None else own} | others


class Evaluated(NamedTuple):
    """All results on one table, a list over splits each."""

    source: Source
    runs: dict[str, list[Result]]  # by method
    errors: dict[str, list[float]]  # by method or baseline, and of the method that validation chooses
    chosen: list[str]  # by validation

    def means(self) -> dict[str, float]:
        return {name: float(np.mean(errors)) for name, errors in self.errors.items()}


# ---- runs


def runs_of(source: Source, args: argparse.Namespace) -> list[Run]:
    folder = args.output / "benchmarks" / "runs" / "tables"
    settings = {"DATA": str(source.path), "SUPPORT_FROM": source.support}
    if source.columns:
        settings["COLUMNS"] = list(source.columns)
    label, smaller = f"{source.name} {source.support}", QUICK if args.quick else {}
    return [
        new_run(label, method, "table", folder, settings | {"RANDOM_SEED": split}, smaller)
        for method in args.methods
        for split in args.splits
    ]


def evaluated(source: Source, runs: Sequence[Run]) -> Evaluated:
    found: dict[str, list[Result]] = {}
    for run in runs:
        name = run.method.upper()
        shots = str(run.read("full_report.json")["config"]["SUPPORT_SAMPLES"])
        found.setdefault(name, []).append(Result(name, run.read("metrics.json"), shots))
    by_split = [
        dict(item for result in results for item in result.errors().items()) for results in zip(*found.values(), strict=True)
    ]
    errors = {name: [one[name] for one in by_split] for name in by_split[0]}
    chosen = [min(results, key=lambda result: result.validation).method for results in zip(*found.values(), strict=True)]
    errors[CHOSEN] = [one[name] for one, name in zip(by_split, chosen, strict=True)]
    return Evaluated(source, found, errors, chosen)


# ---- the document


def number(error: float) -> str:
    return f"{error:.4f}" if error < 100 else f"{error:.3g}"


def section(one: Evaluated) -> str:
    """The part of one table."""
    first = next(iter(one.runs.values()))[0]
    unit = first.here["rmse"][-1] / np.sqrt(first.here["mse"][-1])
    rows = []
    for name, mean in sorted(one.means().items(), key=lambda item: item[1]):
        each = " / ".join(f"{error:.4g}" for error in one.errors[name])
        rows.append([name, number(mean), each, f"{unit * np.sqrt(mean):.4g}", *training_cells(one.runs.get(name, []))])
    header = ["", "mean squared error", "each split", "in own unit, about", "90% interval: holds, width", "seconds of training"]
    lines = [f"## {one.source.title}, K = {first.shots}", "", table(header, rows), ""]
    lines += [f"Chosen by validation error: {', '.join(one.chosen)}.", ""]
    for split, name in enumerate(one.chosen):
        lines.append(f"* split {split}, {one.runs[name][split].metrics['evaluation']['verdict']}")
    return "\n".join(lines) + "\n"


def training_cells(results: Sequence[Result]) -> list[str]:
    """What the 90% intervals hold and how wide they are, and seconds of training; means over splits, empty for a baseline."""
    if not results:
        return ["", ""]
    seconds = f"{np.mean([one.metrics['performance']['train_seconds'] for one in results]):.0f}"
    intervals = [one.here["interval"] for one in results if one.here.get("interval")]
    if not intervals:
        return ["", seconds]
    coverage, width = (np.mean([one[key] for one in intervals]) for key in ("coverage", "width"))
    return [f"{coverage:.1%}, {width:.3g}", seconds]


def overall(tables: Sequence[Evaluated]) -> dict[str, float]:
    """The geometric mean over tables of each method and baseline."""
    means = [one.means() for one in tables]
    return {name: geometric_mean([one[name] for one in means]) for name in means[0]}


def figure(tables: Sequence[Evaluated]) -> Figure:
    """Each error relative to the best baseline of the table, a panel for each table, the best one overall on top."""
    columns = len(tables) if len(tables) <= 4 else -(-len(tables) // 2)
    rows = -(-len(tables) // columns)
    made, axes = figure_grid(rows, columns, 3.6 * columns, 4.2 * rows, sharey=True)
    names = sorted(means := overall(tables), key=means.__getitem__, reverse=True)
    for axis in axes.flat[len(tables) :]:
        axis.set_visible(False)
    for axis, one in zip(axes.flat, tables, strict=False):
        errors = one.means()
        best = min(error for name, error in errors.items() if name not in one.runs and name != CHOSEN)
        for place, name in enumerate(names):
            ratio = errors[name] / best
            marker = ">" if ratio > FARTHEST else MARKERS[place % 6]
            axis.plot([min(ratio, FARTHEST)], [place], marker, color=CYCLE[place % 6], ms=7)
        axis.axvline(1, color="0.6", lw=1, label="best baseline")
        axis.set(title=one.source.title, xlabel="error, relative to the best baseline", xscale="log")
        low, high = axis.get_xlim()
        ticks = [tick for tick in (0.5, 0.7, 1, 1.5, 2, 3, 5, 10, 20, 50) if low <= tick <= high]
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.set_xticks([], minor=True)
    axes[0, 0].set_yticks(range(len(names)), names)
    shared_legend(made, axes)
    return made


def document(args: argparse.Namespace, command: str, protocols: Mapping[str, Sequence[Evaluated]]) -> str:
    """The contents of TABLES.md."""
    means = {protocol: overall(tables) for protocol, tables in protocols.items()}
    order = sorted(means["random support points"].items(), key=lambda item: item[1])
    rows = [[name, *(number(one[name]) for one in means.values())] for name, _ in order]
    forecast = "\nForecast: the support points are the first of each subject." if args.forecast else ""
    head = f"""\
# Tables: methods and baselines on the same draws

![Errors relative to the best baseline](results/tables.png)

Made by `{command}`: {len(args.splits)} splits over subjects,
default settings. Errors are mean squared errors on all remaining points of the test subjects, in squared standard
deviations of the training subjects' target. Chosen by validation: of each split, the method with the lowest
validation error (geometric mean over subjects and over the run's EVAL_SHOTS). In the figure an arrow stands for more
than 50 times the error of the best baseline.{forecast}

Machine: {machine_line(machine())}.

## Geometric mean over tables

{table(["mean squared error", *means], rows)}
"""
    return "\n".join([head, *(section(one) for tables in protocols.values() for one in tables)])


def command_line(args: argparse.Namespace) -> str:
    """The command, without folders."""
    words = [word for path, *columns in args.table for word in ("--table", Path(path).name, *columns)]
    if args.methods != list(METHODS):
        words += ["--methods", *args.methods]
    words += [f"--{flag}" for flag in ("forecast", "quick") if getattr(args, flag)]
    return " ".join(["python benchmarks/tables/methods.py", *words])


def run(args: argparse.Namespace) -> None:
    tables = [(name, ROOT / "examples" / f"{name}.csv", columns) for name, columns in TABLES.items()]
    tables += [(Path(path).stem, Path(path).resolve(), tuple(columns)) for path, *columns in args.table]
    supports = {"random support points": "random"} | ({"forecast": "first"} if args.forecast else {})
    protocols = {}
    for protocol, support in supports.items():
        sources = [Source(*one, support) for one in tables]
        runs = [runs_of(source, args) for source in sources]
        train([one for of_table in runs for one in of_table], args.workers)
        protocols[protocol] = [evaluated(*one) for one in zip(sources, runs, strict=True)]
    contents = {
        "benchmarks/TABLES.md": document(args, command_line(args), protocols),
        "benchmarks/results/tables.png": figure([one for found in protocols.values() for one in found]),
    }
    write(args.output, contents)


def main(argv: Sequence[str] | None = None) -> int:
    parser = new_parser(__doc__)
    parser.add_argument("--table", nargs="+", action="append", default=[], metavar="WORD", help="a file, then its columns")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--splits", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--forecast", action="store_true", help="also from the first points of each subject")
    add_output_flag(parser)
    args = parse(parser, argv, usual={"workers": 1}, quick={"workers": 0})
    try:
        run(args)
    except RunError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.code
    return 0


if __name__ == "__main__":
    sys.exit(main())

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
import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the project, wherever the script is called from

from matplotlib.figure import Figure

from benchmarks.common import ROOT, machine, machine_line, progress, table
from evaluation.statistics import geometric_mean
from registry import METHODS
from system.errors import RunError
from visualization import CYCLE, MARKERS, figure_grid, shared_legend

TABLES = {"chicks": ("task=Chick", "x=Time", "y=weight"), "spruce": ()}  # in examples/
FARTHEST = 50  # times the best baseline's error: the end of the figure's axis
QUICK = ("EPOCHS=2", "HIDDEN_DIM=8", "COMPILE=never", "VALIDATION_INTERVAL=1")


def finite(error: float | None) -> float:
    """An error as JSON has it: null where it was not finite."""
    return math.inf if error is None else error


def number(error: float) -> str:
    return f"{error:.4f}" if error < 100 else f"{error:.3g}"


class Source(NamedTuple):
    name: str
    path: Path
    columns: tuple[str, ...]


class Result(NamedTuple):
    """What one run says: errors at its own K, and of the baselines on the same draws."""

    metrics: dict[str, Any]
    shots: str
    validation: float
    seconds: float

    def errors(self) -> dict[str, float]:
        """Mean squared errors in standardised units: the method's (under its own name) and the baselines'."""
        evaluation = self.metrics["evaluation"]
        found = {self.metrics["method"].upper(): finite(evaluation["shots"][self.shots]["mse"][-1])}
        return found | {name: one[self.shots]["mse"] for name, one in evaluation.get("baselines", {}).items()}


def result(source: Source, method: str, split: int, forecast: bool, args: argparse.Namespace) -> Result:
    """The result of a run, made in a process of its own where it is missing; raises `RunError` where that fails."""
    name = f"{source.name}-{'first' if forecast else 'random'}-{split}{'-quick' if args.quick else ''}"
    directory = args.runs / f"{method.upper()}_Table_{name}"
    if not (directory / "report.html").exists():
        settings = [f"SUPPORT_FROM={'first' if forecast else 'random'}", *(QUICK if args.quick else ())]
        words = ["--method", method, "--data", str(source.path), "--seed", str(split), "--output", str(args.runs)]
        words += ["--columns", *source.columns] if source.columns else []
        words += ["--name", name, *(word for text in settings for word in ("--set", text))]
        words = ["--resume", str(directory)] if (directory / "checkpoints" / "last.pt").exists() else words
        progress(f"{source.name}, split {split}, {method}")
        command, variables = [sys.executable, str(ROOT / "main.py"), *words], os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, env=variables)
        if done.returncode:
            raise RunError(f"{directory} is not complete (got {done.stderr.strip()[-300:]}; expected a run that ends)", 1)
    metrics = json.loads((directory / "metrics.json").read_bytes())
    report = json.loads((directory / "full_report.json").read_bytes())
    validation = geometric_mean([finite(one["validation"]) for one in metrics["evaluation"]["shots"].values()])
    return Result(metrics, str(report["config"]["SUPPORT_SAMPLES"]), validation, metrics["performance"]["train_seconds"])


# ---- the document


def block(source: Source, found: dict[str, list[Result]]) -> tuple[list[str], dict[str, float]]:
    """The part of one table: its lines, and each entry's mean error over splits."""
    splits = range(len(next(iter(found.values()))))
    errors = [{name: value for runs in found.values() for name, value in runs[split].errors().items()} for split in splits]
    means = {name: float(np.mean([one[name] for one in errors])) for name in errors[0]}
    chosen = [min(found, key=lambda method: found[method][split].validation).upper() for split in splits]
    means["chosen by validation"] = float(np.mean([errors[split][chosen[split]] for split in splits]))
    first = next(iter(found.values()))[0]
    unit = first.metrics["evaluation"]["shots"][first.shots]
    scale = unit["rmse"][-1] / np.sqrt(unit["mse"][-1])
    rows = []
    for name, mean in sorted(means.items(), key=lambda item: item[1]):
        runs = found.get(name.lower(), [])
        intervals = [one for run in runs if (one := run.metrics["evaluation"]["shots"][run.shots].get("interval"))]
        about = [float(np.mean([one[key] for one in intervals])) for key in ("coverage", "width")] if intervals else []
        held = f"{about[0]:.1%}, {about[1]:.3g}" if about else ""
        seconds = f"{np.mean([run.seconds for run in runs]):.0f}" if runs else ""
        each = " / ".join(f"{errors[split][name if name in errors[split] else chosen[split]]:.4g}" for split in splits)
        rows.append([name, number(mean), each, f"{scale * np.sqrt(mean):.4g}", held, seconds])
    header = ["", "mean squared error", "each split", "in own unit, about", "90% interval: holds, width", "seconds of training"]
    lines = [f"## {source.name}, K = {first.shots}", "", table(header, rows), ""]
    lines += [f"Chosen by validation error: {', '.join(chosen)}.", ""]
    for split in splits:
        evaluation = found[chosen[split].lower()][split].metrics["evaluation"]
        lines.append(f"* split {split}, {evaluation['verdict']}")
    return [*lines, ""], means


def geometric_means(means: dict[str, dict[str, float]]) -> dict[str, float]:
    """Of each entry over the tables."""
    return {name: geometric_mean([one[name] for one in means.values()]) for name in next(iter(means.values()))}


def figure(means: dict[str, dict[str, float]]) -> Figure:
    """Each entry's error relative to the best baseline of the table, a panel for each table, the best one overall on top."""
    columns = len(means) if len(means) <= 4 else -(-len(means) // 2)
    rows = -(-len(means) // columns)
    made, axes = figure_grid(rows, columns, 3.6 * columns, 4.2 * rows, sharey=True)
    overall = geometric_means(means)
    names = sorted(overall, key=overall.__getitem__, reverse=True)
    for axis in axes.flat[len(means) :]:
        axis.set_visible(False)
    for axis, (title, one) in zip(axes.flat, means.items(), strict=False):
        best = min(value for name, value in one.items() if name.lower() not in METHODS and name != "chosen by validation")
        for place, name in enumerate(names):
            ratio = one[name] / best
            marker = ">" if ratio > FARTHEST else MARKERS[place % 6]
            axis.plot([min(ratio, FARTHEST)], [place], marker, color=CYCLE[place % 6], ms=7)
        axis.axvline(1, color="0.6", lw=1, label="best baseline")
        axis.set(title=title, xlabel="error, relative to the best baseline", xscale="log")
        low, high = axis.get_xlim()
        ticks = [tick for tick in (0.5, 0.7, 1, 1.5, 2, 3, 5, 10, 20, 50) if low <= tick <= high]
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.set_xticks([], minor=True)
    axes[0, 0].set_yticks(range(len(names)), names)
    shared_legend(made, axes)
    return made


def command(args: argparse.Namespace) -> str:
    """The command line, without folders."""
    words = [word for path, *columns in args.table for word in ("--table", Path(path).name, *columns)]
    words += ["--methods", *args.methods] if args.methods != list(METHODS) else []
    words += ["--forecast"] * args.forecast + ["--quick"] * args.quick
    return " ".join(["python benchmarks/tables/methods.py", *words])


def document(args: argparse.Namespace, sources: Sequence[Source]) -> None:
    lines, groups = [], dict[str, dict[str, dict[str, float]]]()
    for forecast in (False, True) if args.forecast else (False,):
        means = groups["forecast" if forecast else "random support points"] = {}
        for source in sources:
            found = {one: [result(source, one, split, forecast, args) for split in args.splits] for one in args.methods}
            title = source.name + (", forecast" if forecast else "")
            part, means[title] = block(source._replace(name=title), found)
            lines += part
    overall = {protocol: geometric_means(means) for protocol, means in groups.items()}
    order = sorted(overall["random support points"].items(), key=lambda item: item[1])
    rows = [[name, *(number(one[name]) for one in overall.values())] for name, _ in order]
    head = [
        "# Tables: methods and baselines on the same draws",
        "",
        "![Errors relative to the best baseline](results/tables.png)",
        "",
        f"Made by `{command(args)}`: {len(args.splits)} splits over subjects,",
        "default settings. Errors are mean squared errors on all remaining points of the test subjects, in squared standard",
        "deviations of the training subjects' target. Chosen by validation: of each split, the method with the lowest",
        "validation error (geometric mean over subjects and over the run's EVAL_SHOTS). In the figure an arrow stands for more",
        "than 50 times the error of the best baseline.",
        *(["Forecast: the support points are the first of each subject."] if args.forecast else []),
        "",
        f"Machine: {machine_line(machine('cpu'))}.",
        "",
        "## Geometric mean over tables",
        "",
        table(["mean squared error", *overall], rows),
        "",
    ]
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "results").mkdir(exist_ok=True)
    (args.output / "TABLES.md").write_text("\n".join([*head, *lines]).rstrip() + "\n", encoding="utf-8")
    figure({title: one for means in groups.values() for title, one in means.items()}).savefig(
        args.output / "results" / "tables.png", dpi=130
    )
    print(f"written: {args.output / 'TABLES.md'}")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", nargs="+", action="append", default=[], metavar="WORD", help="a file, then its columns")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--splits", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--forecast", action="store_true", help="also from the first points of each subject")
    parser.add_argument("--quick", action="store_true", help="a tiny version that tests the script; its numbers mean nothing")
    parser.add_argument("--runs", type=Path, default=ROOT / "benchmarks" / "runs" / "tables")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks")
    args = parser.parse_args(argv)
    sources = [Source(name, ROOT / "examples" / f"{name}.csv", columns) for name, columns in TABLES.items()]
    sources += [Source(Path(path).stem, Path(path).resolve(), tuple(columns)) for path, *columns in args.table]
    try:
        document(args, sources)
    except RunError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.code
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The answers of a table's series of methods, their mean and the baselines: one command makes the numbers of TABLES.md.

    python benchmarks/tables/methods.py                                  # the tables of examples/, as --data alone trains
    python benchmarks/tables/methods.py --table mine.csv task=Patient x=Hours y=Level
    python benchmarks/tables/methods.py --methods leo r2d2
    python benchmarks/tables/methods.py --quick                          # a tiny version that tests the script

Series are in benchmarks/runs/tables: one that is complete is not made again. Every subject is tested once (cross-fitting), with
random support points, and with the first ones (forecast).
"""

from __future__ import annotations

import argparse
import io
import json
import math
import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the project, wherever the script is called from

from matplotlib.figure import Figure

from benchmarks.common import ROOT, filled, machine, machine_line, new_parser, parse, progress, table, write
from benchmarks.project import geometric_mean, main_without_figures
from registry import METHODS, TABLE_METHODS
from system.errors import RunError
from visualization import CYCLE, MARKERS, figure_grid, shared_legend

TABLES = {"chicks": ["task=Chick", "x=Time", "y=weight"], "spruce": []}  # in examples/
PROTOCOLS = {"random": "random support points", "first": "forecast"}
MIXED, FARTHEST = "MIXED-MODEL", 50  # times the mixed model's error: the end of the figure's axis
QUICK = ["EPOCHS=2", "HIDDEN_DIM=8", "COMPILE=never", "VALIDATION_INTERVAL=1"]


class Result(NamedTuple):
    """What a run says at its own K; of a baseline the error alone is known."""

    mse: float  # in standardised units
    rmse: float  # in the target's own unit
    interval: Mapping[str, float] = {}  # of 90%: coverage and width
    seconds: float = math.nan  # of training


class Table(NamedTuple):
    title: str
    shots: int
    results: dict[str, Result]  # by method, mean and baseline
    verdict: str

    def ratio(self, name: str) -> float:
        """The error relative to that of the linear mixed model."""
        return self.results[name].mse / self.results[MIXED].mse


def read(title: str, folder: Path) -> Table:
    """What the series in a folder found."""
    results: dict[str, Result] = {}
    for run in sorted(folder.glob("*_Table_series")):
        metrics, config = (json.loads((run / f"{name}.json").read_bytes()) for name in ("metrics", "config"))
        evaluation, shots = metrics["evaluation"], config["SUPPORT_SAMPLES"]
        here, seconds = evaluation["shots"][str(shots)], metrics["performance"]["train_seconds"]
        error, root = (math.inf if here[key][-1] is None else here[key][-1] for key in ("mse", "rmse"))
        results[run.name.split("_")[0]] = Result(error, root, here.get("interval") or {}, seconds)
        for name, one in evaluation["baselines"].items():
            if name != "linear mixed model":
                results[name] = Result(one[str(shots)]["mse"], one[str(shots)]["rmse"])
        if run.name.startswith("MEAN"):
            verdict = evaluation["verdict"]
    return Table(title, shots, results, verdict)


# ---- the document


def table_text(one: Table) -> str:
    rows = []
    for name, found in sorted(one.results.items(), key=lambda item: item[1].mse):
        held = f"{found.interval['coverage']:.0%}, {found.interval['width']:.3g}" if found.interval else ""
        seconds = f"{found.seconds:.0f}" if found.seconds > 0 else ""
        rows.append([name, f"{found.mse:.4f}", f"{one.ratio(name):.3f}", f"{found.rmse:.4g}", held, seconds])
    header = ["", "mean squared error", "to mixed model", "root, own unit", "90% interval: holds, width", "seconds of training"]
    return f"## {one.title}, K = {one.shots}\n\n{table(header, rows)}\n\n{one.verdict}"


def overall(tables: Sequence[Table]) -> dict[str, tuple[float, float]]:
    """Of each predictor the geometric mean of its ratios to the mixed model, and its worst ratio to the best single one."""
    found = {}
    for name in tables[0].results:
        best = [min(found.mse for other, found in one.results.items() if other != "MEAN") for one in tables]
        worst = max(one.results[name].mse / error for one, error in zip(tables, best, strict=True))
        found[name] = geometric_mean([one.ratio(name) for one in tables]), worst
    return found


def figure(tables: Sequence[Table]) -> Figure:
    """Each error relative to the linear mixed model's, a panel for each table, the best one overall on top."""
    columns = min(4, len(tables))
    rows = -(-len(tables) // columns)
    made, axes = figure_grid(rows, columns, 3.6 * columns, 3.4 * rows, sharey=True)
    means = overall(tables)
    names = sorted(means, key=lambda name: means[name][0], reverse=True)
    for axis in axes.flat[len(tables) :]:
        axis.set_visible(False)
    for axis, one in zip(axes.flat, tables, strict=False):
        for place, name in enumerate(names):
            ratio = one.ratio(name)
            marker = ">" if ratio > FARTHEST else MARKERS[place % 6]
            axis.plot([min(ratio, FARTHEST)], [place], marker, color=CYCLE[place % 6], ms=7)
        axis.axvline(1, color="0.6", lw=1, label="linear mixed model")
        axis.set(title=one.title, xlabel="error, relative to the mixed model", xscale="log")
        low, high = axis.get_xlim()
        ticks = [tick for tick in (0.5, 0.7, 1, 1.5, 2, 3, 5, 10, 20, 50) if low <= tick <= high]
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.set_xticks([], minor=True)
    axes[0, 0].set_yticks(range(len(names)), names)
    shared_legend(made, axes)
    return made


# ---- the command


def series(args: argparse.Namespace, name: str, path: Path, columns: Sequence[str], support: str) -> Table:
    """Train the methods on a table and average them, unless that is complete."""
    folder = args.output / "benchmarks" / "runs" / "tables" / f"{name}-{support}-{'-'.join(args.methods)}"
    report = folder / "MEAN_Table_series" / "full_report.json"
    if not (report.exists() and json.loads(report.read_bytes())["status"] == "complete"):
        shutil.rmtree(folder, ignore_errors=True)
        progress(f"{name}, {PROTOCOLS[support]} ...")
        argv = ["--data", str(path), "--output", str(folder), "--name", "series", "--method", *args.methods]
        argv += (["--columns", *columns] if columns else []) + ["--set", f"SUPPORT_FROM={support}"]
        output = io.StringIO()
        with redirect_stdout(output), redirect_stderr(output):
            code = main_without_figures([*argv, *(QUICK if args.quick else [])])
        if code:
            raise RunError(f"{name} was not trained (got exit code {code}: {output.getvalue().splitlines()[-1:]}; expected 0)")
    return read(name if support == "random" else f"{name}, {PROTOCOLS[support]}", folder)


def compare(args: argparse.Namespace, arguments: Sequence[str]) -> None:
    sources = [(name, ROOT / "examples" / f"{name}.csv", columns) for name, columns in TABLES.items()]
    sources += [(Path(path).stem, Path(path).resolve(), columns) for path, *columns in args.table]
    found = {support: [series(args, *source, support) for source in sources] for support in PROTOCOLS}
    means = {support: overall(tables) for support, tables in found.items()}
    order = sorted(means["random"], key=lambda name: means["random"][name][0])
    rows = [[name, *(f"{mean:.3f} ({worst:.2f})" for mean, worst in (one[name] for one in means.values()))] for name in order]
    command = " ".join(["python benchmarks/tables/methods.py", *(Path(word).name for word in arguments)])
    tables = [one for of_protocol in found.values() for one in of_protocol]
    contents: dict[str, Any] = {
        "provenance": f"* command: `{command}`\n* machine: {machine_line(machine())}",
        "overall": table(["", *PROTOCOLS.values()], rows),
        "tables": "\n\n".join(map(table_text, tables)),
    }
    document = filled(args.output, "benchmarks/TABLES.md", contents)
    write(args.output, {"benchmarks/TABLES.md": document, "benchmarks/results/tables.png": figure(tables)})


def main(argv: Sequence[str] | None = None) -> int:
    parser = new_parser(__doc__)
    parser.add_argument("--table", nargs="+", action="append", default=[], metavar="WORD", help="a file, then its columns")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=TABLE_METHODS, help="with mixed-model")
    args = parse(parser, argv, usual={}, quick={})
    if "mixed-model" not in args.methods or len(args.methods) < 2:
        parser.error("--methods can't be used (expected mixed-model, which others are compared with, and another one)")
    try:
        compare(args, sys.argv[1:] if argv is None else argv)
    except RunError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.code
    return 0


if __name__ == "__main__":
    sys.exit(main())

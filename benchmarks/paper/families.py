"""Every method on every family of functions, with its defaults: the families' table and figure of PAPER.md.

    python benchmarks/paper/families.py            # trains what is missing: about two hours on two cores
    python benchmarks/paper/families.py --quick    # a tiny version that tests the script

Runs are in benchmarks/runs/families: one that is complete is not made again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the project, wherever the script is called from

import numpy as np
from matplotlib.figure import Figure

from benchmarks.common import filled, machine, machine_line, new_parser, parse, table, write
from benchmarks.paper.methods import QUICK
from benchmarks.runs import Run, commits, new_run, train
from registry import METHODS
from system.errors import RunError
from visualization import CYCLE, MARKERS, figure_grid, shared_legend

FAMILIES = ("sinusoid", "sine-line", "damped", "five", "gp")
SHOTS = (5, 10, 20)
BASELINES = ("best single function", "exact posterior")


class Cell(NamedTuple):
    """One predictor on one family at one K: mean squared errors of all seeds, and how many of their test tasks diverged."""

    errors: list[float]  # without the tasks that diverged
    diverged: int

    @property
    def mean(self) -> float:
        return float(np.mean(self.errors))

    @property
    def text(self) -> str:
        number = f"{self.mean:.3g}"
        return f"{number} ({self.diverged} diverged)" if self.diverged else number


Cells = Mapping[tuple[str, int, str], Cell]  # by family, K, predictor


def read(runs: Sequence[Run]) -> Cells:
    found: dict[tuple[str, int, str], Cell] = {}

    def add(key: tuple[str, int, str], error: float, diverged: int = 0) -> None:
        old = found.get(key, Cell([], 0))
        found[key] = Cell([*old.errors, error], old.diverged + diverged)

    for run in runs:
        evaluation = run.read("metrics.json")["evaluation"]
        for shots in SHOTS:
            one = evaluation["shots"][str(shots)]
            add((run.tasks, shots, run.method), one.get("others", one)["mse"][-1], one.get("diverged", 0))
            for name in BASELINES if run.method == "mixed-model" else ():
                if known := evaluation["baselines"].get(name):
                    add((run.tasks, shots, name), known[str(shots)]["mse"])
    return found


def families_table(cells: Cells, methods: Sequence[str]) -> str:
    """A row for each family and K, a column for each predictor."""
    names = [*methods, *BASELINES]
    rows = []
    for family in FAMILIES:
        for shots in SHOTS:
            here = [cells.get((family, shots, name)) for name in names]
            best = min(one.mean for one in here[: len(methods)] if one)
            texts = ["" if one is None else f"**{one.text}**" if one.mean == best else one.text for one in here]
            rows.append([family, str(shots), *texts])
    return table(["family", "K", *names], rows, left=2)


def families_figure(cells: Cells, methods: Sequence[str]) -> Figure:
    """A panel for each family: errors against K."""
    figure, axes = figure_grid(1, len(FAMILIES), 3.1 * len(FAMILIES), 4.2)
    for family, axis in zip(FAMILIES, axes[0], strict=True):
        for place, name in enumerate([*methods, *BASELINES]):
            known = {shots: cells[family, shots, name].mean for shots in SHOTS if (family, shots, name) in cells}
            color, line = CYCLE[place % len(CYCLE)], ("-", "--")[place // len(CYCLE) % 2]
            style = {"color": color, "marker": MARKERS[place % len(MARKERS)], "ls": line, "ms": 5}
            if name in BASELINES:
                style = {"color": "0.4", "ls": ":" if name == BASELINES[0] else "-", "lw": 2.5, "zorder": 1}
            axis.plot(list(known), list(known.values()), label=name, **style)
        axis.set(title=family, xlabel="support points K", xscale="log", yscale="log")
        axis.set_xticks(SHOTS, map(str, SHOTS))
        axis.set_xticks([], minor=True)
    axes[0, 0].set_ylabel("mean squared error on test tasks")
    shared_legend(figure, axes)
    return figure


def compare(args: argparse.Namespace) -> None:
    smaller = QUICK if args.quick else {}
    runs = [
        new_run(tasks, method, tasks, args.output / "benchmarks" / "runs" / "families", {"RANDOM_SEED": seed}, smaller)
        for seed in args.seeds
        for method in args.methods
        for tasks in FAMILIES
    ]
    train(runs, args.workers)
    cells = read(runs)
    lines = [
        f"* command: `python benchmarks/paper/families.py`, seeds {', '.join(map(str, args.seeds))}",
        f"* the runs were trained at {', '.join(commits(runs))}",
        f"* machine: {machine_line(machine())}",
    ]
    parts = {"provenance of families": "\n".join(lines), "all families": families_table(cells, args.methods)}
    document = filled(args.output, "benchmarks/PAPER.md", parts)
    write(args.output, {"benchmarks/PAPER.md": document, "docs/families.png": families_figure(cells, args.methods)})


def main(argv: Sequence[str] | None = None) -> int:
    parser = new_parser(__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", metavar="N", help="default: 0 1 2, and 0 with --quick")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    args = parse(parser, argv, {"seeds": [0, 1, 2], "workers": 2}, {"seeds": [0], "workers": 0})
    try:
        compare(args)
    except RunError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.code
    return 0


if __name__ == "__main__":
    sys.exit(main())

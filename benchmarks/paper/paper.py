"""The MAML paper's table and curves, LEO's figure, and the checks on all of them: one command.

    python benchmarks/paper/paper.py            # trains what is missing (about 40 minutes on two cores), writes PAPER.md
    python benchmarks/paper/paper.py --quick    # a tiny version of everything, about a minute, under benchmarks/runs/quick

Runs are in benchmarks/runs/: a complete one is not trained again, an interrupted one is resumed.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the project, wherever the script is called from

import numpy as np

from benchmarks.common import ROOT, available_threads, filled, new_parser, parse, progress, write
from benchmarks.paper import checks, sine_line
from benchmarks.paper.baselines import FineTuned, oracle, pretrained, random_start
from benchmarks.paper.checks import Check, PairedComparison
from benchmarks.paper.document import GRADIENTS, check_table, order_table, paper_table, provenance, step_size_table
from benchmarks.paper.figures import adaptation_animation, error_against_gradients, error_against_shots
from benchmarks.paper.methods import BASELINES, QUICK, ROWS, TRAININGS
from benchmarks.project import csv_table, errors, load_best, read_run
from benchmarks.runs import Run, new_run, train, training_seconds
from config import ConfigError, parse_assignment
from dataset import Points, SinusoidalTaskGenerator
from evaluation.comparison import Comparison, Entry, compare_entries, entries
from learner import predict_tasks
from regressor import FewShotRegressor
from system.errors import RunError

FINN = SinusoidalTaskGenerator().published  # the MAML paper's own row
POINTS = ROOT / "docs" / "points.csv"  # of 2.5 sin(x - 1), without noise


# ---- measuring


def measure(runs: Sequence[Run]) -> tuple[Comparison, list[tuple[int, FineTuned]]]:
    """All methods and baselines on the sinusoids' test tasks, in the order of `ROWS`; and (seed, fine-tuned baseline)."""
    order, found = list(ROWS), {(run.label, run.seed): run for run in runs}
    methods = {key: read_run(run.directory) for key, run in found.items() if key[0] in ROWS and key[0] not in BASELINES}
    entries(list(methods.values()))  # raises RunError for runs whose test tasks differ
    measured = [Entry(label, one.errors) for (label, _), one in methods.items()]
    tuned = []
    for seed in sorted({run.seed for run in runs}):
        progress(f"baselines, seed {seed} ...")
        config = found["MAML", seed].config
        measured.append(oracle(found["oracle", seed].directory, config))
        for baseline in (pretrained(found["pretrained", seed].directory, config), random_start(config)):
            measured.append(baseline.entry)
            tuned.append((seed, baseline))
    measured.sort(key=lambda entry: order.index(entry.label))
    tuned.sort(key=lambda one: order.index(one[1].entry.label))
    return compare_entries(measured), tuned


def prediction_check(leo_runs: Sequence[Run]) -> Check:
    """The points of docs/points.csv, adapted to, against the function that they are from."""
    x, y = np.loadtxt(POINTS, delimiter=",", skiprows=1).T
    found = []
    for run in leo_runs:
        model = FewShotRegressor.load(run.directory)
        grid = np.linspace(*model.x_range[:, 0], 201)
        found.append(float(np.square(model.fit(x, y).predict(grid) - 2.5 * np.sin(grid - 1)).mean()))
    measured = ", ".join(f"{error:.2g}" for error in found) + " (each seed)"
    what = "`--predict` on docs/points.csv, 10 points of 2.5 sin(x - 1), LEO"
    return Check(what, "error on the whole curve below 0.02", measured, max(found) < 0.02)


def sinusoid_checks(found: Comparison, pairs: Sequence[PairedComparison], leo_runs: Sequence[Run]) -> list[Check]:
    mean = {(row.group, row.shots, row.gradients): row.mean for row in found.rows}
    last, variant = found.last, "LEO, trained 5-shot"
    what = f"5-shot after 10 gradients: {variant}, against MAML"
    return [
        checks.better_than_published([mean["MAML", 5, step] for step in GRADIENTS], [FINN[5][step] for step in GRADIENTS]),
        checks.times_better(what, mean[variant, 5, last], mean["MAML", 5, last], 20),
        checks.times_better("10-shot after 10 gradients: LEO against MAML", mean["LEO", 10, last], mean["MAML", 10, last], 20),
        checks.order_check(pairs),
        prediction_check(leo_runs),
    ]


def time_check(runs: Sequence[Run], trained: int, took: float) -> Check:
    """How long all of it takes; unknown to a call that found some runs complete."""
    what, must = "all of `benchmarks/paper/paper.py`", "under 60 minutes on 2 cores"
    if trained < len(runs):
        return Check(what, must, f"{training_seconds(runs):.0f} s of training in all, on one core each", None)
    return Check(what, must, f"{took / 60:.0f} minutes", took < 3600)


def animation(maml_run: Run, leo_run: Run) -> bytes:
    """MAML beside LEO, 5-shot, on the test task on which MAML's last error is the median one."""
    maml, leo = load_best(maml_run.directory), load_best(leo_run.directory)
    params, tasks, _ = maml.held_out("test", 5)
    steps, generator = maml.config.EVAL_STEPS, maml.generator
    last = errors(maml.learner, tasks, steps)[:, -1]
    place = int(np.argsort(last)[len(last) // 2])
    support = Points(*(part[place : place + 1] for part in tasks.support))
    grid = np.linspace(*generator.x_range, 201, dtype=np.float32)
    x = grid[None, :, None]
    paths = {label: predict_tasks(one.learner, support, x, steps)[0][0] for label, one in {"MAML": maml, "LEO": leo}.items()}
    truth = generator.truth(params[place : place + 1], x)
    assert truth is not None  # a sinusoid is known everywhere
    title = "5 points of a new sinusoid"
    return adaptation_animation(grid, truth[0, :, 0], support.x[0, :, 0], support.y[0, :, 0], paths, title)


# ---- the command


def parse_flags(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = new_parser(__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", metavar="N", help="default: 0 1 2, and 0 1 with --quick")
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="a setting of all runs")
    parser.add_argument("--workers", type=int, metavar="N", help="runs at a time, each on one core; default: at most 2")
    workers = min(2, available_threads())
    args = parse(parser, argv, {"seeds": [0, 1, 2], "workers": workers}, {"seeds": [0, 1], "workers": 0})
    if args.workers < 0 or len(set(args.seeds)) < len(args.seeds):
        parser.error(f"--workers or --seeds can't be used (got {args.workers}, {args.seeds}; expected a count, and no repeats)")
    return args


def compare(args: argparse.Namespace, arguments: Sequence[str]) -> list[Check]:
    """Train, measure, write; returns the checks."""
    began = time.perf_counter()
    smaller = (QUICK if args.quick else {}) | dict(map(parse_assignment, args.set))
    folder = args.output / "benchmarks" / "runs"
    runs = [
        new_run(label, one.method, one.tasks, folder, one.settings | {"RANDOM_SEED": seed}, smaller)
        for seed in args.seeds
        for label, one in TRAININGS.items()
    ]
    trained = train(runs, args.workers)
    by_label = {label: [run for run in runs if run.label == label] for label in TRAININGS}
    found, tuned = measure(runs)
    pairs = checks.compare_in_order({label: values[..., -1] for label, values in found.errors[10].items()})
    mixed = sine_line.measure(by_label["MAML on sine-line"], by_label["LEO on sine-line"], 20 if args.quick else 100)
    progress("figures ...")
    contents: dict[str, Any] = {f"docs/{name}.png": figure for name, figure in mixed.figures.items()}
    contents["docs/paper_gradients.png"] = error_against_gradients(found, FINN)
    contents["docs/paper_shots.png"] = error_against_shots(found, (1, found.last))
    contents["docs/adaptation.gif"] = animation(by_label["MAML"][0], by_label["LEO, trained 5-shot"][0])
    contents["benchmarks/results/paper.csv"] = csv_table(found)
    took = time.perf_counter() - began
    made = [*sinusoid_checks(found, pairs, by_label["LEO"]), *sine_line.checks(mixed), time_check(runs, trained, took)]
    parts = {
        "provenance": provenance(runs, smaller, arguments, trained, took),
        "checks": check_table(made),
        "5-shot": paper_table(found, 5),
        "10-shot": paper_table(found, 10),
        "order": order_table(pairs),
        "step sizes": step_size_table(tuned),
        "families": sine_line.family_table(mixed),
        "samples": sine_line.sample_table(mixed),
    }
    contents["benchmarks/PAPER.md"] = filled(args.output, "benchmarks/PAPER.md", parts)
    write(args.output, contents)
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit code."""
    args = parse_flags(argv)
    try:
        for one in compare(args, sys.argv[1:] if argv is None else argv):
            print(f"{one.verdict}: {one.what}: {one.measured} (must: {one.must})", flush=True)
    except (RunError, ConfigError) as error:
        print(f"error: {error}", file=sys.stderr)
        return error.code if isinstance(error, RunError) else 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # so that the runs can save a checkpoint
    sys.exit(main())

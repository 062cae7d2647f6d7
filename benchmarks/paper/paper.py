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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the project, wherever the script is called from

import numpy as np

from benchmarks.common import ROOT, available_threads, progress
from benchmarks.paper import sine_line
from benchmarks.paper.baselines import FineTuned, load_best, oracle, pretrained, random_start
from benchmarks.paper.checks import (
    Check,
    PairedComparison,
    better_than_published,
    compare_in_order,
    order_check,
    times_better,
)
from benchmarks.paper.document import BASELINES, GRADIENTS, PROTOCOLS, document, provenance
from benchmarks.paper.figures import adaptation_animation, error_against_gradients, error_against_shots
from benchmarks.paper.runs import KINDS, QUICK, Job, job, seconds, train
from commands.compare import read_run
from commands.predict import predict_points
from config import ConfigError, parse_assignment
from dataset import Points, SinusoidalTaskGenerator
from evaluation.comparison import Comparison, Entry, compare_entries, entries
from evaluation.errors import errors
from learner import predict_tasks
from regressor import FewShotRegressor
from report.text import csv_table
from system.errors import RunError
from system.files import figure_bytes, write_atomically
from tables.points import read_request

FINN = SinusoidalTaskGenerator().published  # the MAML paper's own row
POINTS = ROOT / "docs" / "points.csv"  # of 2.5 sin(x - 1), without noise


class Results(NamedTuple):
    """What was measured on the sinusoids."""

    comparison: Comparison
    tuned: list[tuple[int, FineTuned]]  # (seed, a fine-tuned baseline)


# ---- measuring


def measure(jobs: Sequence[Job]) -> Results:
    """All methods and baselines on the sinusoids' test tasks, from finished runs, in the order of `PROTOCOLS`."""
    found = {(one.label, one.seed): one for one in jobs}
    order = list(PROTOCOLS)
    runs = {key: read_run(one.directory) for key, one in found.items() if key[0] in order and key[0] not in BASELINES}
    entries(list(runs.values()))  # raises RunError for runs whose test tasks differ
    measured = [Entry(label, run.errors) for (label, _), run in runs.items()]
    tuned = []
    for seed in sorted({one.seed for one in jobs}):
        progress(f"baselines, seed {seed} ...")
        config = found["MAML", seed].config
        measured.append(oracle(found["oracle", seed].directory, config))
        for one in (pretrained(found["pretrained", seed].directory, config), random_start(config)):
            measured.append(one.entry)
            tuned.append((seed, one))
    measured.sort(key=lambda entry: order.index(entry.label))
    tuned.sort(key=lambda one: order.index(one[1].entry.label))
    return Results(compare_entries(measured), tuned)


def prediction_check(leo_jobs: Sequence[Job]) -> Check:
    """The points of docs/points.csv, adapted to as `--predict` does, against the function that they are from."""
    points, found = read_request(POINTS, 1).points(0), []
    for one in leo_jobs:
        leo = load_best(one.directory)
        model = FewShotRegressor(leo.learner, leo.config.EVAL_STEPS, 1, leo.generator.x_range)
        predicted = predict_points(model, points)
        found.append(float(np.square(predicted.outputs[-1] - 2.5 * np.sin(predicted.x[:, 0] - 1)).mean()))
    measured = ", ".join(f"{error:.2g}" for error in found) + " (each seed)"
    what = "`--predict` on docs/points.csv, 10 points of 2.5 sin(x - 1), LEO"
    return Check(what, "error on the whole curve below 0.02", measured, max(found) < 0.02)


def sinusoid_checks(found: Comparison, pairs: Sequence[PairedComparison], leo_jobs: Sequence[Job]) -> list[Check]:
    means = {(row.group, row.shots, row.gradients): row.mean for row in found.rows}
    last, variant = found.last, "LEO, trained 5-shot"
    what = f"5-shot after 10 gradients: {variant}, against MAML"
    return [
        better_than_published([means["MAML", 5, step] for step in GRADIENTS], [FINN[5][step] for step in GRADIENTS]),
        times_better(what, means[variant, 5, last], means["MAML", 5, last], 20),
        times_better("10-shot after 10 gradients: LEO against MAML", means["LEO", 10, last], means["MAML", 10, last], 20),
        order_check(pairs),
        prediction_check(leo_jobs),
    ]


def time_check(jobs: Sequence[Job], trained: int, took: float) -> Check:
    """How long all of it takes; unknown to a call that found some runs complete."""
    what, must = "all of `benchmarks/paper/paper.py`", "under 60 minutes on 2 cores"
    if trained < len(jobs):
        return Check(what, must, f"{seconds(jobs):.0f} s of training in all, on one core each", None)
    return Check(what, must, f"{took / 60:.0f} minutes", took < 3600)


def animation(maml_job: Job, leo_job: Job) -> bytes:
    """MAML beside LEO, 5-shot, on the test task on which MAML's last error is the median one."""
    maml, leo = load_best(maml_job.directory), load_best(leo_job.directory)
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


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="paper.py", description=str(__doc__).splitlines()[0], allow_abbrev=False)
    parser.add_argument("--quick", action="store_true", help="a tiny version of everything; its results mean nothing")
    parser.add_argument("--seeds", type=int, nargs="+", metavar="N", help="default: 0 1 2, and 0 1 with --quick")
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="a setting of all runs")
    parser.add_argument(
        "--workers", type=int, metavar="N", help="runs at a time, each on one core; default: 2, or as many as there are cores"
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="instead of this project: gets benchmarks/ and docs/")
    args = parser.parse_args(argv)
    args.seeds = args.seeds or ([0, 1] if args.quick else [0, 1, 2])
    args.output = args.output or (ROOT / "benchmarks" / "runs" / "quick" if args.quick else ROOT)
    if args.workers is None:
        args.workers = 0 if args.quick else min(2, available_threads())
    if args.workers < 0 or len(set(args.seeds)) < len(args.seeds):
        parser.error(f"--workers or --seeds can't be used (got {args.workers}, {args.seeds}; expected a count, and no repeats)")
    return args


def run(args: argparse.Namespace, argv: Sequence[str]) -> list[Check]:
    """Train, measure, write; returns the checks."""
    began = time.perf_counter()
    extra = (QUICK if args.quick else {}) | dict(parse_assignment(text) for text in args.set)
    directory = args.output / "benchmarks" / "runs"
    jobs = [job(label, seed, directory, extra) for seed in args.seeds for label in KINDS]
    trained = train(jobs, args.workers)
    by_label = {label: [one for one in jobs if one.label == label] for label in KINDS}
    found, tuned = measure(jobs)
    pairs = compare_in_order({label: values[..., -1] for label, values in found.errors[10].items()})
    mixed = sine_line.measure(by_label["MAML on sine-line"], by_label["LEO on sine-line"], 20 if args.quick else 100)
    progress("figures ...")
    figures = {
        "paper_gradients": error_against_gradients(found, FINN),
        "paper_shots": error_against_shots(found, (1, found.last)),
        **mixed.figures,
    }
    contents = {f"docs/{name}.png": figure_bytes(figure, "png") for name, figure in figures.items()}
    contents["docs/adaptation.gif"] = animation(by_label["MAML"][0], by_label["LEO, trained 5-shot"][0])
    contents["benchmarks/results/paper.csv"] = csv_table(found).encode()
    took = time.perf_counter() - began
    checks = [*sinusoid_checks(found, pairs, by_label["LEO"]), *sine_line.checks(mixed), time_check(jobs, trained, took)]
    origin = provenance(jobs, extra, argv, trained, took)
    contents["benchmarks/PAPER.md"] = document(found, tuned, pairs, checks, origin, sine_line.section(mixed)).encode()
    write(args.output, contents)
    return checks


def write(output: Path, contents: Mapping[str, bytes]) -> None:
    for name, data in contents.items():
        path = output / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, data)
        print(f"written: {path}", flush=True)


def terminate(number: int, frame: Any) -> NoReturn:
    raise SystemExit(128 + number)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit code."""
    args = parse(argv)
    try:
        for one in run(args, sys.argv[1:] if argv is None else argv):
            print(f"{one.verdict}: {one.what}: {one.measured} (must: {one.must})", flush=True)
    except (RunError, ConfigError) as error:
        print(f"error: {error}", file=sys.stderr)
        return error.code if isinstance(error, RunError) else 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, terminate)  # so that the runs can save a checkpoint
    sys.exit(main())

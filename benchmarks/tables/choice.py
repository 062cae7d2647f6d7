"""By what number to choose a method on a small table, judged on validation subjects alone, from the runs of `methods.py`.

    python benchmarks/tables/choice.py                           # after methods.py, of the same tables, methods and splits
    python benchmarks/tables/choice.py --table mine              # a table that methods.py was given by --table mine.csv
    python benchmarks/tables/choice.py --quick                   # of the runs of methods.py --quick

A dozen validation subjects say little, so each of them is left out in turn: a rule chooses a method by the others, and the
method's error on the one that was left out counts.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the project, wherever the script is called from

from benchmarks.common import ROOT, progress, table
from benchmarks.tables.methods import TABLES
from commands.runs import build, tasks_of_run
from config import Config
from evaluation.errors import held_out_errors
from evaluation.statistics import geometric_mean
from registry import METHODS
from system.checkpoints import read_checkpoint
from system.errors import RunError

Errors = Mapping[int, np.ndarray]  # K -> errors of methods and validation subjects [M, V], NaN where points are too few
Rule = Callable[[Errors, int], np.ndarray]  # of errors, and the K that methods are chosen for: scores of methods [M]


def typical(errors: np.ndarray) -> np.ndarray:
    return np.exp(np.nanmean(np.log(errors), 1))


RULES: dict[str, Rule] = {
    "mean over subjects, at the run's K": lambda errors, shots: np.nanmean(errors[shots], 1),
    "root of the error, at the run's K": lambda errors, shots: np.nanmean(np.sqrt(errors[shots]), 1),
    "geometric mean over subjects, at the run's K": lambda errors, shots: typical(errors[shots]),
    "mean over subjects, geometric over K": lambda errors, _: typical(np.stack([np.nanmean(e, 1) for e in errors.values()], 1)),
    "geometric mean over subjects and K": lambda errors, _: typical(np.stack([typical(e) for e in errors.values()], 1)),
}


def validation_errors(directories: Sequence[Path]) -> tuple[Errors, int]:
    """The validation errors of runs after their last gradient, and their own K; raises `RunError` for one that is missing."""
    found: dict[int, list[np.ndarray]] = {}
    for directory in directories:
        state = read_checkpoint(directory / "checkpoints" / "best.pt")
        config = Config.resolve(state["config"])
        experiment = build(state["method"], "table", config, tasks_of_run(directory, "table", config))
        experiment.load(state)
        for shots in config.EVAL_SHOTS:
            errors = held_out_errors(experiment.learner, experiment.held_out("validation", shots), config.EVAL_STEPS)[:, -1]
            found.setdefault(shots, []).append(errors)
    return {shots: np.stack(errors) for shots, errors in found.items()}, config.SUPPORT_SAMPLES


def left_out(rule: Rule, errors: Errors, shots: int) -> float:
    """The mean error of validation subjects with the method that `rule` chooses by the others."""
    results = []
    for subject in np.flatnonzero(np.isfinite(errors[shots]).any(0)):
        scores = rule({count: np.delete(values, subject, 1) for count, values in errors.items()}, shots)
        results.append(errors[shots][scores.argmin(), subject])
    return float(np.mean(results))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="append", default=[], metavar="NAME", help="a table that methods.py was given, too")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--splits", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--forecast", action="store_true", help="the runs from the first points of each subject")
    parser.add_argument("--quick", action="store_true", help="the runs of methods.py --quick; their numbers mean nothing")
    parser.add_argument("--runs", type=Path, default=ROOT / "benchmarks" / "runs" / "tables")
    args = parser.parse_args(argv)
    kind = "first" if args.forecast else "random"
    rules = RULES | {
        f"always {name.upper()}": lambda errors, _, p=place: np.arange(len(args.methods)) != p
        for place, name in enumerate(args.methods)
    }
    results: dict[str, list[list[float]]] = {rule: [] for rule in rules}  # tables of splits
    try:
        for name in [*TABLES, *args.table]:
            progress(f"{name}, {kind}")
            names = [f"{name}-{kind}-{split}{'-quick' * args.quick}" for split in args.splits]
            found = [validation_errors([args.runs / f"{one.upper()}_Table_{run}" for one in args.methods]) for run in names]
            for label, rule in rules.items():
                results[label].append([left_out(rule, *one) for one in found])
    except RunError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.code
    means = {label: np.mean(values, 1) for label, values in results.items()}
    rows = [[label, f"{geometric_mean(one):.4f}", *(f"{mean:.4f}" for mean in one)] for label, one in means.items()]
    print(table(["error on the subject left out", "geometric mean", *TABLES, *args.table], rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())

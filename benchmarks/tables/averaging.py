"""What averaging the meta-parameters and validating seldom do on small tables, judged on validation subjects alone.

    python benchmarks/tables/averaging.py                                  # the tables of examples/, LEO and R2-D2, 3 splits
    python benchmarks/tables/averaging.py --table mine.csv task=Patient x=Hours y=Level
    python benchmarks/tables/averaging.py --set EPOCHS=500                 # the same with other settings
    python benchmarks/tables/averaging.py --quick                          # a tiny version that tests the script

The best of ten validations is low by chance. So training is stopped where a random half of the validation subjects is best,
and judged on the other half (200 halvings, both ways): best of ten validations, or of two, halfway and at the end.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the project, wherever the script is called from

from benchmarks.common import ROOT, progress, table
from benchmarks.tables.methods import QUICK, TABLES, Source
from commands.runs import build
from config import Config, parse_assignment
from evaluation.errors import held_out_errors
from registry import METHODS, TASKS, defaults
from system.errors import RunError

DECAYS = (0.0, 0.9, 0.98, 0.99, 0.995, 0.998)
HALVINGS = 200
VALIDATIONS = 10


def validation_errors(source: Source, method: str, split: int, settings: Sequence[str]) -> np.ndarray:
    """Errors of the validation subjects at each validation, with each of `DECAYS`: [decays, validations, subjects].

    One training does for all: an average has no effect on the steps.
    """
    given = {"DATA": str(source.path), "COLUMNS": list(source.columns), "RANDOM_SEED": split}
    given |= dict(map(parse_assignment, settings)) | {"META_AVERAGE": 0.0}
    generator = TASKS["table"](Config.resolve(given))
    experiment = build(method, "table", Config.resolve(defaults(method, "table", generator), given), generator)
    config, trainer = experiment.config, experiment.trainer
    progress(f"{source.name}, split {split}, {method}: {trainer.prepare()}")
    tasks, flat = experiment.held_out("validation", config.SUPPORT_SAMPLES), trainer.step.flat
    stops = {-(-config.iterations * number // VALIDATIONS) for number in range(1, VALIDATIONS + 1)}
    averages, found = [flat.clone() for _ in DECAYS], []
    for iteration, _ in trainer.train():
        for average, decay in zip(averages, DECAYS, strict=True):
            average.lerp_(flat, max(1 - decay, 1 / iteration))
        if iteration in stops:
            now, errors = flat.clone(), []
            for average in averages:
                flat.copy_(average)
                errors.append(held_out_errors(experiment.learner, tasks, config.EVAL_STEPS)[tasks.evaluable, -1])
            flat.copy_(now)
            found.append(errors)
    trainer.close()
    torch.set_flush_denormal(False)
    return np.array(found).swapaxes(0, 1)


def stopped_on_half(errors: np.ndarray) -> float:
    """Mean error of half of the subjects where the other half is best, from [validations, subjects]."""
    rng, subjects, results = np.random.default_rng(0), errors.shape[1], []
    for _ in range(HALVINGS):
        order = rng.permutation(subjects)
        for one, other in ((order[: subjects // 2], order[subjects // 2 :]), (order[subjects // 2 :], order[: subjects // 2])):
            results.append(errors[errors[:, one].mean(1).argmin(), other].mean())
    return float(np.mean(results))


def measures_of(errors: np.ndarray) -> tuple[float, ...]:
    """Means, from errors [validations, subjects]: the best of all and of two on other subjects, the last, and the lowest."""
    two = errors[[(len(errors) - 1) // 2, -1]]
    return stopped_on_half(errors), stopped_on_half(two), errors[-1].mean(), errors.mean(1).min()


def summary(runs: dict[str, list[np.ndarray]]) -> list[list[str]]:
    """For each of `DECAYS`: geometric means over tables (each the mean of its splits) of `measures_of`."""
    rows = []
    for place, decay in enumerate(DECAYS):
        measures = [[measures_of(one[place]) for one in splits] for splits in runs.values()]
        means = np.exp(np.log(np.array(measures).mean(1)).mean(0))
        rows.append([f"{decay:g}" if decay else "none", *(f"{mean:.4f}" for mean in means)])
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", nargs="+", action="append", default=[], metavar="WORD", help="a file, then its columns")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=["leo", "r2d2"])
    parser.add_argument("--splits", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="a setting of all runs")
    parser.add_argument("--quick", action="store_true", help="a tiny version that tests the script; its numbers mean nothing")
    args = parser.parse_args(argv)
    sources = [Source(name, ROOT / "examples" / f"{name}.csv", columns) for name, columns in TABLES.items()]
    sources += [Source(Path(path).stem, Path(path).resolve(), tuple(columns)) for path, *columns in args.table]
    settings = [*(QUICK if args.quick else ()), *args.set]
    header = ["decay", "best of ten, on other subjects", "best of two, on other subjects", "at the end", "lowest"]
    try:
        for method in args.methods:
            runs = {one.name: [validation_errors(one, method, split, settings) for split in args.splits] for one in sources}
            print(f"{method}\n\n{table(header, summary(runs))}\n", flush=True)
    except (RunError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

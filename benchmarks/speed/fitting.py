"""Time the Python door: a fit and a prediction for one task of 10 points, and 1,000 tasks at once, on one core.

    python benchmarks/speed/fitting.py
    python benchmarks/speed/fitting.py --methods leo r2d2 --rounds 20

Untrained networks of the default sizes: what is learned changes no time. Prints the median and the fastest of the rounds.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the project, wherever the script is called from

import numpy as np
import torch

from config import Config
from dataset import stream
from registry import METHODS, defaults
from regressor import FewShotRegressor

POINTS, TASKS = 10, 1000
LIMITS = {"one": 0.020, "many": 1.0}  # seconds


def milliseconds(action: Callable[[], object], rounds: int) -> str:
    """Median and minimum of `rounds` calls, after one that warms up."""
    action()
    taken = []
    for _ in range(rounds):
        started = time.perf_counter()
        action()
        taken.append(1000 * (time.perf_counter() - started))
    return f"{statistics.median(taken):9.1f} {min(taken):9.1f}"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Time fits and predictions.", allow_abbrev=False)
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--rounds", type=int, default=10)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    xs, ys, ats = (list(rng.uniform(-3, 3, (TASKS, POINTS))) for _ in range(3))
    print(f"ms, median and fastest: one task (at most {1000 * LIMITS['one']:g}), {TASKS} tasks ({1000 * LIMITS['many']:g})")
    for method in args.methods:
        config = Config.resolve(defaults(method, "sinusoid"))
        model = FewShotRegressor(METHODS[method].from_config(config, stream(0, "weights")), config.EVAL_STEPS)
        one = milliseconds(lambda model=model: model.fit(xs[0], ys[0]).predict(ats[0]), args.rounds)  # type: ignore[misc]
        many = milliseconds(lambda model=model: model.fit_many(xs, ys).predict_many(ats), args.rounds)  # type: ignore[misc]
        print(f"{method:10s}{one}   {many}")


if __name__ == "__main__":
    main()

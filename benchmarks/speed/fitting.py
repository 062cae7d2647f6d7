"""Time a fit and a prediction from Python: for one task of 10 points, and for 1,000 tasks at once, on one core.

    python benchmarks/speed/fitting.py
    python benchmarks/speed/fitting.py --methods leo r2d2 --rounds 20

Untrained networks of the default sizes: what is learned changes no time. Asked for: 20 ms for one task, 1,000 ms for 1,000.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the project, wherever the script is called from

import numpy as np
import torch

from benchmarks.common import new_parser, parse, table
from config import Config
from dataset import stream
from registry import METHODS, defaults
from regressor import FewShotRegressor

POINTS, TASKS = 10, 1000


def milliseconds(action: Callable[[], object], rounds: int) -> list[str]:
    """Median and minimum of `rounds` calls, after one that warms up."""
    action()
    taken = []
    for _ in range(rounds):
        started = time.perf_counter()
        action()
        taken.append(1000 * (time.perf_counter() - started))
    return [f"{statistics.median(taken):.1f}", f"{min(taken):.1f}"]


def main(argv: Sequence[str] | None = None) -> int:
    parser = new_parser(__doc__)
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--rounds", type=int, help="default: 10")
    args = parse(parser, argv, {"rounds": 10}, {"rounds": 1})
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    xs, ys, queries = (list(rng.uniform(-3, 3, (TASKS, POINTS))) for _ in range(3))

    def one(model: FewShotRegressor) -> None:
        model.fit(xs[0], ys[0]).predict(queries[0])

    def many(model: FewShotRegressor) -> None:
        model.fit_many(xs, ys).predict_many(queries)

    rows = []
    for method in args.methods:
        config = Config.resolve(defaults(method, "sinusoid"))
        model = FewShotRegressor(METHODS[method].from_config(config, stream(0, "weights")), config.EVAL_STEPS)
        times = [milliseconds(partial(action, model), args.rounds) for action in (one, many)]
        rows.append([method, *times[0], *times[1]])
    print(table(["method", "1 task, ms", "fastest", "1,000 tasks, ms", "fastest"], rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())

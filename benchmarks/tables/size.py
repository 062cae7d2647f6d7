"""What a long table costs: reading it, its memory, and drawing tasks from it as a share of a training step.

    python benchmarks/tables/size.py            # a million rows, 10,000 subjects, 3 inputs
    python benchmarks/tables/size.py --quick    # a hundredth of it; tests the script

Times are of the processor, not of the clock. A step is a compiled one of R2-D2, the fastest method there is (drawing has the
largest share of it), and of LEO.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the project, wherever the script is called from

from benchmarks.common import machine, machine_line, progress, table
from commands.runs import build
from config import Config
from registry import TASKS, defaults
from system.machine import system_report
from tables.table import read_table
from training.loop import Trainer

INPUTS = 3
BLOCKS = 20  # of meta-batches, for a time


def write_table(path: Path, rows: int, subjects: int) -> None:
    rng = np.random.default_rng(0)
    owners, values = np.sort(rng.integers(0, subjects, rows)), rng.normal(size=(rows, INPUTS + 1)).round(4)
    lines = (f"s{owner},{','.join(map(str, row))}" for owner, row in zip(owners.tolist(), values.tolist(), strict=True))
    path.write_text("\n".join(["task," + ",".join(f"x{d + 1}" for d in range(INPUTS)) + ",y", *lines, ""]))


def peak_gib() -> float:
    """The most memory that this process has held."""
    return float(system_report()["memory"]["peak_process_gib"])


def trainer_on(path: Path, method: str) -> Trainer:
    given = {"DATA": str(path), "EPOCHS": 10**6}  # long enough for any number of blocks
    generator = TASKS["table"](Config.resolve(given))
    return build(method, "table", Config.resolve(defaults(method, "table", generator), given), generator).trainer


def milliseconds(trainer: Trainer) -> tuple[float, float]:
    """Of the processor, for drawing the tasks of a step and for taking one."""
    progress(trainer.prepare())
    size = trainer.dataset.block
    block = trainer.step.block(*trainer._block(0), [1e-3] * size)
    trainer._prefetched.popitem()[1].result()  # drawn by now, so that only steps are timed
    drawn = taken = 0.0
    for number in range(BLOCKS):  # one after the other, so that each finds the caches as in training
        began = time.process_time()
        trainer._draw(number)
        between = time.process_time()
        trainer.step(block, 0, size)
        drawn, taken = drawn + between - began, taken + time.process_time() - between
    trainer.close()
    steps = BLOCKS * size
    return 1000 * drawn / steps, 1000 * taken / steps


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small table that tests the script")
    parser.add_argument("--methods", nargs="+", default=["r2d2", "leo"])
    args = parser.parse_args(argv)
    rows, subjects = (10_000, 100) if args.quick else (1_000_000, 10_000)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "long.csv"
        progress(f"writing {rows:,} rows ...")
        write_table(path, rows, subjects)
        before, began = peak_gib(), time.process_time()
        read_table(path)
        seconds, memory = time.process_time() - began, peak_gib()
        size = path.stat().st_size / 2**20
        print(f"{rows:,} rows of {subjects:,} subjects, {INPUTS} inputs, {size:.0f} MiB: read in {seconds:.1f} s")
        print(f"peak of memory {memory:.2f} GiB, {before:.2f} GiB before\n")
        measured = [(method, *milliseconds(trainer_on(path, method))) for method in args.methods]
    cells = [[name, f"{drawn:.3f} ms", f"{taken:.3f} ms", f"{drawn / taken:.1%}"] for name, drawn, taken in measured]
    print(table(["", "drawing for a step", "a step", "share"], cells), machine_line(machine("cpu")), sep="\n\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

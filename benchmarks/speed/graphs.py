"""What a training step asks of a GPU: time and launches, operation by operation and compiled.

    python benchmarks/speed/graphs.py
    python benchmarks/speed/graphs.py --methods maml leo --steps 2000

A launch is a call that starts work on the device: a kernel, a copy, a fill, or a whole recorded CUDA graph. Before anything is
timed, the compiled step has to agree with the one that runs operation by operation. On a CPU it counts no launches.
"""

from __future__ import annotations

import argparse
import collections
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the project, wherever the script is called from

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.speed.work import Case, Work, prepare
from registry import METHODS

ROUNDS, COUNTED = 5, 20
LAUNCHES = {
    "cudaLaunchKernel",
    "cudaLaunchKernelExC",
    "cuLaunchKernel",
    "cuLaunchKernelEx",
    "cudaMemcpyAsync",
    "cudaMemsetAsync",
}
GRAPHS = {"cudaGraphLaunch"}


def wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def milliseconds(steps: Iterator[Any], count: int, device: str) -> float:
    """Median over rounds of the time of one step."""
    rounds = []
    for _ in range(ROUNDS):
        wait(device)
        started = time.perf_counter()
        for _ in range(count):
            next(steps)
        wait(device)
        rounds.append(1000 * (time.perf_counter() - started) / count)
    return statistics.median(rounds)


def launches(steps: Iterator[Any], device: str) -> tuple[float, float]:
    """Launches of a step, and how many of them are of a recorded graph."""
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device != "cpu")
    with profile(activities=activities) as profiler:
        for _ in range(COUNTED):
            next(steps)
        wait(device)
    calls: collections.Counter[str] = collections.Counter()
    for event in profiler.key_averages():
        calls[event.key] += event.count
    graphs = sum(calls[name] for name in GRAPHS)
    return (sum(calls[name] for name in LAUNCHES) + graphs) / COUNTED, graphs / COUNTED


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Time and launches of a training step.", allow_abbrev=False)
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args(argv)
    print(f"{'method':10s}{'':10s}{'ms a step':>10s}{'launches':>10s}{'graphs':>8s}{'ready in':>10s}{'difference':>12s}")
    for method in args.methods:
        work, moments = Work(Case(method, METHODS[method], {}), 25, args.device), []
        for mode in ("never", "always"):
            trainer = work.trainer(mode)
            prepare(trainer)
            steps = trainer.train()
            next(steps)
            moments.append(trainer.step.exp_avg.clone())  # the meta-gradient of the first step, times a constant
            difference = float((moments[-1] - moments[0]).norm() / moments[0].norm())
            taken = milliseconds(steps, args.steps, args.device)
            total, graphs = launches(steps, args.device)
            ready = f"{trainer.compile_seconds:8.1f} s"
            print(f"{method:10s}{mode:10s}{taken:10.3f}{total:10.1f}{graphs:8.1f}{ready:>10s}{difference:12.1e}", flush=True)
            trainer.close()


if __name__ == "__main__":
    main()

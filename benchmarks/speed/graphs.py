"""What a training step asks of a GPU: time and launches, operation by operation and compiled.

    python benchmarks/speed/graphs.py
    python benchmarks/speed/graphs.py --methods maml leo --seconds 10

A launch is a call that starts work on the device: a kernel, a copy, a fill, or a whole recorded CUDA graph. The last column
is the relative difference of the compiled step's meta-gradient. On a CPU it counts no launches.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the project, wherever the script is called from

import numpy as np
from torch.profiler import ProfilerActivity, profile

from benchmarks.common import new_parser, parse, table
from benchmarks.speed.measure import seconds_per_iteration
from benchmarks.speed.work import Case, ThisProject, Work
from registry import METHODS

COUNTED = 20  # steps
GRAPHS = {"cudaGraphLaunch"}
KERNELS = {"cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx"}
LAUNCHES = GRAPHS | KERNELS | {"cudaMemcpyAsync", "cudaMemsetAsync"}


def launches(project: ThisProject, device: str) -> tuple[float, float]:
    """Launches of a step, and how many of them are of a recorded graph."""
    activities = [ProfilerActivity.CPU] if device == "cpu" else [ProfilerActivity.CPU, ProfilerActivity.CUDA]
    with profile(activities=activities) as profiler:
        project.run(COUNTED)
    events = profiler.key_averages()
    total, graphs = (sum(event.count for event in events if event.key in names) for names in (LAUNCHES, GRAPHS))
    return total / COUNTED, graphs / COUNTED


def main(argv: Sequence[str] | None = None) -> int:
    parser = new_parser(__doc__, output=False, device=True)
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--seconds", type=float, help="to time each for; default: 2")
    args = parse(parser, argv, {"seconds": 2.0}, {"seconds": 0.05})
    rows = []
    for method in args.methods:
        work, first = Work(Case(method, method, {}), 25, args.device), None
        for mode in ("never", "never") if args.quick else ("never", "always"):
            started, project = time.perf_counter(), ThisProject(work, mode)
            gradient = project.meta_gradient()
            ready = time.perf_counter() - started
            first = gradient if first is None else first
            difference = np.linalg.norm(gradient - first) / np.linalg.norm(first)
            taken = 1000 * statistics.median(seconds_per_iteration(project, args.seconds))
            numbers = (f"{count:.1f}" for count in launches(project, args.device))
            rows.append([method, mode, f"{taken:.3f}", *numbers, f"{ready:.1f}", f"{difference:.0e}"])
    print(table(["method", "compile", "ms a step", "launches", "graphs", "ready in s", "difference"], rows, left=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The cost of one configuration for scaling.py: the time and the peak memory of a meta-step.

The functions are meant for a process of their own, so that the peak memory is that of one configuration.
"""

from __future__ import annotations

import ctypes
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.speed.work import Case, Implementation, ThisProject, Work

REPEATS = 5  # how often something is timed; the median counts


def measure_step(case: Case, tasks: int, device: str, compile_mode: str, seconds: float, threads: int) -> dict[str, Any]:
    """Time and peak memory of a meta-step.

    Args:
        seconds: about how long to time.
        threads: the most that the trainer may use.

    Returns:
        ms, range_ms: of an iteration, with tasks drawn and the optimiser; median and range of `REPEATS` times.
        peak_mib: memory that one step adds at its highest point to what the process holds between steps.
        process_mib: the most that the process held at any time, torch itself and the compiler included
            (on CUDA: the most that was allocated on the device).
        threads: the number that the trainer decided on.
        start_seconds: building, compiling and the first step.
    """
    torch.set_num_threads(threads)
    started = time.perf_counter()
    project = ThisProject(Work(case, tasks, device), compile_mode)
    project.meta_gradient()
    start_seconds = time.perf_counter() - started
    times = [1000 * taken for taken in seconds_per_iteration(project, seconds)]
    peak, process = cuda_memory(project, device) if device != "cpu" else cpu_memory(project)
    return {
        "ms": statistics.median(times),
        "range_ms": [min(times), max(times)],
        "peak_mib": peak / 2**20,
        "process_mib": process / 2**20,
        "threads": project.threads,
        "start_seconds": start_seconds,
    }


def seconds_per_iteration(one: Implementation, seconds: float) -> list[float]:
    """Seconds an iteration, from `REPEATS` series of iterations of equal length."""

    def run(iterations: int) -> float:
        started = time.perf_counter()
        one.run(iterations)
        return (time.perf_counter() - started) / iterations

    usual = run(max(1, int(seconds / 10 / run(1))))  # the first one is slower
    count = max(1, round(seconds / REPEATS / usual))
    return [run(count) for _ in range(REPEATS)]


# ---- memory: bytes that one step adds at its peak, and the most that was ever held


def cuda_memory(project: ThisProject, device: str) -> tuple[float, float]:
    highest, resting = torch.cuda.max_memory_allocated(device), torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    project.run(1)
    return torch.cuda.max_memory_allocated(device) - resting, highest


def cpu_memory(project: ThisProject) -> tuple[float, float]:
    """As Linux counts it; NaN elsewhere."""
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not reset.exists():
        return float("nan"), float("nan")

    def held(key: str) -> int:
        line = next(line for line in status.read_text().splitlines() if line.startswith(f"{key}:"))
        return int(line.split()[1]) * 1024

    highest = held("VmHWM")
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim:
        trim(0)  # freed memory that the process keeps would hide what the step takes
    resting = held("VmRSS")
    reset.write_text("5")  # lowers the recorded peak to what is held now
    project.run(1)
    return held("VmHWM") - resting, highest

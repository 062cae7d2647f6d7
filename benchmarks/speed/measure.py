"""The cost of one configuration for scaling.py: the time, peak memory and arithmetic of a meta-step, and the machine's rates.

The functions are meant for a process of their own, so that the peak memory is that of one configuration.
"""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.speed.work import Case, Implementation, ThisProject, Work

REPEATS = 5  # how often something is timed; the median counts
PRODUCTS = {torch.ops.aten.mm, torch.ops.aten.bmm, torch.ops.aten.addmm, torch.ops.aten.baddbmm}


def measure_step(case: Case, tasks: int, device: str, compile_mode: str, seconds: float, threads: int) -> dict[str, Any]:
    """Time and peak memory of a meta-step, and the operations in it.

    Args:
        seconds: about how long to time.
        threads: the most that the trainer may use.

    Returns:
        ms, range_ms: of an iteration, with tasks drawn and the optimiser; median and range of `REPEATS` times.
        peak_mib: memory that one step adds at its highest point to what the process holds between steps.
        process_mib: the most that the process held at any time, torch itself and the compiler included
            (on CUDA: the most that was allocated on the device).
        flops, bytes: of the matrix products in an iteration, see `count_products`.
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
    flops, moved = count_products(case, tasks)
    return {
        "ms": statistics.median(times),
        "range_ms": [min(times), max(times)],
        "peak_mib": peak / 2**20,
        "process_mib": process / 2**20,
        "flops": flops,
        "bytes": moved,
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
    before = torch.cuda.max_memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    resting = torch.cuda.memory_allocated(device)
    project.run(1)
    peak = torch.cuda.max_memory_allocated(device)
    return peak - resting, max(before, peak)


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


# ---- arithmetic


class Traffic(TorchDispatchMode):
    """Counts bytes of matrix products: each operand read once, each result written once."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket in PRODUCTS:
            for tensor in (leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, torch.Tensor)):
                # an expanded tensor has more numbers than memory
                self.bytes += min(tensor.numel() * tensor.itemsize, tensor.untyped_storage().nbytes())
        return result


def count_products(case: Case, tasks: int) -> tuple[int, int]:
    """Floating-point operations and bytes of the matrix products in one iteration of `tasks` tasks.

    Counted with one and two tasks, and continued along the straight line through them: counting runs the step
    eagerly, which at many tasks takes more memory than the compiled step that is measured. A product with one
    contracted number is a multiplication by elements and does not count: a few hundredths of the arithmetic.
    """
    counts = []
    for few in (1, 2):
        steps = Work(case, few, "cpu").trainer("never").train()
        with FlopCounterMode(display=False) as flops, Traffic() as traffic:
            next(steps)
        counts.append((flops.get_total_flops(), traffic.bytes))
    (flops_1, bytes_1), (flops_2, bytes_2) = counts
    return flops_1 + (flops_2 - flops_1) * (tasks - 1), bytes_1 + (bytes_2 - bytes_1) * (tasks - 1)


def machine_rates(device: str, threads: int, quick: bool) -> dict[str, float]:
    """What the machine can do with `threads` threads, best of several: flop/s of a matrix product, bytes/s of a copy."""
    torch.set_num_threads(threads)
    size, mib = (1024, 64) if device == "cpu" else (8192, 256)  # the copy is beyond every cache
    if quick:
        size, mib = 256, 1
    a, b = torch.randn(size, size, device=device), torch.randn(size, size, device=device)
    out, source = torch.empty_like(a), torch.ones(mib * 2**18, device=device)
    target = torch.empty_like(source)
    product = _best_seconds(lambda: torch.mm(a, b, out=out), device)
    copy = _best_seconds(lambda: target.copy_(source), device)
    return {"flops_per_second": 2 * size**3 / product, "bytes_per_second": 2 * source.nbytes / copy}


def _best_seconds(action: Callable[[], Any], device: str) -> float:
    times = []
    for _ in range(12):
        started = time.perf_counter()
        action()
        if device != "cpu":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - started)
    return min(times[2:])

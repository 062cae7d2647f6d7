"""How many threads compute: what a machine has, and what small work is worth."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import torch

SMALL_WORK = 10**8  # points x weights of a step below which kernels on one thread beat kernels on several
EVAL_CHUNK = 250  # tasks adapted at a time in evaluation: bounds memory


@contextmanager
def threads_for(work: int) -> Iterator[None]:
    """A context in which kernels of this thread start no others where `work`, points x weights, is little: several would mostly
    wait for each other, for seconds where other processes take the cores."""
    before = torch.get_num_threads()
    if work >= SMALL_WORK or before == 1:  # 1 may be another thread's, which puts its number back: a new thread begins with it
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def available_cores() -> int:
    """Cores for this process: OMP_NUM_THREADS, which torchrun sets, or its share of those that the system allows."""
    if (given := os.environ.get("OMP_NUM_THREADS", "")).isdecimal():
        return max(1, int(given))
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else psutil.cpu_count() or 1
    sharing = int(given) if (given := os.environ.get("LOCAL_WORLD_SIZE", "")).isdecimal() else 1
    return max(1, allowed // max(1, sharing))


def compute_as_the_caller() -> None:
    """These belong to a thread: without them kernels would start threads of their own, or compute with denormals."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    torch.set_grad_enabled(False)

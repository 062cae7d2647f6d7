"""How a meta-batch is cut in micro-batches: for memory, the cache, threads and processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

CACHE_WORK = 3_600_000  # points x weights that a CPU's cache holds; beyond, a task takes two to three times as long
FEWEST = 25  # tasks that are worth a micro-batch of their own for the cache's sake
PAYS_FROM = 15_000_000  # floating-point operations of a step from which on two threads are faster than one
MICRO_BATCH_WORK = 400_000_000  # floating-point operations of one micro-batch, where there are more than two


def tasks_at_once(chunk: int, local_batch: int, work: int, device: torch.device) -> int:
    """How many of a process's `local_batch` tasks are differentiated together, where a task is `work` points x weights.

    `chunk` where that is given; 0 leaves it to the machine: everything, or on a CPU what its cache holds.
    """
    if chunk:
        return chunk
    cached = CACHE_WORK // max(work, 1)
    if device.type != "cpu" or not FEWEST <= cached < local_batch:
        return local_batch
    return -(-local_batch // -(-local_batch // cached))  # of equal size: a short last one costs as much as a full one


def micro_batches_worth(operations: int) -> int:
    """In how many micro-batches a step of so many floating-point operations is computed.

    It depends on no number of cores and on no measured time: the last bits of a sum depend on its parts.
    """
    return max(2, operations // MICRO_BATCH_WORK) if operations >= PAYS_FROM else 1


class MicroBatches:
    """A meta-batch cut in micro-batches of one size, dealt out to processes in turn.

    One that would be short takes tasks of the one before, with weight 0.

    Args:
        meta_batch: T, tasks in a meta-batch.
        size: tasks in a micro-batch; 0 = each process computes its local batch at once.
        rank, world: number of this process, and of all.
    """

    def __init__(self, meta_batch: int, size: int, rank: int = 0, world: int = 1):
        self.meta_batch, self.size, self.world = meta_batch, size, world
        tasks = size or -(-meta_batch // world)
        self.total = -(-meta_batch // tasks) if size else world  # micro-batches of all processes
        self.single = world == 1 and self.total == 1
        self.slices: list[slice] = []  # of the meta-batch, those of this process
        self.task_weights: list[Tensor] = []  # [tasks], in the mean over the meta-batch
        for begin in range(rank * tasks, self.total * tasks, world * tasks):
            first = min(begin, meta_batch - tasks)
            self.slices.append(slice(first, first + tasks))
            self.task_weights.append((torch.arange(first, first + tasks) >= begin).float() / meta_batch)


class _CheckSeen(TorchDispatchMode):
    """Whether a call raises errors of linear algebra by itself: torch's loops can't hold those."""

    seen = False

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen |= function is torch.ops.aten._linalg_check_errors.default
        return function(*args, **(kwargs or {}))


def operations_of(function: Callable[[], Tensor]) -> tuple[int, bool]:
    """Floating-point operations of the matrix products in a call of `function`, and whether it checks for errors."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter, _CheckSeen() as check:
        function()
    return int(counter.get_total_flops()), check.seen

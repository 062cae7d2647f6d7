"""How the work of a step is cut in parts, and the threads that share them. Independent of what is computed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from system.threads import compute_as_the_caller

Item = TypeVar("Item")
Result = TypeVar("Result")

CACHE_WORK = 3_600_000  # points x weights that a CPU's cache holds; beyond, a task takes two to three times as long
FEWEST = 25  # tasks that are worth a chunk of their own for the cache's sake
PAYS_FROM = 15_000_000  # floating-point operations of a step from which two threads that meet once in it pay
PART = 400_000_000  # floating-point operations of one part, where there are more than two


def tasks_at_once(chunk: int, share: int, work: int, device: torch.device) -> int:
    """How many of a process's `share` of tasks are differentiated together, where a task is `work` points x weights.

    `chunk` where that is given; 0 leaves it to the machine: everything, or on a CPU what its cache holds.
    """
    if chunk:
        return chunk
    cached = CACHE_WORK // max(work, 1)
    if device.type != "cpu" or not FEWEST <= cached < share:
        return share
    return -(-share // -(-share // cached))  # pieces of one size: a short last one is computed as a whole


def parts_of(operations: int) -> int:
    """In how many parts a step of so many floating-point operations is computed.

    It depends on no number of cores and on no measured time: the last bits of a sum depend on its parts.
    """
    return max(2, operations // PART) if operations >= PAYS_FROM else 1


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


def groups(total: int, size: int, numbers: range) -> Iterator[tuple[slice, Tensor]]:
    """Of `total` tasks in groups of `size`: the place of each group in `numbers`, and the share of its tasks in the mean.

    A group that would be short takes tasks of the one before, at share 0.
    """
    for number in numbers:
        first = min(number * size, total - size)
        shares = (torch.arange(first, first + size) >= number * size).float() / total
        yield slice(first, first + size), shares


class Helpers:
    """Threads that compute some of a list of parts while the caller's thread computes the others.

    Where other processes take their cores, waiting for them costs more than they save: now and then a few lists are timed
    with and without them, and the faster way is kept until the next trial. Results are the same either way.

    Args:
        count: threads beside the caller's.
    """

    TRIAL, PERIOD = 100, 4000  # lists in a trial of each way, and from one trial to the next

    def __init__(self, count: int):
        self.count = count
        self._pool = ThreadPoolExecutor(count, "helper", initializer=compute_as_the_caller) if count else None
        self._lists = 0  # since the trial began
        self._seconds = {True: 0.0, False: 0.0}  # of the lists of a trial, with and without the threads

    def map(self, function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
        """`function` of each item, in their order; raises what it raises."""
        if self._pool is None:
            return [function(item) for item in items]
        trial, began = self._lists < 2 * self.TRIAL, time.perf_counter()
        shared = self._lists < self.TRIAL if trial else self._seconds[True] <= self._seconds[False]
        results = self._shared(function, items) if shared else [function(item) for item in items]
        self._lists += 1
        if trial:
            self._seconds[shared] += time.perf_counter() - began
        elif self._lists >= self.PERIOD:
            self._lists, self._seconds = 0, {True: 0.0, False: 0.0}
        return results

    def _shared(self, function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
        """A part that no thread has begun when the caller comes to it is computed by the caller."""
        assert self._pool is not None
        begun = [self._pool.submit(function, item) for item in items[1:]]
        results, taken = [function(items[0])], []
        for future, item in zip(reversed(begun), reversed(items), strict=False):  # the threads begin with the first
            if not future.cancel():
                break
            taken.append(function(item))
        results += [future.result() for future in begun[: len(begun) - len(taken)]]
        return results + taken[::-1]

    def close(self) -> None:
        """End the threads."""
        if self._pool:
            self._pool.shutdown(cancel_futures=True)

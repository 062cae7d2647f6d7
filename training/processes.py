"""The other processes of the same run, through `torch.distributed` and the variables that torchrun sets.

Where a run has a single process, meeting and waiting do nothing, and every value is its own.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import psutil
import torch
import torch.distributed as dist
from torch import Tensor

from system.errors import RunError
from system.terminal import rank, valid_rank

PEER_TIMEOUT = timedelta(seconds=45)  # longest wait for a peer that still has its connection; a closed one is noticed at once
MEETING_GRACE = timedelta(seconds=10)  # on top of it, before a process gives up on meeting the others at all
READY_TIMEOUT = timedelta(minutes=15)  # longest wait for a peer that compiles
VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class PeerLost(RunError):
    """A process of this run is gone, or does not answer."""

    def __init__(self, message: str):
        super().__init__(message, 1)


@contextmanager
def peer_errors(what: str = "another process of this run is gone") -> Iterator[None]:
    """Communication inside turns its errors into `PeerLost`: there are many kinds, and they mean the same."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        got = " ".join(str(error).split())[:160]
        raise PeerLost(f"{what} (got {got}; expected {os.environ.get('WORLD_SIZE')} processes)") from None


def connect() -> None:
    """Meet the other processes, if torchrun (or whoever set its variables) started several.

    Raises `PeerLost` for variables that make no sense, and where somebody does not come.
    """
    if "RANK" not in os.environ and "WORLD_SIZE" not in os.environ:
        return
    check_variables()
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    watch = threading.Timer((PEER_TIMEOUT + MEETING_GRACE).total_seconds(), _give_up)
    watch.daemon = True
    watch.start()
    try:
        with peer_errors("the processes of this run do not meet"):
            store, number, processes = next(dist.rendezvous("env://", timeout=PEER_TIMEOUT))
            # torchrun keeps its store when it starts a job again: without a name of its own a process would find there
            # the address of one that has died
            store = dist.PrefixStore(f"start {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
            backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
            dist.init_process_group(backend, store=store, rank=number, world_size=processes, timeout=PEER_TIMEOUT)
    finally:
        watch.cancel()


def check_variables() -> None:
    """Raise `PeerLost` where the variables that torchrun sets are missing or contradict each other."""
    missing = [name for name in VARIABLES if name not in os.environ]
    if missing:
        got = ", ".join(name for name in VARIABLES if name in os.environ)
        raise PeerLost(f"{missing[0]} is not set (got {got}; expected all of {', '.join(VARIABLES)}, as torchrun does)")
    number, processes = os.environ["RANK"], os.environ["WORLD_SIZE"]
    if not valid_rank(number, processes):
        raise PeerLost(f"RANK and WORLD_SIZE do not fit (got {number} and {processes}; expected 0 <= RANK < WORLD_SIZE)")


def _give_up() -> None:
    """The end of a process whose peer died while they met: torch waits for it without end, deaf to signals and exceptions."""
    if not rank():
        print("error: the processes of this run do not meet (got no answer; expected one in time)", file=sys.stderr, flush=True)
    os._exit(1)


def disconnect() -> None:
    """Say goodbye; the process goes on alone."""
    if dist.is_initialized():
        with suppress(RuntimeError):  # somebody who is gone already
            dist.barrier()
        dist.destroy_process_group()


def world() -> tuple[int, int]:
    """Rank and number of processes of the run."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def wait_for_peers() -> None:
    """Wait for the processes that still compile."""
    if world()[1] > 1:
        with peer_errors():
            dist.monitored_barrier(timeout=READY_TIMEOUT)


def max_over_processes(flags: list[int]) -> list[int]:
    """The largest of each flag over all processes: what one was asked, all do, in the same step."""
    if world()[1] == 1:
        return flags
    tensor = torch.tensor(flags)
    with peer_errors():
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return tensor.tolist()


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """The sum of all processes' `tensor`, in place."""
    with peer_errors():
        dist.all_reduce(tensor)
    return tensor


def all_gather_rows(mine: Tensor, total: int) -> list[Tensor]:
    """The first `total` of all processes' rows, in one order: row r of `mine` [R, ...] of rank k is number r * world + k."""
    everyone = [torch.empty_like(mine) for _ in range(world()[1])]
    with peer_errors():
        dist.all_gather(everyone, mine)
    return list(torch.stack(everyone, 1).flatten(0, 1)[:total].unbind())


def broadcast(value: Any) -> Any:
    """Process 0's `value`, in all processes."""
    if world()[1] == 1:
        return value
    values = [value]
    with peer_errors():
        dist.broadcast_object_list(values, src=0, device=torch.device("cpu"))
    return values[0]


def launch_id() -> str | None:
    """The torchrun process that this one belongs to, however often it is started again; None without torchrun."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    agent = psutil.Process(os.getppid())
    return f"{socket.gethostname()} {agent.pid} {agent.create_time():.2f}"

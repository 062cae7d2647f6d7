"""What reaches a run from outside its process: signals, and the other processes of the same run.

What concerns the others does nothing where a run has a single process. This file knows `torch.distributed` and the
variables that torchrun sets; it is independent of what is trained, and of where that is recorded.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import psutil
import torch
import torch.distributed as dist
from torch import Tensor

from system.terminal import rank, valid_rank

PEER_TIMEOUT = timedelta(seconds=45)  # longest wait for a peer that still has its connection; a closed one is noticed at once
MEETING_GRACE = timedelta(seconds=10)  # on top of it, before a process gives up on meeting the others at all
READY_TIMEOUT = timedelta(minutes=15)  # longest wait for a peer that compiles
VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class Interrupted(BaseException):
    """A signal asked to stop while there was nothing to save; not an Exception, so that nothing takes it for a failure."""

    def __init__(self, number: int):
        super().__init__(number)
        self.number = number


# those that ask a process to end, where the system has them: Ctrl-C, kill, a closed terminal, the limits of a batch system,
# Windows' Ctrl-Break. SIGQUIT and SIGABRT are meant to end at once, and do.
STOPPING = ("SIGINT", "SIGTERM", "SIGHUP", "SIGXCPU", "SIGUSR2", "SIGBREAK")
SAVING = ("SIGUSR1",)


class Signals:
    """Inside `with`: `STOPPING` signals ask to save and leave, `SAVING` ones to save and go on; then all is as before.

    In training a handler only sets a flag, on which the loop acts after the step. `raise_now` is for the time around it,
    when a step may be a minute away and there is nothing to lose: `Interrupted` is raised. A second SIGINT quits at once:
    it ends the process of a program, and raises KeyboardInterrupt in somebody else's.

    Signals that are ignored (nohup) stay so. Handlers belong to the main thread: in any other nothing is changed.

    Args:
        program: whether the process is this program's own.
    """

    DUPLICATE_SECONDS = 1.0  # under torchrun, Ctrl-C arrives twice: from the terminal, and at once again from torchrun

    def __init__(self, program: bool = False) -> None:
        self.program = program
        self.stop = 0  # number of the signal that asked to stop
        self.save = 0
        self.raise_now = False
        self._first = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            for names, handler in ((STOPPING, self._on_stop), (SAVING, self._on_save)):
                for number in (getattr(signal, name) for name in names if hasattr(signal, name)):
                    if signal.getsignal(number) not in (signal.SIG_IGN, None):  # None: set by other code than Python's
                        self._before[number] = signal.signal(number, handler)
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in reversed(self._before.items()):  # SIGINT last: its own handler raises
            signal.signal(number, handler)

    def listen(self) -> None:
        """From here on a signal to stop raises `Interrupted`; one that came already does so now."""
        self.raise_now = True
        if self.stop:
            raise Interrupted(self.stop)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """What is done inside is done whole: a signal to stop takes effect at its end."""
        self.raise_now = False
        yield
        self.listen()

    def _on_stop(self, number: int, _: Any) -> None:
        if self.stop:
            twice = "TORCHELASTIC_RUN_ID" in os.environ and time.monotonic() - self._first < self.DUPLICATE_SECONDS
            if number == signal.SIGINT and not twice:
                if self.program:
                    os._exit(128 + number)
                raise KeyboardInterrupt
            return
        self.stop, self._first = number, time.monotonic()
        if self.raise_now:
            raise Interrupted(number)

    def _on_save(self, _number: int, _: Any) -> None:
        self.save = 1


class PeerLost(RuntimeError):
    """A process of this run is gone, or does not answer."""


@contextmanager
def peer_errors() -> Iterator[None]:
    """Communication inside turns its errors into `PeerLost`: there are many kinds, and they mean the same."""
    try:
        yield
    except RuntimeError as error:
        got = " ".join(str(error).split())[:160]
        raise PeerLost(f"another process of this run is gone (got {got}; expected {dist.get_world_size()} processes)") from None


def connect() -> None:
    """Meet the other processes, if torchrun (or whoever set its variables) started several.

    Raises `PeerLost` for variables that make no sense, and where somebody does not come.
    """
    given = [name for name in VARIABLES if name in os.environ]
    if "RANK" not in given and "WORLD_SIZE" not in given:
        return
    for name in VARIABLES:
        if name not in given:
            got, expected = ", ".join(given), ", ".join(VARIABLES)
            raise PeerLost(f"{name} is not set (got {got}; expected all of {expected}, as torchrun does)")
    texts = os.environ["RANK"], os.environ["WORLD_SIZE"]
    if not valid_rank(*texts):
        raise PeerLost(f"RANK and WORLD_SIZE do not fit (got {' and '.join(texts)}; expected 0 <= RANK < WORLD_SIZE)")
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    watch = threading.Timer((PEER_TIMEOUT + MEETING_GRACE).total_seconds(), _give_up)
    watch.daemon = True
    watch.start()
    try:
        store, number, processes = next(dist.rendezvous("env://", timeout=PEER_TIMEOUT))
        # torchrun keeps its store when it starts a job again: without a name of its own a process would find there
        # the address of one that has died
        store = dist.PrefixStore(f"start {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
        backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
        dist.init_process_group(backend, store=store, rank=number, world_size=processes, timeout=PEER_TIMEOUT)
    except (RuntimeError, ValueError) as error:
        got = " ".join(str(error).split())[:160]
        raise PeerLost(f"the processes of this run do not meet (got {got}; expected {texts[1]} processes)") from None
    finally:
        watch.cancel()


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


def launch_id() -> dict[str, str] | None:
    """What identifies the launch that this process belongs to, however often torchrun starts it again; None without torchrun.

    A run id alone does not: unless the user gives one, it is "none" or made up anew on each machine.
    """
    run_id = os.environ.get("TORCHELASTIC_RUN_ID")
    if run_id is None:
        return None
    agent = psutil.Process(os.getppid())
    return {"id": run_id, "agent": f"{socket.gethostname()} {agent.pid} {agent.create_time():.2f}"}


def same_launch(one: dict[str, str], other: dict[str, str]) -> bool:
    restarted = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
    return one["agent"] == other["agent"] or (restarted and one["id"] == other["id"] != "none")

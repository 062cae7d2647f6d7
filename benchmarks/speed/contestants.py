"""Who takes part in the speed comparison, and the process that each of them works in.

Every contestant has a process of its own: so each can be given the number of threads that suits it (JAX reads it
only once, at its start), and a peer that crashes takes nobody with it. This file knows the peers' names and what
they need to be installed; it refuses to know what they compute, and to compare them.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np
from work import CASES, PRELOAD, Contestant, Project, Unfit, Work

START_SECONDS = 300.0  # longest time for a contestant to build, compile and agree


class Entry(NamedTuple):
    """A contestant that may take part.

    Attributes:
        title: as tables and figures call it.
        needs: the module that has to be installed; "" = nothing but this project.
        cases: what it can do.
        build: makes it; runs in its own process, and only there imports the peer.
    """

    title: str
    needs: str
    cases: tuple[str, ...]
    build: Callable[[Work], Contestant]


def torch_peer(backward: str) -> Callable[[Work], Contestant]:
    def build(work: Work) -> Contestant:
        import peers_torch

        return peers_torch.TorchPeer(work, getattr(peers_torch, backward))

    return build


def jax_peer(scanned: bool) -> Callable[[Work], Contestant]:
    def build(work: Work) -> Contestant:
        import peers_jax

        return peers_jax.JaxPeer(work, scanned)

    return build


def without_compiler(work: Work) -> Contestant:
    """This project as it runs where there is no C++ compiler."""
    os.environ["CXX"] = "no-such-compiler"  # in this contestant's own process
    return Project(work, "always")


MAML_CASES = ("maml-1", "maml-5")
ENTRIES = {
    "compiled": Entry("this project", "", tuple(CASES), lambda work: Project(work, "always")),
    "traced": Entry("this project, no C++ compiler", "", tuple(CASES), without_compiler),
    "eager": Entry("this project, eager", "", tuple(CASES), lambda work: Project(work, "never")),
    "jax-scan": Entry("JAX jit + lax.scan", "jax", tuple(CASES), jax_peer(True)),
    "jax-call": Entry("JAX jit, a call per step", "jax", MAML_CASES, jax_peer(False)),
    "loop": Entry("plain autograd loop", "", MAML_CASES, torch_peer("plain_loop")),
    "torchopt": Entry("torchopt MetaSGD", "torchopt", MAML_CASES, torch_peer("with_torchopt")),
    "higher": Entry("higher", "higher", MAML_CASES, torch_peer("with_higher")),
}
OWN = ("compiled", "traced", "eager")


def missing(name: str) -> str:
    """The module that keeps contestant `name` away, or ""."""
    needs = ENTRIES[name].needs
    return needs if needs and importlib.util.find_spec(needs) is None else ""


def thread_options(name: str, device: str, allowed: int) -> list[int]:
    """Numbers of threads to try before the race: networks this small are often faster with one.

    The project decides for itself, as it does for its users.
    """
    if name in OWN or device != "cpu" or allowed == 1:
        return [allowed]
    return [1, allowed]


class Remote:
    """A contestant at work in another process; raises `Unfit` where it fails."""

    def __init__(self, name: str, case: str, tasks: int, device: str, threads: int):
        self.name, self.threads = name, threads
        # not fork: a forked process would inherit thread pools that no longer have their threads
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOAD)
        self._connection, other = context.Pipe()
        self._process = context.Process(target=serve, args=(other, name, case, tasks, device, threads), daemon=True)
        self._process.start()
        other.close()

    def _ask(self, question: str, *arguments: Any, timeout: float = START_SECONDS) -> Any:
        try:
            self._connection.send((question, *arguments))
            if not self._connection.poll(timeout):
                raise Unfit(f"it did not answer within {timeout:.0f} s")
            good, answer = self._connection.recv()
        except (EOFError, OSError):
            raise Unfit("its process died") from None
        if not good:
            raise Unfit(answer)
        return answer

    def meta_gradient(self) -> np.ndarray:
        """[M] on the common batch and weights; afterwards it is ready, with `threads` threads, to `run`."""
        started = time.perf_counter()
        gradient, self.unit, self.threads = self._ask("meta_gradient")
        self.start_seconds = time.perf_counter() - started
        return gradient

    def run(self, iterations: int) -> float:
        """Seconds for that many iterations, by its own clock."""
        return self._ask("run", iterations)

    def close(self) -> None:
        self._connection.close()  # it ends at the end of its input
        self._process.join(10)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def serve(connection: Connection, name: str, case: str, tasks: int, device: str, threads: int) -> None:
    """Answer one question after another: (True, answer) or (False, what went wrong)."""
    # XLA reads these once, when it starts; other contestants do not know them
    os.environ["NPROC"] = str(threads)
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # others share the GPU
    if threads == 1:
        os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_cpu_multi_thread_eigen=false"
    if device == "cpu":
        os.environ["JAX_PLATFORMS"] = "cpu"
    import torch

    torch.set_num_threads(threads)
    contestant: Contestant | None = None
    while True:
        try:
            question, *arguments = connection.recv()
        except EOFError:
            return
        try:
            if question == "meta_gradient":
                contestant = ENTRIES[name].build(Work(CASES[case], tasks, device))
                gradient = contestant.meta_gradient()
                answer: Any = gradient, contestant.unit, contestant.threads or threads
            else:
                assert contestant is not None
                started = time.perf_counter()
                loss = contestant.run(*arguments)
                answer = time.perf_counter() - started
                if not np.isfinite(loss):
                    raise Unfit(f"its meta-loss became {loss}")
            connection.send((True, answer))
        except Exception as error:
            text = " ".join((str(error) or type(error).__name__).split())[:200]
            connection.send((False, text))

"""The implementations that speed.py compares, and the process that each of them works in.

Each has a process of its own, so that it can be given the number of threads that suits it (JAX reads it once, when it
starts), and so that a crash affects no other. What the peers compute is in peers_jax.py and peers_torch.py.
"""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from benchmarks.speed.child import MeasurementError
from benchmarks.speed.work import CASES, Implementation, ThisProject, Work


class Listed(NamedTuple):
    """An implementation that can be compared.

    Attributes:
        title: in tables and figures.
        build: makes it; called in its own process, and only there imports the peer.
        cases: what it can compute.
        needs: the module that has to be installed; "" = nothing but this project.
    """

    title: str
    build: Callable[[Work], Implementation]
    cases: tuple[str, ...] = tuple(CASES)
    needs: str = ""

    @property
    def missing(self) -> bool:
        """Whether the module that it needs is not installed."""
        return bool(self.needs) and importlib.util.find_spec(self.needs) is None


def torch_peer(work: Work, backward: str) -> Implementation:
    from benchmarks.speed import peers_torch

    return peers_torch.TorchPeer(work, getattr(peers_torch, backward))


def jax_peer(work: Work, scanned: bool) -> Implementation:
    from benchmarks.speed import peers_jax

    return peers_jax.JaxPeer(work, scanned)


def without_compiler(work: Work) -> Implementation:
    """This project where there is no C++ compiler."""
    os.environ["CXX"] = "no-such-compiler"  # in this implementation's own process
    return ThisProject(work, "always")


MAML_CASES = ("maml-1", "maml-5")
IMPLEMENTATIONS = {
    "compiled": Listed("this project", lambda work: ThisProject(work, "always")),
    "traced": Listed("this project, no C++ compiler", without_compiler),
    "eager": Listed("this project, eager", lambda work: ThisProject(work, "never")),
    "jax-scan": Listed("JAX jit + lax.scan", lambda work: jax_peer(work, scanned=True), needs="jax"),
    "jax-call": Listed("JAX jit, a call per step", lambda work: jax_peer(work, scanned=False), MAML_CASES, "jax"),
    "loop": Listed("plain autograd loop", lambda work: torch_peer(work, "plain_loop"), MAML_CASES),
    "torchopt": Listed("torchopt MetaSGD", lambda work: torch_peer(work, "with_torchopt"), MAML_CASES, "torchopt"),
    "higher": Listed("higher", lambda work: torch_peer(work, "with_higher"), MAML_CASES, "higher"),
}
OWN = ("compiled", "traced", "eager")


def thread_options(name: str, device: str, allowed: int) -> list[int]:
    """Numbers of threads to try: networks this small are often faster with one. This project decides for itself."""
    if name in OWN or device != "cpu" or allowed == 1:
        return [allowed]
    return [1, allowed]


# ---- in the process

_running: list[Implementation] = []  # the one implementation of this process


def start(name: str, case: str, tasks: int, device: str, threads: int) -> tuple[np.ndarray, int, int]:
    """Build an implementation; its meta-gradient [M] on the common batch and weights, its `unit`, and its threads."""
    # XLA reads these once, when it starts; other implementations do not use them
    os.environ["NPROC"] = str(threads)
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # others share the GPU
    if threads == 1:
        os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_cpu_multi_thread_eigen=false"
    if device == "cpu":
        os.environ["JAX_PLATFORMS"] = "cpu"
    torch.set_num_threads(threads)
    one = IMPLEMENTATIONS[name].build(Work(CASES[case], tasks, device))
    _running.append(one)
    return one.meta_gradient(), one.unit, one.threads or threads


def seconds_for(iterations: int) -> float:
    """The time that the implementation of this process takes for iterations."""
    started = time.perf_counter()
    loss = _running[0].run(iterations)
    taken = time.perf_counter() - started
    if not np.isfinite(loss):
        raise MeasurementError(f"its meta-loss became {loss}")
    return taken

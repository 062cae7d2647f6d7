"""The implementations that speed.py compares, and the process that each of them works in.

Each has a process of its own, so that it can be given the number of threads that suits it (JAX reads it once, when it
starts), and so that a crash affects no other. What the peers compute is in peers_jax.py and peers_torch.py.
"""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks.speed.child import Child, MeasurementError, answer
from benchmarks.speed.work import CASES, Implementation, ThisProject, Work


class Listed(NamedTuple):
    """An implementation that can be compared.

    Attributes:
        title: in tables and figures.
        needs: the module that has to be installed; "" = nothing but this project.
        cases: what it can compute.
        build: makes it; called in its own process, and only there imports the peer.
    """

    title: str
    needs: str
    cases: tuple[str, ...]
    build: Callable[[Work], Implementation]


def torch_peer(backward: str) -> Callable[[Work], Implementation]:
    def build(work: Work) -> Implementation:
        from benchmarks.speed import peers_torch

        return peers_torch.TorchPeer(work, getattr(peers_torch, backward))

    return build


def jax_peer(scanned: bool) -> Callable[[Work], Implementation]:
    def build(work: Work) -> Implementation:
        from benchmarks.speed import peers_jax

        return peers_jax.JaxPeer(work, scanned)

    return build


def without_compiler(work: Work) -> Implementation:
    """This project where there is no C++ compiler."""
    os.environ["CXX"] = "no-such-compiler"  # in this implementation's own process
    return ThisProject(work, "always")


ALL_CASES, MAML_CASES = tuple(CASES), ("maml-1", "maml-5")
IMPLEMENTATIONS = {
    "compiled": Listed("this project", "", ALL_CASES, lambda work: ThisProject(work, "always")),
    "traced": Listed("this project, no C++ compiler", "", ALL_CASES, without_compiler),
    "eager": Listed("this project, eager", "", ALL_CASES, lambda work: ThisProject(work, "never")),
    "jax-scan": Listed("JAX jit + lax.scan", "jax", ALL_CASES, jax_peer(True)),
    "jax-call": Listed("JAX jit, a call per step", "jax", MAML_CASES, jax_peer(False)),
    "loop": Listed("plain autograd loop", "", MAML_CASES, torch_peer("plain_loop")),
    "torchopt": Listed("torchopt MetaSGD", "torchopt", MAML_CASES, torch_peer("with_torchopt")),
    "higher": Listed("higher", "higher", MAML_CASES, torch_peer("with_higher")),
}
OWN = ("compiled", "traced", "eager")


def missing_module(name: str) -> str:
    """The module that has to be installed for implementation `name`, or ""."""
    needs = IMPLEMENTATIONS[name].needs
    return needs if needs and importlib.util.find_spec(needs) is None else ""


def thread_options(name: str, device: str, allowed: int) -> list[int]:
    """Numbers of threads to try: networks this small are often faster with one. This project decides for itself."""
    if name in OWN or device != "cpu" or allowed == 1:
        return [allowed]
    return [1, allowed]


class InProcess:
    """An implementation in a process of its own; raises `MeasurementError` where it fails.

    Attributes:
        unit, threads: as of `Implementation`; start_seconds: to build and compile it. All set by `meta_gradient`.
    """

    unit: int
    threads: int
    start_seconds: float

    def __init__(self, name: str, case: str, tasks: int, device: str, threads: int):
        self._started = time.perf_counter()
        self._child = Child(serve, name, case, tasks, device, threads)

    def meta_gradient(self) -> np.ndarray:
        """The meta-gradient [M] on the common batch and weights."""
        gradient, self.unit, self.threads = self._child.receive()
        self.start_seconds = time.perf_counter() - self._started
        return gradient

    def seconds_for(self, iterations: int) -> float:
        """Seconds for that many iterations, measured in its process."""
        self._child.send(iterations)
        return self._child.receive()

    def close(self) -> None:
        self._child.close()


def serve(connection: Any, name: str, case: str, tasks: int, device: str, threads: int) -> None:
    """In the child: answer with the meta-gradient, then with the time for each number of iterations that is received."""
    # XLA reads these once, when it starts; other implementations do not use them
    os.environ["NPROC"] = str(threads)
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # others share the GPU
    if threads == 1:
        os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_cpu_multi_thread_eigen=false"
    if device == "cpu":
        os.environ["JAX_PLATFORMS"] = "cpu"
    torch.set_num_threads(threads)
    built: list[Implementation] = []

    def start() -> tuple[np.ndarray, int, int]:
        built.append(IMPLEMENTATIONS[name].build(Work(CASES[case], tasks, device)))
        return built[0].meta_gradient(), built[0].unit, built[0].threads or threads

    def run(iterations: int) -> float:
        started = time.perf_counter()
        loss = built[0].run(iterations)
        taken = time.perf_counter() - started
        if not np.isfinite(loss):
            raise MeasurementError(f"its meta-loss became {loss}")
        return taken

    answer(connection, start)
    while True:
        try:
            iterations = connection.recv()
        except EOFError:
            return
        answer(connection, run, iterations)

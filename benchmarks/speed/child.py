"""Child processes for measurements that need a process of their own: for their memory, threads or crashes."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from typing import Any

PRELOAD = ["torch", "torch._dynamo"]  # what the fork server imports once for all its processes
TIMEOUT = 300.0  # seconds


class MeasurementError(RuntimeError):
    """Something can't be measured; the text says why, in one line."""


class Child:
    """A process that runs `function(connection, *arguments)`, which answers by `answer`.

    As a context manager it waits at the end until the process has exited, and kills it after an error.
    """

    def __init__(self, function: Callable[..., None], *arguments: Any):
        # not fork: a forked process would inherit this one's memory, and thread pools without their threads
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOAD)
        self._connection, other = context.Pipe()
        self._process = context.Process(target=function, args=(other, *arguments), daemon=True)
        self._process.start()
        other.close()

    def send(self, question: Any) -> None:
        try:
            self._connection.send(question)
        except OSError:
            raise MeasurementError("its process died") from None

    def receive(self, timeout: float = TIMEOUT) -> Any:
        """The next answer; raises `MeasurementError` with the reason where there is none."""
        try:
            if not self._connection.poll(timeout):
                raise MeasurementError(f"it took longer than {timeout:.0f} s")
            succeeded, result = self._connection.recv()
        except (EOFError, OSError):
            raise MeasurementError("its process died, as one does that takes too much memory") from None
        if not succeeded:
            raise MeasurementError(result)
        return result

    def close(self, patience: float = 20.0) -> None:
        """End the process; `patience` in seconds."""
        self._connection.close()
        self._process.join(patience)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def __enter__(self) -> Child:
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        self.close(0.0 if kind else 20.0)


def answer(connection: Any, function: Callable[..., Any], *arguments: Any) -> None:
    """Send what the function returns as (True, result), or its error as (False, reason)."""
    try:
        message = True, function(*arguments)
    except Exception as error:
        message = False, " ".join((str(error) or type(error).__name__).split())[:200]
    connection.send(message)

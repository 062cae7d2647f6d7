"""Child processes for measurements that need a process of their own: for their memory, threads or crashes."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from typing import Any

PRELOAD = ["torch", "torch._dynamo"]  # what the fork server imports once for all its processes
TIMEOUT = 300.0  # seconds that one call may take
PATIENCE = 20.0  # seconds to end


class MeasurementError(RuntimeError):
    """Something can't be measured; the text says why, in one line."""


class Child:
    """A process that calls functions, one after another; as a context manager it ends with the block."""

    def __init__(self) -> None:
        # not fork: a forked process would inherit this one's memory, and thread pools without their threads
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOAD)
        self._connection, other = context.Pipe()
        self._process = context.Process(target=serve, args=(other,), daemon=True)
        self._process.start()
        other.close()

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """What the function returns in the process; raises `MeasurementError` where it fails or takes too long."""
        try:
            self._connection.send((function, arguments))
            if not self._connection.poll(TIMEOUT):
                self._process.kill()
                raise MeasurementError(f"it took longer than {TIMEOUT:.0f} s")
            succeeded, result = self._connection.recv()
        except (EOFError, OSError):
            raise MeasurementError("its process died, as one does that takes too much memory") from None
        if not succeeded:
            raise MeasurementError(result)
        return result

    def close(self) -> None:
        self._connection.close()
        self._process.join(PATIENCE)
        self._process.kill()
        self._process.join()

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def serve(connection: Any) -> None:
    """In the process: answer each call with (True, what it returned) or (False, its error in one line)."""
    while True:
        try:
            function, arguments = connection.recv()
        except EOFError:
            return
        try:
            answer = True, function(*arguments)
        except Exception as error:
            answer = False, " ".join((str(error) or type(error).__name__).split())[:200]
        connection.send(answer)

"""The error that ends a command: one line for the user, and the exit code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class RunError(Exception):
    """A run that can't be made, opened or used: one line, and the exit code that goes with it."""

    def __init__(self, message: str, code: int = 2):
        super().__init__(message)
        self.code = code


@contextmanager
def checkpoint_errors() -> Iterator[None]:
    """What reading a checkpoint of another run, or an odd one, raises becomes a `RunError`."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        got = " ".join(str(error).split())[:300]
        raise RunError(f"the checkpoint does not fit this run (got {got}; expected one of its own)") from None

"""The error that ends a command: one line for the user, and the exit code."""

from __future__ import annotations


class RunError(Exception):
    """A run that can't be made, opened or used: one line, and the exit code that goes with it."""

    def __init__(self, message: str, code: int = 2):
        super().__init__(message)
        self.code = code

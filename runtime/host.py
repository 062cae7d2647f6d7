"""The process that a run is a guest of, a notebook's or a web server's: what belongs to it is put back."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def flushes_denormals() -> bool:
    """Whether this thread computes with zero in place of numbers below the smallest normal one."""
    smallest = sys.float_info.min
    return smallest / 2 == 0.0


@contextmanager
def state_put_back() -> Iterator[None]:
    """On every way out, the process-wide settings that training changes are what they were before."""
    threads, flushed, hook = torch.get_num_threads(), flushes_denormals(), threading.excepthook
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.set_flush_denormal(flushed)
        threading.excepthook = hook

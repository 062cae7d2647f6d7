"""The machine and the process that a run is a guest of: its devices, and what of the process is put back."""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from config import ConfigError


def flushes_denormals() -> bool:
    """Whether this thread computes with zero in place of numbers below the smallest normal one."""
    return sys.float_info.min / 2 == 0.0


def resolve_device(name: str) -> torch.device:
    available = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return torch.device("cuda" if available else "cpu")
    index = int(name.partition(":")[2] or 0)
    if name != "cpu" and index >= available:
        raise ConfigError(f"DEVICE can't be used (got {name}; expected cpu, or one of {available} CUDA devices)")
    return torch.device(name)


@contextmanager
def restore_process_state() -> Iterator[None]:
    """On every way out, the process-wide settings that training changes are what they were before."""
    threads, flushed, hook = torch.get_num_threads(), flushes_denormals(), threading.excepthook
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.set_flush_denormal(flushed)
        threading.excepthook = hook


@contextmanager
def collection_paused(program: bool = False) -> Iterator[None]:
    """No garbage is collected: where a million objects are made that stay, looking through them takes half a second.

    In a process of our own (`program`) it never looks through them again, but once where the next run begins.
    """
    enabled = gc.isenabled()
    if program and gc.get_freeze_count():
        gc.unfreeze()
        gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if program:
            gc.freeze()
        if enabled:
            gc.enable()

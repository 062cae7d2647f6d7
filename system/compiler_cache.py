"""Where torch's compiler keeps its files, and what is done where it can't use them: its failure costs time only.

Variables and handlers of loggers that are changed for the time of compiling are put back.
"""

from __future__ import annotations

import functools
import getpass
import logging
import os
import re
import sys
import sysconfig
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

Made = TypeVar("Made")

FOLDER = "TORCHINDUCTOR_CACHE_DIR"
CHANGED = (FOLDER, "TRITON_CACHE_DIR", "_TORCHINDUCTOR_PYOBJECT_TENSOR_DATA_PTR", "LOGNAME")  # variables, by torch or here


def one_line(error: Exception) -> str:
    """What went wrong, without what torch wraps around it."""
    error = getattr(error, "inner_exception", error)
    return " ".join((str(error) or type(error).__name__).split())[:200]


def _user() -> str:
    """The account's name, also where it has none, as in containers."""
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):
        return f"uid_{os.getuid()}" if hasattr(os, "getuid") else "unknown"


def usual_folder() -> str:
    """The folder that torch's compiler takes; raises OSError where there is no place for temporary files."""
    if given := os.environ.get(FOLDER):
        return os.path.abspath(given)
    return os.path.join(tempfile.gettempdir(), "torchinductor_" + re.sub(r'[\\/:*?"<>|]', "_", _user()))


@contextmanager
def _variables(**values: str) -> Iterator[None]:
    """Set environment variables for a time; what torch sets is undone as well."""
    before = {name: os.environ[name] for name in CHANGED if name in os.environ}
    os.environ.update({"LOGNAME": _user()} | values)
    try:
        yield
    finally:
        for name in CHANGED:
            os.environ.pop(name, None)
        os.environ.update(before)


@functools.cache
def load_derivatives() -> None:
    """Import what torch's first derivative imports. That import makes the compiler's folder, and would fail where it can't be
    made: here it finds one that exists, and nothing is written there."""
    with _variables(**{FOLDER: os.path.abspath(os.sep)}):
        import torch._dynamo  # noqa: F401


def with_cache(action: Callable[[], Made]) -> tuple[Made, str]:
    """Run `action`, which compiles, with the usual folder; where that fails, once more with a new folder, removed in the end.

    Returns its result, and what was wrong the first time, "" where nothing was; raises what `action` raises the second time.
    """
    with _quiet():
        try:
            folder = usual_folder()
            os.makedirs(folder, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder) as probe:
                probe.write(b"room")
            with _variables(**{FOLDER: folder}):
                return action(), ""
        except Exception as error:
            reason = one_line(error)
        with (  # a library that is loaded needs no file
            tempfile.TemporaryDirectory(prefix="torchinductor_", ignore_cleanup_errors=True) as fresh,
            _variables(**{FOLDER: fresh, "TRITON_CACHE_DIR": os.path.join(fresh, "triton")}),
        ):
            from torch._inductor.utils import clear_caches

            clear_caches()  # what this process remembers of the usual folder's files
            return action(), reason


def check_paths() -> None:
    """Raise OSError where a path that torch's C++ compiler is called with has a blank or a quote: torch does not quote all."""
    paths = [sys.prefix, sys.base_prefix, os.path.dirname(torch.__file__), os.environ.get(FOLDER)]
    for path in [*paths, sysconfig.get_path("include"), sysconfig.get_config_var("LIBDIR")]:
        if path and re.search(r"""[\s'"\\]""", path) and os.name != "nt":
            raise OSError(f"torch can't compile with this path (got {path!r}; expected one without blanks and quotes)")


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep off the terminal what torch logs and warns of, in pages; TORCH_LOGS asks to see it."""

    def silent(_: logging.LogRecord) -> bool:
        return "TORCH_LOGS" in os.environ

    loggers = [logging.getLogger(name) for name in list(logging.root.manager.loggerDict) if name.split(".")[0] == "torch"]
    terminals = [handler for logger in loggers for handler in logger.handlers if type(handler) is logging.StreamHandler]
    for handler in terminals:
        handler.addFilter(silent)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for handler in terminals:
            handler.removeFilter(silent)

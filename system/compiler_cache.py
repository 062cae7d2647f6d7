"""Where torch's compiler keeps its files, and what is done where it can't: its failure costs time only.

Independent of what is compiled. What is changed for the time of compiling (variables, two names inside torch, handlers
of its loggers) is put back.
"""

from __future__ import annotations

import functools
import getpass
import logging
import os
import re
import shlex
import shutil
import struct
import sys
import sysconfig
import tempfile
import threading
import types
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

FOLDER = "TORCHINDUCTOR_CACHE_DIR"
CHANGED = (FOLDER, "TRITON_CACHE_DIR", "_TORCHINDUCTOR_PYOBJECT_TENSOR_DATA_PTR", "LOGNAME")  # variables, by torch or here
ONE_AT_A_TIME = threading.RLock()  # what an interrupted run left behind in a thread, and the next run


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


def _writable_folder() -> str:
    """The usual folder, made where it is missing; raises OSError where nothing can be written there."""
    os.makedirs(folder := usual_folder(), exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as probe:
        probe.write(b"room")
    return folder


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
    """Import what torch's first derivative imports: that makes the compiler's folder, and fails where it can't be made."""
    try:
        folder = _writable_folder()
    except OSError:
        folder = os.path.abspath(os.sep)  # exists; nothing is written there
    with _variables(**{FOLDER: folder}):
        import torch._dynamo  # noqa: F401


def with_cache(action: Callable[[], None]) -> str:
    """Run `action`, which compiles; where that fails, once more with an empty folder, whose files mend the usual one.

    Returns what was wrong with the usual folder, "" where nothing was; raises what `action` raises the second time.
    """
    folder = ""
    with _quiet():
        try:
            folder = _writable_folder()
            with _variables(**{FOLDER: folder}):
                action()
            return ""
        except Exception as error:
            reason = one_line(error)
        with _private_folder() as fresh:
            from torch._inductor.utils import clear_caches

            clear_caches()  # what this process remembers of the files that were no good
            action()
            _mend(folder, fresh)
    return reason


@contextmanager
def _private_folder() -> Iterator[str]:
    """The compiler's files lie in a new folder that is removed in the end: a library that is loaded needs no file."""
    with (
        tempfile.TemporaryDirectory(prefix="torchinductor_", ignore_cleanup_errors=True) as fresh,
        _variables(**{FOLDER: fresh, "TRITON_CACHE_DIR": os.path.join(fresh, "triton")}),
    ):
        yield fresh


def _mend(folder: str, fresh: str) -> None:
    """Replace files of `folder` by those just made, which have the same names for the same contents."""
    with suppress(OSError):
        for path in Path(fresh).rglob("*") if folder else ():
            place = Path(folder, path.relative_to(fresh))
            part = place.with_name(f".{place.name}.{os.getpid()}.tmp")
            if path.is_file() and path.suffix != ".lock":
                place.parent.mkdir(parents=True, exist_ok=True)
                try:
                    shutil.copy(path, part)
                    os.replace(part, place)
                finally:
                    part.unlink(missing_ok=True)


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


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = vars(owner)[name]  # with its descriptor
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


@contextmanager
def sound_compiler() -> Iterator[None]:
    """Torch's C++ compiler with three faults mended: paths that it does not quote, libraries that it loads though they were
    cut short, and vector instructions that it takes to be missing then."""
    from torch._inductor import codecache, cpp_builder, cpu_vec_isa

    kind, load = cpu_vec_isa.VecISA, cpu_vec_isa.VecISA._avx_py_load.replace('"__lib_path__"', 'r"""__lib_path__"""')
    with (
        ONE_AT_A_TIME,
        _replaced(cpp_builder, "shlex", types.SimpleNamespace(**vars(shlex) | _quoting())),
        _replaced(codecache.CppCodeCache, "_load_library", _checked(codecache.CppCodeCache._load_library)),
        _replaced(kind, "_avx_py_load", load),
        _replaced(kind, "check_build", _twice(kind.check_build)),
    ):
        yield


def probe_processor() -> None:
    """Ask which vector instructions there are: torch finds out in processes of its own, and remembers the answer."""
    from torch._inductor import cpu_vec_isa

    with suppress(Exception), sound_compiler():  # the compiler meets the same exception, and is heard
        cpu_vec_isa.pick_vec_isa()


def _quoting() -> dict[str, Callable[[str], Any]]:
    """Replacements in `shlex`: g++ gets paths in one piece, though torch writes them into its command line without quotes."""
    names = [sys.prefix, sys.base_prefix, os.path.dirname(torch.__file__), sysconfig.get_path("include"), os.environ.get("CXX")]
    names += [sysconfig.get_config_var("LIBDIR"), tempfile.gettempdir(), os.environ[FOLDER]]
    places = sorted({name for name in names if name and name != shlex.quote(name)}, key=len, reverse=True)
    if not places or os.name == "nt":  # where torch quotes
        return {}
    pattern = re.compile("|".join(map(re.escape, places)))
    return {
        "quote": lambda path: path,  # all at once below
        "split": lambda command: shlex.split(pattern.sub(lambda place: shlex.quote(place[0]), command)),
    }


def check_library(path: str | Path) -> None:
    """Raise OSError where an ELF library lacks its end, the table of sections: to load it may end the process by SIGBUS."""
    with open(path, "rb") as file:
        head = file.read(64).ljust(64, b"\0")
    order = "<" if head[5] == 1 else ">"
    (table,), (size, count) = struct.unpack_from(order + "Q", head, 40), struct.unpack_from(order + "HH", head, 58)
    if head[:5] == b"\x7fELF\2" and os.path.getsize(path) < table + size * count:
        raise OSError(f"{path}: cut short")


def _checked(load: Any) -> Any:
    def load_library(cls: Any, path: str, key: str) -> Any:
        check_library(path)
        return load.__func__(cls, path, key)

    return classmethod(load_library)


def _twice(check: Callable[[Any, str], bool]) -> Callable[[Any, str], bool]:
    """A test library that does not load is built again before it is believed: one that was cut short looks the same as
    vector instructions that the processor lacks, and would change speed and last bits for good."""

    def check_build(self: Any, code: str) -> bool:
        if check(self, code):
            return True
        folder, found = os.environ[FOLDER], False
        with suppress(OSError), _private_folder() as fresh:
            if found := check(self, code):
                _mend(folder, fresh)
        return found

    return check_build

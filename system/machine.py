"""What a run ran on: the machine, its libraries, and the state of the code."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import torch
from torch.utils import collect_env

LIBRARIES = ("torch", "numpy", "matplotlib", "tqdm", "psutil", "tensorboard")
REPORTED_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "WORLD_SIZE", "TORCHINDUCTOR_CACHE_DIR")


def git_state() -> dict[str, Any]:
    """Commit of the code that runs, and whether it had changes; nulls where there is no repository."""
    here = Path(__file__).resolve().parent.parent

    def git(*args: str) -> str | None:
        code, text, _ = _run(["git", "-C", str(here), *args])
        return text if code == 0 else None

    changes = git("status", "--porcelain")
    return {"commit": git("rev-parse", "HEAD"), "dirty": None if changes is None else bool(changes)}


def system_report() -> dict[str, Any]:
    """What the run ran on; of the environment variables only those on a short list."""
    devices = range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
    gpus = map(torch.cuda.get_device_properties, devices)
    return {
        "platform": platform.platform(),
        "os": collect_env.get_os(_run),
        "compiler": collect_env.get_gcc_version(_run),
        "python": platform.python_version(),
        "cpu": {"model": _cpu_model(), "logical_cores": psutil.cpu_count(), "physical_cores": psutil.cpu_count(logical=False)},
        "memory": {"total_gib": psutil.virtual_memory().total / 2**30, "peak_process_gib": _peak_memory() / 2**30},
        "gpu": [{"name": gpu.name, "memory_gib": gpu.total_memory / 2**30} for gpu in gpus],
        "cuda": torch.version.cuda,
        "threads": {"torch": torch.get_num_threads(), "interop": torch.get_num_interop_threads()},
        "libraries": {name: metadata.version(name) for name in LIBRARIES} | {"torch": str(torch.__version__)},  # with its build
        "variables": {name: os.environ[name] for name in REPORTED_VARIABLES if name in os.environ},
    }


def _cpu_model() -> str:
    with contextlib.suppress(OSError):
        if found := re.search(r"^model name\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE):
            return found[1]
    return platform.processor()


def _peak_memory() -> int:
    """Bytes of the largest resident set so far."""
    try:
        import resource
    except ImportError:  # Windows, where psutil knows it
        memory = psutil.Process().memory_info()
        return int(getattr(memory, "peak_wset", memory.rss))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _run(command: str | list[str]) -> tuple[int, str, str]:
    """Run a short command: (exit code, output, errors); a command that hangs or is missing has failed."""
    try:
        done = subprocess.run(command, shell=isinstance(command, str), capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired) as error:
        return 1, "", str(error)
    return done.returncode, done.stdout.strip(), done.stderr.strip()

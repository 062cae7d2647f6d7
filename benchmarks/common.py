"""Shared by the folders of benchmarks: the machine's description, Markdown tables, flags, and the writing of results."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from system.files import json_bytes
from system.machine import git_state, system_report

ROOT = Path(__file__).resolve().parents[1]
LIBRARIES = ("torch", "numpy", "jax", "jaxlib", "torchopt", "higher")  # whose versions are recorded


# ---- flags of the speed benchmarks


def add_common_flags(parser: argparse.ArgumentParser) -> None:
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=default, help=f"cpu, cuda or cuda:N; default here: {default}")
    parser.add_argument("--threads", type=int, default=available_threads(), help="most CPU threads; default: %(default)s")
    parser.add_argument("--quick", action="store_true", help="a tiny version that tests the script; its times mean little")
    parser.add_argument(
        "--output", type=Path, default=ROOT / "benchmarks" / "results", metavar="DIR", help="default: benchmarks/results"
    )


def set_defaults(args: argparse.Namespace, values: dict[str, Any]) -> None:
    """Give the flags that were left out the values that depend on other flags."""
    for key, value in values.items():
        if getattr(args, key) is None:
            setattr(args, key, value)


def check_flags(parser: argparse.ArgumentParser, args: argparse.Namespace, positive: Sequence[str]) -> None:
    """Exit with code 2 for an unusable device or number of threads, or where one of `positive` is given and not above 0."""
    for key in positive:
        value = getattr(args, key)
        if value is not None and not value > 0:
            parser.error(f"--{key.replace('_', '-')} can't be used (got {value}; expected above 0)")
    if args.threads < 1:
        parser.error(f"--threads can't be used (got {args.threads}; expected at least 1)")
    devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if args.device not in {"cpu", *(["cuda"] if devices else []), *(f"cuda:{index}" for index in range(devices))}:
        parser.error(f"--device can't be used (got {args.device}; expected cpu, or one of {devices} CUDA devices)")


# ---- the machine


def available_threads() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine(device: str) -> dict[str, Any]:
    """The machine, the code and the libraries, as recorded in the JSON."""
    system = system_report()
    versions: dict[str, str | None] = {}
    for name in LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "device": torch.cuda.get_device_name(device) if device != "cpu" else system["cpu"]["model"],
        "cpu": system["cpu"],
        "memory_gib": system["memory"]["total_gib"],
        "python": system["python"],
        "libraries": versions,
        "git": git_state(),
    }


def machine_line(machine: dict[str, Any]) -> str:
    """The machine in one line."""
    cores, libraries = machine["cpu"]["logical_cores"], machine["libraries"]
    installed = ", ".join(f"{name} {version}" for name, version in libraries.items() if version)
    return f"{machine['device']}, {cores} cores; {installed}"


# ---- output


def table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """A Markdown table, aligned: the first `left` columns to the left, the others to the right."""
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        texts = [
            cell.rjust(width) if column >= left else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return "| " + " | ".join(texts) + " |"

    rule = ["-" * width if column < left else "-" * (width - 1) + ":" for column, width in enumerate(widths)]
    return "\n".join(line(cells) for cells in [header, rule, *rows])


def progress(text: str) -> None:
    """Report on stderr what is being done; not part of the result."""
    print(text, file=sys.stderr, flush=True)


def save(directory: Path, name: str, record: dict[str, Any], figure: Figure) -> None:
    """Write NAME.json and NAME.png into `directory`."""
    (directory / f"{name}.json").write_bytes(json_bytes(record))
    figure.savefig(directory / f"{name}.png", dpi=150)
    print(f"written: {name}.json and {name}.png in {directory}", flush=True)

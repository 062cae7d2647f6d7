"""What both benchmarks share: where they ran, tables, and the files that they leave.

This file refuses to know what was measured.
"""

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

from runtime.storage import json_bytes
from runtime.system import git_state, system_report

ROOT = Path(__file__).resolve().parents[1]

PEERS = ("torch", "numpy", "jax", "jaxlib", "torchopt", "higher")


def available_threads() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def add_common(parser: argparse.ArgumentParser) -> None:
    """Flags of both benchmarks."""
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=default, help=f"cpu, cuda or cuda:N; default here: {default}")
    parser.add_argument("--threads", type=int, default=available_threads(), help="most CPU threads; default: %(default)s")
    parser.add_argument("--quick", action="store_true", help="a tiny version that shows that all works; its times mean little")
    parser.add_argument(
        "--output", type=Path, default=ROOT / "benchmarks" / "results", metavar="DIR", help="default: benchmarks/results"
    )


def check_common(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuse what can't work before anything is measured."""
    if args.threads < 1:
        parser.error(f"--threads can't be used (got {args.threads}; expected at least 1)")
    devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if args.device not in {"cpu", *(["cuda"] if devices else []), *(f"cuda:{index}" for index in range(devices))}:
        parser.error(f"--device can't be used (got {args.device}; expected cpu, or one of {devices} CUDA devices)")


def machine(device: str) -> dict[str, Any]:
    """The machine, the code and the libraries, as they go into the JSON."""
    system = system_report()
    versions: dict[str, str | None] = {}
    for name in PEERS:
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


def heading(machine: dict[str, Any]) -> str:
    """The machine in one line."""
    cores, libraries = machine["cpu"]["logical_cores"], machine["libraries"]
    known = ", ".join(f"{name} {version}" for name, version in libraries.items() if version)
    return f"{machine['device']}, {cores} cores; {known}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """A Markdown table, aligned: the first `left` columns to the left, the others to the right."""
    widths = [max(len(row[place]) for row in [header, *rows]) for place in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        texts = [
            cell.rjust(width) if place >= left else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return "| " + " | ".join(texts) + " |"

    rule = ["-" * width if place < left else "-" * (width - 1) + ":" for place, width in enumerate(widths)]
    return "\n".join(line(cells) for cells in [header, rule, *rows])


def say(text: str) -> None:
    print(text, flush=True)


def progress(text: str) -> None:
    """A line that says what goes on; not part of the result."""
    print(text, file=sys.stderr, flush=True)


def save(directory: Path, name: str, record: dict[str, Any], figure: Figure) -> None:
    """Write NAME.json and NAME.png into `directory`."""
    (directory / f"{name}.json").write_bytes(json_bytes(record))
    figure.savefig(directory / f"{name}.png", dpi=150)
    say(f"written: {name}.json and {name}.png in {directory}")

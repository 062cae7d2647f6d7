"""What all benchmarks share: flags, a description of the machine, Markdown tables, and the files that are written."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from system.files import json_bytes, write_atomically
from system.machine import git_state, system_report
from visualization import png_bytes

ROOT = Path(__file__).resolve().parents[1]
LIBRARIES = ("torch", "numpy", "jax", "jaxlib", "torchopt", "higher")  # whose versions are recorded


# ---- flags


def new_parser(description: str | None, output: bool = True, device: bool = False) -> argparse.ArgumentParser:
    """A parser with --quick; `output`: the benchmark writes files, `device`: it can use a GPU and several threads."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--quick", action="store_true", help="a tiny version that tests the script; its numbers mean nothing")
    if output:
        help = "gets benchmarks/ and docs/; default: this project, and with --quick benchmarks/runs/quick"
        parser.add_argument("--output", type=Path, metavar="DIR", help=help)
    if device:
        default = "cuda" if torch.cuda.is_available() else "cpu"
        parser.add_argument("--device", default=default, help=f"cpu, cuda or cuda:N; default here: {default}")
        parser.add_argument("--threads", type=int, default=available_threads(), help="most CPU threads; default: %(default)s")
    return parser


def parse(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None, usual: Mapping[str, Any], quick: Mapping[str, Any]
) -> argparse.Namespace:
    """The flags; those that were left out get their value of `usual`, and with --quick that of `quick`.

    Exits with code 2 for numbers that are not above 0, and for a device that is not there.
    """
    args = parser.parse_args(argv)
    defaults = {**usual, "output": ROOT} | ({**quick, "output": ROOT / "benchmarks" / "runs" / "quick"} if args.quick else {})
    for key, value in defaults.items():
        if getattr(args, key, None) is None:
            setattr(args, key, value)
    for key in {"tasks", "rounds", "seconds", "threads"} & vars(args).keys():
        if not getattr(args, key) > 0:  # NaN is not
            parser.error(f"--{key} can't be used (got {getattr(args, key)}; expected above 0)")
    devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    usable = ["cpu", *(["cuda"] if devices else []), *(f"cuda:{index}" for index in range(devices))]
    if getattr(args, "device", "cpu") not in usable:
        parser.error(f"--device can't be used (got {args.device}; expected one of {', '.join(usable)})")
    return args


def progress(text: str) -> None:
    """Report on stderr what is being done; not part of the result."""
    print(text, file=sys.stderr, flush=True)


# ---- the machine


def available_threads() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine(device: str = "cpu") -> dict[str, Any]:
    """The machine, the code and the libraries, as recorded in the JSON."""
    system, installed = system_report(), {package.name: package.version for package in metadata.distributions()}
    return {
        "device": torch.cuda.get_device_name(device) if device != "cpu" else system["cpu"]["model"],
        "cpu": system["cpu"],
        "memory_gib": system["memory"]["total_gib"],
        "python": system["python"],
        "libraries": {name: installed[name] for name in LIBRARIES if name in installed},
        "git": git_state(),
    }


def machine_line(machine: Mapping[str, Any]) -> str:
    """The machine in one line."""
    installed = ", ".join(f"{name} {version}" for name, version in machine["libraries"].items())
    return f"{machine['device']}, {machine['cpu']['logical_cores']} cores; {installed}"


def commit_text(git: Mapping[str, Any]) -> str:
    """The commit of a `git_state`, and whether it had changes."""
    return str(git["commit"])[:12] + (" with changes" if git["dirty"] else "")


# ---- Markdown and files


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


def filled(output: Path, document: str, parts: Mapping[str, str]) -> str:
    """A document of `output`, or else of this project, with new text from its lines <!-- NAME --> to <!-- end of NAME -->."""
    path = next(folder / document for folder in (output, ROOT) if (folder / document).exists())
    text = path.read_text(encoding="utf-8")
    for name, part in parts.items():
        begin, end = f"<!-- {name} -->\n", f"\n<!-- end of {name} -->"
        start = text.index(begin) + len(begin)
        text = f"{text[:start]}\n{part}\n{text[text.index(end, start) :]}"
    return text


def write(output: Path, contents: Mapping[str, str | bytes | Figure | dict[str, Any]]) -> None:
    """Write files under `output`, by name: a text, bytes, a figure as PNG, or a record as JSON."""
    for name, content in contents.items():
        if isinstance(content, Figure):
            data = png_bytes(content)
        elif isinstance(content, dict):
            data = json_bytes(content)
        else:
            data = content if isinstance(content, bytes) else content.encode()
        path = output / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, data)
        print(f"written: {path}", flush=True)

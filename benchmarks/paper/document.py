"""The tables of PAPER.md; the text around them is in PAPER.md itself."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import commit_text, machine, machine_line, table
from benchmarks.paper.baselines import FineTuned
from benchmarks.paper.checks import Check, PairedComparison, verdict
from benchmarks.paper.methods import ROWS
from benchmarks.runs import Run, commits, training_seconds
from evaluation.comparison import Comparison, Row

GRADIENTS = (1, 5, 10)  # the columns of the paper's table

# Mean squared errors on the sinusoids of Finn et al. 2017, a row for each source and K, a column for each of GRADIENTS.
# Papers that vary the frequency or the range of phases are left out: other tasks.
PUBLISHED = list(csv.DictReader(Path(__file__).with_name("published.csv").read_text(encoding="utf-8").splitlines()))


def paper_table(found: Comparison, shots: int) -> str:
    """Published results with their marks, then this project's, after 1, 5 and 10 gradients."""
    rows = [
        [one["source"], one["mark"], one["protocol"], *(one[str(step)] for step in GRADIENTS)]
        for one in PUBLISHED
        if one["shots"] == str(shots)
    ]
    for label, method in ROWS.items():
        own = [row for row in found.rows if (row.group, row.shots) == (label, shots) and row.gradients in GRADIENTS]
        rows.append([f"**{label}**", "measured", method.protocol, *map(error_cell, own)])
    return table(["method", "mark", "protocol", "1 gradient", "5 gradients", "10 gradients"], rows, left=3)


def error_cell(row: Row) -> str:
    if not math.isfinite(row.mean):
        return "diverges"
    over_seeds = f" (± {row.ci_seeds:.2g})" if row.seeds > 1 else ""
    return f"{row.mean:.3g} ± {row.ci_tasks:.2g}{over_seeds}"


def order_table(pairs: Sequence[PairedComparison]) -> str:
    rows = []
    for pair in pairs:
        flags = ["yes" if flag else "no" for flag in (pair.apart, pair.seeds_agree)]
        rows.append([pair.claim, *pair.cells(), *flags, verdict(pair.holds)])
    return table(["order", "first", "second", "difference", "intervals apart", "in every seed", "verdict"], rows)


def step_size_table(tuned: Sequence[tuple[int, FineTuned]]) -> str:
    """Of (seed, fine-tuned baseline)."""
    rows = []
    for seed, one in tuned:
        for shots, size in one.step_sizes.items():
            rows.append([one.entry.label, str(seed), str(shots), f"{size:g}", f"{one.validation[shots][size]:.3g}"])
    return table(["baseline", "seed", "K", "step size", "validation error"], rows)


def check_table(checks: Sequence[Check]) -> str:
    return table(["check", "must", "measured", "verdict"], [[*one[:3], one.verdict] for one in checks], left=4)


def provenance(runs: Sequence[Run], smaller: Mapping[str, Any], arguments: Sequence[str], trained: int, seconds: float) -> str:
    """Where, when and from what the results come.

    Args:
        smaller: the settings of a smaller version; arguments: of the command.
        trained: how many runs this call has trained; seconds: that it took.
    """
    here, seeds = machine(), sorted({run.seed for run in runs})
    spent = f"{training_seconds(runs):.0f} s of training and compiling in {len(runs)} runs, each on one core"
    lines = [
        f"* command: `{' '.join(['python benchmarks/paper/paper.py', *arguments])}`",
        f"* commit: {commit_text(here['git'])}; the runs were trained at {', '.join(commits(runs))}",
        f"* machine: {machine_line(here)}",
        f"* seeds: {', '.join(map(str, seeds))}",
        f"* time: {spent}; this call took {seconds:.0f} s and trained {trained} of them",
    ]
    if smaller:
        changed = ", ".join(f"{key}={value}" for key, value in smaller.items())
        lines.append(f"* **not the papers' settings**: a smaller version, in which all runs have {changed}")
    return "\n".join(lines)

"""PAPER.md: published results, and the text and tables that put this project's results beside them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from benchmarks.common import commit_text, machine, machine_line, table
from benchmarks.paper.baselines import STEP_SIZES, FineTuned
from benchmarks.paper.checks import Check, PairedComparison, verdict
from benchmarks.paper.methods import ROWS
from benchmarks.runs import Run, commits, training_seconds
from evaluation.comparison import Comparison, Row

GRADIENTS = (1, 5, 10)  # the columns of the paper's table


class Published(NamedTuple):
    """One row of a published table: shots -> gradients -> mean squared error."""

    source: str
    mark: str  # read: in the paper's text or in code; second hand: from notes or a README; recalled: not verified
    protocol: str
    values: dict[int, dict[int, float]]


# On the sinusoids of Finn et al. 2017. Papers that vary the frequency or the range of phases are left out: other tasks.
PUBLISHED = (
    Published(
        "Finn et al. 2017, appendix C.1: MAML",
        "read",
        "trained 10-shot, 1 step, 70,000 iterations",
        {5: {1: 0.67, 5: 0.38, 10: 0.35}},
    ),
    Published(
        "Finn et al. 2017, appendix C.1: pretrained on all tasks", "read", "fine-tuned", {5: {1: 2.41, 5: 2.23, 10: 2.19}}
    ),
    Published(
        "clvrai/MAML-tf: MAML",
        "read",
        "trained 10-shot, step size 0.001, 70,000 iterations",
        {5: {1: 0.661, 5: 0.302, 10: 0.271}, 10: {1: 0.451, 5: 0.202, 10: 0.190}},
    ),
    Published("Meta-Curvature, table 1: MAML", "recalled", "1 step", {5: {1: 0.686}, 10: {1: 0.435}}),
    Published("Meta-Curvature, table 1: Meta-SGD", "recalled", "1 step", {5: {1: 0.482}, 10: {1: 0.258}}),
    Published("Meta-Curvature, table 1: MC2", "recalled", "1 step", {5: {1: 0.405}, 10: {1: 0.201}}),
    Published("GP-VIB: MAML", "second hand", "10 steps", {5: {10: 0.280}}),
    Published("GP-VIB: GP-VIB", "second hand", "10 steps", {5: {10: 0.02}}),
    Published("CAVIA, table 1: CAVIA", "recalled", "10-shot, 1 step", {10: {1: 0.19}}),
)

REMARKS = (  # what does not fit the columns: a range, or an unknown number of gradients
    "CAVIA's table 1 (recalled; 10-shot, 1 step) has 0.33 to 0.23 for MAML, by the size of its network.",
    "MetaFun's table 1 (recalled; the number of gradients is not recorded) has 0.390 / 0.114 for MAML and "
    "0.040 / 0.017 for MetaFun, 5-shot / 10-shot.",
)


# ---- tables


def paper_table(found: Comparison, shots: int) -> str:
    """Published results with their marks, then this project's, after 1, 5 and 10 gradients."""
    rows = []
    for one in PUBLISHED:
        if shots in one.values:
            values = [f"{one.values[shots][step]:g}" if step in one.values[shots] else "" for step in GRADIENTS]
            rows.append([one.source, one.mark, one.protocol, *values])
    for label, method in ROWS.items():
        own = [row for row in found.rows if (row.group, row.shots) == (label, shots) and row.gradients in GRADIENTS]
        rows.append([f"**{label}**", "measured", method.protocol, *map(error_cell, own)])
    columns = [f"{step} gradient{'' if step == 1 else 's'}" for step in GRADIENTS]
    return table(["method", "mark", "protocol", *columns], rows, left=3)


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
    rows = []
    for seed, one in tuned:
        for shots, size in one.step_sizes.items():
            rows.append([one.entry.label, str(seed), str(shots), f"{size:g}", f"{one.validation[shots][size]:.3g}"])
    return table(["baseline", "seed", "K", "step size", "validation error"], rows)


def check_table(checks: Sequence[Check]) -> str:
    return table(["check", "must", "measured", "verdict"], [[*one[:3], one.verdict] for one in checks], left=4)


# ---- the page


def document(
    found: Comparison,
    tuned: Sequence[tuple[int, FineTuned]],
    pairs: Sequence[PairedComparison],
    checks: Sequence[Check],
    provenance: str,
    sine_line: str,
) -> str:
    """The contents of PAPER.md.

    Args:
        tuned: (seed, fine-tuned baseline).
        provenance: the lines on where the results come from; sine_line: the section on sinusoids and lines.
    """
    sections = {
        "What it must show": check_table(checks),
        "The MAML paper's table: 5-shot": f"{paper_table(found, 5)}\n\n{explanation(found.rows[0])}",
        "The same, 10-shot": paper_table(found, 10) + "\n\n" + "\n".join(f"* {remark}" for remark in REMARKS),
        "Curves": "![error against gradients](../docs/paper_gradients.png)\n\n![error against K](../docs/paper_shots.png)\n\n"
        "Bands are 95% intervals over test tasks. Every number behind the curves is in [results/paper.csv](results/paper.csv).",
        "Order of methods": f"After {found.last} gradients, 10-shot. A difference is the second minus the first, task by task."
        f"\n\n{order_table(pairs)}\n\n"
        "`<` holds where the intervals over tasks are disjoint, the difference's interval is above 0, and the worst seed of "
        "the first is better than the best seed of the second; `<=` holds unless the difference's interval is below 0.",
        "How the baselines were fine-tuned": "With the step size that has the lowest mean error after the last gradient on "
        "validation tasks, as many as there are test tasks, for each K and seed, of "
        f"{', '.join(f'{size:g}' for size in STEP_SIZES)}. The methods have no such choice: they keep the step size that "
        f"they were trained with, or learned.\n\n{step_size_table(tuned)}",
        "LEO's own experiment: sinusoids and lines": sine_line,
        "One network adapting": "![MAML beside LEO](../docs/adaptation.gif)\n\nThe test task on which MAML's error after the "
        "last gradient is the median one; LEO is the one trained 5-shot.",
    }
    parts = [f"## {title}\n\n{text}\n" for title, text in sections.items()]
    return "\n".join([f"# The papers' tables and figures, by this project\n\n{provenance}\n", *parts])


def explanation(row: Row) -> str:
    """How to read the table that `row` is in."""
    return (
        f"Mean squared error on {row.tasks} test tasks, the same for all rows of this project, ± its 95% interval over tasks; "
        f"in brackets that over {row.seeds} seeds (Student's t over the seeds' means). Marks: *read* in the paper's text or in "
        "code, *second hand* from notes or a README, *recalled* and not verified, *measured* here. K shots at test time: one "
        "trained network serves every K."
    )


def provenance(runs: Sequence[Run], smaller: Mapping[str, Any], arguments: Sequence[str], trained: int, took: float) -> str:
    """Where, when and from what the results come.

    Args:
        smaller: the settings of a smaller version; arguments: of the command.
        trained: how many runs this call has trained; took: its seconds.
    """
    here, seeds = machine(), sorted({run.seed for run in runs})
    lines = [
        f"* command: `{' '.join(['python benchmarks/paper/paper.py', *arguments])}`",
        f"* commit: {commit_text(here['git'])}; the runs were trained at {', '.join(commits(runs))}",
        f"* machine: {machine_line(here)}",
        f"* seeds: {', '.join(map(str, seeds))}",
        f"* time: {training_seconds(runs):.0f} s of training and compiling in {len(runs)} runs, each on one core; this call "
        f"took {took:.0f} s and trained {trained} of them",
    ]
    if smaller:
        changed = ", ".join(f"{key}={value}" for key, value in smaller.items())
        lines.append(f"* **not the papers' settings**: a smaller version, in which all runs have {changed}")
    return "\n".join(lines)

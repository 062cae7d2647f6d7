"""Other people's numbers on the sinusoids of Finn et al. 2017, each with its protocol and how it came to us.

Marks: read = in the paper's text or in code; second hand = from notes or a README; recalled = not verified. Papers
that vary the frequency, or the range of phases, are left out: their numbers mean something else.
"""

from __future__ import annotations

from typing import NamedTuple


class Published(NamedTuple):
    """One row of somebody's table: shots -> gradients -> mean squared error."""

    source: str
    mark: str
    protocol: str
    values: dict[int, dict[int, float]]


FINN = "Finn et al. 2017, appendix C.1"

PUBLISHED = (
    Published(f"{FINN}: MAML", "read", "trained 10-shot, 1 step, 70,000 iterations", {5: {1: 0.67, 5: 0.38, 10: 0.35}}),
    Published(f"{FINN}: pretrained on all tasks", "read", "fine-tuned", {5: {1: 2.41, 5: 2.23, 10: 2.19}}),
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

# What has no place in a column: a range, or no number of gradients.
REMARKS = (
    "CAVIA's table 1 (recalled; 10-shot, 1 step) has 0.33 to 0.23 for MAML, by the size of its network.",
    "MetaFun's table 1 (recalled; the number of gradients is not recorded) has 0.390 / 0.114 for MAML and "
    "0.040 / 0.017 for MetaFun, 5-shot / 10-shot.",
)

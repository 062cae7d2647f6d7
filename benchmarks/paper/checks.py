"""What the comparison must show, and whether it does: an order of methods, ratios, thresholds.

Errors in, checks out; independent of where the errors come from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from benchmarks.project import mean_and_interval
from evaluation.comparison import statistics


class Check(NamedTuple):
    """One requirement: what is required, what was measured, and whether that is enough (None = only reported)."""

    what: str
    must: str
    measured: str
    holds: bool | None

    @property
    def verdict(self) -> str:
        return "reported" if self.holds is None else verdict(self.holds)


def verdict(holds: bool) -> str:
    return "holds" if holds else "does not hold"


class PairedComparison(NamedTuple):
    """Two methods that are adjacent in an order, from errors [R, T] of each on the same tasks."""

    lower: str
    relation: str  # "<" or "<="
    upper: str
    means: tuple[float, float]
    intervals: tuple[float, float]  # half-widths at 95% over tasks
    difference: float  # upper minus lower, task by task
    difference_ci: float
    seeds_agree: bool  # the worst seed of the lower one is better than the best seed of the upper one

    @property
    def claim(self) -> str:
        return f"{self.lower} {self.relation} {self.upper}"

    @property
    def apart(self) -> bool:
        """Whether the two intervals are disjoint: stronger than an interval of the difference that excludes 0."""
        return self.means[0] + self.intervals[0] < self.means[1] - self.intervals[1]

    @property
    def holds(self) -> bool:
        """ "<": disjoint intervals, a difference above 0, and all seeds agree. "<=": not shown to be above."""
        if self.relation == "<=":
            return bool(self.difference >= -self.difference_ci)
        return bool(self.apart and self.difference > self.difference_ci and self.seeds_agree)

    def cells(self) -> list[str]:
        """The two means and their difference with 95% intervals, as text."""
        pairs = [*zip(self.means, self.intervals, strict=True), (self.difference, self.difference_ci)]
        return [f"{mean:.3g} ± {half:.2g}" for mean, half in pairs]


def compare_pair(lower: str, relation: str, upper: str, errors: Mapping[str, np.ndarray]) -> PairedComparison:
    """Compare two methods by label; errors: label -> [R, T], on the same tasks."""
    first, second = errors[lower], errors[upper]
    own = [mean_and_interval(values.mean(0)[:, None]) for values in (first, second)]
    paired = statistics(second[..., None], first[..., None])
    return PairedComparison(
        lower,
        relation,
        upper,
        (float(own[0]["mse"][0]), float(own[1]["mse"][0])),
        (float(own[0]["ci95"][0]), float(own[1]["ci95"][0])),
        float(paired["difference"][0]),
        float(paired["difference_ci"][0]),
        bool(first.mean(1).max() < second.mean(1).min()),
    )


# After 10 gradients, 10-shot
ORDER = (
    ("oracle", "<", "MAML"),
    ("LEO", "<", "MAML"),
    ("MAML", "<=", "first-order MAML"),
    ("first-order MAML", "<", "pretrained"),
    ("pretrained", "<", "random"),
)


def compare_in_order(errors: Mapping[str, np.ndarray]) -> list[PairedComparison]:
    """The pairs of `ORDER`; errors: label -> [R, T]."""
    return [compare_pair(*names, errors) for names in ORDER]


def order_check(pairs: Sequence[PairedComparison]) -> Check:
    violated = [pair.claim for pair in pairs if not pair.holds]
    measured = "not shown: " + ", ".join(violated) if violated else "all of it"
    must = "oracle and LEO < MAML <= first-order MAML < pretrained < random, intervals apart"
    return Check("order of methods after 10 gradients, 10-shot", must, measured, not violated)


def better_than_published(measured: Sequence[float], published: Sequence[float]) -> Check:
    """MAML's 5-shot means against those of the paper."""
    texts = [" / ".join(f"{value:.3g}" for value in values) for values in (measured, published)]
    holds = all(own < theirs for own, theirs in zip(measured, published, strict=True))
    return Check("the paper's 5-shot row, mean over seeds: MAML", f"better than {texts[1]}", texts[0], holds)


def times_better(what: str, better: float, worse: float, times: float) -> Check:
    measured = f"{worse / better:.1f} times ({better:.3g} against {worse:.3g})"
    return Check(what, f"at least {times:g} times better", measured, worse >= times * better)

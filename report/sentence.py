"""The sentence at the end of a run: how far off with known points, without any, and beside the baselines."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from evaluation.baselines import CONSTANT
from evaluation.statistics import relative_difference
from system.text import printable

EQUAL = 0.1  # two errors are equal where the interval of their relative difference lies within this
FAR = 0.25  # an error that is higher by more is far worse
FEW = 10  # test tasks, by which little is decided

Errors = np.ndarray  # mean squared errors [T] of the test tasks, in standard units squared


class Answers(NamedTuple):
    """The errors at one K of all that answer for the same test tasks."""

    own: Errors
    without: Errors  # the method's without any point
    others: Mapping[str, Errors]  # the baselines'
    names: Sequence[str] = ()  # of the tasks

    def best(self) -> str:
        """The baseline with the lowest mean error."""
        return min(self.others, key=lambda name: float(self.others[name].mean()))

    def but(self, place: int) -> Answers:
        """The same without one task."""
        others = {name: np.delete(errors, place) for name, errors in self.others.items()}
        return Answers(np.delete(self.own, place), np.delete(self.without, place), others)


def sentence(
    answers: Mapping[int, Answers], shots: int, scale: float, subject: str, target: str, coverage: float | None = None
) -> str:
    """What a run says of itself at K = `shots`, and where another K is much worse.

    Args:
        answers: by K above 0.
        scale: of the errors' roots in the target's own unit.
        subject, target: what a task and its target are called.
        coverage: the share of measurements that the 90% intervals hold.
    """
    here = answers[shots]
    own, without = (_root(errors, scale) for errors in (here.own, here.without))
    points, count = "1 point" if shots == 1 else f"{shots} points", len(here.own)
    off = f"{points} of a new {printable(subject)} {printable(target)} is off by {own}"
    tasks = f"{count} subjects" if here.names else f"{count} test tasks"
    about = f"root mean squared error, {tasks}"
    if _is_lower(here.own, here.without):
        best = here.best()
        parts = [f"With {off} ({about}); without any by {without}", f"{best} {_root(here.others[best], scale)}: {_told(here)}"]
        text = "; ".join(parts)
    elif CONSTANT in here.others and not _is_lower(here.without, here.others[CONSTANT]):
        text = (
            f"Nothing predicts {printable(target)} here: with {off} ({about}), without any by {without}, by one number for all "
        )
        text += _root(here.others[CONSTANT], scale)
    else:
        text = f"Own points bring nothing here: with {off} ({about}), without any by {without}: the mean curve is the answer"
    lines = [text, *_influence(here)]
    if coverage is not None:
        lines.append(f"90% intervals hold {100 * coverage:.0f}%")
    if count < FEW:
        lines.append(f"{tasks} decide little")
    lines += [line for other, found in answers.items() if other != shots and (line := _warning(other, found))]
    return ". ".join(lines) + "."


def compared(own: Errors, other: Errors) -> str:
    """How errors compare with others, task by task: equal, lower, higher, or undecided."""
    change, low, high = relative_difference(own, other)
    if not math.isfinite(low + high):
        return "which can't be compared"
    if max(abs(low), abs(high)) <= EQUAL:
        return f"equal within {max(1, math.ceil(100 * max(abs(low), abs(high)))):d}%"
    if low <= 0 <= high:
        return f"undecided ({100 * low:+.0f} to {100 * high:+.0f}%)"
    ends = sorted([abs(low), abs(high)])
    word, share = ("lower", own < other) if high < 0 else ("higher", own > other)
    interval = f"95% interval {100 * ends[0]:.0f} to {100 * ends[1]:.0f}%"
    return f"{100 * abs(change):.0f}% {word} ({interval}; {word} for {share.sum()} of {len(own)})"


def _told(here: Answers) -> str:
    return compared(here.own, here.others[here.best()])


def _root(errors: Errors, scale: float) -> str:
    with np.errstate(over="ignore", invalid="ignore"):
        return f"{scale * np.sqrt(errors.mean()):.3g}"


def _is_lower(own: Errors, other: Errors) -> bool:
    return relative_difference(own, other)[2] < 0


def _influence(here: Answers) -> list[str]:
    """A line where the words about the best baseline hang on one task."""
    if not here.names or len(here.own) <= 3:
        return []
    with np.errstate(invalid="ignore"):
        place = int(np.argmax(np.abs(here.own - here.others[here.best()])))
    words, others = _told(here), _told(here.but(place))
    kinds = [next((kind for kind in ("equal", "lower", "higher") if kind in text), "") for text in (words, others)]
    return [] if kinds[0] == kinds[1] else [f"Without {printable(here.names[place])} alone: {others}"]


def _warning(shots: int, found: Answers) -> str:
    """A line where the method is far worse at another K than a baseline, or than without points."""
    best = found.best()
    for name, other in ((best, found.others[best]), ("the same without points", found.without)):
        change, low, _ = relative_difference(found.own, other)
        if low > 0 and change > FAR:
            return f"At K = {shots} it is off by {100 * change:.0f}% more than {name}"
    return ""

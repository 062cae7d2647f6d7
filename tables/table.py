"""A table of measurements: read it and split it over subjects.

Each row is one measurement of one subject (a patient, a plot, a battery).
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from system.errors import RunError
from system.text import quoted
from tables.arrays import Array
from tables.cells import MAX_NUMBER, Rows, Sheet, open_sheet
from tables.coding import Coding

SPLITS = ("train", "validation", "test")
Shares = tuple[float, float, float]
FEWEST = 2  # subjects in each split: an interval over subjects needs two
FOLDS, MANY = 5, 150  # folds of a table with fewer subjects than so many
MAX_ROWS = 5_000_000


@dataclass(frozen=True, eq=False)
class Table:
    """Measurements in own units, float64, ordered by subject and then by the first input."""

    subjects: Sequence[str]  # the names of M subjects, as they first appear
    start: Array  # [M + 1]: subject m has the rows from start[m] to start[m + 1] - 1
    values: Array  # [N, D + 1]: inputs and target
    split: Array  # [M], places in SPLITS; with folds all are training subjects
    fold: Array | None  # [M], the fold in which a subject is a test subject, from 0 on
    names: tuple[str, ...]  # of the columns: subject, D inputs, target, split
    coding: Coding  # of inputs and target, by the training subjects
    left_out: int  # rows without a target
    source: str  # the SHA-256 of the file
    splits_given: bool  # by a column of the file

    def coded(self) -> Array:
        """The values [N, D + 1] as the network sees them, float64."""
        return np.hstack([self.coding.encode_inputs(self.values[:, :-1]), self.coding.encode_targets(self.values[:, -1:])])


# ---- reading


def read_table(path: Path, columns: Sequence[str] = (), shares: Shares = (60, 15, 25), seed: int = 0, folds: int = 1) -> Table:
    """The table in a file; rows without a target are left out. Raises `RunError` with the place of what can't be used.

    Args:
        columns: such as "task=Chick", "x=Time", "y=weight", "split=fold"; the default names are task, x or x1 to xD, y,
            and split, which may be missing.
        shares: of training, validation and test in the subjects, where no column says which one is in which split.
        seed: for the random split, or the folds, of such a table.
        folds: of cross-fitting; 1 = a single split, 0 = by the number of subjects.
    """
    sheet = open_sheet(path)
    task, *inputs, target, split = names = column_names(sheet, columns)
    rows = sheet.read([name for name in names if name], MAX_ROWS, task)
    values = rows.numbers([*inputs, target], [target])  # [N, D + 1]
    kept = np.flatnonzero(~np.isnan(values[:, -1]))
    if "" in rows.text[task]:
        rows.refuse(rows.text[task].index(""), task, "an empty name", "a subject's")
    numbers: dict[str, int] = {}
    members = np.fromiter((numbers.setdefault(rows.text[task][row], len(numbers)) for row in kept.tolist()), np.int64)
    subjects = list(numbers)
    splits, fold, usable = np.zeros(len(subjects), np.int64), None, np.bincount(members, minlength=1) > 1
    if split:
        splits, fold = given_split(rows, split, kept, members, subjects)
    elif (count := folds or suitable_folds(usable)) > 1:
        fold = random_folds(usable, count, seed)
    else:
        splits = random_split(len(subjects), shares, seed)
    order = np.lexsort((values[kept, 0], members))
    kept, members = kept[order], members[order]
    start, values = np.searchsorted(members, np.arange(len(subjects) + 1)), values[kept]
    check_splits(path, np.diff(start), splits, fold)
    training = values[splits[members] == 0]
    check_columns(path, training, names[1:-1])
    table = Table(
        subjects,
        start,
        values,
        splits,
        fold,
        names=(*names[:-1], split or "split"),
        coding=Coding.from_training(training),
        left_out=len(rows.lines) - len(kept),
        source=hashlib.sha256(path.read_bytes()).hexdigest(),
        splits_given=bool(split),
    )
    for row, column in np.argwhere(~(np.abs(table.coded()) <= MAX_NUMBER))[:1].tolist():
        expected = f"at most {MAX_NUMBER:g} times the training range"
        rows.refuse(kept[row], names[1 + column], f"{values[row, column]:g}", expected)
    return table


def column_names(sheet: Sheet, columns: Sequence[str]) -> tuple[str, ...]:
    """The columns of subject, D inputs, target and split as the file spells them; the last is "" where there is none."""
    given: dict[str, list[str]] = {"task": [], "x": [], "y": [], "split": []}
    for text in columns:
        role, _, name = text.partition("=")
        if role not in given or not name or (given[role] and role != "x"):
            expected = "such as task=Chick x=Time y=weight, each of task, x, y and split once but x"
            raise RunError(f"--columns can't be used (got {quoted(text)}; expected {expected})")
        given[role].append(name)
    numbered = itertools.takewhile(sheet.places, (f"x{number}" for number in itertools.count(1)))
    inputs = given["x"] or (["x"] if sheet.places("x") else list(numbered) or ["x"])
    split = given["split"] or (["split"] if sheet.places("split") else [])
    wanted = [*(given["task"] or ["task"]), *inputs, *(given["y"] or ["y"]), *split]
    names = [sheet.names[sheet.find(name)] for name in wanted]
    for name in (reserved := names if split else [*names, "split"]):
        if reserved.count(name) > 1:
            raise RunError(f"{sheet.path} needs a column for each role (got {quoted(name)} twice; expected different ones)")
    return tuple(names if split else [*names, ""])


def remarks(table: Table) -> list[str]:
    """What is allowed and may be a mistake: rows that repeat others, names of subjects that look alike."""
    lines, alike = [], defaultdict[str, list[str]](list)
    rows = np.column_stack([np.repeat(np.arange(len(table.subjects)), np.diff(table.start)), table.values])
    rows = rows[np.lexsort(rows.T[::-1])]
    if copies := int((rows[1:] == rows[:-1]).all(1).sum()):
        wanted = "expected each measurement once: a copy may be asked for that was given"
        lines.append(f"some rows repeat others (got {copies} of {len(rows)}; {wanted})")
    for name in table.subjects:
        alike[re.sub(r"\.0+$", "", " ".join(name.casefold().split()))].append(name)
    if twins := [names for names in alike.values() if len(names) > 1]:
        cases = f", {len(twins)} such cases" if len(twins) > 1 else ""
        got = f"{quoted(twins[0][0])} and {quoted(twins[0][1])}{cases}"
        lines.append(f"subjects' names differ by case, blanks or .0 alone (got {got}; expected one spelling, or other names)")
    return lines


# ---- splitting


def given_split(rows: Rows, column: str, kept: Array, members: Array, subjects: Sequence[str]) -> tuple[Array, Array | None]:
    """The split [M] of each subject, or the fold, by the words or the numbers from 1 on of a column.

    `members` [N] are the subjects of the rows `kept`.
    """
    numbered = bool(len(kept)) and rows.text[column][kept[0]].isdecimal()
    words = [str(number) for number in range(1, len(subjects) + 1)] if numbered else list(SPLITS)
    codes, expected = {word: place for place, word in enumerate(words)}, "train, validation or test"
    if numbered:
        expected = "a fold, from 1 to the number of folds"
    found = np.array([codes.get(word.casefold(), -1) for word in rows.text[column]], np.int64)[kept]
    for place in np.flatnonzero(found < 0)[:1].tolist():
        rows.refuse(kept[place], column, quoted(rows.text[column][kept[place]]), expected)
    splits = np.zeros(len(subjects), np.int64)
    splits[members[::-1]] = found[::-1]  # the first row of each subject decides
    for place in np.flatnonzero(splits[members] != found)[:1].tolist():
        got = f"{words[found[place]]} for subject {quoted(subjects[members[place]])}"
        rows.refuse(kept[place], column, got, f"{words[splits[members[place]]]} as in its first row")
    return (np.zeros_like(splits), splits) if numbered else (splits, None)


def suitable_folds(usable: Array) -> int:
    """As many as there should be for so many subjects of two points or more: with many, or very few, a single split."""
    return FOLDS if usable.sum() >= FOLDS * FEWEST and len(usable) < MANY else 1


def random_folds(usable: Array, folds: int, seed: int) -> Array:
    """A random fold [M] of each subject, from 0 to `folds` - 1, with equally many subjects and usable ones, [M] booleans."""
    order = np.random.default_rng(seed).permutation(len(usable))
    order = order[np.argsort(~usable[order], kind="stable")]
    found = np.empty(len(usable), np.int64)
    found[order] = np.arange(len(usable)) % folds
    return found


def random_split(count: int, shares: Shares, seed: int) -> Array:
    """A random split [M] of `count` subjects, at least `FEWEST` for validation and for test; one line of numpy repeats it."""
    order = np.random.default_rng(seed).permutation(count)
    train, validation = (round(share / sum(shares) * count) for share in shares[:2])
    validation = max(FEWEST, validation)
    train = max(0, min(train, count - validation - FEWEST))
    splits = np.full(count, 2, np.int64)
    splits[order[:train]], splits[order[train : train + validation]] = 0, 1
    return splits


def check_splits(path: Path, counts: Array, splits: Array, fold: Array | None) -> None:
    """Raise `RunError` where a split or fold has too few subjects of which something can be predicted from something else."""
    if fold is not None:
        sizes = np.bincount(fold[counts > 1], minlength=fold.max() + 1)
        if len(sizes) < 2 or sizes.min() < FEWEST:
            got, needed = f"{sizes.min()} in one of {len(sizes)}", f"at least {FEWEST} in each, or fewer FOLDS"
            raise RunError(f"{path} has too few subjects with two points or more in a fold (got {got}; expected {needed})")
        return
    usable = np.bincount(splits[counts > 1], minlength=3)
    if usable.min() < FEWEST:
        got = ", ".join(f"{number} {word}" for number, word in zip(usable, SPLITS, strict=True))
        needed = f"at least {FEWEST} of each, {FEWEST * len(SPLITS)} together"
        raise RunError(f"{path} has too few subjects with two points or more (got {got}; expected {needed})")


def check_columns(path: Path, values: Array, names: Sequence[str]) -> None:
    """Raise `RunError` where an input or the target [N, D + 1] of the training subjects is constant."""
    low, high = values.min(0), values.max(0)
    for column in np.flatnonzero(~(low < high))[:1].tolist():
        where = f"{path}, column {quoted(names[column])} is constant"
        raise RunError(f"{where} (got {low[column]:g} for all training subjects; expected different values)")

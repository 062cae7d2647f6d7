"""A table of measurements as a task family: read it, split it, scale it, draw from it.

Each row of a table is one measurement of one subject (a patient, a plot, a battery), and each subject is a task.
Independent of learners, training and figures.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dataset import HELD_OUT_SEED, Array, HeldOut, Points, Task, TaskGenerator, stream
from runtime.csv_files import MAX_NUMBER, Rows, Sheet, open_sheet
from runtime.errors import RunError

SPLITS = ("train", "validation", "test")
Shares = tuple[float, float, float]
FEWEST = 2  # subjects in each split: an interval over subjects needs two
MAX_ROWS = 5_000_000
WIDEST = 500  # query points of a row that is judged: bounds the memory


@dataclass(frozen=True, eq=False)
class Table:
    """Measurements in own units, float64, ordered by subject and then by the first input."""

    subjects: Sequence[str]  # the names of M subjects, as they first appear
    start: Array  # [M + 1]: subject m has the rows from start[m] to start[m + 1] - 1
    values: Array  # [N, D + 1]: inputs and target
    split: Array  # [M], places in SPLITS
    names: tuple[str, ...]  # of the columns: subject, D inputs, target, split
    centre: Array  # [D + 1]: (values - centre) / unit is what a network sees: the training subjects' inputs from -1 to 1,
    unit: Array  # their targets with mean 0 and standard deviation 1
    left_out: int  # rows without a target
    source: str  # the SHA-256 of the file

    def scaled(self) -> Array:
        with np.errstate(over="ignore"):
            return (self.values - self.centre) / self.unit


# ---- reading


def read_table(path: Path, columns: Sequence[str] = (), shares: Shares = (60, 15, 25), seed: int = 0) -> Table:
    """The table in a file; rows without a target are left out. Raises `RunError` with the place of what can't be used.

    Args:
        columns: such as "task=Chick", "x=Time", "y=weight", "split=fold"; the default names are task, x or x1 to xD, y,
            and split, which may be missing.
        shares: of training, validation and test in the subjects, where no column says which one is in which split.
        seed: for the random split of such a table.
    """
    sheet = open_sheet(path)
    task, *inputs, target, split = names = column_names(sheet, columns)
    rows = sheet.read([name for name in names if name], MAX_ROWS)
    values = rows.numbers([*inputs, target], [target])  # [N, D + 1]
    kept = np.flatnonzero(~np.isnan(values[:, -1]))
    if "" in rows.text[task]:
        rows.refuse(rows.text[task].index(""), task, "an empty name", "a subject's")
    numbers: dict[str, int] = {}
    members = np.fromiter((numbers.setdefault(rows.text[task][row], len(numbers)) for row in kept.tolist()), np.int64)
    subjects = list(numbers)
    splits = given_split(rows, split, kept, members, subjects) if split else random_split(len(subjects), shares, seed)
    order = np.lexsort((values[kept, 0], members))
    kept, members = kept[order], members[order]
    start, values = np.searchsorted(members, np.arange(len(subjects) + 1)), values[kept]
    check_splits(path, np.diff(start), splits)
    scale = training_scale(path, values[splits[members] == 0], names[1:-1])
    about = (*names[:-1], split or "split"), *scale, len(rows.lines) - len(kept)
    table = Table(subjects, start, values, splits, *about, hashlib.sha256(path.read_bytes()).hexdigest())
    for row, column in np.argwhere(~(np.abs(table.scaled()) <= MAX_NUMBER))[:1].tolist():
        expected = f"at most {MAX_NUMBER:g} times the training range"
        rows.refuse(kept[row], names[1 + column], f"{values[row, column]:g}", expected)
    return table


def column_names(sheet: Sheet, columns: Sequence[str]) -> tuple[str, ...]:
    """The columns of subject, D inputs, target and split as the file spells them; the last is "" where there is none."""
    given: dict[str, list[str]] = {"task": [], "x": [], "y": [], "split": []}
    for text in columns:
        role, _, name = text.partition("=")
        if role not in given or not name or (given[role] and role != "x"):
            expected = "task=, x=, y= or split= and a column's name, each once but x"
            raise RunError(f"--columns can't be used (got {text[:60]!a}; expected {expected})")
        given[role].append(name)
    numbered = itertools.takewhile(sheet.places, (f"x{number}" for number in itertools.count(1)))
    inputs = given["x"] or (["x"] if sheet.places("x") else list(numbered) or ["x"])
    split = given["split"] or ["split"] * bool(sheet.places("split"))
    wanted = [*(given["task"] or ["task"]), *inputs, *(given["y"] or ["y"]), *split]
    names = [sheet.names[sheet.find(name)] for name in wanted]
    for name in (reserved := names if split else [*names, "split"]):
        if reserved.count(name) > 1:
            raise RunError(f"{sheet.path} needs a column for each role (got {name[:40]!a} twice; expected different ones)")
    return (*names, *([] if split else [""]))


# ---- splitting and scaling


def given_split(rows: Rows, column: str, kept: Array, members: Array, subjects: Sequence[str]) -> Array:
    """The split [M] of each subject by the words of a column; `members` [N] are the subjects of the rows `kept`."""
    codes = {word: place for place, word in enumerate(SPLITS)}
    found = np.array([codes.get(word.casefold(), -1) for word in rows.text[column]], np.int64)[kept]
    for place in np.flatnonzero(found < 0)[:1].tolist():
        rows.refuse(kept[place], column, ascii(rows.text[column][kept[place]][:40]), "train, validation or test")
    splits = np.zeros(len(subjects), np.int64)
    splits[members[::-1]] = found[::-1]  # the first row of each subject decides
    for place in np.flatnonzero(splits[members] != found)[:1].tolist():
        got = f"{SPLITS[found[place]]} for subject {subjects[members[place]][:40]!a}"
        rows.refuse(kept[place], column, got, f"{SPLITS[splits[members[place]]]} as in its first row")
    return splits


def random_split(count: int, shares: Shares, seed: int) -> Array:
    """A random split [M] of `count` subjects, at least `FEWEST` for validation and for test; one line of numpy repeats it."""
    order = np.random.default_rng(seed).permutation(count)
    train, validation = (round(share / sum(shares) * count) for share in shares[:2])
    validation = max(FEWEST, validation)
    train = max(0, min(train, count - validation - FEWEST))
    splits = np.full(count, 2, np.int64)
    splits[order[:train]], splits[order[train : train + validation]] = 0, 1
    return splits


def check_splits(path: Path, counts: Array, splits: Array) -> None:
    """Raise `RunError` where a split has too few subjects of which something can be predicted from something else."""
    usable = np.bincount(splits[counts > 1], minlength=3)
    if usable.min() < FEWEST:
        got = ", ".join(f"{number} {word}" for number, word in zip(usable, SPLITS, strict=True))
        needed = f"at least {FEWEST} of each, {FEWEST * len(SPLITS)} together"
        raise RunError(f"{path} has too few subjects with two points or more (got {got}; expected {needed})")


def training_scale(path: Path, values: Array, names: Sequence[str]) -> tuple[Array, Array]:
    """Centre and unit [D + 1] of the training subjects' inputs and target; raises `RunError` where one is constant."""
    low, high = values.min(0), values.max(0)
    for column in np.flatnonzero(~(low < high))[:1].tolist():
        where = f"{path}, column {names[column][:40]!a} is constant"
        raise RunError(f"{where} (got {low[column]:g} for all training subjects; expected different values)")
    target = (values[:, -1] - low[-1]) / (high[-1] - low[-1])  # squares of very small numbers would be zero
    centre, unit = low + (high - low) / 2, (high - low) / 2
    centre[-1], unit[-1] = low[-1] + (high[-1] - low[-1]) * target.mean(), (high[-1] - low[-1]) * target.std()
    return centre, unit


# ---- drawing


def distinct(counts: Array, most: int, rng: np.random.Generator) -> Array:
    """Random numbers [B, most], each row's different and below its count; where the count is less, only so many are."""
    picked = np.zeros((len(counts), most), np.int64)
    small = counts <= 4 * most
    if small.any():
        here = counts[small, None]
        keys = rng.random((len(here), max(int(here.max()), most)), dtype=np.float32)
        keys[np.arange(keys.shape[1]) >= here] = 2  # behind all others
        picked[small] = keys.argsort(1, kind="stable")[:, :most]
    pending = np.flatnonzero(~small)
    while len(pending):  # twice as many as needed, the first different ones of them; almost always enough
        tries = (rng.random((len(pending), 2 * most)) * counts[pending, None]).astype(np.int64)
        order = tries.argsort(1, kind="stable")
        ordered, new = np.take_along_axis(tries, order, 1), np.ones(tries.shape, bool)
        np.put_along_axis(new, order[:, 1:], ordered[:, 1:] != ordered[:, :-1], 1)
        rank = new.cumsum(1)
        done = rank[:, -1] >= most
        picked[pending[done]] = tries[done][(new & (rank <= most))[done]].reshape(-1, most)
        pending = pending[~done]
    return picked


class TableTaskGenerator(TaskGenerator):
    """The subjects of a table; a row of `params` is a subject's number. Its values are scaled by the training subjects.

    Args:
        table: None stands for one that is not known yet, of which nothing can be asked but the name.
        support_from: "random" points of a subject are its support, or the "first" ones by the first input.
        repeats: random draws of support points on which each validation and test subject is judged.
    """

    name = "Table"
    x_range = (-1.0, 1.0)

    def __init__(self, table: Table | None, support_from: str = "random", repeats: int = 10):
        self.input_dim, self.in_order, self.repeats = 1, support_from == "first", repeats
        if table is not None:
            self.table, self.start, self.counts = table, table.start[:-1], np.diff(table.start)
            self.x, self.y = np.split(table.scaled().astype(np.float32), [-1], axis=1)
            self.input_dim, self.axis_names = self.x.shape[1], (table.names[1], table.names[-2])
            self.y_scale = float(table.unit[-1])

    def facts(self) -> dict[str, Any]:
        if not hasattr(self, "table"):
            raise RunError("tasks from a table need the table (got none; expected --data FILE.csv)")
        return {"INPUT_DIM": self.input_dim, "NUM_TASKS": len(self._members("train"))}

    def defaults(self) -> dict[str, Any]:
        counts = {name: np.sort(self.counts[self._members(name)]) for name in SPLITS}
        most = min(int(numbers[-FEWEST]) for numbers in counts.values()) - 1
        shots = max(1, min(5, int(np.median(counts["train"])) // 3, most))
        others = [number for number in (shots // 2, 2 * shots) if 0 < number < np.quantile(counts["test"], 0.2)]
        epochs = -(-2000 * 25 // len(counts["train"]))
        lengths = {"EPOCHS": epochs, "LOG_INTERVAL": 20, "VALIDATION_INTERVAL": 100, "CHECKPOINT_INTERVAL": 1000}
        return {"SUPPORT_SAMPLES": shots, "EVAL_SHOTS": sorted({shots, *others})} | lengths

    def files(self) -> dict[str, bytes]:
        """The table in normal form: its columns under their own names, subject after subject, and each one's split."""
        header, names = (
            ['"' + text.replace('"', '""') + '"' for text in texts] for texts in (self.table.names, self.table.subjects)
        )
        ends = zip(names, (SPLITS[place] for place in self.table.split), strict=True)
        pairs = itertools.chain.from_iterable(map(itertools.repeat, ends, self.counts.tolist()))
        numbers = zip(*(map(repr, column.tolist()) for column in self.table.values.T), strict=True)
        lines = (",".join((name, *row, split)) for (name, split), row in zip(pairs, numbers, strict=True))
        return {"table.csv": "\n".join([",".join(header), *lines, ""]).encode()}

    def record(self) -> dict[str, Any]:
        table = self.table
        points = repr(table.subjects).encode() + table.start.tobytes() + table.values.tobytes()
        digests = (hashlib.sha256(data).hexdigest() for data in (points, table.split.tobytes()))
        return {
            "source_sha256": table.source,
            "columns": list(table.names),
            "subjects": dict(zip(SPLITS, np.bincount(table.split, minlength=3).tolist(), strict=True)),
            "rows": len(table.values),
            "rows_without_target": table.left_out,
            "centre": table.centre.tolist(),
            "unit": table.unit.tolist(),
        } | dict(zip(("points_sha256", "splits_sha256"), digests, strict=True))

    def _members(self, split: str, shots: int = 0) -> Array:
        return np.flatnonzero((self.table.split == SPLITS.index(split)) & (self.counts > shots))

    def measurements(self, split: str) -> list[Points] | None:
        x, y = (np.split(part, self.start[1:]) for part in (self.x, self.y))
        return [Points(x[member], y[member]) for member in self._members(split)]

    def split(self, name: str, size: int, seed: int, shots: int = 0) -> Array:
        usable = self._members(name, shots)
        if len(usable) < FEWEST:
            got, expected = f"{len(usable)} with more than {shots} points", f"at least {FEWEST}, or a smaller K"
            raise RunError(f"the table has too few {name} subjects for K = {shots} (got {got}; expected {expected})")
        return usable[:, None]

    def tasks(self, params: Array, shots: int, queries: int, rng: np.random.Generator) -> Task:
        """Where a subject has too few points for `queries` different ones, they are drawn with replacement from the rest."""
        subjects = params[..., 0].reshape(-1)
        counts = self.counts[subjects]
        first = shots if self.in_order else 0
        picked = first + distinct(counts - first, shots + queries - first, rng)
        picked = np.concatenate([np.tile(np.arange(first), (len(counts), 1)), picked], 1)  # [B, K + Q]
        short = np.flatnonzero(counts < shots + queries)
        again = shots + (rng.random((len(short), queries)) * (counts[short, None] - shots)).astype(np.int64)
        picked[short, shots:] = np.take_along_axis(picked[short], again, 1)
        rows = (self.start[subjects, None] + picked).reshape(*params.shape[:-1], -1)  # [..., K + Q]
        return Task(*(Points(self.x[part], self.y[part]) for part in np.split(rows, [shots], axis=-1)))

    def held_out(self, split: str, size: int, shots: int, queries: int) -> HeldOut:
        """All subjects of the split and all their points, for each of `repeats` draws of the support.

        A subject's query points fill as many rows as they need; a row's width suits most subjects, the rest is padding.
        """
        members = self._members(split)
        draws = np.repeat(np.flatnonzero(self.counts[members] > shots), 1 if self.in_order else self.repeats)  # [P]
        start, counts = self.start[members[draws]], self.counts[members[draws]]
        rng = stream(HELD_OUT_SEED, split, shots)
        support = np.tile(np.arange(shots), (len(draws), 1)) if self.in_order else distinct(counts, shots, rng)
        free = np.ones(counts.sum(), bool)  # all points, draw after draw
        free[(counts.cumsum() - counts)[:, None] + support] = False
        points = _ranges(start, counts)[free]
        left = counts - shots
        width = int(min(WIDEST, left.max(), -(-2 * left.sum() // len(left))))
        rows = -(-left // width)
        place = _ranges((rows.cumsum() - rows) * width, left)
        query_x = np.zeros((rows.sum() * width, self.input_dim), np.float32)
        query_y = np.full((rows.sum() * width, 1), np.nan, np.float32)
        query_x[place], query_y[place] = self.x[points], self.y[points]
        given = np.repeat(start[:, None] + support, rows, axis=0)
        query = Points(query_x.reshape(-1, width, self.input_dim), query_y.reshape(-1, width, 1))
        return HeldOut(members[:, None], Task(Points(self.x[given], self.y[given]), query), np.repeat(draws, rows))

    def examples(self, count: int, shots: int) -> tuple[Array, Points]:
        params = self.split("test", 0, 0, shots)[:count]
        return params, self.tasks(params, shots, 1, stream(0, "figures")).support

    def own_units(self, points: Points) -> Points:
        centre, unit = self.table.centre, self.table.unit
        x, y = (np.asarray(part, float) for part in points)
        return Points(x * unit[:-1] + centre[:-1], y * unit[-1] + centre[-1])


def _ranges(first: Array, counts: Array) -> Array:
    """first[i], first[i] + 1, ... first[i] + counts[i] - 1 for each i, one after another."""
    return np.arange(counts.sum()) + np.repeat(first - (counts.cumsum() - counts), counts)

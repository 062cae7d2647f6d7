"""A table of measurements as a task family: each subject is a task. Drawing is without a loop over subjects."""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import replace
from typing import Any

import numpy as np

from dataset import HELD_OUT_SEED, Array, HeldOut, Points, Task, TaskGenerator, stream
from system.errors import RunError
from tables.table import FEWEST, SPLITS, Table, remarks

STEPS = 5000  # of training, about; two validations, as the lowest of many on a few subjects is low by chance
SHARES = ("TRAIN_SHARE", "VALIDATION_SHARE", "TEST_SHARE")
AVERAGE = 0.995  # of the last 200 steps, about: the error of a few subjects moves much from step to step
CALIBRATION_DRAWS = 10  # of support points of each subject
WIDEST = 500  # query points of a row that is judged: bounds the memory


def distinct(counts: Array, most: int, rng: np.random.Generator) -> Array:
    """Random numbers [B, most], each row's different and below its count; where the count is less, only so many are."""
    picked = np.empty((len(counts), most), np.int64)
    if not most:
        return picked
    small = counts <= 16 * most
    if small.any():  # shuffle the first `most` of all numbers (Fisher and Yates); beyond its count a row keeps them as they are
        here, steps = counts[small], np.arange(most)[:, None]
        numbers = np.arange(size := max(int(here.max()), most), dtype=np.min_scalar_type(size)).repeat(len(here))  # [size * B]
        other = steps + (rng.random((most, len(here)), np.float32) * np.maximum(here - steps, 1)).astype(np.int64)
        other = other * len(here) + np.arange(len(here))
        chosen = []
        for step, place in enumerate(other):
            chosen.append(numbers[place])
            numbers[place] = numbers[step * len(here) : (step + 1) * len(here)]
        picked[small] = np.stack(chosen, 1)
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
    """The subjects of a table; a row of `params` is a subject's number. Points are as the table's coding has them.

    Args:
        support_from: "random" points of a subject are its support, or the "first" ones by the first input.
        repeats: random draws of support points on which each validation and test subject is judged.
        of_fold: the test subjects are those of a fold. Nothing is chosen by them, so that they are validation subjects, too.
    """

    name = "Table"

    def __init__(self, table: Table, support_from: str = "random", repeats: int = 10, of_fold: bool = False):
        self.members = {"train": (0,), "validation": (2,) if of_fold else (1,), "test": (2,)}  # places in SPLITS
        if table.fold is not None:
            self.members = dict.fromkeys(SPLITS, (0,))
        self.table, self.start, self.counts = table, table.start[:-1], np.diff(table.start)
        self.in_order, self.repeats = support_from == "first", repeats
        self.values = table.coded().astype(np.float32, order="C")  # [N, D + 1]: x and y of a point lie side by side
        self.x, self.y = np.split(self.values, [-1], axis=1)
        self.input_dim, self.x_range = table.coding.input_dim, table.coding.x_range
        self.axis_names, self.y_scale = (table.names[1], table.names[-2]), float(table.coding.unit[-1])
        self.unused = {"EVAL_REPEATS": "with SUPPORT_FROM=random"} if self.in_order else {}
        if table.splits_given:
            self.unused |= dict.fromkeys((*SHARES, "SPLIT_SEED", "FOLDS"), "with a table without a column of splits")
        if table.fold is not None:
            self.unused |= dict.fromkeys(SHARES, "with FOLDS=1")
            tables = [replace(table, split=2 * (table.fold == number), fold=None) for number in range(table.fold.max() + 1)]
            self.folds = [TableTaskGenerator(one, support_from, repeats, of_fold=True) for one in tables]

    def implied_settings(self) -> dict[str, Any]:
        return {"INPUT_DIM": self.input_dim, "NUM_TASKS": len(self._members("train"))}

    def defaults(self, shots: int | None = None) -> dict[str, Any]:
        counts = {name: np.sort(self.counts[self._members(name)]) for name in SPLITS}
        most = min(int(numbers[-FEWEST]) for numbers in counts.values()) - 1
        shots = shots or max(1, min(5, int(np.median(counts["train"])) // 3, most))
        few = min(most + 1, np.quantile(counts["test"], 0.2))
        others = [number for number in (shots // 2, 2 * shots) if 0 < number < few]
        epochs = -(-STEPS * 25 // (subjects := len(counts["train"])))
        lengths = {"META_AVERAGE": AVERAGE, "EPOCHS": epochs}
        intervals = {"LOG_INTERVAL": 50, "VALIDATION_INTERVAL": -(-epochs * subjects // 50), "CHECKPOINT_INTERVAL": 1000}
        shapes = {"SUPPORT_SAMPLES": shots, "EVAL_SHOTS": sorted({shots, *others}), "FOLDS": len(self.folds) or 1}
        return shapes | lengths | intervals

    def files(self) -> dict[str, bytes]:
        """The table in normal form: its columns under their own names, subject after subject, and each one's split."""
        lines = [",".join(map(_in_quotes, self.table.names))]
        numbers = zip(*(map(repr, column.tolist()) for column in self.table.values.T), strict=True)
        for name, split, count in zip(self.table.subjects, self._split_words(), self.counts.tolist(), strict=True):
            lines += [",".join((_in_quotes(name), *row, split)) for row in itertools.islice(numbers, count)]
        return {"table.csv": "\n".join([*lines, ""]).encode()}

    def _split_words(self) -> list[str]:
        """The split of each subject, or its fold from 1 on."""
        if self.table.fold is None:
            return [SPLITS[place] for place in self.table.split.tolist()]
        return [str(1 + fold) for fold in self.table.fold.tolist()]

    def record(self) -> dict[str, Any]:
        table = self.table
        splits = table.split if table.fold is None else table.fold
        points = repr(table.subjects).encode() + table.start.tobytes() + table.values.tobytes()
        return {
            "source_sha256": table.source,
            "columns": list(table.names),
            "subjects": {name: len(self._members(name)) for name in SPLITS},
            "folds": len(self.folds) or 1,
            "rows": len(table.values),
            "rows_without_target": table.left_out,
            "remarks": remarks(table),
            **table.coding.record(),
            "points_sha256": hashlib.sha256(points).hexdigest(),
            "splits_sha256": hashlib.sha256(splits.tobytes()).hexdigest(),
        }

    def _members(self, split: str, shots: int = 0) -> Array:
        return np.flatnonzero(np.isin(self.table.split, self.members[split]) & (self.counts > shots))

    def measurements(self, split: str) -> list[Points] | None:
        x, y = (np.split(part, self.start[1:]) for part in (self.x, self.y))
        return [Points(x[member], y[member]) for member in self._members(split)]

    def task_names(self, params: Array) -> list[str]:
        return [self.table.subjects[subject] for subject in params[:, 0].tolist()]

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
        columns = np.moveaxis(self.values.take(rows, 0), -1, 0)  # one look into memory for a point is what drawing costs
        parts = np.split(columns, [shots], axis=-1)  # [D + 1, ..., K] and [D + 1, ..., Q]
        return Task(*(Points(np.stack(list(part[:-1]), -1), part[-1, ..., None].copy()) for part in parts))

    def held_out(self, split: str, size: int, shots: int, queries: int) -> HeldOut:
        """All subjects of the split and all their points, for each of `repeats` draws of the support.

        A subject's query points fill as many rows as they need; a row's width suits most subjects, the rest is padding.
        """
        draws, counts = self._draws(split, shots, 1 if self.in_order or not shots else self.repeats)
        rng = stream(HELD_OUT_SEED, split, shots)
        support = np.tile(np.arange(shots), (len(draws), 1)) if self.in_order else distinct(counts, shots, rng)
        return self._given(split, draws, support)

    def calibration_tasks(self, split: str, size: int, shots: int, queries: int) -> HeldOut:
        """As `held_out`, from random points for one half of the draws, and for the other from a random number of first ones.

        So it is known how the error grows from early points to late questions.
        """
        draws, counts = self._draws(split, shots, 2 * -(-CALIBRATION_DRAWS // 2) if shots else 1)
        rng = stream(HELD_OUT_SEED, split, shots)
        first = shots + (rng.random(len(counts)) * (counts - shots)).astype(np.int64)  # from `shots` to all but one
        early = np.arange(len(counts)) % 2 == 1
        return self._given(split, draws, distinct(np.where(early, first, counts), shots, rng))

    def _draws(self, split: str, shots: int, repeats: int) -> tuple[Array, Array]:
        """The places of subjects among the split's members, each that can be judged `repeats` times [P]; and their points."""
        members = self._members(split)
        draws = np.repeat(np.flatnonzero(self.counts[members] > shots), repeats)
        return draws, self.counts[members[draws]]

    def _given(self, split: str, draws: Array, support: Array) -> HeldOut:
        """Of the subjects `draws` [P] the points `support` [P, K] are given, and all others asked for."""
        members, shots = self._members(split), support.shape[1]
        start, counts = self.start[members[draws]], self.counts[members[draws]]
        free = np.ones(counts.sum(), bool)  # all points, draw after draw
        free[(counts.cumsum() - counts)[:, None] + support] = False
        points = _ranges(start, counts)[free]
        left = counts - shots
        width = int(min(WIDEST, left.max(initial=1), -(-2 * left.sum() // max(1, len(left))) or 1))  # 1 where there is no draw
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

    def unscale(self, points: Points) -> Points:
        return Points(self.table.coding.decode_inputs(points.x), self.table.coding.decode_targets(points.y))


def _in_quotes(text: str) -> str:
    """A cell of text in CSV."""
    return '"' + text.replace('"', '""') + '"'


def _ranges(first: Array, counts: Array) -> Array:
    """first[i], first[i] + 1, ... first[i] + counts[i] - 1 for each i, one after another."""
    return np.arange(counts.sum()) + np.repeat(first - (counts.cumsum() - counts), counts)

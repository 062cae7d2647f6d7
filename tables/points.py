"""The file of `--points`: measured points of one task or of many subjects, and the places where predictions are wanted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from dataset import Array, Points
from system.errors import RunError
from tables.cells import MAX_POINTS, Sheet, open_sheet

MAX_ROWS = 100 * MAX_POINTS  # of all subjects


@dataclass(frozen=True, eq=False)
class PointsFile:
    """What a file holds. Rows without a target are its questions: places where predictions are wanted."""

    names: tuple[str, ...]  # columns of subject ("" where there is none), D inputs and target
    subjects: list[str]  # the names of M subjects, as they first appear
    members: Array  # [N], the subject of each row
    values: Array  # [N, D + 1], inputs and target, float64; the target of a question is NaN
    of_table: bool  # whether its run learned from a table, which has units and names of its own

    @cached_property
    def is_query(self) -> Array:
        """Which rows are questions, [N] booleans."""
        return np.isnan(self.values[:, -1])

    @cached_property
    def support(self) -> list[Points]:
        """The measured points of each subject: x [K, D], y [K, 1]."""
        return [Points(rows[:, :-1], rows[:, -1:]) for rows in self._by_subject(~self.is_query)]

    @cached_property
    def query_inputs(self) -> list[Array]:
        """Where predictions are wanted for each subject, [Q, D]; an empty list for a file without any question."""
        return [rows[:, :-1] for rows in self._by_subject(self.is_query)] if self.is_query.any() else []

    def _by_subject(self, chosen: Array) -> list[Array]:
        """The values of the `chosen` rows, [*, D + 1] for each subject."""
        members, values = self.members[chosen], self.values[chosen]
        counts = np.bincount(members, minlength=len(self.subjects))
        return np.split(values[np.argsort(members, kind="stable")], counts.cumsum()[:-1])


def read_points(path: Path, input_dim: int, columns: Sequence[str] = ()) -> PointsFile:
    """The points and questions of a file; raises `RunError` with the place of what can't be used.

    Args:
        input_dim: D.
        columns: the names in the run's table of subject, D inputs, target and split; none stands for x (or x1 to xD) and y.
            A file without the subject's column is about one subject.
    """
    sheet = open_sheet(path)
    names, found = _columns_of(sheet, input_dim, columns)
    rows = sheet.read(found, MAX_ROWS if names[0] else MAX_POINTS, names[0])
    measured = found[1:] if names[0] else found
    values = rows.numbers(measured, measured[-1:])
    if not len(values):
        raise RunError(f"{path} has no points (got a header alone; expected at least one row)")
    texts = rows.text[names[0]] if names[0] else [""] * len(values)
    if names[0] and "" in texts:
        rows.refuse(texts.index(""), names[0], "an empty name", "a subject's")
    numbers: dict[str, int] = {}
    members = np.array([numbers.setdefault(text, len(numbers)) for text in texts])
    return PointsFile(names, list(numbers), members, values, bool(columns))


def _columns_of(sheet: Sheet, input_dim: int, columns: Sequence[str]) -> tuple[tuple[str, ...], list[str]]:
    """Names as in `PointsFile`, and those of the columns to read."""
    if not columns:
        wanted = formula_columns(sheet, input_dim)
        usual = ["x", "y"] if input_dim == 1 else wanted
        return ("", *usual), [sheet.names[sheet.find(name)] for name in wanted]
    subject, *measured, _ = columns
    found = [sheet.names[sheet.find(name)] for name in measured]
    if not sheet.places(subject):
        return ("", *found), found
    found = [sheet.names[sheet.find(subject)], *found]
    return tuple(found), found


def formula_columns(sheet: Sheet, input_dim: int) -> list[str]:
    """The names of inputs and target where the tasks are formulas."""
    short = input_dim == 1 and (sheet.places("x") or not sheet.places("x1"))
    if not short and sheet.places(more := f"x{input_dim + 1}"):
        got = f"got a column {more}; expected {input_dim}, the run's INPUT_DIM"
        raise RunError(f"{sheet.path} has points of more dimensions ({got})")
    return ["x", "y"] if short else [*(f"x{number + 1}" for number in range(input_dim)), "y"]

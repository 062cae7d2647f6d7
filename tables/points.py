"""The file of `--points`: measured points of one task or of many subjects, and the places where predictions are wanted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dataset import Array, Points
from system.errors import RunError
from system.text import quoted
from tables.cells import MAX_POINTS, Sheet, open_sheet

MAX_ROWS = 10 * MAX_POINTS  # of all subjects


@dataclass(frozen=True, eq=False)
class Request:
    """What a file holds. Rows without a target are its questions."""

    names: tuple[str, ...]  # columns of subject ("" where there is none), D inputs and target
    subjects: list[str]  # the names of M subjects, as they first appear
    members: Array  # [N], the subject of each row
    values: Array  # [N, D + 1], inputs and target, float64; the target of a question is NaN
    of_table: bool  # whether its run learned from a table, which has units and names of its own

    @property
    def questions(self) -> Array:
        """Which rows are questions, [N] booleans."""
        return np.isnan(self.values[:, -1])

    def points(self, subject: int) -> Points:
        """The measured points of a subject: x [K, D], y [K, 1]."""
        rows = self.values[(self.members == subject) & ~self.questions]
        return Points(rows[:, :-1], rows[:, -1:])

    def asked(self, subject: int) -> Array | None:
        """Where predictions for a subject are wanted, [Q, D]; None in a file without any question."""
        return self.values[(self.members == subject) & self.questions, :-1] if self.questions.any() else None


def read_request(path: Path, input_dim: int, columns: Sequence[str] = ()) -> Request:
    """The points and questions of a file; raises `RunError` with the place of what can't be used.

    Args:
        input_dim: D.
        columns: the names in the run's table of subject, D inputs, target and split; none stands for x (or x1 to xD) and y.
            A file without the subject's column is about one subject.
    """
    sheet = open_sheet(path)
    subject = columns[0] if columns and sheet.places(columns[0]) else ""
    wanted = list(columns[1:-1]) or formula_columns(sheet, input_dim)
    found = [sheet.names[sheet.find(name)] for name in [subject] * bool(subject) + wanted]
    usual = ["x", "y"] if input_dim == 1 else wanted
    names = tuple(found) if subject else ("", *(found if columns else usual))
    rows = sheet.read(found, MAX_ROWS if subject else MAX_POINTS, names[0])
    values = rows.numbers(found[bool(subject) :], found[-1:])
    if not len(values):
        raise RunError(f"{path} has no points (got a header alone; expected at least one row)")
    texts = rows.text[names[0]] if subject else [""] * len(values)
    if subject and "" in texts:
        rows.refuse(texts.index(""), names[0], "an empty name", "a subject's")
    numbers: dict[str, int] = {}
    members = np.array([numbers.setdefault(text, len(numbers)) for text in texts])
    request = Request(names, list(numbers), members, values, bool(columns))
    measured = np.bincount(members[~request.questions], minlength=len(numbers))
    for empty in np.flatnonzero(measured == 0)[:1].tolist():  # there is nothing to adapt to
        name = f"subject {quoted(request.subjects[empty])}" if subject else "the file"
        rows.refuse(members.tolist().index(empty), names[-1], f"no number in any row of {name}", "at least one measured point")
    return request


def formula_columns(sheet: Sheet, input_dim: int) -> list[str]:
    """The names of inputs and target where the tasks are formulas."""
    short = input_dim == 1 and (sheet.places("x") or not sheet.places("x1"))
    if not short and sheet.places(more := f"x{input_dim + 1}"):
        got = f"got a column {more}; expected {input_dim}, the run's INPUT_DIM"
        raise RunError(f"{sheet.path} has points of more dimensions ({got})")
    return ["x", "y"] if short else [*(f"x{number + 1}" for number in range(input_dim)), "y"]

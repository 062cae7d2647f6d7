"""Tables of numbers in CSV files, read strictly: what can't be used is refused with its place."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np

from dataset import Points
from runtime.errors import RunError

MAX_POINTS = 10_000
MAX_NUMBER = 1e6  # as far as the ranges of a Config go; squares of more leave float32
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)  # float() also reads 1_000, nan and ١


def read_points(path: Path, input_dim: int) -> Points:
    """The points of a CSV file: columns x (or x1..xD) and y under a header, in any order; x [K, D], y [K, 1], float32.

    Raises `RunError` for anything else, in one line that names the place. Reads no further than it must.
    """
    longest = 40 * (input_dim + 1) + 1000  # characters of a line
    try:
        if not path.is_file():
            raise RunError(f"no such file (got {path}; expected a CSV file of points)")
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = csv.reader(_lines(file, path, longest), strict=True)
            return _parsed(rows, path, input_dim)
    except UnicodeDecodeError:
        raise RunError(f"{path} is not text in UTF-8 (got other bytes; expected a CSV file of points)") from None
    except csv.Error as error:
        raise RunError(f"{path} is not CSV (got {error}; expected numbers between commas)") from None
    except OSError as error:
        raise RunError(f"{path} can't be read (got {error.strerror}; expected a readable CSV file)") from None


def _lines(file: IO[str], path: Path, longest: int) -> Iterator[str]:
    """Lines of bounded length and number: a file of any size is refused before it fills the memory."""
    for number in range(1, MAX_POINTS + 3):
        line = file.readline(longest)
        if not line:
            return
        if len(line) == longest:
            raise RunError(f"{path} has too long a line {number} (got {longest} characters or more; expected short numbers)")
        if number > MAX_POINTS + 1:
            raise RunError(f"{path} is too long (got more than {MAX_POINTS} lines of points; expected at most {MAX_POINTS})")
        yield line


def _parsed(rows: Iterator[list[str]], path: Path, input_dim: int) -> Points:
    columns = _header(next(rows, []), path, input_dim)
    points = []
    for place, row in enumerate(rows, start=2):
        if not row:  # an empty line
            continue
        if len(row) != len(columns):
            raise RunError(f"{path} line {place} can't be used (got {len(row)} columns; expected {len(columns)})")
        points.append(np.array([_number(row[column], f"{path} line {place}") for column in columns], np.float32))
    if len(points) < 2:
        raise RunError(f"{path} has too few points (got {len(points)}; expected at least 2)")
    values = np.stack(points)  # [K, D + 1]
    return Points(values[:, :-1], values[:, -1:])


def _header(row: Sequence[str], path: Path, input_dim: int) -> list[int]:
    """Where the columns x1..xD and y are."""
    wanted = [*(["x"] if input_dim == 1 else [f"x{number + 1}" for number in range(input_dim)]), "y"]
    names = [name.strip() for name in row]
    if input_dim == 1 and sorted(names) == ["x1", "y"]:
        wanted = ["x1", "y"]
    if sorted(names) != sorted(wanted):
        expected = ", ".join(wanted) if input_dim <= 4 else f"x1, ..., x{input_dim}, y"
        raise RunError(f"{path} has no header that can be used (got {_quoted(', '.join(names))}; expected {expected})")
    return [names.index(name) for name in wanted]


def _number(text: str, where: str) -> float:
    text = text.strip()
    value = float(text) if NUMBER.fullmatch(text) else math.nan
    if not abs(value) <= MAX_NUMBER:
        raise RunError(
            f"{where} can't be used (got {_quoted(text)}; expected a finite number from {-MAX_NUMBER:g} to {MAX_NUMBER:g})"
        )
    return value


def _quoted(text: str) -> str:
    """A stranger's text as it appears in a message: printable, quoted, of bounded length."""
    return ascii(text) if len(text) <= 40 else ascii(text[:40]) + "..."

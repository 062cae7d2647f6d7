"""Tables in text files as spreadsheets, pandas and R write them; what has two readings is refused with its place.

docs/command_line.md lists what is read and what is refused. What columns mean, others know.
"""

from __future__ import annotations

import codecs
import csv
import itertools
import re
import unicodedata
from array import array
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NoReturn

import numpy as np

from system.errors import RunError
from system.text import escaped, quoted

MAX_POINTS = 10_000
MAX_NUMBER = 1e15  # whole numbers up to here are exact in float64, and their squares are finite in float32
MAX_BYTES = 2**30
LONGEST_LINE = 100_000  # characters
EMPTY_LINES = 2**20  # as many rows as a spreadsheet has; they may follow the table
SAMPLE = 100  # lines from which the delimiter is told
DELIMITERS = "\t;|,"
MISSING = frozenset({"", "NA", "na", "N/A", "n/a", "#N/A", "NaN", "nan", "NULL", "null", "None", "."})
MARKED = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
BINARY = {b"PK\3\4": "an .xlsx, .ods or other archive", b"\xd0\xcf\x11\xe0": "an .xls workbook", b"\x1f\x8b": "a gzip archive"}

NUMBER = re.compile(r"[+-]?(?=[.,]?\d)(?:\d{1,3}(?:[ ']\d{3})+|\d*)(?:([.,])\d*)?(?:[eE][+-]?\d+)?", re.ASCII)
DATE = re.compile(r"\d{1,4}([-/.])\d{1,2}\1\d", re.ASCII)
ONE_GROUP = re.compile(r"[+-]?[1-9]\d{0,2}[.,]\d{3}", re.ASCII)  # three decimals, or a mark between thousands
COMMA_IN_NUMBER = re.compile(r"\d,\d+(?:[eE][+-]?\d+)?\s*(?:,|$)", re.ASCII)  # it may be one
SPACES = " \u00a0\u2002\u2003\u2007\u2008\u2009\u202f"
PLAIN = str.maketrans({"\u2212": "-", "\u2013": "-", "\u2019": "'", **dict.fromkeys(SPACES, " ")})


# ---- the file and its header


@dataclass(frozen=True)
class Sheet:
    """A table in a file of which the header is read: its columns, and how it is written."""

    path: Path
    names: Sequence[str]  # of the columns, without quotes and blanks around them
    line: int  # where the header begins
    encoding: str
    delimiter: str
    shift: int  # 1 where each row begins with a name that the header has no column for

    def places(self, wanted: str) -> list[int]:
        """Where the columns of a name are; case, blanks and quotes don't count, but between several an exact name does."""
        keys = [re.sub(r"[\s'\"]", "", unicodedata.normalize("NFKC", name)).casefold() for name in (wanted, *self.names)]
        found = [place for place, key in enumerate(keys[1:]) if key == keys[0]]
        return [place for place in found if self.names[place] == wanted] or found

    def find(self, wanted: str) -> int:
        """Where the one column of a name is; raises `RunError` with the columns that there are."""
        found = self.places(wanted)
        if len(found) != 1:
            got = ", ".join([*map(quoted, self.names[:10]), *(["..."] if len(self.names) > 10 else [])])
            what = f"{len(found)} columns {quoted(wanted)}" if found else f"no column {quoted(wanted)}"
            raise RunError(f"{self.path} line {self.line} is no header that can be used: {what} (got {got}; expected one)")
        return found[0]

    def read(self, wanted: Sequence[str], most_rows: int, names: str = "") -> Rows:
        """The columns `wanted`; raises `RunError` for more than `most_rows` rows, and for rows that don't fit the header.

        Where the first column is the one of `names`, a line may begin with a name like #12: it is a row, and no comment, if it
        has as many cells as the header.
        """
        places, width = [self.find(name) + self.shift for name in wanted], len(self.names) + self.shift
        lines, columns = array("Q"), [list[str]() for _ in wanted]
        fill = [(column.append, place) for column, place in zip(columns, places, strict=True)]  # bound once: a million rows
        with _opened(self.path, self.encoding) as file:
            table = itertools.islice(_lines(file, self.path, most_rows), self.line - 1, None)
            named = width if names and self.shift == 0 and self.names[0] == names else 0
            for line, row in itertools.islice(_cells(table, self.path, self.delimiter, self.line, named), 1, None):
                if len(row) < width or (len(row) > width and any(cell.strip() for cell in row[width:])):
                    hint = ", with semicolons between them if there are decimal commas" if self.delimiter == "," else ""
                    what = f"can't be used from column {min(len(row), width) + 1} on (got {len(row)} columns"
                    raise RunError(f"{self.path} line {line} {what}; expected {width}{hint})")
                if len(lines) == most_rows:
                    raise RunError(f"{self.path} is too long (got more than {most_rows} rows; expected at most {most_rows})")
                lines.append(line)
                for append, place in fill:
                    append(row[place].strip())
        return Rows(self.path, lines, dict(zip(wanted, columns, strict=True)), "," if self.delimiter == ";" else ".")


def open_sheet(path: Path) -> Sheet:
    """The header of the table in a file; raises `RunError` where there is none, or where the file is something else."""
    encoding, delimiter, first, comment = _encoding(path), "", 0, ""
    with _opened(path, encoding) as file:
        lines = _lines(file, path, SAMPLE)
        for line in lines:
            first += 1
            if match := re.fullmatch(r'"?sep=([\t;|,])"?\n?', line):
                delimiter = match[1]
            elif line.strip(DELIMITERS + SPACES + "\n") and not _is_comment(line):
                break
            comment = line.replace("#", "", 1) if _is_comment(line) else ""
        else:
            raise RunError(f"{path} has no header (got no text; expected names of columns)")
        sample = [line, *itertools.islice(lines, SAMPLE)]
    if comment and all(map(NUMBER.fullmatch, re.split(r"[\t;|, ]+", line.strip()))):
        first, sample = first - 1, [comment, *sample]  # numpy.savetxt writes the header as a comment
    delimiter, shift = _dialect(sample, delimiter, f"{path} line {first}")
    _, header = next(_cells(sample, path, delimiter, first), (first, [""]))
    names = [" ".join(name.strip(SPACES + "'\"\n").split()) for name in header]
    while len(names) > 1 and not names[-1]:
        names.pop()
    return Sheet(path, names, first, encoding, delimiter, shift)


def _dialect(sample: Sequence[str], delimiter: str, where: str) -> tuple[str, int]:
    """What stands between the names of the header, and as often in each row; 1 if once more in each row, for its name."""
    header, *rows = [re.sub(" +", " ", re.sub(r'"[^"]*"', "q", line).strip(" \n")) for line in sample if not _is_comment(line)]
    rows = [row for row in rows if row.strip(DELIMITERS)]
    there = [delimiter] if delimiter else [mark for mark in DELIMITERS if mark in header] or [" "]
    more = {mark: {row.count(mark) - header.count(mark) for row in rows} for mark in there}
    found = there if len(there) == 1 else [mark for mark in there if more[mark] in ({0}, {1})]
    if len(found) != 1:
        got = " and ".join(map(quoted, there))
        raise RunError(f"{where} has several delimiters (got {got}; expected one, or a line like 'sep=;' before it)")
    named = more[found[0]] == {1} and not header.endswith(found[0]) and not all(row.endswith(found[0]) for row in rows)
    if found[0] == ",":  # 1,5,2 under x,y may be a name and two numbers, or two numbers with a decimal comma
        named &= all(re.match(r"[^\W\d]", row) for row in rows) or not all(map(COMMA_IN_NUMBER.search, rows))
    return found[0], int(named)


def _encoding(path: Path) -> str:
    """What a byte order mark says, else UTF-8, else Windows' Western code page."""
    with _opened(path) as file:
        head = file.read(2**16)
        if encoding := next((encoding for mark, encoding in MARKED.items() if head.startswith(mark)), ""):
            return encoding
        usual = "binary data" if b"\0" in head else ""
        if what := next((what for magic, what in BINARY.items() if head.startswith(magic)), usual):
            raise RunError(f"{path} is no text (got {what}; expected a table that was saved or exported as CSV)")
        try:
            for _ in codecs.iterdecode(itertools.chain([head], iter(lambda: file.read(2**20), b"")), "utf-8"):
                pass
        except UnicodeDecodeError:
            return "cp1252"
        return "utf-8"


# ---- its lines and cells


@contextmanager
def _opened(path: Path, encoding: str | None = None) -> Iterator[IO[Any]]:
    """The open file, bytes without an encoding; what goes wrong with it is a `RunError`."""
    try:
        if not path.is_file():
            what = f"{path}, a folder" if path.is_dir() else path
            raise RunError(f"no such file (got {what}; expected a CSV file)")
        if (size := path.stat().st_size) > MAX_BYTES:
            raise RunError(f"{path} is too long (got {size} bytes; expected at most {MAX_BYTES})")
        with open(path, "r" if encoding else "rb", encoding=encoding) as file:
            yield file
    except UnicodeDecodeError:
        raise RunError(f"{path} is no text (got bytes that are not {encoding}; expected a CSV file in UTF-8)") from None
    except OSError as error:
        raise RunError(f"{path} can't be read (got {error.strerror}; expected a readable CSV file)") from None


def _lines(file: IO[str], path: Path, most_rows: int) -> Iterator[str]:
    """Lines of bounded length and number: a file of any size is refused before it fills the memory."""
    for number in range(1, most_rows + EMPTY_LINES):
        line = file.readline(LONGEST_LINE)
        if len(line) == LONGEST_LINE:
            raise RunError(f"{path} has too long a line {number} (got {LONGEST_LINE} characters or more; expected fewer)")
        if not line:
            return
        yield line
    raise RunError(f"{path} is too long (got {number} lines, most of them empty; expected at most {most_rows} rows)")


def _is_comment(line: str) -> bool:
    return "#" in line and line.lstrip().startswith("#")


def _cells(lines: Iterable[str], path: Path, delimiter: str, first: int, named: int = 0) -> Iterator[tuple[int, list[str]]]:
    """The cells of each row, the header's first, and the line in which the row begins; comments are left out.

    A line of `named` cells is no comment.
    """

    def table() -> Iterator[str]:
        quotes = 0  # an odd number of them before this line: it is within a cell
        for number, line in enumerate(lines):
            comment = number > 0 and quotes % 2 == 0 and _is_comment(line)
            if comment and named:
                cells = next(csv.reader([line], delimiter=delimiter, skipinitialspace=True))
                comment = len(cells) < named or any(cells[named:])
            if comment:
                line = "\n"
            quotes += line.count('"')
            yield line

    reader = csv.reader(table(), delimiter=delimiter, strict=True, skipinitialspace=True)
    line = first
    try:
        for row in reader:
            if any(row):
                yield line, row
            line = first + reader.line_num
    except csv.Error as error:
        raise RunError(f"{path} line {line} is not CSV (got {error}; expected quotes in pairs)") from None


# ---- its numbers


@dataclass(frozen=True)
class Rows:
    """Columns that were read, as text."""

    path: Path
    lines: Sequence[int]  # where each row is in the file
    text: Mapping[str, list[str]]  # column -> a cell for each row, without blanks at its ends
    usual_mark: str  # the decimal mark that goes with the file's delimiter

    def numbers(self, names: Sequence[str], missing: Collection[str] = ()) -> np.ndarray:
        """The columns `names` as float64 [N, D]; an empty or NA cell is nan in the columns `missing`, else refused.

        One decimal mark is expected in all of them. Raises `RunError` with the place of what can't be used.
        """
        texts = {name: self.text[name] for name in names}
        texts |= {name: ["0" if cell in MISSING else cell for cell in texts[name]] for name in missing}
        mark = self._decimal_mark(texts)
        values = np.full((len(self.lines), len(names)), np.nan)
        for column, (name, cells) in enumerate(texts.items()):
            try:
                values[:, column] = _floats(cells, mark)
                wrong = [cells[place] for place in np.flatnonzero(np.abs(values[:, column]) > MAX_NUMBER)]
            except ValueError:
                wrong = [cell for cell in cells if not NUMBER.fullmatch(cell.translate(PLAIN))]
            if wrong:
                date = ", such as the days since the first date" if DATE.match(wrong[0]) else ""
                self._refuse(name, wrong[0], f"a finite number from {-MAX_NUMBER:g} to {MAX_NUMBER:g}{date}")
            if name in missing:
                values[[text in MISSING for text in self.text[name]], column] = np.nan
        return values

    def _decimal_mark(self, texts: Mapping[str, Sequence[str]]) -> str:
        """The decimal mark of all the numbers in some columns; a second one is refused."""
        certain: dict[str, tuple[str, str]] = {}  # mark -> column and cell where it can be nothing but the decimal mark
        unclear: dict[str, tuple[str, str]] = {}
        for mark, (name, cells) in itertools.product(".,", texts.items()):
            for cell in cells if mark not in certain else []:
                if mark in cell and (match := NUMBER.fullmatch(cell.translate(PLAIN))):
                    if not ONE_GROUP.fullmatch(match[0]):
                        certain[mark] = name, cell
                        break
                    unclear.setdefault(mark, (name, cell))
        mark = next(iter(certain), self.usual_mark)
        other = "," if mark == "." else "."
        if place := certain.get(other) or unclear.get(other):
            like = f" as in {quoted(certain[mark][1])}" if certain else ""
            self._refuse(*place, f"{quoted(mark)} as decimal mark{like}, and no mark between thousands")
        return mark

    def refuse(self, row: int, name: str, got: str, expected: str) -> NoReturn:
        """Raise `RunError` with the place of a cell."""
        where = f"{self.path} line {self.lines[row]}, column {quoted(name)}"
        raise RunError(f"{where} can't be used (got {got}; expected {expected})")

    def _refuse(self, name: str, text: str, expected: str) -> NoReturn:
        # digits of other scripts, and some signs, look like what is expected
        plain = [char.isprintable() and (char.isascii() or char.isalpha()) for char in text[:40]]
        shown = "".join(char if usual else escaped(char) for char, usual in zip(text, plain, strict=False))
        self.refuse(self.text[name].index(text), name, f"'{shown}'" + ("..." if len(text) > 40 else ""), expected)


def _floats(cells: Sequence[str], mark: str) -> list[float]:
    """The numbers in `cells`; raises ValueError where one of them is none, or not in one line."""
    text = "\n".join(cells)
    for odd, plain in PLAIN.items():
        text = text.replace(chr(odd), plain)
    if (" " in text or "'" in text) and all(map(NUMBER.fullmatch, text.split("\n"))):
        text = text.replace(" ", "").replace("'", "")
    text = text.replace(mark, ".") if "." not in text else text
    if text.encode().translate(None, b"0123456789+-.eE\n"):
        raise ValueError  # float() also reads 1_000, nan and the digits of other scripts
    return list(map(float, text.split("\n"))) if cells else []

"""Tables in text files: the ways in which they are written give the same numbers, and what has two readings is refused."""

from __future__ import annotations

import csv
import io
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dataset import Points
from system.errors import RunError
from system.text import printable
from tables.cells import LONGEST_LINE, MAX_POINTS, open_sheet
from tables.points import read_points

X = [-4.5, 0.25, 1234.5, 100000.0, -0.0625, 3.0]
Y = [1.763851, -2.0, 1e-05, 12.5, 1000000.0, -0.5]
ROWS = [[repr(x), repr(y)] for x, y in zip(X, Y, strict=True)]


def points_of(file: Path, dim: int) -> Points:
    """The measured points of a file about one task."""
    return read_points(file, dim).support[0]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "points.csv"


def refusal(file: Path, dim: int = 1) -> str:
    """The one line with which a file is refused."""
    with pytest.raises(RunError) as caught:
        points_of(file, dim)
    assert caught.value.code == 2
    text = str(caught.value)
    assert re.fullmatch(r".+ \(got .+; expected .+\)", text) and printable(text) == text
    return text


def table(delimiter: str = ",", *, header: str = "x{}y", decimal: str = ".", form: Callable[[str], str] = str) -> str:
    """The points as text: `header` with the delimiter at {}, `form` changes each number."""
    lines = [delimiter.join(form(cell).replace(".", decimal) for cell in row) for row in ROWS]
    return "".join(f"{line}\n" for line in [header.replace("{}", delimiter), *lines])


def each_line(text: str, before: str = "", after: str = "", header: tuple[str, str] = ("", "")) -> str:
    """`text` with something around each row, and around its header."""
    first, *rows = text.splitlines()
    return "\n".join([first.join(header), *(f"{before.format(n)}{row}{after}" for n, row in enumerate(rows, start=1)), ""])


def thousands(mark: str) -> Callable[[str], str]:
    return lambda cell: f"{float(cell):,.6f}".replace(",", mark)


BASE = table()
DIALECTS: dict[str, str | bytes] = {
    "commas": BASE,
    "semicolons and decimal commas": table(";", decimal=","),
    "tabs": table("\t"),
    "pipes": table("|"),
    "blanks": table(" ", form=lambda cell: f"{cell:>12}"),
    "quoted decimal commas between commas": table(decimal=",", form=lambda cell: f'"{cell}"'),
    "UTF-16 little endian": b"\xff\xfe" + table("\t").encode("utf-16-le"),
    "UTF-16 big endian": b"\xfe\xff" + table("\t", decimal=",").encode("utf-16-be"),
    "Latin-1": each_line(BASE, after=",5 µm", header=("", ",größe")).encode("latin-1"),
    "Windows' code page": each_line(table(";", decimal=","), after=";5 €", header=("", ";preis")).encode("cp1252"),
    "windows line ends": BASE.replace("\n", "\r\n"),
    "old line ends": BASE.replace("\n", "\r"),
    "a line that names the delimiter": "sep=;\n" + table(";", decimal=","),
    "a quoted line that names it, with a byte order mark": ('"sep=;"\r\n' + table(";")).encode("utf-8-sig"),
    "a delimiter at the end of each row": each_line(BASE, after=","),
    "empty rows of a sheet in semicolons": table(";") + ";\n" * 20000,
    "empty lines and rows before": "\n \n,\n" + BASE,
    "comments": "# made by a program, version 1\n#\n" + BASE.replace("\n", '\n# "a" comment;\n'),
    "numpy's header in a comment, and its delimiter": table(" ", header="# x{}y", form=lambda cell: f"{float(cell):.18e}"),
    "pandas' index, written twice": each_line(BASE, before="{0},{0},", header=(",Unnamed: 0,", "")),
    "R's quoted row names without a name": each_line(BASE, before='"{}",'),
    "row names that are numbers, beside decimal points": each_line(BASE, before="{},"),
    "R's row names in words": each_line(BASE, before="Merc {}D,"),
    "R's default": each_line(table(" ", header='"x"{}"y"'), before='"{}" '),
    "spaces before and in quoted names": table(header='"x"{} " Y "'),
    "a number behind x": table(header="x1{}y"),
    "a real minus sign": table(form=lambda cell: cell.replace("-", "\N{MINUS SIGN}").replace("e\N{MINUS SIGN}", "e-")),
    "a plus sign": table(form=lambda cell: cell if cell[0] == "-" else f"+{cell}"),
    "no-break spaces around numbers": table(form=lambda cell: f"\u00a0{cell}\u202f"),
    "narrow no-break spaces between thousands": table(";", decimal=",", form=thousands("\u202f")),
    "apostrophes between thousands": table(form=thousands("'")),
    "further columns": each_line(BASE, before="a{},", after=',"of, no; interest"', header=("name,", ",note")),
    "a text of several lines": each_line(BASE, after=',"two\n# lines"', header=("", ",note")),
    "another order": "".join(f"{y};{x}\n" for x, y in [["x", "y"], *ROWS]),
}


def test_the_same_points_are_read_in_whatever_way_they_are_written(file: Path) -> None:
    for name, contents in DIALECTS.items():
        file.write_bytes(contents if isinstance(contents, bytes) else contents.encode())
        points = points_of(file, 1)
        assert (points.x.dtype, points.y.dtype) == (np.float64, np.float64), name
        assert np.array_equal(points.x[:, 0], X) and np.array_equal(points.y[:, 0], Y), name


READ: dict[str, tuple[str, list[list[float]]]] = {
    "one point": ("x,y\n1,2\n", [[1, 2]]),
    "times since 1970": ("x,y\n1700000000.25,1\n1700000001,2\n", [[1700000000.25, 1], [1700000001, 2]]),
    "the largest numbers": ("x,y\n1e15,-999999999999999\n", [[1e15, -999999999999999]]),
    "three decimals": ("x,y\n1.234,5.678\n", [[1.234, 5.678]]),
    "three decimals between semicolons": ("x;y\n1,234;5,678\n", [[1.234, 5.678]]),
    "three decimals, and a number that tells the mark": ("x;y\n1.234;5.67\n", [[1.234, 5.67]]),
    "three decimals, and zero before the mark": ("x\ty\n1,234\t0,678\n", [[1.234, 0.678]]),
    "no digits after the mark": ("x,y\n1.,2\n", [[1, 2]]),
    "no digits before the mark": ("x;y\n,5;-,25\n", [[0.5, -0.25]]),
    "a column of the exact name among similar ones": ("X,x,Y,y\n9,1,9,2\n", [[1, 2]]),
    "a delimiter in a quoted name": ('"time, s";x;y\n1,5;2,5;3\n', [[2.5, 3]]),
    "a comma in one name alone": ("time, s;x;y\n1;2;3\n4;5;6\n", [[2, 3], [5, 6]]),
}


def test_numbers_are_read_as_they_are_meant(file: Path) -> None:
    for name, (contents, expected) in READ.items():
        file.write_text(contents)
        assert np.concatenate(points_of(file, 1), axis=1).tolist() == expected, name
    file.write_text("x2,y,x1\n1,2,3\n4,5,6\n")  # in any order
    points = points_of(file, 2)
    assert (points.x.tolist(), points.y.tolist()) == ([[3, 1], [6, 4]], [[2], [5]])


def test_missing_numbers_are_nan_where_they_may_be_missing(file: Path) -> None:
    missing = ["", "NA", "NaN", "na", "nan", ".", "null", '""', "#N/A"]
    file.write_text("task;x;y\n" + "".join(f"a b;0,5;{text}\n" for text in missing) + "c;1;2,5\n")
    rows = open_sheet(file).read(["task", "y", "x"], 100)
    numbers = rows.numbers(["x", "y"], missing=["y"])
    assert np.array_equal(numbers, [[0.5, np.nan]] * len(missing) + [[1, 2.5]], equal_nan=True)
    assert rows.text["task"] == ["a b"] * len(missing) + ["c"] and list(rows.lines) == list(range(2, len(missing) + 3))
    with pytest.raises(RunError, match=r"line 2, column 'y' can't be used \(got ''"):
        rows.numbers(["x", "y"])


def test_comments_are_no_rows_and_a_column_is_found_whatever_its_case_and_blanks(file: Path) -> None:
    file.write_text("# by hand\nid,x,y\n#1,2,3\n# second day\n#2,4,\n\n3,5,6\n# of, two\n")
    assert open_sheet(file).read(["id", "x"], 9, "id").text["id"] == ["#1", "#2", "3"]
    assert open_sheet(file).read(["id", "x"], 9).text["id"] == ["3"]
    file.write_text('Body  Weight,"Größe",y\n1,2,3\n')
    sheet = open_sheet(file)
    assert [sheet.find(name) for name in ("body weight", "bodyweight", "GRÖSSE", "Y")] == [0, 0, 1, 2]


REFUSED: list[tuple[str | bytes, str]] = [
    # two readings: of a decimal comma, of thousands, of a delimiter, of a name
    ("x,y\n1,2\n1,5,2,5\n", "line 3 can't be used from column 3 on (got 4 columns; expected 2"),
    ("x,y\n1,5,2\n2,5,3\n", "with semicolons between them if there are decimal commas"),
    ("x,y\n\u22121,5,2\n", "line 2 can't be used from column 3"),
    ("x,y,,\n1,5,2,5\n", "line 2 can't be used from column 3"),
    ("x;y\n1;2\n1.5;2,5\n", "line 3, column 'y' can't be used (got '2,5'; expected '.' as decimal mark"),
    ("x;y\n1,5;2\n1;2\n2.5;3\n", "line 2, column 'x' can't be used (got '1,5'; expected '.' as"),
    ("x;y\n1,5;2\n1.234;2\n", "line 3, column 'x' can't be used (got '1.234'; expected ',' as decimal mark as"),
    ('x,y\n3,"1,234"\n', "line 2, column 'y' can't be used (got '1,234'; expected '.' as decimal mark, and no"),
    ("x;y\n3;1.234\n", "line 2, column 'y' can't be used (got '1.234'; expected ',' as decimal mark"),
    ("x,y;z\n1,2;3\n", "line 1 has several delimiters (got ';' and ','; expected one"),
    ("Y,x,y ,y\n1,2,3,4\n", "line 1 is no header that can be used: 2 columns 'y' (got 'Y', 'x', 'y', 'y'"),
    # no header, no points
    (b"\xef\xbb\xbf", "no header"),
    ("\n\n,,\n", "no header"),
    ('""\n""\n', "is no header that can be used: no column 'x' (got ''"),
    ("1,2\n3,4\n5,6\n", "no column 'x' (got '1', '2'; expected one)"),
    ("x,y\n", "no points (got a header alone"),
    # cells, with their place below empty lines, comments and texts of two lines
    ("x,y\n1,2\n\n3,four\n", "line 4, column 'y' can't be used (got 'four'"),
    ('y,x,note\n1,2,"a\nb"\n3,four,\n', "line 4, column 'x' can't be used"),
    ("x;y\n1,5;2\nca.;4\n", "line 3, column 'x' can't be used (got 'ca.'; expected a finite number"),
    ("x,y\n1,2\n,3\n", "line 3, column 'x' can't be used (got ''"),
    ("x,y\n2024-05-03,2\n", "such as the days since the first date"),
    ("x,y\n1,12 34\n", "line 2, column 'y' can't be used (got '12 34'"),
    ('x,y\n1,2\n3,"4\n5"\n', r"got '4\n5'"),
    ("x,y\n1,2\n3\n", "line 3 can't be used from column 2 on (got 1 columns; expected 2"),
    ("x\ty\n" + "a\t1\t2\n" * 200 + "5\t6\n", "line 202 can't be used from column 3 on (got 2 columns; expected 3)"),
    ("x,y\n1,2\nnan,4\n", "line 3, column 'x' can't be used (got 'nan'; expected a finite number"),
    ("x,y\n1,2\n3,2e15\n", "got '2e15'; expected a finite number from -1e+15 to 1e+15"),
    ("x,y\n1,2\n3,٤\n", r"got '\u0664'"),
    ("x,y\n1,2\n3,\x1b[31m\n", r"got '\x1b[31m'"),
    (b"x,y\n1,2\n3,\xb54\n", "got '\N{MICRO SIGN}4'"),  # Latin-1
    ('x,y\n1,2\n3,"4\n5,6\n', "line 3 is not CSV (got unexpected end of data"),
    ("x,y\n" + "1" * LONGEST_LINE, "has too long a line 2"),
    ("x,y\n1,2\n3," + "9" * 500, "got '" + "9" * 40 + "'..."),
    # other files
    (b"PK\x03\x04\x14\x00\x06\x00", "is no text (got an .xlsx, .ods or other archive; expected a table that was"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "got an .xls workbook; expected a table that was saved or exported as CSV"),
    (b"\x89PNG\r\n\x1a\n\x00\x00", "is no text (got binary data"),
    ("x,y\n1,2\n".encode("utf-16")[:-1], "is no text (got bytes that are not utf-16"),
    (b"x,y\n1,2\n\x81,3\n", "is no text (got bytes that are not cp1252"),
]


def test_a_file_that_can_not_be_used_is_refused_in_one_line_with_its_place(file: Path) -> None:
    for contents, expected in REFUSED:
        file.write_bytes(contents if isinstance(contents, bytes) else contents.encode())
        assert expected in refusal(file)
    for header, dim in (("x,y,z", 2), ("x1,y,z", 2), ("x1,x2,y", 1), ("x1,x3,y", 2), ("x1,x2,y", 100)):
        file.write_text(f"{header}\n1,2,3\n4,5,6\n")
        assert re.search("no column 'x|more dimensions", refusal(file, dim))


def test_what_is_no_file_that_can_be_read_is_refused(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open(file, "wb") as sparse:
        sparse.truncate(2**31)
    assert f"is too long (got {2**31} bytes" in refusal(file)
    file.unlink()
    names = {"points.csv": "points.csv; expected a CSV file)", ".": ", a folder;", "/dev/zero": "no such file", "a" * 5000: ""}
    for name, says in names.items():
        assert says in refusal(file.parent / name)
    file.write_text("x,y\n1,2\n3,4\n")

    def denied(*_: Any, **__: Any) -> None:  # a mode of 0 would not stop root
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", denied)
    assert "can't be read (got Permission denied" in refusal(file)


@pytest.mark.parametrize("line", [b"\n", b'"'], ids=["empty lines", "one cell"])
def test_ten_million_rows_are_refused_at_once(file: Path, line: bytes) -> None:
    with open(file, "wb") as stream:
        stream.writelines([b"x,y\n", *[line * 1_000_000] * 10])
    before, began = psutil.Process().memory_info().rss, time.process_time()
    assert f"expected at most {MAX_POINTS}" in refusal(file) or line == b'"'
    assert time.process_time() - began < 5
    assert psutil.Process().memory_info().rss - before < 50 * 2**20


FUZZ = settings(max_examples=60, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
PIECES = b"x y x1 , ; ' # 1 -2.5 1,5 1.234 1e9 nan sep=;".split()
PIECES += [b'"', b"\t", b" ", b"\n", b"\r", b"\x00", b"\xff", b"\xc3", b"\xa0", b"\xc2\xa0"]


@FUZZ
@given(
    header=st.sampled_from([b"", b"x,y\n1,2\n", b"x;y\n", b'"x"\ty\n']),
    pieces=st.lists(st.sampled_from(PIECES) | st.binary(max_size=4), max_size=30),
)
def test_random_bytes_and_pieces_of_csv_are_read_or_refused_cleanly(tmp_path: Path, header: bytes, pieces: list[bytes]) -> None:
    """Reading gives finite points of the right shape, or one clean line."""
    file = tmp_path / "points.csv"
    file.write_bytes(header + b"".join(pieces))
    try:
        points = points_of(file, 1)
    except RunError as error:
        assert error.code == 2 and printable(str(error)) == str(error)
    else:
        assert points.x.shape == points.y.shape and len(points.x) >= 1
        assert np.isfinite(points.x).all() and np.isfinite(points.y).all()


@FUZZ
@given(
    rows=st.lists(st.tuples(*[st.floats(-1e15, 1e15)] * 3), min_size=1, max_size=20),
    delimiter=st.sampled_from(",;\t|"),
    decimal=st.sampled_from(".,"),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    end=st.sampled_from(["\n", "\r\n", "\r"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "latin-1"]),
)
def test_what_was_written_is_what_is_read_or_it_has_two_readings(
    tmp_path: Path, rows: list[tuple[float, ...]], delimiter: str, decimal: str, quoting: Any, end: str, encoding: str
) -> None:
    file, text = tmp_path / "points.csv", io.StringIO()
    writer = csv.writer(text, delimiter=delimiter, quoting=quoting, lineterminator=end)
    writer.writerows([("y", "größe", "x1", "x2"), *([repr(n).replace(".", decimal) for n in (*row[:1], *row)] for row in rows)])
    file.write_bytes(text.getvalue().encode(encoding))
    try:
        points = points_of(file, 2)
    except RunError as error:
        assert "as decimal mark, and no mark between thousands" in str(error) and decimal != ("," if delimiter == ";" else ".")
        marked = [text for row in rows for text in map(repr, row) if "." in text]
        assert all(re.fullmatch(r"-?[1-9]\d{0,2}\.\d{3}", text) for text in marked)
    else:
        assert np.array_equal(np.concatenate([points.y, points.x], axis=1), np.array(rows))

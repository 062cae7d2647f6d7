"""Tables as text: for terminals, as Markdown, as CSV."""

from __future__ import annotations

import csv
import io
import math
import re

from evaluation.comparison import Comparison, Row
from report.rows import Table
from system.text import columns, padded, printable


def text_table(table: Table) -> str:
    """The table for a terminal: aligned columns, and a line between one K and the next."""
    cells = table.cells
    widths = [max(columns(row[column]) for row in cells) for column in range(len(cells[0]))]
    lines = []
    for place, row in enumerate(cells):
        if place > 0 and (place == 1 or cells[0][0] == "K") and row[0] != cells[place - 1][0]:
            lines.append("  ".join("-" * width for width in widths))
        lines.append("  ".join(padded(cell, width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return "\n".join([*lines, *table.notes, *([table.answer] if table.answer else [])])


def markdown_table(table: Table, title: str) -> str:
    """The table in Markdown, where no name is taken for markup."""
    header, *rows = ["| " + " | ".join(map(_unmarked, row)) + " |" for row in table.cells]
    notes = [f"* {_unmarked(note)}" for note in [*table.notes, table.answer] if note]
    return "\n".join([f"# {_unmarked(title)}", "", header, "|" + " --- |" * len(table.cells[0]), *rows, "", *notes]) + "\n"


def _unmarked(text: str) -> str:
    """`text` with a backslash before all that Markdown takes for markup; an underscore inside a word is none."""
    return re.sub(r"[\\`*|<>\[\]~$&#]|(?<!\w)_|_(?!\w)", r"\\\g<0>", printable(text))


def csv_table(comparison: Comparison) -> str:
    """Every row as CSV: full precision, empty cells where there is no interval."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(Row._fields)
    for row in comparison.rows:
        plain = row._replace(group=printable(row.group))  # one line a row, and letters that UTF-8 has
        writer.writerow("" if isinstance(value, float) and math.isnan(value) else value for value in plain)
    return text.getvalue()

"""Text from outside (names of files, runs, columns, units) as it may be printed: in one line, with nothing that acts."""

from __future__ import annotations

import unicodedata

# control characters, marks that hide or turn text around, halves of characters, separators of lines and paragraphs
UNPRINTABLE = {"Cc", "Cf", "Cs", "Zl", "Zp"}


def escaped(char: str) -> str:
    """A character as its escape in Python and JSON, such as \\n or \\u4e2d."""
    return char.encode("unicode_escape").decode("ascii")


def printable(text: str) -> str:
    """`text` with an escape for each character that has no shape of its own; a name becomes one line."""
    return "".join(escaped(char) if unicodedata.category(char) in UNPRINTABLE else char for char in text)


def quoted(text: str) -> str:
    """`text` as it appears in a message: printable, in quotes, of bounded length."""
    return repr(text) if len(text) <= 40 else f"{text[:40]!r}..."


def columns(text: str) -> int:
    """How many columns of a terminal `text` takes: letters of East Asia two, combining accents none."""
    wide = sum(unicodedata.east_asian_width(char) in "WF" for char in text)
    return len(text) + wide - sum(map(bool, map(unicodedata.combining, text)))


def padded(text: str, width: int) -> str:
    """`text` with spaces behind it, up to `width` columns."""
    return text + " " * (width - columns(text))

"""Size in lines that hold code: no blank lines, comments or docstrings. Raising a limit is a decision with its own commit."""

from __future__ import annotations

import ast
import io
import tokenize
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NO_CODE = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
SLACK = 40  # room for a method of one's own
MOST_CODE, MOST_BENCHMARK_CODE = 6485, 2100
MOST_TEST_LINES = 9587


def docstring_lines(tree: ast.AST) -> set[int]:
    """The numbers of the lines that docstrings take."""
    owners = [node for node in ast.walk(tree) if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)]
    first = [owner.body[0] for owner in owners if ast.get_docstring(owner, clean=False) is not None]
    return {line for node in first for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)}


def code_lines(text: str) -> int:
    """How many lines of a source hold code."""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    lines = {line for token in tokens if token.type not in NO_CODE for line in range(token.start[0], token.end[0] + 1)}
    return len(lines - docstring_lines(ast.parse(text)))


def sources(*rooms: str) -> list[str]:
    return [path.read_text(encoding="utf-8") for room in rooms for path in sorted((ROOT / room).rglob("*.py"))]


def program() -> list[str]:
    """All but the benchmarks and the families of functions, of which there may be as many as anyone likes."""
    rooms = [path.parent.name for path in ROOT.glob("*/__init__.py") if path.parent.name not in ("benchmarks", "families")]
    return [path.read_text(encoding="utf-8") for path in ROOT.glob("*.py")] + sources(*rooms)


def test_blank_lines_comments_and_docstrings_are_no_code() -> None:
    text = '"""What it is.\n\nMore."""\n\nx = 1  # one\n\n\ndef f():\n    """Docstring."""\n    # comment\n'
    text += "    return (\n        x\n    )\n"
    assert code_lines(text) == 5


def test_the_program_stays_within_its_limit() -> None:
    assert sum(map(code_lines, program())) <= MOST_CODE + SLACK


def test_the_benchmarks_stay_within_their_limit() -> None:
    assert sum(map(code_lines, sources("benchmarks"))) <= MOST_BENCHMARK_CODE


def test_the_tests_stay_within_their_limit() -> None:
    assert sum(len(text.splitlines()) for text in sources("tests")) <= MOST_TEST_LINES

"""A stranger's names in figures, tables, logs and on the terminal: no traceback, no warning, shown as they are."""

from __future__ import annotations

import csv
import io
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import LogFormatter, ScalarFormatter

import visualization as draw
from evaluation.comparison import Comparison, Entry, compare_entries
from report.figures import HAIR_SPACE, error_against_gradients, error_against_shots, errors_by_subject
from report.rows import comparison_table
from report.text import csv_table, markdown_table, text_table
from results_manager import ExperimentManager
from system.terminal import print_once
from system.text import UNPRINTABLE, columns, padded, printable
from tests.tools.hostile import NAMES
from visualization import drawable_text, pdf_bytes, png_bytes

GRID = np.linspace(-5, 5, 9)
WORST = ["$\\undefined{$", "_hidden", "测量\n\udcff\U0001f469", "W_$1^" * 51, "a\\$b$c$"]


def numbers(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(0.1, 2.0, shape)


def texts(figure: Figure) -> list[Text]:
    """All text of a figure but the numbers along its axes; names along them are among it."""
    found = [*figure.texts, *(text for legend in figure.legends for text in legend.get_texts())]
    for axes in figure.axes:
        found += [axes.title, axes.xaxis.label, axes.yaxis.label, *axes.texts]
        if not isinstance(axes.yaxis.get_major_formatter(), (ScalarFormatter, LogFormatter)):
            found += axes.yaxis.get_majorticklabels()
    return [text for text in found if text.get_text()]


SHOWN = {
    **{"a\nb\t\x1b": r"a\nb\t\x1b", "\udcff": r"\udcff", "\u202egpj.exe": r"\u202egpj.exe", "\U0010ffff": r"\U0010ffff"},
    **{"e\u0301te\u0301": "été", "$x_1^2$ \\alpha 100% {0} <b>": "$x_1^2$ \\alpha 100% {0} <b>"},
}


def test_a_name_is_one_line_of_letters_with_a_shape_that_its_fonts_have() -> None:
    assert len(set(NAMES)) == len(NAMES) >= 50
    for name in NAMES:
        shown = printable(name)
        assert not {unicodedata.category(char) for char in shown} & UNPRINTABLE
        assert shown.encode() and printable(shown) == shown
        assert all(char in shown for char in name if unicodedata.category(char) not in UNPRINTABLE)
        drawable = drawable_text(name, 5000)
        assert drawable_text(drawable, 5000) == drawable and (not name.isascii() or drawable == shown)
    assert {name: drawable_text(name) for name in SHOWN} == SHOWN


def results(labels: list[str]) -> dict[int, dict[str, dict[str, np.ndarray]]]:
    return {5: {label: {"mse": numbers(3), "ci95": numbers(3) / 9, "seeds": numbers(2, 3)} for label in labels}}


def of_tasks(names: list[str]) -> Figure:
    task = {"grid": GRID, "support_x": numbers(3), "support_y": numbers(3)}
    task |= {"predictions": numbers(2, 9), "samples": numbers(2, 9)}
    return draw.task_curves(dict.fromkeys(names[:-1], task), (0, 2), names[-1], (names[0], names[1]), (-3.0, 3.0))


def of_training(names: list[str]) -> Figure:
    return draw.training_curves(
        {"iteration": GRID, "query_mse": numbers(9)}, {"iteration": GRID, "mse": numbers(9, 2)}, names[0]
    )


FIGURES: dict[str, Callable[[list[str]], Figure]] = {
    "training_curves": of_training,
    "task_curves": of_tasks,
    "performance_over_tasks": lambda names: draw.performance_over_tasks(
        {5: numbers(9)}, numbers(9, 5), names[2:4], 5, {}, names[0]
    ),
    "latent_space": lambda names: draw.latent_space(numbers(9, 3), numbers(9, 5), names[:2], names[4]),
    "error_against_gradients": lambda names: error_against_gradients(results(names), names[0]),
    "error_against_shots": lambda names: error_against_shots(results(names), [0, 2], names[0]),
    "errors_by_subject": lambda names: errors_by_subject(names, numbers(len(names)), 5, names[0], names[1]),
}


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_with_hostile_names_is_drawn_without_a_warning_or_a_formula(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    figure = FIGURES[name](WORST)
    for text in texts(figure):
        assert not text.get_parse_math() and drawable_text(text.get_text(), 5000) == text.get_text()
    figure.set_dpi(25)
    figure.set_layout_engine("none")  # it takes longer than all the rest
    assert png_bytes(figure) and not caplog.records


def test_every_name_is_drawn_in_a_legend_without_a_formula_or_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    figure = error_against_gradients(results(NAMES), "a title")
    for name, text in zip(NAMES, figure.legends[0].get_texts(), strict=True):
        entry = text.get_text().lstrip(HAIR_SPACE).partition("…")[0]
        assert drawable_text(name, 5000).startswith(entry) and entry and not text.get_parse_math()
    figure.set_dpi(30)
    figure.set_layout_engine("none")
    assert png_bytes(figure) and pdf_bytes(figure) and not caplog.records


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    return compare_entries([Entry(name, {5: numbers(4, 2)}) for name in NAMES])


def test_the_terminals_table_has_a_line_for_every_name(comparison: Comparison) -> None:
    lines = text_table(comparison_table(comparison)).split("\n")
    assert len(lines) == 1 + 1 + 2 * len(NAMES) + 2
    for name, line in zip(NAMES, lines[2:], strict=False):
        assert printable(name) in line and line == printable(line)
    widest = max(columns(printable(name)) for name in NAMES)
    assert {columns(line[: line.index(" +- ")].rpartition("  ")[0]) for line in lines[2:-2]} <= set(range(widest + 30))
    for text, width in (("abc", 3), ("测量", 4), ("e\u0301", 1), ("", 0)):
        assert columns(text) == width and columns(padded(text, 9)) == 9


def test_markdown_and_csv_have_a_row_for_every_name_and_no_markup(comparison: Comparison) -> None:
    table = markdown_table(comparison_table(comparison), "# of $x$\n<b>")
    assert table.startswith("# \\# of \\$x\\$\\\\n\\<b\\>\n")
    rows = [line for line in table.split("\n") if line.startswith("|")]
    bare = [line.replace("\\\\", "").replace("\\|", "") for line in rows]
    assert len(rows) == 2 + 2 * len(NAMES) and {line.count("|") for line in bare} == {9}
    assert not any(mark in line.replace(f"\\{mark}", "") for line in bare for mark in "$<>`*[]&")
    data = csv_table(comparison).encode()
    names = [row["group"] for row in csv.DictReader(io.StringIO(data.decode(), newline=""))]
    assert names[: len(NAMES)] == [printable(name) for name in NAMES]


def test_any_name_can_be_printed_on_any_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="cp1252", newline="\n"))
    for name in NAMES:
        print_once(printable(name))
    sys.stdout.flush()
    assert raw.getvalue() == "".join(f"{printable(name)}\n" for name in NAMES).encode("cp1252", "backslashreplace")


def test_a_log_a_warning_and_a_tag_are_one_line_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manager = ExperimentManager(tmp_path, "maml", [])
    calls: list[Any] = []
    manager._writer = type("Writer", (), {"add_scalar": lambda _, *args: calls.append(args), "close": lambda _: None})()
    for name in NAMES:
        manager.log(name)
        manager.warn(name)
        manager._write("add_scalar", name, 1.0, 1)
    manager.close()
    lines = (tmp_path / "train.log").read_bytes().decode().split("\n")[:-1]
    assert [line[20:] for line in lines] == [printable(name) for name in NAMES] == [tag for tag, *_ in calls]
    assert capsys.readouterr().err.split("\n")[:-1] == [f"warning: {printable(name)}" for name in NAMES]

"""report.html: one self-contained page, the record's numbers, and foreign text that stays text."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

import main
from report.page import answer, comparison_page, run_page
from report.rows import Table
from tests.tools.runs import ROOT, command

HOSTILE = "<script>alert(1)</script>&amp;\"'$x$\x1b[31m"
PNG = b"\x89PNG\r\n"


class Page(HTMLParser):
    """Tags with attributes, and all text, of a page; refuses tags that are not closed in order."""

    def __init__(self, page):
        super().__init__()
        self.tags = []
        self.text, self.open = "", list[str]()
        self.feed(page.decode())
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def report(shots=None, **more):
    results = {"num_tasks": 30, "diverged": 0, "shots": shots or {"5": {"mse": [3.0, 1.5], "ci95": [0.5, None]}}}
    machine = {"python": "3.11", "libraries": {"torch": "2.13"}, "cpu": {"model": HOSTILE}, "os": "Linux"}
    about = {"method": "maml", "tasks": "sinusoid", "command": ["main.py", "--name", HOSTILE], "warnings": [HOSTILE]}
    config = {"SUPPORT_SAMPLES": 5, "NUM_TASKS": 100, "DATA": f"/somewhere/{HOSTILE}", "SUPPORT_FROM": "random"}
    return about | {"config": config, "results": results | more, "git": {"commit": None}, "environment": machine}


def table_report():
    data = {"columns": ["patient", HOSTILE, "level", "split"], "subjects": {"train": 5, "validation": 2, "test": 2}, "rows": 80}
    return report({"5": {"mse": [1, 0.25], "ci95": [0.5, 0.1], "rmse": [8, 4.0], "left_out": 1}}) | {"data": data}


@pytest.mark.parametrize("record", [report(), table_report()], ids=["formula", "table"])
def test_foreign_text_is_shown_as_text(record):
    page = Page(run_page(record, HOSTILE, {}, {"COLUMNS": ([HOSTILE], [])}, {HOSTILE: PNG}))
    allowed = "html head meta title style body h1 h2 p div table thead tbody tr th td figure figcaption img pre"
    assert {tag for tag, _ in page.tags} <= set(allowed.split())
    assert page.text.count("<script>alert(1)</script>&amp;") >= 4 and "\x1b" not in page.text


def test_a_run_with_all_defaults_says_that_no_setting_differs():
    assert "<td>none</td>" in run_page(report(), "run", {}, {}, {}).decode()
    assert "<td>none</td>" not in run_page(report(), "run", {}, {"EPOCHS": (7, 70)}, {}).decode()


def test_nothing_is_fetched_from_anywhere():
    tags = [attributes for _, attributes in Page(run_page(report(), "run", {}, {}, {"a": PNG})).tags]
    fetched = {attributes[name][:22] for attributes in tags for name in ("src", "href") if name in attributes}
    assert fetched == {"data:image/png;base64,"}
    assert any("default-src 'none'" in (attributes.get("content") or "") for attributes in tags)


def test_the_answer_is_the_verdict_or_the_error_at_the_trained_k_beside_the_published_one():
    assert answer(report(verdict="LEO 24.1, mixed model 27.9: 14% lower"), {}) == "LEO 24.1, mixed model 27.9: 14% lower"
    text = answer(report(), {5: {1: 0.67}})
    assert text.startswith("From 5 points of a new task, after 1 gradients, MAML has a mean squared error of 1.5 +- -")
    assert text.endswith("; Finn et al. 2017 report 0.67.")


def test_a_run_ends_with_the_name_of_its_page(tmp_path, capsys):
    assert main.main(command(tmp_path, "--name", "one")) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    path = Path(re.fullmatch(r"report: (\S+)", last)[1])
    page = Page((ROOT / path).read_bytes())
    assert "MAML: sinusoid tasks" in page.text and f"--predict {path.parent}" in page.text


def test_a_comparison_has_a_page_with_and_without_an_answer():
    for told in ("", "the run to use is leo"):
        page = Page(comparison_page(Table([["K", "method"], ["5", HOSTILE]], ["a note"], told), "a title", {"b": PNG}))
        assert all(text in page.text for text in (told, "a note", "<script>alert(1)</script>"))
        assert any(attributes.get("class") == "answer" for _, attributes in page.tags) == (told != "")

"""report.html: what a run or a comparison found, as one self-contained page for people.

Made from the record in full_report.json and the pictures in plots/. Whatever comes from outside (names of files, columns,
subjects) is text here and never markup.
"""

from __future__ import annotations

import base64
import shlex
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import PureWindowsPath
from string import Template
from typing import Any

from dataset import Published
from report.rows import Table, run_table, with_interval
from system.text import printable

PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>$title</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; max-width: 60rem; margin: 0 auto; padding: 1rem }
h1, h2, p, .names td { overflow-wrap: anywhere }
.answer { font-size: 1.2rem; border-left: .3rem solid #0072b2; padding-left: .8rem }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem }
th, td { text-align: left; padding: .2rem .8rem .2rem 0; border-bottom: 1px solid #ddd; vertical-align: top }
.wide th, .wide td { white-space: nowrap }
figure { margin: 1rem 0; break-inside: avoid }
figcaption { font-size: .9rem; color: #555 }
img { max-width: 100%; height: auto }
pre { background: #f4f4f4; padding: .6rem; white-space: pre-wrap; overflow-wrap: anywhere; font-size: .85rem }
@media print { body { max-width: none; padding: 0; font-size: 10pt } .wide { overflow: visible } table { font-size: 8pt } }
</style></head><body>
<h1>$title</h1>
$body
</body></html>
""")


def page(title: str, parts: Iterable[str]) -> bytes:
    return PAGE.substitute(title=_text(title), body="\n".join(parts)).encode()


def _text(text: Any) -> str:
    return escape(printable(str(text)))


def _paragraph(text: str, kind: str = "") -> str:
    return f"<p{f' class={kind}' if kind else ''}>{_text(text)}</p>"


def _row(cells: Iterable[Any], tag: str = "td") -> str:
    return f"<tr>{''.join(f'<{tag}>{_text(cell)}</{tag}>' for cell in cells)}</tr>"


def _table(header: Sequence[str], rows: Iterable[Sequence[Any]], kind: str = "wide") -> str:
    """A "wide" table scrolls, one of "names" breaks them into lines."""
    body = "".join(map(_row, rows))
    return f'<div class="{kind}"><table><thead>{_row(header, "th")}</thead><tbody>{body}</tbody></table></div>'


def _with_notes(table: Table) -> list[str]:
    return [_table(table.cells[0], table.cells[1:]), *map(_paragraph, table.notes)]


NOTHING = {"none": ("", "")}  # the row of a table of no settings
CAPTIONS = {  # of a figure, by its file's name, in the order of a page
    "task_predictions": "Test tasks: the support points, and the curve before and after adapting to them.",
    "subjects": "The error of each test subject.",
    "adaptive_learning": "The mean error on test tasks against the gradients taken, and those of the baselines.",
    "performance": "How the errors of the test tasks are distributed, and how they depend on what a task is.",
    "intervals": "What intervals hold on test tasks against what they say (right on the diagonal), and width against error.",
    "samples": "Curves that the method samples for a test task: where they spread, the points leave the answer open.",
    "training_curves": "Errors while training: of the meta-batches that were trained on, and on the validation tasks.",
    "latent_space": "The latent codes of the test tasks before any gradient.",
    "comparison_gradients": "The mean error on test tasks against the gradients taken, with 95% intervals over tasks.",
    "comparison_shots": "The mean error on test tasks against the number of support points, with 95% intervals over tasks.",
}


def _pictures(figures: Mapping[str, bytes]) -> list[str]:
    """The PNG files `figures`, by name, within the page."""
    result = []
    for name, data in figures.items():
        caption, source = _text(CAPTIONS.get(name, name)), f"data:image/png;base64,{base64.b64encode(data).decode()}"
        result.append(f'<figure><img alt="{caption}" src="{source}"><figcaption>{caption}</figcaption></figure>')
    return result


# ---- a run


def run_page(
    report: Mapping[str, Any],
    directory: str,
    reference: Published,
    changed: Mapping[str, tuple[Any, Any]],
    figures: Mapping[str, bytes],
) -> bytes:
    """The page of a finished run.

    Args:
        report: the contents of full_report.json.
        directory: the run's, as --predict takes it.
        reference: published means to show beside its own.
        changed: settings that are not the defaults, and these.
        figures: PNG files by name.
    """
    config, results, data = report["config"], report["results"], report.get("data")
    method = report["method"].upper()
    columns = data["columns"] if data else ["x", "y", "split"]
    where = f"{columns[-2]} against {', '.join(columns[1:-2])}" if data else f"{report['tasks']} tasks"
    parts = [
        _paragraph(answer(report, reference), "answer"),
        "<h2>What was asked</h2>",
        _paragraph(_question(config, data, results)),
        "<h2>Errors on test tasks</h2>",
        *_with_notes(run_table(results, method, reference)),
        "<h2>Figures</h2>",
        *_pictures(figures),
        "<h2>Predict with this run</h2>",
        f"<pre>{_text(f'python main.py --predict {shlex.quote(directory)} --points FILE.csv')}</pre>",
        _paragraph(f"FILE.csv has the columns {', '.join(columns[:-2])} and {columns[-2]}: points that were measured."),
        "<h2>Make it again</h2>",
        f"<pre>{_text(shlex.join(['python', *report['command']]))}</pre>",
        _paragraph(_circumstances(report["git"], report["environment"])),
        "<h2>Settings that differ from the defaults</h2>",
        _table(("setting", "value", "default"), [(key, *both) for key, both in (changed or NOTHING).items()], "names"),
        *(_paragraph(f"Warning: {warning}") for warning in report["warnings"]),
    ]
    return page(f"{method}: {where}", parts)


def answer(report: Mapping[str, Any], reference: Published) -> str:
    """What the run found, in one sentence."""
    results, config = report["results"], report["config"]
    if "verdict" in results:
        return str(results["verdict"])
    trained = str(config["SUPPORT_SAMPLES"])
    shots = trained if trained in results["shots"] else next(iter(results["shots"]))
    found = results["shots"][shots]
    steps = len(found["mse"]) - 1
    error = f"a mean squared error of {with_interval(found['mse'][-1], found['ci95'][-1])}"
    text = f"From {shots} points of a new task, after {steps} gradients, {report['method'].upper()} has {error}"
    text += f" on {results['num_tasks']} test tasks"
    known = reference.get(int(shots), {})
    return f"{text}; Finn et al. 2017 report {known[steps]:.2g}." if steps in known else f"{text}."


def _question(config: Mapping[str, Any], data: Mapping[str, Any] | None, results: Mapping[str, Any]) -> str:
    """What was learned from what."""
    shots = f"K = {config['SUPPORT_SAMPLES']} support points while training, and {', '.join(results['shots'])} in the table"
    if not data:
        return f"{config['NUM_TASKS']} training tasks, {results['num_tasks']} test tasks; {shots}."
    subject, *inputs, target, _ = data["columns"]
    counts = ", ".join(f"{count} for {split}" for split, count in data["subjects"].items())
    chosen = "the first by " + inputs[0] if config["SUPPORT_FROM"] == "first" else "chosen at random"
    asked = f"Predict {target} from {', '.join(inputs)} for a {subject} that was never seen"
    known = f"of which a few points are known ({chosen})"
    subjects = f"{sum(data['subjects'].values())} subjects, {counts}"
    return f"{asked}, {known}: {data['rows']} measurements in {PureWindowsPath(config['DATA']).name}, of {subjects}; {shots}."


def _circumstances(git: Mapping[str, Any], environment: Mapping[str, Any]) -> str:
    commit = (git.get("commit") or "unknown") + (" with changes" if git.get("dirty") else "")
    versions = f"Python {environment['python']}, torch {environment['libraries']['torch']}"
    return f"Commit {commit}, {versions}, {environment['cpu']['model']}, {environment['os']}."


# ---- a comparison


def comparison_page(table: Table, title: str, figures: Mapping[str, bytes]) -> bytes:
    """The page of a comparison: which method to use, the table, and the figures (PNG files by name)."""
    answer = [_paragraph(table.answer, "answer")] if table.answer else []
    return page(title, [*answer, *_with_notes(table), *_pictures(figures)])

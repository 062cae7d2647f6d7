"""`--compare RUN RUN ...`: finished runs side by side, as tables and figures."""

from __future__ import annotations

import argparse
import io
import json
import math
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from commands.runs import runs_folder, tasks_of_run
from config import Config, ConfigError
from dataset import Published, TaskGenerator
from evaluation.baselines import MIXED_MODEL
from evaluation.comparison import (
    Comparison,
    Errors,
    Run,
    baseline_entries,
    choice,
    compare_entries,
    entries,
    mean_or_single,
)
from evaluation.statistics import mean_and_interval
from registry import MEAN, TASKS
from report.page import comparison_page
from report.rows import Answer, Table, answer_table, comparison_table
from report.text import csv_table, markdown_table, text_table
from results_manager import find_run, new_directory
from system.errors import RunError
from system.files import write_atomically
from system.terminal import print_once
from system.text import printable


def compare(args: argparse.Namespace) -> int:
    """Compare finished runs that were judged on the same test tasks."""
    output = runs_folder(args)
    compare_runs([find_run(text, output) for text in args.compare], output)
    return 0


def compare_runs(directories: Sequence[Path], output: Path) -> None:
    """Print the comparison of finished runs, and write it into a new directory under `output`."""
    runs = [read_run(directory) for directory in directories]
    found = [*entries(runs), *baseline_entries(runs)]
    mean = next((run for run in runs if run.method == MEAN), None)
    told = choice(runs) if mean is None else mean_or_single(runs, mean)
    comparison = compare_entries(found, bool(runs[0].data))._replace(choice=told)
    generator = tasks_of_run(runs[0].directory, runs[0].tasks, Config.resolve(runs[0].config))
    print_once(text_table(answers_of(comparison, runs, generator) if runs[0].data else comparison_table(comparison)))
    title = f"{'1 run' if len(runs) == 1 else f'{len(runs)} runs'} on {runs[0].tasks} tasks"
    directory = new_directory(output, "Comparison")
    write(directory, comparison, title, generator.published)
    print_once(f"written: {printable(str(directory))}")


def answers_of(comparison: Comparison, runs: Sequence[Run], generator: TaskGenerator) -> Table:
    """What the owner of a table reads: every method and baseline at the K of the first run, the best first."""
    shots = runs[0].config["SUPPORT_SAMPLES"]
    if shots not in comparison.errors:
        shots = max(comparison.errors)
    answers = []
    for label, errors in comparison.errors[shots].items():
        if label == MIXED_MODEL and any(run.method == "mixed-model" for run in runs):
            continue  # the baseline is the same as the method
        own = [run for entry, run in zip(entries(runs), runs, strict=True) if entry.label == label]
        numbers = mean_and_interval(errors.mean(0), True)
        coverage = [run.coverage[shots] for run in own if shots in run.coverage]
        about = float(np.mean(coverage)) if coverage else None, sum(run.seconds for run in own) or None
        answers.append(Answer(label, float(numbers["mse"][-1]), float(numbers["ci95"][-1]), *about))
    table = answer_table(answers, shots, generator.y_scale or 1.0, generator.axis_names[1])
    return table._replace(answer=printable(comparison.choice))


def read_run(directory: Path) -> Run:
    """Read a finished run; raises `RunError` for one that is not evaluated, or whose files can't be used."""
    metrics, report = (_read_json(directory / name) for name in ("metrics.json", "full_report.json"))
    if metrics.get("evaluation") is None:
        status = str(report.get("status"))[:40]
        raise RunError(f"{directory} has no test results (got status {status}; expected a run that is complete)")
    try:
        # the report's settings are those of the last evaluation; config.json may be ahead of it, in a resumed run
        config = Config.resolve(report["config"]).to_dict()
        method, tasks, data = str(metrics["method"]), str(report["tasks"]), dict(report.get("data", {}))
        num_tasks = int(metrics["evaluation"]["num_tasks"]) if data else config["EVAL_TASKS"]
        verdict = str(metrics["evaluation"].get("verdict", ""))
        seconds = sum(float(metrics.get("performance", {}).get(name, 0)) for name in ("train_seconds", "compile_seconds"))
        results = {int(shots): result for shots, result in metrics["evaluation"]["shots"].items()}
        wanted = {shots: len(result["mse"]) for shots, result in results.items()}
        recorded = {shots: result["validation"] for shots, result in results.items() if "validation" in result}
        intervals = {shots: result["interval"]["coverage"] for shots, result in results.items() if result.get("interval")}
        coverage = {shots: float(held) for shots, held in intervals.items() if held is not None}
        validation = {shots: math.inf if error is None else float(error) for shots, error in recorded.items()}
        if tasks not in TASKS or not all(error >= 0 for error in validation.values()):
            raise ValueError
    except ConfigError as error:
        raise RunError(f"{directory / 'full_report.json'}: {error}") from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RunError(f"{directory} has a damaged record (got {type(error).__name__}; expected that of a run)") from None
    if report.get("status") == "unfinished":
        print(f"warning: {printable(str(directory))} was judged before the end of its training", file=sys.stderr)
    params, errors, baselines = _read_arrays(directory / "plots" / "data.npz", num_tasks, wanted)
    return Run(directory, method, tasks, config, params, errors, data, validation, baselines, verdict, coverage, seconds)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_bytes()))
    except OSError as error:
        raise RunError(f"{path} can't be read (got {error.strerror}; expected the record of a finished run)") from None
    except (ValueError, TypeError, RecursionError) as error:
        raise RunError(f"{path} is damaged (got {type(error).__name__}; expected a JSON object)") from None


def _read_arrays(path: Path, num_tasks: int, wanted: Mapping[int, int]) -> tuple[np.ndarray, Errors, dict[str, Errors]]:
    """Parameters [T, F], test errors, shots -> [T, S+1], where `wanted` says S+1 for each number of shots, and baselines'."""
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as stored:
            params = stored["test_params"]
            errors = {shots: stored[f"test_errors_{shots}_shot"] for shots in wanted}
            left_out = {shots: stored[name] for shots in wanted if (name := f"test_left_out_{shots}_shot") in stored}
            names = stored["baselines"].tolist() if "baselines" in stored else []
            others = {shots: stored[f"baseline_errors_{shots}_shot"] for shots in wanted if names}
    except Exception as error:  # a damaged archive can raise anything, and none of it matters to the user
        got = getattr(error, "strerror", None) or type(error).__name__
        raise RunError(f"{path} can't be used (got {got}; expected the arrays of a finished run)") from None
    shapes = {shots: array.shape for shots, array in errors.items()}
    expected = {shots: (num_tasks, length) for shots, length in wanted.items()}
    fit = all(array.shape == (len(names), num_tasks) for array in others.values())
    floats = all(array.dtype.kind == "f" for array in [*errors.values(), *others.values()])
    if not (errors and shapes == expected and fit and floats):
        raise RunError(f"{path} does not fit its run (got errors of shape {shapes}; expected {expected})")
    for shots, skipped in left_out.items():
        errors[shots] = errors[shots][~skipped.astype(bool)]
        others |= {shots: others[shots][:, ~skipped.astype(bool)]} if names else {}
    return params, errors, {name: {shots: array[place] for shots, array in others.items()} for place, name in enumerate(names)}


def draw(comparison: Comparison, title: str, reference: Published | None = None) -> dict[str, Any]:
    """The two figures, by file name; `reference` holds published means to mark."""
    from report.figures import error_against_gradients, error_against_shots  # takes half a second: for those who draw

    interval = partial(mean_and_interval, subjects=comparison.subjects)
    with np.errstate(over="ignore", invalid="ignore"):
        results = {
            shots: {label: interval(values.mean(0)) | {"seeds": values.mean(1)} for label, values in groups.items()}
            for shots, groups in comparison.errors.items()
            if shots
        }
    steps = sorted({min(1, comparison.last), comparison.last})
    return {
        "comparison_gradients": error_against_gradients(results, f"{title}: error against gradients", reference),
        "comparison_shots": error_against_shots(results, steps, f"{title}: error against shots"),
    }


def write(directory: Path, comparison: Comparison, title: str = "Comparison", reference: Published | None = None) -> list[Path]:
    """Write tables and figures into `directory`, which is made where it is missing; returns the files' paths.

    Raises OSError where the disk is full or read-only.
    """
    from visualization import pdf_bytes, png_bytes  # takes half a second: for those who draw

    directory.mkdir(parents=True, exist_ok=True)
    table = comparison_table(comparison)
    contents = {"comparison.md": markdown_table(table, title).encode(), "comparison.csv": csv_table(comparison).encode()}
    figures = draw(comparison, title, reference)
    pictures = {name: png_bytes(figure) for name, figure in figures.items()}
    contents |= {f"{name}.png": data for name, data in pictures.items()}
    contents["comparison.pdf"] = pdf_bytes(*figures.values())
    contents["report.html"] = comparison_page(table, title, pictures)
    for name, data in contents.items():
        write_atomically(directory / name, data)
    return [directory / name for name in contents]

"""Finished runs side by side: `--compare RUN RUN ...`.

Runs judged on the same test tasks are grouped into methods, seeds within a method are averaged, and each method is
compared with the first one task by task. Methods that have no run directory, such as baselines, come in as an
`Entry` of arrays. This file refuses to know any method by name, learners and training: it reads what runs left.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from comparison_figures import error_against_gradients, error_against_shots
from config import Config, ConfigError
from results_manager import RunError, figure_bytes, write_atomically
from visualization import Reference, mean_and_interval, shown_steps

# Settings that say what the test tasks are; a family's own keys follow its own prefixes.
TASK_KEYS = ("INPUT_DIM", "NOISE_STD", "EVAL_TASKS", "EVAL_QUERY_SAMPLES")
TASK_PREFIXES = ("AMPLITUDE_", "PHASE_", "X_", "SLOPE_", "INTERCEPT_")

# Settings that do not tell two methods apart. The seed is what a group averages over. DEVICE, COMPILE and TASK_CHUNK
# change results by rounding only, the two intervals only what is recorded, and EVAL_SHOTS what is measured. But
# VALIDATION_INTERVAL, VALIDATION_TASKS and EVAL_STEPS decide which checkpoint is the best one: they stay.
SAME_METHOD = ("RANDOM_SEED", "DEVICE", "COMPILE", "TASK_CHUNK", "LOG_INTERVAL", "CHECKPOINT_INTERVAL", "EVAL_SHOTS")


class Run(NamedTuple):
    directory: Path
    method: str
    tasks: str  # the task family
    config: dict[str, Any]  # of its last evaluation
    params: np.ndarray  # of the test functions, [T, F]
    errors: dict[int, np.ndarray]  # shots -> [T, S+1]


class Entry(NamedTuple):
    """One trained network's errors, wherever they come from; entries of one label are seeds of one method."""

    label: str
    errors: Mapping[int, np.ndarray]  # shots -> [T, S+1], on test tasks that are the same for all entries


class Row(NamedTuple):
    """One method at one K after so many gradients; intervals are half-widths at 95%, NaN where there is none."""

    group: str
    shots: int
    gradients: int
    seeds: int
    tasks: int
    mean: float
    ci_tasks: float  # 1.96 standard errors over tasks of the mean over seeds: holds for these trained networks
    ci_seeds: float  # Student's t over the seeds' means: holds for the method on these tasks
    difference: float  # to the first group, task by task
    difference_ci: float  # 1.96 standard errors over tasks

    @property
    def verdict(self) -> str:
        """What the difference says, in words: an interval that contains 0 decides nothing."""
        if not math.isfinite(self.difference_ci):
            return "" if math.isfinite(self.mean) else "diverged"
        below, above = self.difference < -self.difference_ci, self.difference > self.difference_ci
        return "lower" if below else "higher" if above else "not distinguishable"


class Comparison(NamedTuple):
    """Errors of every group at what all entries have in common."""

    errors: dict[int, dict[str, np.ndarray]]  # shots -> label -> [R, T, S+1], R seeds
    rows: list[Row]  # by shots, then gradients, then group

    @property
    def labels(self) -> list[str]:
        return list(next(iter(self.errors.values())))

    @property
    def last(self) -> int:
        """The last number of gradients that all entries have."""
        return max(row.gradients for row in self.rows)


# ---- runs


def read_run(directory: Path) -> Run:
    """Read a finished run; raises `RunError` for one that is not evaluated, or whose files can't be used."""
    metrics, report = (_read_json(directory / name) for name in ("metrics.json", "full_report.json"))
    if metrics.get("evaluation") is None:
        status = str(report.get("status"))[:40]
        raise RunError(f"{directory} has no test results (got status {status}; expected a run that is complete)")
    try:
        # the report's settings are those of the last evaluation; config.json may be ahead of it, in a resumed run
        config = Config.resolve(report["config"]).to_dict()
        method, tasks = str(metrics["method"]), str(report["tasks"])
        wanted = {int(shots): len(result["mse"]) for shots, result in metrics["evaluation"]["shots"].items()}
    except ConfigError as error:
        raise RunError(f"{directory / 'full_report.json'}: {error}") from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RunError(f"{directory} has a damaged record (got {type(error).__name__}; expected that of a run)") from None
    params, errors = _read_arrays(directory / "plots" / "data.npz", config["EVAL_TASKS"], wanted)
    return Run(directory, method, tasks, config, params, errors)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_bytes()))
    except OSError as error:
        raise RunError(f"{path} can't be read (got {error.strerror}; expected the record of a finished run)") from None
    except (ValueError, TypeError, RecursionError) as error:
        raise RunError(f"{path} is damaged (got {type(error).__name__}; expected a JSON object)") from None


def _read_arrays(path: Path, num_tasks: int, wanted: Mapping[int, int]) -> tuple[np.ndarray, dict[int, np.ndarray]]:
    """Parameters [T, F] and test errors, shots -> [T, S+1], where `wanted` says S+1 for each number of shots."""
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as stored:
            params = stored["test_params"]
            errors = {shots: stored[f"test_errors_{shots}_shot"] for shots in wanted}
    except Exception as error:  # a damaged archive can raise anything, and none of it matters to the user
        got = getattr(error, "strerror", None) or type(error).__name__
        raise RunError(f"{path} can't be used (got {got}; expected the arrays of a finished run)") from None
    shapes = {shots: array.shape for shots, array in errors.items()}
    expected = {shots: (num_tasks, length) for shots, length in wanted.items()}
    if not errors or shapes != expected or any(array.dtype.kind != "f" for array in errors.values()):
        raise RunError(f"{path} does not fit its run (got errors of shape {shapes}; expected {expected})")
    return params, errors


def _task_settings(run: Run) -> dict[str, Any]:
    settings = {key: value for key, value in run.config.items() if key in TASK_KEYS or key.startswith(TASK_PREFIXES)}
    return {"task family": run.tasks} | settings


def entries(runs: Sequence[Run]) -> list[Entry]:
    """The runs' errors under labels that tell their methods apart: the method, and the settings in which it differs.

    Raises `RunError` for runs whose test tasks differ, naming the settings, and for a run or seed given twice.
    """
    first, seen = runs[0], dict[tuple[str, int], Path]()
    reference = _task_settings(first)
    for run in runs:
        settings, got, expected = _task_settings(run), "other test_params", "equal ones"
        if different := [key for key in reference if settings[key] != reference[key]]:
            got, expected = (", ".join(f"{key}={values[key]}" for key in different) for values in (settings, reference))
        if different or not np.array_equal(run.params, first.params):
            raise RunError(f"{run.directory} has other test tasks than {first.directory} (got {got}; expected {expected})")
    result = []
    for run in runs:
        peers = [peer.config for peer in runs if peer.method == run.method]
        keys = [key for key in run.config if key not in SAME_METHOD and any(peer[key] != run.config[key] for peer in peers)]
        label = " ".join([run.method.upper(), *(f"{key}={json.dumps(run.config[key])}" for key in keys)])
        identity = (label, run.config["RANDOM_SEED"])
        if identity in seen:
            got = f"{label} with RANDOM_SEED={identity[1]} twice"
            raise RunError(f"{run.directory} repeats {seen[identity]} (got {got}; expected different seeds)")
        seen[identity] = run.directory
        result.append(Entry(label, run.errors))
    return result


# ---- statistics


def compare(found: Sequence[Entry]) -> Comparison:
    """Group entries by label and compare every group with the first, at the K and gradients that all have.

    Raises `RunError` where no K is common.
    """
    common = sorted(set.intersection(*(set(entry.errors) for entry in found)))
    if not common:
        each = "; ".join(f"{entry.label}: {sorted(entry.errors)}" for entry in found)
        raise RunError(f"EVAL_SHOTS has no value in common (got {each[:200]}; expected at least one K that all have)")
    last = min(entry.errors[shots].shape[1] for entry in found for shots in common)
    labels = list(dict.fromkeys(entry.label for entry in found))

    def of(label: str, shots: int) -> np.ndarray:
        return np.stack([np.asarray(entry.errors[shots][:, :last], float) for entry in found if entry.label == label])

    errors = {shots: {label: of(label, shots) for label in labels} for shots in common}
    rows = []
    for shots, groups in errors.items():
        results = {label: statistics(values, groups[labels[0]]) for label, values in groups.items()}
        for gradients in range(last):
            for label, values in groups.items():
                numbers = {name: float(array[gradients]) for name, array in results[label].items()}
                if label == labels[0]:
                    numbers |= {"difference": math.nan, "difference_ci": math.nan}
                rows.append(Row(label, shots, gradients, values.shape[0], values.shape[1], **numbers))
    return Comparison(errors, rows)


def statistics(values: np.ndarray, first: np.ndarray) -> dict[str, np.ndarray]:
    """The numbers of a `Row` at every number of gradients, [S+1] each, from errors [R, T, S+1] of a group and the first."""
    with np.errstate(over="ignore", invalid="ignore"):  # a diverged task makes its means infinite, which is the result
        own, seeds = mean_and_interval(values.mean(0)), values.mean(1)  # seeds: [R, S+1]
        paired = mean_and_interval(values.mean(0) - first.mean(0))
        over_seeds = np.full(values.shape[2], math.nan)
        if len(seeds) > 1:
            over_seeds = t_quantile(len(seeds) - 1) * seeds.std(0, ddof=1) / math.sqrt(len(seeds))
    result = {"mean": own["mse"], "ci_tasks": own["ci95"], "ci_seeds": over_seeds}
    return result | {"difference": paired["mse"], "difference_ci": paired["ci95"]}


T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


def t_quantile(degrees: int) -> float:
    """The 97.5% quantile of Student's t; beyond 10 degrees of freedom by the expansion around the normal's."""
    if degrees <= len(T_975):
        return T_975[degrees - 1]
    return 1.959964 + 2.372272 / degrees + 2.822499 / degrees**2 + 2.555850 / degrees**3


# ---- tables


def csv_table(comparison: Comparison) -> str:
    """Every row as CSV: full precision, empty cells where there is no interval."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(Row._fields)
    for row in comparison.rows:
        writer.writerow("" if isinstance(value, float) and math.isnan(value) else value for value in row)
    return text.getvalue()


def text_table(comparison: Comparison) -> str:
    """The comparison after 0, 1, 5 and the last gradient for a terminal, in ASCII."""
    cells = [list(HEADER), *_cells(comparison)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(HEADER))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]
    for place in range(len(cells) - 1, 0, -1):
        if cells[place][0] != cells[place - 1][0]:  # another K begins
            lines.insert(place, "  ".join("-" * width for width in widths))
    return "\n".join([*lines, *_notes(comparison)]).encode("ascii", "replace").decode()


def markdown_table(comparison: Comparison, title: str = "") -> str:
    """The same table in Markdown."""
    lines = [f"# {title}", ""] if title else []
    lines += [f"| {' | '.join(HEADER)} |", "|" + " --- |" * len(HEADER)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in _cells(comparison)]
    return "\n".join([*lines, "", *(f"* {note}" for note in _notes(comparison))]) + "\n"


HEADER = ("K", "gradients", "method", "mean squared error", "seeds", "over seeds", "minus the first", "in words")


def _cells(comparison: Comparison) -> list[list[str]]:
    result = []
    for row in comparison.rows:
        error, over_seeds = f"{row.mean:.4g} +- {row.ci_tasks:.2g}", f"+- {row.ci_seeds:.2g}" if row.seeds > 1 else ""
        difference = f"{row.difference:.3g} +- {row.difference_ci:.2g}" if row.group != comparison.labels[0] else ""
        where = [str(row.shots), str(row.gradients), row.group]
        result.append([*where, error, str(row.seeds), over_seeds, difference, row.verdict])
    steps = shown_steps(comparison.last)
    return [line for line, row in zip(result, comparison.rows, strict=True) if row.gradients in steps]


def _notes(comparison: Comparison) -> list[str]:
    return [
        f"+- are 95% intervals: over {comparison.rows[0].tasks} test tasks (these trained networks), and over seeds.",
        f"Differences to {comparison.labels[0]} are taken task by task; in words where their interval excludes 0.",
    ]


# ---- figures and files


def draw(comparison: Comparison, title: str, reference: Reference | None = None) -> dict[str, Figure]:
    """The two figures, by file name; `reference` holds published means to mark."""
    with np.errstate(over="ignore", invalid="ignore"):
        results = {
            shots: {label: mean_and_interval(values.mean(0)) | {"seeds": values.mean(1)} for label, values in groups.items()}
            for shots, groups in comparison.errors.items()
        }
    steps = sorted({min(1, comparison.last), comparison.last})
    return {
        "comparison_gradients": error_against_gradients(results, f"{title}: error against gradients", reference),
        "comparison_shots": error_against_shots(results, steps, f"{title}: error against shots"),
    }


def write(directory: Path, comparison: Comparison, title: str = "Comparison", reference: Reference | None = None) -> list[Path]:
    """Write tables and figures into `directory`, which is made where it is missing; returns the files' paths.

    Raises OSError where the disk is full or read-only.
    """
    directory.mkdir(parents=True, exist_ok=True)
    contents = {"comparison.md": markdown_table(comparison, title).encode(), "comparison.csv": csv_table(comparison).encode()}
    for name, figure in draw(comparison, title, reference).items():
        contents |= {f"{name}.{suffix}": figure_bytes(figure, suffix) for suffix in ("png", "pdf")}
    for name, data in contents.items():
        write_atomically(directory / name, data)
    return [directory / name for name in contents]

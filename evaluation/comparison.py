"""Runs side by side: groups of seeds, means, intervals and paired differences.

Runs judged on the same test tasks are grouped into methods, seeds within a method are averaged, and each method is
compared with the first one task by task. Methods without a run directory, such as baselines, come in as an `Entry` of
arrays. Independent of any method by name, of learners and training, and of the disk.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path, PureWindowsPath
from typing import Any, NamedTuple

import numpy as np

from config import keys_for
from evaluation.statistics import geometric_mean, mean_and_interval, relative_difference
from system.errors import RunError

TASK_KEYS, SAME_METHOD, VALIDATION_KEYS = (keys_for(role) for role in ("test tasks", "same method", "validation tasks"))

Errors = dict[int, np.ndarray]


class Run(NamedTuple):
    directory: Path
    method: str
    tasks: str  # the task family
    config: dict[str, Any]  # of its last evaluation
    params: np.ndarray  # of the test functions, [T, F]
    errors: Errors  # shots -> [T, S+1]
    data: Mapping[str, Any]  # of tasks from a table: the digests of its measurements and of its splits
    validation: Mapping[int, float] = {}  # shots -> error on validation tasks, of the checkpoint that was judged
    baselines: Mapping[str, Errors] = {}  # by name: shots -> [T]
    verdict: str = ""  # what it says of itself in a sentence
    coverage: Mapping[int, float] = {}  # shots -> what its 90% intervals hold
    seconds: float = 0.0  # of training


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
    ci_tasks: float  # over tasks, of the mean over seeds, as of `mean_and_interval`: holds for these trained networks
    ci_seeds: float  # Student's t over the seeds' means: holds for the method on these tasks
    difference: float  # to the first group, task by task
    difference_ci: float  # over tasks

    @property
    def in_words(self) -> str:
        """What the difference says, in words: an interval that contains 0 decides nothing."""
        if not math.isfinite(self.difference_ci):
            return "" if math.isfinite(self.mean) else "diverged"
        below, above = self.difference < -self.difference_ci, self.difference > self.difference_ci
        return "lower" if below else "higher" if above else "not distinguishable"


class Comparison(NamedTuple):
    """Errors of every group at the K that all entries have."""

    errors: dict[int, dict[str, np.ndarray]]  # shots -> label -> [R, T, S+1], R seeds
    rows: list[Row]  # by shots, then gradients, then group
    taken: Mapping[str, int]  # label -> the gradients that it takes: its errors stay what they are after these
    choice: str = ""  # which group to use, in one line
    subjects: bool = False  # the tasks are a table's subjects, which may be few

    @property
    def labels(self) -> list[str]:
        return list(next(iter(self.errors.values())))

    @property
    def last(self) -> int:
        """The last number of gradients: there each group's errors are those after its own last."""
        return max(self.taken.values())


def _task_settings(run: Run) -> dict[str, Any]:
    settings = {key: value for key, value in run.config.items() if key in TASK_KEYS}
    digests = {name: str(run.data.get(f"{name}_sha256", "none"))[:12] for name in ("points", "splits")}
    return {"task family": run.tasks} | settings | digests


def _check_same_tasks(run: Run, first: Run) -> None:
    settings, reference = _task_settings(run), _task_settings(first)
    different = [key for key in reference if settings[key] != reference[key]]
    if not different and np.array_equal(run.params, first.params):
        return
    got, expected = (_described(one, different) for one in (run, first)) if different else ("other test_params", "equal ones")
    raise RunError(f"{run.directory} has other test tasks than {first.directory} (got {got}; expected {expected})")


def _described(run: Run, keys: Sequence[str]) -> str:
    settings = _task_settings(run)
    settings["points"] += f" of {PureWindowsPath(run.config['DATA']).name}"
    return ", ".join(f"{key}={settings[key]}" for key in keys)


def entries(runs: Sequence[Run]) -> list[Entry]:
    """The runs' errors under labels that tell their methods apart: the method, and the settings in which it differs.

    Raises `RunError` for runs whose test tasks differ, naming the settings, and for a run or seed given twice.
    """
    for run in runs:
        _check_same_tasks(run, runs[0])
    result, seen = [], dict[tuple[str, int], Path]()
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


def mean_or_single(runs: Sequence[Run], mean: Run) -> str:
    """Which run to use where one is the mean of others: that one, unless a single one errs less beyond doubt, at its own K."""
    shots = mean.config["SUPPORT_SAMPLES"]
    own, better = mean.errors[shots][:, -1], dict[str, tuple[float, Run]]()
    for run in runs:
        change, low, high = relative_difference(run.errors[shots][:, -1], own)
        if run is not mean and high < 0:
            interval = f"95% interval {-100 * high:.0f} to {-100 * low:.0f}%"
            better[f"{run.directory.name}, {-100 * change:.0f}% lower than the mean ({interval})"] = change, run
    if not better:
        use = mean, f"{mean.directory.name}, the mean: no single run errs less beyond doubt"
    else:
        words = min(better, key=lambda name: better[name][0])
        use = better[words][1], words
    return f"to use: {use[1]}. {use[0].verdict} Its answers: --predict {use[0].directory.name} --points FILE.csv"


def choice(runs: Sequence[Run]) -> str:
    """Which of several methods to use: the one with the lowest validation error, as a choice by test errors would spoil them.

    The error is the geometric mean over the K above 0 that all runs have. Empty where there is one method; where
    validation errors decide nothing, the reason.
    """
    labels, none = [entry.label for entry in entries(runs)], "no method is chosen: "
    if len(set(labels)) < 2:
        return ""
    if unrecorded := [run.directory.name for run in runs if not run.validation]:
        return f"{none}no validation error is on record for {', '.join(unrecorded)} (--evaluate adds it)"
    shots = sorted(set.intersection(*(set(run.validation) - {0} for run in runs)))
    if not shots or len({tuple(run.config[key] for key in VALIDATION_KEYS) for run in runs}) > 1:
        return f"{none}validation errors are of other tasks (EVAL_SHOTS, {' or '.join(VALIDATION_KEYS)} differ)"
    by_label: dict[str, list[tuple[float, Run]]] = {}
    for run, label in zip(runs, labels, strict=True):
        by_label.setdefault(label, []).append((geometric_mean([run.validation[count] for count in shots]), run))
    means = {label: float(np.mean([error for error, _ in group])) for label, group in by_label.items()}
    first, *others = sorted(means, key=means.__getitem__)
    if math.isinf(means[first]):
        return f"{none}each diverged on a validation task"
    best = min(by_label[first], key=lambda found: found[0])[1]
    rest = ", ".join(f"{label} {means[label]:.4g}" for label in others)
    where, answer = ", ".join(map(str, shots)), f". On test tasks: {best.verdict}" if best.verdict else ""
    about = f"lowest validation error (K = {where}): {first} {means[first]:.4g} ({rest})"
    return f"{about}; the run to use is {best.directory.name}{answer}"


def baseline_entries(runs: Sequence[Run]) -> list[Entry]:
    """What the runs' baselines reach, each once: runs on the same test tasks have the same ones."""
    found: dict[str, Errors] = {}
    length = max(values.shape[1] for run in runs for values in run.errors.values())
    for run in runs:
        for name, errors in run.baselines.items():
            found.setdefault(name, {}).update({shots: np.tile(values[:, None], length) for shots, values in errors.items()})
    return [Entry(name, errors) for name, errors in found.items()]


# ---- statistics


def compare_entries(found: Sequence[Entry], subjects: bool = False) -> Comparison:
    """Group entries by label and compare every group with the first, at the K that all have.

    A group that takes fewer gradients than another keeps the errors of its last. Raises `RunError` where no K is common.
    """
    common = sorted(set.intersection(*(set(entry.errors) for entry in found)))
    if not any(common):
        each = "; ".join(f"{entry.label}: {sorted(entry.errors)}" for entry in found)
        raise RunError(f"EVAL_SHOTS has no value in common (got {each[:200]}; expected at least one K that all have)")
    taken = {entry.label: entry.errors[common[0]].shape[1] - 1 for entry in found}
    last, labels = max(taken.values()), list(taken)

    def of(label: str, shots: int) -> np.ndarray:
        errors = [np.asarray(entry.errors[shots], float) for entry in found if entry.label == label]
        return np.pad(np.stack(errors), ((0, 0), (0, 0), (0, last - taken[label])), mode="edge")

    errors = {shots: {label: of(label, shots) for label in labels} for shots in common}
    rows = []
    for shots, groups in errors.items():
        results = {label: statistics(values, groups[labels[0]], subjects) for label, values in groups.items()}
        results[labels[0]] |= dict.fromkeys(("difference", "difference_ci"), np.full(last + 1, math.nan))
        for gradients in range(last + 1):
            for label, values in groups.items():
                numbers = {name: float(array[gradients]) for name, array in results[label].items()}
                rows.append(Row(label, shots, gradients, values.shape[0], values.shape[1], **numbers))
    return Comparison(errors, rows, taken, subjects=subjects)


def statistics(values: np.ndarray, first: np.ndarray, subjects: bool = False) -> dict[str, np.ndarray]:
    """The numbers of a `Row` at every number of gradients, [S+1] each, from errors [R, T, S+1] of a group and the first."""
    with np.errstate(over="ignore", invalid="ignore"):  # a diverged task makes its means infinite, which is the result
        own, seeds = mean_and_interval(values.mean(0), subjects), values.mean(1)  # seeds: [R, S+1]
        paired = mean_and_interval(values.mean(0) - first.mean(0), subjects)
        over_seeds = mean_and_interval(seeds, True)["ci95"] if len(seeds) > 1 else np.full(values.shape[2], math.nan)
    result = {"mean": own["mse"], "ci_tasks": own["ci95"], "ci_seeds": over_seeds}
    return result | {"difference": paired["mse"], "difference_ci": paired["ci95"]}

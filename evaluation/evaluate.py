"""Evaluate a trained learner on held-out tasks: errors, intervals and baselines. Each split is drawn and adapted to once for
each number of support points.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from dataset import HELD_OUT_SEED, HeldOut, TaskGenerator, joined, stream, training_points
from evaluation.baselines import MIXED_MODEL, baseline_errors, baselines, mean_curve
from evaluation.errors import Adapted, adapt_held_out, held_out_errors, validation_error
from evaluation.intervals import (
    Entry,
    Residuals,
    calibrate,
    cross_calibrated,
    entry_for,
    evaluate_intervals,
    joined_residuals,
)
from evaluation.statistics import mean_and_interval
from learner import MetaLearner
from methods.mixed_model import MixedModel

COVERAGE = 0.9
DIVERGED_ABOVE = 25.0  # variances of the test targets: a task with a larger last error, or one not finite, diverged
POOR = 1.1  # times the mean squared error of the mean curve
NO_BETTER = 0.95  # times the mean curve's error on validation tasks: a method that errs more has not learned to adapt
USELESS = (
    "with known points it predicts no better than one curve for all tasks (got a validation error of {:.4g}; "
    "expected below {:.4g}): try a smaller META_LEARNING_RATE, INNER_GRADIENT_CLIP=10 or more EPOCHS"
)
MOST_NEAR, STEP = 10, 1.25  # intervals are calibrated at every K up to so many, and then at each so many times larger
MOST_INPUTS = 16  # of a mean curve, which has 11 numbers for each at each of 20,000 points


class Protocol(NamedTuple):
    """What a learner is evaluated on."""

    shots: tuple[int, ...]  # the numbers of support points, each evaluated alone
    steps: int  # gradients to take
    test_tasks: int  # of formulas; a table has its own number, as of the next two
    validation_tasks: int
    query_samples: int


class Judged(NamedTuple):
    """A learner that has not seen the test tasks of `generator`; with folds there are several."""

    learner: MetaLearner
    without: MetaLearner  # what answers where no point is known: the learner, or the mean curve of the same training tasks
    generator: TaskGenerator

    def answering(self, shots: int) -> MetaLearner:
        return self.learner if shots else self.without


class Evaluation(NamedTuple):
    """What is known of a learner."""

    record: dict[str, Any]  # the "evaluation" of metrics.json
    arrays: dict[str, np.ndarray]  # of data.npz, see docs/run_directory.md
    calibration: dict[str, dict[str, Any]]  # of intervals: shots -> entry
    codes: dict[int, np.ndarray]  # shots -> codes of the test tasks [T, Z]
    without: MetaLearner  # what answers where no point is known: the learner, or the mean curve
    judged: list[Judged]  # on the test tasks
    problems: list[str]  # why something is missing


def evaluate(
    learner: MetaLearner, generator: TaskGenerator, protocol: Protocol, folds: Sequence[tuple[MetaLearner, TaskGenerator]] = ()
) -> Evaluation:
    """Errors, intervals and baselines of a learner on the test tasks, and its error on the validation tasks.

    Intervals or baselines that fail are a problem that is reported: they must not cost a run its results.

    Args:
        folds: for cross-fitting, what was trained as `learner` was but without the test tasks of a generator. All test tasks
            together are judged, and the intervals of `learner` are calibrated on them.
    """
    judged, curve_error = choose_without_points(folds or [(learner, generator)], protocol)
    without = judged[0].without
    if folds:
        without = learner if judged[0].without is judged[0].learner else mean_curve(training_points(generator))
    found = Evaluation({}, {}, {}, {}, without, judged, [])
    shots, diverged, held_out = dict[str, dict[str, Any]](), list[np.ndarray](), dict[int, list[HeldOut]]()
    for count in protocol.shots:
        held_out[count] = [one.generator.held_out("test", protocol.test_tasks, count, protocol.query_samples) for one in judged]
        everything = joined(held_out[count])
        shots[str(count)] = _evaluate_at(count, judged, protocol, held_out[count], found)
        diverged.append(_diverged(found.arrays[f"test_errors_{count}_shot"], everything))
    queries = protocol.query_samples if everything.owners is None else None  # None: all that there are
    found.record.update(num_tasks=len(diverged[0]), query_samples=queries, diverged=int(np.any(diverged, 0).sum()), shots=shots)
    found.record["without_points"] = "prior" if without is learner else "mean curve"
    if generator.y_scale is not None and generator.measurements("train") is None:
        found.record["y_scale"] = generator.y_scale
    reached = min((shots[count]["validation"] for count in shots if count != "0" and "validation" in shots[count]), default=0.0)
    if everything.owners is None and not reached < NO_BETTER * curve_error:  # of a table a run's last sentence says it
        found.problems.append(USELESS.format(reached, curve_error))
    _add_baselines(judged, held_out, found)
    if everything.owners is not None:
        _calibrate_other_shots(judged, protocol, found)
    return found


def _calibrate_other_shots(judged: Sequence[Judged], protocol: Protocol, found: Evaluation) -> None:
    """Calibrate the intervals of a table at every K up to twice the largest that is judged, or at fewer of many."""
    most = 2 * max(protocol.shots)
    every = {*range(min(most, MOST_NEAR) + 1), *(round(MOST_NEAR * STEP**number) for number in range(40))}
    for count in sorted(count for count in every - set(protocol.shots) if count <= most):
        try:
            _calibrate_at(count, judged, protocol, found)
        except Exception as problem:
            found.problems.append(f"there are no intervals at K = {count} ({type(problem).__name__}: {problem})")


def _evaluate_at(
    count: int, judged: Sequence[Judged], protocol: Protocol, held_out: Sequence[HeldOut], found: Evaluation
) -> dict[str, Any]:
    """The record of errors and intervals at K = `count`; adds to `found` all but the record."""
    parts = [_adapted(one, "test", tasks, protocol, count) for one, tasks in zip(judged, held_out, strict=True)]
    errors, everything = np.concatenate([part.errors for part in parts]), joined(held_out)
    unit = judged[0].generator.y_scale
    found.codes[count] = np.concatenate([part.codes for part in parts])
    found.arrays.update({"test_params": everything.params, f"test_errors_{count}_shot": errors})
    record = _error_record(errors, everything, unit)
    if everything.owners is not None:
        left_out = ~everything.evaluable
        record["left_out"], found.arrays[f"test_left_out_{count}_shot"] = int(left_out.sum()), left_out
    if (error := _validation_error(judged, protocol, count, errors, everything)) is not None:
        record["validation"] = error
    try:
        calibrations = _calibrate_at(count, judged, protocol, found)
        if found.calibration:
            entry, sizes = entry_for(found.calibration, count), [len(part.residuals.owners) for part in parts]
            residuals = joined_residuals([part.residuals for part in parts])
            record["interval"], arrays = _interval_record(entry, calibrations or [entry], residuals, sizes, unit or 1.0, count)
            found.arrays.update(arrays)
    except Exception as problem:
        found.problems.append(f"there are no intervals at K = {count} ({type(problem).__name__}: {problem})")
    return record


def _calibrate_at(count: int, judged: Sequence[Judged], protocol: Protocol, found: Evaluation) -> list[Entry]:
    """Add the calibration at K = `count` to `found`; with folds those without each fold, by which that fold is judged."""
    split, residuals = "validation" if len(judged) == 1 else "test", []
    for one in judged:
        held_out = one.generator.calibration_tasks(split, protocol.test_tasks, count, protocol.query_samples)
        if held_out.evaluable.any() and (len(judged) > 1 or held_out.evaluable.sum() >= 2):
            residuals.append(_adapted(one, split, held_out, protocol, count).residuals)
    if not residuals:
        return []
    together = joined_residuals(residuals)
    found.calibration[str(count)] = calibrate(*together)
    return cross_calibrated(together, [len(part.owners) for part in residuals]) if len(residuals) == len(judged) > 1 else []


def choose_without_points(pairs: Sequence[tuple[MetaLearner, TaskGenerator]], protocol: Protocol) -> tuple[list[Judged], float]:
    """What answers where no point is known: the learner if its prior is an answer, or else the training tasks' mean curve.

    It is chosen by errors on validation tasks; with folds on all tasks, each left out.

    Also returns the mean curve's validation error, infinite where there is none.

    Weights that are good to adapt may predict nothing themselves: on a table those of one method erred by 20 times as much as
    the mean curve. A prior that errs by less than `POOR` is kept: it goes with the answers at other K.
    """
    generator = pairs[0][1]
    held_out = [one.held_out("validation", protocol.validation_tasks, 0, protocol.query_samples) for _, one in pairs]
    everything = joined(held_out)
    if generator.input_dim > MOST_INPUTS or not everything.evaluable.any():
        return [Judged(learner, learner, one) for learner, one in pairs], math.inf
    curves = [mean_curve(training_points(one)) for _, one in pairs]
    errors = [
        np.concatenate([held_out_errors(one, tasks, 0) for one, tasks in zip(answering, held_out, strict=True)])
        for answering in ([learner for learner, _ in pairs], curves)
    ]
    own, other = (validation_error(values, everything) for values in errors)
    poor = not own <= POOR * other
    return [
        Judged(learner, curve if poor else learner, one) for (learner, one), curve in zip(pairs, curves, strict=True)
    ], other


def _adapted(judged: Judged, split: str, held_out: HeldOut, protocol: Protocol, shots: int) -> Adapted:
    rng = stream(HELD_OUT_SEED, "measured", 2 * shots + (split == "test"))
    return adapt_held_out(judged.answering(shots), judged.generator, held_out, protocol.steps, rng)


def _validation_error(
    judged: Sequence[Judged], protocol: Protocol, shots: int, errors: np.ndarray, held_out: HeldOut
) -> float | None:
    """The error on validation tasks, where there are some; with folds that on all tasks, `errors` on `held_out`.

    Training validates often, and so on fewer tasks of a formula than are tested.
    """
    if len(judged) == 1:
        (one,) = judged
        held_out = one.generator.held_out("validation", protocol.validation_tasks, shots, protocol.query_samples)
        if held_out.evaluable.any():
            errors = held_out_errors(one.answering(shots), held_out, protocol.steps)
    return validation_error(errors, held_out) if held_out.evaluable.any() else None


def _error_record(errors: np.ndarray, held_out: HeldOut, y_scale: float | None) -> dict[str, Any]:
    """Statistics [S+1] of errors [T, S+1], with their root in the target's own unit where that is another.

    Where tasks diverged, their number, and under "others" the statistics without them.
    """
    few, diverged = held_out.owners is not None, _diverged(errors, held_out)
    record: dict[str, Any] = dict(mean_and_interval(errors[held_out.evaluable], few))
    if y_scale is not None:
        record["rmse"] = y_scale * np.sqrt(record["mse"])
    if diverged.any():
        record["diverged"] = int(diverged.sum())
        if (rest := held_out.evaluable & ~diverged).sum() > 1:
            record["others"] = dict(mean_and_interval(errors[rest], few))
    return record


def _diverged(errors: np.ndarray, held_out: HeldOut) -> np.ndarray:
    """Which test tasks diverged, [T] booleans."""
    highest = DIVERGED_ABOVE * np.nanvar(held_out.tasks.query.y, dtype=float)
    return held_out.evaluable & (~np.isfinite(errors).all(1) | ~(errors[:, -1] <= highest))


def _interval_record(
    entry: Entry, entries: Sequence[Entry], residuals: Residuals, sizes: Sequence[int], unit: float, shots: int
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The record "interval" of metrics.json at one K, widths in own units, and the arrays behind the figure.

    Args:
        entry: what new tasks get; entries: what the test tasks of each fold get, calibrated without them.
        sizes: the rows of each of these.
    """
    result, arrays = evaluate_intervals(entries, residuals, np.repeat(np.arange(len(entries)), sizes), COVERAGE)
    own = {name: value * unit if name.endswith(("width", "score")) else value for name, value in result.items()}
    arrays |= {name: arrays[name] * unit for name in ("width", "error")}
    named = {f"interval_{name}_{shots}_shot": values for name, values in arrays.items() if name != "nominal"}
    record = {"level": COVERAGE, "calibrated_on": entry["tasks"]} | own
    return record, {"interval_nominal": arrays["nominal"]} | named


def _add_baselines(judged: Sequence[Judged], held_out: Mapping[int, Sequence[HeldOut]], found: Evaluation) -> None:
    """Add the baselines' errors on the same draws; the mixed model is no baseline of itself."""
    try:
        fitted = [baselines(one.generator) for one in judged]
        names = [name for name in fitted[0] if name != MIXED_MODEL or not isinstance(judged[0].learner, MixedModel)]
        errors = {
            count: {
                name: np.concatenate([baseline_errors(one[name], part) for one, part in zip(fitted, tasks, strict=True)])
                for name in names
            }
            for count, tasks in held_out.items()
        }
    except Exception as error:
        found.problems.append(f"there are no baselines ({type(error).__name__}: {error})")
        return
    found.record["baselines"] = {name: {} for name in names}
    for count, by_name in errors.items():
        for name, values in by_name.items():
            record = _error_record(values[:, None], joined(held_out[count]), judged[0].generator.y_scale)
            numbers = {key: value.item() for key, value in record.items() if isinstance(value, np.ndarray)}
            found.record["baselines"][name][str(count)] = numbers
        found.arrays[f"baseline_errors_{count}_shot"] = np.stack(list(by_name.values()))
    found.arrays["baselines"] = np.array(names)

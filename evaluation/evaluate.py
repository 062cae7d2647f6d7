"""Evaluate a trained learner on held-out tasks: errors, intervals and baselines. Each split is drawn and adapted to once for
each number of support points.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from dataset import HELD_OUT_SEED, HeldOut, TaskGenerator, stream, training_points
from evaluation.baselines import MIXED_MODEL, baseline_errors, baselines, mean_curve
from evaluation.errors import Adapted, adapt_held_out, held_out_errors, validation_error
from evaluation.intervals import calibrate, entry_for, evaluate_intervals
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
MOST_INPUTS = 16  # of a mean curve, which has 11 numbers for each at each of 20,000 points


class Protocol(NamedTuple):
    """What a learner is evaluated on."""

    shots: tuple[int, ...]  # the numbers of support points, each evaluated alone
    steps: int  # gradients to take
    test_tasks: int  # of formulas; a table has its own number, as of the next two
    validation_tasks: int
    query_samples: int


class Evaluation(NamedTuple):
    """What is known of a learner."""

    record: dict[str, Any]  # the "evaluation" of metrics.json
    arrays: dict[str, np.ndarray]  # of data.npz, see docs/run_directory.md
    calibration: dict[str, dict[str, Any]]  # of intervals: shots -> entry
    codes: dict[int, np.ndarray]  # shots -> codes of the test tasks [T, Z]
    without: MetaLearner  # what answers where no point is known: the learner, or the mean curve
    problems: list[str]  # why something is missing


def evaluate(learner: MetaLearner, generator: TaskGenerator, protocol: Protocol) -> Evaluation:
    """Errors, intervals and baselines of a learner on the test tasks, and its error on the validation tasks.

    Intervals or baselines that fail are a problem that is reported: they must not cost a run its results.
    """
    without, curve_error = learner_without_points(learner, generator, protocol)
    found = Evaluation({}, {}, {}, {}, without, [])
    shots, diverged, held_out = dict[str, dict[str, Any]](), list[np.ndarray](), dict[int, HeldOut]()
    for count in protocol.shots:
        held_out[count] = generator.held_out("test", protocol.test_tasks, count, protocol.query_samples)
        answering = learner if count else without
        shots[str(count)] = _evaluate_at(count, answering, generator, protocol, held_out[count], found)
        diverged.append(_diverged(found.arrays[f"test_errors_{count}_shot"], held_out[count]))
    queries = protocol.query_samples if held_out[count].owners is None else None  # None: all that there are
    found.record.update(num_tasks=len(diverged[0]), query_samples=queries, diverged=int(np.any(diverged, 0).sum()), shots=shots)
    found.record["without_points"] = "prior" if without is learner else "mean curve"
    if generator.y_scale is not None and generator.measurements("train") is None:
        found.record["y_scale"] = generator.y_scale
    reached = min((shots[count]["validation"] for count in shots if count != "0" and "validation" in shots[count]), default=0.0)
    if not reached < NO_BETTER * curve_error:
        found.problems.append(USELESS.format(reached, curve_error))
    _add_baselines(learner, generator, held_out, found)
    return found


def _evaluate_at(
    count: int, learner: MetaLearner, generator: TaskGenerator, protocol: Protocol, held_out: HeldOut, found: Evaluation
) -> dict[str, Any]:
    """The record of errors and intervals at K = `count`; adds to `found` all but the record."""
    test = _adapted(learner, generator, "test", held_out, protocol, count)
    found.codes[count] = test.codes
    found.arrays.update({"test_params": held_out.params, f"test_errors_{count}_shot": test.errors})
    record = _error_record(test.errors, held_out, generator.y_scale)
    if held_out.owners is not None:
        left_out = ~held_out.evaluable
        record["left_out"], found.arrays[f"test_left_out_{count}_shot"] = int(left_out.sum()), left_out
    validation, error = _adapted_validation(learner, generator, protocol, count)
    if error is not None:
        record["validation"] = error
    try:
        if validation is not None:
            found.calibration[str(count)] = calibrate(*validation.residuals)
        if found.calibration:
            entry = entry_for(found.calibration, count)
            record["interval"], arrays = _interval_record(entry, test, generator.y_scale or 1.0, count)
            found.arrays.update(arrays)
    except Exception as problem:
        found.problems.append(f"there are no intervals at K = {count} ({type(problem).__name__}: {problem})")
    return record


def learner_without_points(learner: MetaLearner, generator: TaskGenerator, protocol: Protocol) -> tuple[MetaLearner, float]:
    """The learner if its prior is an answer, or else the mean curve of the training tasks; by errors on validation tasks.

    Also returns the mean curve's validation error, infinite where there is none.

    Weights that are good to adapt may predict nothing themselves: on a table those of one method erred by 20 times as much as
    the mean curve. A prior that errs by less than `POOR` is kept: it goes with the answers at other K.
    """
    held_out = generator.held_out("validation", protocol.validation_tasks, 0, protocol.query_samples)
    if generator.input_dim > MOST_INPUTS or not held_out.evaluable.any():
        return learner, math.inf
    curve = mean_curve(training_points(generator))
    own, other = (validation_error(held_out_errors(one, held_out, 0), held_out) for one in (learner, curve))
    return (learner if own <= POOR * other else curve), other


def _adapted(
    learner: MetaLearner, generator: TaskGenerator, split: str, held_out: HeldOut, protocol: Protocol, shots: int
) -> Adapted:
    rng = stream(HELD_OUT_SEED, "measured", 2 * shots + (split == "test"))
    return adapt_held_out(learner, generator, held_out, protocol.steps, rng)


def _adapted_validation(
    learner: MetaLearner, generator: TaskGenerator, protocol: Protocol, shots: int
) -> tuple[Adapted | None, float | None]:
    """The validation tasks that intervals are calibrated on, where there are two; and the validation error, where there is one.

    Of a formula there are as many tasks as are wanted. Training validates often, and so on few; calibration draws as many as
    there are test tasks.
    """
    held_out = generator.held_out("validation", protocol.test_tasks, shots, protocol.query_samples)
    adapted = None
    if held_out.evaluable.any():
        adapted = _adapted(learner, generator, "validation", held_out, protocol, shots)
    if held_out.owners is None:
        fewer = generator.held_out("validation", protocol.validation_tasks, shots, protocol.query_samples)
        return adapted, validation_error(held_out_errors(learner, fewer, protocol.steps), fewer)
    error = None if adapted is None else validation_error(adapted.errors, held_out)
    return (adapted if held_out.evaluable.sum() >= 2 else None), error


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


def _interval_record(entry: Any, test: Adapted, unit: float, shots: int) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The record "interval" of metrics.json at one K, widths in own units, and the arrays behind the figure."""
    result, arrays = evaluate_intervals(entry, *test.residuals, COVERAGE)
    own = {name: value * unit if name.endswith(("width", "score")) else value for name, value in result.items()}
    arrays |= {name: arrays[name] * unit for name in ("width", "error")}
    named = {f"interval_{name}_{shots}_shot": values for name, values in arrays.items() if name != "nominal"}
    record = {"level": COVERAGE, "calibrated_on": entry["tasks"]} | own
    return record, {"interval_nominal": arrays["nominal"]} | named


def _add_baselines(learner: MetaLearner, generator: TaskGenerator, held_out: dict[int, HeldOut], found: Evaluation) -> None:
    """Add the baselines' errors on the same draws; the mixed model is no baseline of itself."""
    try:
        fitted = baselines(generator)
        if isinstance(learner, MixedModel):
            fitted.pop(MIXED_MODEL, None)
        errors = {
            count: {name: baseline_errors(one, tasks) for name, one in fitted.items()} for count, tasks in held_out.items()
        }
    except Exception as error:
        found.problems.append(f"there are no baselines ({type(error).__name__}: {error})")
        return
    found.record["baselines"] = {name: {} for name in fitted}
    for count, by_name in errors.items():
        for name, values in by_name.items():
            record = _error_record(values[:, None], held_out[count], generator.y_scale)
            numbers = {key: value.item() for key, value in record.items() if isinstance(value, np.ndarray)}
            found.record["baselines"][name][str(count)] = numbers
        found.arrays[f"baseline_errors_{count}_shot"] = np.stack(list(by_name.values()))
    found.arrays["baselines"] = np.array(list(fitted))

"""Evaluate a trained learner on held-out tasks: errors, intervals and baselines. Each split is drawn and adapted to once for
each number of support points.
"""

from __future__ import annotations

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
    found = Evaluation({}, {}, {}, {}, learner_without_points(learner, generator, protocol), [])
    found.record["without_points"] = "prior" if found.without is learner else "mean curve"
    shots: dict[str, dict[str, Any]] = {}
    held_out: dict[int, HeldOut] = {}
    diverged = np.zeros(0, bool)
    for count in protocol.shots:
        held_out[count] = generator.held_out("test", protocol.test_tasks, count, protocol.query_samples)
        answering = learner if count else found.without
        test = _adapted(answering, generator, "test", held_out[count], protocol, count)
        found.codes[count] = test.codes
        shots[str(count)] = _error_record(test.errors, held_out[count], generator.y_scale)
        found.arrays.update({"test_params": held_out[count].params, f"test_errors_{count}_shot": test.errors})
        if held_out[count].owners is not None:
            left_out = ~held_out[count].evaluable
            shots[str(count)]["left_out"] = int(left_out.sum())
            found.arrays[f"test_left_out_{count}_shot"] = left_out
        this = _diverged(test.errors, held_out[count])
        diverged = diverged | this if len(diverged) else this
        validation, error = _adapted_validation(answering, generator, protocol, count)
        if error is not None:
            shots[str(count)]["validation"] = error
        try:
            if validation is not None:
                found.calibration[str(count)] = calibrate(*validation.residuals)
            if found.calibration:
                entry = entry_for(found.calibration, count)
                shots[str(count)]["interval"], arrays = _interval_record(entry, test, generator.y_scale or 1.0, count)
                found.arrays.update(arrays)
        except Exception as problem:
            found.problems.append(f"there are no intervals at K = {count} ({type(problem).__name__}: {problem})")
    queries = protocol.query_samples if held_out[count].owners is None else None  # None: all that there are
    found.record.update(num_tasks=len(diverged), query_samples=queries, diverged=int(diverged.sum()), shots=shots)
    _add_baselines(learner, generator, held_out, found)
    return found


def learner_without_points(learner: MetaLearner, generator: TaskGenerator, protocol: Protocol) -> MetaLearner:
    """The learner if its prior is an answer, or else the mean curve of the training tasks; by errors on validation tasks.

    Weights that are good to adapt may predict nothing themselves: on a table those of one method erred by 20 times as much as
    the mean curve. A prior that errs by less than `POOR` is kept: it goes with the answers at other K.
    """
    held_out = generator.held_out("validation", protocol.validation_tasks, 0, protocol.query_samples)
    if learner.is_fitted() or generator.input_dim > MOST_INPUTS or not held_out.evaluable.any():
        return learner
    curve = mean_curve(training_points(generator))
    own, other = (validation_error(held_out_errors(one, held_out, 0), held_out) for one in (learner, curve))
    return learner if own <= POOR * other else curve


def _adapted(
    learner: MetaLearner, generator: TaskGenerator, split: str, held_out: HeldOut, protocol: Protocol, shots: int
) -> Adapted:
    rng = stream(HELD_OUT_SEED, "measured", 2 * shots + (split == "test"))
    return adapt_held_out(learner, generator, held_out, protocol.steps, rng)


def _adapted_validation(
    learner: MetaLearner, generator: TaskGenerator, protocol: Protocol, shots: int
) -> tuple[Adapted | None, float | None]:
    """The validation tasks that intervals are calibrated on, where there are two; and the validation error, where there is one.

    The number of validation tasks of a formula is chosen for speed, and too small for a calibration: it has more of its own.
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
    """Statistics [S+1] of errors [T, S+1], with their root in the target's own unit on a table."""
    record: dict[str, Any] = dict(mean_and_interval(errors[held_out.evaluable], held_out.owners is not None))
    return record if y_scale is None else record | {"rmse": y_scale * np.sqrt(record["mse"])}


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
            found.record["baselines"][name][str(count)] = {key: value.item() for key, value in record.items()}
        found.arrays[f"baseline_errors_{count}_shot"] = np.stack(list(by_name.values()))
    found.arrays["baselines"] = np.array(list(fitted))

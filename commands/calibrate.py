"""Prediction intervals of a run: calibrated on its validation tasks, kept in its best checkpoint, judged on its test tasks."""

from __future__ import annotations

from typing import Any

import numpy as np

from dataset import HELD_OUT_SEED, Points, stream
from evaluation.intervals import Calibration, calibrate, difficulty_features, entry_for, judge_intervals
from learner import posterior_std, predict_tasks
from training.experiment import Experiment

TASKS = 500  # most from a formula that intervals are calibrated or judged on: the level is sure to about a hundredth
POINTS = 20  # most of each task from a formula; tasks from a table have all their points
COVERAGE = 0.9

Residuals = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # hints, clean and measured residuals, owners


def add_intervals(
    experiment: Experiment, state: dict[str, Any] | None, evaluation: dict[str, Any], arrays: dict[str, Any]
) -> None:
    """Calibrate, save that in best.pt where `state` was read from it, and add what intervals are worth to the records of
    the evaluation. Intervals that fail are a warning: they must not cost a run its results.
    """
    try:
        calibration = calibrate_run(experiment)
        judged = {count: judged_intervals(experiment, calibration, int(count)) for count in evaluation["shots"] if calibration}
    except Exception as error:
        return experiment.manager.warn(f"there are no intervals ({type(error).__name__}: {error})")
    for count, (record, found) in judged.items():
        evaluation["shots"][count]["interval"] = record
        arrays |= found
    if state is not None and calibration:
        others = state.get("calibration") or {}  # of other numbers of gradients
        experiment.manager.save_best(state | {"calibration": others | {str(experiment.config.EVAL_STEPS): calibration}})


def calibrate_run(experiment: Experiment) -> Calibration:
    """Calibrations for each K of EVAL_SHOTS and SUPPORT_SAMPLES that two validation tasks have points for."""
    wanted = sorted({*experiment.config.EVAL_SHOTS, experiment.config.SUPPORT_SAMPLES})
    enough = [shots for shots in wanted if experiment.held_out("validation", shots).evaluable.sum() >= 2]
    return {str(shots): calibrate(*residuals(experiment, "validation", shots)) for shots in enough}


def residuals(experiment: Experiment, split: str, shots: int) -> Residuals:
    """What `calibrate` and `judge_intervals` ask for, of tasks of a split."""
    config, generator = experiment.config, experiment.generator
    # as many of both splits: VALIDATION_TASKS is chosen for speed
    held_out = generator.held_out(split, config.EVAL_TASKS, shots, config.EVAL_QUERY_SAMPLES)
    (support, query), owners = held_out.tasks, held_out.owners
    if owners is None:
        support, query = (
            Points(*(part[:TASKS, :most] for part in points)) for points, most in ((support, shots), (query, POINTS))
        )
        owners = np.arange(len(query.x))
    everywhere = np.concatenate([query.x, support.x], axis=1)
    path = predict_tasks(experiment.learner, support, everywhere, config.EVAL_STEPS)[0]
    path, at_support = np.split(path, [query.x.shape[1]], axis=2)
    y, last = query.y[..., 0], path[:, -1].astype(float)
    last[np.isnan(last)] = np.inf  # a diverged task is one of those that are judged, unlike padding
    measured = generator.measured(y, stream(HELD_OUT_SEED, "measured", 2 * shots + (split == "test")))
    with np.errstate(over="ignore", invalid="ignore"):  # a diverged task is a result, not a warning
        uncertain = posterior_std(experiment.learner, support, query.x, config.EVAL_STEPS)
        return difficulty_features(path, at_support, support, query.x, uncertain), y - last, measured - last, owners


def judged_intervals(
    experiment: Experiment, calibration: Calibration, shots: int
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The record "interval" of metrics.json at one K, widths in own units, and the arrays behind the figure."""
    entry = entry_for(calibration, shots)
    result, arrays = judge_intervals(entry, *residuals(experiment, "test", shots), COVERAGE)
    unit = experiment.generator.y_scale or 1.0
    own = {name: value * unit if name.endswith(("width", "score")) else value for name, value in result.items()}
    arrays |= {name: arrays[name] * unit for name in ("width", "error")}
    named = {f"interval_{name}_{shots}_shot": values for name, values in arrays.items() if name != "nominal"}
    about = {"level": COVERAGE, "calibrated_on": entry["tasks"]}
    return about | own, {"interval_nominal": arrays["nominal"]} | named

"""`--evaluate RUN`, and the end of every training: judge the best checkpoint, draw, record, report."""

from __future__ import annotations

import argparse
import json
from contextlib import closing
from typing import Any

import numpy as np

from commands.calibrate import add_intervals
from commands.runs import load_experiment
from config import Config
from dataset import Points, stream
from evaluation.baselines import baseline_errors, baselines
from evaluation.errors import held_out_errors
from evaluation.statistics import geometric_mean, mean_and_interval
from learner import predict_tasks, sample_tasks
from registry import defaults
from report.page import CAPTIONS, run_page
from report.text import results_table, verdict
from system.checkpoints import read_checkpoint
from system.errors import RunError, checkpoint_errors
from system.files import write_atomically
from system.terminal import print_once
from training.experiment import Experiment, history_arrays

SAMPLES = 100  # of a stochastic method, for each task of a figure
DIVERGED_ABOVE = 100.0  # a test task whose last error is above this, or not finite, counts as diverged


def evaluate(args: argparse.Namespace) -> int:
    """Evaluate, draw and report a run's best checkpoint again."""
    experiment, _ = load_experiment(args, args.evaluate)
    with closing(experiment.manager):
        experiment.manager.open_tensorboard(0)
        finish(experiment)
    return 0


def finish(experiment: Experiment) -> None:
    """Evaluate the best checkpoint, draw, record and report."""
    manager, config, done = experiment.manager, experiment.config, experiment.trainer.iteration
    experiment.trainer.limit_threads()
    best = manager.directory / "checkpoints" / "best.pt"
    state = None
    if best.exists():
        try:
            with checkpoint_errors():
                experiment.check_own(found := read_checkpoint(best))
                experiment.trainer.load(found)
            state = found
        except RunError as error:
            manager.warn(f"best.pt: {error}; judging the last one instead")
    evaluation, arrays = judge(experiment)
    add_intervals(experiment, state, evaluation, arrays)
    shots = config.SUPPORT_SAMPLES if config.SUPPORT_SAMPLES in config.EVAL_SHOTS else config.EVAL_SHOTS[0]
    add_baselines(experiment, shots, evaluation, arrays)
    arrays |= figure_arrays(experiment, shots)
    manager.attempt("plots", lambda: draw(experiment, arrays, shots, done))
    manager.save_arrays(arrays)
    metrics = experiment.metrics(done, evaluation)
    manager.log_evaluation(evaluation["shots"], config.to_dict(), metrics["performance"])
    manager.save_json("metrics.json", metrics)
    table = results_table(evaluation, experiment.generator.published)
    print_once(table)
    for line in table.splitlines():
        manager.log(line)
    if unfinished := done < config.iterations:
        manager.warn(f"judged after {done} of {config.iterations} steps: --resume {manager.display_path} takes the others")
    results = {"results": evaluation, "timing": metrics["performance"]}
    experiment.report("unfinished" if unfinished else "complete", results)
    manager.attempt("report.html", lambda: write_page(experiment))


def write_page(experiment: Experiment) -> None:
    """The record and the figures as a page for people, named in the last line of a run."""
    manager, generator, values = experiment.manager, experiment.generator, experiment.config.to_dict()
    report = json.loads((manager.directory / "full_report.json").read_bytes())
    usual = Config.resolve(defaults(experiment.method, experiment.tasks, generator)).to_dict()
    changed = {key: (value, usual[key]) for key, value in values.items() if value != usual[key]}
    plots = (manager.directory / "plots" / f"{name}.png" for name in CAPTIONS)
    figures = {path.stem: path.read_bytes() for path in plots if path.exists()}
    page = run_page(report, manager.display_path, generator.published, changed, figures)
    write_atomically(manager.directory / "report.html", page)
    print_once(f"report: {manager.display_path}/report.html")


def judge(experiment: Experiment) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Errors on the test tasks: the record for metrics.json, and the arrays behind it."""
    config = experiment.config
    arrays: dict[str, np.ndarray] = {}
    shots: dict[str, dict[str, Any]] = {}
    diverged: Any = False
    y_scale = experiment.generator.y_scale
    for count in config.EVAL_SHOTS:
        held_out = experiment.held_out("test", count)
        found, judged = held_out_errors(experiment.learner, held_out, config.EVAL_STEPS), held_out.evaluable
        arrays |= {"test_params": held_out.params, f"test_errors_{count}_shot": found}
        result: dict[str, Any] = dict(mean_and_interval(found[judged], held_out.owners is not None))
        shots[str(count)] = result
        if (error := validation_error(experiment, count)) is not None:
            result["validation"] = error
        if y_scale is not None:
            result["rmse"] = y_scale * np.sqrt(result["mse"])
        if held_out.owners is not None:
            arrays[f"test_left_out_{count}_shot"] = ~judged
            result["left_out"] = int((~judged).sum())
        diverged |= judged & (~np.isfinite(found).all(1) | ~(found[:, -1] <= DIVERGED_ABOVE))
    queries = config.EVAL_QUERY_SAMPLES if held_out.owners is None else None  # None: all that there are
    summary = {"num_tasks": len(diverged), "query_samples": queries}
    return summary | {"diverged": int(diverged.sum()), "shots": shots}, arrays


def validation_error(experiment: Experiment, shots: int) -> float | None:
    """What `--compare` chooses a method by: the error on the validation tasks after the last gradient, None without any.

    It is the mean over tasks, and over a table's subjects the geometric mean: one hard subject among ten would decide a mean.
    """
    held_out = experiment.held_out("validation", shots)
    errors = held_out_errors(experiment.learner, held_out, experiment.config.EVAL_STEPS)[held_out.evaluable, -1]
    if not len(errors):
        return None
    with np.errstate(over="ignore"):  # a diverged task is a result
        return geometric_mean(errors) if held_out.owners is not None else float(errors.mean())


def add_baselines(experiment: Experiment, shots: int, evaluation: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """Add the baselines' errors on the same draws to the records of `judge`, and the verdict at K = `shots`.

    A baseline that fails is a warning: it must not cost a run its results.
    """
    generator, counts = experiment.generator, experiment.config.EVAL_SHOTS
    scale = 1.0 if generator.y_scale is None else generator.y_scale
    try:
        fitted, held_out = baselines(generator), {count: experiment.held_out("test", count) for count in counts}
        errors = {name: {count: baseline_errors(one, held_out[count]) for count in counts} for name, one in fitted.items()}
    except Exception as error:
        return experiment.manager.warn(f"there are no baselines ({type(error).__name__}: {error})")
    evaluation["baselines"] = {name: {} for name in errors}
    for count in counts:
        judged = held_out[count].evaluable
        for name, found in errors.items():
            summary = mean_and_interval(found[count][judged, None], held_out[count].owners is not None)
            result = {key: value.item() for key, value in summary.items()}
            rmse = {} if generator.y_scale is None else {"rmse": scale * np.sqrt(result["mse"])}
            evaluation["baselines"][name][str(count)] = result | rmse
        arrays[f"baseline_errors_{count}_shot"] = np.stack([found[count] for found in errors.values()])
    arrays["baselines"] = np.array(list(errors))
    judged = held_out[shots].evaluable
    others = {name: found[shots][judged] for name, found in errors.items()}
    own = arrays[f"test_errors_{shots}_shot"][judged, -1]
    evaluation["verdict"] = verdict(experiment.method.upper(), own, others, scale, generator.axis_names[1], shots)


def figure_arrays(experiment: Experiment, shots: int) -> dict[str, np.ndarray]:
    """What the figures show beside the test errors: the table of data.npz in docs/run_directory.md."""
    config, learner = experiment.config, experiment.learner
    arrays, generator = history_arrays(experiment.history), experiment.generator
    if generator.y_scale is not None:
        arrays |= {"y_scale": np.array(generator.y_scale), "axis_names": np.array(generator.axis_names)}
    if config.INPUT_DIM == 1:
        examples, support, x = experiment.example_arrays(experiment.learner, shots)
        arrays |= examples
        if learner.noise_dim:
            rng = stream(config.RANDOM_SEED, "samples")
            samples = sample_tasks(learner, support, x, config.EVAL_STEPS, rng, SAMPLES)
            arrays["grid_samples"] = generator.unscale(Points(x[0], samples)).y
    held_out = experiment.held_out("test", shots)
    if names := generator.task_names(held_out.params):
        arrays["test_names"] = np.array(names)
    codes = predict_tasks(learner, held_out.tasks.support, held_out.tasks.query.x[:, :1], 0)[1]
    if codes.shape[1] >= 2:
        owners = np.arange(len(codes)) if held_out.owners is None else held_out.owners
        arrays["codes"] = np.full((len(held_out.params), codes.shape[1]), np.nan, codes.dtype)
        arrays["codes"][owners[::-1]] = codes[::-1]  # of each task's first row
    return arrays


def draw(experiment: Experiment, arrays: dict[str, np.ndarray], shots: int, done: int) -> None:
    """The figures of a run of `done` steps, from the arrays behind them."""
    from report.figures import run_figures  # takes half a second: for those who draw

    generator = experiment.generator
    title = f"{experiment.method.upper()}, {generator.name}"
    for name, figure in run_figures(arrays, shots, generator.param_names, generator.published, title).items():
        experiment.manager.save_figure(name, figure, done)

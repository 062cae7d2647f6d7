"""`--evaluate RUN`, and the end of every training: judge the best checkpoint, draw, record, report."""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np

from analysis.comparison import mean_and_interval
from analysis.figures import run_figures
from analysis.text_tables import results_table
from commands.runs import reopen
from dataset import stream
from evaluation import errors, predict, sample
from experiment import Experiment, history_arrays
from runtime.errors import RunError
from runtime.processes import print_once
from runtime.storage import read_checkpoint

SAMPLES = 100  # of a stochastic method, for each task of a figure
DIVERGED_ABOVE = 100.0  # a test task whose last error is above this, or not finite, counts as diverged


def evaluate(args: argparse.Namespace) -> int:
    """Evaluate, draw and report a run's best checkpoint again."""
    experiment, _ = reopen(args, args.evaluate)
    try:
        experiment.manager.open_tensorboard(0)
        finish(experiment)
        return 0
    finally:
        experiment.manager.close()


def finish(experiment: Experiment) -> None:
    """Evaluate the best checkpoint, draw, record and report."""
    manager, config, done = experiment.manager, experiment.config, experiment.trainer.iteration
    experiment.trainer.limit_threads()
    best = manager.directory / "checkpoints" / "best.pt"
    if best.exists():
        try:
            experiment.trainer.load(read_checkpoint(best))
        except RunError as error:
            manager.warn(f"{error}; judging the last one instead")
    evaluation, arrays = judge(experiment)
    shots = config.SUPPORT_SAMPLES if config.SUPPORT_SAMPLES in config.EVAL_SHOTS else config.EVAL_SHOTS[0]
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
    experiment.report("complete", {"results": evaluation, "timing": metrics["performance"]})


def judge(experiment: Experiment) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Errors on the test tasks: the record for metrics.json, and the arrays behind it."""
    config = experiment.config
    arrays: dict[str, np.ndarray] = {}
    shots, diverged = {}, np.zeros(config.EVAL_TASKS, bool)
    for count in config.EVAL_SHOTS:
        arrays["test_params"], tasks = experiment.held_out("test", count)
        found = errors(experiment.learner, tasks, config.EVAL_STEPS)
        arrays[f"test_errors_{count}_shot"] = found
        shots[str(count)] = mean_and_interval(found)
        diverged |= ~np.isfinite(found).all(1) | ~(found[:, -1] <= DIVERGED_ABOVE)
    summary = {"num_tasks": config.EVAL_TASKS, "query_samples": config.EVAL_QUERY_SAMPLES}
    return summary | {"diverged": int(diverged.sum()), "shots": shots}, arrays


def figure_arrays(experiment: Experiment, shots: int) -> dict[str, np.ndarray]:
    """What the figures show beside the test errors: the table of data.npz in docs/run_directory.md."""
    config, learner = experiment.config, experiment.learner
    arrays = history_arrays(experiment.manager.history)
    if config.INPUT_DIM == 1:
        examples, support, x = experiment.example_arrays(shots)
        arrays |= examples
        if learner.noise_dim:
            rng = stream(config.RANDOM_SEED, "samples")
            arrays["grid_samples"] = sample(learner, support, x, config.EVAL_STEPS, rng, SAMPLES)
    _, tasks = experiment.held_out("test", shots)
    codes = predict(learner, tasks.support, tasks.query.x[:, :1], 0)[1]
    if codes.shape[1] >= 2:
        arrays["codes"] = codes
    return arrays


def draw(experiment: Experiment, arrays: dict[str, np.ndarray], shots: int, done: int) -> None:
    """The figures of a run of `done` steps, from the arrays behind them."""
    generator = experiment.generator
    title = f"{experiment.method.upper()}, {generator.name}"
    for name, figure in run_figures(arrays, shots, generator.param_names, generator.published, title).items():
        experiment.manager.save_figure(name, figure, done)

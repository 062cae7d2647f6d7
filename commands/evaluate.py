"""`--evaluate RUN`, and the end of every training: evaluate the best checkpoint, draw, record, report."""

from __future__ import annotations

import argparse
import json
from contextlib import closing
from typing import Any

import numpy as np

from commands.runs import load_experiment
from config import Config
from dataset import stream
from evaluation.evaluate import Evaluation, Protocol
from evaluation.evaluate import evaluate as evaluate_learner
from evaluation.examples import example_arrays, example_samples
from registry import defaults
from report.page import CAPTIONS, run_page
from report.rows import run_table, verdict
from report.text import text_table
from system.checkpoints import read_checkpoint
from system.errors import RunError, checkpoint_errors
from system.files import write_atomically
from system.terminal import print_once
from training.experiment import Experiment, history_arrays


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
    performance = experiment.performance()  # of the training: the best checkpoint may be an earlier one
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
            manager.warn(f"best.pt: {error}; evaluating the last one instead")
    evaluation, arrays = evaluated(experiment, state)
    shots = config.SUPPORT_SAMPLES
    manager.attempt("plots", lambda: draw(experiment, arrays, shots, done))
    manager.save_arrays(arrays)
    manager.log_evaluation(evaluation["shots"], config.to_dict(), performance)
    table = text_table(run_table(evaluation, experiment.method.upper(), experiment.generator.published))
    print_once(table)
    for line in table.splitlines():
        manager.log(line)
    if unfinished := done < experiment.trainer.iterations:
        manager.warn(
            f"evaluated after {done} of {experiment.trainer.iterations} steps: --resume {manager.display_path} takes the others"
        )
    experiment.report("unfinished" if unfinished else "complete", performance, results=evaluation)
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


def evaluated(experiment: Experiment, state: dict[str, Any] | None) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The record for metrics.json and the arrays of data.npz; if `state` is best.pt's, the calibration is saved into it."""
    config, generator, manager = experiment.config, experiment.generator, experiment.manager
    sizes = config.EVAL_TASKS, config.VALIDATION_TASKS, config.EVAL_QUERY_SAMPLES
    protocol = Protocol(config.evaluation_shots, config.EVAL_STEPS, *sizes)
    folds = experiment.judged() if generator.folds else []
    found = evaluate_learner(experiment.learner, generator, protocol, folds)
    for problem in found.problems:
        manager.warn(problem)
    if state is not None and found.calibration:
        others = state.get("calibration") or {}  # of other numbers of gradients
        curve = None if found.without is experiment.learner else dict(found.without.state_dict())
        manager.save_best(state | {"mean_curve": curve, "calibration": others | {str(config.EVAL_STEPS): found.calibration}})
    shots, arrays = config.SUPPORT_SAMPLES, found.arrays
    if "baselines" in arrays:
        own, baselines = arrays[f"test_errors_{shots}_shot"][:, -1], arrays[f"baseline_errors_{shots}_shot"]
        evaluable = ~arrays.get(f"test_left_out_{shots}_shot", np.zeros(len(own), bool))
        by_name = {str(name): errors[evaluable] for name, errors in zip(arrays["baselines"], baselines, strict=True)}
        scale = 1.0 if generator.y_scale is None else generator.y_scale
        found.record["verdict"] = verdict(
            experiment.method.upper(), own[evaluable], by_name, scale, generator.axis_names[1], shots
        )
    return found.record, arrays | figure_arrays(experiment, found)


def figure_arrays(experiment: Experiment, found: Evaluation) -> dict[str, np.ndarray]:
    """What the figures show beside the test errors: the table of data.npz in docs/run_directory.md."""
    config = experiment.config
    learner, without, generator = found.judged[0]
    codes = found.codes[config.SUPPORT_SAMPLES]
    arrays = history_arrays(experiment.history)
    if generator.y_scale is not None:
        arrays |= {"y_scale": np.array(generator.y_scale), "axis_names": np.array(generator.axis_names)}
    if config.INPUT_DIM == 1:
        subject, steps = experiment.record.get("columns", [""])[0], config.EVAL_STEPS
        examples, support, x = example_arrays(learner, without, generator, config.SUPPORT_SAMPLES, steps, subject)
        arrays |= examples
        if learner.noise_dim:
            rng = stream(config.RANDOM_SEED, "samples")
            arrays["grid_samples"] = example_samples(learner, generator, support, x, steps, rng)
    if names := experiment.generator.task_names(found.arrays["test_params"]):
        arrays["test_names"] = np.array(names)
    if codes.shape[1] >= 2:
        arrays["codes"] = codes
    return arrays


def draw(experiment: Experiment, arrays: dict[str, np.ndarray], shots: int, done: int) -> None:
    """The figures of a run of `done` steps, from the arrays behind them."""
    from report.figures import run_figures  # takes half a second: for those who draw
    from visualization import pdf_bytes, png_bytes

    generator = experiment.generator
    title = f"{experiment.method.upper()}, {generator.name}"
    figures = run_figures(arrays, shots, generator.param_names, generator.published, title)
    pictures = {name: png_bytes(figure) for name, figure in figures.items()}
    experiment.manager.save_figures(pictures, pdf_bytes(*figures.values()), done)

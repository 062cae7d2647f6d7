"""`--evaluate RUN`, and the end of every training: evaluate the best checkpoint, draw, record, report."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from commands.runs import load_experiment, runs_folder, settings_of_run, tasks_of_run
from config import Config
from dataset import TaskGenerator, stream
from evaluation.evaluate import Evaluation, Protocol
from evaluation.evaluate import evaluate as evaluate_learner
from evaluation.examples import example_arrays, example_band, example_samples
from learner import MetaLearner
from registry import MEAN, defaults, restored
from report.page import CAPTIONS, run_page
from report.rows import answer_table, run_answers, run_table
from report.sentence import Answers, sentence
from report.text import text_table
from results_manager import ExperimentManager, load_run
from system.checkpoints import read_checkpoint
from system.errors import RunError, checkpoint_errors
from system.files import write_atomically
from system.terminal import print_once
from training.experiment import Experiment, History, RunFacts, history_arrays

Folds = Sequence[tuple[MetaLearner, TaskGenerator]]  # what was trained without the test tasks of each generator


def evaluate(args: argparse.Namespace) -> int:
    """Evaluate, draw and report a run's best checkpoint again."""
    directory, state, _ = load_run(args.evaluate, runs_folder(args))
    if state["method"] == MEAN:
        evaluate_mean(args.command, directory, state, settings_of_run(args, directory, state)[2])
        return 0
    experiment, _ = load_experiment(args, args.evaluate)
    with closing(experiment.manager):
        experiment.manager.open_tensorboard(0)
        finish(experiment)
    return 0


def finish(experiment: Experiment) -> None:
    """Evaluate the best checkpoint of a training, draw, record and report."""
    facts, manager = experiment.facts(), experiment.manager  # of the training: the best checkpoint may be an earlier one
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
    folds = experiment.judged() if experiment.generator.folds else []
    conclude(facts, experiment.learner, folds, state, experiment.trainer.iterations)


def evaluate_mean(command: list[str], directory: Path, state: dict[str, Any], config: Config) -> None:
    """Evaluate, draw and report the mean of runs, of which `state` is the checkpoint in `directory`."""
    method, tasks = state["method"], state["tasks"]
    generator = tasks_of_run(directory, tasks, config)
    with closing(ExperimentManager(directory, method, command)) as manager:
        manager.open_tensorboard(0)
        learner = restored(state, method, config)
        folds = [(restored(state, method, config, place), fold) for place, fold in enumerate(generator.folds)]
        performance = {"iterations": 0, "train_seconds": 0.0, "ms_per_iteration": 0.0, "compile_seconds": 0.0}
        about = {"members": [part["method"] for part in state["members"]]}
        history: History = {"train": [], "validation": []}
        data = dict(generator.record())
        facts = RunFacts(manager, method, tasks, config, generator, data, history, performance, about)
        conclude(facts, learner, folds, state, 0)


def conclude(facts: RunFacts, learner: MetaLearner, folds: Folds, state: dict[str, Any] | None, iterations: int) -> None:
    """Evaluate a learner, or with folds those, draw, record and report.

    Args:
        state: of best.pt, which the calibration is added to, where there is one.
        iterations: of the whole training.
    """
    manager, config, performance = facts.manager, facts.config, facts.performance
    done = int(performance["iterations"])
    evaluation, arrays = evaluated(facts, learner, folds, state)
    manager.attempt("plots", lambda: draw(facts, arrays, config.SUPPORT_SAMPLES, done))
    manager.save_arrays(arrays)
    manager.log_evaluation(evaluation["shots"], config.to_dict(), performance)
    table = text_table(run_table(evaluation, facts.method.upper(), facts.generator.published))
    for line in table.splitlines():
        manager.log(line)
    if facts.data:
        scale, target = facts.generator.y_scale or 1.0, facts.generator.axis_names[1]
        seconds = performance["train_seconds"] + performance["compile_seconds"] or None
        answers = run_answers(evaluation, facts.method.upper(), config.SUPPORT_SAMPLES, seconds)
        found = answer_table(answers, config.SUPPORT_SAMPLES, scale, target)
        table = text_table(found._replace(answer=evaluation.get("verdict", "")))
    print_once(table)
    if unfinished := done < iterations:
        manager.warn(f"evaluated after {done} of {iterations} steps: --resume {manager.display_path} takes the others")
    facts.report("unfinished" if unfinished else "complete", results=evaluation)
    manager.attempt("report.html", lambda: write_page(facts))


def write_page(facts: RunFacts) -> None:
    """The record and the figures as a page for people, named in the last line of a run."""
    manager, generator, values = facts.manager, facts.generator, facts.config.to_dict()
    report = json.loads((manager.directory / "full_report.json").read_bytes())
    usual = values
    if facts.method != MEAN:
        usual = Config.resolve(defaults(facts.method, facts.tasks, generator)).to_dict()
    changed = {key: (value, usual[key]) for key, value in values.items() if value != usual[key]}
    plots = (manager.directory / "plots" / f"{name}.png" for name in CAPTIONS)
    figures = {path.stem: path.read_bytes() for path in plots if path.exists()}
    page = run_page(report, manager.display_path, generator.published, changed, figures)
    write_atomically(manager.directory / "report.html", page)
    print_once(f"report: {manager.display_path}/report.html")


def evaluated(
    facts: RunFacts, learner: MetaLearner, folds: Folds, state: dict[str, Any] | None
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The record for metrics.json and the arrays of data.npz; if `state` is best.pt's, the calibration is saved into it."""
    config, generator, manager = facts.config, facts.generator, facts.manager
    sizes = config.EVAL_TASKS, config.VALIDATION_TASKS, config.EVAL_QUERY_SAMPLES
    protocol = Protocol(config.evaluation_shots, config.EVAL_STEPS, *sizes)
    found = evaluate_learner(learner, generator, protocol, folds)
    for problem in found.problems:
        manager.warn(problem)
    if state is not None and found.calibration:
        others = state.get("calibration") or {}  # of other numbers of gradients
        curve = None if found.without is learner else dict(found.without.state_dict())
        manager.save_best(state | {"mean_curve": curve, "calibration": others | {str(config.EVAL_STEPS): found.calibration}})
    arrays = found.arrays
    if "baselines" in arrays:
        shots, names = config.SUPPORT_SAMPLES, generator.task_names(arrays["test_params"])
        answers = {count: answers_at(count, arrays, names) for count in config.evaluation_shots if count}
        coverage = found.record["shots"][str(shots)].get("interval", {}).get("coverage")
        scale, target = generator.y_scale or 1.0, generator.axis_names[1]
        found.record["verdict"] = sentence(answers, shots, scale, facts.data.get("columns", ["task"])[0], target, coverage)
    return found.record, arrays | figure_arrays(facts, found)


def answers_at(shots: int, arrays: Mapping[str, np.ndarray], names: Sequence[str]) -> Answers:
    """The errors at one K of the method, with points and without, and of the baselines, on test tasks with enough points."""
    own, without = (arrays[f"test_errors_{count}_shot"][:, -1] for count in (shots, 0))
    kept = np.flatnonzero(~arrays.get(f"test_left_out_{shots}_shot", np.zeros(len(own), bool)))
    rows = zip(arrays["baselines"], arrays[f"baseline_errors_{shots}_shot"], strict=True)
    others = {str(name): errors[kept] for name, errors in rows}
    return Answers(own[kept], without[kept], others, [names[place] for place in kept.tolist()] if names else ())


def figure_arrays(facts: RunFacts, found: Evaluation) -> dict[str, np.ndarray]:
    """What the figures show beside the test errors: the table of data.npz in docs/run_directory.md."""
    config = facts.config
    learner, without, generator = found.judged[0]
    codes = found.codes[config.SUPPORT_SAMPLES]
    arrays = history_arrays(facts.history)
    if generator.y_scale is not None:
        arrays |= {"y_scale": np.array(generator.y_scale), "axis_names": np.array(generator.axis_names)}
    if config.INPUT_DIM == 1:
        subject, steps = facts.data.get("columns", [""])[0], config.EVAL_STEPS
        examples, support, x = example_arrays(learner, without, generator, config.SUPPORT_SAMPLES, steps, subject)
        arrays |= examples
        if facts.data and (entry := found.calibration.get(str(config.SUPPORT_SAMPLES))):
            arrays["grid_band"] = example_band(learner, generator, support, x, steps, entry)
        if learner.noise_dim:
            rng = stream(config.RANDOM_SEED, "samples")
            arrays["grid_samples"] = example_samples(learner, generator, support, x, steps, rng)
    if names := facts.generator.task_names(found.arrays["test_params"]):
        arrays["test_names"] = np.array(names)
    if codes.shape[1] >= 2:
        arrays["codes"] = codes
    return arrays


def draw(facts: RunFacts, arrays: dict[str, np.ndarray], shots: int, done: int) -> None:
    """The figures of a run of `done` steps, from the arrays behind them."""
    from report.figures import run_figures  # takes half a second: for those who draw
    from visualization import pdf_bytes, png_bytes

    generator = facts.generator
    title = f"{facts.method.upper()}, {generator.name}"
    figures = run_figures(arrays, shots, generator.param_names, generator.published, title)
    pictures = {name: png_bytes(figure) for name, figure in figures.items()}
    facts.manager.save_figures(pictures, pdf_bytes(*figures.values()), done)

"""Experiments from command lines and from run directories: what every action starts with."""

from __future__ import annotations

import argparse
import dataclasses
import os
from pathlib import Path
from typing import Any

from config import KEYS, Config, ConfigError, load_settings, parse_assignment
from dataset import TaskGenerator
from registry import MEAN, METHODS, TASKS, defaults, parse_checkpoint, settings_read, tasks_of, unused
from results_manager import EXPERIMENTS, ExperimentManager, load_run
from system.errors import RunError
from training.experiment import Experiment


def runs_folder(args: argparse.Namespace) -> Path:
    """Where run directories are made and looked for."""
    return args.output or EXPERIMENTS


def overrides(args: argparse.Namespace) -> dict[str, Any]:
    """The settings given on the command line: named flags, and --set, which wins. Raises `ConfigError`."""
    named = {"DEVICE": args.device, "DATA": args.data and os.path.abspath(args.data), "COLUMNS": args.columns}
    seed = [] if args.seed is None else [f"RANDOM_SEED={args.seed}"]
    given = {key: value for key, value in named.items() if value is not None}
    return given | dict(map(parse_assignment, [*seed, *args.set]))


def refuse_unused(method: str, tasks: str, changes: dict[str, Any]) -> None:
    """Refuse a setting of the command line that nothing would read. Raises `ConfigError`."""
    for key in changes.keys() & unused(method, tasks):
        users = ", ".join(name for name in (*METHODS, *TASKS) if key in settings_read(name))
        raise ConfigError(
            f"{key} has no effect on {method} with {tasks} tasks (got {changes[key]}; expected with {users} only)"
        )


def resolve_settings(args: argparse.Namespace) -> tuple[str, str, Config, TaskGenerator]:
    """Method, tasks and settings of a new run, and where its tasks come from.

    Raises `ConfigError` for settings that contradict the tasks.
    """
    given, changes = load_settings(args.config) if args.config else {}, overrides(args)
    method, data = args.method or "maml", (given | changes).get("DATA")
    tasks = args.tasks or ("table" if data else "sinusoid")
    if args.columns and not data:
        raise ConfigError("--columns names the columns of a table (got no table; expected --data FILE.csv as well)")
    for key in changes.keys() & unused(method, tasks):
        if any(key not in unused(other, tasks) for other in args.methods):
            del changes[key]  # it is meant for another one of several methods
    config = Config.resolve(defaults(method, tasks), given, changes)
    refuse_unused(method, tasks, changes)
    generator = tasks_of(tasks, config)
    for key in changes.keys() & generator.unused:
        raise ConfigError(f"{key} has no effect on these tasks (got {changes[key]}; expected {generator.unused[key]})")
    for key, value in generator.implied_settings().items():
        if (asked := (given | changes).get(key, value)) != value:
            raise ConfigError(f"{key} follows from the tasks (got {asked}; expected {value}, or no setting)")
    shots = (given | changes).get("SUPPORT_SAMPLES")
    return method, tasks, Config.resolve(defaults(method, tasks, generator, shots), given, changes), generator


def tasks_of_run(directory: Path, tasks: str, config: Config) -> TaskGenerator:
    """The tasks of a run that exists: a table is read from the copy in its directory, as the original may have moved."""
    return tasks_of(tasks, dataclasses.replace(config, DATA=str(directory / "table.csv")) if config.DATA else config)


def build(method: str, tasks: str, config: Config, generator: TaskGenerator | None = None) -> Experiment:
    return Experiment(method, METHODS[method], tasks, generator or tasks_of(tasks, config), config)


def settings_of_run(args: argparse.Namespace, directory: Path, state: dict[str, Any]) -> tuple[str, str, Config]:
    """The method, tasks and settings of a checkpoint, with the changes that the command line may make to them."""
    method, tasks, settings = parse_checkpoint(state, directory)
    if (args.method or method) != method or (args.tasks or tasks) != tasks:
        raise RunError(f"{directory} is another kind of run (got --method or --tasks; expected {method}, {tasks})")
    changes = overrides(args)
    refuse_unused(method, tasks, changes)
    action = args.action if args.action in ("evaluate", "predict") else "resume"
    for key, value in changes.items():
        actions = KEYS[key].metadata["roles"] if key in KEYS else ()
        if action not in actions and settings.get(key) != value:
            by_this_action = f", by --{action}" if "resume" in actions else ""
            what = f"{key} can't change in a run that exists{by_this_action}"
            raise ConfigError(f"{what} (got {value}; expected {settings.get(key)})")
    return method, tasks, Config.resolve(settings, changes)


def load_experiment(args: argparse.Namespace, text: str) -> tuple[Experiment, dict[str, Any]]:
    """The experiment of --resume or --evaluate, as its last checkpoint left it, and that checkpoint."""
    directory, state, warning = load_run(text, runs_folder(args))
    method, tasks, config = settings_of_run(args, directory, state)
    if method == MEAN:
        raise RunError(f"{directory} is a mean, which is not trained (got --{args.action}; expected one of its runs)")
    experiment = build(method, tasks, config, tasks_of_run(directory, tasks, config))
    experiment.manager = manager = ExperimentManager(directory, experiment.method, args.command)
    if warning:
        manager.warn(warning)
    try:
        experiment.load(state)
    except RunError:
        manager.close()
        raise
    experiment.complete = min(experiment.trainer.iteration, manager.completed()) >= experiment.trainer.iterations
    return experiment, state

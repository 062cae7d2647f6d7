"""`--mean RUN RUN ...`, and the end of a series on a table: the mean of finished runs as a run of its own."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from commands.compare import read_run
from commands.evaluate import evaluate_mean
from commands.runs import runs_folder, tasks_of_run
from config import Config
from evaluation.comparison import entries
from registry import MEAN, mean_state
from results_manager import ExperimentManager, find_run, load_run
from system.files import write_atomically


def mean(args: argparse.Namespace) -> int:
    """Make a run of the mean of finished ones, and judge it as any other."""
    output = runs_folder(args)
    mean_of([find_run(text, output) for text in args.mean], args)
    return 0


def mean_of(directories: Sequence[Path], args: argparse.Namespace) -> Path:
    """The directory of the new run. Raises `RunError` for runs that were not judged on the same test tasks."""
    runs = [read_run(directory) for directory in directories]
    entries(runs)  # raises where their test tasks differ
    states = [load_run(str(directory), directory.parent, best=True)[1] for directory in directories]
    state = mean_state(states)
    config = Config.resolve(state["config"])
    generator = tasks_of_run(directories[0], state["tasks"], config)
    manager = ExperimentManager.create(runs_folder(args), MEAN, generator.name, args.name, args.command)
    for name, data in generator.files().items():
        write_atomically(manager.directory / name, data)
    manager.save_json("config.json", config.to_dict())
    manager.save_checkpoint(state, best=state)
    manager.close()
    evaluate_mean(args.command, manager.directory, state, config)
    return manager.directory

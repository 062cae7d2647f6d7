"""Training: new, resumed, of several methods and seeds, alone or under torchrun."""

from __future__ import annotations

import argparse
import itertools
import shlex
import signal
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import torch

from commands.compare import compare_runs
from commands.evaluate import finish
from commands.mean import mean_of
from commands.runs import build, load_experiment, resolve_settings, runs_folder
from config import Config, ConfigError, variants
from registry import defaults, unused
from results_manager import ExperimentManager, find_launched
from system.errors import RunError
from system.files import write_atomically
from system.host import collection_paused
from system.terminal import print_once, rank
from training import processes
from training.experiment import Experiment
from training.loop import Diverged
from training.processes import PeerLost
from training.signals import Interrupted, Signals


def train(args: argparse.Namespace) -> int:
    """Train one run, or one after another of several methods, settings and seeds, and then compare them; the exit code.

    Several methods on a table end with their mean.
    """
    if args.action == "resume" or (args.seeds is None and len(args.methods) < 2 and len(variants(args.set)) < 2):
        return train_run(args)[0]
    directories = []
    for plan in plan_runs(args):
        code, directory = train_run(plan)
        if code:
            return code
        directories.append(directory)
    if len(args.methods) > 1 and (directories[0] / "table.csv").exists():
        directories.append(mean_of(directories, args))
    compare_runs(directories, runs_folder(args))
    return 0


def plan_runs(args: argparse.Namespace) -> list[argparse.Namespace]:
    """The command line of each method, setting and seed. Raises `ConfigError` or `RunError` where a run would be refused."""
    plans, planned = [], list[tuple[str, Config]]()
    seeds = [args.seed] if args.seeds is None else [str(seed) for seed in args.seeds]
    for method, chosen in itertools.product(args.methods or [None], variants(args.set)):
        first = argparse.Namespace(**vars(args) | {"method": method, "seed": seeds[0], "set": chosen})
        method_name, tasks, config, generator = resolve_settings(first)
        if (method_name, config) in planned:
            continue  # these values are of a setting that only another method reads
        planned.append((method_name, config))
        if args.seeds and config.DATA and config.SPLIT_SEED < 0 and "SPLIT_SEED" not in generator.unused:
            first.set = [*chosen, f"SPLIT_SEED={seeds[0]}"]  # one split for all: errors are compared subject by subject
        for seed in seeds:
            read = [text for text in chosen if text.partition("=")[0] not in unused(method_name, tasks)]
            several = [text.replace("=", "") for text in read if text not in args.set]
            several += [f"seed{seed}"] if args.seeds else []
            name = args.name and "-".join([args.name, *several])
            directory = runs_folder(args) / f"{method_name.upper()}_{generator.name}_{name}"
            if name and directory.exists():
                raise RunError(f"{directory} exists (got --name {args.name}; expected a new name)")
            plans.append(argparse.Namespace(**vars(first) | {"seed": seed, "name": name}))
    return plans


def train_run(args: argparse.Namespace) -> tuple[int, Path]:
    """Train, evaluate and report, anew or from where a run is; returns the exit code and the run's directory."""
    with Signals(args.program) as signals:
        try:
            signals.listen()
            processes.connect()
        except Interrupted as stop:
            return 128 + stop.number, Path()
        signals.defer()  # a run directory is made whole
        with collection_paused():
            experiment = open_experiment(args)
        with closing(experiment):
            try:
                return run(experiment, signals), experiment.manager.directory
            finally:
                signals.defer()  # there is nothing left to interrupt


# ---- opening


def open_experiment(args: argparse.Namespace) -> Experiment:
    """The experiment, in every process: process 0 makes or finds the run and sends it to the others."""
    if rank():
        return received_experiment()
    try:
        experiment, state = new_experiment(args) if args.resume is None else load_experiment(args, args.resume)
    except BaseException as error:
        processes.broadcast(error.code if isinstance(error, (ConfigError, RunError)) else 1)
        raise
    about = experiment.method, experiment.tasks, experiment.config.to_dict(), experiment.generator
    processes.broadcast((*about, state, experiment.complete))
    if state is not None and not experiment.complete:
        experiment.manager.save_json("config.json", experiment.config.to_dict())
        experiment.manager.open_tensorboard(experiment.trainer.iteration + 1)
    return experiment


def received_experiment() -> Experiment:
    """The experiment that process 0 sends. Raises `RunError` where it sends the exit code of an error instead."""
    message = processes.broadcast(None)
    if isinstance(message, int):
        raise RunError("process 0 has printed the error", message)
    method, tasks, settings, generator, state, complete = message
    experiment = build(method, tasks, Config(**settings), generator)
    if state is not None:
        experiment.load(state)
    experiment.complete = complete
    return experiment


def new_experiment(args: argparse.Namespace) -> tuple[Experiment, dict[str, Any] | None]:
    """A new experiment in a directory of its own, with settings found good before the directory is made.

    Where torchrun starts the same command again, it is the experiment that was started first, and its state.
    """
    launch = processes.launch_id()
    earlier = find_launched(runs_folder(args), launch) if launch else None
    if earlier:
        return load_experiment(args, str(earlier))
    method, tasks, config, generator = resolve_settings(args)
    experiment = build(method, tasks, config, generator)
    manager = ExperimentManager.create(runs_folder(args), method, generator.name, args.name, args.command)
    experiment.manager = manager
    values, expected = config.to_dict(), Config.resolve(defaults(method, tasks, generator)).to_dict()
    ignored = [key for key in unused(method, tasks) | {*generator.unused} if values[key] != expected[key]]
    if ignored:
        # on the command line they were refused: only a settings file gets this far
        manager.warn(f"{', '.join(sorted(ignored))} in {args.config}: without effect on {method} with {tasks} tasks")
    for name, data in generator.files().items():
        write_atomically(manager.directory / name, data)
    manager.save_json("config.json", values)
    experiment.save()  # from the first moment on there is something to resume
    if launch:
        manager.save_json(".launch", launch)
    manager.open_tensorboard(0)
    return experiment, None


# ---- training, and how it ends


def run(experiment: Experiment, signals: Signals) -> int:
    """Train from where the experiment is, evaluate and report; or record how it ended instead. Returns the exit code."""
    if experiment.complete:
        more = "" if experiment.learner.is_fitted() else " (raise EPOCHS to go on)"
        print_once(f"already complete: {experiment.manager.display_path}{more}")
        return 0
    try:
        signals.listen()
        introduce(experiment)
        with collection_paused(signals.program):
            experiment.prepare()
        signals.defer()
        experiment.train(signals)
        torch.set_flush_denormal(False)  # matplotlib warns where denormals are flushed
        processes.disconnect()
        if signals.stop:
            return interrupted(experiment, signals.stop)
        signals.listen()
        if not rank():
            finish(experiment)
        return 0
    except Interrupted as stop:
        return interrupted(experiment, stop.number)
    except Diverged as error:
        experiment.facts().report("diverged", reason=str(error))
        kept = f"the last good checkpoint is {experiment.manager.display_path}/checkpoints/last.pt"
        raise RunError(f"{error}, at learning rate {error.lr:.3g}; {kept}", 3) from None
    except PeerLost as error:
        with suppress(Diverged):
            experiment.save()  # a step is whole or not done, in this process too
        experiment.facts().report("failed", reason=str(error))
        raise
    except (OSError, MemoryError, torch.cuda.OutOfMemoryError) as error:
        with suppress(OSError):
            experiment.facts().report("failed", reason=str(error))
        raise


def introduce(experiment: Experiment) -> None:
    """Say what will be trained, on what."""
    config, manager, data = experiment.config, experiment.manager, experiment.record
    if data:
        sizes = "of subjects: " + ", ".join(f"{count} {split}" for split, count in data["subjects"].items())
        if (folds := data.get("folds", 1)) > 1:
            sizes = f"of {data['subjects']['test']} subjects, each tested in one of {folds} folds"
        without = data["rows_without_target"]
        left_out = f" ({without} without a target left out)" if without else ""
        print_once(f"{data['rows']} measurements{left_out} {sizes}; K = {config.SUPPORT_SAMPLES} support points")
        for line in data.get("remarks", ()):
            manager.warn(line)
    how = "fitted at once"
    if not experiment.learner.is_fitted():
        how = f"{config.iterations} steps of {config.META_BATCH_SIZE} tasks"
    print_once(f"{experiment.method} on {experiment.tasks}, {how}: {manager.display_path}")


def interrupted(experiment: Experiment, number: int) -> int:
    """Say that a signal ended the run, and how it goes on if it left a checkpoint; the exit code."""
    manager = experiment.manager
    experiment.facts().report("interrupted", reason=signal.Signals(number).name)
    if (manager.directory / "checkpoints" / "last.pt").exists():
        program = "python main.py " if experiment.trainer.world == 1 else ""
        print_once(f"to go on: {program}" + shlex.quote(f"--resume={manager.display_path}"))
    return 128 + number

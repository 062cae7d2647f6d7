"""Training: new, resumed, of several seeds, alone or under torchrun."""

from __future__ import annotations

import argparse
import shlex
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from commands.compare import compare_runs
from commands.evaluate import finish
from commands.runs import build, load_experiment, resolve_settings, runs_folder
from config import Config, ConfigError, load_settings
from registry import defaults, unused
from results_manager import ExperimentManager, find_launched
from system.errors import RunError
from system.files import write_atomically
from system.host import collection_paused
from system.terminal import print_once
from training import processes
from training.experiment import Experiment
from training.loop import Diverged
from training.processes import Interrupted, PeerLost, Signals


def train(args: argparse.Namespace) -> int:
    """Train one run, or one after another of several methods and seeds; returns the exit code."""
    return train_run(args)[0] if args.seeds is None and len(args.methods) < 2 else train_several(args)


def new_experiment(args: argparse.Namespace) -> tuple[Experiment, dict[str, Any] | None]:
    """A new experiment in a directory of its own, with settings found good before the directory is made.

    Where torchrun starts the same command again, it is the experiment that was started first, and its state.
    """
    launch = processes.launch_id()
    earlier = launch and find_launched(runs_folder(args), lambda other: processes.same_launch(launch, other))
    if earlier and (earlier / "checkpoints" / "last.pt").exists():
        return load_experiment(args, str(earlier))
    method, tasks, config, generator = resolve_settings(args, load_settings(args.config) if args.config else {})
    experiment = build(method, tasks, config, generator)
    if earlier:
        manager = ExperimentManager(earlier, method, args.command)
    else:
        manager = ExperimentManager.create(runs_folder(args), method, experiment.generator.name, args.name, args.command)
    if launch:
        manager.save_json(".launch", launch)
    experiment.manager = manager
    values, expected = config.to_dict(), Config.resolve(defaults(method, tasks)).to_dict()
    if ignored := sorted(key for key in unused(method, tasks) | {*generator.unused} if values[key] != expected[key]):
        manager.warn(f"{', '.join(ignored)} in {args.config}: without effect on {method} with {tasks} tasks")
    for name, data in generator.files().items():
        write_atomically(manager.directory / name, data)
    manager.save_json("config.json", values)
    experiment.save()  # from the first moment on there is something to resume
    manager.open_tensorboard(0)
    return experiment, None


def open_experiment(args: argparse.Namespace) -> Experiment:
    """The experiment, in every process: process 0 makes or finds the run and sends it to the others."""
    if processes.rank():
        message = processes.broadcast(None)
        if isinstance(message, int):
            raise RunError("process 0 has printed the error", message)
        method, tasks, settings, generator, state, complete = message
        experiment = build(method, tasks, Config(**settings), generator)
        if state is not None:
            experiment.load(state)
        experiment.complete = complete
        return experiment
    try:
        experiment, state = new_experiment(args) if args.resume is None else load_experiment(args, args.resume)
    except BaseException as error:
        processes.broadcast(error.code if isinstance(error, RunError) else 2 if isinstance(error, ConfigError) else 1)
        raise
    about = experiment.method, experiment.tasks, experiment.config.to_dict(), experiment.generator
    processes.broadcast((*about, state, experiment.complete))
    if state is not None and not experiment.complete:
        experiment.manager.save_json("config.json", experiment.config.to_dict())
        experiment.manager.open_tensorboard(experiment.trainer.iteration + 1)
    return experiment


def train_run(args: argparse.Namespace) -> tuple[int, Path | None]:
    """Train, evaluate and report, anew or from where a run is; returns the exit code and the run's directory."""
    experiment = None
    with Signals(args.program) as signals:
        try:
            signals.listen()
            processes.connect()
            with signals.deferred(), collection_paused():
                experiment = open_experiment(args)
            return run(experiment, signals), experiment.manager.directory
        except Interrupted as stop:
            return interrupted(experiment, stop.number) if experiment else 128 + stop.number, None
        except PeerLost as error:
            if experiment:
                with suppress(Diverged):
                    experiment.save()  # a step is whole or not done, in this process too
                experiment.stop_early("failed", str(error))
            raise RunError(str(error), 1) from None
        except (OSError, MemoryError, torch.cuda.OutOfMemoryError) as error:
            if experiment:
                with suppress(OSError):
                    experiment.stop_early("failed", str(error))
            raise
        finally:
            signals.raise_now = False  # there is nothing left to interrupt
            if experiment:
                experiment.close()


def run(experiment: Experiment, signals: Signals) -> int:
    """Train from where the experiment is, then evaluate and report; returns the exit code."""
    config, manager = experiment.config, experiment.manager
    if experiment.complete:
        print_once(f"already complete: {manager.display_path} (raise EPOCHS to go on)")
        return 0
    if data := experiment.record:
        sizes = ", ".join(f"{count} {split}" for split, count in data["subjects"].items())
        without = data["rows_without_target"]
        left_out = f" ({without} row{'' if without == 1 else 's'} without a target left out)" if without else ""
        print_once(f"{data['rows']} measurements{left_out} of subjects: {sizes}; K = {config.SUPPORT_SAMPLES} support points")
        for line in data.get("remarks", ()):
            manager.warn(line)
    steps = f"{config.iterations} steps of {config.META_BATCH_SIZE} tasks"
    print_once(f"{experiment.method} on {experiment.tasks}, {steps}: {manager.display_path}")
    with collection_paused(signals.program):
        experiment.prepare()
    signals.raise_now = False
    try:
        experiment.train(signals)
    except Diverged as error:
        experiment.stop_early("diverged", str(error))
        kept = f"; the last good checkpoint is {manager.display_path}/checkpoints/last.pt"
        raise RunError(f"{error}, at learning rate {error.lr:.3g}{kept}", 3) from None
    finally:
        torch.set_flush_denormal(False)  # libraries that draw warn about it
    processes.disconnect()
    if signals.stop:
        return interrupted(experiment, signals.stop)
    signals.listen()
    if not processes.rank():
        finish(experiment)
    return 0


def interrupted(experiment: Experiment, number: int) -> int:
    """Say that a signal ended the run, and how it goes on if it left a checkpoint; the exit code."""
    manager = experiment.manager
    experiment.stop_early("interrupted", signal.Signals(number).name)
    if isinstance(manager, ExperimentManager) and (manager.directory / "checkpoints" / "last.pt").exists():
        launcher = "python main.py " * (experiment.trainer.step.world == 1)
        print_once(f"to go on: {launcher}{shlex.quote(f'--resume={manager.display_path}')}")
    return 128 + number


def train_several(args: argparse.Namespace) -> int:
    """A run for each method and seed, one after another, and then all side by side; the first that fails ends it."""
    output, plans = runs_folder(args), []
    for method in args.methods or [None]:
        for seed in args.seeds or [args.seed]:
            suffix = "" if args.seeds is None else f"-seed{seed}"
            changed = {"method": method, "seed": seed if seed is None else str(seed), "name": args.name and args.name + suffix}
            plans.append(argparse.Namespace(**vars(args) | changed))
            if seed == (args.seeds or [args.seed])[0]:  # settings of each method are found good before the first run
                name, _, config, generator = resolve_settings(plans[-1], load_settings(args.config) if args.config else {})
            directory = output / f"{name.upper()}_{generator.name}_{plans[-1].name}"
            if args.name and directory.exists():
                raise RunError(f"{directory} exists (got --name {args.name}; expected a new name)")
    if args.seeds and config.DATA and config.SPLIT_SEED < 0 and "SPLIT_SEED" not in generator.unused:
        # one split for all: errors are compared subject by subject
        for plan in plans:
            plan.set = [*args.set, f"SPLIT_SEED={args.seeds[0]}"]
    runs: list[Path] = []
    for plan in plans:
        code, run_directory = train_run(plan)
        if code or run_directory is None:
            return code
        runs.append(run_directory)
    compare_runs(runs, output)
    return 0

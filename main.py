"""Train, evaluate, draw and report: the command line, and the wiring of everything else.

python main.py --method maml
python main.py --method leo --set SUPPORT_SAMPLES=5
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

import comparison
import prediction
import processes
from arguments import EXPERIMENTS, build_parser, overrides, parse_arguments
from config import KEYS, Config, ConfigError, load_settings
from dataset import SineLineTaskGenerator, SinusoidalTaskGenerator, TaskGenerator, stream
from experiment import Experiment, published, say
from learner import MetaLearner
from leo import LEO
from maml import MAML
from processes import Interrupted, PeerLost, Signals
from results_manager import ExperimentManager, RunError, find_launched, find_run, new_directory, read_checkpoint, read_newest
from trainer import Diverged


def sinusoid(config: Config) -> TaskGenerator:
    return SinusoidalTaskGenerator(*_ranges(config))


def sine_line(config: Config) -> TaskGenerator:
    return SineLineTaskGenerator(
        *_ranges(config),
        slope_range=(config.SLOPE_MIN, config.SLOPE_MAX),
        intercept_range=(config.INTERCEPT_MIN, config.INTERCEPT_MAX),
    )


Range = tuple[float, float]


def _ranges(config: Config) -> tuple[int, Range, float, Range, Range]:
    waves = (config.AMPLITUDE_MIN, config.AMPLITUDE_MAX), (config.PHASE_MIN, config.PHASE_MAX)
    return config.INPUT_DIM, (config.X_MIN, config.X_MAX), config.NOISE_STD, *waves


METHODS: dict[str, type[MetaLearner]] = {"maml": MAML, "leo": LEO}
TASKS: dict[str, Callable[[Config], TaskGenerator]] = {"sinusoid": sinusoid, "sine-line": sine_line}
TASK_DEFAULTS: dict[str, dict[str, Any]] = {"sine-line": {"NOISE_STD": 0.3, "SUPPORT_SAMPLES": 5}}  # as Rusu et al. 2019
PAIR_DEFAULTS: dict[tuple[str, str], dict[str, Any]] = {
    # lines reach 18, four times as far as sinusoids: without a bound, 5 points send a few test tasks off for good
    ("maml", "sine-line"): {"INNER_GRADIENT_CLIP": 300.0},
    # Noise of variance 0.09 weighs the error of Q = 10 points against the KL term with 2 * 0.09 / 10. All gradients are
    # taken in z: five noisy points say too little about 1761 weights, and samples lose what tells them apart.
    ("leo", "sine-line"): {"LEO_KL_WEIGHT": 0.02, "INNER_STEPS": 5, "EVAL_STEPS": 5},
}


def defaults(method: str, tasks: str) -> dict[str, Any]:
    """Settings that suit a method on a task family better than the shared defaults."""
    return METHODS[method].defaults | TASK_DEFAULTS.get(tasks, {}) | PAIR_DEFAULTS.get((method, tasks), {})


MAY_CHANGE_ON_RESUME = {"EPOCHS", "DEVICE", "COMPILE", "LOG_INTERVAL", "VALIDATION_INTERVAL", "CHECKPOINT_INTERVAL"} | {
    key for key in KEYS if key.startswith("EVAL_")
}


# ---- what can be done


def build(method: str, tasks: str, config: Config) -> Experiment:
    return Experiment(method, METHODS[method], tasks, TASKS[tasks](config), config)


def start(args: argparse.Namespace) -> tuple[Experiment, dict[str, Any] | None]:
    """A new experiment in a directory of its own, with settings found good before the directory is made.

    Where torchrun starts the same command again, it is the experiment that was started first, and its state.
    """
    launch = processes.launch()
    earlier = launch and find_launched(args.output or EXPERIMENTS, lambda other: processes.same_launch(launch, other))
    if earlier and (earlier / "checkpoints" / "last.pt").exists():
        return reopen(args, str(earlier))
    method, tasks = args.method or "maml", args.tasks or "sinusoid"
    given = load_settings(args.config) if args.config else {}
    experiment = build(method, tasks, Config.resolve(defaults(method, tasks), given, overrides(args)))
    if earlier:
        manager = ExperimentManager(earlier, method, sys.argv)
    else:
        output = args.output or EXPERIMENTS
        manager = ExperimentManager.create(output, method, experiment.generator.name, args.name, sys.argv)
    if launch:
        manager.save_json(".launch", launch)
    experiment.manager = manager
    manager.save_json("config.json", experiment.config.to_dict())
    experiment.save()  # from the first moment on there is something to resume
    manager.open_tensorboard(0)
    return experiment, None


def recorded(text: str, output: Path | None, best: bool = False) -> tuple[Path, dict[str, Any], str]:
    """The directory of RUN, its last (or `best`) checkpoint, and a warning where that was damaged; a file is itself."""
    directory = find_run(text, output or EXPERIMENTS)
    if Path(text).is_file():
        return directory, read_checkpoint(Path(text)), ""
    if best and (directory / "checkpoints" / "best.pt").exists():
        return directory, read_checkpoint(directory / "checkpoints" / "best.pt"), ""
    return directory, *read_newest(directory)


def rebuilt(args: argparse.Namespace, directory: Path, state: dict[str, Any]) -> Experiment:
    """The experiment that a checkpoint is of, with the changes that the command line may make to it."""
    method, tasks, settings = (state.get(name) for name in ("method", "tasks", "config"))
    if method not in list(METHODS) or tasks not in list(TASKS) or not isinstance(settings, dict):
        raise RunError(f"{directory} can't be continued (got method {method!r}, tasks {tasks!r}; expected known ones)")
    if (args.method or method) != method or (args.tasks or tasks) != tasks:
        raise RunError(f"{directory} is another kind of run (got --method or --tasks; expected {method}, {tasks})")
    changes = overrides(args)
    for key, value in changes.items():
        if key not in MAY_CHANGE_ON_RESUME and settings.get(key) != value:
            raise ConfigError(f"{key} can't change in a run that exists (got {value}; expected {settings.get(key)})")
    return build(method, tasks, Config.resolve(settings, changes))


def reopen(args: argparse.Namespace, text: str) -> tuple[Experiment, dict[str, Any]]:
    """The experiment of --resume or --evaluate, as its last checkpoint left it, and that checkpoint."""
    directory, state, warning = recorded(text, args.output)
    experiment = rebuilt(args, directory, state)
    experiment.manager = manager = ExperimentManager(directory, experiment.method, sys.argv)
    if warning:
        manager.warn(warning)
    try:
        experiment.load(state)
    except RunError:
        manager.close()
        raise
    experiment.complete = min(experiment.trainer.iteration, manager.completed()) >= experiment.config.iterations
    return experiment, state


def opened(args: argparse.Namespace) -> Experiment:
    """The experiment, in every process: the first one makes or finds the run, the others are told."""
    if processes.rank():
        told = processes.from_first(None)
        if isinstance(told, int):
            raise RunError("process 0 has said why", told)
        method, tasks, settings, state, complete = told
        experiment = build(method, tasks, Config(**settings))
        if state is not None:
            experiment.load(state)
        experiment.complete = complete
        return experiment
    try:
        experiment, state = start(args) if args.resume is None else reopen(args, args.resume)
    except BaseException as error:
        processes.from_first(error.code if isinstance(error, RunError) else 2 if isinstance(error, ConfigError) else 1)
        raise
    processes.from_first((experiment.method, experiment.tasks, experiment.config.to_dict(), state, experiment.complete))
    if state is not None and not experiment.complete:
        experiment.manager.save_json("config.json", experiment.config.to_dict())
        experiment.manager.open_tensorboard(experiment.trainer.iteration + 1)
    return experiment


def train(args: argparse.Namespace) -> tuple[int, Path | None]:
    """Train, evaluate and report, anew or from where a run is; returns the exit code and the run's directory."""
    signals, experiment = Signals(), None
    try:
        processes.join()
        with signals.held():
            experiment = opened(args)
        return run(experiment, signals), experiment.manager.directory
    except Interrupted as stop:
        if experiment:
            experiment.stop_early("interrupted", signal.Signals(stop.number).name)
        return 128 + stop.number, None
    except PeerLost as error:
        if experiment:
            experiment.save()  # a step is whole or not done, in this process too
            experiment.stop_early("failed", str(error))
        raise RunError(str(error), 1) from None
    except (OSError, MemoryError, torch.cuda.OutOfMemoryError) as error:
        if experiment:
            with suppress(OSError):
                experiment.stop_early("failed", str(error))
        raise
    finally:
        signals.at_once = False  # there is nothing left to interrupt
        if experiment:
            experiment.manager.close()


def run(experiment: Experiment, signals: Signals) -> int:
    """Train from where the experiment is, then evaluate and report; returns the exit code."""
    config, manager = experiment.config, experiment.manager
    if experiment.complete:
        say(f"already complete: {manager.shown} (raise EPOCHS to go on)")
        return 0
    steps = f"{config.iterations} steps of {config.META_BATCH_SIZE} tasks"
    say(f"{experiment.method} on {experiment.tasks}, {steps}: {manager.shown}")
    experiment.prepare()
    signals.at_once = False
    try:
        experiment.train(signals)
    except Diverged as error:
        experiment.stop_early("diverged", str(error))
        kept = f"; the last good checkpoint is {manager.shown}/checkpoints/last.pt"
        raise RunError(f"{error}, at learning rate {error.lr:.3g}{kept}", 3) from None
    processes.leave()
    signals.at_once = True
    if signals.stop:
        experiment.stop_early("interrupted", signal.Signals(signals.stop).name)
        return 128 + signals.stop
    if not processes.rank():
        experiment.finish()
    return 0


def sweep(args: argparse.Namespace) -> int:
    """A run for each seed, one after another, and then all side by side; the first that fails ends it."""
    method, output = args.method or "maml", args.output or EXPERIMENTS
    stem = f"{method.upper()}_{TASKS[args.tasks or 'sinusoid'](Config()).name}"
    names = {seed: f"{args.name}-seed{seed}" if args.name else None for seed in args.seeds}
    for name in names.values():
        if name and (output / f"{stem}_{name}").exists():
            raise RunError(f"{output / f'{stem}_{name}'} exists (got --name {args.name}; expected a new name)")
    runs: list[Path] = []
    for seed, name in names.items():
        code, directory = train(argparse.Namespace(**vars(args) | {"seed": str(seed), "name": name}))
        if code or directory is None:
            return code
        runs.append(directory)
    return side_by_side(runs, output)


def evaluate(args: argparse.Namespace) -> int:
    """Evaluate, draw and report a run's best checkpoint again."""
    experiment, _ = reopen(args, args.evaluate)
    try:
        experiment.manager.open_tensorboard(0)
        experiment.finish()
        return 0
    finally:
        experiment.manager.close()


def predict(args: argparse.Namespace) -> int:
    """Adapt a run's best checkpoint to somebody's points; reads the run, and writes beside the points or to --output."""
    try:
        directory, state, warning = recorded(args.predict, args.output, best=True)
    except RunError:
        if args.output is None:
            raise
        directory, state, warning = recorded(args.predict, None, best=True)  # --output is for what is written
    experiment = rebuilt(args, directory, state)
    config = experiment.config
    points = prediction.read_points(args.points, config.INPUT_DIM)
    files = prediction.output_files(args.output or args.points.parent, args.points, config.INPUT_DIM)
    experiment.load(state)
    x_range, rng = (config.X_MIN, config.X_MAX), stream(config.RANDOM_SEED, "samples")
    found = prediction.predict_points(experiment.trainer, points, config.EVAL_STEPS, x_range, rng)
    for line in [*([warning] if warning else []), *prediction.warnings_about(found)]:
        print(f"warning: {line}", file=sys.stderr)
    prediction.write(files, found, f"{experiment.method.upper()} on {args.points.name}: {len(points.x)} points")
    say(prediction.summary(found))
    say(f"written: {', '.join(map(str, files))}")
    return 0


def compare(args: argparse.Namespace) -> int:
    """Finished runs on the same test tasks side by side."""
    output = args.output or EXPERIMENTS
    return side_by_side([find_run(text, output) for text in args.compare], output)


def side_by_side(directories: Sequence[Path], output: Path) -> int:
    runs = [comparison.read_run(directory) for directory in directories]
    found = comparison.compare(comparison.entries(runs))
    say(comparison.text_table(found))
    directory = new_directory(output, "Comparison")
    title = f"{len(runs)} run{'' if len(runs) == 1 else 's'} on {runs[0].tasks} tasks"
    comparison.write(directory, found, title, published(runs[0].tasks, Config.resolve(runs[0].config)))
    say(f"written: {directory}")
    return 0


ACTIONS: dict[str, Callable[[argparse.Namespace], int]] = {
    "train": lambda args: train(args)[0] if args.seeds is None else sweep(args),
    "resume": lambda args: train(args)[0],
    "evaluate": evaluate,
    "predict": predict,
    "compare": compare,
}


def main(argv: list[str] | None = None) -> int:
    """Run one command line; returns the exit code. Errors become one line on stderr."""
    try:
        args = parse_arguments(build_parser(METHODS, TASKS), sys.argv[1:] if argv is None else argv)
        return ACTIONS[args.action](args)
    except KeyboardInterrupt:  # where nothing is being trained, there is nothing to save
        return 128 + signal.SIGINT
    except ConfigError as error:
        message, code = str(error), 2
    except RunError as error:
        message, code = str(error), error.code
    except (MemoryError, torch.cuda.OutOfMemoryError) as error:
        got = " ".join(str(error).split())[:200] or type(error).__name__
        message, code = f"out of memory (got {got}; expected smaller settings)", 1
    except PeerLost as error:
        message, code = str(error), 1
    except OSError as error:
        message, code = f"{error.strerror or error} (got {error.filename}; expected a disk that can be written)", 1
    if not processes.rank():  # one line, however many processes
        print("error: " + " ".join(message.split()), file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())

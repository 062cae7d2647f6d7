"""Train, evaluate, draw and report: the command line, and the wiring of everything else.

python main.py --method maml
python main.py --method leo --set SUPPORT_SAMPLES=5
"""

from __future__ import annotations

import argparse
import re
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import torch

import processes
from config import KEYS, Config, ConfigError, load_settings, parse_assignment
from dataset import SineLineTaskGenerator, SinusoidalTaskGenerator, TaskGenerator
from experiment import Experiment, say
from learner import MetaLearner
from leo import LEO
from maml import MAML
from processes import Interrupted, PeerLost, Signals
from results_manager import ExperimentManager, RunError, find_launched, find_run, read_checkpoint, read_newest
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

MAY_CHANGE_ON_RESUME = {"EPOCHS", "DEVICE", "COMPILE", "LOG_INTERVAL", "VALIDATION_INTERVAL", "CHECKPOINT_INTERVAL"} | {
    key for key in KEYS if key.startswith("EVAL_")
}


# ---- command line


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise RunError(f"{message} (expected the arguments that --help lists)")


def build_parser() -> Parser:
    parser = Parser(prog="main.py", description="Meta-learning for few-shot regression: MAML and LEO.", allow_abbrev=False)
    parser.add_argument("--method", choices=sorted(METHODS), help="default: maml")
    parser.add_argument("--tasks", choices=sorted(TASKS), help="task family; default: sinusoid")
    parser.add_argument("--config", metavar="FILE.json", type=Path, help="settings, such as a run's config.json")
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="one setting; may be repeated")
    parser.add_argument("--seed", metavar="N", help="RANDOM_SEED")
    parser.add_argument("--device", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--output", metavar="DIR", type=Path, default=Path(__file__).resolve().parent / "experiments")
    parser.add_argument("--name", help="name of the run directory instead of the time")
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--resume", metavar="RUN", help="continue a run: its directory, or latest")
    action.add_argument("--evaluate", metavar="RUN", help="evaluate and draw a run's best.pt again")
    return parser


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    args = build_parser().parse_args(argv)
    if args.name is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", args.name):
        raise RunError(
            f"--name can't be used (got {args.name[:60]!r}; expected letters, digits, '.', '_' and '-', at most 100)"
        )
    if (args.resume, args.evaluate) != (None, None) and (args.name or args.config):
        raise RunError("a run that exists has its name and settings (got --name or --config; expected neither)")
    return args


def overrides(args: argparse.Namespace) -> dict[str, Any]:
    """The settings given on the command line: named flags, and --set, which wins."""
    named = {}
    if args.seed is not None:
        named["RANDOM_SEED"] = parse_assignment(f"RANDOM_SEED={args.seed}")[1]
    if args.device is not None:
        named["DEVICE"] = args.device
    return named | dict(parse_assignment(text) for text in args.set)


# ---- what can be done


def build(method: str, tasks: str, config: Config) -> Experiment:
    return Experiment(method, METHODS[method], tasks, TASKS[tasks](config), config)


def start(args: argparse.Namespace) -> tuple[Experiment, dict[str, Any] | None]:
    """A new experiment in a directory of its own, with settings found good before the directory is made.

    Where torchrun starts the same command again, it is the experiment that was started first, and its state.
    """
    launch = processes.launch()
    earlier = launch and find_launched(args.output, lambda other: processes.same_launch(launch, other))
    if earlier and (earlier / "checkpoints" / "last.pt").exists():
        return reopen(args, str(earlier))
    method, tasks = args.method or "maml", args.tasks or "sinusoid"
    given = load_settings(args.config) if args.config else {}
    experiment = build(
        method, tasks, Config.resolve(METHODS[method].defaults, TASK_DEFAULTS.get(tasks, {}), given, overrides(args))
    )
    if earlier:
        manager = ExperimentManager(earlier, method, sys.argv)
    else:
        manager = ExperimentManager.create(args.output, method, experiment.generator.name, args.name, sys.argv)
    if launch:
        manager.save_json(".launch", launch)
    experiment.manager = manager
    manager.save_json("config.json", experiment.config.to_dict())
    experiment.save()  # from the first moment on there is something to resume
    manager.open_tensorboard(0)
    return experiment, None


def reopen(args: argparse.Namespace, text: str) -> tuple[Experiment, dict[str, Any]]:
    """The experiment of --resume or --evaluate, as its last checkpoint left it, and that checkpoint."""
    directory = find_run(text, args.output)
    state, warning = (read_checkpoint(Path(text)), "") if Path(text).is_file() else read_newest(directory)
    method, tasks, settings = (state.get(name) for name in ("method", "tasks", "config"))
    if method not in METHODS or tasks not in TASKS or not isinstance(settings, dict):
        raise RunError(f"{directory} can't be continued (got method {method!r}, tasks {tasks!r}; expected known ones)")
    if (args.method or method) != method or (args.tasks or tasks) != tasks:
        raise RunError(f"{directory} is another kind of run (got --method or --tasks; expected {method}, {tasks})")
    changes = overrides(args)
    for key, value in changes.items():
        if key not in MAY_CHANGE_ON_RESUME and settings.get(key) != value:
            raise ConfigError(f"{key} can't change in a run that exists (got {value}; expected {settings.get(key)})")
    experiment = build(method, tasks, Config.resolve(settings, changes))
    experiment.manager = manager = ExperimentManager(directory, method, sys.argv)
    if warning:
        manager.warn(warning)
    try:
        experiment.load(state)
    except RunError:
        manager.close()
        raise
    experiment.complete = experiment.trainer.iteration >= experiment.config.iterations and manager.status() == "complete"
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


def train(args: argparse.Namespace) -> int:
    signals, experiment = Signals(), None
    try:
        processes.join()
        experiment = opened(args)
        return run(experiment, signals)
    except Interrupted as stop:
        if experiment:
            experiment.stop_early("interrupted", signal.Signals(stop.number).name)
        return 128 + stop.number
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
    if signals.stop:
        experiment.stop_early("interrupted", signal.Signals(signals.stop).name)
        return 128 + signals.stop
    signals.at_once = True
    if not processes.rank():
        experiment.finish()
    return 0


def evaluate(args: argparse.Namespace) -> int:
    experiment, _ = reopen(args, args.evaluate)
    try:
        experiment.manager.open_tensorboard(0)
        experiment.finish()
        return 0
    finally:
        experiment.manager.close()


def main(argv: list[str] | None = None) -> int:
    """Run one command line; returns the exit code. Errors become one line on stderr."""
    try:
        args = parse_arguments(sys.argv[1:] if argv is None else argv)
        return train(args) if args.evaluate is None else evaluate(args)
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

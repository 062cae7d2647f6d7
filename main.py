"""Train, evaluate, draw and report: the command line, and the wiring of everything else.

python main.py --method maml
python main.py --method leo --set SUPPORT_SAMPLES=5
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import psutil
import torch
from tqdm import tqdm

import visualization as figures
from config import KEYS, Config, ConfigError, load_settings, parse_assignment
from dataset import SinusoidalTaskGenerator, Task, TaskDataset, TaskGenerator, held_out, stream
from learner import MetaLearner
from leo import LEO
from maml import MAML
from results_manager import ExperimentManager, RunError, find_run, read_checkpoint
from trainer import Diverged, Trainer


def sinusoid(config: Config) -> TaskGenerator:
    return SinusoidalTaskGenerator(
        config.INPUT_DIM,
        (config.X_MIN, config.X_MAX),
        config.NOISE_STD,
        (config.AMPLITUDE_MIN, config.AMPLITUDE_MAX),
        (config.PHASE_MIN, config.PHASE_MAX),
    )


METHODS: dict[str, type[MetaLearner]] = {"maml": MAML, "leo": LEO}
TASKS: dict[str, Callable[[Config], TaskGenerator]] = {"sinusoid": sinusoid}

# Finn et al. 2017, appendix C.1: shots -> gradients -> mean squared error of MAML, on the default sinusoids
PUBLISHED = {5: {1: 0.67, 5: 0.38, 10: 0.35}}
PUBLISHED_FOR = ("INPUT_DIM", "AMPLITUDE_MIN", "AMPLITUDE_MAX", "PHASE_MIN", "PHASE_MAX", "X_MIN", "X_MAX", "NOISE_STD")
DIVERGED_ABOVE = 100.0  # a test task whose last error is above this, or not finite, counts as diverged
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
    if (args.resume or args.evaluate) and (args.name or args.config):
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


def resolve_device(name: str) -> torch.device:
    available = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return torch.device("cuda" if available else "cpu")
    index = int(name.partition(":")[2] or 0)
    if name != "cpu" and index >= available:
        raise ConfigError(f"DEVICE can't be used (got {name}; expected cpu, or one of {available} CUDA devices)")
    return torch.device(name)


def check_memory(config: Config) -> None:
    """Refuse settings whose tensors can't fit this machine, before they take it down. A lower bound."""
    hidden, points = config.HIDDEN_DIM, config.SUPPORT_SAMPLES + config.QUERY_SAMPLES
    weights = (config.INPUT_DIM + hidden + 3) * hidden
    at_once = min(config.TASK_CHUNK or config.META_BATCH_SIZE, config.META_BATCH_SIZE)
    numbers = weights * (6 + at_once) + at_once * points * hidden * (2 + config.INNER_STEPS)
    numbers += config.META_BATCH_SIZE * points * (config.INPUT_DIM + 1) * 2 + config.NUM_TASKS * 8
    total = psutil.virtual_memory().total
    if 4 * numbers > total:
        raise ConfigError(
            f"these settings do not fit in memory (got HIDDEN_DIM={hidden}, META_BATCH_SIZE={config.META_BATCH_SIZE}, "
            f"{4 * numbers / 2**30:.0f} GiB or more; expected at most {total / 2**30:.0f} GiB)"
        )


def say(text: str) -> None:
    """Print a line; a reader that has left (`| head -1`) does not end the run."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


# ---- a run


class Signals:
    """SIGINT and SIGTERM ask the loop to save and leave at the next step; a second SIGINT quits at once."""

    def __init__(self) -> None:
        self.stop = 0  # number of the signal that asked to stop
        self.save = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._ask_to_stop)
        signal.signal(signal.SIGUSR1, self._ask_to_save)

    def _ask_to_stop(self, number: int, _: Any) -> None:
        if self.stop and number == signal.SIGINT:
            os._exit(130)
        self.stop = number

    def _ask_to_save(self, _number: int, _: Any) -> None:
        self.save = True


class Run:
    """One training run: what is trained, where it is recorded, and how far it is."""

    def __init__(self, method: str, tasks: str, config: Config):
        self.method, self.tasks, self.config = method, tasks, config
        self.generator = TASKS[tasks](config)
        device = resolve_device(config.DEVICE)
        check_memory(config)
        seed = config.RANDOM_SEED
        self.dataset = TaskDataset(
            self.generator, config.NUM_TASKS, config.META_BATCH_SIZE, config.SUPPORT_SAMPLES, config.QUERY_SAMPLES, seed
        )
        self.trainer = Trainer(
            METHODS[method].from_config(config, stream(seed, "weights")),
            self.dataset,
            iterations=config.iterations,
            meta_lr=config.META_LEARNING_RATE,
            schedule=config.META_SCHEDULE,
            clip=config.META_GRADIENT_CLIP,
            chunk=config.TASK_CHUNK,
            device=device,
            compile_mode=config.COMPILE,
        )
        self.best = float("inf")  # lowest validation error after the last gradient
        self.train_seconds = 0.0
        self.manager: ExperimentManager

    def held_out(self, purpose: str, shots: int) -> tuple[np.ndarray, Task]:
        config = self.config
        count = config.VALIDATION_TASKS if purpose == "validation" else config.EVAL_TASKS
        return held_out(self.generator, count, shots, config.EVAL_QUERY_SAMPLES, purpose)

    # ---- saving and loading

    def save(self, best: bool = False) -> None:
        state = {"tasks": self.tasks, "config": self.config.to_dict(), "best": self.best, "train_seconds": self.train_seconds}
        self.manager.save_checkpoint(self.trainer.state() | state, best=best)

    def load(self, state: dict[str, Any]) -> None:
        try:
            self.trainer.load(state)
            self.best, self.train_seconds = float(state["best"]), float(state["train_seconds"])
            self.manager.history = {name: list(state["history"][name]) for name in ("train", "validation")}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise RunError(f"the checkpoint does not fit this run (got {error}; expected one of its own)") from None

    def metrics(self, done: int, evaluation: dict[str, Any] | None) -> dict[str, Any]:
        """The contents of metrics.json after `done` steps."""
        performance = {
            "iterations": done,
            "train_seconds": self.train_seconds,
            "ms_per_iteration": 1000 * self.train_seconds / max(done, 1),
            "compile_seconds": self.trainer.compile_seconds,
        }
        record = {"schema_version": 1, "method": self.method} | self.manager.history
        return record | {"evaluation": evaluation, "performance": performance}

    # ---- training

    def train(self, signals: Signals) -> None:
        """Train to the end or to a signal; log, validate and checkpoint on the way."""
        config, trainer, manager = self.config, self.trainer, self.manager
        total, validation = config.iterations, self.held_out("validation", config.SUPPORT_SAMPLES)[1]
        bar = tqdm(total=total, initial=trainer.iteration, unit="step", disable=None, dynamic_ncols=True)
        began = last_line = time.perf_counter()
        before, first, error = self.train_seconds, trainer.iteration, float("nan")
        try:
            for iteration, metrics in trainer.train():
                last = iteration == total
                if iteration % config.LOG_INTERVAL == 0 or last:
                    values = dict(zip(trainer.names, metrics.tolist(), strict=True))  # waits for the device
                    now = time.perf_counter()
                    speed = (iteration - first) * config.META_BATCH_SIZE / (now - began)
                    epoch = -(-iteration * config.META_BATCH_SIZE // config.NUM_TASKS)
                    manager.log_training(iteration, epoch, values, trainer.learning_rate(iteration - 1), speed)
                    shown = f"loss {values['meta_loss']:.4f}, validation {error:.4f}, {speed:,.0f} tasks/s"
                    bar.set_postfix_str(shown, refresh=False)
                    bar.update(iteration - bar.n)
                    if now - last_line > 5 or last:
                        last_line = now
                        manager.log(f"step {iteration} of {total}: {shown}")
                        if bar.disable:
                            say(f"step {iteration} of {total}: {shown}")
                improved = False
                if iteration % config.VALIDATION_INTERVAL == 0 or last:
                    errors = trainer.evaluate(validation, config.EVAL_STEPS).mean(0).tolist()
                    manager.log_validation(iteration, errors)
                    error = errors[-1]
                    improved = error < self.best
                    self.best = min(self.best, error)
                self.train_seconds = before + time.perf_counter() - began
                if improved or last or iteration % config.CHECKPOINT_INTERVAL == 0 or signals.stop or signals.save:
                    signals.save = False
                    self.save(best=improved)
                if signals.stop:
                    return
        finally:
            bar.close()

    def evaluate(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Judge the best checkpoint on the test tasks: the record for metrics.json, and arrays for figures."""
        config = self.config
        arrays: dict[str, np.ndarray] = {}
        shots, diverged = {}, np.zeros(config.EVAL_TASKS, bool)
        for count in config.EVAL_SHOTS:
            arrays["test_params"], tasks = self.held_out("test", count)
            errors = self.trainer.evaluate(tasks, config.EVAL_STEPS)
            arrays[f"test_errors_{count}_shot"] = errors
            shots[str(count)] = figures.mean_and_interval(errors)
            diverged |= ~np.isfinite(errors).all(1) | ~(errors[:, -1] <= DIVERGED_ABOVE)
        summary = {"num_tasks": config.EVAL_TASKS, "query_samples": config.EVAL_QUERY_SAMPLES}
        return summary | {"diverged": int(diverged.sum()), "shots": shots}, arrays


def published(config: Config) -> figures.Reference:
    """Published figures, where the tasks are those they were measured on."""
    return PUBLISHED if all(getattr(config, key) == getattr(Config(), key) for key in PUBLISHED_FOR) else {}


def add_figure_arrays(run: Run, arrays: dict[str, np.ndarray], shots: int) -> None:
    """Complete the test errors in `arrays` to all that the figures show: README's table of data.npz."""
    config, history = run.config, run.manager.history
    arrays["train_iteration"] = np.array([record["iteration"] for record in history["train"]], np.int64)
    arrays["train_query_mse"] = np.array([record["query_mse"] for record in history["train"]], float)
    arrays["validation_iteration"] = np.array([record["iteration"] for record in history["validation"]], np.int64)
    arrays["validation_mse"] = np.array([record["mse"] for record in history["validation"]], float)
    if config.INPUT_DIM == 1:
        rng = stream(0, "figures")
        params = run.generator.draw(6, rng)
        support = run.generator.points(params, shots, rng)
        grid = np.linspace(config.X_MIN, config.X_MAX, 201, dtype=np.float32)
        x = np.repeat(grid[None, :, None], len(params), axis=0)
        arrays["grid"], arrays["grid_truth"] = grid, run.generator.curve(params, x)[..., 0]
        arrays["grid_support_x"], arrays["grid_support_y"] = support.x[..., 0], support.y[..., 0]
        arrays["grid_predictions"] = run.trainer.predict(support, x, config.EVAL_STEPS)[0]
    _, tasks = run.held_out("test", shots)
    codes = run.trainer.predict(tasks.support, tasks.query.x[:, :1], 0)[1]
    if codes.shape[1] >= 2:
        arrays["codes"] = codes


def finish(run: Run) -> None:
    """Evaluate the best checkpoint, draw, record and report."""
    manager, config, done = run.manager, run.config, run.trainer.iteration
    best = manager.directory / "checkpoints" / "best.pt"
    if best.exists():
        run.trainer.load(read_checkpoint(best))
    evaluation, arrays = run.evaluate()
    shots = config.SUPPORT_SAMPLES if config.SUPPORT_SAMPLES in config.EVAL_SHOTS else config.EVAL_SHOTS[0]
    add_figure_arrays(run, arrays, shots)
    title = f"{run.method.upper()}, {run.generator.name}"
    for name, figure in figures.run_figures(arrays, shots, run.generator.param_names, published(config), title).items():
        manager.save_figure(name, figure, done)
    manager.save_arrays(arrays)
    metrics = run.metrics(done, evaluation)
    manager.log_evaluation(evaluation["shots"], config.to_dict(), metrics["performance"])
    manager.save_json("metrics.json", metrics)
    table = figures.results_table(evaluation, published(config))
    say(table)
    for line in table.splitlines():
        manager.log(line)
    report(run, "complete", {"results": evaluation, "timing": metrics["performance"]})


def report(run: Run, status: str, contents: dict[str, Any]) -> None:
    contents = {"config": run.config.to_dict(), "tasks": run.tasks, "compilation": run.trainer.compile_note} | contents
    run.manager.save_report(status, contents)
    run.manager.close()
    say(f"{status}: {run.manager.directory}")


def start(args: argparse.Namespace) -> Run:
    """A new run in a directory of its own, with settings found good before the directory is made."""
    method, tasks = args.method or "maml", args.tasks or "sinusoid"
    given = load_settings(args.config) if args.config else {}
    run = Run(method, tasks, Config.resolve(METHODS[method].defaults, given, overrides(args)))
    run.manager = ExperimentManager.create(args.output, method, run.generator.name, args.name, sys.argv)
    run.manager.save_json("config.json", run.config.to_dict())
    run.manager.open_tensorboard(0)
    return run


def reopen(args: argparse.Namespace, text: str) -> tuple[Run, dict[str, Any]]:
    """The run of --resume or --evaluate, and the checkpoint to go on from."""
    directory = find_run(text, args.output)
    state = read_checkpoint(directory / "checkpoints" / "last.pt")
    if (args.method or state["method"]) != state["method"] or (args.tasks or state["tasks"]) != state["tasks"]:
        raise RunError(
            f"{directory} is another kind of run (got --method or --tasks; expected {state['method']}, {state['tasks']})"
        )
    changes = overrides(args)
    for key, value in changes.items():
        if key not in MAY_CHANGE_ON_RESUME and state["config"].get(key) != value:
            raise ConfigError(f"{key} can't change in a run that exists (got {value}; expected {state['config'].get(key)})")
    run = Run(state["method"], state["tasks"], Config.resolve(state["config"], changes))
    run.manager = ExperimentManager(directory, state["method"], sys.argv)
    return run, state


def train(args: argparse.Namespace) -> int:
    signals = Signals()
    if args.resume:
        run, state = reopen(args, args.resume)
        run.load(state)
        if run.trainer.iteration >= run.config.iterations:
            say(f"already complete: {run.manager.directory} (raise EPOCHS to go on)")
            return 0
        run.manager.save_json("config.json", run.config.to_dict())
        run.manager.open_tensorboard(run.trainer.iteration + 1)
    else:
        run = start(args)
    steps = f"{run.config.iterations} steps of {run.config.META_BATCH_SIZE} tasks"
    say(f"{run.method} on {run.tasks}, {steps}: {run.manager.directory}")
    if run.trainer.compiled:
        say("compiling the meta-step (10 to 90 s the first time, a few from the cache) ...")
    note = run.trainer.prepare()
    say(note)
    run.manager.log(note)
    try:
        run.train(signals)
    except Diverged as error:
        last = run.manager.directory / "checkpoints" / "last.pt"
        run.manager.save_json("metrics.json", run.metrics(run.trainer.iteration, None))
        report(run, "diverged", {"reason": str(error)})
        kept = f"; the last good checkpoint is {last}" if last.exists() else ""
        raise RunError(f"{error}, at learning rate {error.lr:.3g}{kept}", 3) from None
    if signals.stop:
        run.manager.save_json("metrics.json", run.metrics(run.trainer.iteration, None))
        report(run, "interrupted", {"reason": signal.Signals(signals.stop).name, "iteration": run.trainer.iteration})
        return 128 + signals.stop
    finish(run)
    return 0


def evaluate(args: argparse.Namespace) -> int:
    run, state = reopen(args, args.evaluate)
    run.load(state)
    run.trainer.prepare()
    run.manager.open_tensorboard(0)
    finish(run)
    return 0


def main(argv: list[str] | None = None) -> int:
    """Run one command line; returns the exit code. Errors become one line on stderr."""
    try:
        args = parse_arguments(sys.argv[1:] if argv is None else argv)
        return evaluate(args) if args.evaluate else train(args)
    except ConfigError as error:
        message, code = str(error), 2
    except RunError as error:
        message, code = str(error), error.code
    except (MemoryError, torch.cuda.OutOfMemoryError) as error:
        message, code = f"out of memory (got {str(error).splitlines()[0][:200]}; expected smaller settings)", 1
    except OSError as error:
        message, code = f"{error.strerror or error} (got {error.filename}; expected a disk that can be written)", 1
    print("error: " + " ".join(message.split()), file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())

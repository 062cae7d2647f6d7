"""One experiment from its settings to its report: what is trained, where it is recorded, and how far it is.

This file decides when to log, validate, checkpoint and draw. It refuses to know any method by name, and the
command line: `main.py` hands it both.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any

import numpy as np
import psutil
import torch
from tqdm import tqdm

import visualization as figures
from comparison_figures import sample_bundle
from config import Config, ConfigError
from dataset import Points, Task, TaskDataset, TaskGenerator, held_out, stream
from learner import MetaLearner
from processes import Signals, agreed, rank, wait_until_ready
from results_manager import RunError, Spectator, read_checkpoint
from trainer import Trainer, tasks_at_once

# Finn et al. 2017, appendix C.1: shots -> gradients -> mean squared error of their method, on the default sinusoids
PUBLISHED = {5: {1: 0.67, 5: 0.38, 10: 0.35}}
PUBLISHED_TASKS = "sinusoid"
PUBLISHED_FOR = ("INPUT_DIM", "AMPLITUDE_MIN", "AMPLITUDE_MAX", "PHASE_MIN", "PHASE_MAX", "X_MIN", "X_MAX", "NOISE_STD")
SAMPLES = 100  # of a stochastic method, for each function of a figure
DIVERGED_ABOVE = 100.0  # a test task whose last error is above this, or not finite, counts as diverged


def resolve_device(name: str) -> torch.device:
    available = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return torch.device("cuda" if available else "cpu")
    index = int(name.partition(":")[2] or 0)
    if name != "cpu" and index >= available:
        raise ConfigError(f"DEVICE can't be used (got {name}; expected cpu, or one of {available} CUDA devices)")
    return torch.device(name)


def check_memory(config: Config, learner: type[MetaLearner]) -> None:
    """Refuse settings whose tensors can't fit this machine, before they take it down. A lower bound."""
    hidden, points = config.HIDDEN_DIM, config.SUPPORT_SAMPLES + config.QUERY_SAMPLES
    weights = (config.INPUT_DIM + hidden + 3) * hidden
    share = config.META_BATCH_SIZE
    at_once = min(tasks_at_once(config.TASK_CHUNK, share, points * weights, resolve_device(config.DEVICE)), share)
    numbers = weights * (6 * learner.numbers_per_weight(config) + at_once) + at_once * points * hidden * (
        2 + config.INNER_STEPS
    )
    numbers += config.META_BATCH_SIZE * points * (config.INPUT_DIM + 1) * 2 + config.NUM_TASKS * 8
    total = psutil.virtual_memory().total
    if 4 * numbers > total:
        raise ConfigError(
            f"these settings do not fit in memory (got HIDDEN_DIM={hidden}, META_BATCH_SIZE={config.META_BATCH_SIZE}, "
            f"{4 * numbers / 2**30:.0f} GiB or more; expected at most {total / 2**30:.0f} GiB)"
        )


def say(text: str) -> None:
    """Print a line, in one process of a run; a reader that has left (`| head -1`) does not end the run."""
    if rank():
        return
    try:
        print(text, flush=True)
    except UnicodeEncodeError:  # a terminal without the letters of some folder's name
        print(text.encode("ascii", "backslashreplace").decode(), flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Experiment:
    """One training run. Settings that can't be used raise `ConfigError` before anything is written.

    Args:
        method, tasks: names, for the record.
        learner: the method's class; generator: the task family.
    """

    def __init__(self, method: str, learner: type[MetaLearner], tasks: str, generator: TaskGenerator, config: Config):
        self.method, self.tasks, self.generator, self.config = method, tasks, generator, config
        device = resolve_device(config.DEVICE)
        check_memory(config, learner)
        seed = config.RANDOM_SEED
        self.dataset = TaskDataset(
            generator, config.NUM_TASKS, config.META_BATCH_SIZE, config.SUPPORT_SAMPLES, config.QUERY_SAMPLES, seed
        )
        self.trainer = Trainer(
            learner.from_config(config, stream(seed, "weights")),
            self.dataset,
            iterations=config.iterations,
            meta_lr=config.META_LEARNING_RATE,
            schedule=config.META_SCHEDULE,
            clip=config.META_GRADIENT_CLIP,
            chunk=config.TASK_CHUNK,
            device=device,
            compile_mode=config.COMPILE,
        )
        self.manager: Any = Spectator()  # an ExperimentManager in the one process that writes
        self.complete = False  # trained to its end, evaluated and reported
        self.best = float("inf")  # lowest validation error after the last gradient
        self.new_best: dict[str, Any] | None = None  # its checkpoint, until it is written: a durable write takes its time
        self.train_seconds = 0.0

    def held_out(self, purpose: str, shots: int) -> tuple[np.ndarray, Task]:
        config = self.config
        count = config.VALIDATION_TASKS if purpose == "validation" else config.EVAL_TASKS
        return held_out(self.generator, count, shots, config.EVAL_QUERY_SAMPLES, purpose)

    # ---- saving and loading

    def snapshot(self) -> dict[str, Any]:
        """All that a checkpoint holds, as it is now: later steps do not change it. Raises `Diverged`."""
        about = {"tasks": self.tasks, "config": self.config.to_dict(), "best": self.best, "train_seconds": self.train_seconds}
        history = {name: list(records) for name, records in self.manager.history.items()}
        return self.trainer.state() | about | {"history": history}

    def save(self) -> None:
        """Write where training is, and the best so far where that is new since the last save."""
        if rank():
            return self.trainer.check()
        self.manager.save_checkpoint(self.snapshot(), best=self.new_best)
        self.new_best = None

    def load(self, state: dict[str, Any]) -> None:
        try:
            self.trainer.load(state)
            self.best, self.train_seconds = float(state["best"]), float(state["train_seconds"])
            history = {name: list(state["history"][name]) for name in ("train", "validation")}
            history_arrays(history)  # raises where the records are not ours
            self.manager.history = history
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
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

    def prepare(self) -> None:
        """Compile where that was decided, and say what will run."""
        if self.trainer.compiled:
            say("compiling the meta-step (10 to 90 s the first time, a few from the cache) ...")
        note = self.trainer.prepare()
        say(note)
        self.manager.log(note)
        wait_until_ready()

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
                if iteration % config.VALIDATION_INTERVAL == 0 or last:
                    trainer.check()  # in every process: all stop at a divergence together
                    if not rank():
                        error = self.validate(validation, iteration)
                self.train_seconds = before + time.perf_counter() - began
                stop, save = agreed([signals.stop, signals.save])
                if last or iteration % config.CHECKPOINT_INTERVAL == 0 or stop or save:
                    signals.save = 0
                    self.save()
                if stop:
                    signals.stop = stop
                    return
        finally:
            bar.close()

    def validate(self, tasks: Task, iteration: int) -> float:
        """The mean validation error after the last gradient: logged, sometimes shown as a picture, remembered if best."""
        errors = self.trainer.evaluate(tasks, self.config.EVAL_STEPS).mean(0).tolist()
        self.manager.log_validation(iteration, errors)
        count = iteration // self.config.VALIDATION_INTERVAL
        if self.config.INPUT_DIM == 1 and count & (count - 1) == 0 and iteration < self.config.iterations:
            # at the first, second, fourth, eighth, ...: pictures take time
            self.manager.attempt("figures", lambda: self.show_progress(iteration))
        if errors[-1] < self.best:
            self.best = errors[-1]
            self.new_best = self.snapshot()
        return errors[-1]

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

    def add_figure_arrays(self, arrays: dict[str, np.ndarray], shots: int) -> None:
        """Complete the test errors in `arrays` to all that the figures show: README's table of data.npz."""
        config = self.config
        arrays |= history_arrays(self.manager.history)
        if config.INPUT_DIM == 1:
            support, x = self.add_example_arrays(arrays, shots)
            if self.trainer.learner.noise_dim:
                rng = stream(config.RANDOM_SEED, "samples")
                arrays["grid_samples"] = self.trainer.sample(support, x, config.EVAL_STEPS, rng, SAMPLES)
        _, tasks = self.held_out("test", shots)
        codes = self.trainer.predict(tasks.support, tasks.query.x[:, :1], 0)[1]
        if codes.shape[1] >= 2:
            arrays["codes"] = codes

    def add_example_arrays(self, arrays: dict[str, np.ndarray], shots: int) -> tuple[Points, np.ndarray]:
        """Six functions, and the network adapted to them, on a grid; returns their support and the grid [6, 201, 1]."""
        config, rng = self.config, stream(0, "figures")
        params = self.generator.draw(6, rng)
        support = self.generator.points(params, shots, rng)
        grid = np.linspace(config.X_MIN, config.X_MAX, 201, dtype=np.float32)
        x = np.repeat(grid[None, :, None], len(params), axis=0)
        arrays["grid"], arrays["grid_truth"] = grid, self.generator.curve(params, x)[..., 0]
        arrays["grid_support_x"], arrays["grid_support_y"] = support.x[..., 0], support.y[..., 0]
        arrays["grid_predictions"] = self.trainer.predict(support, x, config.EVAL_STEPS)[0]
        return support, x

    def show_progress(self, iteration: int) -> None:
        """The example functions as they are fitted now, small, into TensorBoard."""
        arrays: dict[str, np.ndarray] = {}
        self.add_example_arrays(arrays, self.config.SUPPORT_SAMPLES)
        figure = figures.example_figure(arrays, f"after {iteration} outer steps", most=3)
        self.manager.log_figure("training/task_predictions", figure, iteration)

    # ---- the end

    def finish(self) -> None:
        """Evaluate the best checkpoint, draw, record and report."""
        manager, config, done = self.manager, self.config, self.trainer.iteration
        best = manager.directory / "checkpoints" / "best.pt"
        if best.exists():
            try:
                self.trainer.load(read_checkpoint(best))
            except RunError as error:
                manager.warn(f"{error}; judging the last one instead")
        evaluation, arrays = self.evaluate()
        shots = config.SUPPORT_SAMPLES if config.SUPPORT_SAMPLES in config.EVAL_SHOTS else config.EVAL_SHOTS[0]
        self.add_figure_arrays(arrays, shots)
        manager.attempt("plots", lambda: self.draw(arrays, shots, done))
        manager.save_arrays(arrays)
        metrics = self.metrics(done, evaluation)
        manager.log_evaluation(evaluation["shots"], config.to_dict(), metrics["performance"])
        manager.save_json("metrics.json", metrics)
        table = figures.results_table(evaluation, published(self.tasks, config))
        say(table)
        for line in table.splitlines():
            manager.log(line)
        self.report("complete", {"results": evaluation, "timing": metrics["performance"]})

    def draw(self, arrays: dict[str, np.ndarray], shots: int, done: int) -> None:
        """The figures of a run of `done` steps, from the arrays behind them."""
        title = f"{self.method.upper()}, {self.generator.name}"
        reference = published(self.tasks, self.config)
        drawn = figures.run_figures(arrays, shots, self.generator.param_names, reference, title)
        if "grid_samples" in arrays:
            about = f"{title}: {SAMPLES} samples each, {shots} support points"
            points = arrays["grid_support_x"], arrays["grid_support_y"]
            drawn["samples"] = sample_bundle(arrays["grid"], *points, arrays["grid_samples"], about, arrays["grid_truth"])
        for name, figure in drawn.items():
            self.manager.save_figure(name, figure, done)

    def stop_early(self, status: str, reason: str) -> None:
        """Record what there is of a run that did not come to its end."""
        metrics = self.metrics(self.trainer.iteration, None)
        self.manager.save_json("metrics.json", metrics)
        self.report(status, {"reason": reason, "timing": metrics["performance"]})

    def report(self, status: str, contents: dict[str, Any]) -> None:
        basis = {"config": self.config.to_dict(), "tasks": self.tasks, "processes": self.trainer.world}
        self.manager.save_report(status, basis | {"compilation": self.trainer.compile_note} | contents)
        say(f"{status}: {self.manager.shown}")


def history_arrays(history: dict[str, list[Any]]) -> dict[str, np.ndarray]:
    """The curves of training; raises what Python raises where a record is not one."""
    return {
        "train_iteration": np.array([record["iteration"] for record in history["train"]], np.int64),
        "train_query_mse": np.array([record["query_mse"] for record in history["train"]], float),
        "validation_iteration": np.array([record["iteration"] for record in history["validation"]], np.int64),
        "validation_mse": np.array([record["mse"] for record in history["validation"]], float),
    }


def published(tasks: str, config: Config) -> figures.Reference:
    """Published figures, where the tasks are those they were measured on."""
    usual = all(getattr(config, key) == getattr(Config(), key) for key in PUBLISHED_FOR)
    return PUBLISHED if tasks == PUBLISHED_TASKS and usual else {}

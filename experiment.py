"""One run from its settings to its last step: train, log, validate, checkpoint, report.

Decides when to log, validate, checkpoint and draw. Independent of any method by name, and of the command line.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import psutil
from tqdm import tqdm

from analysis.figures import example_figure
from config import Config, ConfigError
from dataset import HeldOut, Points, TaskDataset, TaskGenerator, stream
from evaluation import EVAL_CHUNK, held_out_errors, predict
from learner import MetaLearner
from results_manager import NullManager
from runtime.errors import RunError
from runtime.host import resolve_device
from runtime.parallel import tasks_at_once
from runtime.processes import Signals, max_over_processes, print_once, rank, wait_for_peers
from trainer import Trainer


def check_memory(config: Config, learner: type[MetaLearner]) -> None:
    """Refuse settings whose tensors can't fit this machine, before they take it down. A lower bound."""
    hidden, points, share = config.HIDDEN_DIM, config.SUPPORT_SAMPLES + config.QUERY_SAMPLES, config.META_BATCH_SIZE
    weights = (config.INPUT_DIM + hidden + 3) * hidden
    at_once = min(tasks_at_once(config.TASK_CHUNK, share, points * weights, resolve_device(config.DEVICE)), share)
    groups = -(-share // at_once)
    training = weights * (learner.numbers_per_weight(config) * (5 + groups) + at_once)
    training += at_once * points * hidden * (2 + config.INNER_STEPS)
    training += at_once * learner.numbers_per_task(config, config.SUPPORT_SAMPLES)
    training += share * points * (config.INPUT_DIM + 1) * 2 + config.NUM_TASKS * (config.INPUT_DIM + 7)
    tasks, shots = max(config.EVAL_TASKS, config.VALIDATION_TASKS), max(config.EVAL_SHOTS)
    judging = min(EVAL_CHUNK, config.EVAL_TASKS) * (weights + learner.numbers_per_task(config, shots))
    judging += tasks * config.EVAL_QUERY_SAMPLES * (config.INPUT_DIM + 4 * (config.EVAL_STEPS + 1))
    total = psutil.virtual_memory().total
    sizes_of_training = "HIDDEN_DIM META_BATCH_SIZE SUPPORT_SAMPLES NUM_TASKS"
    sizes_of_judging = "HIDDEN_DIM VALIDATION_TASKS EVAL_TASKS EVAL_SHOTS EVAL_QUERY_SAMPLES EVAL_STEPS"
    for keys, numbers in ((sizes_of_training, training), (sizes_of_judging, judging)):
        if 4 * numbers > total:
            got = ", ".join(f"{key}={getattr(config, key)}" for key in keys.split())
            sizes = f"{4 * numbers / 2**30:.0f} GiB or more; expected at most {total / 2**30:.0f} GiB"
            raise ConfigError(f"these settings do not fit in memory (got {got}, {sizes})")


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
        for split, shots in [("validation", config.SUPPORT_SAMPLES), *(("test", shots) for shots in config.EVAL_SHOTS)]:
            generator.split(split, 2, 0, shots)  # raises where there are too few of them
        self.record = dict(generator.record())  # of the tasks
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
            decay=config.META_AVERAGE,
            chunk=config.TASK_CHUNK,
            device=device,
            compile_mode=config.COMPILE,
        )
        self.learner = self.trainer.learner
        self.manager: Any = NullManager()  # an ExperimentManager in the one process that writes
        self.complete = False  # trained to its end, evaluated and reported
        self.best = float("inf")  # lowest validation error after the last gradient
        self.new_best: dict[str, Any] | None = None  # its checkpoint, until it is written: a durable write takes its time
        self.train_seconds = 0.0

    def held_out(self, split: str, shots: int) -> HeldOut:
        """The tasks of the validation or test split."""
        config = self.config
        count = config.VALIDATION_TASKS if split == "validation" else config.EVAL_TASKS
        return self.generator.held_out(split, count, shots, config.EVAL_QUERY_SAMPLES)

    # ---- saving and loading

    def snapshot(self) -> dict[str, Any]:
        """All that a checkpoint holds, as it is now: later steps do not change it. Raises `Diverged`."""
        about = {"tasks": self.tasks, "config": self.config.to_dict(), "best": self.best, "train_seconds": self.train_seconds}
        about |= {"data": self.record} if self.record else {}
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
            kept, digests = state.get("data", {}), ("points_sha256", "splits_sha256")
            if any(kept.get(name) != self.record.get(name) for name in digests):
                raise ValueError("measurements or splits that changed since")
            self.record = dict(kept)
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
            print_once("compiling the meta-step (10 to 90 s the first time, a few from the cache) ...")
        note = self.trainer.prepare()
        (self.manager.warn if self.trainer.compile_trouble else print_once)(note)
        self.manager.log(note)
        wait_for_peers()

    def train(self, signals: Signals) -> None:
        """Train to the end or to a signal; log, validate and checkpoint on the way."""
        config, trainer = self.config, self.trainer
        total, validation = config.iterations, self.held_out("validation", config.SUPPORT_SAMPLES)
        progress = Progress(self, total)
        before = self.train_seconds
        try:
            for iteration, metrics in trainer.train():
                last = iteration == total
                if iteration % config.LOG_INTERVAL == 0 or last:
                    progress.log(iteration, metrics.tolist())  # waits for the device
                if iteration % config.VALIDATION_INTERVAL == 0 or last:
                    trainer.check()  # in every process: all stop at a divergence together
                    if not rank():
                        with trainer.step.averaged():
                            progress.validation_error = self.validate(validation, iteration)
                self.train_seconds = before + progress.seconds()
                stop, save = max_over_processes([signals.stop, signals.save])
                if last or iteration % config.CHECKPOINT_INTERVAL == 0 or stop or save:
                    signals.save = 0
                    self.save()
                if stop:
                    signals.stop = stop
                    return
        finally:
            progress.bar.close()

    def validate(self, tasks: HeldOut, iteration: int) -> float:
        """The mean validation error after the last gradient: logged, sometimes shown as a picture, remembered if best.

        It is that of the averaged meta-parameters where an average is kept, and so are the picture and the best.
        """
        means = held_out_errors(self.learner, tasks, self.config.EVAL_STEPS)[tasks.judged].mean(0).tolist()
        self.manager.log_validation(iteration, means)
        count = iteration // self.config.VALIDATION_INTERVAL
        if self.config.INPUT_DIM == 1 and count & (count - 1) == 0 and iteration < self.config.iterations:
            # at the first, second, fourth, eighth, ...: pictures take time
            self.manager.attempt("figures", lambda: self.show_progress(iteration))
        if means[-1] < self.best:
            self.best = means[-1]
            self.new_best = self.snapshot()
        return means[-1]

    def example_arrays(self, shots: int) -> tuple[dict[str, np.ndarray], Points, np.ndarray]:
        """A few tasks on a grid, and the network adapted to them.

        Returns arrays for figures, in own units; and in the network's the support and the grid [T, 201, 1].
        """
        params, support = self.generator.examples(6, shots)
        grid = np.linspace(*self.generator.x_range, 201, dtype=np.float32)
        x = np.repeat(grid[None, :, None], len(params), axis=0)
        own = self.generator.own_units
        shown = own(support)
        arrays = {"axis_names": np.array(self.generator.axis_names), "grid": own(Points(grid[:, None], grid)).x[:, 0]}
        arrays |= {"grid_support_x": shown.x[..., 0], "grid_support_y": shown.y[..., 0]}
        if (truth := self.generator.truth(params, x)) is not None:
            arrays["grid_truth"] = truth[..., 0]
        if names := self.generator.task_names(params):
            arrays["grid_names"] = np.array(names)
        if (measured := self.generator.measurements("test")) is not None:
            places = np.searchsorted(self.generator.split("test", 0, 0)[:, 0], params[:, 0])
            found = [own(measured[place]) for place in places]
            longest = max(len(points.x) for points in found)
            for name, parts in zip("xy", zip(*found, strict=True), strict=True):  # [T, N], NaN behind the shorter ones
                rows = [np.pad(part[:, 0], (0, longest - len(part)), constant_values=np.nan) for part in parts]
                arrays[f"grid_points_{name}"] = np.stack(rows)
        predictions = predict(self.learner, support, x, self.config.EVAL_STEPS)[0]
        arrays["grid_predictions"] = own(Points(grid[:, None], predictions)).y
        return arrays, support, x

    def show_progress(self, iteration: int) -> None:
        """The example tasks as they are fitted now, small, into TensorBoard."""
        arrays = self.example_arrays(self.config.SUPPORT_SAMPLES)[0]
        figure = example_figure(arrays, f"after {iteration} outer steps", most=3)
        self.manager.log_figure("training/task_predictions", figure, iteration)

    # ---- the end

    def stop_early(self, status: str, reason: str) -> None:
        """Record what there is of a run that did not come to its end."""
        metrics = self.metrics(self.trainer.iteration, None)
        self.manager.save_json("metrics.json", metrics)
        self.report(status, {"reason": reason, "timing": metrics["performance"]})

    def report(self, status: str, contents: dict[str, Any]) -> None:
        """Write full_report.json, and say how the run ended."""
        basis: dict[str, Any] = {"data": self.record} if self.record else {}
        basis |= {"config": self.config.to_dict(), "tasks": self.tasks, "processes": self.trainer.step.world}
        self.manager.save_report(status, basis | {"compilation": self.trainer.compile_note} | contents)
        print_once(f"{status}: {self.manager.display_path}")


class Progress:
    """What a person and the log see of a run while it trains."""

    def __init__(self, experiment: Experiment, total: int):
        self.experiment, self.total, self.first = experiment, total, experiment.trainer.iteration
        self.bar = tqdm(total=total, initial=self.first, unit="step", disable=None, dynamic_ncols=True)
        self.began = self.last_line = time.perf_counter()
        self.validation_error = float("nan")

    def seconds(self) -> float:
        return time.perf_counter() - self.began

    def log(self, iteration: int, values: list[float]) -> None:
        """Record the log values of a step, and print a line every few seconds where there is no progress bar."""
        trainer, config, manager = self.experiment.trainer, self.experiment.config, self.experiment.manager
        named = dict(zip(trainer.step.names, values, strict=True))
        speed = (iteration - self.first) * config.META_BATCH_SIZE / self.seconds()
        epoch = -(-iteration * config.META_BATCH_SIZE // config.NUM_TASKS)
        manager.log_training(iteration, epoch, named, trainer.learning_rate(iteration - 1), speed)
        status = f"loss {named['meta_loss']:.4f}, validation {self.validation_error:.4f}, {speed:,.0f} tasks/s"
        self.bar.set_postfix_str(status, refresh=False)
        self.bar.update(iteration - self.bar.n)
        if time.perf_counter() - self.last_line > 5 or iteration == self.total:
            self.last_line = time.perf_counter()
            manager.log(f"step {iteration} of {self.total}: {status}")
            if self.bar.disable:
                print_once(f"step {iteration} of {self.total}: {status}")


def history_arrays(history: dict[str, list[Any]]) -> dict[str, np.ndarray]:
    """The curves of training; raises what Python raises where a record is not one."""
    return {
        "train_iteration": np.array([record["iteration"] for record in history["train"]], np.int64),
        "train_query_mse": np.array([record["query_mse"] for record in history["train"]], float),
        "validation_iteration": np.array([record["iteration"] for record in history["validation"]], np.int64),
        "validation_mse": np.array([record["mse"] for record in history["validation"]], float),
    }

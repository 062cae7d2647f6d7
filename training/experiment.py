"""One run from its settings to its last step: train, log, validate, checkpoint, report.

Decides when to log, validate, checkpoint and draw. Independent of any method by name, and of the command line.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from config import Config, ConfigError
from dataset import HeldOut, Points, TaskDataset, TaskGenerator, stream
from evaluation.errors import held_out_errors
from learner import MetaLearner, predict_tasks
from results_manager import NullManager, Progress, history_arrays
from system.errors import checkpoint_errors
from system.host import resolve_device
from system.terminal import print_once, rank
from system.threads import compute_as_the_caller
from training.loop import Trainer
from training.memory import check_memory
from training.processes import Signals, max_over_processes, wait_for_peers


@dataclass
class Validation:
    """A validation that was begun."""

    iteration: int
    learner: MetaLearner  # the meta-parameters it is of
    candidate: dict[str, Any]  # the checkpoint of these, should they be the best
    means: Future[list[float]]  # errors after 0, 1, ... gradients
    to_save: dict[str, Any] | None = None  # a checkpoint that is due when it ends


class Experiment:
    """One training run. Settings that can't be used raise `ConfigError` before anything is written.

    Args:
        method, tasks: names, for the record.
        learner: the method's class; generator: the task family.
    """

    def __init__(self, method: str, learner: type[MetaLearner], tasks: str, generator: TaskGenerator, config: Config):
        self.method, self.tasks, self.generator, self.config = method, tasks, generator, config
        device = resolve_device(config.DEVICE)
        check_memory(config, learner, device)
        for split, shots in [("validation", config.SUPPORT_SAMPLES), *(("test", shots) for shots in config.EVAL_SHOTS)]:
            generator.split(split, 2, 0, shots)  # raises where there are too few of them
        self.record = dict(generator.record())  # of the tasks
        seed = config.RANDOM_SEED
        sizes = config.NUM_TASKS, config.META_BATCH_SIZE, config.SUPPORT_SAMPLES, config.QUERY_SAMPLES
        dataset = TaskDataset(generator, *sizes, seed)
        self.trainer = Trainer(
            learner.from_config(config, stream(seed, "weights")),
            dataset,
            iterations=config.iterations,
            meta_lr=config.META_LEARNING_RATE,
            schedule=config.META_SCHEDULE,
            clip=config.META_GRADIENT_CLIP,
            decay=config.META_AVERAGE,
            muon=config.META_OPTIMISER == "muon",
            chunk=config.TASK_CHUNK,
            device=device,
            compile_mode=config.COMPILE,
        )
        self.learner = self.trainer.learner
        if config.META_OPTIMISER == "muon" and not self.learner.hidden_matrices():
            raise ConfigError(f"META_OPTIMISER=muon needs hidden matrices (got {method}; expected a method that names some)")
        self.manager: Any = NullManager()  # an ExperimentManager in the one process that writes
        self.complete = False  # trained to its end, evaluated and reported
        self.best = float("inf")  # lowest validation error after the last gradient
        self.new_best: dict[str, Any] | None = None  # its checkpoint, until it is written: a durable write takes its time
        self.train_seconds = 0.0
        self.validation_error: float | None = None  # the newest that is known
        self._validating: Validation | None = None
        self._validator = ThreadPoolExecutor(1, "validation", initializer=compute_as_the_caller)
        self._picture: Future[Any] | None = None  # the newest that was begun

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
        self.end_validation()
        if rank():
            return self.trainer.check()
        self._write(self.snapshot())

    def save_after_validation(self) -> None:
        """The same, when the validation of these meta-parameters, if there is one, has come to its end."""
        if self._validating and self._validating.iteration == self.trainer.iteration:
            self._validating.to_save = self.snapshot()
        else:
            self.save()

    def _write(self, state: dict[str, Any]) -> None:
        self._end_picture()  # whoever resumes from here does not draw it again
        self.manager.save_checkpoint(state, best=self.new_best)
        self.new_best = None

    def load(self, state: dict[str, Any]) -> None:
        with checkpoint_errors():
            self.check_own(state)
            self.record = dict(state.get("data", {}))
            self.trainer.load(state)
            self.best, self.train_seconds = float(state["best"]), float(state["train_seconds"])
            history = {name: list(state["history"][name]) for name in ("train", "validation")}
            history_arrays(history)  # raises where the records are not ours
            self.manager.history = history

    def check_own(self, state: dict[str, Any]) -> None:
        """Raise ValueError for a checkpoint of another method or of other tasks."""
        if (about := (state["method"], state["tasks"])) != (self.method, self.tasks):
            raise ValueError(" on ".join(map(str, about)))
        if any(state.get("data", {}).get(name) != self.record.get(name) for name in ("points_sha256", "splits_sha256")):
            raise ValueError("measurements or splits that changed since")

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
        progress, before = Progress(self, total), self.train_seconds
        try:
            for iteration, metrics in trainer.train(config.intervals):
                last = iteration == total
                if iteration % config.LOG_INTERVAL == 0 or last:
                    self.end_validation(wait=False)
                    progress.log(iteration, metrics.tolist())  # waits for the device
                if iteration % config.VALIDATION_INTERVAL == 0 or last:
                    trainer.check()  # in every process: all stop at a divergence together
                    if not rank():
                        self.begin_validation(validation, iteration)
                self.train_seconds = before + progress.seconds()
                stop, save = max_over_processes([signals.stop, signals.save])
                if last or stop or save:
                    signals.save = 0
                    self.save()
                elif iteration % config.CHECKPOINT_INTERVAL == 0:
                    self.save_after_validation()
                if stop:
                    signals.stop = stop
                    return
        except Exception:
            self.end_validation()  # with the checkpoint that may wait for it
            raise
        finally:
            progress.bar.close()
            self._end_picture()

    def begin_validation(self, tasks: HeldOut, iteration: int) -> None:
        """Measure the validation error of a copy of the meta-parameters: of the averaged ones where an average is kept, and so
        are the picture and the best."""
        self.end_validation()
        with self.trainer.step.averaged():
            learner, candidate = copy.deepcopy(self.learner), self.snapshot()
        means = self._aside(lambda: held_out_errors(learner, tasks, self.config.EVAL_STEPS)[tasks.evaluable].mean(0).tolist())
        self._validating = Validation(iteration, learner, candidate, means)

    def _aside(self, action: Callable[[], Any]) -> Future[Any]:
        """`action` in another thread while training goes on; at once with a device of its own or kernels on all cores."""
        if self.trainer.step.one_thread:
            return self._validator.submit(action)
        future: Future[Any] = Future()
        future.set_result(action())
        return future

    def _end_picture(self) -> None:
        if self._picture:
            self._picture.result()

    def end_validation(self, wait: bool = True) -> None:
        """Log the validation that was begun, if any: sometimes as a picture, remembered if best; and save if that is due."""
        if (begun := self._validating) is None or not (wait or begun.means.done()):
            return
        self._validating, means = None, begun.means.result()
        self.manager.log_validation(begun.iteration, means)
        self.validation_error = means[-1]
        count = begun.iteration // self.config.VALIDATION_INTERVAL
        if self.config.INPUT_DIM == 1 and count & (count - 1) == 0 and begun.iteration < self.config.iterations:
            # at the first, second, fourth, eighth, ...: pictures take time
            show = functools.partial(self.show_progress, begun.learner, begun.iteration)
            self._picture = self._aside(lambda: self.manager.attempt("figures", show))
        if means[-1] < self.best:
            self.best, self.new_best = means[-1], begun.candidate
        for state in filter(None, (begun.candidate, begun.to_save)):  # as if they had been taken now
            state["best"], state["history"]["validation"] = self.best, list(self.manager.history["validation"])
        if begun.to_save:
            self._write(begun.to_save)

    def example_arrays(self, learner: MetaLearner, shots: int) -> tuple[dict[str, np.ndarray], Points, np.ndarray]:
        """A few tasks on a grid, and the network of `learner` adapted to them.

        Returns arrays for figures, in own units; and in the network's the support and the grid [T, 201, 1].
        """
        params, support = self.generator.examples(6, shots)
        grid = np.linspace(*self.generator.x_range, 201, dtype=np.float32)
        x = np.repeat(grid[None, :, None], len(params), axis=0)
        own = self.generator.unscale
        shown = own(support)
        arrays = {"axis_names": np.array(self.generator.axis_names), "grid": own(Points(grid[:, None], grid)).x[:, 0]}
        arrays |= {"grid_support_x": shown.x[..., 0], "grid_support_y": shown.y[..., 0]}
        if (truth := self.generator.truth(params, x)) is not None:
            arrays["grid_truth"] = truth[..., 0]
        if names := self.generator.task_names(params):
            subject = self.record.get("columns", [""])[0]  # a bare number says little
            arrays["grid_names"] = np.array([f"{subject} {name}".strip() if name.isdecimal() else name for name in names])
        if (measured := self.generator.measurements("test")) is not None:
            places = np.searchsorted(self.generator.split("test", 0, 0)[:, 0], params[:, 0])
            found = [np.hstack(own(measured[place])) for place in places]  # [N, 2]
            known = np.full((len(found), max(map(len, found)), 2), np.nan)  # NaN behind the shorter ones
            for row, points in zip(known, found, strict=True):
                row[: len(points)] = points
            arrays |= {"grid_points_x": known[..., 0], "grid_points_y": known[..., 1]}
        predictions = predict_tasks(learner, support, x, self.config.EVAL_STEPS)[0]
        arrays["grid_predictions"] = own(Points(grid[:, None], predictions)).y
        return arrays, support, x

    def show_progress(self, learner: MetaLearner, iteration: int) -> None:
        """The example tasks as `learner` fits them, small, into TensorBoard."""
        from report.figures import example_figure  # takes half a second: not before the first step

        arrays = self.example_arrays(learner, self.config.SUPPORT_SAMPLES)[0]
        figure = example_figure(arrays, f"after {iteration} outer steps", most=3)
        self.manager.log_figure("training/task_predictions", figure, iteration)

    # ---- the end

    def close(self) -> None:
        """End all threads, and give the run directory back."""
        self._validator.shutdown(cancel_futures=True)
        self.trainer.close()
        self.manager.close()

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

"""One run from its settings to its last step: train, log, validate, save."""

from __future__ import annotations

import copy
import functools
from contextlib import closing
from typing import Any, NamedTuple

import numpy as np

from config import Config, ConfigError
from dataset import HeldOut, TaskDataset, TaskGenerator
from evaluation.errors import held_out_errors, validation_error
from evaluation.examples import example_arrays
from learner import MetaLearner, in_one_vector
from results_manager import ExperimentManager, NullManager
from system.errors import RunError, checkpoint_errors
from system.host import resolve_device
from system.terminal import print_once, rank
from training.loop import Trainer
from training.memory import check_memory
from training.method_check import checked_learner
from training.processes import max_over_processes, wait_for_peers
from training.progress import Progress
from training.signals import Signals

History = dict[str, list[dict[str, Any]]]  # the records of each kind, "train" and "validation", in the order of steps
PICTURED_VALIDATIONS = (1, 4, 16, 64)  # seldom: a picture takes half a second, as long as several validations


class RunFacts(NamedTuple):
    """What a run's files say of it, beside its results."""

    manager: ExperimentManager | NullManager
    method: str
    tasks: str
    config: Config
    generator: TaskGenerator
    data: dict[str, Any]  # the record of a table
    history: History
    performance: dict[str, float]
    about: dict[str, Any]

    def report(self, status: str, **contents: Any) -> None:
        """Write metrics.json and full_report.json with `contents`, the `results` or else a `reason`; say how the run ended."""
        metrics = {"schema_version": 1, "method": self.method, **self.history, "evaluation": contents.get("results")}
        self.manager.save_json("metrics.json", metrics | {"performance": self.performance})
        data: dict[str, Any] = {"data": self.data} if self.data else {}
        about = data | {"config": self.config.to_dict(), "tasks": self.tasks, "timing": self.performance} | self.about
        self.manager.save_report(status, about | contents)
        print_once(f"{status}: {self.manager.display_path}")


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
        generator.split("validation", 2, 0, config.SUPPORT_SAMPLES)  # raises where there are too few of them
        for shots in config.evaluation_shots:
            generator.split("test", 2, 0, shots)
        self.record = dict(generator.record())  # of the tasks
        seed = config.RANDOM_SEED
        sizes = config.NUM_TASKS, config.META_BATCH_SIZE, config.SUPPORT_SAMPLES, config.QUERY_SAMPLES
        datasets = [TaskDataset(one, *sizes, seed) for one in (*generator.folds, generator)]
        self.trainer = Trainer(checked_learner(method, learner, config), datasets, config, device)
        self.learner = self.trainer.learner
        if config.META_OPTIMISER == "muon" and not (self.learner.is_fitted() or self.learner.hidden_matrices()):
            raise ConfigError(f"META_OPTIMISER=muon needs hidden matrices (got {method}; expected a method that names some)")
        self._validation_tasks = functools.lru_cache(1)(
            functools.partial(self.held_out, "validation", config.SUPPORT_SAMPLES)
        )  # by the generator
        self.manager: ExperimentManager | NullManager = NullManager()  # the real one in the one process that writes
        self.history: History = {"train": [], "validation": []}
        self.complete = False  # trained to its end, evaluated and reported
        self.best = float("inf")  # lowest validation error after the last gradient
        self.new_best: dict[str, Any] | None = None  # its checkpoint, until `save`: a durable write takes its time
        self.train_seconds = 0.0

    def judged(self) -> list[tuple[MetaLearner, TaskGenerator]]:
        """Who is judged on the test tasks of which generator: the learner, or with folds what was trained without each.

        Raises `RunError` where there are folds that are not trained yet.
        """
        if not (folds := self.generator.folds):
            return [(self.learner, self.generator)]
        if len(self.trainer.finished) < len(folds):
            got = f"{len(self.trainer.finished)} of {len(folds)} folds"
            raise RunError(f"{self.manager.display_path} is not trained yet (got {got}; expected all, by --resume)")
        learners = []
        for parameters in self.trainer.finished:
            learner = copy.deepcopy(self.learner)
            learner.load_state_dict(parameters)
            learners.append(in_one_vector(learner))
        return list(zip(learners, folds, strict=True))

    def held_out(self, split: str, shots: int, generator: TaskGenerator | None = None) -> HeldOut:
        """The tasks of the validation or test split."""
        config = self.config
        count = config.VALIDATION_TASKS if split == "validation" else config.EVAL_TASKS
        return (generator or self.generator).held_out(split, count, shots, config.EVAL_QUERY_SAMPLES)

    # ---- saving and loading

    def snapshot(self) -> dict[str, Any]:
        """All that a checkpoint holds, as it is now: later steps do not change it. Raises `Diverged`."""
        about = {"method": self.method, "tasks": self.tasks, "config": self.config.to_dict()}
        about |= {"data": self.record} if self.record else {}
        history = {name: list(records) for name, records in self.history.items()}
        progress = {"best": self.best, "train_seconds": self.train_seconds, "history": history}
        return about | self.trainer.state() | progress

    def save(self) -> None:
        """Write where training is, and the best so far where that is new since the last save."""
        if rank():
            return self.trainer.check()  # raises `Diverged`, as `snapshot` does in process 0
        self.manager.save_checkpoint(self.snapshot(), best=self.new_best)
        self.new_best = None

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint. Raises `RunError` where it is not of this run."""
        with checkpoint_errors():
            self.check_own(state)
            self.record = dict(state.get("data", {}))
            self.trainer.load(state)
            self.best, self.train_seconds = float(state["best"]), float(state["train_seconds"])
            self.history = {name: list(state["history"][name]) for name in ("train", "validation")}
            history_arrays(self.history)  # raises where the records are not ours

    def check_own(self, state: dict[str, Any]) -> None:
        """Raise ValueError for a checkpoint of another method or of other tasks."""
        if (about := (state["method"], state["tasks"])) != (self.method, self.tasks):
            raise ValueError(" on ".join(map(str, about)))
        if any(state.get("data", {}).get(name) != self.record.get(name) for name in ("points_sha256", "splits_sha256")):
            raise ValueError("measurements or splits that changed since")

    def performance(self) -> dict[str, float]:
        """How many steps were taken, and in what time."""
        done, seconds = self.trainer.iteration, self.train_seconds
        timing = {"iterations": done, "train_seconds": seconds, "ms_per_iteration": 1000 * seconds / max(done, 1)}
        return timing | {"compile_seconds": self.trainer.compile_seconds}

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
        """Train to the end or to a signal; log, validate and save on the way."""
        config, trainer, total = self.config, self.trainer, self.trainer.iterations
        before = self.train_seconds
        intervals = config.LOG_INTERVAL, config.VALIDATION_INTERVAL, config.CHECKPOINT_INTERVAL
        with closing(Progress(trainer.iteration, total, self.manager.log)) as progress:
            for iteration, metrics in trainer.train(intervals):
                last = iteration == total
                if len(metrics) and (last or iteration % config.LOG_INTERVAL == 0):
                    values = metrics.tolist()  # waits for the device
                    progress.update(iteration, self.log_step(iteration, values, progress.steps_per_second(iteration)))
                if last or iteration % config.VALIDATION_INTERVAL == 0:
                    trainer.check()  # in every process: all stop at a divergence together
                    if not rank():
                        self.validate(iteration)
                self.train_seconds = before + progress.seconds()
                stop, save = max_over_processes([signals.stop, signals.save])
                if last or stop or save or iteration % config.CHECKPOINT_INTERVAL == 0:
                    signals.save = 0
                    self.save()
                if stop:
                    signals.stop = stop
                    return

    def log_step(self, iteration: int, values: list[float], steps_per_second: float) -> str:
        """Record the log values of a step; a method's own diagnostics go under its own tag. Returns a line for people."""
        config, own = self.config, dict(zip(self.trainer.meta.names, values, strict=True))
        shared = {name: own.pop(name) for name in ("meta_loss", "query_mse", "grad_norm")}
        shared["learning_rate"] = self.trainer.learning_rate(iteration - 1)
        epoch = -(-iteration * config.META_BATCH_SIZE // config.NUM_TASKS)
        self.history["train"].append({"iteration": iteration, "epoch": epoch} | shared | own)
        speed = steps_per_second * config.META_BATCH_SIZE
        tags = {f"train/{name}": value for name, value in shared.items()}
        tags |= {f"{self.method}/{name}": value for name, value in own.items()}
        self.manager.log_scalars(iteration, tags | {"performance/tasks_per_second": speed})
        validations = self.history["validation"]
        validation = f"validation {validations[-1]['mse'][-1]:.4f}, " if validations else ""
        return f"loss {shared['meta_loss']:.4f}, {validation}{speed:,.0f} tasks/s"

    def validate(self, iteration: int) -> None:
        """Measure and record the validation error, sometimes with a picture; the best meta-parameters are kept.

        Where an average of the meta-parameters is kept, all of this is of the average. With folds nothing is chosen: the errors
        are on the subjects that are left out, and the last meta-parameters of what is trained on everybody are kept.
        """
        config, generator = self.config, self.trainer.dataset.generator
        with self.trainer.meta.averaged():
            if generator.folds:
                self.new_best = self.snapshot()
                return
            tasks = self._validation_tasks(generator)
            errors = held_out_errors(self.learner, tasks, config.EVAL_STEPS)
            means = errors[tasks.evaluable].mean(0).tolist()
            self.history["validation"].append({"iteration": iteration, "mse": means})
            self.manager.log_scalars(iteration, {f"validation/mse_after_{step:02d}": mse for step, mse in enumerate(means)})
            error = validation_error(errors, tasks)
            if not self.generator.folds and error < self.best:
                self.best = error
                self.new_best = self.snapshot()
            count = iteration // config.VALIDATION_INTERVAL
            if config.INPUT_DIM == 1 and count in PICTURED_VALIDATIONS and iteration < self.trainer.iterations:
                self.manager.attempt("figures", lambda: self.show_progress(iteration))

    def show_progress(self, iteration: int) -> None:
        """The example tasks as the learner fits them now, small, into TensorBoard."""
        from report.figures import example_figure  # takes half a second: not before the first step
        from visualization import png_bytes

        config, subject = self.config, self.record.get("columns", [""])[0]
        judged, steps = self.trainer.dataset.generator, config.EVAL_STEPS
        arrays = example_arrays(self.learner, self.learner, judged, config.SUPPORT_SAMPLES, steps, subject)[0]
        figure = example_figure(arrays, f"after {iteration} outer steps", most=3)
        self.manager.log_picture("training/task_predictions", png_bytes(figure, dpi=70), iteration)

    # ---- the end

    def close(self) -> None:
        """End all threads, and give the run directory back."""
        self.trainer.close()
        self.manager.close()

    def facts(self) -> RunFacts:
        """What the run's files say of it, as it is now."""
        about = {"processes": self.trainer.world, "compilation": self.trainer.compile_note}
        named = self.method, self.tasks, self.config, self.generator
        return RunFacts(self.manager, *named, self.record, self.history, self.performance(), about)


def history_arrays(history: History) -> dict[str, np.ndarray]:
    """The curves of training; raises what Python raises where a record is not one."""
    return {
        "train_iteration": np.array([record["iteration"] for record in history["train"]], np.int64),
        "train_query_mse": np.array([record["query_mse"] for record in history["train"]], float),
        "validation_iteration": np.array([record["iteration"] for record in history["validation"]], np.int64),
        "validation_mse": np.array([record["mse"] for record in history["validation"]], float),
    }

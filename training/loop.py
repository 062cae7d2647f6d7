"""The loop that trains any `MetaLearner`: draw tasks, take an outer step, yield.

`train` yields after each step, and its caller decides when to log, validate and save.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from config import Config
from dataset import Points, Task, TaskDataset, stream, training_points
from learner import MetaLearner, on_device
from system.compiler_cache import load_derivatives, one_line, with_cache
from system.threads import SMALL_WORK
from training.compilation import decide_compiling
from training.optimiser import Optimiser
from training.parallel import MicroBatches, tasks_at_once
from training.processes import world
from training.state import MetaState
from training.step import MetaGradient, MetaStep, SeparateStep, compiled_step


class Diverged(RuntimeError):
    """A loss or gradient is not finite; the meta-parameters are still those of the step before."""

    def __init__(self, iteration: int, quantity: str, value: float, lr: float):
        super().__init__(f"training diverged at iteration {iteration} (got {quantity} = {value}; expected a finite number)")
        self.iteration, self.quantity, self.lr = iteration, quantity, lr


class Trainer:
    """Trains `learner` by Adam, or Adam and Muon, on the meta-loss; on one dataset after another, each time from the start.

    Args:
        learner: its meta-parameters; one that is fitted takes a single step for each dataset.
        datasets: one; or for cross-fitting those without one fold each, and last that of everybody. They differ in their tasks
            alone. What was learned from each but the last is in `finished`.
        config: read are the number of iterations, where the cosine schedule ends, the keys META_*, TASK_CHUNK and COMPILE.
            TASK_CHUNK bounds memory, and makes the result independent of the number of processes: with several
            (`torch.distributed` initialised) each takes some of every meta-batch.
        device: where meta-parameters and tasks live.
    """

    def __init__(
        self, learner: MetaLearner, datasets: Sequence[TaskDataset], config: Config, device: torch.device | str = "cpu"
    ):
        self.learner, self.datasets, dataset = learner, datasets, datasets[0]
        self.each = 1 if learner.is_fitted() else config.iterations  # steps on a dataset
        self.iterations = self.each * len(datasets)
        self.finished: list[dict[str, Tensor]] = []  # meta-parameters by name
        self.meta_lr, self.schedule = config.META_LEARNING_RATE, config.META_SCHEDULE
        self.task_work = (dataset.shots + dataset.queries) * learner.state_size  # points x weights
        self.device = torch.device(device)
        rank, self.world = world()
        local_batch = -(-dataset.meta_batch // self.world)
        at_once = tasks_at_once(config.TASK_CHUNK, local_batch, self.task_work, self.device)
        cut = config.TASK_CHUNK > 0 or at_once < local_batch
        self.one_thread = self.device.type == "cpu" and (cut or dataset.meta_batch * self.task_work < SMALL_WORK)
        load_derivatives()
        self.meta = MetaState(learner, self.device, averaged=config.META_AVERAGE > 0 and not learner.is_fitted())
        self._initial = self.meta.to_dict()
        micro_batches = MicroBatches(dataset.meta_batch, at_once if cut else 0, rank, self.world)
        optimiser = Optimiser(config.META_GRADIENT_CLIP, config.META_AVERAGE, config.META_OPTIMISER == "muon")
        eager = SeparateStep(MetaGradient(learner, self.meta), optimiser, micro_batches)
        self.step: MetaStep = eager  # until `prepare` compiles it
        self._compile = functools.partial(compiled_step, eager)
        self.iteration = 0  # outer steps taken
        self.compile_seconds = 0.0
        self.compiled, self.compile_note = False, "nothing to compile"
        if not learner.is_fitted():
            self.compiled, self.compile_note = decide_compiling(config.COMPILE, self.iterations, self.device)
        self.compile_trouble = False  # the compiler, or where it keeps its files, was not as it should be
        self._drawing = ThreadPoolExecutor(1)
        self._prefetched: dict[int, Future[tuple[Task, np.ndarray]]] = {}  # at most the next block

    # ---- state

    def state(self) -> dict[str, Any]:
        """Everything the next step depends on: tensors, numbers, strings; raises `Diverged` if there is none."""
        self.check()
        return {"iteration": self.iteration, "finished": list(self.finished)} | self.meta.to_dict()

    def load(self, state: dict[str, Any]) -> None:
        """Restore `state`; raises ValueError where it does not fit this learner."""
        iteration = state["iteration"]
        if type(iteration) is not int or iteration < 0:
            raise ValueError(f"its step can't be used (got {iteration!r}; expected a whole number from 0 on)")
        finished = list(state.get("finished", []))
        for one in finished:
            self.meta.load(state | {"meta_parameters": one})  # raises where it does not fit
        self.meta.load(state)
        self.iteration, self.finished = iteration, finished

    @property
    def dataset(self) -> TaskDataset:
        """The one that is trained on, or was last."""
        return self.datasets[len(self.finished)]

    def _begin_dataset(self) -> None:
        """Keep what was learned from the last dataset, and start anew."""
        if self.iteration:
            with self.meta.averaged():
                self.finished.append(self.meta.to_dict()["meta_parameters"])  # waits for the device, once a dataset
            self.meta.load(self._initial)
            self._prefetched.clear()
        if type(self.learner).start_from is not MetaLearner.start_from:
            self.learner.start_from(self._training_points())
            for average in self.meta.averages.values():
                average.copy_(self.meta.flat)

    # ---- training

    def learning_rate(self, iteration: int) -> float:
        """Step size of the optimiser in outer step number `iteration`, counted from 0."""
        if self.schedule == "constant":
            return self.meta_lr
        done = iteration if iteration >= self.iterations else iteration % self.each
        return self.meta_lr * 0.5 * (1 + math.cos(math.pi * min(1.0, done / self.each)))

    def limit_threads(self) -> None:
        """One thread for this process where layers are so small that several would mostly wait for each other."""
        if self.one_thread:
            torch.set_num_threads(1)

    def close(self) -> None:
        """End the threads that draw tasks and compute micro-batches."""
        self.step.close()
        self._drawing.shutdown(cancel_futures=True)

    def prepare(self) -> str:
        """Compile the step if that was decided, and say in one line what will run; changes no state of the run.

        A compiler that fails costs speed only: the eager step gives the same numbers, later.
        """
        self.limit_threads()
        torch.set_flush_denormal(True)  # second derivatives of dead units are full of denormals, each 100 times slower
        if not self.compiled:
            return self.compile_note if self.learner.is_fitted() else f"eager meta-step: {self.compile_note}"
        started = time.perf_counter()
        tasks, noise = self._block(self.iteration % self.each // self.dataset.block)
        try:
            self.step, trouble = with_cache(lambda: self._compile(tasks, noise, self.one_thread))
        except Exception as error:
            self.compiled, self.compile_trouble = False, True
            self.compile_note = f"compiling failed: {one_line(error)}"
            return f"eager meta-step: {self.compile_note}"
        self.compile_seconds, self.compile_trouble = time.perf_counter() - started, bool(trouble)
        if trouble:
            self.compile_note += f", anew since its cache folder could not be used: {trouble}"
        if self.step.threads > 1:
            self.compile_note += f", in micro-batches for {self.step.threads} threads"
        return f"compiled meta-step: {self.compile_note}, ready in {self.compile_seconds:.1f} s"

    def train(self, every: Sequence[int] = (1,)) -> Iterator[tuple[int, Tensor]]:
        """Train to the end; yields (steps taken, log values of the last one by `meta.names`). Raises `Diverged`.

        It yields after each step. A compiled step that loops over a block yields only after steps that are multiples of a
        number in `every`, at the end of each block, and at the end of training. The log values stay on their device: reading
        them synchronises, so read them seldom. A learner that is fitted takes one step, without log values.
        """
        while self.iteration < self.iterations:
            if self.iteration % self.each == 0:
                self._begin_dataset()
            yield from self._fit() if self.learner.is_fitted() else self._train_block(every)
            self.check()  # the only synchronisation of the loop: once a block

    def _train_block(self, every: Sequence[int]) -> Iterator[tuple[int, Tensor]]:
        """The steps to the end of a block, or of the dataset's share of steps."""
        before = self.each * len(self.finished)
        size, done = self.dataset.block, self.iteration - before
        start = done - done % size
        rates = [self.learning_rate(before + start + number) for number in range(size)]
        block = self.step.block(*self._block(start // size), rates)
        while done < (end := min(start + size, self.each)):
            following = (self.iteration // multiple * multiple + multiple - before for multiple in every)
            stop = min(end, *following) if self.step.loops else done + 1
            metrics = self.step(block, done - start, stop - start)
            done, self.iteration = stop, before + stop
            yield self.iteration, metrics

    def _fit(self) -> Iterator[tuple[int, Tensor]]:
        try:
            self.learner.fit(self._training_points())
        except torch.linalg.LinAlgError:
            self.meta.flat.fill_(math.nan)
        self.iteration += 1
        if not self.meta.flat.isfinite().all():
            raise Diverged(self.iteration, "what was fitted", math.nan, 1.0)
        yield self.iteration, torch.empty(0)

    def _training_points(self) -> list[Points]:
        return training_points(self.dataset.generator, self.dataset.seed)

    def _block(self, number: int) -> tuple[Task, Tensor]:
        """A block of meta-batches, drawn and sent to the device at once: tasks [B, T, ...] and noise [B, T, noise_dim]."""
        arrays = self._prefetched.pop(number, None) or self._drawing.submit(self._draw, number)
        self._prefetched.clear()  # what was drawn for a state before `load`
        if (number + 1) * self.dataset.block < self.each:  # another core draws the next one meanwhile
            self._prefetched[number + 1] = self._drawing.submit(self._draw, number + 1)
        return on_device(arrays.result(), self.device)

    def _draw(self, number: int) -> tuple[Task, np.ndarray]:
        """Tasks [B, T, ...] and noise [B, T, noise_dim] of a block."""
        shape = (self.dataset.block, self.dataset.meta_batch, self.learner.noise_dim)
        noise = stream(self.dataset.seed, "noise", number).standard_normal(shape, dtype=np.float32)
        return self.dataset.draw_block(number), noise

    def check(self) -> None:
        """Raise `Diverged` if a step was refused; waits for the device."""
        if (found := self.meta.first_bad_value()) is not None:
            refused, name, value = found
            refused += self.each * len(self.finished)
            raise Diverged(refused + 1, name, value, self.learning_rate(refused))

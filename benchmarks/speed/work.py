"""The work that implementations are compared on: the same tasks, weights and settings for all of them."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks.project import build
from benchmarks.speed.child import MeasurementError
from config import Config
from dataset import Points, Task
from learner import on_device
from registry import defaults
from training.loop import Trainer
from training.optimiser import MOMENTUM

FOREVER = 10**6  # epochs: no run comes to its end, and the schedule stays at its start


class Case(NamedTuple):
    """A method by its name in the registry, and its settings where they are not the defaults."""

    title: str
    method: str
    settings: dict[str, Any]


CASES = {
    "maml-1": Case("MAML, 1 inner step", "maml", {}),
    "maml-5": Case("MAML, 5 inner steps", "maml", {"INNER_STEPS": 5}),
    "leo": Case("LEO, 5 steps in z and 5 in weights", "leo", {}),
}


class Work:
    """What all implementations of one case have in common: settings, the first meta-batch, and the initial meta-parameters.

    Attributes:
        config: the resolved settings.
        learner: this project's learner, for its shapes; its numbers are not to be changed.
        start: name -> meta-parameter as a flat float32 array, in the order of the flat vector [M].
        batch: arrays x [T, K or Q, 1], y [T, K or Q, 1], on which meta-gradients are compared.
        noise: [T, noise_dim], the noise of a stochastic method there.
    """

    def __init__(self, case: Case, tasks: int, device: str):
        self.case, self.device = case, device
        settings = {"META_BATCH_SIZE": tasks, "DEVICE": device, "EPOCHS": FOREVER} | case.settings
        self.config = Config.resolve(defaults(case.method, "sinusoid"), settings)
        trainer = self.trainer("never")
        self.learner = trainer.learner
        self.start = {name: p.detach().cpu().numpy().ravel().copy() for name, p in self.learner.named_parameters()}
        tasks_of_block, noise = trainer._block(0)  # not public: training never shows a meta-batch
        self.batch = Task(*(Points(points.x[0].cpu().numpy(), points.y[0].cpu().numpy()) for points in tasks_of_block))
        self.noise = noise[0].cpu().numpy()

    def trainer(self, compile_mode: str) -> Trainer:
        """A trainer of this project that starts from the common weights and the common meta-batch."""
        return build(self.case.method, "sinusoid", dataclasses.replace(self.config, COMPILE=compile_mode)).trainer

    def batches(self) -> Iterator[Task]:
        """Endless meta-batches of tensors, drawn in blocks, as this project draws its own."""
        dataset, number = self.trainer("never").dataset, 0
        while True:
            block = on_device(dataset.draw_block(number), torch.device(self.device))
            for place in range(dataset.block):
                yield Task(*(Points(points.x[place], points.y[place]) for points in block))
            number += 1


class Implementation(ABC):
    """Training on a `Work`: its meta-gradient is asked for first, and then iterations."""

    threads: int | None = None  # how many it uses; None = as many as were allowed
    unit: int = 1  # it does iterations in multiples of this

    @abstractmethod
    def meta_gradient(self) -> np.ndarray:
        """Prepare everything, and return the meta-gradient [M] on the common batch and weights.

        It has to come from the code that is timed afterwards. Raises `MeasurementError` where that can't run.
        """

    @abstractmethod
    def run(self, iterations: int) -> float:
        """Do that many iterations, drawing tasks and optimiser included, and wait for the end; the last meta-loss."""


class ThisProject(Implementation):
    """This project's `Trainer`."""

    def __init__(self, work: Work, compile_mode: str):
        self.trainer, self.clip = work.trainer(compile_mode), work.config.META_GRADIENT_CLIP
        self.every = [1]  # steps after whose multiples training is interrupted

    def meta_gradient(self) -> np.ndarray:
        trainer = self.trainer
        prepare(trainer)
        self.threads = max(torch.get_num_threads(), trainer.step.threads)  # the trainer's own decision
        self.steps = trainer.train(self.every)
        _, metrics = next(self.steps)
        # Read off a real step: first moments start at zero, so Adam's is a tenth of the clipped gradient, Muon's a twentieth.
        norm = float(metrics[trainer.meta.names.index("grad_norm")])
        clipped = trainer.meta.exp_avg.cpu().numpy() / (1 - 0.9)
        for start, rows, columns in trainer.step.offsets:
            clipped[start : start + rows * columns] *= (1 - 0.9) / (1 - MOMENTUM)
        return clipped * max(1.0, (norm + 1e-6) / self.clip)

    def run(self, iterations: int) -> float:
        self.every[0] = end = self.trainer.iteration + iterations
        while self.trainer.iteration < end:
            _, metrics = next(self.steps)
        return float(metrics[0])  # waits for the device


def prepare(trainer: Trainer) -> None:
    """Compile where that was decided; raises `MeasurementError` where it fails."""
    wanted = trainer.compiled
    note = trainer.prepare()
    if trainer.compiled != wanted:
        raise MeasurementError(note)

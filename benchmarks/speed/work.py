"""What every contestant of the speed comparison is given: the same tasks, weights and settings.

This file knows this project's public pieces and how a contestant is asked to work. It refuses to know how
any peer does it, and to measure time.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from paths import ROOT  # noqa: F401  first: it puts the project on the path

from config import Config
from dataset import Points, SinusoidalTaskGenerator, Task, TaskDataset, stream
from evaluation import on_device
from learner import MetaLearner
from leo import LEO
from maml import MAML
from trainer import Trainer

PRELOAD = ["torch", "torch._dynamo"]  # what a fork server imports once for all its processes: torch's step needs both
FOREVER = 10**9  # iterations of a run: no contestant reaches its end, and the schedule stays at its start


class Case(NamedTuple):
    """One kind of work: a method, and what differs from its default settings."""

    title: str
    method: type[MetaLearner]
    settings: dict[str, Any]


CASES = {
    "maml-1": Case("MAML, 1 inner step", MAML, {}),
    "maml-5": Case("MAML, 5 inner steps", MAML, {"INNER_STEPS": 5}),
    "leo": Case("LEO, 5 steps in z and 5 in weights", LEO, {}),
}


def build_trainer(method: type[MetaLearner], config: Config, device: str, compile_mode: str) -> Trainer:
    """A fresh trainer, as the command line would build it from `config`."""
    generator = SinusoidalTaskGenerator(
        config.INPUT_DIM,
        (config.X_MIN, config.X_MAX),
        config.NOISE_STD,
        (config.AMPLITUDE_MIN, config.AMPLITUDE_MAX),
        (config.PHASE_MIN, config.PHASE_MAX),
    )
    dataset = TaskDataset(
        generator,
        config.NUM_TASKS,
        config.META_BATCH_SIZE,
        config.SUPPORT_SAMPLES,
        config.QUERY_SAMPLES,
        config.RANDOM_SEED,
    )
    return Trainer(
        method.from_config(config, stream(config.RANDOM_SEED, "weights")),
        dataset,
        iterations=FOREVER,
        meta_lr=config.META_LEARNING_RATE,
        schedule=config.META_SCHEDULE,
        clip=config.META_GRADIENT_CLIP,
        device=device,
        compile_mode=compile_mode,
    )


class Work:
    """The common ground of one case: settings, the first meta-batch, and the meta-parameters before it.

    Attributes:
        config: the resolved settings.
        learner: this project's learner, for its shapes; its numbers are not to be changed.
        start: name -> meta-parameter as a flat float32 array, in the order of the flat vector [M].
        batch: arrays x [T, K or Q, 1], y [T, K or Q, 1], on which all must agree.
        noise: [T, noise_dim], what a stochastic method samples with there.
    """

    def __init__(self, case: Case, tasks: int, device: str):
        settings = {"META_BATCH_SIZE": tasks} | case.settings
        self.case, self.device = case, device
        self.config = Config.resolve(case.method.defaults, settings)
        trainer = self.trainer("never")
        self.learner = trainer.learner
        self.start = {name: p.detach().cpu().numpy().ravel().copy() for name, p in self.learner.named_parameters()}
        task, noise = trainer._meta_batches(0)[0]  # not public: nobody else has to see the numbers of a single meta-batch
        self.batch = Task(*(Points(points.x.cpu().numpy(), points.y.cpu().numpy()) for points in task))
        self.noise = noise.cpu().numpy()

    def trainer(self, compile_mode: str) -> Trainer:
        """A trainer of this project that starts from the common weights and the common meta-batch."""
        return build_trainer(self.case.method, self.config, self.device, compile_mode)

    def batches(self) -> Iterator[Task]:
        """Endless meta-batches of tensors, drawn in blocks as the project draws its own: the cheapest way known here."""
        dataset, number = self.trainer("never").dataset, 0
        while True:
            block = on_device(dataset.draw_block(number), self.device)
            for place in range(dataset.block):
                yield Task(*(Points(points.x[place], points.y[place]) for points in block))
            number += 1


class Unfit(RuntimeError):
    """A contestant that can't take part; the text says why."""


class Contestant(ABC):
    """Someone who trains on a `Work`. It is asked for its meta-gradient first, and then for iterations."""

    threads: int | None = None  # how many it wants; None = as many as were allowed
    unit: int = 1  # it does iterations in multiples of this

    @abstractmethod
    def meta_gradient(self) -> np.ndarray:
        """Get ready, and return the meta-gradient [M] on the common batch and weights; raises `Unfit`.

        It has to come from the code that is timed afterwards.
        """

    @abstractmethod
    def run(self, iterations: int) -> float:
        """Do that many iterations, drawing tasks and optimiser included; wait for the end; the last meta-loss."""


class Project(Contestant):
    """This project's `Trainer`."""

    def __init__(self, work: Work, compile_mode: str):
        self.trainer = work.trainer(compile_mode)

    def meta_gradient(self) -> np.ndarray:
        import torch

        trainer = self.trainer
        wanted = trainer.compiled
        note = trainer.prepare()
        if trainer.compiled != wanted:
            raise Unfit(note)
        self.threads = torch.get_num_threads()  # the trainer's own decision
        self.steps = trainer.train()
        _, metrics = next(self.steps)
        # Read off a real step: Adam's first moment starts at zero, so it is now a tenth of the clipped gradient.
        norm = float(metrics[trainer.step.names.index("grad_norm")])
        clipped = trainer.step.exp_avg.cpu().numpy() / (1 - 0.9)
        return clipped * max(1.0, (norm + 1e-6) / trainer.step.clip)

    def run(self, iterations: int) -> float:
        for _ in range(iterations):
            _, metrics = next(self.steps)
        return float(metrics[0])  # waits for the device

"""Conditional neural process: a mean of what an encoder makes of each point (Garnelo et al. 2018, arXiv 1807.01613).

    code = (c + sum over support points of encoder(x, y)) / (K + 1)                   (eq. 1); c is learned
    mean, log spread = decoder(x, code)                                               (eq. 3)
    meta-loss = -log N(y; mean, spread^2) at the query points                         (eq. 4), with the code c too

Nothing is descended: one "gradient" finds the code, and further ones leave it as it is. Entry 0 of the path is c, the code of
no point. c counts as a further point, which the paper has not, so that a task without points has an answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from config import Config
from dataset import Points
from learner import Adaptation, MetaLearner

CODE = 64
PRIOR_WEIGHT = 0.1  # of the loss without points
LEAST = 0.01  # of the spread


class CNP(MetaLearner):
    """Meta-parameters: the weights of `encoder` and `decoder`, and `start` [64], the code c."""

    defaults: ClassVar = {"HIDDEN_DIM": 64, "EPOCHS": 48}

    def __init__(self, config: Config, rng: np.random.Generator):
        super().__init__(config, rng)
        self.encode = self.perceptron(config.INPUT_DIM + 1, CODE)
        self.decode = self.perceptron(config.INPUT_DIM + CODE, 2)
        self.encoder, self.decoder = (nn.Parameter(network.init(rng)) for network in (self.encode, self.decode))
        self.start = nn.Parameter(torch.zeros(CODE))

    @property
    def state_size(self) -> int:
        return CODE

    def adapt(self, support: Points, noise: Tensor, steps: int | None = None) -> Adaptation:
        codes = self.encode(self.encoder, torch.cat(support, 1))  # [K, 64]
        code = (self.start + codes.sum(0)) / (len(codes) + 1)
        return Adaptation.along([self.start] + [code] * (1 if steps is None else steps))

    def prior(self) -> Tensor:
        return self.start

    def predict(self, state: Tensor, x: Tensor) -> Tensor:
        return self._distribution(state, x)[0]

    def std(self, state: Tensor, x: Tensor, support: Points) -> Tensor:
        return self._distribution(state, x)[1]

    def loss(self, path: Sequence[Tensor], query: Points) -> Tensor:
        return self._surprise(path[-1], query) + PRIOR_WEIGHT * self._surprise(path[0], query)

    def hidden_matrices(self) -> list[Tensor]:
        networks = (self.encode, self.encoder), (self.decode, self.decoder)
        return [matrix for network, weights in networks for matrix, _ in network.layers(weights)[1:-1]]

    def _distribution(self, state: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation [N] at x [N, D]."""
        mean, spread = self.decode(self.decoder, torch.cat([x, state.expand(len(x), CODE)], 1)).T
        return mean, LEAST + nn.functional.softplus(spread)

    def _surprise(self, state: Tensor, points: Points) -> Tensor:
        """The mean negative log likelihood [] of points, without its constant."""
        mean, std = self._distribution(state, points.x)
        return (((points.y[:, 0] - mean) / std).square() / 2 + std.log()).mean()

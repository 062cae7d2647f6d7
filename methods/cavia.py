"""CAVIA: a few context parameters are adapted, all weights are shared (Zintgraf et al. 2019, arXiv 1810.03642).

    context_0 = 0
    context_{s+1} = context_s - inner_lr * grad mse(theta, context_s; support)        (eq. 3)

The context is a further input of the first layer (section 3.1, eq. 5). As it is the same at every point of a task, it
adds to the first layer's bias; so the adapted network has the shape that all methods share.
"""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from config import Config
from dataset import Points
from learner import Adaptation, GradientLearner


class CAVIA(GradientLearner):
    """Meta-parameters: `theta` [P], the shared weights, and `matrix` [C, hidden], from the context to the first layer."""

    settings: ClassVar = (*GradientLearner.settings, "CONTEXT_DIM")
    defaults: ClassVar = {"INNER_LEARNING_RATE": 0.3}

    def __init__(self, config: Config, rng: np.random.Generator):
        super().__init__(config, rng)
        self.theta = nn.Parameter(self.network.init(rng))
        size = (config.CONTEXT_DIM, config.HIDDEN_DIM)
        matrix = rng.standard_normal(size) * math.sqrt(2 / (config.INPUT_DIM + config.CONTEXT_DIM))
        self.matrix = nn.Parameter(torch.from_numpy(matrix.astype(np.float32)))

    def weights(self, context: Tensor) -> Tensor:
        """The network's weights [P] for a context [C]."""
        matrix, bias, rest = self.theta.split([*self.network.splits[:2], sum(self.network.splits[2:])])
        return torch.cat([matrix, bias + context @ self.matrix, rest])

    def adapt(self, support: Points, noise: Tensor, steps: int | None = None) -> Adaptation:
        loss, start = self.support_loss(support), self.theta.new_zeros(len(self.matrix))
        contexts = self.descend(lambda context: loss(self.weights(context)), start, self.inner_lr, steps)
        return Adaptation.along([self.weights(context) for context in contexts])

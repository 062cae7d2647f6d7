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
from learner import Adaptation, MetaLearner, Network, gradient_descent


class CAVIA(MetaLearner):
    """Meta-parameters: `theta` [P], the shared weights, and `matrix` [C, hidden], from the context to the first layer.

    Args:
        network: the network that is adapted.
        rng: draws the initial weights.
        context_dim: C.
        inner_lr: step size of the context.
        steps: support gradients in training.
        first_order: treat inner gradients as constants.
        clip: bound on the norm of an inner gradient; 0 = none.
    """

    defaults: ClassVar = {"INNER_LEARNING_RATE": 0.3}

    def __init__(
        self,
        network: Network,
        rng: np.random.Generator,
        context_dim: int,
        inner_lr: float,
        steps: int,
        first_order: bool = False,
        clip: float = 0.0,
    ):
        super().__init__()
        self.network, self.inner_lr, self.steps, self.first_order, self.clip = network, inner_lr, steps, first_order, clip
        self.theta = nn.Parameter(network.init(rng))
        size = (context_dim, network.shapes[0][1])
        matrix = rng.standard_normal(size) * math.sqrt(2 / (network.shapes[0][0] + context_dim))
        self.matrix = nn.Parameter(torch.from_numpy(matrix.astype(np.float32)))

    @classmethod
    def from_config(cls, config: Config, rng: np.random.Generator) -> CAVIA:
        network = Network((config.INPUT_DIM, config.HIDDEN_DIM, config.HIDDEN_DIM, 1))
        inner = config.INNER_LEARNING_RATE, config.INNER_STEPS, config.FIRST_ORDER, config.INNER_GRADIENT_CLIP
        return cls(network, rng, config.CONTEXT_DIM, *inner)

    def weights(self, context: Tensor) -> Tensor:
        """The network's weights [P] for a context [C]."""
        matrix, bias, rest = self.theta.split([*self.network.splits[:2], sum(self.network.splits[2:])])
        return torch.cat([matrix, bias + context @ self.matrix, rest])

    def adapt(self, support: Points, noise: Tensor, steps: int | None = None) -> Adaptation:
        steps = self.steps if steps is None else steps
        loss = self.support_loss(support)
        start = self.theta.new_zeros(len(self.matrix))
        contexts = gradient_descent(
            lambda context: loss(self.weights(context)),
            start,
            self.inner_lr,
            steps,
            first_order=self.first_order,
            clip=self.clip,
        )
        path = [self.weights(context) for context in contexts]
        return Adaptation(path, penalty=self.theta.new_zeros(()), diagnostics={}, code=self.theta[:0])

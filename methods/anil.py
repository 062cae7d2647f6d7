"""ANIL: only the last layer is adapted, the layers below it are shared by all tasks (Raghu et al. 2020, arXiv 1909.09157).

head_{s+1} = head_s - inner_lr * grad mse(body, head_s; support)        section 5.1: "almost no inner loop"
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from config import Config
from dataset import Points
from learner import Adaptation, MetaLearner, Network, gradient_descent


class ANIL(MetaLearner):
    """Meta-parameters: `theta` [P], the initial weights, of which each task adapts the last layer's.

    Args:
        network: the network that is adapted.
        theta: its weights before meta-training, [P].
        inner_lr: step size of the adaptation.
        steps: support gradients in training.
        first_order: treat inner gradients as constants.
        clip: bound on the norm of an inner gradient; 0 = none.
    """

    defaults: ClassVar = {"INNER_LEARNING_RATE": 0.01}

    def __init__(
        self, network: Network, theta: Tensor, inner_lr: float, steps: int, first_order: bool = False, clip: float = 0.0
    ):
        super().__init__()
        self.network, self.inner_lr, self.steps, self.first_order, self.clip = network, inner_lr, steps, first_order, clip
        self.theta = nn.Parameter(theta)

    @classmethod
    def from_config(cls, config: Config, rng: np.random.Generator) -> ANIL:
        network = Network((config.INPUT_DIM, config.HIDDEN_DIM, config.HIDDEN_DIM, 1))
        inner = config.INNER_LEARNING_RATE, config.INNER_STEPS, config.FIRST_ORDER, config.INNER_GRADIENT_CLIP
        return cls(network, network.init(rng), *inner)

    def adapt(self, support: Points, noise: Tensor, steps: int | None = None) -> Adaptation:
        steps = self.steps if steps is None else steps
        head_size = sum(self.network.splits[-2:])
        body, head = self.theta.split([self.network.num_weights - head_size, head_size])
        loss = self.support_loss(support)
        heads = gradient_descent(
            lambda head: loss(torch.cat([body, head])), head, self.inner_lr, steps, first_order=self.first_order, clip=self.clip
        )
        path = [torch.cat([body, head]) for head in heads]
        return Adaptation(path, penalty=self.theta.new_zeros(()), diagnostics={}, code=self.theta[:0])

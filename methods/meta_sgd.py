"""Meta-SGD: MAML with a learned step size for every weight (Li, Zhou, Chen, Li 2017, arXiv 1707.09835).

    weights_{s+1} = weights_s - lr * grad mse(weights_s; support)        lr [P] is learned beside theta (eq. 3, 4)

The step sizes are learned as they are, not as logarithms: in the paper a negative one is allowed.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from config import Config
from dataset import Points
from learner import Adaptation, MetaLearner, Network, gradient_descent


class MetaSGD(MetaLearner):
    """Meta-parameters: `theta` [P], the initial weights, and `lr` [P], the step size of each.

    Args:
        network: the network that is adapted.
        theta: its weights before meta-training, [P].
        lr: initial step size of every weight.
        steps: support gradients in training.
        first_order: treat inner gradients as constants.
        clip: bound on the norm of an inner gradient; 0 = none.
    """

    defaults: ClassVar = {"INNER_LEARNING_RATE": 0.01}

    def __init__(self, network: Network, theta: Tensor, lr: float, steps: int, first_order: bool = False, clip: float = 0.0):
        super().__init__()
        self.network, self.steps, self.first_order, self.clip = network, steps, first_order, clip
        self.theta = nn.Parameter(theta)
        self.lr = nn.Parameter(torch.full_like(theta, lr))

    @classmethod
    def from_config(cls, config: Config, rng: np.random.Generator) -> MetaSGD:
        network = Network((config.INPUT_DIM, config.HIDDEN_DIM, config.HIDDEN_DIM, 1))
        inner = config.INNER_LEARNING_RATE, config.INNER_STEPS, config.FIRST_ORDER, config.INNER_GRADIENT_CLIP
        return cls(network, network.init(rng), *inner)

    def adapt(self, support: Points, noise: Tensor, steps: int | None = None) -> Adaptation:
        steps = self.steps if steps is None else steps
        loss = self.support_loss(support)
        path = gradient_descent(loss, self.theta, self.lr, steps, first_order=self.first_order, clip=self.clip)
        return Adaptation(path, penalty=self.theta.new_zeros(()), diagnostics={}, code=self.theta[:0])

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
from learner import Adaptation, GradientLearner


class ANIL(GradientLearner):
    """Meta-parameters: `theta` [P], the initial weights, of which each task adapts the last layer's."""

    defaults: ClassVar = {"INNER_LEARNING_RATE": 0.01}

    def __init__(self, config: Config, rng: np.random.Generator):
        super().__init__(config, rng)
        self.theta = nn.Parameter(self.network.init(rng))

    def adapt(self, support: Points, noise: Tensor, steps: int | None = None) -> Adaptation:
        head_size = sum(self.network.splits[-2:])
        body, head = self.theta.split([self.network.num_weights - head_size, head_size])
        loss = self.support_loss(support)
        heads = self.descend(lambda head: loss(torch.cat([body, head])), head, self.inner_lr, steps)
        return Adaptation.along([torch.cat([body, head]) for head in heads])

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
from learner import Adaptation, GradientLearner


class MetaSGD(GradientLearner):
    """Meta-parameters: `theta` [P], the initial weights, and `lr` [P], the step size of each."""

    defaults: ClassVar = {"INNER_LEARNING_RATE": 0.01}

    def __init__(self, config: Config, rng: np.random.Generator):
        super().__init__(config, rng)
        self.theta = nn.Parameter(self.network.init(rng))
        self.lr = nn.Parameter(torch.full_like(self.theta, self.inner_lr))

    def adapt(self, support: Points, noise: Tensor, steps: int | None = None) -> Adaptation:
        return Adaptation.along(self.descend(self.support_loss(support), self.theta, self.lr, steps))

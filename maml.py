"""MAML: learned initial weights, gradient descent in weight space (Finn, Abbeel, Levine 2017, algorithm 1).

    weights_0 = theta
    weights_{s+1} = weights_s - inner_lr * grad mse(weights_s; support)
    meta-loss = mse(weights_S; query), differentiated through all steps

`--set FIRST_ORDER=true` takes the inner gradients as constants (section 5.2).
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from torch import Tensor, nn

from config import Config
from dataset import Points
from learner import Adaptation, GradientLearner


class MAML(GradientLearner):
    """Meta-parameters: `theta` [P], the initial weights."""

    defaults: ClassVar = {"META_LEARNING_RATE": 0.002}  # 0.001: a tenth more error; 0.004: the same, and more after 1 gradient

    def __init__(self, config: Config, rng: np.random.Generator):
        super().__init__(config, rng)
        self.theta = nn.Parameter(self.network.init(rng))

    def adapt(self, support: Points, noise: Tensor, steps: int | None = None) -> Adaptation:
        return Adaptation.along(self.descend(self.support_loss(support), self.theta, self.inner_lr, steps))

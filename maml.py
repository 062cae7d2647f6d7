"""MAML: learned initial weights, gradient descent in weight space (Finn, Abbeel, Levine 2017, algorithm 1).

    weights_0 = theta
    weights_{s+1} = weights_s - inner_lr * grad mse(weights_s; support)
    meta-loss = mse(weights_S; query), differentiated through all steps

Independent of other methods, the trainer, files and plots.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from torch import Tensor, nn

from config import Config
from dataset import Points
from learner import Adaptation, MetaLearner, Network, gradient_descent


class MAML(MetaLearner):
    """Meta-parameters: `theta` [P], the initial weights.

    Args:
        network: the network that is adapted.
        theta: its weights before meta-training, [P].
        inner_lr: step size of the adaptation.
        steps: support gradients in training.
        first_order: first-order MAML (section 5.2): inner gradients count as constants.
        clip: bound on the norm of an inner gradient; 0 = none.
    """

    defaults: ClassVar = {"META_LEARNING_RATE": 0.002}  # 0.001: a tenth more error; 0.004: the same, and more after 1 gradient

    def __init__(
        self, network: Network, theta: Tensor, inner_lr: float, steps: int, first_order: bool = False, clip: float = 0.0
    ):
        super().__init__()
        self.network, self.inner_lr, self.steps, self.first_order, self.clip = network, inner_lr, steps, first_order, clip
        self.theta = nn.Parameter(theta)

    @classmethod
    def from_config(cls, config: Config, rng: np.random.Generator) -> MAML:
        network = Network((config.INPUT_DIM, config.HIDDEN_DIM, config.HIDDEN_DIM, 1))
        return cls(
            network,
            network.init(rng),
            config.INNER_LEARNING_RATE,
            config.INNER_STEPS,
            config.FIRST_ORDER,
            config.INNER_GRADIENT_CLIP,
        )

    def adapt(self, support: Points, noise: Tensor, steps: int | None = None) -> Adaptation:
        path = gradient_descent(
            self.support_loss(support),
            self.theta,
            self.inner_lr,
            self.steps if steps is None else steps,
            first_order=self.first_order,
            clip=self.clip,
        )
        return Adaptation(path, penalty=self.theta.new_zeros(()), diagnostics={}, code=self.theta[:0])

"""T-net: MAML in which each layer's activations pass a learned map that is not adapted (Lee and Choi 2018, arXiv 1801.05558).

    layer(x) = x W T + b                                                              W and b are adapted, T is not
    W_{s+1}, b_{s+1} = W_s, b_s - inner_lr * grad mse(W_s, b_s; support)              (section 3.2)

T decides in which directions, and how far, a gradient step moves a layer. A state is a network with the matrices W T.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from config import Config
from dataset import Points
from learner import Adaptation, GradientLearner


class TNet(GradientLearner):
    """Meta-parameters: `theta` [P], the initial W and b, and `maps`, T of each layer [out, out], at first the identity."""

    defaults: ClassVar = {"META_LEARNING_RATE": 0.002}

    def __init__(self, config: Config, rng: np.random.Generator):
        super().__init__(config, rng)
        self.theta = nn.Parameter(self.network.init(rng))
        self.maps = nn.ParameterList(torch.eye(size) for _, size in self.network.shapes)

    def weights(self, own: Tensor) -> Tensor:
        """The network's weights [P] for the W and b in `own` [P]."""
        layers = zip(self.network.layers(own), self.maps, strict=True)
        return torch.cat([part.flatten() for (matrix, bias), own_map in layers for part in (matrix @ own_map, bias)])

    def adapt(self, support: Points, noise: Tensor, steps: int | None = None) -> Adaptation:
        loss = self.support_loss(support)
        path = self.descend(lambda own: loss(self.weights(own)), self.theta, self.inner_lr, steps)
        return Adaptation.along([self.weights(own) for own in path])

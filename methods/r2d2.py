"""R2-D2: ridge regression in closed form on learned features (Bertinetto, Henriques, Torr, Vedaldi 2019, arXiv 1805.08136).

    features F = the last hidden layer's units and a 1, at the support points        [K, H + 1]
    head = mean + (F'F + diag(precision))^-1 F' (y - F mean)                          (eq. 4; here with a prior mean)

The paper shrinks all weights of the head to 0 by one learned number; here their prior has a learned mean (the head in
`theta`) and a learned precision for each, relative to that of the noise. Entry 0 of the path is the prior head. One
"gradient" solves for the best one, and further ones leave it as it is. With more features than points the same head is found
from a K x K system (eq. 5, Woodbury).
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from config import Config
from dataset import Points
from learner import Adaptation, MetaLearner


class R2D2(MetaLearner):
    """Meta-parameters: `theta` [P], features and prior mean of the head, and `log_precision` [H + 1] of the prior."""

    defaults: ClassVar = {"EPOCHS": 48, "META_LEARNING_RATE": 0.01}  # 16: trained 5-shot, some seeds stop at 0.7

    def __init__(self, config: Config, rng: np.random.Generator):
        super().__init__(config, rng)
        self.theta = nn.Parameter(self.network.init(rng))
        self.log_precision = nn.Parameter(torch.zeros(config.HIDDEN_DIM + 1))

    @classmethod
    def numbers_per_task(cls, config: Config, shots: int) -> int:
        return int(min(shots, config.HIDDEN_DIM + 1) ** 2)  # the matrix of the equations

    def adapt(self, support: Points, noise: Tensor, steps: int | None = None) -> Adaptation:
        body, head = self.theta.split([len(self.theta) - len(self.log_precision), len(self.log_precision)])
        features = nn.functional.pad(self.network.hidden(self.theta, support.x), (0, 1), value=1.0)  # [K, H + 1]
        residual = support.y - features @ head[:, None]  # [K, 1]
        posterior = head + self._shift(features, residual)[:, 0]
        gradients = 1 if steps is None else steps
        return Adaptation.along([self.theta] + [torch.cat([body, posterior])] * gradients)

    def head_factor(self, features: Tensor) -> Tensor:
        return (-self.log_precision / 2).exp()

    def _shift(self, features: Tensor, residual: Tensor) -> Tensor:
        """The ridge solution [H + 1, 1] for `features` [K, H + 1] and `residual` [K, 1]."""
        count, size = features.shape
        if count >= size:
            matrix, right = features.T @ features + self.log_precision.exp().diag(), features.T @ residual
            return torch.linalg.solve_ex(matrix, right)[0]  # not finite, and no exception, where there is no solution
        scaled = features * (-self.log_precision).exp()  # [K, H + 1]
        identity = torch.eye(count, device=features.device, dtype=features.dtype)
        return scaled.T @ torch.linalg.solve_ex(scaled @ features.T + identity, residual)[0]

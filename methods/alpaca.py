"""ALPaCA: Bayesian linear regression on learned features (Harrison, Sharma, Pavone 2018, arXiv 1807.08912).

    head = mean + factor b,  b ~ N(0, noise I)                                        the prior; features F, [K, H + 1]
    b = (E'E + I)^-1 E' (y - F mean),  E = F factor  [K, R]                           the posterior's mean
    meta-loss = mse(head; query) - WEIGHT / K * log p(y | x; support)                 log evidence, marginal over b

A linear mixed model (Laird and Ware 1982) whose features are learned: F mean is the fixed part, and each task has R random
effects. The paper trains by the query points' likelihood and has a covariance of full rank. Here few effects keep a small
table from being learned by heart, and the error that a task is judged by is trained, with a little of the evidence, which
says how far tasks differ. Entry 0 of the path is the prior head. One "gradient" finds the posterior's, and further ones
leave it as it is.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from config import Config
from dataset import Points
from learner import Adaptation, MetaLearner

EFFECTS = 8  # R; 4 and 16 do as well
WEIGHT = 0.1  # of the negative log evidence of a support point; 0.01 to 0.3 do as well


class ALPaCA(MetaLearner):
    """Meta-parameters: `theta` [P], features and prior head; `factor` [H + 1, R]; `log_noise` [], of its variance."""

    defaults: ClassVar = {"EPOCHS": 48, "META_LEARNING_RATE": 0.01}  # as R2-D2's; nothing else was tried

    def __init__(self, config: Config, rng: np.random.Generator):
        super().__init__(config, rng)
        self.theta = nn.Parameter(self.network.init(rng))
        factor = (
            rng.standard_normal((config.HIDDEN_DIM + 1, EFFECTS)) / EFFECTS**0.5
        )  # prior covariance relative to the noise's
        self.factor = nn.Parameter(torch.from_numpy(factor.astype(np.float32)))
        self.log_noise = nn.Parameter(torch.tensor(-3.0))

    def adapt(self, support: Points, noise: Tensor, steps: int | None = None) -> Adaptation:
        body, head = self.theta.split([len(self.theta) - len(self.factor), len(self.factor)])
        features = nn.functional.pad(self.network.hidden(self.theta, support.x), (0, 1), value=1.0)  # [K, H + 1]
        residual, effects = support.y - features @ head[:, None], features @ self.factor  # [K, 1], [K, R]
        matrix = effects.T @ effects + torch.eye(EFFECTS, device=effects.device, dtype=effects.dtype)
        root = torch.linalg.cholesky_ex(matrix)[0]  # never an exception
        found = torch.cholesky_solve(effects.T @ residual, root)  # [R, 1]
        squares = (residual - effects @ found).square().sum() + found.square().sum()  # residual' (I + E E')^-1 residual
        spread = 2 * root.diagonal().log().sum()  # log det (I + E E')
        evidence = -(squares / self.log_noise.exp() + spread) / len(residual) / 2 - self.log_noise / 2  # without log 2 pi
        posterior = torch.cat([body, head + (self.factor @ found)[:, 0]])
        path = [self.theta] + [posterior] * (1 if steps is None else steps)
        return Adaptation(path, penalty=-WEIGHT * evidence, diagnostics={"evidence": evidence}, code=self.theta[:0])

    def head_factor(self, features: Tensor) -> Tensor:
        return self.factor

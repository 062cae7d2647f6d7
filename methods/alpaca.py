"""ALPaCA: Bayesian linear regression on learned features (Harrison, Sharma, Pavone 2018, arXiv 1807.08912).

    head = mean + factor b,  b ~ N(0, noise I)                                        the prior; features F, [K, H + 1]
    b = (E'E + I)^-1 E' (y - F mean),  E = F factor  [K, R]                           the posterior's mean
    meta-loss = mse(head; query) - WEIGHT / K * log p(y | x; support)                 log evidence, marginal over b

A linear mixed model (Laird and Ware 1982) whose features are learned: F mean is the fixed part, and each task has R random
effects. The paper trains by the query points' likelihood and has a covariance of full rank. Here few effects keep a small
table from being learned by heart, and the error that a task is judged by is trained, with a little of the evidence, which
says how far tasks differ. Entry 0 of the path is the prior head. One "gradient" finds the posterior's, and further ones
leave it as it is.

With splines training starts where statistics stands: F has those of a linear mixed model, fitted to the training subjects,
beside the learned features, and `mean`, `factor` and noise are those of that model. The learned features have mean 0 and a
small factor at first: they learn what splines with Gaussian coefficients can't say. A state is then the network's weights and
the splines' coefficients.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from config import Config
from dataset import Points
from learner import Adaptation, MetaLearner, posterior_std
from methods.mixed_model import FEATURES, KNOTS, Splines, choose_mixed_model

EFFECTS = 8  # R; 4 and 16 do as well
MORE_EFFECTS, SMALL = 4, 0.1  # beside the mixed model's: how many, and the size of their factor at first
WEIGHT = 0.1  # of the negative log evidence of a support point; 0.01 to 0.3 do as well


class ALPaCA(MetaLearner):
    """Meta-parameters: `theta` [P], features and prior head; `factor` [H + 1, R]; `log_noise` [], of its variance.

    With splines also `knots` and `turn`, which the splines are made of and which are not trained, and `beta` [F], their mean;
    `factor` is [H + 1 + F, F + 4].
    """

    settings: ClassVar = ("ALPACA_SPLINES",)
    defaults: ClassVar = {"EPOCHS": 48, "META_LEARNING_RATE": 0.01}  # as R2-D2's; nothing else was tried

    def __init__(self, config: Config, rng: np.random.Generator):
        super().__init__(config, rng)
        self.theta = nn.Parameter(self.network.init(rng))
        self.head = config.HIDDEN_DIM + 1
        self.splines = FEATURES if config.ALPACA_SPLINES else 0  # F
        self.effects = self.splines + MORE_EFFECTS if self.splines else EFFECTS  # R
        size, scale = (MORE_EFFECTS, SMALL) if self.splines else (EFFECTS, EFFECTS**-0.5)
        own = torch.from_numpy((rng.standard_normal((self.head, size)) * scale).astype(np.float32))
        # the prior covariance relative to the noise's has a block for the splines, one for the learned features
        self.factor = nn.Parameter(nn.functional.pad(own, (self.splines, 0, 0, self.splines)))
        self.log_noise = nn.Parameter(torch.tensor(-3.0))
        if self.splines:
            shapes = (config.INPUT_DIM, KNOTS), (1 + (KNOTS - 1) * config.INPUT_DIM, FEATURES), (FEATURES,)
            self.knots, self.turn, self.beta = (nn.Parameter(torch.zeros(shape)) for shape in shapes)
            with torch.no_grad():
                self.theta[-self.head :] = 0

    def start_from(self, tasks: Sequence[Points]) -> None:
        if not self.splines:
            return
        splines, estimate = choose_mixed_model(tasks)
        size = len(estimate.beta)
        values, axes = torch.linalg.eigh(estimate.covariance)
        with torch.no_grad():
            self.knots.copy_(splines.knots)
            self.turn[:, :size], self.beta[:size] = splines.turn, estimate.beta
            self.factor[self.head : self.head + size, :size] = axes * (values.clamp(min=0) / estimate.noise).sqrt()
            self.log_noise.fill_(math.log(estimate.noise))

    @property
    def state_size(self) -> int:
        return self.network.num_weights + self.splines

    def adapt(self, support: Points, noise: Tensor, steps: int | None = None) -> Adaptation:
        prior = torch.cat([self.theta, self.beta]) if self.splines else self.theta
        count = self.head + self.splines
        body, head = prior.split([len(prior) - count, count])
        features = self._features(self.theta, support.x)  # [K, H + 1 + F]
        residual, effects = support.y - features @ head[:, None], features @ self.factor  # [K, 1], [K, R]
        matrix = effects.T @ effects + torch.eye(self.effects, device=effects.device, dtype=effects.dtype)
        root = torch.linalg.cholesky_ex(matrix)[0]  # never an exception
        found = torch.cholesky_solve(effects.T @ residual, root)  # [R, 1]
        squares = (residual - effects @ found).square().sum() + found.square().sum()  # residual' (I + E E')^-1 residual
        spread = 2 * root.diagonal().log().sum()  # log det (I + E E')
        evidence = -(squares / self.log_noise.exp() + spread) / len(residual) / 2 - self.log_noise / 2  # without log 2 pi
        posterior = torch.cat([body, head + (self.factor @ found)[:, 0]])
        path = [prior] + [posterior] * (1 if steps is None else steps)
        return Adaptation(path, penalty=-WEIGHT * evidence, diagnostics={"evidence": evidence}, code=self.theta[:0])

    def predict(self, state: Tensor, x: Tensor) -> Tensor:
        if not self.splines:
            return super().predict(state, x)
        weights, coefficients = state.split([self.network.num_weights, self.splines])
        return self.network(weights, x).flatten() + self._spline_features(x) @ coefficients

    def std(self, state: Tensor, x: Tensor, support: Points) -> Tensor:
        weights = state[: self.network.num_weights]
        known, asked = (self._features(weights, part).double() @ self.factor.double() for part in (support.x, x))
        return posterior_std(known, asked)

    def _features(self, weights: Tensor, x: Tensor) -> Tensor:
        """The last hidden layer's units, a 1, and the splines, [N, H + 1 + F]."""
        units = nn.functional.pad(self.network.hidden(weights, x), (0, 1), value=1.0)
        return torch.cat([units, self._spline_features(x)], -1) if self.splines else units

    def _spline_features(self, x: Tensor) -> Tensor:
        splines = Splines(self.knots.detach().double(), self.turn.detach().double())  # cubes of small differences
        return splines(x.double()).to(x.dtype)

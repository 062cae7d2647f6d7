"""The linear mixed model of statistics, fitted by maximum likelihood instead of training (Laird and Ware 1982).

    y = F(x) (beta + b) + noise,  b ~ N(0, covariance), one for each task             F: splines of the inputs, [K, F]
    beta + b = beta + C (noise I + F'F C)^-1 F' (y - F beta)                          the best linear unbiased prediction

A state is a task's coefficients beta + b. Entry 0 of the path is beta: the curve of the population. One "gradient" finds the
prediction (Robinson 1991), and further ones leave it as it is. All is computed in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from config import Config
from dataset import Points
from learner import Adaptation, MetaLearner

KNOTS = 12  # most, of an input's spline
FEATURES = 16  # most
Features = Callable[[Tensor], Tensor]  # x [..., D] -> [..., F]


class MixedModel(MetaLearner):
    """Meta-parameters, all found by `fit`: what `Splines` are made of, and the `Estimate` with zeros up to 16 features."""

    defaults: ClassVar = {"EVAL_STEPS": 1}

    def __init__(self, config: Config, rng: np.random.Generator):
        super().__init__(config, rng)

        def found(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.zeros(shape, dtype=torch.float64))

        self.knots, self.turn = found(config.INPUT_DIM, KNOTS), found(1 + (KNOTS - 1) * config.INPUT_DIM, FEATURES)
        self.beta, self.covariance, self.noise = found(FEATURES), found(FEATURES, FEATURES), found()

    @property
    def state_size(self) -> int:
        return FEATURES

    def fit(self, tasks: Sequence[Points]) -> None:
        self.keep(*choose_mixed_model(tasks))

    def keep(self, splines: Splines, estimate: Estimate) -> None:
        """Take what was fitted as the meta-parameters."""
        size = len(estimate.beta)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.zero_()
            self.knots.copy_(splines.knots)
            self.turn[:, :size] = splines.turn
            self.beta[:size], self.covariance[:size, :size] = estimate.beta, estimate.covariance
            self.noise.fill_(estimate.noise)

    def adapt(self, support: Points, noise: Tensor, steps: int | None = None) -> Adaptation:
        given = self._features(support.x)
        shrink = shrinkage(given.T @ given, self.covariance, self.noise)
        coefficients = self.beta + shrink @ (given.T @ (support.y[:, 0] - given @ self.beta))
        return Adaptation.along([self.beta] + [coefficients] * (1 if steps is None else steps))

    def predict(self, state: Tensor, x: Tensor) -> Tensor:
        return (self._features(x) @ state).to(x.dtype)

    def std(self, state: Tensor, x: Tensor, support: Points) -> Tensor:
        given, asked = self._features(support.x), self._features(x)
        shrink = shrinkage(given.T @ given, self.covariance, self.noise)  # times the noise's variance, b's covariance
        return ((asked @ shrink) * asked).sum(1).clamp(min=0).sqrt()

    def _features(self, x: Tensor) -> Tensor:
        return Splines(self.knots, self.turn)(x.double())


def shrinkage(gram: Tensor, covariance: Tensor, noise: Tensor) -> Tensor:
    """C (noise I + F'F C)^-1, [..., F, F], from F'F `gram` and C `covariance`, which may be singular."""
    unit = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    return torch.linalg.solve_ex(noise * unit + covariance @ gram, covariance)[0]


# ---- splines


@dataclass(frozen=True, eq=False)
class Splines:
    """Features of x [..., D]: `turn` times a constant, the intercept, and a natural cubic spline of each input.

    Beyond the lowest and the highest knot a spline goes on as a straight line (Hastie, Tibshirani and Friedman 2009, equations
    5.4 and 5.5). Knots that are equal count once.
    """

    knots: Tensor  # [D, 12], rising
    turn: Tensor  # [1 + 11 D, F]

    def __call__(self, x: Tensor) -> Tensor:
        return spline_basis(x, self.knots) @ self.turn


def spline_basis(x: Tensor, knots: Tensor) -> Tensor:
    """A constant and the 11 functions of each input's spline, [..., 1 + 11 D], at x [..., D]; 0 for a knot that counts not."""
    gaps, value = knots[:, -1:] - knots[:, :-1], x[..., None]  # [D, 11], [..., D, 1]
    cubes = (value - knots[:, :-1]).clamp(min=0) ** 3 - (value - knots[:, -1:]).clamp(min=0) ** 3
    cubes = cubes / torch.where(gaps > 0, gaps, 1)
    curved = torch.where(knots[:, :-2] < knots[:, 1:-1], cubes[..., :-1] - cubes[..., -1:], 0)  # [..., D, 10]
    columns = torch.cat([value, curved], -1).flatten(-2)
    return nn.functional.pad(columns, (1, 0), value=1.0)


def spline_features(x: Tensor, knots: int) -> Splines:
    """Features whose products average to the identity over the training points `x` [N, D], whose quantiles are the knots.

    Of collinear features the needed ones are kept, at most 16.
    """
    places = torch.empty(x.shape[1], KNOTS, dtype=x.dtype)
    for dimension, column in enumerate(x.T):
        own = torch.quantile(column, torch.linspace(0, 1, knots, dtype=x.dtype)).unique()
        places[dimension] = torch.cat([own[:1].expand(KNOTS - len(own)), own])
    basis = spline_basis(x, places)
    lengths = basis.norm(dim=0)
    lengths = torch.where(lengths > 0, lengths, 1)
    _, singular, axes = torch.linalg.svd(torch.linalg.qr(basis / lengths, mode="r")[1])
    kept = (singular > 1e-7 * singular[0])[:FEATURES].nonzero()[:, 0]
    return Splines(places, axes[kept].T / singular[kept] / lengths[:, None] * len(x) ** 0.5)


# ---- maximum likelihood


class Estimate(NamedTuple):
    """A fitted mixed model on given features."""

    beta: Tensor  # [F], fixed effects
    covariance: Tensor  # [F, F], of the random effects
    noise: float  # variance
    likelihood: float  # log of the marginal one, of the training points


def fit_mixed_model(train: Sequence[Points], features: Features, steps: int = 200, tolerance: float = 0.01) -> Estimate:
    """Maximum likelihood by EM, the fixed effects by generalised least squares (Laird and Ware 1982, section 4).

    Ends where a step raises the log likelihood by less than `tolerance`. Nothing is inverted that could be singular: there may
    be fewer tasks or points of a task than features. Orthonormal features, as from `spline_features`, start it well.

    Args:
        train: x [K, D] and y [K, 1] of each task, float64; M tasks.
    """
    pairs = [(features(points.x), points.y) for points in map(_tensors, train)]
    gram = torch.stack([given.T @ given for given, _ in pairs])  # [M, F, F]
    moment = torch.stack([given.T @ y for given, y in pairs])  # [M, F, 1]
    square, count = sum(float(y.square().sum()) for _, y in pairs), sum(len(y) for _, y in pairs)
    unit = torch.eye(gram.shape[1], dtype=gram.dtype)
    beta = _least_squares(gram.sum(0), moment.sum(0))
    lowest = 1e-8 * square / count + 1e-30  # a noise variance of 0 would be a division by 0
    noise = max(lowest, (square - float((moment.sum(0) * beta).sum())) / count / 2)
    covariance, likelihood = unit * noise / len(unit), -np.inf
    for _ in range(steps):
        shrink = shrinkage(gram, covariance, torch.tensor(noise, dtype=gram.dtype))  # times noise: b's posterior covariance
        left = gram @ shrink
        beta = _least_squares((gram - left @ gram).sum(0), (moment - left @ moment).sum(0))
        rest = moment - gram @ beta
        effects = shrink @ rest  # [M, F, 1]
        squares = square - 2 * float((moment.sum(0) * beta).sum()) + float(beta.T @ gram.sum(0) @ beta)
        before, spread = likelihood, float(torch.linalg.slogdet(unit + gram @ covariance / noise)[1].sum())
        likelihood = -(count * np.log(2 * np.pi * noise) + spread + (squares - float((rest * effects).sum())) / noise) / 2
        if likelihood - before < tolerance:
            break
        second = effects @ effects.mT + noise * shrink  # E[b b']
        noise = max(lowest, (squares - 2 * float((rest * effects).sum()) + float((gram * second).sum())) / count)
        covariance = (second + second.mT).mean(0) / 2
    return Estimate(beta[:, 0], covariance, noise, likelihood)


def choose_mixed_model(train: Sequence[Points]) -> tuple[Splines, Estimate]:
    """The mixed model with the number of knots, 2, 4, ... 12, up to where its information criterion gets worse.

    That is Schwarz's, with the number of tasks: they are what is independent. A model has F fixed effects, F (F + 1) / 2
    covariances and the noise; fewer features than tasks.
    """
    x, best, highest = torch.cat([_tensors(points).x for points in train]), None, -np.inf
    for knots in range(2, KNOTS + 1, 2):
        features = spline_features(x, knots)
        size = features.turn.shape[1]
        if best is not None and not len(best[1].beta) < size < len(train):
            break
        estimate = fit_mixed_model(train, features)
        criterion = 2 * estimate.likelihood - np.log(len(train)) * (size * (size + 1) / 2 + size + 1)
        if criterion <= highest:
            break
        best, highest = (features, estimate), criterion
    assert best is not None
    return best


def _tensors(points: Points) -> Points:
    return Points(*(torch.as_tensor(part, dtype=torch.float64) for part in points))


def _least_squares(matrix: Tensor, right: Tensor) -> Tensor:
    return torch.linalg.lstsq(matrix, right, driver="gelsd").solution  # for a matrix of any rank

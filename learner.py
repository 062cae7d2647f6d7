"""The seam between a meta-learning method and the loop that trains it: `MetaLearner.adapt`.

Everything is written for ONE task, with weights as one flat vector; the trainer vectorises over tasks. Independent
of any method, the trainer, the configuration and files.

Notation: T tasks in a meta-batch, K support points, Q query points, D input dimension, S gradient steps on
the support set, P weights of the adapted network.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import grad

from dataset import Points

SMALLEST = torch.finfo(torch.float32).tiny


class Network:
    """A multilayer perceptron whose weights come in as ONE flat vector: it holds shapes, never numbers.

    Args:
        sizes: units of each layer, input and output included: (1, 40, 40, 1) is the network of Finn et al. 2017.
        activation: between layers; the last layer has none.
    """

    def __init__(self, sizes: Sequence[int], activation: Callable[[Tensor], Tensor] = torch.relu):
        self.shapes = list(pairwise(sizes))
        self.activation = activation
        self.splits = [size for fan_in, fan_out in self.shapes for size in (fan_in * fan_out, fan_out)]
        self.num_weights = sum(self.splits)  # P

    def init(self, rng: np.random.Generator) -> Tensor:
        """Random weights [P]: Gaussian of variance 2 / fan_in (He et al. 2015), zero biases."""
        parts: list[np.ndarray[Any, Any]] = []
        for fan_in, fan_out in self.shapes:
            parts += [rng.standard_normal(fan_in * fan_out) * math.sqrt(2 / fan_in), np.zeros(fan_out)]
        return torch.from_numpy(np.concatenate(parts).astype(np.float32))

    def layers(self, weights: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Views of `weights` [P] as a (matrix [in, out], bias [out]) for each layer."""
        parts = weights.split(self.splits)  # one split: its gradient is one concatenation
        return [(parts[2 * i].view(shape), parts[2 * i + 1]) for i, shape in enumerate(self.shapes)]

    def hidden(self, weights: Tensor, x: Tensor) -> Tensor:
        """The last hidden layer's units [N, hidden] of the network with `weights` [P] at `x` [N, in]."""
        for matrix, bias in self.layers(weights)[:-1]:
            x = self.activation(affine(x, matrix, bias))
        return x

    def __call__(self, weights: Tensor, x: Tensor) -> Tensor:
        """Predictions [N, out] of the network with `weights` [P] at `x` [N, in]."""
        *layers, last = self.layers(weights)  # not by `hidden`: to split them twice costs a tenth of a meta-step
        for matrix, bias in layers:
            x = self.activation(affine(x, matrix, bias))
        return affine(x, *last)


def affine(x: Tensor, matrix: Tensor, bias: Tensor) -> Tensor:
    """x [N, in] times matrix [in, out] plus bias [out] -> [N, out]."""
    if matrix.shape[0] == 1:  # an outer product, and below a product with a vector: for both, multiplying is faster
        return x * matrix + bias
    if matrix.shape[1] == 1:
        return (x * matrix.T).sum(1, keepdim=True) + bias
    return x @ matrix + bias


def mse(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared error over points, [] from two [N, 1]; refuses shapes that would broadcast."""
    assert prediction.shape == target.shape, f"{tuple(prediction.shape)} against {tuple(target.shape)}"
    return (prediction - target).square().mean()


def descend(
    loss: Callable[[Tensor], Tensor],
    point: Tensor,
    lr: float | Tensor,
    steps: int,
    *,
    first_order: bool = False,
    clip: float = 0.0,
) -> list[Tensor]:
    """Differentiable gradient descent: [point_0, ..., point_S], point_{s+1} = point_s - lr * grad loss(point_s).

    Args:
        loss: a scalar function of a vector.
        point: where to start, [N].
        lr: the step size, a number or a vector [N].
        first_order: treat the gradients as constants (Finn et al. 2017, section 5.2).
        clip: a gradient longer than this is scaled down to it; 0 = never.

    `torch.func.grad` differentiates whatever the caller does: under an outer `grad` the result is differentiable
    again (second order), under an outer `torch.no_grad()` it leaves no graph behind. So evaluation calls this too.
    """
    path = [point]
    for _ in range(steps):
        gradient = grad(loss)(path[-1])
        if first_order:
            gradient = gradient.detach()
        if clip:
            # clip / max(norm, clip), written so that its derivative exists at a zero gradient
            least = max(clip**2, SMALLEST)  # the square of a small one is 0 in float32
            gradient = gradient * clip * gradient.square().sum().clamp(min=least).rsqrt()
        path.append(path[-1] - lr * gradient)
    return path


class Adaptation(NamedTuple):
    """What adapting to ONE task produced."""

    path: list[Tensor]  # S + 1 weight vectors [P]: entry s is the network after s support gradients
    penalty: Tensor  # [], added to this task's meta-loss
    diagnostics: dict[str, Tensor]  # scalars worth a curve
    code: Tensor  # what the method knows of the task before any gradient: [Z], or [0] where it has no such thing


class MetaLearner(nn.Module, ABC):
    """Meta-parameters (its `nn.Parameter`s) and a way to adapt them to one task."""

    network: Network  # the network that is adapted
    noise_dim: int = 0  # standard normal numbers that `adapt` wants per task
    defaults: ClassVar[dict[str, Any]] = {}  # settings that suit this method better than the shared defaults

    @classmethod
    @abstractmethod
    def from_config(cls, config: Any, rng: np.random.Generator) -> MetaLearner:
        """Build the learner from a Config, with initial weights drawn from `rng`."""

    @classmethod
    def numbers_per_weight(cls, config: Any) -> int:
        """Meta-parameters for each weight of the network, about: what its size costs, before anything is made."""
        return 1

    @classmethod
    def numbers_per_task(cls, config: Any, shots: int) -> int:
        """Numbers that adapting to `shots` points holds at a time, beside weights and units of the network: a lower bound."""
        return 0

    @abstractmethod
    def adapt(self, support: Points, noise: Tensor, steps: int | None = None) -> Adaptation:
        """Adapt to one task: a pure function of the meta-parameters and its arguments.

        Args:
            support: x [K, D], y [K, 1].
            noise: [noise_dim], standard normal while training, zeros at evaluation.
            steps: support gradients to take; None = as many as in training.
        """

    def forward(self, support: Points, noise: Tensor, steps: int | None = None) -> Adaptation:
        """`adapt`, where `torch.func.functional_call` looks for it."""
        return self.adapt(support, noise, steps)

    def hidden_matrices(self) -> list[Tensor]:
        """The matrices that Muon is for, as views of the meta-parameters: here those between the hidden layers of `theta`."""
        theta = dict(self.named_parameters()).get("theta", torch.empty(0))
        return [matrix for matrix, _ in self.network.layers(theta)[1:-1]] if len(theta) == self.network.num_weights else []

    def head_factor(self, features: Tensor) -> Tensor:
        """A factor L of the prior covariance L L' of the last layer's weights, relative to the noise's variance, for
        `evaluation.spread`: [H + 1, R], or the diagonal [H + 1] of a diagonal one.

        Args:
            features: the adapted network's last hidden layer at the support points, and a 1: [K, H + 1].
        """
        return (0.1 * features.square().mean()).rsqrt().expand(features.shape[1])

    def support_loss(self, support: Points) -> Callable[[Tensor], Tensor]:
        """The error on `support` as a function of the network's weights [P] -> []."""
        return lambda weights: mse(self.network(weights, support.x), support.y)

    def diagnostic_names(self) -> list[str]:
        """What the method reports, found by adapting once to a task of one point."""
        like = next(self.parameters())
        support = Points(like.new_zeros(1, self.network.shapes[0][0]), like.new_zeros(1, 1))
        with torch.no_grad():
            return list(self.adapt(support, like.new_zeros(self.noise_dim), 0).diagnostics)

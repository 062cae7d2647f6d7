"""The interface of a meta-learning method: `MetaLearner.adapt`, and what has a default beside it.

Everything is written for ONE task, whose state is one flat vector: by default the weights of a network. The trainer vectorises
over tasks.

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
from torch.func import grad, vmap

from dataset import Points, Task
from system.compiler_cache import load_derivatives
from system.threads import EVAL_CHUNK, threads_for

SMALLEST = torch.finfo(torch.float32).tiny


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "tanh": torch.tanh,
    "elu": nn.functional.elu,
    "silu": nn.functional.silu,
    "sine": torch.sin,
}


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
    """Mean squared error over points, [] from two [N]; refuses shapes that would broadcast."""
    assert prediction.shape == target.shape, f"{tuple(prediction.shape)} against {tuple(target.shape)}"
    return (prediction - target).square().mean()


def gradient_descent(
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


def posterior_std(known: Tensor, asked: Tensor) -> Tensor:
    """The standard deviation [N] at features `asked` [N, F] of ridge regression on `known` [K, F], in units of the noise.

    The prior of the coefficients is N(0, I) (Bishop 2006, eq. 3.59).
    """
    if len(known) >= known.shape[1]:
        products = known.T @ known
        variance = (asked * _solve(products, asked.T).T).sum(1)
    else:  # by Woodbury's identity, from a K x K system
        products = asked @ known.T  # [N, K]
        variance = asked.square().sum(1) - (products * _solve(known @ known.T, products.T).T).sum(1)
    return variance.clamp(min=0).sqrt()


class Adaptation(NamedTuple):
    """What adapting to ONE task produced."""

    path: list[Tensor]  # S + 1 states [P]: entry s is the one after s support gradients, by default the network's weights
    penalty: Tensor  # [], added to this task's meta-loss
    diagnostics: dict[str, Tensor]  # scalars worth a curve
    code: Tensor  # what the method knows of the task before any gradient: [Z], or [0] where it has no such thing

    @classmethod
    def along(cls, path: list[Tensor]) -> Adaptation:
        """One without penalty, diagnostics and code."""
        return cls(path, penalty=path[0].new_zeros(()), diagnostics={}, code=path[0][:0])


class MetaLearner(nn.Module, ABC):
    """Meta-parameters (its `nn.Parameter`s) and a way to adapt them to one task.

    A method defines `adapt`. By default a state is the weights [P] of `network`, and `loss` is the mean squared error. A method
    with another kind of state overrides `predict`, `std` and `state_size`.

    Args:
        config: the settings; of a method's own it reads those that it names in `settings`.
        rng: draws the initial weights.
    """

    settings: ClassVar[tuple[str, ...]] = ()  # keys that the method reads, beside the sizes of the network
    network: Network  # the network that is adapted; a method with another kind of state need not use it
    noise_dim: int = 0  # standard normal numbers that `adapt` wants per task
    defaults: ClassVar[dict[str, Any]] = {}  # settings that suit this method better than the shared defaults

    def __init__(self, config: Any, rng: np.random.Generator):
        super().__init__()
        self.input_dim: int = config.INPUT_DIM
        self.hidden_sizes, self.activation = [config.HIDDEN_DIM] * config.HIDDEN_LAYERS, ACTIVATIONS[config.ACTIVATION]
        self.network = self.perceptron(config.INPUT_DIM, 1)

    def perceptron(self, inputs: int, outputs: int) -> Network:
        """A network with the hidden layers and the activation of the settings."""
        return Network((inputs, *self.hidden_sizes, outputs), self.activation)

    @classmethod
    def from_config(cls, config: Any, rng: np.random.Generator) -> MetaLearner:
        """Build the learner from a Config, with initial weights drawn from `rng`."""
        return cls(config, rng)

    @classmethod
    def meta_parameters_per_weight(cls, config: Any) -> int:
        """About how many meta-parameters there are for each weight of the network: asked before any memory is taken."""
        return 1

    @classmethod
    def numbers_per_task(cls, config: Any, shots: int) -> int:
        """At least how many numbers adapting to `shots` points keeps in memory, beside the network's weights and units."""
        return 0

    @abstractmethod
    def adapt(self, support: Points, noise: Tensor, steps: int | None = None) -> Adaptation:
        """Adapt to one task: a pure function of the meta-parameters and its arguments.

        Args:
            support: x [K, D], y [K, 1], of at least one point.
            noise: [noise_dim], standard normal while training, zeros at evaluation.
            steps: support gradients to take; None = as many as in training.
        """

    def fit(self, tasks: Sequence[Points]) -> None:
        """Find the meta-parameters from the points of training tasks, x [N, D], y [N, 1] each, in float64.

        A method that defines it is not trained: nothing differentiates it, and no setting of the training loop has an effect.
        """
        raise NotImplementedError

    def start_from(self, tasks: Sequence[Points]) -> None:
        """Change the initial meta-parameters by the points of training tasks, as `fit` gets them, before training.

        By default nothing changes. It may not draw random numbers.
        """

    @classmethod
    def is_fitted(cls) -> bool:
        """Whether `fit` takes the place of training."""
        return cls.fit is not MetaLearner.fit

    def prior(self) -> Tensor:
        """The state [P] for a task of which no point is known: by default the one that adapting starts from."""
        return self._unadapted().path[0]

    def predict(self, state: Tensor, x: Tensor) -> Tensor:
        """Predictions [N] at x [N, D]: by default of the network with the weights `state` [P]."""
        return self.network(state, x).flatten()

    def loss(self, path: Sequence[Tensor], query: Points) -> Tensor:
        """What is minimised over query points x [Q, D], y [Q, 1] of a task, beside the penalty of `adapt`, [].

        By default the mean squared error after the last gradient. All states of the path are given: a multi-step loss (Antoniou
        et al. 2019) weighs several.
        """
        return self.error(path[-1], query)

    def error(self, state: Tensor, points: Points) -> Tensor:
        """Mean squared error [] of a state on points x [N, D], y [N, 1]."""
        return mse(self.predict(state, points.x), points.y.flatten())

    @property
    def state_size(self) -> int:
        """P, the length of a state."""
        return self.network.num_weights

    def forward(self, task: Task, noise: Tensor) -> tuple[Tensor, Tensor]:
        """The meta-loss [] of one task, and what is worth logging, [1 + diagnostics]: the query error first.

        `torch.func.functional_call` calls it with other meta-parameters.
        """
        adaptation = self.adapt(task.support, noise)
        loss = self.loss(adaptation.path, task.query)
        error = loss if type(self).loss is MetaLearner.loss else self.error(adaptation.path[-1], task.query)
        return loss + adaptation.penalty, torch.stack([error, *adaptation.diagnostics.values()])

    def adapt_or_prior(self, support: Points, noise: Tensor, steps: int) -> Adaptation:
        """`adapt`, and `prior` after any number of gradients where `support` has no point."""
        return self.adapt(support, noise, steps) if len(support.x) else Adaptation.along([self.prior()] * (steps + 1))

    def std(self, state: Tensor, x: Tensor, support: Points) -> Tensor:
        """The posterior standard deviation [N] of predictions at x [N, D], up to a factor; intervals follow it.

        By default, in units of the noise, that of ridge regression (Bishop 2006, eq. 3.59) on the last hidden layer with the
        prior that `head_factor` gives; not finite where the units are not.
        """
        hidden = (self.network.hidden(state, part).double() for part in (support.x, x))
        known, asked = (nn.functional.pad(part, (0, 1), value=1.0) for part in hidden)
        factor = self.head_factor(known if len(known) else asked).double()
        return posterior_std(known * factor, asked * factor)

    def hidden_matrices(self) -> list[Tensor]:
        """The matrices that Muon is for, as views of the meta-parameters: here those between the hidden layers of `theta`."""
        theta = dict(self.named_parameters()).get("theta", torch.empty(0))
        return [matrix for matrix, _ in self.network.layers(theta)[1:-1]] if len(theta) == self.network.num_weights else []

    def head_factor(self, features: Tensor) -> Tensor:
        """The prior standard deviations [H + 1] of the last layer's weights, relative to the noise's, for the posterior's.

        Args:
            features: the adapted network's last hidden layer at the support points, and a 1: [K, H + 1]; without support
                points those at the places where it is asked.
        """
        return (0.1 * features.square().mean()).rsqrt().expand(features.shape[1])

    def support_loss(self, support: Points) -> Callable[[Tensor], Tensor]:
        """The error on `support` as a function of the state [P] -> []."""
        return lambda state: self.error(state, support)

    def diagnostic_names(self) -> list[str]:
        """What the method reports beside its states."""
        with torch.no_grad():
            return list(self._unadapted().diagnostics)

    def _unadapted(self) -> Adaptation:
        """What `adapt` gives for a task of one point, at 0, without any gradient and noise."""
        like = next(self.parameters())
        support = Points(like.new_zeros(1, self.input_dim), like.new_zeros(1, 1))
        return self.adapt(support, like.new_zeros(self.noise_dim), 0)


class GradientLearner(MetaLearner):
    """A learner that adapts by gradient descent on the support points, with the settings of that."""

    settings: ClassVar[tuple[str, ...]] = ("INNER_STEPS", "INNER_LEARNING_RATE", "INNER_GRADIENT_CLIP", "FIRST_ORDER")

    def __init__(self, config: Any, rng: np.random.Generator):
        super().__init__(config, rng)
        self.inner_lr, self.steps = config.INNER_LEARNING_RATE, config.INNER_STEPS
        self.clip, self.first_order = config.INNER_GRADIENT_CLIP, config.FIRST_ORDER

    def descend(
        self, loss: Callable[[Tensor], Tensor], start: Tensor, lr: float | Tensor, steps: int | None = None
    ) -> list[Tensor]:
        """`gradient_descent` with these settings; `steps` = None takes as many as in training."""
        count = self.steps if steps is None else steps
        return gradient_descent(loss, start, lr, count, first_order=self.first_order, clip=self.clip)


def in_one_vector(learner: MetaLearner) -> MetaLearner:
    """The learner with its meta-parameters side by side, as in training: where they lie decides the last bits."""
    nn.utils.vector_to_parameters(nn.utils.parameters_to_vector(learner.parameters()).detach(), learner.parameters())
    return learner


# ---- adapting many tasks at once, without a graph


class AdaptedTasks(NamedTuple):
    """What adapting once to each of T tasks gives; see `adapt_tasks`."""

    predictions: np.ndarray  # [T, S+1, N], at x after 0 to S gradients
    at_support: np.ndarray  # [T, S+1, K], at the support points
    std: np.ndarray  # [T, N], the posterior standard deviation at x after the last gradient
    codes: np.ndarray  # [T, Z], what the method knows of a task before any gradient; Z = 0 without any


def adapt_tasks(learner: MetaLearner, support: Points, x: Any, steps: int) -> AdaptedTasks:
    """Adapt once to each task: predictions, their uncertainty and codes. Arguments as of `predict_tasks`."""

    def one(points: Points, at: Tensor, randomness: Tensor) -> tuple[Tensor, ...]:
        adaptation = learner.adapt_or_prior(points, randomness, steps)
        return *_path_predictions(learner, adaptation.path, points, at), adaptation.code

    return AdaptedTasks(*_each_task(one, learner, support, x, None))


def predict_tasks(
    learner: MetaLearner, support: Points, x: Any, steps: int, noise: Any = None
) -> tuple[np.ndarray, np.ndarray]:
    """Predictions [T, steps + 1, N] after 0 to `steps` gradients, and the codes [T, Z] (Z = 0 without any).

    Args:
        support: arrays x [T, K, D], y [T, K, 1].
        x: where to predict, [T, N, D].
        noise: [T, noise_dim]; None = zeros, the means of a stochastic method.
    """

    def one(points: Points, at: Tensor, randomness: Tensor) -> tuple[Tensor, Tensor]:
        adaptation = learner.adapt_or_prior(points, randomness, steps)
        return _outputs(learner, adaptation.path, at), adaptation.code

    return _each_task(one, learner, support, x, noise)


def _path_predictions(learner: MetaLearner, path: Sequence[Tensor] | Tensor, support: Points, x: Tensor) -> tuple[Tensor, ...]:
    """The first three parts of `AdaptedTasks` for one task, whose states are `path`, S + 1 times [P]."""
    at_x, at_support = (_outputs(learner, path, part) for part in (x, support.x))
    return at_x, at_support, learner.std(path[-1], x, support)


def _outputs(learner: MetaLearner, path: Sequence[Tensor] | Tensor, x: Tensor) -> Tensor:
    """Predictions [S+1, N] of one task's states at x [N, D]."""
    return torch.stack([learner.predict(state, x) for state in path])


def _solve(matrix: Tensor, right: Tensor) -> Tensor:
    """(matrix + I)^-1 right; not finite, and no exception, where there is no solution."""
    return torch.linalg.solve_ex(matrix + torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device), right)[0]


def _each_task(one: Callable[..., tuple[Tensor, ...]], learner: MetaLearner, support: Points, x: Any, noise: Any) -> Any:
    """`one` of a task's support points, inputs and noise for all tasks, `EVAL_CHUNK` at a time: its results as arrays."""
    load_derivatives()
    device, results = next(learner.parameters()).device, []
    if noise is None:
        noise = np.zeros((len(x), learner.noise_dim), np.float32)
    rows = min(len(x), EVAL_CHUNK) * (support.x.shape[1] + x.shape[1])
    with torch.no_grad(), threads_for(rows * learner.state_size):
        for first in range(0, len(x), EVAL_CHUNK):
            here = slice(first, first + EVAL_CHUNK)
            arrays = Points(support.x[here], support.y[here]), x[here], noise[here]
            results.append([part.cpu().numpy() for part in vmap(one)(*on_device(arrays, device))])
    return tuple(map(np.concatenate, zip(*results, strict=True)))


def sample_tasks(
    learner: MetaLearner,
    support: Points,
    x: Any,
    steps: int,
    rng: np.random.Generator,
    num_samples: int,
    *,
    temperature: float = 1.0,
    batch: int = 1000,
) -> np.ndarray:
    """Predictions [T, M, N] after `steps` gradients from M = `num_samples` draws of a stochastic method's noise.

    Args:
        support: arrays x [T, K, D], y [T, K, 1]; x: where to predict, [T, N, D].
        rng: the samples of a task depend on it and on the task's place, not on how many tasks follow.
        temperature: factor on the noise, and so on the standard deviations of what is sampled: 1 samples the
            distributions that were trained. Any other value has to be chosen on validation tasks.
        batch: copies of support sets that are adapted at a time; it bounds memory and changes no number.
    """
    rows, outputs = len(x) * num_samples, []
    for first in range(0, rows, batch):
        task = np.arange(first, min(first + batch, rows)) // num_samples
        noise = np.float32(temperature) * rng.standard_normal((len(task), learner.noise_dim), dtype=np.float32)
        outputs.append(predict_tasks(learner, Points(support.x[task], support.y[task]), x[task], steps, noise)[0][:, -1])
    return np.concatenate(outputs).reshape(len(x), num_samples, x.shape[1])


def on_device(arrays: Any, device: torch.device) -> Any:
    """Nested tuples of numpy arrays as tensors on `device`, in the same tuples."""
    if isinstance(arrays, np.ndarray):
        return torch.from_numpy(arrays).to(device)
    parts = [on_device(part, device) for part in arrays]
    return type(arrays)(*parts) if hasattr(arrays, "_fields") else tuple(parts)


# ---- adapting once, and asking later


def adapted_states(learner: MetaLearner, support: Points, steps: int) -> np.ndarray:
    """Each task's states after 0 to `steps` gradients, [T, steps + 1, P]; support x [T, K, D], y [T, K, 1]."""

    def one(points: Points, _: Tensor, noise: Tensor) -> tuple[Tensor]:
        return (torch.stack(learner.adapt_or_prior(points, noise, steps).path),)

    return _each_task(one, learner, support, support.x, None)[0]


def adapted_predictions(learner: MetaLearner, paths: Any, support: Points, x: Any) -> tuple[np.ndarray, ...]:
    """The first three parts of `AdaptedTasks` with the states `paths` [T, S+1, P] that `adapted_states` found."""

    def one(points: Points, at: Tensor, path: Tensor) -> tuple[Tensor, ...]:
        return _path_predictions(learner, path, points, at)

    return _each_task(one, learner, support, x, paths)

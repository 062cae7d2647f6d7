"""Adapt to many tasks without a graph, by the `adapt` that training uses: predictions, samples, errors.

Independent of any method by name, of the trainer, and of files, plots and logs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import vmap

from dataset import HeldOut, Points, Task
from learner import MetaLearner
from runtime.compiler_cache import load_derivatives
from runtime.parallel import EVAL_CHUNK, threads_for


def predict(learner: MetaLearner, support: Points, x: Any, steps: int, noise: Any = None) -> tuple[np.ndarray, np.ndarray]:
    """Predictions [T, steps + 1, N] after 0 to `steps` gradients, and the codes [T, Z] (Z = 0 without any).

    Args:
        support: arrays x [T, K, D], y [T, K, 1].
        x: where to predict, [T, N, D].
        noise: [T, noise_dim]; None = zeros, the means of a stochastic method.
    """

    def one(points: Points, at: Tensor, randomness: Tensor) -> tuple[Tensor, Tensor]:
        adaptation = learner.adapt(points, randomness, steps)
        outputs = [learner.network(weights, at)[:, 0] for weights in adaptation.path]
        return torch.stack(outputs), adaptation.code  # [S+1, N], [Z]

    return _each_task(one, learner, support, x, noise)


def spread(learner: MetaLearner, support: Points, x: Any, steps: int) -> np.ndarray:
    """How uncertain the adapted network's last layer leaves predictions at x, in units of the noise: [T, N].

    The posterior standard deviation of ridge regression (Bishop 2006, eq. 3.59) on the last hidden layer, with the prior
    that the method gives; not finite where the units are not. Arguments as of `predict`.
    """

    def one(points: Points, at: Tensor, randomness: Tensor) -> tuple[Tensor]:
        weights = learner.adapt(points, randomness, steps).path[-1]
        parts = (learner.network.hidden(weights, part).double() for part in (points.x, at))
        known, asked = (nn.functional.pad(part, (0, 1), value=1.0) for part in parts)
        factor = learner.head_factor(known).double()
        known, asked = (part @ factor if factor.ndim > 1 else part * factor for part in (known, asked))  # a prior of N(0, I)
        if len(known) >= known.shape[1]:
            products = known.T @ known
            variance = (asked * _solve(products, asked.T).T).sum(1)
        else:  # by Woodbury's identity, from a K x K system
            products = asked @ known.T  # [N, K]
            variance = asked.square().sum(1) - (products * _solve(known @ known.T, products.T).T).sum(1)
        return (variance.clamp(min=0).sqrt(),)

    return _each_task(one, learner, support, x, None)[0]


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
    with torch.no_grad(), threads_for(rows * learner.network.num_weights):
        for first in range(0, len(x), EVAL_CHUNK):
            here = slice(first, first + EVAL_CHUNK)
            arrays = Points(support.x[here], support.y[here]), x[here], noise[here]
            results.append([part.cpu().numpy() for part in vmap(one)(*on_device(arrays, device))])
    return tuple(map(np.concatenate, zip(*results, strict=True)))


def sample(
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
        outputs.append(predict(learner, Points(support.x[task], support.y[task]), x[task], steps, noise)[0][:, -1])
    return np.concatenate(outputs).reshape(len(x), num_samples, x.shape[1])


def errors(learner: MetaLearner, task: Task, steps: int) -> np.ndarray:
    """Mean squared error [T, steps + 1] on the query points after 0 to `steps` support gradients; NaN targets don't count.

    It is infinite where a prediction is NaN: the task diverged.
    """
    results = []
    for first in range(0, len(task.query.x), EVAL_CHUNK):
        support, query = (Points(*(part[first : first + EVAL_CHUNK] for part in points)) for points in task)
        predictions, _ = predict(learner, support, query.x, steps)
        with np.errstate(over="ignore", invalid="ignore"):  # a diverged task is a result, not a warning
            squares = np.square(predictions - query.y[:, None, :, 0], dtype=np.float64)  # [T, S+1, N]
            squares[np.isnan(predictions)] = np.inf
            counted = ~np.isnan(query.y[..., 0])
            results.append(np.where(counted[:, None], squares, 0).sum(-1) / counted.sum(-1)[:, None])
    return np.concatenate(results)


def held_out_errors(learner: MetaLearner, held_out: HeldOut, steps: int) -> np.ndarray:
    """Mean squared error [T, steps + 1] over all query points of each task; NaN for a task that is not judged."""
    rows, owners = errors(learner, held_out.tasks, steps), held_out.owners
    if owners is None:
        return rows
    points = (~np.isnan(held_out.tasks.query.y[..., 0])).sum(1)
    sums = np.zeros((len(held_out.params), steps + 1))
    with np.errstate(over="ignore", invalid="ignore"):
        np.add.at(sums, owners, rows * points[:, None])
        return sums / np.bincount(owners, points, len(sums))[:, None]


def on_device(arrays: Any, device: torch.device) -> Any:
    """Nested tuples of numpy arrays as tensors on `device`, in the same tuples."""
    if isinstance(arrays, np.ndarray):
        return torch.from_numpy(arrays).to(device)
    parts = [on_device(part, device) for part in arrays]
    return type(arrays)(*parts) if hasattr(arrays, "_fields") else tuple(parts)

"""MAML as users of plain autograd, `higher` and `torchopt` write it: a module, and a loop over tasks.

Each peer is one function that leaves the meta-gradient in the module's parameters; drawing, clipping and Adam
are shared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.speed.work import Implementation, Work
from dataset import Task
from learner import on_device

Backward = Callable[[nn.Sequential, Task, float, int], Tensor]


def plain_loop(model: nn.Sequential, task: Task, inner_lr: float, steps: int) -> Tensor:
    """`torch.autograd.grad` with `create_graph`, and weights passed by hand; returns the meta-loss []."""

    def predict(weights: Sequence[Tensor], x: Tensor) -> Tensor:
        for weight, bias in zip(weights[:-2:2], weights[1:-2:2], strict=True):
            x = functional.relu(functional.linear(x, weight, bias))
        return functional.linear(x, weights[-2], weights[-1])

    theta: list[Tensor] = list(model.parameters())
    losses = []
    for support_x, support_y, query_x, query_y in one_by_one(task):
        weights = theta
        for _ in range(steps):
            loss = functional.mse_loss(predict(weights, support_x), support_y)
            gradients = torch.autograd.grad(loss, weights, create_graph=True)
            weights = [weight - inner_lr * gradient for weight, gradient in zip(weights, gradients, strict=True)]
        losses.append(functional.mse_loss(predict(weights, query_x), query_y))
    meta_loss = torch.stack(losses).mean()
    meta_loss.backward()
    return meta_loss.detach()


def with_higher(model: nn.Sequential, task: Task, inner_lr: float, steps: int) -> Tensor:
    """`higher`'s own MAML example: a functional copy of the module per task; returns the meta-loss []."""
    import higher

    inner = torch.optim.SGD(model.parameters(), lr=inner_lr)
    total = torch.zeros((), device=task.support.x.device)
    for support_x, support_y, query_x, query_y in one_by_one(task):
        with higher.innerloop_ctx(model, inner, copy_initial_weights=False) as (copy, differentiable):
            for _ in range(steps):
                differentiable.step(functional.mse_loss(copy(support_x), support_y))
            loss = functional.mse_loss(copy(query_x), query_y) / len(task.support.x)
            loss.backward()
            total += loss.detach()
    return total


def with_torchopt(model: nn.Sequential, task: Task, inner_lr: float, steps: int) -> Tensor:
    """`torchopt`'s own MAML example: `MetaSGD`, and the module's state put back for each task; the meta-loss []."""
    import torchopt

    inner = torchopt.MetaSGD(model, lr=inner_lr)
    initial = torchopt.extract_state_dict(model, by="reference")
    initial_inner = torchopt.extract_state_dict(inner, by="reference")
    losses = []
    for support_x, support_y, query_x, query_y in one_by_one(task):
        for _ in range(steps):
            inner.step(functional.mse_loss(model(support_x), support_y))
        losses.append(functional.mse_loss(model(query_x), query_y))
        torchopt.recover_state_dict(model, initial)
        torchopt.recover_state_dict(inner, initial_inner)
    meta_loss = torch.stack(losses).mean()
    meta_loss.backward()
    return meta_loss.detach()


def one_by_one(task: Task) -> zip[tuple[Tensor, ...]]:
    """Support x [K, 1], y [K, 1] and query x [Q, 1], y [Q, 1] of each task."""
    return zip(*chain(*((points.x.unbind(), points.y.unbind()) for points in task)), strict=True)


class TorchPeer(Implementation):
    """Trains an ordinary module; `backward` is how its peer gets a meta-gradient."""

    def __init__(self, work: Work, backward: Backward):
        config = work.config
        self.work, self.backward = work, backward
        self.inner_lr, self.steps, self.clip = config.INNER_LEARNING_RATE, config.INNER_STEPS, config.META_GRADIENT_CLIP
        self.model = module(work)
        self.optimiser = torch.optim.Adam(self.model.parameters(), lr=config.META_LEARNING_RATE, fused=True)
        self.batches = work.batches()

    def meta_gradient(self) -> np.ndarray:
        torch.set_flush_denormal(True)  # as the trainer of this project does: denormal numbers are slow
        self.backward(self.model, on_device(self.work.batch, torch.device(self.work.device)), self.inner_lr, self.steps)
        # nn.Linear keeps its matrix as [out, in]
        gradients = [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
        parts = [gradient.t() if gradient.ndim == 2 else gradient for gradient in gradients]
        return torch.cat([part.reshape(-1) for part in parts]).cpu().numpy()

    def run(self, iterations: int) -> float:
        for _ in range(iterations):
            self.optimiser.zero_grad()
            loss = self.backward(self.model, next(self.batches), self.inner_lr, self.steps)
            nn.utils.clip_grad_norm_(list(self.model.parameters()), self.clip)
            self.optimiser.step()
        return loss.item()


def module(work: Work) -> nn.Sequential:
    """The adapted network as a module that holds the common initial weights."""
    layers: list[nn.Module] = []
    for matrix, bias in work.learner.network.layers(torch.from_numpy(work.start["theta"])):
        linear = nn.Linear(*matrix.shape)
        with torch.no_grad():
            linear.weight.copy_(matrix.t())
            linear.bias.copy_(bias)
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1]).to(work.device)

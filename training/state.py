"""What training changes: the meta-parameters in one flat vector, the optimiser's state, and the log values of the last step.

One vector, so that a step is a function of a few tensors and compiles into one graph.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from learner import MetaLearner
from training.optimiser import STATE, replace_numbers


class MetaState:
    """The meta-parameters of `learner` [M], Adam's state, at most one running average, and log values by `names`.

    Args:
        learner: its parameters become views of the flat vector.
        device: where everything lives.
        averaged: whether a running average of the meta-parameters is kept.
    """

    def __init__(self, learner: MetaLearner, device: torch.device, averaged: bool):
        parameters = dict(learner.named_parameters())
        self.shapes = {name: parameter.shape for name, parameter in parameters.items()}
        self.sizes = [parameter.numel() for parameter in parameters.values()]
        self.flat = torch.cat([p.detach().reshape(-1) for p in parameters.values()]).to(device)  # [M]
        for parameter, view in zip(parameters.values(), self.views(self.flat).values(), strict=True):
            parameter.data = view
        self.exp_avg, self.exp_avg_sq = torch.zeros_like(self.flat), torch.zeros_like(self.flat)
        self.adam_step = torch.zeros((), device=device)
        self.averages = {"average": self.flat.clone()} if averaged else {}  # one, or none
        self.finite = torch.ones((), dtype=torch.bool, device=device)  # False from the first bad step on
        self.names = ["meta_loss", "query_mse", *learner.diagnostic_names(), "grad_norm"]
        self.metrics = torch.zeros(len(self.names), device=device)
        self.lr = torch.zeros((), device=device)
        for tensor in (*self.changing(), self.lr):  # a CUDA graph is recorded only where what it changes stays in place
            torch._dynamo.mark_static_address(tensor, guard=False)

    def views(self, flat: Tensor) -> dict[str, Tensor]:
        """The meta-parameters by name, as views of `flat` [M]."""
        return {name: part.view(shape) for (name, shape), part in zip(self.shapes.items(), flat.split(self.sizes), strict=True)}

    def changing(self) -> tuple[Tensor, ...]:
        """All that a step changes."""
        return self.flat, *self._adam_state(), *self.averages.values(), self.finite, self.metrics

    def set(self, values: tuple[Tensor, ...]) -> Tensor:
        """Replace `changing` by `values`; returns the log values."""
        for tensor, new in zip(self.changing(), values, strict=True):
            tensor.copy_(new)
        return self.metrics.clone()

    def _adam_state(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.exp_avg, self.exp_avg_sq, self.adam_step

    def no_gradient(self) -> Tensor:
        """What stands for a gradient and log values [M + 2 + diagnostics] where there is none: NaN, which a step refuses."""
        return torch.full((len(self.flat) + len(self.names) - 1,), math.nan, device=self.flat.device)

    def to_dict(self) -> dict[str, Any]:
        """Everything the next step depends on, as tensors on the CPU."""
        return {
            "meta_parameters": {name: view.detach().cpu().clone() for name, view in self.views(self.flat).items()},
            "adam": {name: tensor.cpu().clone() for name, tensor in zip(STATE, self._adam_state(), strict=True)},
        } | {name: average.cpu().clone() for name, average in self.averages.items()}

    def load(self, state: dict[str, Any]) -> None:
        """Restore what `to_dict` gave; raises ValueError where it does not fit this learner."""
        given = {name: tuple(tensor.shape) for name, tensor in state["meta_parameters"].items()}
        wanted = {name: tuple(shape) for name, shape in self.shapes.items()}
        for name in [*wanted, *given]:
            got, expected = given.get(name), wanted.get(name)
            if got != expected:
                raise ValueError(f"meta-parameter {name} does not fit (got shape {got}; expected {expected})")
        sources = [torch.cat([state["meta_parameters"][name].reshape(-1) for name in self.shapes])]
        sources += [state["adam"][name] for name in STATE] + [state[name] for name in self.averages]
        for target, source in zip((self.flat, *self._adam_state(), *self.averages.values()), sources, strict=True):
            replace_numbers(target, source)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """A context in which the learner, and `to_dict`, have the averaged meta-parameters, where an average is kept."""
        kept = self.flat.clone()
        for average in self.averages.values():
            self.flat.copy_(average)
        try:
            yield
        finally:
            self.flat.copy_(kept)

    def first_bad_value(self) -> tuple[int, str, float] | None:
        """Number of the refused step, counted from 0, and which log value was not finite; waits for the device."""
        if self.finite.item():
            return None
        values = dict(zip(self.names, self.metrics.tolist(), strict=True))
        name = next(name for name, value in values.items() if not math.isfinite(value))
        return int(self.adam_step.item()), name, values[name]

"""The mean of several learners' predictions: on tables that nobody tuned on it errs less than each of them.

A state is the states of all members side by side. Entry 0 of the path is their priors; one "gradient" adapts each member by as
many gradients as its own run takes, and further ones leave that as it is.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dataset import Points
from learner import Adaptation, MetaLearner


class Mean(MetaLearner):
    """Nothing is learned here.

    Args:
        members: trained learners of the same tasks; steps: how many gradients each takes.
        weights: of the members, which sum to 1.
    """

    def __init__(self, members: Sequence[MetaLearner], steps: Sequence[int], weights: Sequence[float]):
        nn.Module.__init__(self)
        self.members, self.steps, self.weights = nn.ModuleList(members), list(steps), list(weights)
        self.input_dim = members[0].input_dim

    @property
    def state_size(self) -> int:
        return sum(self._sizes)

    def adapt(self, support: Points, noise: Tensor, steps: int | None = None) -> Adaptation:
        ends = [
            member.adapt(support, noise.new_zeros(member.noise_dim), count).path[-1]
            for member, count in zip(self._learners, self.steps, strict=True)
        ]
        return Adaptation.along([self.prior()] + [_side_by_side(ends)] * (1 if steps is None else steps))

    def prior(self) -> Tensor:
        return _side_by_side([member.prior() for member in self._learners])

    def predict(self, state: Tensor, x: Tensor) -> Tensor:
        parts = zip(self._learners, self._states(state), strict=True)
        return self._mean([member.predict(part, x) for member, part in parts])

    def std(self, state: Tensor, x: Tensor, support: Points) -> Tensor:
        parts = zip(self._learners, self._states(state), strict=True)
        return self._mean([member.std(part, x, support).square() for member, part in parts]).sqrt()

    @property
    def _learners(self) -> list[MetaLearner]:
        return list(self.members)  # type: ignore[arg-type]

    @property
    def _sizes(self) -> list[int]:
        return [member.state_size for member in self._learners]

    def _states(self, state: Tensor) -> list[Tensor]:
        """The members' own states, each in the type of its numbers."""
        parts = state.split(self._sizes)
        return [part.to(next(member.parameters()).dtype) for member, part in zip(self._learners, parts, strict=True)]

    def _mean(self, values: Sequence[Tensor]) -> Tensor:
        return torch.stack([weight * value for weight, value in zip(self.weights, values, strict=True)]).sum(0)


def _side_by_side(states: Sequence[Tensor]) -> Tensor:
    return torch.cat([state.double() for state in states])

"""Functions in the units that defaults were chosen for: inputs from -5 to 5, targets of about the size of the sinusoids'."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from dataset import QUERY_INDEX, Array, FunctionFamily, HeldOut, Points, Task, TaskGenerator, stream
from tables.coding import Coding

HALF_WIDTH = 5.0  # of the inputs
USUAL = 2.0  # the standard deviation of the targets, up to a factor of three: the unit is a power of ten
FAR = 3.0  # standard deviations: a mean that is farther from 0 is subtracted


def in_usual_units(family: FunctionFamily) -> TaskGenerator:
    """The family where its numbers are usual, and its tasks in other units where they are not."""
    low, high = family.x_range
    targets = family.tasks(family.split("train", 100, 0), 10, 0, stream(0, "points", QUERY_INDEX)).support.y.astype(float)
    mean, std = float(targets.mean()), float(targets.std())
    unit = 10.0 ** round(math.log10(std / USUAL)) if 0 < std < math.inf else 1.0
    centre = unit * round(mean / unit) if abs(mean) > FAR * std else 0.0
    centres = np.append(np.full(family.input_dim, (low + high) / 2), centre)
    units = np.append(np.full(family.input_dim, (high - low) / 2 / HALF_WIDTH), unit)
    usual = not centres.any() and (units == 1).all()
    return family if usual else ScaledFamily(family, Coding(centres, units, (-HALF_WIDTH, HALF_WIDTH)))


class ScaledFamily(TaskGenerator):
    """The tasks of `family` as `coding` has them: all that a learner sees. Figures and errors have own units beside these."""

    def __init__(self, family: FunctionFamily, coding: Coding):
        self.family, self.coding, self.name = family, coding, family.name
        self.input_dim, self.x_range, self.y_scale = family.input_dim, coding.x_range, float(coding.unit[-1])
        self.axis_names, self.unused = family.axis_names, family.unused
        self.param_names = family.param_names  # type: ignore[misc]  # those of this object

    def split(self, name: str, size: int, seed: int, shots: int = 0) -> Array:
        return self.family.split(name, size, seed, shots)

    def tasks(self, params: Array, shots: int, queries: int, rng: np.random.Generator) -> Task:
        return Task(*map(self._encoded, self.family.tasks(params, shots, queries, rng)))

    def held_out(self, split: str, size: int, shots: int, queries: int) -> HeldOut:
        found = self.family.held_out(split, size, shots, queries)
        return found._replace(tasks=Task(*map(self._encoded, found.tasks)))

    def examples(self, count: int, shots: int) -> tuple[Array, Points]:
        params, support = self.family.examples(count, shots)
        return params, self._encoded(support)

    def task_names(self, params: Array) -> list[str]:
        return self.family.task_names(params)

    def truth(self, params: Array, x: Array) -> Array | None:
        own = self.family.truth(params, self.coding.decode_inputs(x).astype(np.float32))
        return None if own is None else self.coding.encode_targets(own).astype(np.float32)

    def posterior(self, support: Points, x: Array) -> Array | None:
        own = self.unscale(support)
        found = self.family.posterior(own, self.coding.decode_inputs(x))
        return None if found is None else self.coding.encode_targets(found)

    def measured(self, y: Array, rng: np.random.Generator) -> Array:
        return self.coding.encode_targets(self.family.measured(self.coding.decode_targets(y), rng))

    def unscale(self, points: Points) -> Points:
        return Points(self.coding.decode_inputs(points.x), self.coding.decode_targets(points.y))

    def _encoded(self, points: Points) -> Points:
        coded: Any = self.coding.encode_inputs(points.x), self.coding.encode_targets(points.y)
        return Points(*(part.astype(np.float32) for part in coded))

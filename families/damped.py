"""Damped oscillations, as of a spring: y = A exp(-c t) cos(w t + phase)."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from dataset import Array, FunctionFamily

LOW, HIGH = (0.5, 0.05, 0.5, 0.0), (2.0, 0.5, 2.0, 2 * np.pi)  # of the four parameters


class DampedTaskGenerator(FunctionFamily):
    """The parameters are [T, 4]: A, c, w and phase (radians), uniform; t is the input's distance to its lower end."""

    name = "Damped"
    param_names: ClassVar[tuple[str, ...]] = ("amplitude", "damping", "frequency", "phase (rad)")

    def draw(self, num_tasks: int, rng: np.random.Generator) -> Array:
        return rng.uniform(LOW, HIGH, (num_tasks, 4)).astype(np.float32)

    def curve(self, params: Array, x: Array) -> Array:
        amplitude, damping, frequency, phase = np.split(params[..., None, :], 4, axis=-1)
        t = (x - self.x_range[0]).sum(-1, keepdims=True)
        return (amplitude * np.exp(-damping * t) * np.cos(frequency * t + phase)).astype(np.float32)

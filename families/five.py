"""Five kinds of function with equal probability: sinusoid, line, quadratic, tanh, absolute value (Vuorio et al. 2019).

The ranges are those of the paper's code (vuoristo/MMAML-Regression).
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from dataset import Array, FunctionFamily

LOW = (0.1, 0.0, -3.0, 0.02, -3.0, -3.0)
HIGH = (5.0, np.pi, 3.0, 0.15, 3.0, 3.0)


class FiveTaskGenerator(FunctionFamily):
    """The parameters are [T, 8]: kind (0 to 4), amplitude, phase, slope, curvature, centre, bias, sign of the curvature."""

    name = "Five"
    param_names: ClassVar[tuple[str, ...]] = ("kind (sinusoid, line, quadratic, tanh, absolute value)",)

    def draw(self, num_tasks: int, rng: np.random.Generator) -> Array:
        kind, sign = rng.integers(0, 5, (num_tasks, 1)), rng.choice([-1.0, 1.0], (num_tasks, 1))
        return np.concatenate([kind, rng.uniform(LOW, HIGH, (num_tasks, 6)), sign], axis=1).astype(np.float32)

    def curve(self, params: Array, x: Array) -> Array:
        kind, amplitude, phase, slope, curvature, centre, bias, sign = np.split(params[..., None, :], 8, axis=-1)
        x = x.sum(-1, keepdims=True)
        from_centre = x - centre
        curves: list[Array] = [amplitude * np.sin(x - phase), slope * x + bias, sign * curvature * from_centre**2 + bias]
        curves += [slope * np.tanh(from_centre) + bias, slope * np.abs(from_centre) + bias]
        return np.choose(np.broadcast_to(kind, x.shape).astype(int), curves).astype(np.float32)

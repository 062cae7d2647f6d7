"""The oracle's tasks: a network that is told amplitude and phase has one function of three inputs to learn.

This file refuses to know about training, and how an oracle is compared with those who have to find out.
"""

from __future__ import annotations

import numpy as np
import work  # noqa: F401  puts the project on the path

from config import Config
from dataset import Array, SinusoidalTaskGenerator, TaskGenerator


class ToldTaskGenerator(TaskGenerator):
    """y = A sin(x - phase) as a function of x, A and phase, the latter two scaled to the range of x.

    Every input is uniform, so each point is one of a sinusoid of its own, from the distribution of `sinusoids`:
    plain regression, with nothing to adapt to.
    """

    name = "ToldSinusoidal"

    def __init__(self, sinusoids: SinusoidalTaskGenerator):
        super().__init__(3, sinusoids.x_range)
        self.sinusoids = sinusoids

    @classmethod
    def from_config(cls, config: Config) -> ToldTaskGenerator:
        amplitudes, phases = (config.AMPLITUDE_MIN, config.AMPLITUDE_MAX), (config.PHASE_MIN, config.PHASE_MAX)
        return cls(SinusoidalTaskGenerator(1, (config.X_MIN, config.X_MAX), 0.0, amplitudes, phases))

    def draw(self, num_tasks: int, rng: np.random.Generator) -> Array:
        return np.zeros((num_tasks, 1), np.float32)  # all tasks are the same

    def curve(self, params: Array, x: Array) -> Array:
        low, high = self.x_range
        place = (x - low) / (high - low)  # 0 to 1
        amplitude, phase = (
            smallest + (largest - smallest) * place[..., 1 + column : 2 + column]
            for column, (smallest, largest) in enumerate((self.sinusoids.amplitude_range, self.sinusoids.phase_range))
        )
        return (amplitude * np.sin(x[..., :1] - phase)).astype(np.float32)

    def told(self, params: Array, x: Array) -> Array:
        """The inputs [T, N, 3] that tell which sinusoids are meant: `params` [T, >= 2] at `x` [T, N, 1]."""
        low, high = self.x_range
        scaled = [
            low + (high - low) * (params[:, None, column : column + 1] - smallest) / (largest - smallest)
            for column, (smallest, largest) in enumerate((self.sinusoids.amplitude_range, self.sinusoids.phase_range))
        ]
        return np.concatenate([x, *(np.broadcast_to(part, x.shape) for part in scaled)], axis=2).astype(np.float32)

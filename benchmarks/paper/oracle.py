"""The oracle's tasks: sinusoids whose amplitude and phase are inputs.

Executed as a module, this is main.py with one more family of tasks.
"""

from __future__ import annotations

import sys

import numpy as np

import main
import registry
from config import Config
from dataset import Array, FunctionFamily, SinusoidalTaskGenerator


class OracleTaskGenerator(FunctionFamily):
    """y = A sin(x - phase) as a function of x, A and phase, the latter two scaled to the range of x.

    Every input is uniform, so each point is from another sinusoid of the distribution of `sinusoids`: plain regression,
    with nothing to adapt to.
    """

    name = "OracleSinusoidal"

    def __init__(self, sinusoids: SinusoidalTaskGenerator):
        super().__init__(3, sinusoids.x_range)
        self.low, self.high = sinusoids.x_range
        lowest, highest = np.array([sinusoids.amplitude_range, sinusoids.phase_range]).T
        self.lowest, self.width = lowest.astype(np.float32), (highest - lowest).astype(np.float32)  # of amplitude and phase

    @classmethod
    def from_config(cls, config: Config) -> OracleTaskGenerator:
        amplitudes, phases = (config.AMPLITUDE_MIN, config.AMPLITUDE_MAX), (config.PHASE_MIN, config.PHASE_MAX)
        return cls(SinusoidalTaskGenerator(1, (config.X_MIN, config.X_MAX), 0.0, amplitudes, phases))

    def draw(self, num_tasks: int, rng: np.random.Generator) -> Array:
        return np.zeros((num_tasks, 1), np.float32)  # all tasks are the same

    def curve(self, params: Array, x: Array) -> Array:
        position = (x[..., 1:] - self.low) / (self.high - self.low)  # 0 to 1
        amplitude, phase = np.split(self.lowest + self.width * position, 2, axis=-1)
        return (amplitude * np.sin(x[..., :1] - phase)).astype(np.float32)

    def inputs(self, params: Array, x: Array) -> Array:
        """The oracle's inputs [T, N, 3] for sinusoids with `params` [T, >= 2] at `x` [T, N, 1]."""
        scaled = self.low + (self.high - self.low) * (params[:, None, :2] - self.lowest) / self.width  # [T, 1, 2]
        return np.concatenate([x, np.broadcast_to(scaled, (*x.shape[:2], 2))], axis=2).astype(np.float32)


registry.TASKS["oracle"] = OracleTaskGenerator.from_config
registry.TASK_SETTINGS["oracle"] = registry.TASK_SETTINGS["sinusoid"]


if __name__ == "__main__":
    sys.exit(main.main())

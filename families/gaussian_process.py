"""Functions of a Gaussian process (Rasmussen and Williams 2006): the best prediction from any points is known exactly."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from dataset import Array, FunctionFamily, Points
from system.errors import RunError

KERNELS = {  # of the distance between two inputs, in lengths; the periodic one of its sine
    "rbf": lambda d: np.exp(-(d**2) / 2),
    "matern": lambda d: (1 + np.sqrt(5) * d + 5 * d**2 / 3) * np.exp(-np.sqrt(5) * d),
    "periodic": lambda d: np.exp(-2 * d**2),
}
PER_LENGTH = 8  # points of the grid that a function is made from
MOST_POINTS = 400


@dataclass(eq=False)
class GaussianProcessTaskGenerator(FunctionFamily):
    """One input; the parameters are [T, G], standard normal, one for each place of a fine grid.

    A function has the process' values on the grid, by the symmetric root of their covariance, and its mean between them: the
    covariance is exact to 1e-4 of the variance. Raises `RunError` for a length that takes too fine a grid.
    """

    kernel: str = "rbf"
    length: float = 0.5
    scale: float = 1.0  # standard deviation of the functions
    period: float = 1.0

    name = "GaussianProcess"
    param_names: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        self.unused = {} if self.kernel == "periodic" else {"GP_PERIOD": "with GP_KERNEL=periodic"}
        low, high = self.x_range
        step = self.length / PER_LENGTH * (self.period / np.pi if self.kernel == "periodic" else 1.0)
        if (count := math.ceil((high - low) / step) + 1) > MOST_POINTS:
            shortest = self.length * count / MOST_POINTS
            raise RunError(f"GP_LENGTH is too short for these inputs (got {self.length}; expected at least {shortest:.3g})")
        self.grid = np.linspace(low, high, count)
        values, vectors = np.linalg.eigh(self.covariance(self.grid, self.grid))
        kept = values > 1e-9 * values[-1]
        self.basis = vectors[:, kept] / np.sqrt(values[kept]) @ vectors[:, kept].T  # [G, G], whatever the vectors' signs are

    def covariance(self, one: Array, other: Array) -> Array:
        """The covariance [..., N, M] of the functions at inputs [..., N] and [..., M]."""
        distance = np.abs(one[..., :, None] - other[..., None, :])
        if self.kernel == "periodic":
            distance = np.abs(np.sin(np.pi * distance / self.period))
        found: Any = KERNELS[self.kernel](distance / self.length)
        return self.scale**2 * found

    def draw(self, num_tasks: int, rng: np.random.Generator) -> Array:
        return rng.standard_normal((num_tasks, self.basis.shape[1])).astype(np.float32)

    def curve(self, params: Array, x: Array) -> Array:
        features = self.covariance(x[..., 0].astype(float), self.grid) @ self.basis  # [..., N, G]
        return (features @ params[..., :, None]).astype(np.float32)

    def posterior(self, support: Points, x: Array) -> Array:
        """The exact posterior mean [B, N] at x [B, N, 1] given support points [B, K, 1] (eq. 2.25)."""
        known, noise = support.x[..., 0].astype(float), self.noise_std**2 + 1e-8 * self.scale**2
        covariance = self.covariance(known, known) + noise * np.eye(known.shape[-1])
        weights = np.linalg.solve(covariance, support.y.astype(float))  # [B, K, 1]
        return (self.covariance(x[..., 0].astype(float), known) @ weights)[..., 0]

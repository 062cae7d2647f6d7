"""Between a person's units and the network's: made from the training subjects alone, kept in the checkpoint as plain lists."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Coding:
    """The network sees (own - centre) / unit of D inputs and the target; all of it is computed in float64."""

    centre: Array  # [D + 1]
    unit: Array  # [D + 1]
    x_range: tuple[float, float] = (-1.0, 1.0)  # of the inputs of meta-training, as the network sees them, in each dimension
    of_table: bool = True  # tasks from formulas have no units beside the network's, and predictions in float32

    @classmethod
    def from_training(cls, values: Array) -> Coding:
        """Inputs from -1 to 1, a target of mean 0 and standard deviation 1; values [N, D + 1], no column of them constant."""
        low, high = values.min(0), values.max(0)
        target = (values[:, -1] - low[-1]) / (high[-1] - low[-1])  # squares of very small numbers would be zero
        centre, unit = low + (high - low) / 2, (high - low) / 2
        centre[-1], unit[-1] = low[-1] + (high[-1] - low[-1]) * target.mean(), (high[-1] - low[-1]) * target.std()
        return cls(centre, unit)

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Coding:
        """What `record` gave, as it comes back from a checkpoint."""
        return cls(np.asarray(record["centre"], float), np.asarray(record["unit"], float))

    @classmethod
    def identity(cls, input_dim: int, x_range: tuple[float, float]) -> Coding:
        """Of tasks from formulas."""
        return cls(np.zeros(input_dim + 1), np.ones(input_dim + 1), x_range, of_table=False)

    def record(self) -> dict[str, list[float]]:
        return {"centre": self.centre.tolist(), "unit": self.unit.tolist()}

    @property
    def input_dim(self) -> int:
        return len(self.centre) - 1

    def encode_inputs(self, x: Array) -> Array:
        """x [N, D] as the network sees it; infinite where that overflows."""
        with np.errstate(over="ignore"):
            return (x - self.centre[:-1]) / self.unit[:-1]

    def encode_targets(self, y: Array) -> Array:
        """y of any shape as the network sees it; infinite where that overflows."""
        with np.errstate(over="ignore"):
            return (y - self.centre[-1]) / self.unit[-1]

    def decode_inputs(self, x: Array) -> Array:
        """x [..., D] in own units."""
        return np.asarray(x, float) * self.unit[:-1] + self.centre[:-1]

    def decode_targets(self, y: Array) -> Array:
        """y of any shape in own units; predictions on formulas stay float32."""
        return np.asarray(y, float) * self.unit[-1] + self.centre[-1] if self.of_table else y

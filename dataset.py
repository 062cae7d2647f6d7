"""Tasks: families of tasks, the points drawn from them, and every random stream of a run.

Everything here is numpy and pure: the same (seed, purpose, index) gives the same numbers, whatever was drawn
before, on whatever device or process. Independent of learners, training and files.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Published = Mapping[int, Mapping[int, float]]  # shots -> gradients -> mean squared error

# A stream's purpose is part of its key. Append only: a number that moves changes every published result.
PURPOSES = ("weights", "functions", "order", "points", "noise", "validation", "test", "figures", "samples", "measured")
HELD_OUT_SEED = 20170306  # fixed, so that runs of any seed are judged on identical tasks
QUERY_INDEX = 1 << 32  # beyond any number of shots
MOST_TASKS, MOST_POINTS = 200, 100  # of `training_points`


def stream(seed: int, purpose: str, index: int = 0) -> np.random.Generator:
    """A random generator that is a pure function of (seed, purpose, index)."""
    key = np.random.SeedSequence(seed, spawn_key=(PURPOSES.index(purpose), index))
    return np.random.Generator(np.random.Philox(key))


class Points(NamedTuple):
    """Inputs `x` [..., N, D] and targets `y` [..., N, 1], float32 (float64 as they are read from a file)."""

    x: Any
    y: Any


class Task(NamedTuple):
    """`support`: the points to adapt on; `query`: the points to be judged on."""

    support: Points
    query: Points


class HeldOut(NamedTuple):
    """The tasks that a network is judged on: `params` [T, F], and their points.

    A row of `tasks` belongs to task number `owners` [B]; several rows may belong to one task, and none to a task that has
    too few points. Where `owners` is None, the rows are the tasks. Query targets that are NaN are padding.
    """

    params: Array
    tasks: Task
    owners: Array | None = None

    @property
    def row_owners(self) -> Array:
        """The task that each row belongs to, [B]."""
        return np.arange(len(self.params)) if self.owners is None else self.owners

    @property
    def evaluable(self) -> Array:
        """Which tasks have points to be judged on, [T] booleans."""
        return np.isin(np.arange(len(self.params)), self.row_owners)


def joined(parts: Sequence[HeldOut]) -> HeldOut:
    """All tasks of several, one after another; of one, itself."""
    if len(parts) == 1:
        return parts[0]
    widest = max(part.tasks.query.x.shape[1] for part in parts)

    def padded(array: Array, value: float) -> Array:
        return np.pad(array, ((0, 0), (0, widest - array.shape[1]), (0, 0)), constant_values=value)

    support = Points(*(np.concatenate(arrays) for arrays in zip(*(part.tasks.support for part in parts), strict=True)))
    x, y = ([padded(part.tasks.query[place], value) for part in parts] for place, value in ((0, 0.0), (1, np.nan)))
    before = np.cumsum([0, *(len(part.params) for part in parts[:-1])])
    owners = [first + part.row_owners for first, part in zip(before, parts, strict=True)]
    query = Points(np.concatenate(x), np.concatenate(y))
    return HeldOut(np.concatenate([part.params for part in parts]), Task(support, query), np.concatenate(owners))


class TaskGenerator(ABC):
    """A family of tasks: all that the rest of the project asks it. It has no state: a row of `params` identifies a task."""

    name: str  # as it appears in the run directory
    input_dim: int  # D
    x_range: tuple[float, float]  # of the inputs in meta-training, in each dimension
    param_names: ClassVar[tuple[str, ...]] = ()  # of the first columns of `params`: coordinates worth a figure's axis
    axis_names: tuple[str, str] = ("input x", "output y")
    y_scale: float | None = None  # what 1 in y is in own units, where these are others than the network's
    folds: Sequence[TaskGenerator] = ()  # for cross-fitting: each has as test tasks those that it alone does not train on
    unused: Mapping[str, str] = {}  # settings that are read, but without effect on these tasks -> on which they have one

    @abstractmethod
    def split(self, name: str, size: int, seed: int, shots: int = 0) -> Array:
        """The tasks of a split, `params` [T, F].

        Args:
            name: "train", "validation" or "test"; the last two are the same for every seed (of a table: for every split).
            size: T, for families that can draw as many tasks as are wanted.
            shots: tasks that have no more points than so many are left out.
        """

    @abstractmethod
    def tasks(self, params: Array, shots: int, queries: int, rng: np.random.Generator) -> Task:
        """Random points of the tasks `params` [..., F]: `shots` support and `queries` query points each."""

    @abstractmethod
    def held_out(self, split: str, size: int, shots: int, queries: int) -> HeldOut:
        """The fixed tasks that every run is judged on, equal for every method and seed (of a table: for every split)."""

    def calibration_tasks(self, split: str, size: int, shots: int, queries: int) -> HeldOut:
        """The tasks that intervals are calibrated on: as `held_out`, and of a table with early points as well."""
        return self.held_out(split, size, shots, queries)

    @abstractmethod
    def examples(self, count: int, shots: int) -> tuple[Array, Points]:
        """At most `count` tasks for figures, the same in every run: `params` [T, F] and their support points."""

    def measurements(self, split: str) -> list[Points] | None:
        """All points of each task of a split, where there are no others; None where they can be drawn without end."""
        return None

    def task_names(self, params: Array) -> list[str]:
        """A name for each of the tasks `params` [T, F]; none where they have no names."""
        return []

    def truth(self, params: Array, x: Array) -> Array | None:
        """Noise-free values [..., N, 1] of the tasks `params` [..., F] at `x` [..., N, D]; None where nobody knows them."""
        return None

    def posterior(self, support: Points, x: Array) -> Array | None:
        """The best prediction [B, N] at x [B, N, D] from the points x [B, K, D], y [B, K, 1]; None where nobody knows it."""
        return None

    def measured(self, y: Array, rng: np.random.Generator) -> Array:
        """The targets `y` of `held_out` as somebody would measure them: with noise, where these have none."""
        return y

    def implied_settings(self) -> dict[str, Any]:
        """Settings that follow from the tasks; raises `RunError` where it is not known where these come from."""
        return {}

    def defaults(self, shots: int | None = None) -> dict[str, Any]:
        """Settings that suit the tasks, and the K that was asked for where it was (`shots`)."""
        return {}

    def files(self) -> dict[str, bytes]:
        """What a run directory has to keep of them, by file name."""
        return {}

    def record(self) -> dict[str, Any]:
        """What reports and checkpoints say of them: where they come from, their scale and digests."""
        return {}

    def unscale(self, points: Points) -> Points:
        """The points as a person knows them: x [..., D], y of any shape."""
        return points

    @property
    def published(self) -> Published:
        """Published errors on exactly these tasks: shots -> gradients -> mean squared error."""
        return {}


def training_points(generator: TaskGenerator, seed: int = 0) -> list[Points]:
    """Points x [N, D], y [N, 1], float64, of training tasks, for what is fitted to all of them at once.

    At most MOST_TASKS tasks with MOST_POINTS points each, a fixed random choice of measured ones: bounds time and memory.
    """
    if (measured := generator.measurements("train")) is None:
        drawn = generator.tasks(generator.split("train", MOST_TASKS, seed), MOST_POINTS, 0, stream(seed, "points", QUERY_INDEX))
        return [Points(x.astype(float), y.astype(float)) for x, y in zip(*drawn.support, strict=True)]
    rng = np.random.default_rng(0)
    few = [measured[place] for place in np.sort(rng.permutation(len(measured))[:MOST_TASKS])]
    kept = [np.sort(rng.permutation(len(points.y))[:MOST_POINTS]) for points in few]
    return [Points(*(part[rows].astype(float) for part in points)) for points, rows in zip(few, kept, strict=True)]


@dataclass(eq=False)
class FunctionFamily(TaskGenerator):
    """A distribution over functions; a subclass says how to draw them and how to compute them."""

    input_dim: int = 1  # D
    x_range: tuple[float, float] = (-5.0, 5.0)  # inputs are uniform in this interval, in each dimension
    noise_std: float = 0.0  # standard deviation of the Gaussian noise on every target

    published_on_defaults: ClassVar[Published] = {}  # published errors on the tasks of a family made without arguments

    @abstractmethod
    def draw(self, num_tasks: int, rng: np.random.Generator) -> Array:
        """The parameters [T, ...] of `num_tasks` random functions."""

    @abstractmethod
    def curve(self, params: Array, x: Array) -> Array:
        """Noise-free values [..., N, 1] at `x` [..., N, D] of the functions with `params` [..., F]."""

    def split(self, name: str, size: int, seed: int, shots: int = 0) -> Array:
        return self.draw(size, stream(seed, "functions") if name == "train" else stream(HELD_OUT_SEED, name))

    def points(self, params: Array, num_points: int, rng: np.random.Generator) -> Points:
        """`num_points` random points of each function: x [..., N, D], y [..., N, 1] for params [..., F]."""
        (low, high), shape = self.x_range, (*params.shape[:-1], num_points, self.input_dim)
        x = rng.random(shape, dtype=np.float32) * np.float32(high - low) + np.float32(low)
        return Points(x, self.measured(self.curve(params, x), rng).astype(np.float32))

    def measured(self, y: Array, rng: np.random.Generator) -> Array:
        return y + self.noise_std * rng.standard_normal(y.shape, dtype=np.float32) if self.noise_std else y

    def tasks(self, params: Array, shots: int, queries: int, rng: np.random.Generator) -> Task:
        x, y = self.points(params, shots + queries, rng)
        return Task(Points(x[..., :shots, :], y[..., :shots, :]), Points(x[..., shots:, :], y[..., shots:, :]))

    def held_out(self, split: str, size: int, shots: int, queries: int) -> HeldOut:
        """Every K has points of its own on the same functions; query points carry no noise."""
        params = self.split(split, size, HELD_OUT_SEED)
        support = self.points(params, shots, stream(HELD_OUT_SEED, split, shots))
        query_x = self.points(params, queries, stream(HELD_OUT_SEED, split, QUERY_INDEX)).x
        return HeldOut(params, Task(support, Points(query_x, self.curve(params, query_x))))

    def examples(self, count: int, shots: int) -> tuple[Array, Points]:
        rng = stream(0, "figures")
        params = self.draw(count, rng)
        return params, self.points(params, shots, rng)

    def truth(self, params: Array, x: Array) -> Array | None:
        return self.curve(params, x)

    @property
    def published(self) -> Published:
        known = vars(type(self)).get("published_on_defaults")  # a subclass has other tasks
        return known if known and vars(self) == vars(type(self)()) else {}


@dataclass(eq=False)
class SinusoidalTaskGenerator(FunctionFamily):
    """y = A sin(u.x - phase), A and phase uniform (Finn et al. 2017, section 5.1).

    `u` is 1 for a one-dimensional input, and a random unit vector per task otherwise.
    The parameters are [T, 2 + D]: amplitude, phase (radians), u.
    """

    amplitude_range: tuple[float, float] = (0.1, 5.0)
    phase_range: tuple[float, float] = (0.0, float(np.pi))

    name = "Sinusoidal"
    param_names: ClassVar[tuple[str, ...]] = ("amplitude", "phase (rad)")
    published_on_defaults: ClassVar[Published] = {5: {1: 0.67, 5: 0.38, 10: 0.35}}  # Finn et al. 2017, appendix C.1

    def draw(self, num_tasks: int, rng: np.random.Generator) -> Array:
        amplitude = rng.uniform(*self.amplitude_range, (num_tasks, 1))
        phase = rng.uniform(*self.phase_range, (num_tasks, 1))
        direction = np.ones((num_tasks, 1))
        if self.input_dim > 1:
            direction = rng.standard_normal((num_tasks, self.input_dim))
            direction /= np.linalg.norm(direction, axis=1, keepdims=True)
        return np.concatenate([amplitude, phase, direction], axis=1).astype(np.float32)

    def curve(self, params: Array, x: Array) -> Array:
        amplitude, phase, direction = np.split(params[..., None, :], [1, 2], axis=-1)  # [..., 1, 1 | 1 | D]
        return amplitude * np.sin((x * direction).sum(-1, keepdims=True) - phase)


@dataclass(eq=False)
class SineLineTaskGenerator(SinusoidalTaskGenerator):
    """Half sinusoids, half lines y = slope (u.x) + intercept, all uniform (Rusu et al. 2019, section 4.1).

    The parameters are [T, 5 + D]: family (0 = sinusoid, 1 = line), amplitude, phase, slope, intercept, u; those of
    the other family are drawn, too, and have no effect.
    """

    noise_std: float = 0.3
    slope_range: tuple[float, float] = (-3.0, 3.0)
    intercept_range: tuple[float, float] = (-3.0, 3.0)

    name = "SineLine"
    param_names: ClassVar[tuple[str, ...]] = ("family (0 sinusoid, 1 line)",)
    published_on_defaults: ClassVar[Published] = {}

    def draw(self, num_tasks: int, rng: np.random.Generator) -> Array:
        family = rng.integers(0, 2, (num_tasks, 1))
        amplitude, phase, direction = np.split(super().draw(num_tasks, rng), [1, 2], axis=1)
        slope = rng.uniform(*self.slope_range, (num_tasks, 1))
        intercept = rng.uniform(*self.intercept_range, (num_tasks, 1))
        return np.concatenate([family, amplitude, phase, slope, intercept, direction], axis=1).astype(np.float32)

    def curve(self, params: Array, x: Array) -> Array:
        family, amplitude, phase, slope, intercept, direction = np.split(params[..., None, :], [1, 2, 3, 4, 5], axis=-1)
        along = (x * direction).sum(-1, keepdims=True)
        return np.where(family == 1, slope * along + intercept, amplitude * np.sin(along - phase)).astype(np.float32)


class TaskDataset:
    """The training tasks of one family, visited once per epoch in a fresh order with fresh points.

    They form one endless sequence, epoch after epoch; meta-batch i is entries i*T to (i+1)*T of it, so every
    meta-batch has T tasks even where T does not divide their number.
    """

    BLOCK_POINTS = 1 << 16  # points drawn at a time: many meta-batches share the cost of seeding a stream

    def __init__(self, generator: TaskGenerator, num_tasks: int, meta_batch: int, shots: int, queries: int, seed: int):
        self.generator, self.meta_batch, self.shots, self.queries, self.seed = generator, meta_batch, shots, queries, seed
        self.params = generator.split("train", num_tasks, seed, shots)
        self.block = max(1, min(64, self.BLOCK_POINTS // (meta_batch * (shots + queries))))  # meta-batches a block
        count = len(self.params)
        # by the epoch; the newest is kept, as many blocks belong to one
        self._order = functools.lru_cache(1)(lambda epoch: stream(seed, "order", epoch).permutation(count))

    def draw_block(self, number: int) -> Task:
        """Meta-batches number * block to (number + 1) * block - 1: arrays [block, T, K or Q, ...]."""
        size, tasks = self.block * self.meta_batch, len(self.params)
        first, end = number * size, (number + 1) * size
        epochs = range(first // tasks, -(-end // tasks))
        indices = np.concatenate([self._order(e)[max(0, first - e * tasks) : end - e * tasks] for e in epochs])
        params = self.params[indices].reshape(self.block, self.meta_batch, -1)
        return self.generator.tasks(params, self.shots, self.queries, stream(self.seed, "points", number))

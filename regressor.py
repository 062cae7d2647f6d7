"""A trained learner in somebody's program: load a run, fit it to a few points, predict.

    model = FewShotRegressor.load("latest")
    model.fit(x, y)
    model.predict(x_new)

Numbers are in the units of the person who has them. Nothing outside of the object is changed: no file, random state or flag of
torch, and no thread count but of threads that begin while it computes.
"""

from __future__ import annotations

import math
import pickle
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import torch

from config import Config
from dataset import Points, stream
from evaluation.intervals import difficulty_features, entry_for, half_widths
from learner import MetaLearner, adapted_predictions, adapted_states, predict_tasks, sample_tasks
from methods.mixed_model import MixedModel
from registry import mean_state, parse_checkpoint, restored, tasks_of
from results_manager import EXPERIMENTS, load_run
from system.errors import checkpoint_errors
from system.threads import EVAL_CHUNK
from tables.arrays import Array, InputError, NotFittedError, as_columns, check_lengths, each, finite_curves, is_whole
from tables.coding import Coding
from tables.scaled import ScaledFamily

ONE_STD = 0.683  # the share of a normal distribution within one standard deviation
MOST = 1e18  # of an input or target, as the network sees it: its square is finite in float32
NO_INTERVALS = (
    "the run has no calibrated intervals (got none for {} gradients; expected those of a complete run, or of --evaluate)"
)
PAIR_BYTES = 400  # about what a learner that compares all pairs of points needs for each
PAIRS_AT_ONCE = 200_000  # bounds the memory of the tasks that are computed together


class Answer(NamedTuple):
    """What is known of one task, in own units, after 0 to S gradients."""

    stages: Array  # [S + 1, N], predictions where it was asked
    at_support: Array  # [S + 1, K], predictions at the given points
    interval: Array  # [2, N], lower and upper ends after the last gradient; [0, N] where none were asked for


class FewShotRegressor:
    """A meta-trained learner that adapts to a few points of a new task.

    Inputs x are numbers [N, D] (or [N] where D is 1) and targets y [N]: lists, tuples, arrays of numpy or columns of pandas
    of any integer or float type, tensors of torch. Predictions are float64 in the units of the run's table, or float32, as
    they are computed, for tasks from formulas. Every method raises `InputError`, a ValueError, for what it can't use.
    `copy.copy(model)` shares the network: a cheap way to keep several fits, or one for each thread.

    Args:
        learner: the meta-trained method.
        steps: gradients to take on the points.
        coding: between own units and those that the learner was trained in.
        seed: of `sample`, where that is given none.
        calibration: of intervals, by the number of gradients: what `--evaluate` adds to the best checkpoint.
        without: what answers where no point is known; None = the learner.
    """

    def __init__(
        self,
        learner: MetaLearner,
        steps: int,
        coding: Coding,
        *,
        seed: int = 0,
        calibration: Mapping[str, Any] | None = None,
        without: MetaLearner | None = None,
    ):
        self.learner, self.steps, self.coding, self.without = learner, steps, coding, without or learner
        self.seed, self.calibration = seed, calibration or {}

    @classmethod
    def load(
        cls, run: str | Path | Sequence[str | Path] = "latest", device: str = "cpu", folder: str | Path = EXPERIMENTS
    ) -> FewShotRegressor:
        """The best checkpoint of a run: its directory, its name in `folder`, a checkpoint file, or "latest".

        Of several runs on the same tasks it is their mean, without intervals; `main.py --mean RUN RUN` calibrates it.

        Raises `RunError` where there is none that can be used, and `ConfigError` for an unknown device.
        """
        runs = [run] if isinstance(run, str | Path) else list(run)
        found = [load_run(str(one), Path(folder), best=True) for one in runs]
        for line in [warning for _, _, warning in found if warning]:
            warnings.warn(line, stacklevel=2)
        directory, state, _ = found[0]
        if len(found) > 1:
            state = mean_state([one for _, one, _ in found])
        method, tasks, settings = parse_checkpoint(state, directory)
        return cls.from_checkpoint(state, method, tasks, Config.resolve(settings, {"DEVICE": device}))

    @classmethod
    def from_checkpoint(cls, state: Mapping[str, Any], method: str, tasks: str, config: Config) -> FewShotRegressor:
        """The learner of a checkpoint that was read, with the settings of its run."""
        with checkpoint_errors():
            learner = restored(state, method, config)
            without = None
            if curve := state.get("mean_curve"):
                without = MixedModel.from_config(config, stream(0, "weights"))
                without.load_state_dict(curve)
            if data := state.get("data"):
                coding = Coding.from_record(data)
            else:
                generator = tasks_of(tasks, config)
                usual = Coding.identity(config.INPUT_DIM, generator.x_range)
                coding = generator.coding if isinstance(generator, ScaledFamily) else usual
        about: dict[str, Any] = {"seed": config.RANDOM_SEED, "calibration": state.get("calibration"), "without": without}
        return cls(learner, config.EVAL_STEPS, coding, **about)

    # ---- fitting

    def fit(self, x: Any, y: Any) -> FewShotRegressor:
        """Adapt to the points of one task, x [K, D] and y [K], which may be none; returns itself."""
        return self.fit_many([x], [y])

    def fit_many(self, xs: Sequence[Any], ys: Sequence[Any]) -> FewShotRegressor:
        """Adapt to the points of T tasks, which may have different numbers of them; keeps `state_bytes` of each."""
        xs, ys = each(xs, "xs"), each(ys, "ys")
        if not len(xs) == len(ys) > 0:
            raise InputError(f"tasks need x and y each (got {len(xs)} x and {len(ys)} y; expected as many, at least one)")
        tasks = []
        for x, y in zip(xs, ys, strict=True):
            own_y = as_columns(y, "y", 1)
            points = Points(self._encoded_inputs(x), _as_seen(own_y, self.coding.encode_targets(own_y), "y"))
            check_lengths(*points)
            tasks.append(points)
        self._check_memory(tasks)
        self.support_, self.n_features_in_ = tasks, self.input_dim
        self._adapt()
        return self

    def _check_memory(self, tasks: Sequence[Points]) -> None:
        available, count = psutil.virtual_memory().available, max(len(points.x) for points in tasks)
        if self.learner.noise_dim and PAIR_BYTES * count**2 > available:
            most = math.isqrt(available // PAIR_BYTES)
            raise InputError(f"the points do not fit in memory (got {count}; expected at most {most} for this run)")
        if self.state_bytes * len(tasks) > available:
            most = available // self.state_bytes
            raise InputError(f"adapted networks do not fit in memory (got {len(tasks)} tasks; expected at most {most} at once)")

    def _adapt(self) -> None:
        """Find the weights [S + 1, P] of each task after 0 to S gradients."""
        self.adapted_steps_, self.paths_ = self.steps, [torch.empty(0)] * len(self.support_)
        for places in batches([(len(points.x),) for points in self.support_], [len(points.x) ** 2 for points in self.support_]):
            support = self._support_of(places)
            with np.errstate(over="ignore", invalid="ignore"):  # points far from the trained tasks may diverge
                paths = torch.from_numpy(adapted_states(self._answering(support), support, self.steps))
            for place, path in zip(places, paths, strict=True):
                self.paths_[place] = path.clone()

    # ---- predicting

    def predict(self, x: Any, return_std: bool = False) -> Any:
        """Predictions [N] for the task of `fit` at x [N, D]; with `return_std` also a standard deviation [N].

        That is of the sampled curves where the method samples, and otherwise half the width of the interval that holds 68.3%
        of new measurements.
        """
        after = self._last([x])[0]
        if not return_std:
            return after
        if self.learner.noise_dim and len(self._fitted(1)[0].x):
            return after, finite_curves(self.sample(x)).std(0)
        low, high = self.predict_interval(x, ONE_STD)
        return after, (high - low) / 2

    def predict_prior(self, x: Any) -> Array:
        """Predictions [N] at x [N, D] for a task of which no point is known, whatever was fitted."""
        nobody = Points(np.empty((1, 0, self.input_dim), np.float32), np.empty((1, 0, 1), np.float32))
        inputs = self._encoded_inputs(x)
        parts = np.array_split(inputs, len(inputs) // PAIRS_AT_ONCE + 1)
        found = [predict_tasks(self.without, nobody, part[None], 0)[0][0, 0] for part in parts]
        return self.coding.decode_targets(np.concatenate(found))

    def predict_many(self, xs: Sequence[Any]) -> list[Array]:
        """Predictions [N_t] for each task of `fit_many` at its own x [N_t, D]; as one by one, to rounding."""
        return self._last(xs)

    def staged_predict(self, x: Any) -> Array:
        """Predictions after 0 to S gradients, [S + 1, N]."""
        return self.staged_predict_many([x])[0]

    def staged_predict_many(self, xs: Sequence[Any]) -> list[Array]:
        """Predictions [S + 1, N_t] for each task of `fit_many` at its own x [N_t, D]."""
        return [answer.stages for answer in self.answers(xs)]

    def predict_interval(self, x: Any, coverage: float = 0.9) -> tuple[Array, Array]:
        """Lower and upper ends [N] of intervals that hold a share `coverage` of new measurements, as calibrated on the run's
        validation tasks; infinite where adapting diverged or `coverage` is higher than these can tell.
        """
        return self.predict_interval_many([x], coverage)[0]

    def predict_interval_many(self, xs: Sequence[Any], coverage: float = 0.9) -> list[tuple[Array, Array]]:
        """The intervals of each task of `fit_many` at its own x [N_t, D]."""
        if isinstance(coverage, bool) or not isinstance(coverage, Real) or not 0 < coverage < 1:
            raise InputError(f"coverage can't be used (got {coverage!r}; expected a share between 0 and 1)")
        if not self.has_intervals:
            raise InputError(NO_INTERVALS.format(self.steps))
        return [(answer.interval[0], answer.interval[1]) for answer in self.answers(xs, coverage)]

    @property
    def has_intervals(self) -> bool:
        """Whether the run's intervals were calibrated for as many gradients as are taken."""
        return bool(self.calibration.get(str(self.steps)))

    def sample(self, x: Any, num_samples: int = 100, seed: int | None = None) -> Array:
        """Curves [M, N] of a method with randomness; equal seeds give equal ones. One that diverges has no finite values."""
        (points,) = self._fitted(1)
        if not len(points.x):
            raise InputError("samples are drawn around points (got a task without any; expected at least one)")
        if not self.learner.noise_dim:
            raise InputError("the method has no randomness (got a request for samples; expected one that samples its weights)")
        if not is_whole(num_samples) or num_samples < 1:
            raise InputError(f"num_samples can't be used (got {num_samples!r}; expected a whole number from 1 on)")
        if seed is not None and (not is_whole(seed) or seed < 0):
            raise InputError(f"seed can't be used (got {seed!r}; expected a whole number from 0 on)")
        at, rng = self._encoded_inputs(x), stream(self.seed if seed is None else seed, "samples")
        batch = max(1, PAIRS_AT_ONCE // max(len(points.x) ** 2, len(at)))
        with np.errstate(over="ignore", invalid="ignore"):
            curves = sample_tasks(self.learner, self._support_of([0]), _stack([at]), self.steps, rng, num_samples, batch=batch)
        return self.coding.decode_targets(curves[0])

    def score(self, x: Any, y: Any) -> float:
        """R^2 of the predictions at x [N, D] for targets y [N]: 1 at best, 0 for their mean."""
        target, prediction = as_columns(y, "y", 1)[:, 0], self.predict(x)
        check_lengths(prediction, target)
        if not len(target):
            raise InputError("nothing to score (got no rows; expected at least one)")
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):  # of equal targets, of huge ones
            return float(1 - np.square(target - prediction).sum() / np.square(target - target.mean()).sum())

    # ---- what the model knows

    @property
    def input_dim(self) -> int:
        return self.coding.input_dim

    @property
    def state_bytes(self) -> int:
        """What is kept of each task that was fitted: the weights of its network after each gradient."""
        return 4 * self.learner.state_size * (self.steps + 1)

    @property
    def x_range(self) -> Array:
        """The lowest and the highest inputs of meta-training, [2, D]."""
        return self.coding.decode_inputs(np.repeat(np.array(self.coding.x_range)[:, None], self.input_dim, 1))

    def extrapolates(self, x: Any) -> Array:
        """Whether x [N, D] lies outside of `x_range`, as far as the network can tell; [N] booleans."""
        low, high = np.array(self.coding.x_range, np.float32)
        at = self._encoded_inputs(x)
        return np.any((at < low) | (at > high), axis=1)

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """What may be changed in a loaded model."""
        return {"steps": self.steps}

    def set_params(self, **params: Any) -> FewShotRegressor:
        """Another number of gradients: the next question adapts once more to the points that were fitted."""
        for name, value in params.items():
            if name != "steps" or not is_whole(value) or not 0 <= value <= 1000:
                raise InputError(f"a loaded model's {name} can't be set (got {value!r}; expected steps from 0 to 1000)")
            self.steps = int(value)
        return self

    def __repr__(self) -> str:
        return f"{type(self).__name__}({type(self.learner).__name__}, steps={self.steps}, input_dim={self.input_dim})"

    def __deepcopy__(self, memo: Any) -> FewShotRegressor:
        return pickle.loads(pickle.dumps(self))  # tensors copied one by one would lie elsewhere

    # ---- one way to ask

    def _encoded_inputs(self, x: Any) -> Array:
        own = as_columns(x, "x", self.input_dim)
        return _as_seen(own, self.coding.encode_inputs(own), "x")

    def _fitted(self, count: int) -> list[Points]:
        """The points of the `count` tasks that were fitted."""
        if not hasattr(self, "support_"):
            raise NotFittedError("nothing was fitted yet (got a question; expected fit(x, y) before it)")
        if len(self.support_) != count:
            expected = f"{len(self.support_)}, as fitted"
            if count == 1:
                expected += ", by predict_many"
            raise InputError(f"the question is for another number of tasks (got {count}; expected {expected})")
        return self.support_

    def _answering(self, support: Points) -> MetaLearner:
        """What answers for tasks with as many points as `support` [T, K, *]."""
        return self.learner if support.x.shape[1] else self.without

    def _support_of(self, places: Sequence[int]) -> Points:
        """The points of tasks with equal numbers of them, x [T, K, D] and y [T, K, 1]."""
        return Points(*(_stack(part) for part in zip(*(self.support_[place] for place in places), strict=True)))

    def answers(self, xs: Sequence[Any], coverage: float | None = None) -> list[Answer]:
        """All that is known of each task of `fit_many` at its own x [N_t, D], from one pass over tasks of equal sizes.

        Intervals of `coverage`, above 0 and below 1, need `has_intervals`; there are none where it is None.
        """
        xs = each(xs, "xs")
        fitted = self._fitted(len(xs))
        if self.adapted_steps_ != self.steps:
            self._adapt()
        answers: dict[int, Answer] = {}
        inputs = [self._encoded_inputs(x) for x in xs]
        sizes = [(len(points.x), len(x)) for points, x in zip(fitted, inputs, strict=True)]
        for places in batches(sizes, [max(size) for size in sizes]):
            support, x = self._support_of(places), _stack([inputs[place] for place in places])
            paths = torch.stack([self.paths_[place] for place in places]).numpy()
            with np.errstate(over="ignore", invalid="ignore"):
                stages, at_support, std = adapted_predictions(self._answering(support), paths, support, x)
                intervals = np.empty((len(places), 0, x.shape[1]))
                if coverage is not None:
                    features = difficulty_features(stages, at_support, support, x, std)
                    intervals = self._intervals(stages[:, -1], features, support.x.shape[1], float(coverage))
                decoded = self.coding.decode_targets(stages), self.coding.decode_targets(at_support), intervals
            answers |= {place: Answer(*parts) for place, *parts in zip(places, *decoded, strict=True)}
        return [answers[place] for place in range(len(xs))]

    def _intervals(self, predictions: Array, features: Array, shots: int, coverage: float) -> Array:
        """The ends [T, 2, N] of intervals around `predictions` [T, N]."""
        known, half = self.calibration[str(self.steps)], np.full(predictions.shape, np.inf)
        if shots or "0" in known:
            half = half_widths(entry_for(known, shots), features, coverage) * self.coding.unit[-1]
        centre = np.where(np.isfinite(half), self.coding.decode_targets(predictions), 0).astype(float)
        return np.stack([centre - half, centre + half], 1)

    def _last(self, xs: Sequence[Any]) -> list[Array]:
        """Predictions [N_t] after the last gradient; warns of tasks where these are not finite."""
        last = [stages[-1] for stages in self.staged_predict_many(xs)]
        if diverged := sum(not np.isfinite(one).all() for one in last):
            got = f"predictions that are not finite in {diverged} of {len(last)} tasks"
            warnings.warn(f"adapting diverged (got {got}; expected finite ones)", RuntimeWarning, stacklevel=3)
        return last


def batches(sizes: Sequence[tuple[int, ...]], costs: Sequence[int]) -> Iterator[list[int]]:
    """Places of tasks of equal sizes, as many at a time as keep the sum of their costs below `PAIRS_AT_ONCE`."""
    groups = defaultdict(list)
    for place, size in enumerate(sizes):
        groups[size].append(place)
    for places in groups.values():
        together = max(1, min(EVAL_CHUNK, PAIRS_AT_ONCE // max(1, costs[places[0]])))
        for first in range(0, len(places), together):
            yield places[first : first + together]


def _stack(arrays: Sequence[Array]) -> Array:
    """Float32 arrays of one shape in memory of torch's: where numbers lie decides the kernel, and so the last bits."""
    return torch.stack([torch.from_numpy(array) for array in arrays]).numpy()


def _as_seen(own: Array, coded: Array, name: str) -> Array:
    """`coded` [N, *] as float32; raises `InputError` with the number in own units that is out of reach."""
    for row, column in np.argwhere(~(np.abs(coded) <= MOST))[:1].tolist():
        got, expected = f"{own[row, column]:g} in row {row}", f"at most {MOST:g} times the training range"
        raise InputError(f"{name} can't be used (got {got}; expected {expected})")
    return coded.astype(np.float32)

"""A trained learner in somebody's program: load a run, fit it to a few points, predict.

    model = FewShotRegressor.load("latest")
    model.fit(x, y)
    model.predict(x_new)

Numbers are in the units of the person who has them; here alone they become the network's. Nothing outside of the object is
changed: no file, random state or flag of torch, and no thread count but of threads that begin while it computes. It knows no
command line.
"""

from __future__ import annotations

import dataclasses
import math
import pickle
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from config import Config
from dataset import Points, stream
from evaluation.intervals import difficulty_features, entry_for, half_widths
from learner import MetaLearner, posterior_std, predict_tasks, sample_tasks
from registry import METHODS, TASKS, parse_checkpoint
from results_manager import EXPERIMENTS, load_run
from system.errors import checkpoint_errors
from system.host import resolve_device
from tables.arrays import (
    Array,
    InputError,
    NotFittedError,
    aligned,
    as_columns,
    check_lengths,
    each,
    finite_curves,
    is_whole,
    padded,
)

MOST = 1e18  # of an input or target, as the network sees it: its square is finite in float32
NO_INTERVALS = (
    "the run has no calibrated intervals (got none for {} gradients; expected those of a complete run, or of --evaluate)"
)
PAIR_BYTES = 400  # about what a learner that compares all pairs of points needs for each
PAIRS_AT_ONCE = 200_000  # bounds the memory of the tasks that are adapted together


class FewShotRegressor:
    """A meta-trained learner that adapts to a few points of a new task.

    Inputs x are numbers [N, D] (or [N] where D is 1) and targets y [N]: lists, tuples, arrays of numpy or columns of pandas
    of any integer or float type, tensors of torch. Predictions are float64 in the units of the run's table, or float32, as
    they are computed, for tasks from formulas. Every method raises `InputError`, a ValueError, for what it can't use.
    `copy.copy(model)` shares the network: a cheap way to keep several fits, or one for each thread.

    Args:
        learner: the meta-trained method.
        steps, input_dim: gradients to take on the points; D.
        x_range: the inputs of meta-training, in each dimension, as the network sees them.
        scale: centre and unit, [D + 1] each: (own - centre) / unit is what the network sees; None = these are the same.
        seed: of `sample`, where that is given none.
        calibration: of intervals, by the number of gradients: what `--evaluate` adds to the best checkpoint.
    """

    def __init__(
        self,
        learner: MetaLearner,
        steps: int,
        input_dim: int = 1,
        x_range: tuple[float, float] = (-1.0, 1.0),
        *,
        scale: tuple[Any, Any] | None = None,
        seed: int = 0,
        calibration: Mapping[str, Any] | None = None,
    ):
        self.learner, self.steps, self.input_dim = learner, steps, input_dim
        self.seed, self.calibration, self.scaled = seed, calibration or {}, scale is not None
        centre, unit = scale or (np.zeros(input_dim + 1), np.ones(input_dim + 1))
        self.centre, self.unit = np.asarray(centre, float), np.asarray(unit, float)
        self.seen_range = np.repeat(np.array(x_range)[:, None], input_dim, 1)  # [2, D]

    @classmethod
    def load(cls, run: str | Path = "latest", device: str = "cpu", folder: str | Path = EXPERIMENTS) -> FewShotRegressor:
        """The best checkpoint of a run: its directory, its name in `folder`, a checkpoint file, or "latest".

        Raises `RunError` where there is none that can be used, and `ConfigError` for an unknown device.
        """
        directory, state, warning = load_run(str(run), Path(folder), best=True)
        if warning:
            warnings.warn(warning, stacklevel=2)
        method, tasks, settings = parse_checkpoint(state, directory)
        return cls.from_checkpoint(state, method, tasks, Config.resolve(settings, {"DEVICE": device}))

    @classmethod
    def from_checkpoint(cls, state: Mapping[str, Any], method: str, tasks: str, config: Config) -> FewShotRegressor:
        """The learner of a checkpoint that was read, with the settings of its run."""
        learner = METHODS[method].from_config(config, stream(0, "weights"))
        with checkpoint_errors():
            learner.load_state_dict(state["meta_parameters"])
            if not all(parameter.isfinite().all() for parameter in learner.parameters()):
                raise ValueError("numbers that are not finite")
            scale = (data["centre"], data["unit"]) if (data := state.get("data")) else None
        x_range = TASKS[tasks](dataclasses.replace(config, DATA="", COLUMNS=())).x_range
        learner = learner.to(resolve_device(config.DEVICE))
        one_vector = parameters_to_vector(learner.parameters()).detach()
        vector_to_parameters(one_vector, learner.parameters())  # as in training: where they lie decides the last bits
        known: dict[str, Any] = {"seed": config.RANDOM_SEED, "calibration": state.get("calibration")}
        return cls(learner, config.EVAL_STEPS, config.INPUT_DIM, x_range, scale=scale, **known)

    # ---- fitting

    def fit(self, x: Any, y: Any) -> FewShotRegressor:
        """Take the points of one task, x [K, D] and y [K]; returns itself. Adapting is done when something is asked."""
        return self.fit_many([x], [y])

    def fit_many(self, xs: Sequence[Any], ys: Sequence[Any]) -> FewShotRegressor:
        """Take the points of T tasks, which may have different numbers of them."""
        xs, ys = each(xs, "xs"), each(ys, "ys")
        if not len(xs) == len(ys) > 0:
            raise InputError(f"tasks need x and y each (got {len(xs)} x and {len(ys)} y; expected as many, at least one)")
        tasks = []
        for x, y in zip(xs, ys, strict=True):
            points = Points(self._inputs(x), self._scaled(as_columns(y, "y", 1), slice(-1, None), "y"))
            check_lengths(*points)
            tasks.append(points)
        count, available = max(len(points.x) for points in tasks), psutil.virtual_memory().available
        if self.learner.noise_dim and PAIR_BYTES * count**2 > available:
            most = math.isqrt(available // PAIR_BYTES)
            raise InputError(f"the points do not fit in memory (got {count}; expected at most {most} for this run)")
        self.support_, self.n_features_in_ = tasks, self.input_dim
        return self

    # ---- predicting

    def predict(self, x: Any, return_std: bool = False) -> Any:
        """Predictions [N] for the task of `fit` at x [N, D]; with `return_std` also the samples' standard deviation [N]."""
        after = self._last([x])[0]
        return (after, finite_curves(self.sample(x)).std(0)) if return_std else after

    def staged_predict(self, x: Any) -> Array:
        """Predictions after 0 to S gradients, [S + 1, N]."""
        return self._outputs([x])[0]

    def predict_many(self, xs: Sequence[Any]) -> list[Array]:
        """Predictions [N_t] for each task of `fit_many` at its own x [N_t, D]; as one by one, to rounding."""
        return self._last(each(xs, "xs"))

    def sample(self, x: Any, num_samples: int = 100, seed: int | None = None) -> Array:
        """Curves [M, N] of a method with randomness; equal seeds give equal ones. One that diverges has no finite values."""
        (points,) = self._fitted(1)
        if not self.learner.noise_dim:
            raise InputError("the method has no randomness (got a request for samples; expected one that samples its weights)")
        if not is_whole(num_samples) or num_samples < 1:
            raise InputError(f"num_samples can't be used (got {num_samples!r}; expected a whole number from 1 on)")
        if seed is not None and (not is_whole(seed) or seed < 0):
            raise InputError(f"seed can't be used (got {seed!r}; expected a whole number from 0 on)")
        at, rng = self._inputs(x), stream(self.seed if seed is None else seed, "samples")
        batch = max(1, PAIRS_AT_ONCE // max(len(points.x) ** 2, len(at)))
        support, asked = Points(aligned([points.x]), aligned([points.y])), aligned([padded(at)])
        with np.errstate(over="ignore", invalid="ignore"):
            curves = sample_tasks(self.learner, support, asked, self.steps, rng, num_samples, batch=batch)
        return self._own_targets(curves[0, :, : len(at)])

    def predict_interval(self, x: Any, coverage: float = 0.9) -> tuple[Array, Array]:
        """Lower and upper ends [N] of intervals that hold a share `coverage` of new measurements, as calibrated on the run's
        validation tasks; infinite where adapting diverged or `coverage` is higher than these can tell.
        """
        if isinstance(coverage, bool) or not isinstance(coverage, Real) or not 0 < coverage < 1:
            raise InputError(f"coverage can't be used (got {coverage!r}; expected a share between 0 and 1)")
        if not self.has_intervals:
            raise InputError(NO_INTERVALS.format(self.steps))
        (support,) = self._fitted(1)
        at = self._inputs(x)
        (paths,) = self._paths([np.concatenate([at, support.x])])  # [S+1, N + K], adapted once
        path, at_support = np.split(paths, [len(at)], axis=1)
        with np.errstate(over="ignore", invalid="ignore"):
            points = Points(aligned([support.x]), aligned([support.y]))
            uncertain = posterior_std(self.learner, points, aligned([padded(at)]), self.steps)[:, : len(at)]
            known = difficulty_features(path[None], at_support[None], points, at[None], uncertain)[0]
        half = half_widths(entry_for(self.calibration[str(self.steps)], len(support.x)), known, float(coverage)) * self.unit[-1]
        centre = np.where(np.isfinite(half), self._own_targets(path[-1]), 0).astype(float)
        return centre - half, centre + half

    @property
    def has_intervals(self) -> bool:
        """Whether the run's intervals were calibrated for as many gradients as are taken."""
        return bool(self.calibration.get(str(self.steps)))

    def score(self, x: Any, y: Any) -> float:
        """R^2 of the predictions at x [N, D] for targets y [N]: 1 at best, 0 for their mean."""
        target, prediction = as_columns(y, "y", 1)[:, 0], self.predict(x)
        check_lengths(prediction, target)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):  # of equal targets, of huge ones
            return float(1 - np.square(target - prediction).sum() / np.square(target - target.mean()).sum())

    @property
    def x_range(self) -> Array:
        """The lowest and the highest inputs of meta-training, [2, D]."""
        return self.seen_range * self.unit[:-1] + self.centre[:-1] if self.scaled else self.seen_range

    def extrapolates(self, x: Any) -> Array:
        """Whether x [N, D] lies outside of `x_range`, as far as the network can tell; [N] booleans."""
        low, high = self.seen_range.astype(np.float32)
        at = self._inputs(x)
        return np.any((at < low) | (at > high), axis=1)

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """What may be changed in a loaded model."""
        return {"steps": self.steps}

    def set_params(self, **params: Any) -> FewShotRegressor:
        for name, value in params.items():
            if name != "steps" or not is_whole(value) or not 0 <= value <= 1000:
                raise InputError(f"a loaded model's {name} can't be set (got {value!r}; expected steps from 0 to 1000)")
            self.steps = int(value)
        return self

    def __repr__(self) -> str:
        return f"{type(self).__name__}({type(self.learner).__name__}, steps={self.steps}, input_dim={self.input_dim})"

    def __deepcopy__(self, memo: Any) -> FewShotRegressor:
        return pickle.loads(pickle.dumps(self))  # tensors copied one by one would lie elsewhere

    # ---- between a person's units and the network's

    def _inputs(self, x: Any) -> Array:
        return self._scaled(as_columns(x, "x", self.input_dim), slice(-1), "x")

    def _scaled(self, values: Array, columns: slice, name: str) -> Array:
        """float64 [N, *] as the network sees them, float32."""
        with np.errstate(over="ignore"):
            seen = (values - self.centre[columns]) / self.unit[columns]
        for row, column in np.argwhere(~(np.abs(seen) <= MOST))[:1].tolist():
            got, expected = f"{values[row, column]:g} in row {row}", f"at most {MOST:g} times the training range"
            raise InputError(f"{name} can't be used (got {got}; expected {expected})")
        return seen.astype(np.float32)

    def _own_targets(self, values: Array) -> Array:
        return values.astype(float) * self.unit[-1] + self.centre[-1] if self.scaled else values

    def _fitted(self, count: int) -> list[Points]:
        """The points of the `count` tasks that were fitted."""
        if not hasattr(self, "support_"):
            raise NotFittedError("nothing was fitted yet (got a question; expected fit(x, y) before it)")
        if len(self.support_) != count:
            expected = f"{len(self.support_)}, as fitted" + ", by predict_many" * (count == 1)
            raise InputError(f"the question is for another number of tasks (got {count}; expected {expected})")
        return self.support_

    def _outputs(self, xs: Sequence[Any]) -> list[Array]:
        """Predictions [S + 1, N_t] of each task in own units."""
        self._fitted(len(xs))
        return [self._own_targets(path) for path in self._paths([self._inputs(x) for x in xs])]

    def _last(self, xs: Sequence[Any]) -> list[Array]:
        """Predictions [N_t] after the last gradient; warns of tasks where these are not finite."""
        last = [outputs[-1] for outputs in self._outputs(xs)]
        if diverged := sum(not np.isfinite(one).all() for one in last):
            got = f"predictions that are not finite in {diverged} of {len(last)} tasks"
            warnings.warn(f"adapting diverged (got {got}; expected finite ones)", RuntimeWarning, stacklevel=3)
        return last

    def _paths(self, at: Sequence[Array]) -> list[Array]:
        """As the network sees them: predictions [S + 1, N_t] of each task; tasks of equal sizes are adapted together."""
        support = self.support_
        groups, results = defaultdict(list), [np.empty(0)] * len(at)
        for place, x in enumerate(at):
            groups[len(support[place].x), len(padded(x))].append(place)
        for (count, rows), places in groups.items():
            together = max(1, PAIRS_AT_ONCE // max(count**2, rows))
            for some in (places[first : first + together] for first in range(0, len(places), together)):
                points = Points(*map(aligned, zip(*(support[place] for place in some), strict=True)))
                asked = aligned([padded(at[place]) for place in some])
                with np.errstate(over="ignore", invalid="ignore"):  # points far from the trained tasks may diverge
                    outputs = predict_tasks(self.learner, points, asked, self.steps)[0]  # [T, S+1, N]
                for place, output in zip(some, outputs, strict=True):
                    results[place] = output[:, : len(at[place])]
        return results

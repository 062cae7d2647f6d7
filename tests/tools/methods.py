"""The registered methods, and learners of them that can answer."""

from __future__ import annotations

from config import Config
from dataset import SinusoidalTaskGenerator, stream, training_points
from learner import MetaLearner
from registry import METHODS

TRAINED = sorted(name for name, method in METHODS.items() if not method.is_fitted())


def learner_of(method: str, config: Config | None = None) -> MetaLearner:
    """A learner with its initial weights, or fitted to sinusoids where it is one that is fitted."""
    config = config or Config()
    learner = METHODS[method].from_config(config, stream(0, "weights"))
    if learner.is_fitted():
        learner.fit(training_points(SinusoidalTaskGenerator(config.INPUT_DIM)))
    return learner

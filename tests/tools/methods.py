"""The registered methods, and learners of them that can answer."""

from __future__ import annotations

from config import Config
from dataset import SinusoidalTaskGenerator, stream, training_points
from learner import MetaLearner
from registry import METHODS

# What the project itself has; a method or family that somebody adds needs no mention in its documents.
OWN_METHODS = ("maml", "leo", "meta-sgd", "anil", "cavia", "r2d2", "alpaca", "tnet", "cnp", "mixed-model")
OWN_TASKS = ("sinusoid", "sine-line", "damped", "five", "gp", "table")
TRAINED = sorted(name for name, method in METHODS.items() if not method.is_fitted())


def learner_of(method: str, config: Config | None = None) -> MetaLearner:
    """A learner with its initial weights, or fitted to sinusoids where it is one that is fitted."""
    config = config or Config()
    learner = METHODS[method].from_config(config, stream(0, "weights"))
    if learner.is_fitted():
        learner.fit(training_points(SinusoidalTaskGenerator(config.INPUT_DIM)))
    return learner

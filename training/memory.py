"""Whether a run fits the memory that there is."""

from __future__ import annotations

import psutil
import torch

from config import Config, ConfigError
from learner import MetaLearner
from system.threads import EVAL_CHUNK
from training.parallel import tasks_at_once


def check_memory(config: Config, learner: type[MetaLearner], device: torch.device) -> None:
    """Raise `ConfigError` where the numbers that a run has to keep at once, by a lower bound, need more than all memory."""
    hidden, points, tasks = config.HIDDEN_DIM, config.SUPPORT_SAMPLES + config.QUERY_SAMPLES, config.META_BATCH_SIZE
    layers = config.HIDDEN_LAYERS
    weights = (config.INPUT_DIM + 2 + (layers - 1) * (hidden + 1)) * hidden
    at_once = min(tasks_at_once(config.TASK_CHUNK, tasks, points * weights, device), tasks)
    micro_batches = -(-tasks // at_once)
    # parameters, two moments, gradient and its clipped copy; a gradient of each micro-batch; the adapted weights of each task
    training = weights * (learner.meta_parameters_per_weight(config) * (5 + micro_batches) + at_once)
    training += at_once * points * hidden * (layers + config.INNER_STEPS)  # units of all layers, kept for each inner step
    training += at_once * learner.numbers_per_task(config, config.SUPPORT_SAMPLES)
    training += tasks * points * (config.INPUT_DIM + 1) * 2  # this block of points and the next
    training += config.NUM_TASKS * (config.INPUT_DIM + 7)  # what the functions are drawn from
    held_out, shots = max(config.EVAL_TASKS, config.VALIDATION_TASKS), max(config.evaluation_shots)
    judging = min(EVAL_CHUNK, config.EVAL_TASKS) * (weights + learner.numbers_per_task(config, shots))
    judging += held_out * config.EVAL_QUERY_SAMPLES * (config.INPUT_DIM + 4 * (config.EVAL_STEPS + 1))
    _check_numbers(config, training, "HIDDEN_DIM META_BATCH_SIZE SUPPORT_SAMPLES NUM_TASKS")
    _check_numbers(config, judging, "HIDDEN_DIM VALIDATION_TASKS EVAL_TASKS EVAL_SHOTS EVAL_QUERY_SAMPLES EVAL_STEPS")


def _check_numbers(config: Config, numbers: int, keys: str) -> None:
    """Raise `ConfigError`, with the settings `keys`, where so many float32 numbers do not fit."""
    total = psutil.virtual_memory().total
    if 4 * numbers > total:
        got = ", ".join(f"{key}={getattr(config, key)}" for key in keys.split())
        sizes = f"{4 * numbers / 2**30:.0f} GiB or more; expected at most {total / 2**30:.0f} GiB"
        raise ConfigError(f"these settings do not fit in memory (got {got}, {sizes})")

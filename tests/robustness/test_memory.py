"""Training as long as you like takes no more memory than training for a while."""

from __future__ import annotations

import gc

import psutil
import pytest

from config import Config
from dataset import SinusoidalTaskGenerator, TaskDataset, stream
from registry import METHODS
from tests.tools.chaos import CHAOS_METHODS, SETTINGS, Say
from training.loop import Trainer

pytestmark = pytest.mark.chaos

WARM_UP, ITERATIONS = 3_000, 20_000
MOST = 5 * 2**20  # bytes


@pytest.mark.parametrize("method", CHAOS_METHODS)
def test_twenty_thousand_iterations_grow_the_memory_by_less_than_5_mb(method: str, say: Say) -> None:
    total = WARM_UP + ITERATIONS
    length = {"EPOCHS": 1, "NUM_TASKS": 4 * total, "META_BATCH_SIZE": 4, "COMPILE": "always"}
    config = Config.resolve(METHODS[method].defaults, SETTINGS | {"INNER_STEPS": 1} | length)
    learner = METHODS[method].from_config(config, stream(0, "weights"))
    dataset = TaskDataset(SinusoidalTaskGenerator(), 100, 4, 5, 5, 0)
    trainer = Trainer(learner, [dataset], config)
    assert trainer.prepare().startswith("compiled")
    process, before = psutil.Process(), 0
    for iteration, _ in trainer.train():
        if iteration == WARM_UP:
            gc.collect()
            before = process.memory_info().rss
    gc.collect()
    grown = process.memory_info().rss - before
    say(f"memory: {ITERATIONS} iterations grew the resident set by {grown / 2**20:.2f} MB ({method})")
    assert trainer.iteration == total and grown < MOST

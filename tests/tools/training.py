"""Trainers of tiny settings, and whether two have the same bits."""

from __future__ import annotations

import torch

import registry
from config import Config
from dataset import SinusoidalTaskGenerator, TaskDataset, stream
from training.loop import Trainer

TINY = {"HIDDEN_DIM": 8, "LEO_LATENT_DIM": 3, "LEO_ENCODER_DIM": 4, "LEO_RELATION_DIM": 5, "LEO_DECODER_DIM": 6}


def make(method="maml", iterations=12, tasks=5, dataset=None, settings=None, device="cpu", compile_mode="never"):
    length = {"EPOCHS": 1, "NUM_TASKS": iterations * tasks, "META_BATCH_SIZE": tasks, "COMPILE": compile_mode}
    optimiser = {"META_LEARNING_RATE": 1e-3, "META_GRADIENT_CLIP": 1.0, "META_AVERAGE": 0.8}
    optimiser |= {"META_OPTIMISER": "muon"} if method == "leo" else {}
    config = Config.resolve(registry.METHODS[method].defaults, TINY, length, optimiser, settings or {})
    learner = registry.METHODS[method].from_config(config, stream(0, "weights"))
    dataset = dataset or TaskDataset(SinusoidalTaskGenerator(), 40, tasks, 6, 7, 0)
    return Trainer(learner, [dataset], config, device)


def run(trainer, steps=None):
    for iteration, _ in trainer.train():
        if iteration == steps:
            break
    return trainer.state()


def assert_same_bits(left, right):
    assert left["iteration"] == right["iteration"]
    for part in ("meta_parameters", "adam"):
        for name, tensor in left[part].items():
            assert torch.equal(tensor, right[part][name]), f"{part} {name}"
    assert torch.equal(left["average"], right["average"])

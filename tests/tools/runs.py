"""Command lines of tiny runs, and what they leave."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import main
import registry

ROOT = Path(main.__file__).parent


def troubles(err: str) -> list[str]:
    """The lines on stderr, without the one that so short a run has learned nothing."""
    return [line for line in err.splitlines() if "no better than one curve" not in line]


TINY = {
    **{"EPOCHS": 2, "NUM_TASKS": 30, "META_BATCH_SIZE": 4, "SUPPORT_SAMPLES": 5, "QUERY_SAMPLES": 5, "INNER_STEPS": 2},
    **{"HIDDEN_DIM": 6, "LEO_LATENT_DIM": 3, "LEO_LATENT_STEPS": 1},
    **{"LEO_ENCODER_DIM": 4, "LEO_RELATION_DIM": 4, "LEO_DECODER_DIM": 4},
    **{"EVAL_TASKS": 12, "EVAL_QUERY_SAMPLES": 8, "EVAL_STEPS": 6, "EVAL_SHOTS": [5, 10], "VALIDATION_TASKS": 4},
    **{"LOG_INTERVAL": 2, "VALIDATION_INTERVAL": 5, "CHECKPOINT_INTERVAL": 4},
}


def command(output, *arguments, without=(), **settings):
    method = arguments[arguments.index("--method") + 1] if "--method" in arguments else "maml"
    without = {*without, *registry.unused(method, "sine-line")}
    chosen = [f"{key}={json.dumps(value)}" for key, value in (TINY | settings).items() if key not in without]
    return ["--output", str(output), *arguments, *(word for item in chosen for word in ("--set", item))]


def only_run(output):
    (directory,) = output.iterdir()
    return directory


def tensorboard_events(directory):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # tensorboard's own, on import
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    events = EventAccumulator(str(directory))
    events.Reload()
    return events

"""What is compared: the rows of the tables, how each is drawn, and the training run behind it."""

from __future__ import annotations

from typing import Any, NamedTuple

from visualization import BLUE, GREEN, MARKERS, ORANGE, PURPLE, SKY, VERMILION

BROWN = "#6B3A10"  # a seventh colour, darker than all others but black
VARIANT = {"ls": (0, (4, 1.5)), "mfc": "white"}  # of another row's method


class Training(NamedTuple):
    """What the runs of one label have in common: the method, its tasks, and settings beside their defaults."""

    method: str
    tasks: str = "sinusoid"
    settings: dict[str, Any] = {}  # noqa: RUF012  never changed


class Row(NamedTuple):
    """A row of the tables and a line of the figures: methods in colour, baselines in grey."""

    protocol: str
    style: dict[str, Any]
    training: Training | None


FIVE_SHOT: dict[str, Any] = {"SUPPORT_SAMPLES": 5}
ORACLE: dict[str, Any] = {  # plain regression with the same network: nothing to adapt to, so all points are query points
    "INPUT_DIM": 3,
    "INNER_STEPS": 0,
    "EVAL_STEPS": 0,
    "EVAL_SHOTS": [1],
    "SUPPORT_SAMPLES": 1,
    "QUERY_SAMPLES": 40,
    "META_LEARNING_RATE": 0.01,  # 0.001 leaves it worse than LEO
}


def line(color: str, marker: str) -> dict[str, Any]:
    return {"color": color, "marker": marker}


BASELINES = {
    "oracle": Row(
        "amplitude and phase are inputs; no gradient",
        {"color": "0.35", "ls": (0, (1, 1))},
        Training("maml", "oracle", ORACLE),
    ),
    "pretrained": Row(
        "fine-tuned, step size from validation tasks",
        {"color": "0.5", "ls": (0, (6, 2))},
        Training("maml", settings={"INNER_STEPS": 0}),
    ),
    "random": Row("untrained; fine-tuned, step size from validation tasks", {"color": "0.65", "ls": (0, (6, 2, 1, 2))}, None),
}
ROWS = {
    "MAML": Row("trained 10-shot, 1 step", line(BLUE, MARKERS[0]), Training("maml")),
    "first-order MAML": Row(
        "the same, inner gradients as constants",
        line(BLUE, MARKERS[0]) | VARIANT,
        Training("maml", settings={"FIRST_ORDER": True}),
    ),
    "Meta-SGD": Row(
        "trained 10-shot, 1 step, a learned step size for each weight", line(SKY, MARKERS[1]), Training("meta-sgd")
    ),
    "ANIL": Row("trained 10-shot, 1 step, last layer only", line(ORANGE, MARKERS[2]), Training("anil")),
    "CAVIA": Row("trained 10-shot, 1 step in 5 context parameters", line(PURPLE, MARKERS[3]), Training("cavia")),
    "R2-D2": Row(
        "trained 10-shot; last layer in closed form, further gradients change nothing",
        line(GREEN, MARKERS[4]),
        Training("r2d2"),
    ),
    "R2-D2, trained 5-shot": Row(
        "trained 5-shot; the same", line(GREEN, MARKERS[4]) | VARIANT, Training("r2d2", settings=FIVE_SHOT)
    ),
    "ALPaCA": Row("trained 10-shot; the same with a prior of rank 8", line(BROWN, "*"), Training("alpaca")),
    "ALPaCA, trained 5-shot": Row(
        "trained 5-shot; the same", line(BROWN, "*") | VARIANT, Training("alpaca", settings=FIVE_SHOT)
    ),
    "LEO": Row("trained 10-shot, 5 steps in z, 5 in weights", line(VERMILION, MARKERS[5]), Training("leo")),
    "LEO, trained 5-shot": Row(
        "trained 5-shot, 5 steps in z, 5 in weights",
        line(VERMILION, MARKERS[5]) | VARIANT,
        Training("leo", settings=FIVE_SHOT),
    ),
    **BASELINES,
}

# All runs, by label. The longest ones come first, so that two workers finish at about the same time.
TRAININGS = {
    "LEO on sine-line": Training("leo", "sine-line"),
    "MAML on sine-line": Training("maml", "sine-line"),
    **{label: row.training for label, row in ROWS.items() if row.training},
}

# The settings of the quick version: small enough for a test; the results mean nothing.
QUICK = {
    "EPOCHS": 1,
    "NUM_TASKS": 300,
    "META_BATCH_SIZE": 10,
    "HIDDEN_DIM": 8,
    "LEO_LATENT_DIM": 4,
    "LEO_DECODER_DIM": 8,
    "EVAL_TASKS": 40,
    "EVAL_QUERY_SAMPLES": 20,
    "VALIDATION_TASKS": 10,
    "VALIDATION_INTERVAL": 30,
    "COMPILE": "never",
}

"""What is compared: the rows of the tables, how each is drawn, and the training run behind it."""

from __future__ import annotations

from typing import Any, NamedTuple

from visualization import BLUE, GREEN, MARKERS, ORANGE, PURPLE, SKY, VERMILION

BROWN = "#6B3A10"  # a seventh colour, darker than all others but black
VARIANT = (0, (4, 1.5))  # the broken line of a method that has another row, too


class Training(NamedTuple):
    """What the runs of one label have in common: the method, its tasks, and settings beside their defaults."""

    method: str
    settings: dict[str, Any] = {}  # noqa: RUF012  never changed
    tasks: str = "sinusoid"


class Row(NamedTuple):
    """A row of the tables and a line of the figures: methods in colour, baselines in grey."""

    protocol: str
    training: Training | None
    color: str
    marker: str = ""
    ls: Any = "solid"

    @property
    def style(self) -> dict[str, Any]:
        """As matplotlib takes it."""
        face = "white" if self.ls == VARIANT else self.color
        return {"color": self.color, "marker": self.marker, "ls": self.ls, "mfc": face}


FIVE = {"SUPPORT_SAMPLES": 5}
NO_STEPS = {"INNER_STEPS": 0}
# plain regression with the same network: nothing to adapt to, so all points are query points; a rate of 0.001 is worse than LEO
ORACLE = NO_STEPS | {"INPUT_DIM": 3, "EVAL_STEPS": 0, "SUPPORT_SAMPLES": 1, "QUERY_SAMPLES": 40, "META_LEARNING_RATE": 0.01}

BASELINES = {
    "oracle": Row(
        "amplitude and phase are inputs; no gradient",
        Training("maml", ORACLE | {"EVAL_SHOTS": [1]}, "oracle"),
        "0.35",
        ls=(0, (1, 1)),
    ),
    "pretrained": Row("fine-tuned, step size from validation tasks", Training("maml", NO_STEPS), "0.5", ls=(0, (6, 2))),
    "random": Row("untrained; fine-tuned, step size from validation tasks", None, "0.65", ls=(0, (6, 2, 1, 2))),
}
LEO_STEPS = "5 steps in z, 5 in weights"
CLOSED_FORM = "trained 10-shot; last layer in closed form, further gradients change nothing"
FIRST_ORDER = Training("maml", {"FIRST_ORDER": True})
ROWS = {
    "MAML": Row("trained 10-shot, 1 step", Training("maml"), BLUE, MARKERS[0]),
    "first-order MAML": Row("the same, inner gradients as constants", FIRST_ORDER, BLUE, MARKERS[0], VARIANT),
    "Meta-SGD": Row("trained 10-shot, 1 step, a learned step size for each weight", Training("meta-sgd"), SKY, MARKERS[1]),
    "ANIL": Row("trained 10-shot, 1 step, last layer only", Training("anil"), ORANGE, MARKERS[2]),
    "CAVIA": Row("trained 10-shot, 1 step in 5 context parameters", Training("cavia"), PURPLE, MARKERS[3]),
    "R2-D2": Row(CLOSED_FORM, Training("r2d2"), GREEN, MARKERS[4]),
    "R2-D2, trained 5-shot": Row("trained 5-shot; the same", Training("r2d2", FIVE), GREEN, MARKERS[4], VARIANT),
    "ALPaCA": Row("trained 10-shot; the same with a prior of rank 8", Training("alpaca"), BROWN, "*"),
    "ALPaCA, trained 5-shot": Row("trained 5-shot; the same", Training("alpaca", FIVE), BROWN, "*", VARIANT),
    "LEO": Row(f"trained 10-shot, {LEO_STEPS}", Training("leo"), VERMILION, MARKERS[5]),
    "LEO, trained 5-shot": Row(f"trained 5-shot, {LEO_STEPS}", Training("leo", FIVE), VERMILION, MARKERS[5], VARIANT),
    **BASELINES,
}

# All runs, by label. The longest ones come first, so that two workers finish at about the same time.
TRAININGS = {
    "LEO on sine-line": Training("leo", tasks="sine-line"),
    "MAML on sine-line": Training("maml", tasks="sine-line"),
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

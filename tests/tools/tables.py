"""Tables of 12 subjects, and runs on them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import main
from dataset import Points
from tables.table import SPLITS, read_table
from tables.tasks import TableTaskGenerator

ROOT = Path(__file__).resolve().parents[2]
COUNTS = (9, 12, 8, 10, 3, 11, 9, 30, 8, 12, 9, 10)  # points of each subject


def toy_rows(splits: bool = False) -> list[list[str]]:
    """12 subjects: waves of their own height, at different numbers of irregular places, no value twice."""
    rng = np.random.default_rng(1)
    rows = []
    for subject, count in enumerate(COUNTS):
        x = np.sort(rng.uniform(0, 30, count))
        y = 50 + (5 + subject) * np.sin(x / 5) + rng.normal(0, 0.1, count)
        word = [SPLITS[(subject % 4 == 1) + 2 * (subject % 4 == 2)]] * splits
        rows += [[f"s{subject}", repr(float(a)), repr(float(b)), *word] for a, b in zip(x, y, strict=True)]
    return rows


def write(path: Path, rows: list[list[str]], header: str = "", delimiter: str = ",") -> Path:
    header = header or ("task,x,y,split" if len(rows[0]) == 4 else "task,x,y")
    path.write_text("\n".join([header, *map(delimiter.join, rows)]) + "\n")
    return path


def generator_of(path: Path, *args: object, seed: int = 0) -> TableTaskGenerator:
    return TableTaskGenerator(read_table(path, seed=seed), *args)  # type: ignore[arg-type]


SMALL = ["EPOCHS=3", "META_BATCH_SIZE=3", "HIDDEN_DIM=6", "EVAL_STEPS=1", "EVAL_REPEATS=2", "COMPILE=never"]
SMALL += ["VALIDATION_INTERVAL=2"]
SETTINGS = [word for setting in SMALL for word in ("--set", setting)]
COLUMNS = ["--columns", "task=who", "x=day (d)", "y=mass_g"]


def train(output: Path, data: Path, name: str, *arguments: str) -> Path:
    method = [] if "--method" in arguments else ["--method", "maml"]
    assert main.main([*method, "--data", str(data), "--output", str(output), "--name", name, *SETTINGS, *arguments]) == 0
    return next(output.glob(f"*_Table_{name}"))


COVARIANCE, NOISE = np.array([[1.0, 0.3], [0.3, 0.5]]), 0.04


def lines(subjects: int, points: int = 8, seed: int = 0, inputs: int = 1, noise: float = NOISE) -> list[Points]:
    """Subjects with random intercepts and slopes around 2 + 3 x, at irregular places."""
    rng = np.random.default_rng(seed)
    effects = rng.multivariate_normal([2, 3], COVARIANCE, subjects)
    x = np.sort(rng.uniform(-1, 1, (subjects, points, inputs)), 1)
    y = effects[:, :1] + effects[:, 1:] * x[..., 0] + np.sqrt(noise) * rng.standard_normal((subjects, points))
    return [Points(*pair) for pair in zip(x, y[..., None], strict=True)]


def stacked(subjects: list[Points], first: int) -> tuple[Points, Points]:
    """The `first` points of each subject, and the others."""
    x, y = (np.stack(parts) for parts in zip(*subjects, strict=True))
    return Points(x[:, :first], y[:, :first]), Points(x[:, first:], y[:, first:])

"""What benchmarks use of the project's commands and evaluation: where one of these moves, this is the file that changes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

import main
from commands.compare import read_run as read_run
from commands.runs import build as build
from config import Config
from evaluation.errors import errors as errors
from evaluation.intervals import rank_correlation as rank_correlation
from evaluation.statistics import geometric_mean as geometric_mean
from evaluation.statistics import mean_and_interval as mean_and_interval
from report.text import csv_table as csv_table
from system.checkpoints import read_checkpoint
from training.experiment import Experiment as Experiment


def load_best(directory: Path, changes: Mapping[str, Any] | None = None) -> Experiment:
    """The experiment of a finished run with its best checkpoint, for evaluation; `changes` to its settings."""
    state = read_checkpoint(directory / "checkpoints" / "best.pt")
    config = Config.resolve(state["config"], {"COMPILE": "never"}, changes or {})
    experiment = build(state["method"], state["tasks"], config)
    experiment.trainer.load(state)
    return experiment


def main_without_figures(argv: list[str]) -> int:
    """main.py in this process, without the run's own figures, which take most of the time of a tiny run."""
    with patch("commands.evaluate.draw"), patch.object(Experiment, "show_progress"):
        return main.main(argv)

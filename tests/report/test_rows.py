"""The table of a run: which rows and columns it has, and what its notes say. Those of a comparison: tests/evaluation."""

import numpy as np

from report.rows import run_table
from report.text import text_table


def record(mse, **more):
    """The "evaluation" of metrics.json, for 5 shots."""
    result = {"mse": mse, "ci95": [0.01] * len(mse)} | more
    return {"num_tasks": 1000, "shots": {"5": result}}


def test_errors_stand_after_0_1_5_and_10_gradients_above_the_published_ones():
    table = run_table(record([float(step) / 8 for step in range(11)]), "MAML", {5: {1: 0.67, 5: 0.38, 10: 0.35}})
    assert table.cells == [
        ["K", "", "0 gradients", "1 gradient", "5 gradients", "10 gradients"],
        ["5", "MAML", "0 +- 0.01", "0.125 +- 0.01", "0.625 +- 0.01", "1.25 +- 0.01"],
        ["5", "Finn et al. 2017", "", "0.67", "0.38", "0.35"],
    ]
    assert len(run_table(record([1.0] * 11), "MAML", {10: {1: 0.5}}).cells) == 2  # nothing is published for this K
    assert table.notes == ["Mean squared errors over 1000 test tasks, with 95% intervals over tasks."]


def test_a_table_of_subjects_has_the_own_unit_the_baselines_and_the_interval():
    evaluation = record([1, 0.5, 0.25], rmse=[8, 6, 4.0], interval={"coverage": 0.9, "width": 12.0}, left_out=3)
    evaluation |= {"baselines": {"mixed model": {"5": {"mse": 0.3, "ci95": 0.2, "rmse": 4.4}}}, "verdict": "14% lower"}
    table = run_table(evaluation, "LEO", {})
    assert table.cells == [
        ["K", "", "0 gradients", "2 gradients", "in own unit", "90% interval: holds, width"],
        ["5", "LEO", "1 +- 0.01", "0.25 +- 0.01", "4", "90.0%, 12"],
        ["5", "mixed model", "", "0.3 +- 0.2", "4.4", ""],
    ]
    assert table.notes[-1] == "Skipped, too few points: 3 at K = 5." and "in own unit" in table.notes[1]
    assert text_table(table).endswith("\n14% lower")


def test_diverged_tasks_are_counted_and_what_is_not_finite_has_its_place():
    others = {"mse": [0.5, 0.25], "ci95": [0.1, 0.1]}
    for bad in (np.inf, np.nan, None, 555.0):
        table = run_table(record([1.0, bad], diverged=3, others=others), "MAML", {})
        assert table.cells[1][2:] == ["1 +- 0.01", "0.25 +- 0.1 *"]
    assert table.notes[-1] == "Test tasks that diverged: 3 at K = 5; means with * leave them out."
    for bad in (np.nan, np.inf, None):  # null is how JSON writes it
        (row,) = run_table(record([1.0, bad], interval={"coverage": 1.0, "width": bad}), "MAML", {}).cells[1:]
        assert row[2:] == ["1 +- 0.01", "- +- 0.01", "100.0%, unbounded"]

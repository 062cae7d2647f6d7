"""Tasks from a table: what is read and what is refused, splits, scales, draws, and whole runs of a table of 12 subjects."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

import main
from config import Config
from dataset import TaskDataset, stream
from evaluation.errors import errors, held_out_errors
from evaluation.evaluate import Protocol, evaluate
from maml import MAML
from registry import METHODS
from report.figures import run_figures
from system.checkpoints import read_checkpoint
from tables.table import random_split, read_table, remarks
from tables.tasks import TableTaskGenerator, distinct
from tests.tools.runs import troubles
from tests.tools.tables import COLUMNS, COUNTS, SMALL, generator_of, toy_rows, train, write
from training.experiment import Experiment


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    return write(tmp_path / "toy.csv", toy_rows())


def test_distinct_numbers_are_different_below_their_count_and_in_every_order_equally_often() -> None:
    for largest in (6, 40, 100_000):
        counts = np.tile([5, largest], 3000)
        drawn = distinct(counts, 5, stream(0, "points"))
        assert (drawn < counts[:, None]).all() and (drawn >= 0).all()
        assert (np.diff(np.sort(drawn, 1), axis=1) > 0).all()
        assert_allclose(drawn[1::2, [0, 4]].mean(0) / (largest - 1), 0.5, atol=0.03)
    for count in (4, 60):
        drawn = distinct(np.full(60_000, count), 3, stream(0, "points"))
        ranks = drawn.argsort(1) @ [9, 3, 1]
        assert_allclose(np.unique(ranks, return_counts=True)[1], [10_000] * 6, rtol=0.05)
        assert_allclose(np.bincount(drawn[:, 2]), [60_000 / count] * count, rtol=0.15)


@pytest.mark.parametrize("support_from", ["random", "first"])
def test_no_query_point_lies_in_its_support(toy: Path, support_from: str) -> None:
    generator = generator_of(toy, support_from)
    dataset = TaskDataset(generator, 7, 6, 4, 5, 0)
    blocks = [dataset.draw_block(number) for number in range(3)]
    support = np.concatenate([block.support.y.reshape(-1, 4) for block in blocks])
    query = np.concatenate([block.query.y.reshape(-1, 5) for block in blocks])
    assert not (support[:, :, None] == query[:, None, :]).any()
    assert (np.diff(np.sort(support, 1), axis=1) > 0).all()


def test_tasks_have_the_shapes_of_their_params_and_the_first_points_as_support_if_asked_for(toy: Path) -> None:
    generator = generator_of(toy, "first")
    params = generator.split("train", 0, 0, 4)
    support, query = generator.tasks(params, 4, 5, stream(0, "points"))
    assert (support.x.max(1) < query.x.min(1)).all()
    assert len(generator.held_out("test", 0, 2, 0).tasks.support.x) <= 6  # there is one draw of them
    params = np.repeat(params[:3], 2, 0).reshape(2, 3, 1)
    support, query = generator.tasks(params, 4, 5, stream(0, "points"))
    assert [part.shape for part in (*support, *query)] == [(2, 3, 4, 1), (2, 3, 4, 1), (2, 3, 5, 1), (2, 3, 5, 1)]
    assert {part.dtype for part in (*support, *query)} == {np.dtype(np.float32)}


@pytest.mark.parametrize("support_from", ["random", "first"])
def test_every_remaining_point_is_judged_once_a_draw(toy: Path, support_from: str) -> None:
    generator = generator_of(toy, support_from, 3)
    params, (support, query), owners = generator.held_out("test", 0, 4, 0)
    assert owners is not None
    for place, subject in enumerate(params[:, 0]):
        own = generator.y[generator.start[subject] :][: generator.counts[subject], 0]
        rows = owners == place
        if len(own) <= 4:
            assert not rows.any()
            continue
        asked, given = query.y[rows, :, 0], np.unique(support.y[rows, :, 0], axis=0)
        expected = np.concatenate([np.setdiff1d(own, points) for points in given])
        assert len(given) == (1 if support_from == "first" else 3)  # equal draws are unlikely
        assert_array_equal(np.sort(asked[~np.isnan(asked)]), np.sort(expected))


def test_errors_of_a_ragged_split_are_means_over_points_then_draws(toy: Path) -> None:
    generator = generator_of(toy, "random", 4)
    learner = MAML.from_config(Config(HIDDEN_DIM=8), stream(0, "weights"))
    held_out = generator.held_out("test", 0, 8, 0)
    found = held_out_errors(learner, held_out, 2)
    rows = errors(learner, held_out.tasks, 2)
    assert held_out.owners is not None and not held_out.evaluable.all()
    assert_array_equal(np.isnan(found).all(1), ~held_out.evaluable)
    points = (~np.isnan(held_out.tasks.query.y)).sum((1, 2))
    for place in np.flatnonzero(held_out.evaluable):
        own = held_out.owners == place
        assert_allclose(found[place], np.average(rows[own], axis=0, weights=points[own]), rtol=1e-12)
    torch.nn.init.constant_(learner.theta, torch.nan)  # predictions that are NaN are infinite errors, and padding is none
    found = held_out_errors(learner, held_out, 2)
    assert np.isinf(found[held_out.evaluable]).all() and np.isnan(found[~held_out.evaluable]).all()


def test_no_test_subject_takes_part_in_scaling_or_training(tmp_path: Path) -> None:
    rows = toy_rows(splits=True)
    others = [[*row[:2], str(float(row[2]) * 7 + 900) if row[3] != "train" else row[2], row[3]] for row in rows]
    one, other = (generator_of(write(tmp_path / f"{name}.csv", text)) for name, text in (("a", rows), ("b", others)))
    again = generator_of(tmp_path / "a.csv", seed=1)  # the same draws of the same test subjects for every seed
    assert_array_equal(one.held_out("test", 0, 4, 0).tasks.query.y, again.held_out("test", 0, 4, 0).tasks.query.y)
    assert_array_equal(one.table.coding.unit, other.table.coding.unit)
    assert_array_equal(one.table.coding.centre, other.table.coding.centre)
    blocks = [TaskDataset(generator, 6, 5, 4, 5, 0).draw_block(0) for generator in (one, other)]
    assert_array_equal(blocks[0].query.y, blocks[1].query.y)
    trained = {float(value) for value in np.concatenate([blocks[0].support.y.ravel(), blocks[0].query.y.ravel()])}
    tested = {float(value) for split in ("validation", "test") for value in one.held_out(split, 0, 2, 0).tasks.query.y.ravel()}
    assert not trained & tested


def test_training_values_have_mean_0_deviation_1_and_inputs_from_minus_1_to_1(toy: Path) -> None:
    generator = generator_of(toy)
    own = np.isin(np.repeat(np.arange(12), COUNTS), generator.split("train", 0, 0))
    assert_allclose([generator.y[own].mean(), generator.y[own].std()], [0, 1], atol=1e-6)
    assert (generator.x[own].min(), generator.x[own].max()) == (-1, 1)
    back = generator.unscale(type(generator.held_out("test", 0, 2, 0).tasks.query)(generator.x, generator.y))
    assert_allclose(back.y[:, 0], generator.table.values[:, -1], rtol=1e-6)
    assert_allclose(back.x, generator.table.values[:, :-1], rtol=1e-5)


def test_each_subject_is_a_test_subject_in_one_fold_alone_and_folds_are_read_again(tmp_path: Path) -> None:
    whole = TableTaskGenerator(read_table(write(tmp_path / "toy.csv", toy_rows()), folds=0))
    tested = [fold.split("test", 0, 0)[:, 0].tolist() for fold in whole.folds]
    trained = [fold.split("train", 0, 0)[:, 0].tolist() for fold in whole.folds]
    assert sorted(itertools.chain(*tested)) == list(range(12)) and max(map(len, tested)) - min(map(len, tested)) <= 1
    assert all(sorted(one + other) == list(range(12)) for one, other in zip(tested, trained, strict=True))
    assert len(whole.split("train", 0, 0)) == 12
    (tmp_path / "again.csv").write_bytes(whole.files()["table.csv"])
    again = TableTaskGenerator(read_table(tmp_path / "again.csv"))
    assert again.record()["splits_sha256"] == whole.record()["splits_sha256"] and len(again.folds) == len(tested) == 5


def test_a_random_split_has_its_shares_and_never_fewer_than_two() -> None:
    for count in (6, 7, 12, 50, 79, 1000):
        sizes = np.bincount(random_split(count, (60, 15, 25), 3), minlength=3)
        assert sizes.sum() == count and sizes.min() >= 2
        assert np.abs(sizes / count - [0.6, 0.15, 0.25]).max() < (0.27 if count < 12 else 0.07)
        assert not np.array_equal(random_split(count, (60, 15, 25), 3), random_split(count, (60, 15, 25), 4))


def test_inputs_of_several_columns_are_scaled_each_by_itself_and_large_offsets_change_nothing(tmp_path: Path) -> None:
    rows = [[name, x, str(1e6 + 1000 * float(y)), repr(float(x) + 1.7e9), y] for name, x, y in toy_rows()]
    path = write(tmp_path / "t.csv", rows, "Who,day,mass,later,out")
    generator = TableTaskGenerator(read_table(path, ["task=who", "x=day", "x=mass", "x=later", "y=out"]))
    assert generator.input_dim == 3 and generator.table.names == ("Who", "day", "mass", "later", "out", "split")
    assert generator.implied_settings()["INPUT_DIM"] == 3
    training = generator.x[np.isin(np.repeat(np.arange(12), COUNTS), generator.split("train", 0, 0))]
    assert_allclose([training.min(0), training.max(0)], [[-1] * 3, [1] * 3], atol=1e-6)
    assert_allclose(generator.x[:, 2], generator.x[:, 0], atol=1e-6)


NAMES = ["plain", "two words", "a,b", 'say "no"', "#1", "é ü", "sep=;", "'", "1", "01", "日本", "-"]


def test_a_table_in_normal_form_reads_as_itself_whatever_the_subjects_names(tmp_path: Path) -> None:
    quoted = {f"s{place}": '"' + name.replace('"', '""') + '"' for place, name in enumerate(NAMES)}
    rows = [[quoted[row[0]], *row[1:]] for row in toy_rows(splits=True)]
    first = generator_of(write(tmp_path / "t.csv", rows))
    (tmp_path / "again.csv").write_bytes(first.files()["table.csv"])
    second = generator_of(tmp_path / "again.csv")
    assert list(first.table.subjects) == NAMES == list(second.table.subjects)
    assert first.files() == second.files()
    assert first.record() | {"source_sha256": ""} == second.record() | {"source_sha256": ""}


def test_what_may_be_a_mistake_is_remarked_on(tmp_path: Path, toy: Path) -> None:
    rows = toy_rows()
    assert remarks(read_table(toy)) == generator_of(toy).record()["remarks"] == []
    renamed = [[name.replace("s11", "S3").replace("s10", " s4.0").replace("s9", "s4.00"), *rest] for name, *rest in rows]
    lines = remarks(read_table(write(tmp_path / "b.csv", [*renamed, rows[3]])))
    assert f"some rows repeat others (got 1 of {len(rows) + 1};" in lines[0]
    assert "differ by case, blanks or .0 alone (got 's3' and 'S3', 2 such cases;" in lines[1]


BLEMISHES: dict[str, Callable[[list[list[str]]], tuple[str, list[list[str]]]]] = {
    "an index column": lambda rows: (",task,x,y", [[str(place), *row] for place, row in enumerate(rows)]),
    "blanks and capitals": lambda rows: (" Task , X , Y ", [[f" {cell} " for cell in row] for row in rows]),
    "other columns": lambda rows: ("note,task,x,y", [["rain", *row] for row in rows]),
    "rows without a target": lambda rows: ("task,x,y", [one for row in rows for one in (row, [row[0], "7", "NA"])]),
    "shuffled rows": lambda rows: ("task,x,y", sorted(rows, key=lambda row: (int(row[0][1:]), -float(row[1])))),
}


def test_a_harmless_blemish_changes_no_number(tmp_path: Path, toy: Path) -> None:
    clean = read_table(toy)
    for name, blemish in BLEMISHES.items():
        header, rows = blemish(toy_rows())
        table = read_table(write(tmp_path / "other.csv", rows, header))
        assert_array_equal(table.values, clean.values, name)
        assert_array_equal(table.split, clean.split, name)
        assert list(table.subjects) == list(clean.subjects)
        assert table.left_out == (len(clean.values) if name == "rows without a target" else 0)


def changed(place: int | None, column: int, text: str) -> Callable[[list[list[str]]], list[list[str]]]:
    """Another cell in one row, or in all (None)."""
    return lambda rows: [[*row[:column], text, *row[column + 1 :]] if place in (n, None) else row for n, row in enumerate(rows)]


Rows = list[list[str]]
BAD_ROWS: list[tuple[Callable[[Rows], Rows], list[str]]] = [
    (lambda rows: rows[:9], ["too few subjects", "at least 2 of each, 6 together"]),
    (lambda rows: [row for row in rows if row[0] in ("s0", "s1", "s2", "s3", "s5")], ["too few subjects", "6 together"]),
    (lambda rows: [rows[sum(COUNTS[:n])] for n in range(12)], ["two points or more", "got 0 train"]),
    (changed(None, 1, "3.5"), ["'x' is constant", "got 3.5"]),
    (changed(None, 2, "0"), ["'y' is constant", "got 0"]),
    (changed(4, 1, "noon"), ["line 6, column 'x'", "got 'noon'"]),
    (changed(7, 1, ""), ["line 9, column 'x'", "got ''"]),
    (changed(7, 2, "1e30"), ["line 9, column 'y'", "got '1e30'"]),
    (changed(7, 0, ""), ["line 9, column 'task'", "a subject's"]),
    (lambda rows: [*rows[:5], rows[5][:2], *rows[6:]], ["line 7"]),
]
BAD_WORDS = {
    "--columns y=weight": ["no column 'weight'", "'task', 'x', 'y'"],
    "--columns x=y y=y": ["'y' twice"],
    "--columns x=x x=x": ["COLUMNS can't be used"],
    "--columns split=task": ["'task' twice"],
    "--set SUPPORT_FROM=first --set EVAL_REPEATS=3": ["EVAL_REPEATS has no effect on these"],
    "--tasks sinusoid": ["has no effect", "expected with table"],
    "--set NUM_TASKS=100": ["NUM_TASKS follows from the tasks", "expected 12"],
    "--set SUPPORT_SAMPLES=50": ["too few validation subjects for K = 50", "at least 2"],
    "--set EVAL_SHOTS=4,29": ["too few test subjects for K = 29"],
    "--evaluate latest": ["got --data"],
}
IDLE = "has no effect on these tasks", "with a table without a column of splits)"
FAR = [[*row[:2], row[2] + "e-6" if row[3] == "train" else "1e14", row[3]] for row in toy_rows(True)]
REFUSALS = [
    *((change(toy_rows()), "", phrases) for change, phrases in BAD_ROWS),
    *((toy_rows(), words, phrases) for words, phrases in BAD_WORDS.items()),
    *((toy_rows(splits=True), f"--set {text}", [*IDLE]) for text in ("TRAIN_SHARE=70", "TEST_SHARE=1", "SPLIT_SEED=3")),
    (changed(3, 3, "holdout")(toy_rows(True)), "", ["line 5, column 'split'", "got 'holdout'", "train, validation or test"]),
    (changed(3, 3, "")(toy_rows(True)), "", ["line 5, column 'split'", "got ''"]),
    (changed(3, 3, "test")(toy_rows(True)), "", ["got test for subject 's0'", "train as in its first row"]),
    ([[*row[:3], "test" if row[3] != "train" else row[3]] for row in toy_rows(True)], "", ["0 validation"]),
    (FAR, "", ["line 11, column 'y' can't be used (got 1e+14; expected at most 1e+15 times"]),
]


def test_a_bad_table_is_refused_with_its_place_and_nothing_is_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in ("--tasks table", "--tasks table --data no/such.csv"):
        assert main.main([*words.split(), "--output", str(tmp_path / "runs")]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    for rows, words, phrases in REFUSALS:
        path = write(tmp_path / "toy.csv", rows, "task,x,y" if len(rows[0]) == 3 else "")
        assert main.main(["--data", str(path), "--output", str(tmp_path / "runs"), *words.split()]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1
        assert [phrase for phrase in [*phrases, "(got ", "expected "] if phrase not in error] == [], error
        assert not (tmp_path / "runs").exists()


def weights(run: Path) -> list[torch.Tensor]:
    return list(read_checkpoint(run / "checkpoints" / "last.pt")["meta_parameters"].values())


def evaluation_of(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "metrics.json").read_text())["evaluation"]
    return found


def test_a_run_is_complete_without_its_source_repeats_to_the_bit_and_refuses_a_table_that_changed(
    tmp_path: Path, toy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [train(tmp_path, toy, name, "--method", "leo") for name in ("a", "b")]
    digest = hashlib.sha256(toy.read_bytes()).hexdigest()
    toy.unlink()
    first, second = map(weights, runs)
    assert all(map(torch.equal, first, second))

    report, metrics = json.loads((runs[0] / "full_report.json").read_text()), evaluation_of(runs[0])
    assert report["data"]["source_sha256"] == digest and "table.csv" in report["files"]
    for result in metrics["shots"].values():
        assert_allclose(result["rmse"], report["data"]["unit"][-1] * np.sqrt(result["mse"]))

    previous = (runs[1] / "checkpoints" / "previous.pt").read_bytes()
    (runs[1] / "checkpoints" / "last.pt").write_bytes(previous)
    assert not torch.equal(weights(runs[1])[0], first[0])
    assert main.main(["--resume", str(runs[1])]) == 0
    assert all(map(torch.equal, first, weights(runs[1])))
    again = json.loads((runs[1] / "full_report.json").read_text())
    assert again["data"] == report["data"] and again["results"] == report["results"]
    assert main.main(["--evaluate", str(runs[0])]) == 0 and evaluation_of(runs[0]) == metrics

    header, row, *rest = (runs[0] / "table.csv").read_text().splitlines()
    changed_row = ",".join([row.split(",")[0], "1.0", "51.0", row.split(",")[-1]])
    (runs[0] / "table.csv").write_text("\n".join([header, changed_row, *rest, ""]))
    assert main.main(["--evaluate", str(runs[0])]) == 2
    assert "measurements or splits that changed" in capsys.readouterr().err


def test_runs_on_other_tables_or_splits_are_not_compared(tmp_path: Path, toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = write(tmp_path / "other.csv", changed(0, 2, "51")(toy_rows()))
    first = train(tmp_path, toy, "first")
    same = train(tmp_path, toy, "same", "--set", "RANDOM_SEED=1", "--set", "SPLIT_SEED=0")
    split = train(tmp_path, toy, "split", "--set", "RANDOM_SEED=1")
    table = train(tmp_path, other, "table", "--set", "RANDOM_SEED=2", "--set", "SPLIT_SEED=0")
    toy.unlink()
    capsys.readouterr()
    assert main.main(["--compare", str(first), str(same), "--output", str(tmp_path / "c")]) == 0
    for run, reason in ((split, ["(got splits="]), (table, ["(got points=", " of other.csv", " of toy.csv"])):
        assert main.main(["--compare", str(first), str(run), "--output", str(tmp_path / "d")]) == 2
        found = capsys.readouterr().err
        assert all(part in found for part in reason)
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize("splits", [False, True], ids=["drawn split", "column of splits"])
def test_several_seeds_share_one_split_and_idle_settings_of_a_file_are_one_warning(
    splits: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, file = write(tmp_path / "toy.csv", toy_rows(splits)), tmp_path / "settings.json"
    file.write_text(json.dumps({"EVAL_REPEATS": 3, "SUPPORT_FROM": "first", "TRAIN_SHARE": 70}))
    settings = [word for text in SMALL if "REPEATS" not in text for word in ("--set", text)]
    argv = [
        "--method",
        "maml",
        "--data",
        str(path),
        "--output",
        str(tmp_path),
        "--config",
        str(file),
        "--seeds",
        "3-4",
        *settings,
    ]
    assert main.main(argv) == 0
    warnings = troubles(capsys.readouterr().err)
    assert warnings == [f"warning: EVAL_REPEATS, TRAIN_SHARE in {file}: without effect on maml with table tasks"] * 2
    tables = [path.read_bytes() for path in tmp_path.glob("*_Table_*/table.csv")]
    assert len(tables) == 2 and tables[0] == tables[1]


@pytest.mark.usefixtures("with_figures")
def test_the_figures_of_a_run_on_a_table_are_drawn_in_own_units(
    tmp_path: Path, toy: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Experiment, "show_progress", lambda *_: None)
    monkeypatch.setattr("report.figures.run_figures", lambda *args: {"subjects": run_figures(*args)["subjects"]})
    run = train(tmp_path, write(toy, toy_rows(), "who,day (d),mass_g"), "a", *COLUMNS, "--set", "EVAL_SHOTS=2,8")
    warnings = troubles(capsys.readouterr().err)
    assert warnings == [] and (run / "plots" / "subjects.png").exists()
    with np.load(run / "plots" / "data.npz") as arrays:
        assert list(arrays["axis_names"]) == ["day (d)", "mass_g"]
        assert arrays["grid_names"][0] in arrays["test_names"] and arrays["grid_points_y"].shape[0] == len(arrays["grid_names"])
        assert np.isin(arrays["grid_support_y"][0].round(3), arrays["grid_points_y"][0].round(3)).all()
        assert 25 < arrays["grid"].max() < 31 and 30 < arrays["grid_support_y"].mean() < 70
        assert arrays["test_left_out_8_shot"].sum() == np.isnan(arrays["test_errors_8_shot"]).all(1).sum() > 0


def test_a_k_beyond_all_validation_subjects_leaves_the_others_their_intervals(tmp_path: Path) -> None:
    counts = {"train": (8, 8, 8), "validation": (4, 4), "test": (8, 8, 8)}
    sizes = [(split, count) for split, some in counts.items() for count in some]
    rows = [[f"s{n}", str(x), str(x * n + x % 3), split] for n, (split, count) in enumerate(sizes, 1) for x in range(count)]
    generator = generator_of(write(tmp_path / "t.csv", rows))
    learner = METHODS["r2d2"].from_config(Config(HIDDEN_DIM=8), stream(0, "weights"))
    assert set(evaluate(learner, generator, Protocol((2, 5), 1, 10, 10, 10)).calibration) == {"0", "1", "2", "3"}

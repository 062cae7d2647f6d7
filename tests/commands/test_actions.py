"""What the command line does with finished runs: seeds one after another, comparisons, predictions for given points."""

import csv
import hashlib
import itertools
import json
import re
import shutil
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

import main
from commands.runs import build, tasks_of_run
from config import Config
from evaluation.errors import held_out_errors
from main import seed_list
from results_manager import ExperimentManager
from system.checkpoints import read_checkpoint
from system.errors import RunError
from tests.evaluation.test_baselines import NAMES
from tests.tools.runs import ROOT, TINY, command
from tests.tools.tables import SETTINGS

POINTS = ROOT / "docs" / "points.csv"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """An output folder with a tiny run of each method, MAML with two seeds."""
    output = tmp_path_factory.mktemp("runs")
    assert main.main(command(output, "--name", "tiny", "--seeds", "3,5", EVAL_STEPS=3)) == 0
    assert main.main(command(output, "--method", "leo", "--name", "tiny", EVAL_STEPS=3)) == 0
    return output


def predict(run, points, *more):
    return main.main(["--predict", str(run), "--points", str(points), *more])


def table(path):
    return list(csv.DictReader(path.read_text().splitlines()))


def files(directory):
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_seeds_are_read_as_ranges_and_lists_or_refused():
    good = {"0-4": [0, 1, 2, 3, 4], "7": [7], "0,3,7-9": [0, 3, 7, 8, 9], "3, 1": [3, 1], "4-4": [4]}
    assert {text: seed_list(text) for text in good} == good
    for text in ("", "a", "1.5", "-1", "3-1", "1,1", "0-3,2", "0-1000000", "0-", "1,,2", "0:4", "²", "9" * 30):
        with pytest.raises(RunError, match="--seeds can't be used"):
            seed_list(text)


def test_every_seed_has_a_run_of_its_own_and_the_comparison_groups_them(runs):
    assert {path.name for path in runs.glob("MAML*")} == {"MAML_Sinusoidal_tiny-seed3", "MAML_Sinusoidal_tiny-seed5"}
    (found,) = runs.glob("Comparison_*")
    kinds = {f"comparison.{kind}" for kind in ("md", "csv", "pdf")}  # and the figures, drawn by no tiny run
    assert set(files(found)) == kinds | {"report.html"}
    rows = table(found / "comparison.csv")
    assert {(row["group"], row["seeds"]) for row in rows} == {("MAML", "2"), ("best single function", "1")}


def test_a_seed_of_a_sweep_gives_the_run_that_it_gives_alone(runs, tmp_path):
    assert main.main(command(tmp_path, "--seed", "5", "--name", "alone", EVAL_STEPS=3)) == 0
    ends = runs / "MAML_Sinusoidal_tiny-seed5", tmp_path / "MAML_Sinusoidal_alone"
    swept, alone = (read_checkpoint(run / "checkpoints" / "best.pt")["meta_parameters"]["theta"] for run in ends)
    assert alone.equal(swept)


def test_a_sweep_whose_name_is_taken_is_refused_before_it_starts(runs, capsys):
    before = sorted(runs.iterdir())
    assert main.main(command(runs, "--name", "tiny", "--seeds", "2-3")) == 2
    assert "tiny-seed3 exists" in capsys.readouterr().err and sorted(runs.iterdir()) == before


def test_a_sweep_ends_with_the_first_seed_that_is_stopped(tmp_path, stopped):
    assert main.main(command(tmp_path, "--seeds", "0-2")) == 143
    assert len(list(tmp_path.iterdir())) == 1


def test_runs_are_compared_in_the_order_given_and_nothing_of_them_changes(runs, tmp_path, capsys):
    names = ["LEO_Sinusoidal_tiny", "MAML_Sinusoidal_tiny-seed3", "MAML_Sinusoidal_tiny-seed5"]
    before = [files(runs / name) for name in names]
    assert main.main(["--compare", *(str(runs / name) for name in names), "--output", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "Differences to LEO are taken task by task" in printed
    (found,) = tmp_path.iterdir()
    assert f"written: {found}" in printed
    rows = table(found / "comparison.csv")
    assert {row["group"] for row in rows} == {"LEO", "MAML", "best single function"}
    assert [files(runs / name) for name in names] == before


def test_actions_that_make_no_sense_are_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for words in (
        *("--seeds 0-1 --seed 3", "--seeds 0-1 --set RANDOM_SEED=3", "--seeds 0-1 --resume latest", "--seeds="),
        *("--compare", "--compare nowhere", "--compare=", "--compare latest --method leo", "--compare latest --set EPOCHS=1"),
        *("--compare latest --name mine", "--compare latest --resume latest"),
        *("--method leo leo", "--method leo maml --resume latest", "--method leo maml --set NO_SUCH=1"),
        *("--method leo maml --predict latest --points docs/points.csv", "--method maml anil --set LEO_LATENT_DIM=3"),
    ):
        assert main.main([*words.split(), "--output", str(tmp_path / "out")]) == 2
        printed = capsys.readouterr().err
        assert re.fullmatch(r"error: [^\n]+\n", printed) and not list(tmp_path.iterdir())
        assert "seed" in printed or "--seeds" not in words


def test_points_get_a_curve_beside_them_and_the_run_stays_as_it_is(runs, tmp_path, capsys):
    run, points = runs / "LEO_Sinusoidal_tiny", tmp_path / "mine.csv"
    points.write_bytes(POINTS.read_bytes())
    given = [(float(row["x"]), float(row["y"])) for row in table(POINTS)]
    assert np.allclose([y for _, y in given], [2.5 * np.sin(x - 1) for x, _ in given], atol=1e-5)
    before = files(run)
    assert predict(run, points) == 0
    printed = capsys.readouterr()
    assert "mean squared error on the 10 points" in printed.out and "after 3 gradients" in printed.out and printed.err == ""
    assert {path.name for path in tmp_path.iterdir()} == {"mine.csv", "predictions.csv", "predictions.png", "predictions.pdf"}
    rows = table(tmp_path / "predictions.csv")
    assert len(rows) == 201 and all(float(row["lower_5"]) < float(row["upper_95"]) for row in rows)
    assert np.isfinite([float(row["prediction_after"]) for row in rows]).all()
    assert files(run) == before and points.read_bytes() == POINTS.read_bytes()


def test_a_prediction_is_written_to_output_and_its_run_found_in_either_place(runs, tmp_path, monkeypatch, undrawn):
    monkeypatch.setattr("commands.runs.EXPERIMENTS", runs)
    monkeypatch.setattr("commands.predict.EXPERIMENTS", runs)
    with closing(ExperimentManager(runs / "LEO_Sinusoidal_tiny", "leo", [])):  # also while another process writes it
        assert predict("LEO_Sinusoidal_tiny", POINTS, "--output", str(tmp_path / "new")) == 0
    assert (tmp_path / "new" / "predictions.csv").is_file()
    assert not (POINTS.parent / "predictions.csv").exists()


def test_points_in_any_dialect_give_the_same_predictions_to_the_byte(runs, tmp_path, undrawn):
    text = POINTS.read_text().splitlines()
    semicolons = "\r\n".join(["sep=;", *(line.replace(",", ";").replace(".", ",") for line in text), ";", ""])
    rows = "".join(f'"{number}"\t{line}\n'.replace(",", "\t") for number, line in enumerate(text[1:], start=1))
    dialects = {
        "plain": POINTS.read_bytes(),
        "spreadsheet": semicolons.encode("cp1252"),
        "pandas": "".join(f"{number},{line}\n" for number, line in enumerate(text)).replace("0,x", ",x", 1).encode("utf-8-sig"),
        "r": f'"x"\t"y"\n{rows}'.encode(),
        "unicode": ("# measured\n" + "\n".join(text)).replace(",", "\t").replace("-", "\u2212").encode("utf-16"),
    }
    written = set()
    for dialect, contents in dialects.items():
        (tmp_path / f"{dialect}.csv").write_bytes(contents)
        points = tmp_path / f"{dialect}.csv"
        assert predict(runs / "LEO_Sinusoidal_tiny", points, "--output", str(tmp_path / dialect)) == 0
        written.add((tmp_path / dialect / "predictions.csv").read_bytes())
    assert len(written) == 1


def test_a_prediction_that_makes_no_sense_is_refused(runs, capsys):
    run, points, before = ["--predict", "LEO_Sinusoidal_tiny"], ["--points", str(POINTS)], files(runs)
    alone = [run, points, ["--predict", "nowhere", *points], [*run, "--points", "missing.csv"]]
    more = (["--set", "HIDDEN_DIM=7"], ["--method", "maml"], ["--evaluate", "latest"], ["--name", "mine"])
    for words in (*alone, *([*run, *points, *flags] for flags in more)):
        assert main.main([*words, "--output", str(runs)]) == 2, words
        assert re.fullmatch(r"error: [^\n]+\n", capsys.readouterr().err) and files(runs) == before


@pytest.fixture
def own(runs, tmp_path):
    """A copy of a run that may be spoiled."""
    return Path(shutil.copytree(runs / "MAML_Sinusoidal_tiny-seed3", tmp_path / "runs" / "own"))


def test_a_run_with_a_damaged_checkpoint_is_not_answered_by_another_of_its_name(runs, own, tmp_path, monkeypatch, capsys):
    shutil.copytree(runs / "LEO_Sinusoidal_tiny", tmp_path / "experiments" / "own")
    monkeypatch.setattr("commands.predict.EXPERIMENTS", tmp_path / "experiments")
    with open(own / "checkpoints" / "best.pt", "ab") as file:
        file.write(b"x")
    assert predict("own", POINTS, "--output", str(own.parent)) == 2
    assert "best.pt is damaged" in capsys.readouterr().err
    assert not (own.parent / "predictions.csv").exists()


def test_a_best_checkpoint_of_another_run_is_not_judged(runs, chosen, own, capsys):
    before = json.loads((own / "metrics.json").read_text())["method"]
    for other in (runs / "LEO_Sinusoidal_tiny", next(chosen.glob("R2D2*"))):
        shutil.copy(other / "checkpoints" / "best.pt", own / "checkpoints")
        assert main.main(["--evaluate", str(own)]) == 0
        error = capsys.readouterr().err
        assert "best.pt: the checkpoint does not fit this run" in error and "evaluating the last one instead" in error
        assert json.loads((own / "metrics.json").read_text())["method"] == before


def test_a_damaged_report_and_folders_that_cant_be_made_keep_no_run_from_being_judged(own, capsys):
    for report in ('{"status": "complete", "timing": {"iterations": 1e999}}', "[" * 50_000):
        (own / "full_report.json").write_text(report)
        assert main.main(["--evaluate", str(own)]) == 0
    for folder in ("tensorboard", "plots"):
        shutil.rmtree(own / folder)
        (own / folder).touch()
    assert main.main(["--evaluate", str(own)]) == 0
    printed = capsys.readouterr().err
    assert all(f"{folder} could not be written" in printed for folder in ("tensorboard", "plots"))


def test_a_comparison_refuses_a_record_that_says_nonsense_before_it_prints(own, capsys):
    report, metrics = ((own / f"{name}.json").read_text() for name in ("full_report", "metrics"))
    wrong = [json.loads(metrics) for _ in range(2)]
    for record, value in zip(wrong, (-1, "NaN"), strict=True):
        next(iter(record["evaluation"]["shots"].values()))["validation"] = value
    for file, record in (*(("metrics.json", record) for record in wrong), ("full_report.json", None)):
        (own / "metrics.json").write_text(metrics)
        (own / file).write_text(json.dumps(record or json.loads(report) | {"tasks": "nonsense"}))
        assert main.main(["--compare", str(own), "--output", str(own.parent)]) == 2
        printed = capsys.readouterr()
        assert "damaged record" in printed.err and printed.out == ""


def test_a_name_that_no_file_can_have_is_no_run(capsys):
    for action, name in itertools.product(("--resume", "--evaluate", "--compare"), ("x" * 5000, "a\0b")):
        assert main.main([action, name]) == 2
        assert "no such run" in capsys.readouterr().err


@pytest.fixture(scope="module")
def chosen(tmp_path_factory):
    """An output folder with tiny runs of two methods and two seeds on a table, one after another."""
    output = tmp_path_factory.mktemp("several")
    about = ["--data", str(ROOT / "examples" / "chicks.csv"), "--columns", "task=Chick", "x=Time", "y=weight"]
    about += ["--output", str(output), "--name", "t", "--seeds", "1-2", "--set", "LEO_LATENT_DIM=3"]
    assert main.main(["--method", "r2d2", "leo", *about, *SETTINGS]) == 0
    return output


def test_several_methods_have_runs_on_one_split_and_one_comparison(chosen):
    runs = {f"{method}_Table_t-seed{seed}" for method in ("R2D2", "LEO") for seed in (1, 2)}
    assert {path.name for path in chosen.iterdir()} - runs - {"MEAN_Table_t"} == {
        path.name for path in chosen.glob("Comparison_*")
    }
    assert {json.loads((chosen / run / "config.json").read_text())["SPLIT_SEED"] for run in runs} == {1}
    (found,) = chosen.glob("Comparison_*")
    groups = {(row["group"], row["seeds"]) for row in table(found / "comparison.csv")}
    assert groups == {("R2D2", "2"), ("LEO", "2"), ("MEAN", "1")} | {(name, "1") for name in NAMES}
    for run in map(chosen.joinpath, runs):  # the digests in its report are those of its files in the end
        files = json.loads((run / "full_report.json").read_text())["files"]
        assert files == {name: hashlib.sha256((run / name).read_bytes()).hexdigest() for name in files} and "table.csv" in files


def test_values_of_a_setting_have_a_run_each_and_are_compared(tmp_path):
    tiny = [f"{key}={value}" for key, value in TINY.items() if not key.startswith(("EVAL_SHOTS", "LEO"))]
    about = ["--output", str(tmp_path), "--name", "v", "--set", *tiny, "CONTEXT_DIM=2,3", "EVAL_SHOTS=5"]
    assert main.main(["--method", "cavia", "r2d2", *about]) == 0  # R2-D2 has no such setting, and one run
    runs = {"CAVIA_Sinusoidal_v-CONTEXT_DIM2", "CAVIA_Sinusoidal_v-CONTEXT_DIM3", "R2D2_Sinusoidal_v"}
    (comparison,) = tmp_path.glob("Comparison_*")
    assert {path.name for path in tmp_path.iterdir()} == runs | {comparison.name}
    labels = {row["group"] for row in table(comparison / "comparison.csv")} - {"best single function"}
    assert labels == {"CAVIA CONTEXT_DIM=2", "CAVIA CONTEXT_DIM=3", "R2D2"}
    assert "lowest validation error" in (comparison / "comparison.md").read_text()


def test_the_mean_is_to_use_unless_a_single_run_errs_less_beyond_doubt(chosen):
    (found,) = chosen.glob("Comparison_*/comparison.md")
    metrics = json.loads((chosen / "MEAN_Table_t" / "metrics.json").read_text())
    assert "to use: MEAN\\_Table\\_t" in found.read_text() or "lower than the mean" in found.read_text()
    assert (
        metrics["evaluation"]["verdict"] in found.with_name("report.html").read_text()
        or "lower than the mean" in found.read_text()
    )


def test_the_validation_error_that_a_run_records_is_its_best_checkpoints_over_subjects_geometrically(chosen):
    for run in chosen.glob("*_Table_t-seed*"):
        state = read_checkpoint(run / "checkpoints" / "best.pt")
        config = Config.resolve(state["config"])
        experiment = build(state["method"], "table", config, tasks_of_run(run, "table", config))
        experiment.load(state)
        shots = json.loads((run / "metrics.json").read_text())["evaluation"]["shots"]
        assert len(shots) > 1
        for count, result in shots.items():
            if count == "0":
                continue  # where the mean curve may answer
            folds = [(learner, experiment.held_out("test", int(count), part)) for learner, part in experiment.judged()]
            errors = np.concatenate([held_out_errors(*fold, config.EVAL_STEPS)[:, -1] for fold in folds])
            assert np.isclose(result["validation"], np.exp(np.nanmean(np.log(errors))), rtol=1e-4)
            assert not np.isclose(result["validation"], np.nanmean(errors), rtol=1e-2)


def test_a_comparison_whose_tasks_are_gone_is_refused_and_leaves_no_folder(chosen, tmp_path):
    names = [f"R2D2_Table_t-seed{seed}" for seed in (1, 2)]
    runs = [shutil.copytree(chosen / name, tmp_path / name) for name in names]
    (runs[0] / "table.csv").unlink()
    assert main.main(["--compare", *map(str, runs), "--output", str(tmp_path)]) == 2
    assert sorted(tmp_path.iterdir()) == sorted(runs)

"""The command line end to end, in process, with tiny settings: what a run leaves behind, and going on with it."""

import json
import math
import os
import re
import shlex
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch

import main
import registry
from config import Config
from results_manager import ExperimentManager
from system.checkpoints import read_checkpoint
from tests.tools.methods import TRAINED
from tests.tools.runs import ROOT, TINY, command, only_run
from training.signals import Interrupted


def read(directory, name="full_report"):
    return json.loads((directory / f"{name}.json").read_text())


def assert_same_record(one, other):
    first, second = (read(run, "metrics") for run in (one, other))
    for part in ("train", "validation", "evaluation"):
        assert first[part] == second[part], part


def interrupted(*_):
    raise Interrupted(15)


@pytest.fixture(scope="module", params=TRAINED)
def finished(request, tmp_path_factory, figures):
    """A finished tiny run of each method: (method, run directory)."""
    output = tmp_path_factory.mktemp(request.param)
    with figures() if request.param == "leo" else nullcontext():  # with codes and samples: the most figures
        assert main.main(command(output, "--method", request.param)) == 0
    return request.param, only_run(output)


def test_a_run_leaves_every_file_of_the_contract(finished):
    method, directory = finished
    assert re.fullmatch(rf"{method.upper()}_Sinusoidal_\d{{8}}-\d{{6}}", directory.name)
    names = {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}
    figures = ["training_curves", "task_predictions", "performance", "adaptive_learning", "latent_space"]
    drawn = figures if method == "leo" else []
    wanted = {f"plots/{name}.png" for name in drawn} | {"plots/data.npz"} | ({"plots/figures.pdf"} if drawn else set())
    wanted |= {f"checkpoints/{name}.pt" for name in ("last", "best", "previous")}
    wanted |= {"config.json", "metrics.json", "full_report.json", "train.log"}
    assert wanted <= names
    assert any(name.startswith("tensorboard/events") for name in names)


def test_metrics_follow_the_schema_and_agree_with_the_arrays_and_the_best_checkpoint(finished):
    method, directory = finished
    metrics = read(directory, "metrics")
    assert (metrics["schema_version"], metrics["method"]) == (1, method)
    assert [record["iteration"] for record in metrics["train"]] == [2, 4, 6, 8, 10, 12, 14, 15]
    assert [record["epoch"] for record in metrics["train"]] == [1, 1, 1, 2, 2, 2, 2, 2]
    shared = {"iteration", "epoch", "meta_loss", "query_mse", "grad_norm", "learning_rate"}
    assert shared <= set(metrics["train"][0])
    assert [record["iteration"] for record in metrics["validation"]] == [5, 10, 15]
    assert all(len(record["mse"]) == 7 for record in metrics["validation"])
    evaluation = metrics["evaluation"]
    assert (evaluation["num_tasks"], evaluation["query_samples"], list(evaluation["shots"])) == (12, 8, ["0", "5", "10"])
    assert all(len(result[name]) == 7 for result in evaluation["shots"].values() for name in ("mse", "ci95", "median"))
    assert all(0 <= result["interval"]["coverage"] <= 1 for result in evaluation["shots"].values())
    assert metrics["performance"]["iterations"] == 15
    with np.load(directory / "plots" / "data.npz") as arrays:
        errors = arrays["test_errors_10_shot"]
    assert errors.shape == (12, 7)
    found = evaluation["shots"]["10"]
    np.testing.assert_allclose(found["mse"], errors.mean(0))
    np.testing.assert_allclose(found["ci95"], 1.96 * errors.std(0, ddof=1) / math.sqrt(12))
    lowest = min(metrics["validation"], key=lambda record: record["mse"][-1])
    best = read_checkpoint(directory / "checkpoints" / "best.pt")
    assert (best["iteration"], best["best"]) == (lowest["iteration"], lowest["mse"][-1])


def test_the_report_names_status_machine_and_settings_which_start_the_same_run(finished, tmp_path):
    method, directory = finished
    report, config = (read(directory, name) for name in ("full_report", "config"))
    assert report["status"] == "complete"
    assert all(line.startswith("with known points it predicts no better") for line in report["warnings"])  # so short a run
    assert report["config"] == Config(**config).to_dict()
    assert report["environment"]["libraries"]["torch"] == torch.__version__
    if method in ("leo", "maml"):
        assert main.main(["--method", method, "--config", str(directory / "config.json"), "--output", str(tmp_path)]) == 0
        assert_same_record(directory, only_run(tmp_path))


def test_evaluating_or_resuming_a_finished_run_changes_nothing(finished, capsys):
    _, directory = finished
    before = read(directory, "metrics")
    assert main.main(["--evaluate", str(directory)]) == 0
    assert read(directory, "metrics")["evaluation"] == before["evaluation"]
    assert "Mean squared errors over 12 test tasks" in capsys.readouterr().out
    before = (directory / "metrics.json").read_bytes()
    assert main.main(["--resume", str(directory)]) == 0
    assert "already complete" in capsys.readouterr().out
    assert (directory / "metrics.json").read_bytes() == before


def shown_path(directory):
    """The run directory as messages name it: relative to the current folder where that is shorter."""
    return min(str(directory), os.path.relpath(directory), key=len)


@pytest.mark.parametrize("stage", ["training.experiment.Experiment.prepare", "commands.train.finish"])
def test_an_interrupt_outside_of_training_says_how_to_go_on(stage, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(stage, interrupted)
        assert main.main(command(tmp_path, "--method", "maml")) == 143
    directory = only_run(tmp_path)
    shown = shown_path(directory)
    assert capsys.readouterr().out.endswith(f"interrupted: {shown}\nto go on: python main.py --resume={shown}\n")
    assert main.main([f"--resume={directory}"]) == 0


def test_stopping_and_resuming_gives_the_run_that_was_never_stopped(finished, tmp_path, stopped, capsys):
    method, whole = finished
    assert main.main(command(tmp_path, "--method", method)) == 143
    directory = only_run(tmp_path)
    assert read(directory)["status"] == "interrupted"
    assert capsys.readouterr().out.endswith(f"to go on: python main.py --resume={shown_path(directory)}\n")
    for _ in range(2):  # one step at a time, then to the end
        assert main.main(["--output", str(tmp_path), "--resume", "latest"]) == 143
    stopped.stop = 0
    assert main.main(["--resume", str(directory)]) == 0
    assert_same_record(whole, directory)
    ends = [read_checkpoint(run / "checkpoints" / "last.pt")["meta_parameters"] for run in (whole, directory)]
    assert all(torch.equal(tensor, ends[1][name]) for name, tensor in ends[0].items())


def test_judging_a_run_before_its_end_says_so_and_does_not_complete_it(tmp_path, stopped, capsys):
    assert main.main(command(tmp_path)) == 143
    stopped.stop = 0
    directory = only_run(tmp_path)
    assert main.main(["--evaluate", str(directory)]) == 0
    report = read(directory)
    assert report["status"] == "unfinished" and "evaluated after 1 of 15 steps" in report["warnings"][0]
    assert main.main(["--output", str(tmp_path), "--compare", str(directory)]) == 0
    assert "was judged before the end of its training" in capsys.readouterr().err
    assert main.main(["--resume", str(directory)]) == 0
    assert read(directory)["status"] == "complete"


def test_a_finished_run_goes_on_with_more_epochs_and_is_not_complete_before_their_end(tmp_path, monkeypatch, capsys):
    assert main.main(command(tmp_path)) == 0
    longer = ["--output", str(tmp_path), "--resume", "latest"]
    with monkeypatch.context() as patch:
        patch.setattr("commands.train.finish", interrupted)  # trained and saved, but not evaluated
        assert main.main([*longer, "--set", "EPOCHS=3"]) == 143
    capsys.readouterr()
    assert main.main(longer) == 0 and "already complete" not in capsys.readouterr().out
    metrics = read(only_run(tmp_path), "metrics")
    assert metrics["performance"]["iterations"] == metrics["train"][-1]["iteration"] == 23
    os.truncate(only_run(tmp_path) / "checkpoints" / "best.pt", 1000)
    monkeypatch.setattr("training.experiment.Experiment.validate", lambda *_: None)  # none is the best so far
    assert main.main([*longer, "--set", "EPOCHS=4"]) == 0  # of the last one
    error = capsys.readouterr().err
    assert "best.pt is damaged" in error and error.count("\n") == 1
    assert read(only_run(tmp_path))["status"] == "complete"


def test_figures_that_cannot_be_drawn_do_not_cost_the_run(tmp_path, with_figures, monkeypatch, capsys):
    def broken(*_, **__):
        raise RuntimeError("no figure today")

    monkeypatch.setattr("report.figures.run_figures", broken)
    monkeypatch.setattr("report.figures.example_figure", broken)
    assert main.main(command(tmp_path)) == 0
    warnings = read(only_run(tmp_path))["warnings"]
    assert warnings == [f"{what} could not be written: no figure today" for what in ("figures", "plots")]
    assert capsys.readouterr().err == "".join(f"warning: {line}\n" for line in warnings)
    assert read(only_run(tmp_path), "metrics")["evaluation"]["shots"]["5"]["mse"]


def test_divergence_names_step_quantity_and_the_last_good_checkpoint(tmp_path, capsys):
    wild = {"META_LEARNING_RATE": 10.0, "INNER_LEARNING_RATE": 1000.0, "INNER_STEPS": 20, "META_SCHEDULE": "constant"}
    assert main.main(command(tmp_path, CHECKPOINT_INTERVAL=1, **wild)) == 3
    said = r"error: training diverged at iteration (\d+) \(got (\w+) = (?:nan|-?inf); .*at learning rate 10; .* (\S+last.pt)\n"
    found = re.fullmatch(said, capsys.readouterr().err)
    assert found and found[2] in ("meta_loss", "query_mse", "grad_norm")
    state = read_checkpoint(Path(found[3]))
    assert state["iteration"] <= int(found[1]) - 1
    assert all(tensor.isfinite().all() for tensor in state["meta_parameters"].values())
    assert read(only_run(tmp_path))["status"] == "diverged"


def test_command_line_beats_file_beats_method_defaults(tmp_path):
    settings = tmp_path / "settings.json"
    settings.write_text(json.dumps(TINY | {"INNER_STEPS": 3, "LEO_LATENT_STEPS": 1}))
    arguments = ["--method", "leo", "--config", str(settings), "--set", "INNER_STEPS=2", "--seed", "9"]
    assert main.main([*arguments, "--output", str(tmp_path / "out"), "--name", "mine"]) == 0
    config = read(tmp_path / "out" / "LEO_Sinusoidal_mine", "config")
    assert (config["INNER_STEPS"], config["LEO_LATENT_STEPS"], config["RANDOM_SEED"]) == (2, 1, 9)
    assert config["INNER_GRADIENT_CLIP"] == registry.METHODS["leo"].defaults["INNER_GRADIENT_CLIP"]


@pytest.fixture
def drawn(with_figures, monkeypatch):
    """The names of the figures that a run saves."""
    names = set()
    monkeypatch.setattr(ExperimentManager, "save_figures", lambda self, pictures, pdf, iteration: names.update(pictures))
    return names


def test_a_pair_of_method_and_tasks_has_defaults_that_the_command_line_beats(tmp_path, drawn):
    arguments = ["--method", "leo", "--tasks", "sine-line", "--set", "LEO_KL_WEIGHT=0.5", "--name", "mine"]
    assert main.main(command(tmp_path, *arguments, without=("EVAL_STEPS", "SUPPORT_SAMPLES"))) == 0
    directory = tmp_path / "LEO_SineLine_mine"
    config = read(directory, "config")
    assert (config["NOISE_STD"], config["SUPPORT_SAMPLES"], config["EVAL_STEPS"], config["LEO_KL_WEIGHT"]) == (0.3, 5, 5, 0.5)
    with np.load(directory / "plots" / "data.npz") as arrays:
        assert arrays["grid_samples"].shape == (6, 100, 201)
    assert "samples" in drawn


def test_inputs_of_several_dimensions_run_to_the_end_without_a_standard_error(tmp_path, drawn, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("sys.stderr", None)
        assert main.main(command(tmp_path, INPUT_DIM=3)) == 0
    assert "performance" in drawn and "task_predictions" not in drawn


def test_a_standard_stream_that_is_closed_leads_nowhere_and_is_no_files_place():
    code = "import main, os, sys; main.open_streams(); sys.stderr.write('lost'); "
    code += "print(os.path.samestat(os.fstat(2), os.stat(os.devnull)))"
    shell = f"{shlex.quote(sys.executable)} -c {shlex.quote(code)} 2>&-"
    done = subprocess.run(shell, shell=True, cwd=ROOT, stdout=subprocess.PIPE, check=True)
    assert done.stdout.split() == [b"True"]

"""The speed benchmarks run, in a tiny version and without any peer installed, and time only equal work.

What they measure is not checked here: a test machine is busy with other things.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import main
from benchmarks.common import ROOT
from benchmarks.speed import implementations, peers_torch, scaling, speed
from benchmarks.speed.child import MeasurementError
from benchmarks.speed.measure import count_products
from benchmarks.speed.work import CASES, ThisProject, Work
from benchmarks.tables import methods

SCRIPTS = sorted((ROOT / "benchmarks").rglob("*.py"))


@pytest.fixture(scope="module")
def work() -> Work:
    return Work(CASES["maml-5"], 3, "cpu")


@pytest.fixture(scope="module")
def reference(work: Work) -> np.ndarray:
    return ThisProject(work, "never").meta_gradient()


def read(directory: Path, name: str) -> dict[str, Any]:
    assert (directory / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    return json.loads((directory / f"{name}.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)


def test_a_meta_batch_that_is_computed_in_pieces_is_compared_as_a_whole() -> None:
    large = Work(CASES["maml-1"], 400, "cpu")
    assert large.batch.query.x.shape[0] == len(large.noise) == 400
    np.testing.assert_array_equal(large.batch.support.x, next(large.batches()).support.x)


def test_speed_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["eager", "loop"]
    argv = [
        "--quick",
        "--implementations",
        *names,
        "--tasks",
        "3",
        "--threads",
        "1",
        "--device",
        "cpu",
        "--output",
        str(tmp_path),
    ]
    assert speed.main(argv) == 0
    case = read(tmp_path, "speed")["cases"]["maml-1"]
    assert case["base"] == "eager" and case["left_out"] == {} and list(case["implementations"]) == names
    for record in case["implementations"].values():
        low, high = record["range_ms"]
        assert 0 < low <= record["median_ms"] <= high and len(record["ms"]) == 2
        assert record["gradient_difference"] < 1e-5
    assert case["implementations"]["eager"]["ratio"] == 1.0
    assert "plain autograd loop" in capsys.readouterr().out


def test_a_peer_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """And where none is left there is a table without rows, not a crash."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    args = speed.parse(["--quick", "--implementations", "jax-scan", "higher", "--tasks", "3", "--device", "cpu"])
    result = speed.measure_case("maml-1", args)
    assert result["left_out"] == {"jax-scan": "jax is not installed", "higher": "higher is not installed"}
    assert result["implementations"] == {} and result["base"] is None
    speed.print_case(result)


def test_the_same_meta_gradient_is_accepted(work: Work, reference: np.ndarray) -> None:
    assert speed.gradient_difference(peers_torch.TorchPeer(work, peers_torch.plain_loop), reference) < 1e-5


@pytest.mark.parametrize("change", ["first order", "inner step size", "a missing step", "not a number"])
def test_another_meta_gradient_is_refused(work: Work, reference: np.ndarray, change: str) -> None:
    peer = peers_torch.TorchPeer(work, peers_torch.plain_loop)
    if change == "first order":
        own = Work(CASES["maml-5"]._replace(settings={"INNER_STEPS": 5, "FIRST_ORDER": True}), 3, "cpu")
        with pytest.raises(MeasurementError, match="differs by"):
            speed.gradient_difference(ThisProject(own, "never"), reference)
        return
    if change == "inner step size":
        peer.inner_lr *= 1.02
    elif change == "a missing step":
        peer.steps -= 1
    else:
        peer.inner_lr = float("nan")
    with pytest.raises(MeasurementError, match="differs by"):
        speed.gradient_difference(peer, reference)


def test_an_implementation_that_fails_reports_one_line(reference: np.ndarray) -> None:
    """What goes wrong in its process comes back as one line."""
    process = implementations.InProcess("loop", "leo", 3, "cpu", 1)  # the loop knows no LEO
    try:
        with pytest.raises(MeasurementError, match="theta"):
            speed.gradient_difference(process, reference)
    finally:
        process.close()


def test_scaling_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--quick", "--axes", "steps", "hidden", "--threads", "1", "--device", "cpu", "--output", str(tmp_path)]
    argv.append("--no-processes")
    assert scaling.main(argv) == 0
    series = {(one["axis"], one["first_order"]): one["points"] for one in read(tmp_path, "scaling")["series"]}
    second, first = series["steps", False], series["steps", True]
    assert [point["value"] for point in second] == [1, 2]
    assert second[0]["flops"] < second[1]["flops"] and first[1]["flops"] < second[1]["flops"]
    for point in second + first:
        assert point["ms"] > 0 and 0 < point["of_limit"] < 10
    assert series["hidden", False][0]["ms"] == second[0]["ms"], "a shared point is measured once"
    assert "GFLOP/s" in capsys.readouterr().out


def test_a_meta_batch_shared_by_two_processes_is_timed() -> None:
    answer = scaling.in_several_children(2, CASES["maml-1"], 3, "cpu", "never", 0.05, timeout=60)
    assert 0 < answer["range_ms"][0] <= answer["ms"] <= answer["range_ms"][1]


def test_flops_are_those_counted_by_hand() -> None:
    """First-order MAML, one step: the products of a 1-40-40-1 network, forward and backward, at 10 + 10 points."""
    case = CASES["maml-1"]._replace(settings={"FIRST_ORDER": True})
    layers = 40 * 40 + 40  # multiplications a point, in layers of more than one contracted number
    forward = 2 * layers
    backward_weights = 2 * layers  # the first layer's is a sum of products by elements
    backward_units = 2 * 40 * 40  # and so is the last one's
    flops, moved = count_products(case, 7)
    expected = 7 * 20 * (forward + backward_weights + backward_units)
    assert flops == pytest.approx(expected, rel=0.05) and moved > 0


def test_points_beyond_the_limits_are_predicted() -> None:
    args = scaling.parse(["--quick", "--max-gib", "1", "--max-seconds", "10", "--device", "cpu"])
    before = {"value": 25, "ms": 1.0, "peak_mib": 100.0, "process_mib": 300.0, "start_seconds": 4.0}
    assert scaling.reason_to_skip(None, 1.0, 1.0, args) == "" == scaling.reason_to_skip(before, 4.0, 1.0, args)
    assert "1.3 GiB" in scaling.reason_to_skip(before, 10.0, 1.0, args)
    assert "16 s" in scaling.reason_to_skip(before, 4.0, 4.0, args)


@pytest.mark.parametrize("script", [speed, scaling])
@pytest.mark.parametrize("flag", [["--tasks", "0"], ["--seconds", "nan"], ["--threads", "0"], ["--device", "cuda:99"]])
def test_unusable_flags_are_refused(script: Any, flag: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        script.main(["--quick", "--output", str(tmp_path), *flag])
    assert stop.value.code == 2 and f"{flag[0]} can't be used" in capsys.readouterr().err


# ---- the scripts of all folders


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.relative_to(ROOT / "benchmarks").as_posix())
def test_no_script_and_none_of_its_functions_is_long(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)]
    assert len(text.splitlines()) <= 300
    assert [f.name for f in functions if (f.end_lineno or 0) - f.lineno + 1 > 40] == []


def test_the_commands_run_from_any_folder(tmp_path: Path) -> None:
    names = ["paper/paper.py", "speed/speed.py", "speed/scaling.py", "tables/baselines.py", "tables/methods.py"]
    commands = [ROOT / "benchmarks" / name for name in names]
    argv = [[sys.executable, str(command), "--help"] for command in commands]
    started = [subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE, text=True) for words in argv]
    for command, process in zip(commands, started, strict=True):
        assert "--quick" in process.communicate(timeout=120)[0] and process.returncode == 0
        assert f"python {command.relative_to(ROOT).as_posix()}" in command.with_name("README.md").read_text(encoding="utf-8")


# ---- tables


def test_tables_are_made_from_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("commands.evaluate.draw", lambda *_: None)  # the scripts read numbers only
    about = ["--quick", "--methods", "r2d2", "alpaca", "--splits", "0", "--runs", str(tmp_path)]
    small = [word for text in methods.QUICK for word in ("--set", text)]
    for name, columns in methods.TABLES.items():
        words = ["--data", str(ROOT / "examples" / f"{name}.csv"), *(["--columns", *columns] if columns else []), "--seed", "0"]
        for method in ("r2d2", "alpaca"):
            where = ["--output", str(tmp_path), "--name", f"{name}-random-0-quick"]
            assert main.main(["--method", method, *words, *where, *small]) == 0
    assert methods.main([*about, "--output", str(tmp_path)]) == 0
    assert (tmp_path / "results" / "tables.png").exists()
    text = (tmp_path / "TABLES.md").read_text(encoding="utf-8")
    assert "--methods r2d2 alpaca --quick" in text
    assert text.count("| chosen by validation") == 1 + len(methods.TABLES) == text.count("| linear mixed model ")

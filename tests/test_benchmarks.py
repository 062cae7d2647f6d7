"""The benchmarks run, in a tiny version and without any peer installed, and time nobody on other work.

What they measure is not judged here: a test machine is busy with other things.
"""

# ruff: noqa: E402  the benchmarks have to be on the path before they are imported

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks" / "speed"
sys.path.insert(0, str(BENCHMARKS))  # they are scripts: each finds the others beside itself

import contestants
import peers_torch
import scaling
import speed
from work import CASES, Project, Unfit, Work


@pytest.fixture(scope="module")
def work() -> Work:
    return Work(CASES["maml-5"], 3, "cpu")


@pytest.fixture(scope="module")
def reference(work: Work) -> np.ndarray:
    return Project(work, "never").meta_gradient()


def read(directory: Path, name: str) -> dict[str, Any]:
    assert (directory / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    return json.loads((directory / f"{name}.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)


def test_speed_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["eager", "loop"]
    argv = ["--quick", "--contestants", *names, "--tasks", "3", "--threads", "1", "--device", "cpu", "--output", str(tmp_path)]
    assert speed.main(argv) == 0
    case = read(tmp_path, "speed")["cases"]["maml-1"]
    assert case["base"] == "eager" and case["left_out"] == {} and list(case["contestants"]) == names
    for record in case["contestants"].values():
        low, high = record["range_ms"]
        assert 0 < low <= record["median_ms"] <= high and len(record["ms"]) == 2
        assert record["gradient_difference"] < 1e-5
    assert case["contestants"]["eager"]["ratio"] == 1.0
    assert "plain autograd loop" in capsys.readouterr().out


def test_a_peer_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """And with nobody left there is a table without rows, not a crash."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    args = speed.parse(["--quick", "--contestants", "jax-scan", "higher", "--tasks", "3", "--device", "cpu"])
    result = speed.hold("maml-1", args)
    assert result["left_out"] == {"jax-scan": "jax is not installed", "higher": "higher is not installed"}
    assert result["contestants"] == {} and result["base"] is None
    speed.show(result)


def test_the_same_meta_gradient_is_admitted(work: Work, reference: np.ndarray) -> None:
    assert speed.admit(peers_torch.TorchPeer(work, peers_torch.plain_loop), reference) < 1e-5


@pytest.mark.parametrize("change", ["first order", "inner step size", "a missing step", "not a number"])
def test_another_meta_gradient_is_refused(work: Work, reference: np.ndarray, change: str) -> None:
    peer = peers_torch.TorchPeer(work, peers_torch.plain_loop)
    if change == "first order":
        own = Work(CASES["maml-5"]._replace(settings={"INNER_STEPS": 5, "FIRST_ORDER": True}), 3, "cpu")
        with pytest.raises(Unfit, match="differs by"):
            speed.admit(Project(own, "never"), reference)
        return
    if change == "inner step size":
        peer.inner_lr *= 1.02
    elif change == "a missing step":
        peer.steps -= 1
    else:
        peer.inner_lr = float("nan")
    with pytest.raises(Unfit, match="differs by"):
        speed.admit(peer, reference)


def test_a_contestant_that_fails_leaves_the_others_alone(reference: np.ndarray) -> None:
    """What goes wrong in a contestant's process comes back as one line."""
    remote = contestants.Remote("loop", "leo", 3, "cpu", 1)  # the loop knows no LEO
    try:
        with pytest.raises(Unfit, match="theta"):
            speed.admit(remote, reference)
    finally:
        remote.close()


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
    answer = scaling.Child().together(2, CASES["maml-1"], 3, "cpu", "never", 0.05, timeout=60)
    assert 0 < answer["range_ms"][0] <= answer["ms"] <= answer["range_ms"][1]


def test_flops_are_those_counted_by_hand() -> None:
    """First-order MAML, one step: the products of a 1-40-40-1 network, forward and backward, at 10 + 10 points."""
    from points import count

    case = CASES["maml-1"]._replace(settings={"FIRST_ORDER": True})
    layers = 40 * 40 + 40  # multiplications a point, in layers of more than one contracted number
    forward = 2 * layers
    backward_weights = 2 * layers  # the first layer's is a sum of products by elements
    backward_units = 2 * 40 * 40  # and so is the last one's
    flops, moved = count(case, 7)
    expected = 7 * 20 * (forward + backward_weights + backward_units)
    assert flops == pytest.approx(expected, rel=0.05) and moved > 0


def test_points_beyond_the_limits_are_predicted() -> None:
    args = scaling.parse(["--quick", "--max-gib", "1", "--max-seconds", "10", "--device", "cpu"])
    before = {"value": 25, "ms": 1.0, "peak_mib": 100.0, "process_mib": 300.0, "start_seconds": 4.0}
    assert scaling.refusal(None, 1.0, 1.0, args) == "" == scaling.refusal(before, 4.0, 1.0, args)
    assert "1.3 GiB" in scaling.refusal(before, 10.0, 1.0, args)
    assert "16 s" in scaling.refusal(before, 4.0, 4.0, args)


@pytest.mark.parametrize("script", [speed, scaling])
@pytest.mark.parametrize("flag", [["--tasks", "0"], ["--seconds", "nan"], ["--threads", "0"], ["--device", "cuda:99"]])
def test_unusable_flags_are_refused(script: Any, flag: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        script.main(["--quick", "--output", str(tmp_path), *flag])
    assert stop.value.code == 2 and f"{flag[0]} can't be used" in capsys.readouterr().err

"""The benchmarks of speed and of tables run, in a tiny version and without any peer installed, and time only equal work.

What they measure is not checked here: a test machine is busy with other things.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.common import ROOT, filled
from benchmarks.paper import families
from benchmarks.speed import peers_torch, scaling, speed
from benchmarks.speed.child import MeasurementError
from benchmarks.speed.work import CASES, ThisProject, Work
from benchmarks.tables import methods

SCRIPTS = (
    "paper/paper",
    "paper/families",
    "speed/speed",
    "speed/scaling",
    "speed/graphs",
    "tables/baselines",
    "tables/methods",
)


def results(output: Path, name: str) -> dict[str, Any]:
    """The record of a benchmark, whose part of RESULTS.md is there as well."""
    folder = output / "benchmarks"
    assert f"<!-- {name}.py -->" in (folder / "RESULTS.md").read_text(encoding="utf-8")
    return dict(json.loads((folder / "results" / f"{name}.json").read_text(encoding="utf-8"), parse_constant=pytest.fail))


def test_the_commands_run_from_any_folder(tmp_path: Path) -> None:
    """One of them does; the others begin with the same lines."""
    scripts = [ROOT / "benchmarks" / f"{name}.py" for name in SCRIPTS]
    for script in scripts:
        assert f"python {script.relative_to(ROOT).as_posix()}" in script.with_name("README.md").read_text(encoding="utf-8")
        assert "sys.path" in script.read_text(encoding="utf-8")
    done = subprocess.run([sys.executable, scripts[-1], "--help"], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "--quick" in done.stdout, done.stderr


def test_a_part_of_a_document_is_replaced_and_the_rest_kept(tmp_path: Path) -> None:
    text = "# Results\n\n<!-- one -->\n\nold\n\n<!-- end of one -->\n\ntext\n\n<!-- two -->\n\n<!-- end of two -->\n"
    (tmp_path / "RESULTS.md").write_text(text)
    assert filled(tmp_path, "RESULTS.md", {"one": "new"}) == text.replace("old", "new")


def test_unusable_flags_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for flag in (["--tasks", "0"], ["--seconds", "nan"], ["--threads", "0"], ["--device", "cuda:99"]):
        for script in (speed, scaling):
            with pytest.raises(SystemExit) as stop:
                script.main(["--quick", "--output", str(tmp_path), *flag])
            assert stop.value.code == 2 and f"{flag[0]} can't be used" in capsys.readouterr().err


def test_speed_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--quick", "--implementations", "eager", "loop", "--tasks", "3", "--threads", "1", "--device", "cpu"]
    assert speed.main([*argv, "--output", str(tmp_path)]) == 0
    assert (tmp_path / "benchmarks" / "results" / "speed.png").read_bytes().startswith(b"\x89PNG")
    case = results(tmp_path, "speed")["cases"]["maml-1"]
    assert case["base"] == "eager" and case["left_out"] == {} and list(case["implementations"]) == ["eager", "loop"]
    for record in case["implementations"].values():
        low, high = record["range_ms"]
        assert 0 < low <= record["median_ms"] <= high and len(record["ms"]) == 2
        assert record["gradient_difference"] < 1e-5
    assert case["implementations"]["eager"]["ratio"] == 1.0 and "plain autograd loop" in capsys.readouterr().out


def test_a_meta_gradient_is_accepted_only_if_it_is_the_same() -> None:
    work = Work(CASES["maml-5"], 3, "cpu")
    reference = ThisProject(work, "never").meta_gradient()
    peer = peers_torch.TorchPeer(work, peers_torch.plain_loop)
    assert (peer.inner_lr, peer.steps) == (0.004, 5)
    assert speed.gradient_difference(peer.meta_gradient(), reference) < 1e-5
    first_order = Work(CASES["maml-5"]._replace(settings={"INNER_STEPS": 5, "FIRST_ORDER": True}), 3, "cpu")
    others = [ThisProject(first_order, "never")]
    for change in ({"inner_lr": 0.00408}, {"steps": 4}, {"inner_lr": float("nan")}):
        others.append(peers_torch.TorchPeer(work, peers_torch.plain_loop))
        vars(others[-1]).update(change)
    for other in others:
        with pytest.raises(MeasurementError, match="differs by"):
            speed.gradient_difference(other.meta_gradient(), reference)


def test_scaling_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--quick", "--axes", "steps", "first-order-steps", "hidden", "--threads", "1", "--device", "cpu"]
    assert scaling.main([*argv, "--output", str(tmp_path)]) == 0
    series = results(tmp_path, "scaling")["series"]
    second, first = series["steps"], series["first-order-steps"]
    assert [point["value"] for point in second] == [1, 2]
    assert all(point["ms"] > 0 and point["process_mib"] > 0 for point in second + first)
    assert series["hidden"][0]["ms"] == second[0]["ms"], "a shared point is measured once"
    assert "us / task" in capsys.readouterr().out


def test_families_are_compared(tmp_path: Path) -> None:
    assert families.main(["--quick", "--methods", "r2d2", "mixed-model", "--output", str(tmp_path)]) == 0
    text = (tmp_path / "benchmarks" / "PAPER.md").read_text(encoding="utf-8")
    assert text.count("\n| gp ") == len(families.SHOTS) and (tmp_path / "docs" / "families.png").exists()


def test_tables_are_made_from_series_and_a_complete_one_is_not_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(methods, "TABLES", {"chicks": methods.TABLES["chicks"]})
    argv = ["--quick", "--methods", "mixed-model", "r2d2", "--output", str(tmp_path)]
    assert methods.main(argv) == 0
    text = (tmp_path / "benchmarks" / "TABLES.md").read_text(encoding="utf-8")
    assert (tmp_path / "benchmarks" / "results" / "tables.png").exists() and "--quick --methods mixed-model r2d2" in text
    assert [text.count(f"| {name} ") for name in ("MEAN", "R2D2", "MIXED-MODEL", "one number for all")] == [3] * 4
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("best.pt")}
    assert methods.main(argv) == 0 and all(path.stat().st_mtime_ns == time for path, time in files.items())

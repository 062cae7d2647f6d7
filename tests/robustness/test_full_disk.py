"""A full disk: a checkpoint that can't be written ends the run and loses nothing, a plot does not."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from system.checkpoints import read_checkpoint
from tests.tools import chaos
from tests.tools.chaos import Say, command, finished, only_run, report_of, result_of, run, same

pytestmark = pytest.mark.chaos


def test_a_checkpoint_that_the_disk_has_no_room_for_ends_the_run_and_loses_nothing(tmp_path: Path, say: Say) -> None:
    """The disk has room for all but the last byte of each checkpoint in turn."""
    kept = tmp_path / "kept"
    finished(command(tmp_path / "whole", "--method", "leo"), "plain", f"keep:{kept}")
    whole = result_of(only_run(tmp_path / "whole"))
    sizes = {place: (place / "checkpoints" / "last.pt").stat().st_size for place in sorted(kept.iterdir())}
    largest = itertools.accumulate([0, *sizes.values()], max)
    places = [place for place, most in zip(sizes, largest, strict=False) if sizes[place] > most][1:]

    def full(place: Path) -> bool:
        output, size = tmp_path / place.name, sizes[place]
        child = run(command(output, "--method", "leo"), "plain", f"limit:{size - 1}")
        assert child.poll() == 1 and "File too large" in child.error, child.err
        directory = only_run(output)
        reached = read_checkpoint(directory / "checkpoints" / "last.pt")["iteration"]
        assert reached == read_checkpoint(place / "checkpoints" / "previous.pt")["iteration"]
        assert not [path for path in directory.rglob("*") if path.name.endswith(".tmp")]
        report = report_of(directory)
        assert report["status"] == "failed" and "File too large" in report["reason"]
        finished(["--resume", str(directory)], "plain")  # there is room again
        return same(result_of(directory), whole)

    survived = sum(chaos.side_by_side(full, places))
    say(f"full disk at a checkpoint: {len(places)} tried, {survived} lost nothing and went on to the same bits")
    assert survived == len(places) > 5


def test_a_disk_that_is_full_under_tensorboard_and_plots_only_costs_the_plots(tmp_path: Path) -> None:
    """A tiny run's figures, and the page that holds them, are its largest files: a smaller limit strikes them alone."""
    finished(command(tmp_path / "whole"))
    whole = only_run(tmp_path / "whole")
    sizes = {path: path.stat().st_size for path in whole.rglob("*") if path.is_file()}
    drawn = {path for path in sizes if path.parent.name in ("plots", "tensorboard") or path.name == "report.html"}
    needed = max(size for path, size in sizes.items() if path not in drawn)
    assert needed < min(size for path, size in sizes.items() if path.suffix == ".png")
    child = finished(command(tmp_path / "full"), f"limit:{needed + 500}")
    run_directory = only_run(tmp_path / "full")
    report = report_of(run_directory)
    assert report["status"] == "complete"
    for what in ("tensorboard", "plots/training_curves.png", "plots/task_predictions.pdf"):
        assert [line for line in report["warnings"] if line.startswith(f"{what} could not be written")], report["warnings"]
    assert all(line.startswith("warning: ") for line in child.err.splitlines()), child.err
    assert same(result_of(run_directory), result_of(whole))
    assert b"base64" not in (run_directory / "report.html").read_bytes()  # the page is there, without figures
    assert not list(run_directory.rglob("*.png")) and not list(run_directory.rglob("*.tmp"))

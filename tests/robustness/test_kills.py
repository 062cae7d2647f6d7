"""Killed at any moment, or with a damaged or full disk, a run goes on to the bits it would have had undisturbed."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from results_manager import read_newest
from system.checkpoints import read_checkpoint
from tests.tools import chaos
from tests.tools.chaos import Say, command, compiling, finished, only_run, report_of, result_of, run, same
from tests.tools.runs import troubles

pytestmark = pytest.mark.chaos

LIVES, KILLS = 6, 5  # of runs, and most kills of each
MOST_CALLS = 28  # more than a save makes
TRUNCATIONS, FLIPS = 20, 50


@pytest.mark.parametrize(("method", "disk"), [("leo", "plain"), ("maml", "bare")])
def test_a_run_killed_at_random_moments_ends_with_the_bits_of_one_that_was_not(
    method: str, disk: str, tmp_path: Path, say: Say
) -> None:
    settings = {"EPOCHS": 3, "CHECKPOINT_INTERVAL": 1}
    chaos.run(["--help"])  # the server of processes is there
    began = time.monotonic()
    whole = chaos.whole(tmp_path / "whole", "--method", method, **settings)
    seconds = time.monotonic() - began

    def life(number: int) -> int:
        """How often a run was killed after its first save before it came to its end with the right bits."""
        rng, output, kills = np.random.default_rng([1, number]), tmp_path / str(number), 0
        while True:
            saved = bool(list(output.glob("*/checkpoints/last.pt")))
            if not saved:  # nothing was done yet, and nothing is lost
                shutil.rmtree(output, ignore_errors=True)
            new = command(output, "--method", method, **settings)
            child = chaos.start(["--output", str(output), "--resume", "latest"] if saved else new, "plain", disk)
            kills += saved
            if kills < KILLS:
                time.sleep(rng.uniform(0, 0.5 * seconds))
                child.send(signal.SIGKILL)
            if child.wait() == 0:
                assert same(result_of(only_run(output)), whole)
                return kills
            assert child.wait() == -signal.SIGKILL, child.err

    kills = sum(chaos.side_by_side(life, range(LIVES)))
    say(f"kill -9: {kills} tried, {kills} recovered to the same bits ({method}, {disk} disk)")
    assert kills >= LIVES


@pytest.mark.parametrize(("damaged", "disk"), [(True, "plain"), (False, "bare")], ids=["damaged", "bare"])
def test_a_save_killed_before_and_in_every_system_call_loses_nothing(
    damaged: bool, disk: str, tmp_path: Path, say: Say
) -> None:
    """In the first save after a damaged last.pt, when only previous.pt is left, and in an ordinary one on a bare disk."""
    wanted = chaos.whole(tmp_path / "whole")
    assert run(command(tmp_path / "begun"), "save:2:0").poll() == -signal.SIGKILL
    begun = only_run(tmp_path / "begun")
    if damaged:
        os.truncate(begun / "checkpoints" / "last.pt", 1000)

    def killed(place: str) -> str:
        """How a run that is killed there goes on: "" if to the same bits, "over" if the save had no such call."""
        copy = Path(shutil.copytree(begun, tmp_path / place))
        child = run(["--resume", str(copy)], "plain", disk, f"save:0:{place}")
        if child.poll() == 77:
            return "over"
        assert child.poll() == -signal.SIGKILL, child.err
        read_newest(copy)
        finished(["--resume", str(copy)], "plain", disk)
        return "" if same(result_of(copy), wanted) else f"{place} different"

    ends = chaos.side_by_side(killed, [f"{call}:{moment}" for call in range(MOST_CALLS) for moment in ("before", "half")])
    tried = len(ends) - ends.count("over")
    after = " after a damaged one" if damaged else f" on a {disk} disk"
    say(f"kill -9 before and in each system call of a save{after}: {tried} tried, {ends.count('')} recovered to the same bits")
    assert set(ends) == {"", "over"} and tried > 8 and ends[-2:] == ["over"] * 2


def test_every_damaged_checkpoint_is_found_and_passed_over(tmp_path: Path, say: Say) -> None:
    assert run(command(tmp_path / "begun"), "save:5:0").poll() == -signal.SIGKILL
    begun = only_run(tmp_path / "begun")
    last, previous = (begun / "checkpoints" / f"{name}.pt" for name in ("last", "previous"))
    data, rng, before = last.read_bytes(), np.random.default_rng(2), read_checkpoint(previous)["iteration"]
    assert before < read_checkpoint(last)["iteration"]
    damaged = [data[:length] for length in rng.choice(len(data), TRUNCATIONS, replace=False)]
    for place in rng.choice(8 * len(data), FLIPS, replace=False):
        flipped = bytearray(data)
        flipped[place // 8] ^= 1 << (place % 8)
        damaged.append(bytes(flipped))
    for content in damaged:
        last.write_bytes(content)
        state, warning = read_newest(begun)
        assert state["iteration"] == before and "last.pt is damaged" in warning and "previous.pt" in warning
    say(f"damaged checkpoints: {len(damaged)} tried, all found")
    explicit = run(["--resume", str(last)], "plain")
    assert explicit.poll() == 2 and explicit.error and explicit.err.count("\n") == 1 and last.read_bytes() == damaged[-1]
    os.truncate(Path(shutil.copytree(begun, tmp_path / "both")) / "checkpoints" / "previous.pt", 500)
    both = run(["--resume", str(tmp_path / "both")])
    assert both.poll() == 2 and both.error and both.err.count("\n") == 1
    child = finished(["--resume", str(begun)], "plain")
    assert child.err.startswith("warning: ") and len(troubles(child.err)) == 1
    assert [line for line in report_of(begun)["warnings"] if "last.pt is damaged" in line]
    assert same(result_of(begun), chaos.whole(tmp_path / "whole"))


@pytest.mark.parametrize(("method", "how"), [("leo", "eager"), ("maml", "compiled")])
def test_a_run_resumes_from_every_one_of_its_checkpoints_to_the_same_bits(
    method: str, how: str, tmp_path: Path, say: Say
) -> None:
    settings = compiling() if how == "compiled" else {"CHECKPOINT_INTERVAL": 1}
    kept = tmp_path / "kept"
    finished(command(tmp_path / "whole", "--method", method, **settings), "plain", f"keep:{kept}")
    whole = result_of(only_run(tmp_path / "whole"))
    if how == "compiled":
        assert report_of(only_run(tmp_path / "whole"))["compilation"].startswith("worth it")
    checkpoints = sorted(kept.iterdir())

    def goes_on(place: Path) -> bool:
        finished(["--resume", str(place)], "plain")
        return same(result_of(place), whole)

    assert all(chaos.side_by_side(goes_on, checkpoints)) and len(checkpoints) > 3
    say(f"resume from every checkpoint: {len(checkpoints)} tried, all ended with the same bits ({method}, {how})")


def test_a_checkpoint_that_the_disk_has_no_room_for_ends_the_run_and_loses_nothing(tmp_path: Path, say: Say) -> None:
    """The disk has room for all but the last byte of each checkpoint in turn."""
    kept = tmp_path / "kept"
    finished(command(tmp_path / "whole", "--method", "leo"), "plain", f"keep:{kept}")
    whole = result_of(only_run(tmp_path / "whole"))
    sizes = {place: (place / "checkpoints" / "last.pt").stat().st_size for place in sorted(kept.iterdir())}
    largest = itertools.accumulate([0, *sizes.values()], max)  # of those before
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

    assert all(chaos.side_by_side(full, places)) and len(places) > 5
    say(f"full disk at a checkpoint: {len(places)} tried, all lost nothing and went on to the same bits")


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
    for what in ("tensorboard", "plots/training_curves.png", "plots/figures.pdf"):
        assert [line for line in report["warnings"] if line.startswith(f"{what} could not be written")], report["warnings"]
    assert all(line.startswith("warning: ") for line in child.err.splitlines()), child.err
    assert same(result_of(run_directory), result_of(whole))
    assert b"base64" not in (run_directory / "report.html").read_bytes()  # the page is there, without figures
    assert not list(run_directory.rglob("*.png")) and not list(run_directory.rglob("*.tmp"))

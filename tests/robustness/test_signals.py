"""Asked to stop at any moment, a run saves, says so and leaves; resumed, it ends with the bits it would have had."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import numpy as np
import pytest

from tests.tools import chaos
from tests.tools.chaos import Child, Say, command, only_run, report_of, result_of, same, until

pytestmark = pytest.mark.chaos

GRACE = 5.0  # seconds in which a process that was asked to leave is gone
SLOW = ("plain", "slow:0.4:preparing", "slow:0.02", "slow:0.2:evaluating")
PHASES = ("before", "before", "training", "training", "training", "evaluation")
ASKED = [("leo", signal.SIGINT), ("maml", signal.SIGTERM), ("leo", signal.SIGHUP)]


def listens(child: Child) -> bool:
    """Whether the process has handlers for its signals yet."""
    status = Path(f"/proc/{child.pid}/status").read_text()
    caught = int(next(line for line in status.splitlines() if line.startswith("SigCgt")).split()[1], 16)
    return bool(caught >> (signal.SIGUSR1 - 1) & 1)


@pytest.mark.parametrize(("method", "number"), ASKED)
def test_a_run_that_is_asked_to_stop_saves_leaves_and_goes_on_to_the_same_bits(
    method: str, number: signal.Signals, tmp_path: Path, say: Say
) -> None:
    settings = {"CHECKPOINT_INTERVAL": 1, "EPOCHS": 3}
    whole = chaos.whole(tmp_path / "whole", "--method", method, **settings)
    rng = np.random.default_rng([number, len(method)])
    delays = rng.uniform(0, 0.35, len(PHASES))

    def moment(index: int) -> float:
        output, phase = tmp_path / str(index), PHASES[index]
        child = chaos.start(command(output, "--method", method, **settings), *SLOW)
        until(lambda: listens(child), 60, lambda: "its signal handlers")
        if phase == "training":
            chaos.until_saved(output)
        if phase == "evaluation":
            until(lambda: "step 23 of 23" in child.out, 60, lambda: "the end of training")
        time.sleep(delays[index] / (2 if phase == "evaluation" else 1))
        child.send(number)
        asked = time.monotonic()
        assert child.wait() == 128 + number, (phase, child.err)
        took = time.monotonic() - asked
        assert child.err == ""
        report = report_of(only_run(output))
        assert (report["status"], report["reason"]) == ("interrupted", number.name)
        assert same(chaos.resumed(output), whole)
        return took

    slowest = max(chaos.side_by_side(moment, range(len(PHASES))))
    say(f"{number.name}: {len(PHASES)} moments tried, all left with {128 + number} and resumed to the same bits ({method})")
    assert slowest < GRACE


def test_a_run_that_is_interrupted_while_it_compiles_leaves_at_once_and_can_be_resumed(tmp_path: Path) -> None:
    argv, cold = command(tmp_path, **chaos.compiling()), {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path.parent / "cold")}
    child = chaos.start(argv, "plain", env={**cold})
    until(lambda: "compiling" in child.out, 60, lambda: "the compiler")
    time.sleep(1.0)  # into the compiler
    child.send(signal.SIGINT)
    asked = time.monotonic()
    assert child.wait() == 130 and time.monotonic() - asked < GRACE, child.err
    assert "ready in" not in child.out and report_of(only_run(tmp_path))["reason"] == "SIGINT"
    chaos.finished(["--output", str(tmp_path), "--resume", "latest", "--set", "COMPILE=never"], "plain")


def test_sigusr1_saves_and_the_run_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    settings = {"CHECKPOINT_INTERVAL": 1000, "VALIDATION_INTERVAL": 1000}
    output = tmp_path / "asked"
    child = chaos.start(command(output, "--method", "leo", **settings), "plain", "step:4:10", "slow:0.1")
    chaos.until_saved(output)  # nothing but the signal saves
    last = only_run(output) / "checkpoints" / "last.pt"
    until(lambda: chaos.state_of(last)["iteration"] == 4, 10, lambda: "the end of the save")
    assert child.wait() == 0, child.err
    assert same(result_of(only_run(output)), chaos.whole(tmp_path / "whole", "--method", "leo", **settings))


def test_a_run_under_nohup_outlives_its_terminal(tmp_path: Path) -> None:
    child = chaos.start(command(tmp_path, "--method", "leo", CHECKPOINT_INTERVAL=1), "plain", "nohup", "slow:0.05")
    chaos.until_saved(tmp_path)
    child.send(signal.SIGHUP)
    assert child.wait() == 0 and report_of(only_run(tmp_path))["status"] == "complete"


def test_a_second_ctrl_c_quits_at_once(tmp_path: Path) -> None:
    child = chaos.start(command(tmp_path), "plain", "slow:600")
    until(lambda: "steps of" in child.out and "eager" in child.out, 60, lambda: "the first step")
    child.send(signal.SIGINT)
    began = time.monotonic()
    while child.poll() is None and time.monotonic() - began < GRACE:  # two at the same time would be one
        time.sleep(0.1)
        child.send(signal.SIGINT)
    assert child.wait() == 130

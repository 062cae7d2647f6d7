"""Several processes of one run, and several runs at once: one result, one writer, and nobody waits for the dead."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from tests.tools import chaos
from tests.tools.chaos import ROOT, Child, Say, command, only_run, ranks, report_of, result_of, same

pytestmark = pytest.mark.chaos

WORLDS = (1, 2, 3, 4)
MOVES = [(1, 2), (2, 1), (1, 4), (4, 3), (3, 2)]
UNEVEN = {"META_BATCH_SIZE": 7, "EPOCHS": 1}  # 5 steps; divisible by no number of processes and by no chunk
GONE = 60.0  # seconds after which nobody waits any more for a process that died
GRACE = 10.0  # seconds for all else that a process does


def ended(children: Sequence[Child], seconds: float = 120.0) -> list[int]:
    return [child.wait(seconds) for child in children]


def results_of_worlds(folder: Path, *arguments: str, worlds: Sequence[int] = WORLDS, **settings: Any) -> list[dict[str, Any]]:
    """What the same run found out with each number of processes."""
    results = []
    for world in worlds:
        output = folder / str(world)
        children = ranks(command(output, *arguments, **UNEVEN | settings), world, "plain")
        assert ended(children) == [0] * world, children[0].err
        assert report_of(only_run(output))["processes"] == world
        results.append(result_of(only_run(output)))
    return results


@pytest.mark.parametrize(("method", "chunk"), [("leo", 2), ("maml", 3)])
def test_any_number_of_processes_gives_the_same_bits_with_the_same_chunk(
    method: str, chunk: int, tmp_path: Path, say: Say
) -> None:
    results = results_of_worlds(tmp_path, "--method", method, TASK_CHUNK=chunk)
    assert all(same(result, results[0]) for result in results)
    say(f"processes: {WORLDS} tried, all with the same bits ({method}, TASK_CHUNK={chunk}, 7 tasks)")


def test_without_a_chunk_any_number_of_processes_gives_the_same_result_to_rounding(tmp_path: Path) -> None:
    first, *others = (
        (list(result["last"]["meta_parameters"].values()), torch.tensor(result["evaluation"]["shots"]["5"]["mse"]))
        for result in results_of_worlds(tmp_path, "--method", "leo")
    )
    for other in others:
        torch.testing.assert_close(other, first, rtol=1e-3, atol=1e-5)


def test_a_compiled_run_of_two_processes_gives_the_bits_of_one(tmp_path: Path) -> None:
    assert same(*results_of_worlds(tmp_path, worlds=(1, 2), TASK_CHUNK=2, **chaos.compiling()))
    for world in (1, 2):
        assert report_of(only_run(tmp_path / str(world)))["compilation"].startswith("worth it")


def test_a_run_goes_on_with_another_number_of_processes_to_the_same_bits(tmp_path: Path, say: Say) -> None:
    settings: dict[str, Any] = {"TASK_CHUNK": 2, **UNEVEN}
    whole = chaos.whole(tmp_path / "whole", "--method", "leo", **settings)
    for first, second in MOVES:
        output = tmp_path / f"{first}{second}"
        children = ranks(command(output, "--method", "leo", **settings), first, "plain", f"only:{first - 1}:step:2:15")
        assert ended(children) == [143] * first, children[0].err
        children = ranks(["--output", str(output), "--resume", "latest"], second, "plain")
        assert ended(children) == [0] * second, children[0].err
        assert report_of(only_run(output))["processes"] == second
        assert same(result_of(only_run(output)), whole)
    say(f"resumed with another number of processes: {len(MOVES)} tried, all with the same bits")


@pytest.mark.parametrize("victim", [0, 2])
def test_a_killed_process_ends_the_others_and_the_run_goes_on_later(victim: int, tmp_path: Path, say: Say) -> None:
    settings: dict[str, Any] = {"TASK_CHUNK": 2, "CHECKPOINT_INTERVAL": 1, **UNEVEN}
    output = tmp_path / "killed"
    children = ranks(command(output, **settings), 3, "plain", "slow:0.1")
    chaos.until_saved(output)
    children[victim].send(signal.SIGKILL)
    began = time.monotonic()
    others = [child for child in children if child is not children[victim]]
    assert ended(others, GONE) == [1, 1], [child.err for child in others]
    took = time.monotonic() - began
    if victim:  # process 0 speaks
        report = report_of(only_run(output))
        assert report["status"] == "failed" and "another process of this run is gone" in report["reason"]
        assert "another process of this run is gone" in others[0].error
    assert others[-1].err == "" or victim
    assert same(chaos.resumed(output), chaos.whole(tmp_path / "whole", **settings))
    say(f"process {victim} of 3 killed: the others left with exit 1 after {took:.1f} s, and the run went on to the same bits")


def test_a_process_that_stops_answering_ends_the_others_at_the_time_out(tmp_path: Path) -> None:
    children = ranks(command(tmp_path, **UNEVEN), 2, "plain", "patience:3", "only:1:step:2:19")
    assert ended(children[:1], 3 + GRACE) == [1], children[0].err
    assert "another process of this run is gone" in children[0].error
    children[1].send(signal.SIGKILL)


def test_processes_that_never_meet_give_up(tmp_path: Path) -> None:
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": chaos.free_port(), "RANK": "0"}
    alone = chaos.start(command(tmp_path / "output"), "patience:2", env={**shared})
    together = ranks(command(tmp_path / "output"), 2, "patience:1", "deaf")  # torch would never end the meeting
    assert ended([alone, *together], 2 + 1 + GRACE) == [1, 1, 1]
    assert "do not meet" in alone.error and "do not meet" in together[0].error and together[1].err == ""
    bad = ranks(command(tmp_path / "output", HIDDEN_DIM=0), 2)  # said once by all processes together
    assert ended(bad) == [2, 2] and "HIDDEN_DIM" in bad[0].error and bad[1].err == ""
    assert not (tmp_path / "output").exists()


def test_torchrun_starts_a_job_again_that_lost_a_process_and_it_ends_in_the_same_run(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"TASK_CHUNK": 2, "CHECKPOINT_INTERVAL": 1, "VALIDATION_INTERVAL": 1000, "EPOCHS": 20}
    output = tmp_path / "again"
    torchrun = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--nproc-per-node", "2", "--max-restarts", "1"]
    line = [*torchrun, str(ROOT / "main.py"), *command(output, **settings)]
    with open(tmp_path / "log", "w") as log:
        agent = subprocess.Popen(line, stdout=log, stderr=log)
    try:
        chaos.until_saved(output)
        workers = [process for process in psutil.Process(agent.pid).children() if process.environ().get("RANK") == "1"]
        workers[0].kill()
        assert agent.wait(180) == 0, (tmp_path / "log").read_text()[-3000:]
    finally:
        agent.terminate()  # and its workers with it
        agent.wait(60)
    report = report_of(only_run(output))
    assert report["status"] == "complete" and report["processes"] == 2
    assert same(result_of(only_run(output)), chaos.whole(tmp_path / "whole", **settings))


def test_runs_that_start_at_the_same_moment_have_directories_of_their_own(tmp_path: Path, say: Say) -> None:
    children = [chaos.start(command(tmp_path, EPOCHS=1, NUM_TASKS=4), "plain") for _ in range(16)]
    assert ended(children) == [0] * 16, [child.err for child in children]
    complete = [report_of(directory)["status"] == "complete" for directory in tmp_path.iterdir()]
    assert complete == [True] * 16
    say(f"simultaneous starts: 16 tried, {len(complete)} directories, all complete")


def test_a_live_run_is_not_resumed_and_a_killed_one_is(tmp_path: Path) -> None:
    output = tmp_path / "live"
    first = chaos.start(command(output, CHECKPOINT_INTERVAL=1), "plain", "slow:0.2")
    chaos.until_saved(output)
    second = chaos.run(["--output", str(output), "--resume", "latest"])
    assert second.poll() == 1 and "in use by another process" in second.error and second.err.count("\n") == 1
    assert first.poll() is None
    first.send(signal.SIGKILL)
    first.wait()
    assert same(chaos.resumed(output), chaos.whole(tmp_path / "whole", CHECKPOINT_INTERVAL=1))

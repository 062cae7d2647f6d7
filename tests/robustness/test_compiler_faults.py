"""Whole runs whose compiler has no place for its files, a hostile one, or is killed: all of them end well."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
import venv
from pathlib import Path

import pytest
import torch

from system.compiler_cache import FOLDER
from tests.tools.chaos import ROOT, Say, command, compiling, only_run, report_of, side_by_side, start, until
from tests.tools.runs import troubles

pytestmark = pytest.mark.chaos

HOSTILE = 'my project\'s "über" $x'
KILLS = 5
PATIENT = 600.0  # seconds for a compiler on a busy machine


def test_an_environment_in_a_folder_with_a_blank_runs_eager_with_one_warning(tmp_path: Path) -> None:
    project = tmp_path / HOSTILE
    shutil.copytree(ROOT, project, ignore=shutil.ignore_patterns(".*", "tests", "docs", "benchmarks", "experiments"))
    venv.create(project / ".venv", symlinks=True)
    (packages,) = (project / ".venv").glob("lib/python3*/site-packages")
    packages.rmdir()
    packages.symlink_to(Path(torch.__file__).parent.parent)
    argv = command(project / "out", COMPILE="always", INNER_STEPS=1, EPOCHS=1)
    variables = os.environ | {FOLDER: str(project / "cache")}
    done = subprocess.run(
        [project / ".venv/bin/python", "main.py", *argv], cwd=project, env=variables, capture_output=True, text=True
    )
    assert done.returncode == 0 and "eager meta-step: compiling failed: torch can't compile with this path" in done.stderr, done
    assert len(troubles(done.stderr)) == 1


def test_after_a_kill_while_compiling_the_next_run_is_compiled(tmp_path: Path, say: Say) -> None:
    settings = compiling()
    child = start(command(tmp_path / "whole", **settings), "plain", env={FOLDER: str(tmp_path / "first")})
    assert child.wait(PATIENT) == 0, child.err
    seconds = report_of(only_run(tmp_path / "whole"))["timing"]["compile_seconds"]

    def killed(number: int) -> tuple[bool, bool]:
        """Whether it was killed while it compiled, and whether the next run was compiled, with at most one warning."""
        variables: dict[str, str | None] = {FOLDER: str(tmp_path / f"cache{number}")}
        child = start(command(tmp_path / f"killed{number}", **settings), "plain", env=variables)
        until(lambda: "compiling" in child.out, PATIENT, lambda: "the compiler")
        time.sleep(seconds * (number + 0.5) / KILLS)
        early = child.poll() is None and "ready in" not in child.out
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)  # with g++
        again = start(command(tmp_path / f"next{number}", **settings), "plain", env=variables)
        assert again.wait(PATIENT) == 0, again.err
        return early, "compiled meta-step" in again.out + again.err and len(troubles(again.err)) <= 1

    ended = side_by_side(killed, range(KILLS))
    early, recovered = sum(early for early, _ in ended), sum(compiled for _, compiled in ended)
    say(f"kill -9: {KILLS} moments tried, {early} of them while compiling, {recovered} followed by a compiled run")
    assert recovered == KILLS and early > KILLS // 2

"""Training runs of benchmarks, kept by their settings: a complete run is not trained again, an interrupted one is resumed."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import registry
from benchmarks.common import ROOT, commit_text, progress
from benchmarks.project import main_without_figures
from config import Config
from system.errors import RunError

WITHOUT_EFFECT = {"LOG_INTERVAL", "CHECKPOINT_INTERVAL"}  # on results
PROGRAM = "benchmarks.paper.oracle"  # main.py with the oracle's tasks as well


class Run(NamedTuple):
    """One training run; `settings` are those that are not the defaults, `config` all of them."""

    label: str
    method: str
    tasks: str
    settings: dict[str, Any]
    config: Config
    directory: Path

    @property
    def seed(self) -> int:
        return self.config.RANDOM_SEED

    @property
    def log(self) -> Path:
        """What the run prints."""
        return self.directory.parent / f"{self.directory.name}.log"

    @property
    def checkpoint(self) -> Path:
        return self.directory / "checkpoints" / "last.pt"

    @property
    def complete(self) -> bool:
        return (self.directory / "full_report.json").exists() and self.read("full_report.json")["status"] == "complete"

    def read(self, name: str) -> dict[str, Any]:
        """One of the run's JSON files."""
        return dict(json.loads((self.directory / name).read_bytes()))

    def argv(self) -> list[str]:
        """The arguments of main.py that begin or resume this run."""
        if self.checkpoint.exists():
            return ["--resume", str(self.directory)]
        name = self.directory.name.split("_", 2)[2]
        argv = ["--method", self.method, "--tasks", self.tasks, "--output", str(self.directory.parent), "--name", name]
        return argv + [word for key, value in self.settings.items() for word in ("--set", f"{key}={json.dumps(value)}")]


def new_run(label: str, method: str, tasks: str, folder: Path, settings: Mapping[str, Any], smaller: Mapping[str, Any]) -> Run:
    """A run in a directory of `folder` that is named after the method, the label, and a digest of all settings.

    Args:
        smaller: settings of a smaller version, left out where they have no effect on the method.
    """
    read = {key: value for key, value in smaller.items() if key not in registry.unused(method, tasks)}
    given = read | dict(settings)
    generator = registry.TASKS[tasks](Config.resolve(registry.defaults(method, tasks), given))
    config = Config.resolve(registry.defaults(method, tasks, generator), given)
    relevant = {key: value for key, value in config.to_dict().items() if key not in WITHOUT_EFFECT} | generator.record()
    digest = hashlib.sha256(json.dumps(relevant, sort_keys=True).encode()).hexdigest()[:8]
    words = "".join(letter if letter.isalnum() else " " for letter in label.lower()).split()
    name = "-".join([*words, str(config.RANDOM_SEED), digest])
    return Run(label, method, tasks, given, config, folder / f"{method.upper()}_{generator.name}_{name}")


def train(runs: Sequence[Run], workers: int) -> int:
    """Complete all runs, `workers` at a time, each in a process with one thread; returns how many were not complete before.

    0 workers: one after another in this process, which is faster where a run takes seconds. Raises `RunError` where a run
    fails. Then, and when interrupted, the others save a checkpoint and end.
    """
    waiting = [run for run in runs if not run.complete]
    began, processes = time.perf_counter(), list[subprocess.Popen[bytes]]()
    progress(f"{len(runs)} runs: {len(runs) - len(waiting)} complete, {len(waiting)} to train, {max(1, workers)} at a time")
    with ThreadPoolExecutor(max(1, workers)) as pool:
        try:
            codes: Iterable[int] = map(train_here, waiting)
            if workers:
                codes = pool.map(lambda run: train_in_process(run, processes), waiting)
            for count, (run, code) in enumerate(zip(waiting, codes, strict=True), start=1):
                require_complete(run, code)
                taken = time.perf_counter() - began
                progress(f"[{count} of {len(waiting)}, {taken:.0f} s] complete: {run.label}, seed {run.seed}")
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in processes:
                process.terminate()  # those that still run; nothing happens to the others
    return len(waiting)


def prepare_directory(run: Run) -> None:
    """Make the folder, and remove what a run left that was killed before its first checkpoint."""
    run.directory.parent.mkdir(parents=True, exist_ok=True)
    if run.directory.exists() and not run.checkpoint.exists():
        shutil.rmtree(run.directory)


def train_in_process(run: Run, processes: list[subprocess.Popen[bytes]]) -> int:
    """Train in a process, which is added to `processes`; returns its exit code."""
    prepare_directory(run)
    # one thread each for the mathematical libraries: two runs on two cores would wait for each other
    variables = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    command = [sys.executable, "-m", PROGRAM, *run.argv()]
    with open(run.log, "ab") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=variables, cwd=ROOT)
    processes.append(process)
    return process.wait()


def train_here(run: Run) -> int:
    prepare_directory(run)
    output = io.StringIO()
    try:
        with redirect_stdout(output), redirect_stderr(output):
            return main_without_figures(run.argv())
    finally:
        run.log.write_text(output.getvalue(), encoding="utf-8")


def require_complete(run: Run, code: int) -> None:
    """Raise `RunError`, with the last line that the run printed, unless it is complete."""
    if code or not run.complete:
        last = run.log.read_text(encoding="utf-8", errors="replace").splitlines()[-1:]
        what = f"{run.label}, seed {run.seed} is not complete"
        raise RunError(f"{what} (got exit code {code}: {' '.join(last)}; expected a run that ends, see {run.log})", code or 1)


# ---- what runs say of themselves


def training_seconds(runs: Sequence[Run]) -> float:
    """Seconds of training and compiling in all runs."""
    records = [run.read("metrics.json")["performance"] for run in runs]
    return sum(record["train_seconds"] + record["compile_seconds"] for record in records)


def commits(runs: Sequence[Run]) -> list[str]:
    """The commits that trained the runs."""
    return sorted({commit_text(run.read("full_report.json")["git"]) for run in runs})

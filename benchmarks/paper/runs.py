"""The training runs behind the tables of paper.py: which there are, what state each is in, and training what is missing.

Each run has a directory of a fixed name, so that a second call resumes what was begun and skips what is complete. Executed
as a module, this file is main.py with one more task family, the oracle's: that is how a run in a process of its own starts.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import main
import registry
from benchmarks.common import ROOT, progress
from benchmarks.paper import baselines  # noqa: F401  registers the oracle's task family
from config import Config
from system.errors import RunError
from training.experiment import Experiment


class Kind(NamedTuple):
    """What the seeds of one label have in common."""

    method: str
    tasks: str
    settings: dict[str, Any]  # beside the defaults of the method and the tasks


# By label, as in the tables. The longest runs come first, so that two workers finish at about the same time.
KINDS = {
    "LEO on sine-line": Kind("leo", "sine-line", {}),
    "LEO": Kind("leo", "sinusoid", {}),
    "LEO, trained 5-shot": Kind("leo", "sinusoid", {"SUPPORT_SAMPLES": 5}),
    "MAML": Kind("maml", "sinusoid", {}),
    "first-order MAML": Kind("maml", "sinusoid", {"FIRST_ORDER": True}),
    "MAML on sine-line": Kind("maml", "sine-line", {}),
    "Meta-SGD": Kind("meta-sgd", "sinusoid", {}),
    "ANIL": Kind("anil", "sinusoid", {}),
    "CAVIA": Kind("cavia", "sinusoid", {}),
    "R2-D2": Kind("r2d2", "sinusoid", {}),
    "R2-D2, trained 5-shot": Kind("r2d2", "sinusoid", {"SUPPORT_SAMPLES": 5}),
    "ALPaCA": Kind("alpaca", "sinusoid", {}),
    "ALPaCA, trained 5-shot": Kind("alpaca", "sinusoid", {"SUPPORT_SAMPLES": 5}),
    "pretrained": Kind("maml", "sinusoid", {"INNER_STEPS": 0}),
    # plain regression with the same network; there is nothing to adapt to, so all points are query points
    "oracle": Kind(
        "maml",
        "oracle",
        {"INPUT_DIM": 3, "INNER_STEPS": 0, "EVAL_STEPS": 0, "EVAL_SHOTS": [1], "SUPPORT_SAMPLES": 1, "QUERY_SAMPLES": 40}
        | {"META_LEARNING_RATE": 0.01},  # 0.001 leaves it worse than LEO
    ),
}

# The settings of the quick version: small enough for a test; the results mean nothing.
QUICK = {
    "EPOCHS": 1,
    "NUM_TASKS": 300,
    "META_BATCH_SIZE": 10,
    "HIDDEN_DIM": 8,
    "LEO_LATENT_DIM": 4,
    "LEO_DECODER_DIM": 8,
    "EVAL_TASKS": 40,
    "EVAL_QUERY_SAMPLES": 20,
    "VALIDATION_TASKS": 10,
    "VALIDATION_INTERVAL": 30,
    "COMPILE": "never",
}

WITHOUT_EFFECT = ("LOG_INTERVAL", "CHECKPOINT_INTERVAL")  # on results: a run may differ in these


class Job(NamedTuple):
    """One training run, in `directory`; `config` is what it is to be trained with."""

    label: str
    seed: int
    kind: Kind
    config: Config
    directory: Path

    @property
    def name(self) -> str:
        return f"{self.label}, seed {self.seed}"

    @property
    def checkpoint(self) -> Path:
        return self.directory / "checkpoints" / "last.pt"

    @property
    def log(self) -> Path:
        """What the run prints."""
        return self.directory.parent / f"{self.directory.name}.log"

    def argv(self) -> list[str]:
        """The arguments of main.py that begin or resume this run."""
        if self.checkpoint.exists():
            return ["--resume", str(self.directory)]
        method, tasks, _ = self.kind
        name = self.directory.name.split("_", 2)[2]
        argv = ["--method", method, "--tasks", tasks, "--output", str(self.directory.parent), "--name", name]
        defaults = Config.resolve(registry.defaults(method, tasks)).to_dict()
        changed = {key: value for key, value in self.config.to_dict().items() if value != defaults[key]}
        return argv + [word for key, value in changed.items() for word in ("--set", f"{key}={json.dumps(value)}")]

    def read(self, name: str) -> dict[str, Any]:
        """One of the run's JSON files."""
        return dict(json.loads((self.directory / name).read_bytes()))


def job(label: str, seed: int, output: Path, extra: Mapping[str, Any]) -> Job:
    """The run of `KINDS[label]` with a seed; `extra` are settings of a smaller version, for the methods that read them."""
    kind = KINDS[label]
    read = {key: value for key, value in extra.items() if key not in registry.unused(kind.method, kind.tasks)}
    config = Config.resolve(registry.defaults(kind.method, kind.tasks), read, kind.settings, {"RANDOM_SEED": seed})
    family = registry.TASKS[kind.tasks](config).name
    name = "".join(letter if letter.isalnum() else "-" for letter in label.lower()).replace("--", "-")
    return Job(label, seed, kind, config, output / f"{kind.method.upper()}_{family}_{name}-{seed}")


def state(job: Job) -> str:
    """The state of a run: "missing", "begun" or "complete". Raises `RunError` for one with other settings."""
    if not job.checkpoint.exists():
        return "missing"
    try:
        settings = Config().to_dict() | job.read("config.json")  # a key that is younger than the run had its default
        finished = (job.directory / "full_report.json").exists() and job.read("full_report.json")["status"] == "complete"
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise RunError(f"{job.directory} is damaged (got {error}; delete it, and it is trained again)") from None
    wanted = {key: value for key, value in job.config.to_dict().items() if key not in WITHOUT_EFFECT}
    if different := [key for key in wanted if settings.get(key) != wanted[key]]:
        got, expected = (", ".join(f"{key}={values.get(key)}" for key in different) for values in (settings, wanted))
        raise RunError(f"{job.directory} has other settings (got {got}; expected {expected}; delete it to train it again)")
    return "complete" if finished else "begun"


def seconds(jobs: Sequence[Job]) -> float:
    """Seconds of training and compiling in all runs, by their own records."""
    records = [one.read("metrics.json")["performance"] for one in jobs]
    return sum(record["train_seconds"] + record["compile_seconds"] for record in records)


def commits(jobs: Sequence[Job]) -> list[str]:
    """The commits that trained the runs, with a note where there were changes."""
    records = [one.read("full_report.json")["git"] for one in jobs]
    return sorted({str(git["commit"])[:12] + (" with changes" if git["dirty"] else "") for git in records})


# ---- training


def train(jobs: Sequence[Job], workers: int) -> int:
    """Complete all runs, `workers` at a time, each on one thread; returns how many were not complete before.

    0 workers: one after another in this process, which is faster where a run takes seconds. Interrupted, it lets every
    run save a checkpoint. Raises `RunError` where a run fails, after stopping the others.
    """
    states = {one.directory: state(one) for one in jobs}
    waiting = [one for one in jobs if states[one.directory] != "complete"]
    total, began = len(waiting), time.perf_counter()
    progress(f"{len(jobs)} runs: {len(jobs) - total} complete, {total} to train, {max(1, workers)} at a time")

    def finished(one: Job, code: int, count: int) -> None:
        require_complete(one, code)
        progress(f"[{count} of {total}, {time.perf_counter() - began:.0f} s] complete: {one.name}")

    if not workers:
        for count, one in enumerate(waiting, start=1):
            finished(one, run_in_process(one), count)
        return total
    running: dict[subprocess.Popen[bytes], Job] = {}
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                one = waiting.pop(0)
                running[start_process(one)] = one
                progress(f"{'resumed' if states[one.directory] == 'begun' else 'started'}: {one.name}")
            for process in [process for process in running if process.poll() is not None]:
                one = running.pop(process)
                finished(one, process.returncode, total - len(waiting) - len(running))
            time.sleep(0.1)
    finally:
        for process in running:
            process.terminate()  # it saves a checkpoint and exits
        for process in running:
            process.wait()
    return total


def prepare_directory(job: Job) -> None:
    """Make the parent directory, and remove what a run left that was killed before its first checkpoint."""
    job.directory.parent.mkdir(parents=True, exist_ok=True)
    if job.directory.exists() and not job.checkpoint.exists():
        shutil.rmtree(job.directory)


def start_process(job: Job) -> subprocess.Popen[bytes]:
    prepare_directory(job)
    # one thread each for the mathematical libraries: two runs on two cores would wait for each other
    variables = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "benchmarks.paper.runs", *job.argv()]
    with open(job.log, "ab") as log:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=variables, cwd=ROOT)


def run_in_process(job: Job) -> int:
    """Run main.py in this process, without the run's own figures, which take most of the time of such a small run."""
    prepare_directory(job)
    output = io.StringIO()
    try:
        with (
            redirect_stdout(output),
            redirect_stderr(output),
            patch("commands.evaluate.draw"),
            patch.object(Experiment, "show_progress"),
        ):
            return main.main(job.argv())
    finally:
        with open(job.log, "a", encoding="utf-8") as log:
            log.write(output.getvalue())


def require_complete(job: Job, code: int) -> None:
    """Raise `RunError`, with the last line that the run printed, unless it is complete."""
    if code or state(job) != "complete":
        lines = job.log.read_text(encoding="utf-8", errors="replace").splitlines()
        last = lines[-1] if lines else "nothing"
        raise RunError(f"{job.name} is not complete (got exit code {code}: {last}; see {job.log})", code or 1)


if __name__ == "__main__":
    sys.exit(main.main())

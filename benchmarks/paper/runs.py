"""The training runs behind the tables of `paper.py`: which there are, what became of them, training what is missing.

Each run has a directory of a fixed name, so that a second call resumes what was begun and skips what is complete.
As a script this file is `main.py` with one more task family: the oracle is a network that is told amplitude and phase,
and so has one function of three inputs to learn.
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

import numpy as np
from paths import ROOT  # first: it puts the others on the path
from report import progress

import main
import registry
from config import Config
from dataset import Array, FunctionFamily, SinusoidalTaskGenerator
from experiment import Experiment
from runtime.errors import RunError


class OracleTaskGenerator(FunctionFamily):
    """y = A sin(x - phase) as a function of x, A and phase, the latter two scaled to the range of x.

    Every input is uniform, so each point is one of a sinusoid of its own, from the distribution of `sinusoids`:
    plain regression, with nothing to adapt to.
    """

    name = "OracleSinusoidal"

    def __init__(self, sinusoids: SinusoidalTaskGenerator):
        super().__init__(3, sinusoids.x_range)
        self.sinusoids = sinusoids

    @classmethod
    def from_config(cls, config: Config) -> OracleTaskGenerator:
        amplitudes, phases = (config.AMPLITUDE_MIN, config.AMPLITUDE_MAX), (config.PHASE_MIN, config.PHASE_MAX)
        return cls(SinusoidalTaskGenerator(1, (config.X_MIN, config.X_MAX), 0.0, amplitudes, phases))

    def draw(self, num_tasks: int, rng: np.random.Generator) -> Array:
        return np.zeros((num_tasks, 1), np.float32)  # all tasks are the same

    def curve(self, params: Array, x: Array) -> Array:
        low, high = self.x_range
        place = (x - low) / (high - low)  # 0 to 1
        amplitude, phase = (
            smallest + (largest - smallest) * place[..., 1 + column : 2 + column]
            for column, (smallest, largest) in enumerate((self.sinusoids.amplitude_range, self.sinusoids.phase_range))
        )
        return (amplitude * np.sin(x[..., :1] - phase)).astype(np.float32)

    def inputs(self, params: Array, x: Array) -> Array:
        """The inputs [T, N, 3] of the oracle: `params` [T, >= 2] at `x` [T, N, 1]."""
        low, high = self.x_range
        scaled = [
            low + (high - low) * (params[:, None, column : column + 1] - smallest) / (largest - smallest)
            for column, (smallest, largest) in enumerate((self.sinusoids.amplitude_range, self.sinusoids.phase_range))
        ]
        return np.concatenate([x, *(np.broadcast_to(part, x.shape) for part in scaled)], axis=2).astype(np.float32)


registry.TASKS["oracle"] = OracleTaskGenerator.from_config  # a task family for the command line, as any other


class Kind(NamedTuple):
    """What the seeds of one method have in common."""

    method: str
    tasks: str
    settings: dict[str, Any]  # beside the method's and the tasks' defaults


# By what a method is called in tables. The longest come first: two at a time, the last hour is then well shared.
KINDS = {
    "LEO": Kind("leo", "sinusoid", {}),
    "MAML": Kind("maml", "sinusoid", {}),
    "LEO, trained 5-shot": Kind("leo", "sinusoid", {"SUPPORT_SAMPLES": 5}),
    "first-order MAML": Kind("maml", "sinusoid", {"FIRST_ORDER": True}),
    "LEO on sine-line": Kind("leo", "sine-line", {}),
    "pretrained": Kind("maml", "sinusoid", {"INNER_STEPS": 0}),
    "MAML on sine-line": Kind("maml", "sine-line", {}),
    "Meta-SGD": Kind("meta-sgd", "sinusoid", {}),
    "CAVIA": Kind("cavia", "sinusoid", {}),
    "ANIL": Kind("anil", "sinusoid", {}),
    "R2-D2": Kind("r2d2", "sinusoid", {}),
    "R2-D2, trained 5-shot": Kind("r2d2", "sinusoid", {"SUPPORT_SAMPLES": 5}),
    # plain regression of the same network; nothing to adapt to, so all points are query points
    "oracle": Kind(
        "maml",
        "oracle",
        {"INPUT_DIM": 3, "INNER_STEPS": 0, "EVAL_STEPS": 0, "EVAL_SHOTS": [1], "SUPPORT_SAMPLES": 1, "QUERY_SAMPLES": 40},
    ),
}

# Small enough for a test: it shows that all of it works, and its numbers mean nothing.
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


ONLY_RECORDED = ("LOG_INTERVAL", "CHECKPOINT_INTERVAL")  # change nothing of a result: a run of others is as good


class Job(NamedTuple):
    """One training run, in `directory`; `config` is what it has to be trained with."""

    label: str
    seed: int
    kind: Kind
    config: Config
    directory: Path

    @property
    def name(self) -> str:
        return f"{self.label}, seed {self.seed}"

    def argv(self) -> list[str]:
        """The arguments of `main.py` that begin this run or go on with it."""
        if (self.directory / "checkpoints" / "last.pt").exists():
            return ["--resume", str(self.directory)]
        method, tasks, _ = self.kind
        name = self.directory.name.split("_", 2)[2]
        argv = ["--method", method, "--tasks", tasks, "--output", str(self.directory.parent), "--name", name]
        defaults = Config.resolve(registry.defaults(method, tasks)).to_dict()
        changed = {key: value for key, value in self.config.to_dict().items() if value != defaults[key]}
        return argv + [word for key, value in changed.items() for word in ("--set", f"{key}={json.dumps(value)}")]


def job(label: str, seed: int, output: Path, extra: Mapping[str, Any]) -> Job:
    """The run of `KINDS[label]` with a seed; `extra` settings are those of a smaller version."""
    kind = KINDS[label]
    config = Config.resolve(registry.defaults(kind.method, kind.tasks), extra, kind.settings, {"RANDOM_SEED": seed})
    family = registry.TASKS[kind.tasks](config).name
    name = "".join(letter if letter.isalnum() else "-" for letter in label.lower()).replace("--", "-")
    return Job(label, seed, kind, config, output / f"{kind.method.upper()}_{family}_{name}-{seed}")


def state(job: Job) -> str:
    """What became of a run: "missing", "begun" or "complete". Raises `RunError` for one of other settings."""
    checkpoint = job.directory / "checkpoints" / "last.pt"
    if not checkpoint.exists():
        return "missing"
    try:
        settings = json.loads((job.directory / "config.json").read_bytes())
        report = job.directory / "full_report.json"
        status = json.loads(report.read_bytes())["status"] if report.exists() else ""
    except (OSError, ValueError, KeyError) as error:
        raise RunError(f"{job.directory} is damaged (got {error}; delete it, and it is trained again)") from None
    wanted = {key: value for key, value in job.config.to_dict().items() if key not in ONLY_RECORDED}
    if different := [key for key in wanted if settings.get(key) != wanted[key]]:
        got, expected = (", ".join(f"{key}={values.get(key)}" for key in different) for values in (settings, wanted))
        raise RunError(f"{job.directory} has other settings (got {got}; expected {expected}; delete it to train it again)")
    return "complete" if status == "complete" else "begun"


def train(jobs: Sequence[Job], workers: int) -> int:
    """Bring all runs to their end, `workers` at a time, each on one thread; returns how many were not complete before.

    0 workers: one after another in this process, which is cheaper where a run takes seconds. Interrupted, it lets
    every run save a checkpoint. Raises `RunError` where a run fails; the others are then stopped, too.
    """
    states = {one.directory: state(one) for one in jobs}
    waiting = [one for one in jobs if states[one.directory] != "complete"]
    total, begun = len(waiting), time.perf_counter()
    progress(f"{len(jobs)} runs: {len(jobs) - total} complete, {total} to train, {max(1, workers)} at a time")
    if not workers:
        for place, one in enumerate(waiting, start=1):
            _require_complete(one, _in_process(one))
            _report_progress(one, place, total, begun)
        return total
    running: dict[subprocess.Popen[bytes], Job] = {}
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                one = waiting.pop(0)
                running[_start(one)] = one
                progress(f"{'resumed' if states[one.directory] == 'begun' else 'started'}: {one.name}")
            for process in [process for process in running if process.poll() is not None]:
                one = running.pop(process)
                _require_complete(one, process.returncode)
                _report_progress(one, total - len(waiting) - len(running), total, begun)
            time.sleep(0.1)
    finally:
        for process in running:
            process.terminate()  # it saves a checkpoint and leaves
        for process in running:
            process.wait()
    return total


def _report_progress(job: Job, place: int, total: int, begun: float) -> None:
    progress(f"[{place} of {total}, {time.perf_counter() - begun:.0f} s] complete: {job.name}")


def _log(job: Job) -> Path:
    return job.directory.parent / f"{job.directory.name}.log"


def _start(job: Job) -> subprocess.Popen[bytes]:
    job.directory.parent.mkdir(parents=True, exist_ok=True)
    _clear(job)
    # Threads of the mathematical libraries: one each, or two runs on two cores wait for each other.
    variables = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(__file__).resolve()), *job.argv()]
    with open(_log(job), "ab") as log:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=variables, cwd=ROOT)


def _in_process(job: Job) -> int:
    job.directory.parent.mkdir(parents=True, exist_ok=True)
    _clear(job)
    text = io.StringIO()
    # their own figures would take ten times as long as such small runs do, and nobody looks at them
    without_figures = patch("commands.evaluate.draw"), patch.object(Experiment, "show_progress")
    try:
        with redirect_stdout(text), redirect_stderr(text), without_figures[0], without_figures[1]:
            return main.main(job.argv())
    finally:
        with open(_log(job), "a", encoding="utf-8") as log:
            log.write(text.getvalue())


def _clear(job: Job) -> None:
    """Remove what a run left that was killed before its first checkpoint: its name is taken, and nothing is in it."""
    if job.directory.exists() and not (job.directory / "checkpoints" / "last.pt").exists():
        shutil.rmtree(job.directory)


def _require_complete(job: Job, code: int) -> None:
    if code or state(job) != "complete":
        lines = _log(job).read_text(encoding="utf-8", errors="replace").splitlines()
        last = lines[-1] if lines else "nothing"
        raise RunError(f"{job.name} has not come to its end (got exit code {code}: {last}; see {_log(job)})", code or 1)


def seconds(jobs: Sequence[Job]) -> float:
    """Seconds of training and compiling in all runs, by their own records, whenever they were."""
    found = [json.loads((one.directory / "metrics.json").read_bytes())["performance"] for one in jobs]
    return sum(record["train_seconds"] + record["compile_seconds"] for record in found)


def commits(jobs: Sequence[Job]) -> list[str]:
    """The commits that trained the runs, with a note where there were changes."""
    found = [json.loads((one.directory / "full_report.json").read_bytes())["git"] for one in jobs]
    return sorted({str(git["commit"])[:12] + (" with changes" if git["dirty"] else "") for git in found})


if __name__ == "__main__":
    sys.exit(main.main())

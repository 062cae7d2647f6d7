"""Real processes of the program at a fraction of their start-up time, and what may befall them.

A server that has imported the program forks a child for each command line: a process of its own that can be killed and
signalled. A child may carry a *plant*: something that happens to it from inside, at a place that no observer could hit.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import fcntl
import hashlib
import importlib
import io
import itertools
import json
import os
import resource
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch

import main
from commands import evaluate
from results_manager import ExperimentManager
from system import files, machine
from system.checkpoints import read_checkpoint
from tests.tools import runs
from tests.tools.runs import ROOT, TINY, only_run
from training import processes
from training.experiment import Experiment
from training.loop import Trainer
from training.step import MetaStep

__all__ = ["ROOT", "only_run"]  # for the tests, beside what is defined here

Item = TypeVar("Item")
Result = TypeVar("Result")
Say = Callable[[str], None]  # prints a line of the record past pytest's capture

CHAOS_METHODS = ("leo", "maml")  # what is tested here knows no method by name: two that differ most are enough
PATIENCE = 120.0  # seconds after which something that never ends is a failure
SETTINGS = TINY | {  # 15 steps, a checkpoint every second one; long enough for several kills
    **{"EVAL_TASKS": 4, "EVAL_QUERY_SAMPLES": 4, "EVAL_STEPS": 3, "EVAL_SHOTS": [5], "VALIDATION_TASKS": 4},
    **{"LOG_INTERVAL": 1, "VALIDATION_INTERVAL": 3, "CHECKPOINT_INTERVAL": 2, "COMPILE": "never"},
}


def command(output: Path, *arguments: str, **settings: Any) -> list[str]:
    """The command line of a tiny run."""
    return runs.command(output, *arguments, **(SETTINGS | settings))


def side_by_side(action: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """`action` on each item, two at a time: most of a short process is waiting for the disk."""
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(action, items))


def same(one: Any, other: Any) -> bool:
    """Whether two nested structures hold the same types, values and bits."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other)
    return bool(one == other)


def state_of(path: Path) -> dict[str, Any]:
    """A checkpoint without what may differ between equal runs: the time it took, and settings that may change."""
    return {name: value for name, value in read_checkpoint(path).items() if name not in ("train_seconds", "config")}


def result_of(directory: Path) -> dict[str, Any]:
    """All that a finished run found out: its last and best checkpoint, and the numbers of its record."""
    metrics = json.loads((directory / "metrics.json").read_text())
    states = {name: state_of(directory / "checkpoints" / f"{name}.pt") for name in ("last", "best")}
    return states | {part: metrics[part] for part in ("train", "validation", "evaluation")}


def whole(output: Path, *arguments: str, **settings: Any) -> dict[str, Any]:
    """What a run that nothing befalls finds out."""
    finished(command(output, *arguments, **settings), "plain")
    return result_of(only_run(output))


def resumed(output: Path, *plants: str) -> dict[str, Any]:
    """What the one run under `output` has found out when it has gone on to its end."""
    finished(["--output", str(output), "--resume", "latest"], "plain", *plants)
    return result_of(only_run(output))


def report_of(directory: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((directory / "full_report.json").read_text())
    return report


def tree(directory: Path) -> dict[str, str]:
    """Every path below `directory`, with the digest of its contents."""
    found = {}
    for path in sorted(directory.rglob("*")):
        regular = path.is_file() and not path.is_symlink() and path.stat().st_size < 2**26
        found[str(path.relative_to(directory))] = hashlib.sha256(path.read_bytes()).hexdigest() if regular else ""
    return found


class Child:
    """A process of the program; its output lies in files."""

    def __init__(self, pid: int, log: Path):
        self.pid, self.log, self._code = pid, log, None

    @property
    def out(self) -> str:
        return self.log.with_suffix(".out").read_text(errors="replace")

    @property
    def err(self) -> str:
        return self.log.with_suffix(".err").read_text(errors="replace")

    @property
    def error(self) -> str:
        """The one line with which it gave up; fails where there is another number of them, or a traceback."""
        assert "Traceback" not in self.err, self.err
        (line,) = [line for line in self.err.splitlines() if line.startswith("error: ")]
        return line

    def poll(self) -> int | None:
        """The exit code (minus the signal's number after a signal), or None while it runs."""
        if self._code is None:
            self._code = server().ask(ended=self.pid)
        return self._code

    def wait(self, seconds: float = PATIENCE) -> int:
        """The exit code; fails where the process has not ended after `seconds`."""
        until(lambda: self.poll() is not None, seconds, lambda: f"the end of a process: {self.err[-2000:]}")
        assert self._code is not None
        return self._code

    def send(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


def until(happened: Callable[[], bool], seconds: float, what: Callable[[], str]) -> None:
    """Wait for something; fails after `seconds`."""
    began = time.monotonic()
    while not happened():
        assert time.monotonic() - began < seconds, f"waited {seconds:.0f} s for {what()}"
        time.sleep(0.002)


def until_saved(output: Path) -> None:
    """A checkpoint before the last one is there from the first step that is saved on."""
    until(lambda: bool(list(output.glob("*/checkpoints/previous.pt"))), 60, lambda: "a step that is saved")


class Server:
    """Starts processes of the program, by fork."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="chaos-"))
        self.children: list[Child] = []
        self.numbers = itertools.count()
        self._one_at_a_time = threading.Lock()
        one_thread = os.environ | {"OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}  # none is there before a fork
        argv, pipe = [sys.executable, "-W", "ignore", "-m", "tests.tools.chaos"], subprocess.PIPE
        self._process = subprocess.Popen(argv, cwd=ROOT, stdin=pipe, stdout=pipe, text=True, env=one_thread)
        atexit.register(self.close)

    def ask(self, **request: Any) -> Any:
        assert self._process.stdin and self._process.stdout
        with self._one_at_a_time:
            print(json.dumps(request), file=self._process.stdin, flush=True)
            return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        for child in self.children:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
        self._process.communicate(timeout=PATIENCE)
        shutil.rmtree(self.folder)


_first = threading.Lock()
_servers: list[Server] = []


def server() -> Server:
    """The one server of this test session, started when it is first needed."""
    with _first:
        if not _servers:
            _servers.append(Server())
        return _servers[0]


def start(argv: list[str], *plants: str, env: dict[str, str | None] | None = None, cwd: Path | None = None) -> Child:
    """Start `main.py argv` with plants, and with changes to the environment (None removes a variable)."""
    log = server().folder / str(next(server().numbers))
    for suffix in (".out", ".err"):
        log.with_suffix(suffix).touch()
    request = {"argv": argv, "plants": plants, "env": env or {}, "cwd": str(cwd or log.parent), "log": str(log)}
    child = Child(server().ask(**request), log)
    server().children.append(child)
    return child


def compiling() -> dict[str, Any]:
    """Settings of a run that is compiled; what the compiler imports is there before the processes are made."""
    assert server().ask(needs="torch._inductor.compile_fx")
    return {"COMPILE": "always", "INNER_STEPS": 1, "EPOCHS": 1}


def run(argv: list[str], *plants: str, env: dict[str, str | None] | None = None, cwd: Path | None = None) -> Child:
    """Start, and wait for the end."""
    child = start(argv, *plants, env=env, cwd=cwd)
    child.wait()
    return child


def finished(argv: list[str], *plants: str) -> Child:
    """Start, and wait for an end that must be a good one."""
    child = run(argv, *plants)
    assert child.poll() == 0, child.err
    return child


def ranks(argv: list[str], world: int, *plants: str) -> list[Child]:
    """Start `world` processes of one run, as torchrun would; one alone without its variables."""
    if world == 1:
        return [start(argv, *plants)]
    shared = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    return [start(argv, *plants, env={"RANK": str(number), **shared}) for number in range(world)]


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def plant_plain() -> None:
    """No figures, and no questions to the compiler and to git: they take ten times as long as all the rest of a tiny run."""
    evaluate.draw = lambda *_: None  # type: ignore[assignment]
    evaluate.figure_arrays = lambda *_: {}  # type: ignore[assignment]
    Experiment.show_progress = lambda *_: None  # type: ignore[method-assign]
    machine._run = lambda _: (1, "", "")  # type: ignore[assignment]


def plant_bare() -> None:
    """The disk has neither locks nor hard links, and confirms no folder."""

    def refused(*_: Any) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    fsync = os.fsync
    os.link = fcntl.flock = refused  # type: ignore[assignment]
    os.fsync = lambda file: refused() if stat.S_ISDIR(os.fstat(file).st_mode) else fsync(file)  # type: ignore[arg-type]


def plant_only(number: str, name: str, *arguments: str) -> None:
    """A plant for the process of that rank alone."""
    if os.environ.get("RANK", "0") == number:
        globals()[f"plant_{name}"](*arguments)


def at_step(number: int, action: Callable[[], Any], patch: Callable[..., None] = setattr) -> None:
    """From here on `action` happens after step `number` of a training."""
    update = MetaStep._update

    def hit(self: MetaStep, vector: torch.Tensor) -> torch.Tensor:
        metrics = update(self, vector)
        if int(self.state.adam_step.item()) == number:
            action()
        return metrics

    patch(MetaStep, "_update", hit)


def plant_step(number: str, signal_number: str) -> None:
    """Get that signal from nowhere after step `number`."""
    at_step(int(number), lambda: os.kill(os.getpid(), int(signal_number)))


SLOW = {"step": (MetaStep, "_update"), "preparing": (Trainer, "prepare"), "evaluating": (evaluate, "evaluate_learner")}


def plant_slow(seconds: str, what: str = "step") -> None:
    """Every training step, what comes before the first (as if it were compiled), or the evaluation takes at least so long."""
    owner, name = SLOW[what]
    function = getattr(owner, name)

    def slow(*args: Any, **options: Any) -> Any:
        time.sleep(float(seconds))
        return function(*args, **options)

    setattr(owner, name, slow)


def plant_patience(seconds: str) -> None:
    """A shorter wait for a peer that does not answer."""
    processes.PEER_TIMEOUT = timedelta(seconds=float(seconds))
    processes.MEETING_GRACE = timedelta(seconds=1)


def plant_deaf() -> None:
    """Meeting the other processes never ends, as happens in torch."""
    torch.distributed.init_process_group = lambda *_, **__: time.sleep(PATIENCE)  # type: ignore[assignment]


def plant_nohup() -> None:
    """Started by nohup, which lets a process ignore that its terminal is closed."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def plant_limit(size: str) -> None:
    """No file can grow beyond `size` bytes: it ends as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(size), int(size)))


def plant_keep(folder: str) -> None:
    """After every save, keep a copy of the run as it could be resumed then, under `folder`."""
    save = ExperimentManager.save_checkpoint

    def saved(self: ExperimentManager, state: dict[str, Any], **options: Any) -> None:
        save(self, state, **options)
        copy = Path(folder) / f"{state['iteration']:05d}"
        shutil.copytree(self.directory / "checkpoints", copy / "checkpoints", dirs_exist_ok=True)
        shutil.copy(self.directory / "config.json", copy)

    ExperimentManager.save_checkpoint = saved  # type: ignore[method-assign]


def plant_save(number: str, call: str, moment: str = "before") -> None:
    """Die in save `number` (from 0) before its system call `call`, or half through a write; exit 77 if there is none."""
    saves = calls = 0
    counting = False

    def deadly(function: Callable[..., Any], half: Callable[..., Any] | None = None) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += counting
            if not counting or calls != int(call) + 1:
                return function(*args, **kwargs)
            if moment == "half":
                _ = half(*args) if half else os._exit(77)
            os.kill(os.getpid(), signal.SIGKILL)

        return wrapper

    class File(io.FileIO):
        write = deadly(io.FileIO.write, lambda file, data: io.FileIO.write(file, data[: len(data) // 2]))

    for name in ("open", "fsync", "replace", "link", "unlink", "close"):
        setattr(os, name, deadly(getattr(os, name)))
    files.open = deadly(File)  # type: ignore[attr-defined]
    save = ExperimentManager.save_checkpoint

    def counted(self: ExperimentManager, *args: Any, **kwargs: Any) -> None:
        nonlocal saves, counting
        counting = saves == int(number)
        save(self, *args, **kwargs)
        if counting:
            os._exit(77)
        saves += 1

    ExperimentManager.save_checkpoint = counted  # type: ignore[method-assign]


def _child(request: dict[str, Any]) -> int:
    """What a forked child does: become a process of the program."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever started the tests may ignore them
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    log = Path(request["log"])
    for number, target in ((0, os.devnull), (1, log.with_suffix(".out")), (2, log.with_suffix(".err"))):
        os.dup2(os.open(target, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666), number)
    sys.stdin = open(os.devnull)  # noqa: SIM115
    for name, value in request["env"].items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    os.chdir(request["cwd"])
    sys.argv = [str(ROOT / "main.py"), *request["argv"]]
    for plant in request["plants"]:
        name, *arguments = plant.split(":")
        globals()[f"plant_{name}"](*arguments)
    return main.main()


def _serve() -> None:
    for name in ("torch._dynamo", "torch.utils.tensorboard"):  # the first derivative and the first event ask for them
        importlib.import_module(name)
    torch.set_num_threads(1)
    assert len(os.listdir("/proc/self/task")) == 1, "a fork would lose a thread"
    for line in sys.stdin:
        request = json.loads(line)
        if "needs" in request:
            answer = bool(importlib.import_module(request["needs"]))
        elif "ended" in request:
            pid, status = os.waitpid(request["ended"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        else:
            answer = os.fork()
            if answer == 0:
                code = 70
                try:
                    code = _child(request)
                except SystemExit as end:
                    code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
                except BaseException:
                    traceback.print_exc()
                finally:
                    with contextlib.suppress(OSError, ValueError):
                        sys.stdout.flush()
                        sys.stderr.flush()
                    os._exit(code)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    _serve()

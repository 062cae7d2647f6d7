"""One writer a run, with the locks of the file system or without any."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from system import locks
from system.errors import RunError
from system.locks import TAKEOVER, Lock

ROOT = Path(__file__).resolve().parents[2]
HOLD = """
import errno, sys, time, pathlib
from system import locks
if sys.argv[2] == "none":
    locks.fcntl = None
lock = locks.Lock(pathlib.Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture(params=["ENOLCK", "ENOSYS", "EOPNOTSUPP", "no fcntl"])
def no_locks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system, or a system, without locks."""
    if request.param == "no fcntl":
        return monkeypatch.setattr(locks, "fcntl", None)

    def refused(*_: Any) -> None:
        raise OSError(getattr(errno, request.param), "no locks here")

    monkeypatch.setattr(fcntl, "flock", refused)


@pytest.fixture(params=["flock", "none"])
def holder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Another process that holds `tmp_path`, with the system's locks or without any."""
    if request.param == "none":
        monkeypatch.setattr(locks, "fcntl", None)
    argv = [sys.executable, "-c", HOLD, str(tmp_path), request.param]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout and process.stdout.readline() == "held\n"
        yield process
        process.kill()


def age(path: Path, seconds: float) -> None:
    os.utime(path, (time.time() - seconds,) * 2)


def foreign(path: Path, **changes: Any) -> None:
    """A claim as another host would write it."""
    record = {"host": "elsewhere ", "pid": os.getpid(), "started": 0.0, "token": "foreign"}
    path.write_text(json.dumps(record | changes))


def test_a_second_writer_is_refused_while_the_first_lives_and_not_after_its_kill(holder: Any, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="in use by another process") as caught:
        Lock(tmp_path)
    assert caught.value.code == 1
    holder.kill()
    holder.wait()
    Lock(tmp_path).release()


@pytest.mark.usefixtures("no_locks")
def test_without_locks_a_second_writer_in_this_process_is_refused(tmp_path: Path) -> None:
    first = Lock(tmp_path)
    with pytest.raises(RunError, match=f"process {os.getpid()} on"):
        Lock(tmp_path)
    first.release()
    Lock(tmp_path).release()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock"]


@pytest.mark.usefixtures("no_locks")
def test_a_claim_of_another_host_is_taken_over_after_the_stated_time_and_not_before(tmp_path: Path) -> None:
    foreign(tmp_path / ".writer")
    age(tmp_path / ".writer", TAKEOVER - 10)
    with pytest.raises(RunError, match="elsewhere; a dead one is noticed after 60 s"):
        Lock(tmp_path)
    age(tmp_path / ".writer", TAKEOVER + 1)
    Lock(tmp_path).release()


@pytest.mark.usefixtures("no_locks")
def test_a_claim_whose_process_number_was_given_to_another_process_is_taken_over_at_once(tmp_path: Path) -> None:
    foreign(tmp_path / ".writer", host=locks._host(), started=1.0)
    Lock(tmp_path).release()


@pytest.mark.usefixtures("no_locks")
@pytest.mark.parametrize("content", ["", "{", "[]", json.dumps({"host": locks._host()}), "\x00" * 80])
def test_a_claim_that_was_not_written_to_its_end_is_taken_over_after_the_stated_time(content: str, tmp_path: Path) -> None:
    (tmp_path / ".writer").write_text(content)
    with pytest.raises(RunError, match="process unknown on"):
        Lock(tmp_path)
    age(tmp_path / ".writer", TAKEOVER + 1)
    Lock(tmp_path).release()


@pytest.mark.usefixtures("no_locks")
def test_of_two_successors_only_one_takes_over(tmp_path: Path) -> None:
    foreign(tmp_path / ".writer")
    age(tmp_path / ".writer", TAKEOVER + 1)
    foreign(tmp_path / ".successor")
    with pytest.raises(RunError, match="another process about to take it over"):
        Lock(tmp_path)
    age(tmp_path / ".successor", TAKEOVER + 1)  # it died on the way
    Lock(tmp_path).release()
    assert not (tmp_path / ".successor").exists()


@pytest.mark.usefixtures("no_locks")
def test_a_writer_that_stood_still_and_was_succeeded_writes_no_more(tmp_path: Path) -> None:
    lock = Lock(tmp_path)
    lock.check()
    foreign(tmp_path / ".writer")  # as its successor does
    with pytest.raises(RunError, match="taken over after 60 s without a sign of life"):
        lock.check()
    lock.release()
    assert (tmp_path / ".writer").exists(), "the successor's claim stays"


@pytest.mark.usefixtures("no_locks")
def test_a_live_writer_gives_signs_of_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "HEARTBEAT", 0.01)
    lock = Lock(tmp_path)
    age(tmp_path / ".writer", 1000)
    deadline = time.monotonic() + 30
    while lock._seconds_since(tmp_path / ".writer") > 500:
        assert time.monotonic() < deadline, "no sign of life"
    lock.release()

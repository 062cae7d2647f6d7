"""One writer a run, where the file system has locks."""

import errno
import fcntl
import subprocess
import sys
from pathlib import Path

import pytest

from results_manager import ExperimentManager
from system import locks
from system.errors import RunError
from system.locks import Lock

ROOT = Path(__file__).resolve().parents[2]
HOLD = """
import pathlib, sys
from system.locks import Lock
lock = Lock(pathlib.Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


def test_a_second_writer_is_refused_until_the_first_is_killed(tmp_path):
    argv = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as holder:
        assert holder.stdout and holder.stdout.readline() == "held\n"
        with pytest.raises(RunError, match="in use by another process") as caught:
            Lock(tmp_path)
        assert caught.value.code == 1
        holder.kill()
    Lock(tmp_path).release()


@pytest.mark.parametrize("fault", ["ENOLCK", "ENOSYS", "EOPNOTSUPP", "no fcntl"])
def test_without_locks_one_warning_says_that_writers_are_not_kept_apart(fault, tmp_path, monkeypatch, capsys):
    def refused(*_):
        raise OSError(getattr(errno, fault), "no locks here")

    if fault == "no fcntl":
        monkeypatch.setattr(locks, "fcntl", None)
    else:
        monkeypatch.setattr(fcntl, "flock", refused)
    for _ in range(2):
        ExperimentManager(tmp_path, "maml", []).close()
        line = capsys.readouterr().err
        assert line.startswith("warning: ") and "two processes" in line and line.count("\n") == 1

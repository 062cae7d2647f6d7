"""One writer at a time in a directory, whatever its file system offers for that.

`filelock` is not used: what it does where the system has no locks depends on its version, and torch admits any.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import socket
import threading
from pathlib import Path
from typing import Any

import psutil

from system.errors import RunError

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None  # type: ignore[assignment]

HEARTBEAT = 15.0  # seconds between two signs of life in a claim
TAKEOVER = 60.0  # seconds without one, after which a writer on another host is taken for dead
HELD = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)  # another process has the lock; any other error: there are no locks


class Lock:
    """The right to write into `directory`, until `release` or the end of the process, however it ends.

    Where the file system has locks, it is one on the file .lock. Elsewhere it is a claim: a file .writer that only one
    process can create, which says who that is and is touched every `HEARTBEAT` seconds. A claim whose process is dead is
    taken over: at once on the same host, and after `TAKEOVER` seconds without a sign of life on another.

    Raises `RunError` where another process has the right.
    """

    def __init__(self, directory: Path):
        self.directory, self.claim, self.token = directory, directory / ".writer", ""
        self._released = threading.Event()
        self._file = open(directory / ".lock", "w")  # noqa: SIM115 (held until the end)
        try:
            if not self._locked():
                self._take_claim()
        except BaseException:
            self._file.close()
            raise

    def _locked(self) -> bool:
        """Whether the file system gave a lock; False where it has none to give."""
        if fcntl is None:
            return False
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError as error:
            if error.errno in HELD:
                raise self._refusal("a locked run") from None
            return False

    def _refusal(self, got: str) -> RunError:
        return RunError(f"{self.directory} is in use by another process (got {got}; expected a free one)", 1)

    def release(self) -> None:
        """Let others write; a claim that was lost meanwhile is left to its new owner."""
        self._released.set()
        if self.token and self._owner().get("token") == self.token:
            self.claim.unlink(missing_ok=True)
        self._file.close()

    def check(self) -> None:
        """Raise `RunError` where another process has taken the claim over, since this one had stood still for too long."""
        if self.token and self._owner().get("token") != self.token:
            raise self._refusal(f"a claim taken over after {TAKEOVER:.0f} s without a sign of life")

    # ---- claims

    def _take_claim(self) -> None:
        token = secrets.token_hex(8)
        record = {"host": _host(), "pid": os.getpid(), "started": psutil.Process().create_time(), "token": token}
        if not self._create(self.claim, record):
            self._take_over(record)
        self.token = token
        threading.Thread(target=self._stay_alive, name="lock", daemon=True).start()

    def _take_over(self, record: dict[str, Any]) -> None:
        """Replace the claim of a dead process; of several successors the one that creates .successor does it."""
        successor = self.directory / ".successor"
        if self._seconds_since(successor) > TAKEOVER:  # it died on the way
            successor.unlink(missing_ok=True)
        if not self._create(successor, record):
            raise self._refusal("another process about to take it over")
        try:
            owner = self._owner()
            if not self._is_dead(owner):
                who = f"process {owner.get('pid', 'unknown')} on {str(owner.get('host', 'unknown')).split()[0]}"
                raise self._refusal(f"{who}; a dead one is noticed after {TAKEOVER:.0f} s")
            os.replace(successor, self.claim)
        finally:
            successor.unlink(missing_ok=True)

    def _create(self, path: Path, record: dict[str, Any]) -> bool:
        """Make the file `path`, unless it exists."""
        with contextlib.suppress(FileExistsError), open(path, "x") as file:
            json.dump(record, file)
            return True
        return False

    def _owner(self) -> dict[str, Any]:
        with contextlib.suppress(OSError, ValueError):
            return dict(json.loads(self.claim.read_text()))
        return {}

    def _is_dead(self, owner: dict[str, Any]) -> bool:
        if owner.get("host") != _host() or not {"pid", "started"} <= owner.keys():  # not written to its end
            return self._seconds_since(self.claim) > TAKEOVER
        try:
            return abs(psutil.Process(owner["pid"]).create_time() - owner["started"]) > 2
        except psutil.NoSuchProcess:
            return True

    def _seconds_since(self, path: Path) -> float:
        """How long ago `path` was touched, by the clock of the file system; 0 where it is not there."""
        os.utime(self._file.name)
        with contextlib.suppress(OSError):
            return os.stat(self._file.name).st_mtime - path.stat().st_mtime
        return 0.0

    def _stay_alive(self) -> None:
        while not self._released.wait(HEARTBEAT) and self._owner().get("token") == self.token:
            with contextlib.suppress(OSError):
                os.utime(self.claim)


def _host() -> str:
    """Where a process number means the same process: a machine, and a container's own numbers on it."""
    space = ""
    with contextlib.suppress(OSError):
        space = os.readlink("/proc/self/ns/pid")
    return f"{socket.gethostname()} {space}"

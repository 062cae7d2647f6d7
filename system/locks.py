"""One writer at a time in a directory, by the file system's locks."""

from __future__ import annotations

import errno
from pathlib import Path

from system.errors import RunError

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None  # type: ignore[assignment]

HELD = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)  # another process has the lock; any other error: there are no locks


class Lock:
    """The right to write into `directory`, until `release` or the end of the process, however it ends.

    `exclusive` is False where the system or the file system has no locks (`flock`): two writers are not kept apart there.
    Raises `RunError` where another process has the right.
    """

    def __init__(self, directory: Path):
        self.exclusive = False
        self._file = open(directory / ".lock", "w")  # noqa: SIM115 (held until the end)
        if fcntl is None:
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.exclusive = True
        except OSError as error:
            if error.errno in HELD:
                self._file.close()
                got = "got a locked run; expected a free one"
                raise RunError(f"{directory} is in use by another process ({got})", 1) from None

    def release(self) -> None:
        self._file.close()

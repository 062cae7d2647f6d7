"""The signals that ask a run to stop, or to save and go on."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import Any

# those that ask a process to end: Ctrl-C, kill, a closed terminal, the limits of a batch system
STOPPING = ("SIGINT", "SIGTERM", "SIGHUP", "SIGXCPU", "SIGUSR2")
SAVING = ("SIGUSR1",)
DUPLICATE_SECONDS = 1.0  # under torchrun, Ctrl-C arrives twice: from the terminal, and at once again from torchrun


class Interrupted(BaseException):
    """A signal asked to stop while there was nothing to save; not an Exception, so that nothing takes it for a failure."""

    def __init__(self, number: int):
        super().__init__(number)
        self.number = number


class Signals:
    """Inside `with`: `STOPPING` signals ask to save and leave, `SAVING` ones to save and go on; then all is as before.

    A handler only sets a flag, `stop` or `save`, on which the training loop acts after the step. After `listen`, when
    there is nothing to save, a signal to stop raises `Interrupted` instead. A SIGINT after another signal to stop quits at
    once: it ends the process of a program, and raises KeyboardInterrupt in somebody else's.

    Signals that are ignored (nohup) stay so. Handlers belong to the main thread: in any other nothing is changed.

    Args:
        program: whether the process is this program's own.
    """

    def __init__(self, program: bool = False) -> None:
        self.program = program
        self.stop = 0  # number of the signal that asked to stop
        self.save = 0
        self._raises = False
        self._first = 0.0  # when it came
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            for names, handler in ((STOPPING, self._on_stop), (SAVING, self._on_save)):
                for number in (getattr(signal, name) for name in names if hasattr(signal, name)):
                    if signal.getsignal(number) not in (signal.SIG_IGN, None):  # None: set by other code than Python's
                        self._before[number] = signal.signal(number, handler)
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in reversed(self._before.items()):  # SIGINT last: Python's handler of it raises
            signal.signal(number, handler)

    def listen(self) -> None:
        """From here on a signal to stop raises `Interrupted`; one that came already does so now."""
        self._raises = True
        if self.stop:
            raise Interrupted(self.stop)

    def defer(self) -> None:
        """From here on a signal to stop only sets the flag."""
        self._raises = False

    def _on_stop(self, number: int, _: Any) -> None:
        if not self.stop:
            self.stop, self._first = number, time.monotonic()
            if self._raises:
                raise Interrupted(number)
            return
        duplicate = "TORCHELASTIC_RUN_ID" in os.environ and time.monotonic() - self._first < DUPLICATE_SECONDS
        if number == signal.SIGINT and not duplicate:
            if self.program:
                os._exit(128 + number)
            raise KeyboardInterrupt

    def _on_save(self, _number: int, _: Any) -> None:
        self.save = 1

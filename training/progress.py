"""What a person sees of a run while it trains."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from tqdm import tqdm

from system.terminal import print_once

SECONDS_BETWEEN_LINES = 5


class Progress:
    """A bar in a terminal; elsewhere, and in the run's log, a line every few seconds.

    Args:
        first, total: steps taken before, and steps of the whole run.
        log: appends a line to the run's log.
    """

    def __init__(self, first: int, total: int, log: Callable[[str], None]):
        self.first, self.total, self.log = first, total, log
        nowhere = True if sys.stderr is None else None  # tqdm's `disable`: True = no bar, None = none unless it is a terminal
        self.bar = tqdm(total=total, initial=first, unit="step", disable=nowhere, dynamic_ncols=True)
        self.began = self.last_line = time.perf_counter()

    def seconds(self) -> float:
        return time.perf_counter() - self.began

    def steps_per_second(self, iteration: int) -> float:
        return (iteration - self.first) / self.seconds()

    def update(self, iteration: int, status: str) -> None:
        """Show `status`, one line, after step `iteration`."""
        self.bar.set_postfix_str(status, refresh=False)
        self.bar.update(iteration - self.bar.n)
        if time.perf_counter() - self.last_line > SECONDS_BETWEEN_LINES or iteration == self.total:
            self.last_line = time.perf_counter()
            left = (self.total - iteration) / self.steps_per_second(iteration)
            time_left = f"{left:.0f} s left" if left < 100 else f"{left / 60:.0f} min left"
            line = f"step {iteration} of {self.total}: {status}" + (f", {time_left}" if left else "")
            self.log(line)
            if self.bar.disable:
                print_once(line)

    def close(self) -> None:
        self.bar.close()

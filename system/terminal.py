"""What is printed, in one process of a run, and which process this is."""

from __future__ import annotations

import os
import sys

from system.text import printable


def rank() -> int:
    """This process's number in the run; 0 writes. Known before `connect`, so that one error is printed once."""
    texts = os.environ.get("RANK", ""), os.environ.get("WORLD_SIZE", "")
    return int(texts[0]) if valid_rank(*texts) else 0


def print_once(text: str) -> None:
    """Print lines, in one process of a run; a reader that has left (`| head -1`) does not end the run."""
    if rank():
        return
    text = "\n".join(map(printable, text.split("\n")))
    try:
        print(text, flush=True)
    except UnicodeEncodeError:  # a terminal without the letters of some name
        print(text.encode(sys.stdout.encoding, "backslashreplace").decode(sys.stdout.encoding), flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def valid_rank(number: str, processes: str) -> bool:
    return number.isdecimal() and processes.isdecimal() and int(number) < int(processes)

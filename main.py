"""The command line: flags, one action, errors to exit codes.

python main.py --method maml
python main.py --method leo --set SUPPORT_SAMPLES=5
"""

from __future__ import annotations

import argparse
import gc
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import torch

from commands.compare import compare
from commands.evaluate import evaluate
from commands.mean import mean
from commands.predict import predict
from commands.train import train
from config import ConfigError, variants
from registry import METHODS, TABLE_METHODS, TASKS
from system.errors import RunError
from system.host import restore_process_state
from system.text import printable
from training import processes

MOST_SEEDS = 1000
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
Action = Callable[[argparse.Namespace], int]
ACTIONS: dict[str, Action] = {"train": train, "resume": train, "evaluate": evaluate, "predict": predict}
ACTIONS |= {"compare": compare, "mean": mean}


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise RunError(f"{message} (expected the arguments that --help lists)")


def build_parser() -> Parser:
    parser = Parser(prog="main.py", description="Gradient-based meta-learning for few-shot regression.", allow_abbrev=False)
    parser.add_argument("--method", choices=list(METHODS), nargs="+", help="one, or several; default: maml, with --data three")
    parser.add_argument("--tasks", choices=list(TASKS), help="task family; default: sinusoid")
    parser.add_argument("--data", metavar="FILE.csv", help="tasks from a table: a row for each measurement of a subject")
    parser.add_argument(
        "--columns", metavar="NAME=COLUMN", nargs="+", help="its columns, such as task=Chick x=Time y=weight [split=SPLIT]"
    )
    parser.add_argument("--config", metavar="FILE.json", type=Path, help="settings, such as a run's config.json")
    parser.add_argument(
        "--set",
        metavar="KEY=VALUE",
        nargs="+",
        action="extend",
        default=[],
        help="settings, may be repeated; KEY=A,B makes a run for each value",
    )
    parser.add_argument("--seed", metavar="N", help="RANDOM_SEED")
    parser.add_argument("--seeds", metavar="N-M", help="several runs one after another, such as 0-4 or 0,3,7; then compared")
    parser.add_argument("--device", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--output", metavar="DIR", type=Path, help="where run directories are; default: experiments")
    parser.add_argument("--name", help="name of the run directory instead of the time")
    parser.add_argument("--points", metavar="FILE.csv", type=Path, help="what --predict adapts to: a table of x and y")
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--resume", metavar="RUN", help="continue a run: its directory, or latest")
    action.add_argument("--evaluate", metavar="RUN", help="evaluate and draw a run's best.pt again")
    action.add_argument("--predict", metavar="RUN", help="adapt a run's best.pt to the points of --points")
    action.add_argument("--compare", metavar="RUN", nargs="+", help="finished runs side by side")
    action.add_argument("--mean", metavar="RUN", nargs="+", help="the mean of finished runs on the same tasks, as a run")
    return parser


def parse_arguments(parser: Parser, argv: list[str]) -> argparse.Namespace:
    """The arguments, as far as they make sense together; `action` is the flag that says what to do. Raises `RunError`."""
    args = parser.parse_args(argv)
    args.action = next((name for name in ACTIONS if getattr(args, name, None) is not None), "train")
    args.methods = args.method or (TABLE_METHODS if args.action == "train" and args.data else [])
    args.method = args.methods[0] if args.methods else None
    if args.name is not None and not NAME.fullmatch(args.name):
        got = repr(args.name[:60])
        raise RunError(f"--name can't be used (got {got}; expected letters, digits, '.', '_' and '-', at most 100)")
    for name in ("resume", "evaluate", "predict", "data"):
        if getattr(args, name) == "":
            raise RunError(f"--{name} needs a name (got an empty one; expected a run or a file)")
    given = [f"--{name}" for name in ("data", "columns", "name", "config", "seeds") if getattr(args, name) is not None]
    if args.action == "mean" and "--name" in given:
        given.remove("--name")
    if args.action != "train" and given:
        raise RunError(f"a run that exists has its table, name and settings (got {', '.join(given)}; expected none of these)")
    if (args.points is None) == (args.action == "predict"):
        got = "--predict" if args.points is None else "--points"
        raise RunError(f"--predict RUN and --points FILE.csv go together (got {got} alone; expected both)")
    if args.action in ("compare", "mean") and (args.method or args.tasks or args.set or args.seed or args.device):
        raise RunError(f"--{args.action} takes runs as they are (got settings; expected at most --output)")
    check_several(args)
    args.seeds = None if args.seeds is None else seed_list(args.seeds)
    return args


def check_several(args: argparse.Namespace) -> None:
    """Raise `RunError` for several seeds or methods where there can be only one."""
    if args.seeds is not None and (args.seed is not None or any(text.startswith("RANDOM_SEED=") for text in args.set)):
        raise RunError("--seeds sets RANDOM_SEED (got another seed as well; expected one of them)")
    if args.seeds is not None and "RANK" in os.environ:
        raise RunError("--seeds runs in one process (got several; expected one launch for each seed)")
    if "RANK" in os.environ and args.action == "train" and len(variants(args.set)) > 1:
        raise RunError(
            "several values of a setting are tried in one process (got several processes; expected one launch for each)"
        )
    repeated = len(set(args.methods)) < len(args.methods)
    if len(args.methods) > 1 and (args.action != "train" or "RANK" in os.environ or repeated):
        got = " ".join(args.methods)
        raise RunError(f"several methods are trained one after another, anew (got --method {got}; expected one here)")


def seed_list(text: str) -> list[int]:
    """The seeds of a text such as "0-4" or "0,3,7-9", each once; raises `RunError`."""
    seeds: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"(\d{1,20})(?:-(\d{1,20}))?", part.strip(), re.ASCII)
        first, last = (int(found[1]), int(found[2] or found[1])) if found else (0, -1)
        seeds += range(first, min(last, first + MOST_SEEDS) + 1)
        if last < first or len(seeds) > MOST_SEEDS or len(set(seeds)) < len(seeds):
            expected = f"expected such as 0-4 or 0,3,7, at most {MOST_SEEDS} seeds"
            raise RunError(f"--seeds can't be used (got {text[:40]!r}; {expected})")
    return seeds


def main(argv: list[str] | None = None) -> int:
    """Run one command line; returns the exit code. Errors become one line on stderr.

    Args:
        argv: the arguments, where it is called in somebody else's process, whose state is put back; None = those of
            this program.
    """
    try:
        args = parse_arguments(build_parser(), sys.argv[1:] if argv is None else argv)
        args.program, args.command = argv is None, sys.argv if argv is None else ["main.py", *argv]
        with restore_process_state():
            return ACTIONS[args.action](args)
    except KeyboardInterrupt:  # where nothing is being trained, there is nothing to save
        return 128 + signal.SIGINT
    except (ConfigError, RunError) as error:
        message, code = str(error), error.code
    except (MemoryError, torch.cuda.OutOfMemoryError) as error:
        got = " ".join(str(error).split())[:200] or type(error).__name__
        message, code = f"out of memory (got {got}; expected smaller settings)", 1
    except OSError as error:
        got = error.filename or "an output"
        message, code = f"{error.strerror or error} (got {got}; expected a disk that can be written)", 1
    if not processes.rank():  # one line, however many processes
        print("error: " + printable(" ".join(message.split())), file=sys.stderr)
    return code


def open_streams() -> None:
    """Nowhere instead of a standard stream that is closed, as in some services: the next file would take its place."""
    while (stream := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(stream, True)  # by the compiler's processes
    os.close(stream)
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115


if __name__ == "__main__":
    open_streams()
    code = main()
    gc.freeze()  # a process that ends need not look for garbage, which takes a second
    sys.exit(code)

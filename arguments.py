"""The words of the command line, and what can be checked before anything is opened.

This file knows the flags; it refuses to know what is done with them, and takes the names of methods and task
families from whoever calls.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

from config import parse_assignment
from results_manager import RunError

EXPERIMENTS = Path(__file__).resolve().parent / "experiments"
MOST_SEEDS = 1000
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise RunError(f"{message} (expected the arguments that --help lists)")


def build_parser(methods: Iterable[str], tasks: Iterable[str]) -> Parser:
    parser = Parser(prog="main.py", description="Meta-learning for few-shot regression: MAML and LEO.", allow_abbrev=False)
    parser.add_argument("--method", choices=sorted(methods), help="default: maml")
    parser.add_argument("--tasks", choices=sorted(tasks), help="task family; default: sinusoid")
    parser.add_argument("--config", metavar="FILE.json", type=Path, help="settings, such as a run's config.json")
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="one setting; may be repeated")
    parser.add_argument("--seed", metavar="N", help="RANDOM_SEED")
    parser.add_argument("--seeds", metavar="N-M", help="several runs one after another, such as 0-4 or 0,3,7; then compared")
    parser.add_argument("--device", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--output", metavar="DIR", type=Path, help="where run directories are; default: experiments")
    parser.add_argument("--name", help="name of the run directory instead of the time")
    parser.add_argument("--points", metavar="FILE.csv", type=Path, help="what --predict adapts to: columns x and y")
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--resume", metavar="RUN", help="continue a run: its directory, or latest")
    action.add_argument("--evaluate", metavar="RUN", help="evaluate and draw a run's best.pt again")
    action.add_argument("--predict", metavar="RUN", help="adapt a run's best.pt to the points of --points")
    action.add_argument("--compare", metavar="RUN", nargs="+", help="finished runs side by side")
    return parser


def parse_arguments(parser: Parser, argv: list[str]) -> argparse.Namespace:
    """The arguments, as far as they make sense together; `action` is the flag that says what to do. Raises `RunError`."""
    args = parser.parse_args(argv)
    args.action = next((name for name in ("resume", "evaluate", "predict", "compare") if getattr(args, name)), "train")
    for name in ("resume", "evaluate", "predict"):
        if getattr(args, name) == "":
            raise RunError(f"--{name} needs a run (got an empty name; expected a run directory, or latest)")
    if args.name is not None and not NAME.fullmatch(args.name):
        raise RunError(
            f"--name can't be used (got {args.name[:60]!r}; expected letters, digits, '.', '_' and '-', at most 100)"
        )
    if args.action != "train" and (args.name or args.config or args.seeds is not None):
        raise RunError("a run that exists has its name and settings (got --name, --config or --seeds; expected none)")
    if (args.points is None) == (args.action == "predict"):
        raise RunError("--predict RUN and --points FILE.csv go together (got one; expected both)")
    if args.action == "compare" and (args.method or args.tasks or args.set or args.seed or args.device):
        raise RunError("--compare takes runs as they are (got settings; expected at most --output)")
    if args.seeds is not None:
        if args.seed is not None or any(text.startswith("RANDOM_SEED=") for text in args.set):
            raise RunError("--seeds sets RANDOM_SEED (got another seed as well; expected one of them)")
        if "RANK" in os.environ:
            raise RunError("--seeds runs in one process (got several; expected one launch for each seed)")
    args.seeds = None if args.seeds is None else seed_list(args.seeds)
    return args


def seed_list(text: str) -> list[int]:
    """The seeds of a text such as "0-4" or "0,3,7-9", each once; raises `RunError`."""
    refusal = RunError(f"--seeds can't be used (got {text[:40]!r}; expected such as 0-4 or 0,3,7, at most {MOST_SEEDS} seeds)")
    seeds: list[int] = []
    for part in text.split(","):
        if not (found := re.fullmatch(r"(\d{1,20})(?:-(\d{1,20}))?", part.strip(), re.ASCII)):
            raise refusal
        first, last = int(found[1]), int(found[2] or found[1])
        if not first <= last < first + MOST_SEEDS:
            raise refusal
        seeds += range(first, last + 1)
    if len(set(seeds)) < len(seeds) or len(seeds) > MOST_SEEDS:
        raise refusal
    return seeds


def overrides(args: argparse.Namespace) -> dict[str, Any]:
    """The settings given on the command line: named flags, and --set, which wins. Raises `ConfigError`."""
    named = {}
    if args.seed is not None:
        named["RANDOM_SEED"] = parse_assignment(f"RANDOM_SEED={args.seed}")[1]
    if args.device is not None:
        named["DEVICE"] = args.device
    return named | dict(parse_assignment(text) for text in args.set)

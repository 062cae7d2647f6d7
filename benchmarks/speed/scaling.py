"""What a meta-iteration costs as the work grows: time and peak memory.

    python benchmarks/speed/scaling.py
    python benchmarks/speed/scaling.py --axes tasks steps
    python benchmarks/speed/scaling.py --quick

MAML along four axes (meta-batch size, inner steps, shots, hidden units), everything else at its default, and first-order
MAML along the inner steps. Each point is measured in a process of its own; one that takes more memory or time than there is
is left out, with the reason. Prints tables; writes them into RESULTS.md, and scaling.json.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the project, wherever the script is called from

from benchmarks.common import filled, machine, machine_line, new_parser, parse, progress, table, write
from benchmarks.speed.child import Child, MeasurementError
from benchmarks.speed.measure import measure_step
from benchmarks.speed.work import Case
from config import Config
from registry import defaults


class Axis(NamedTuple):
    """What is varied."""

    title: str
    key: str
    values: tuple[int, ...]
    quick: tuple[int, ...]
    first_order: bool = False


AXES = {
    "tasks": Axis("tasks in a meta-batch", "META_BATCH_SIZE", (25, 100, 400, 1600, 6400, 25600), (2, 4)),
    "steps": Axis("inner steps", "INNER_STEPS", (1, 2, 5, 10, 20), (1, 2)),
    "first-order-steps": Axis("inner steps, first order", "INNER_STEPS", (1, 2, 5, 10, 20), (1, 2), first_order=True),
    "shots": Axis("shots", "SUPPORT_SAMPLES", (5, 10, 50, 100, 500), (10,)),
    "hidden": Axis("hidden units", "HIDDEN_DIM", (40, 80, 160, 320, 512), (40,)),
}
Point = dict[str, Any]  # what measure_step returns, with "value"; or "value" and "left_out", the reason


# ---- measuring


def measure_axis(axis: Axis, args: argparse.Namespace, known: dict[Config, Point]) -> list[Point]:
    """The points along an axis; `known` are those that were measured already: several axes share one."""
    points = []
    for value in axis.quick if args.quick else axis.values:
        progress(f"{axis.title}: {value}")
        settings = {"META_BATCH_SIZE": args.tasks, "FIRST_ORDER": axis.first_order, axis.key: value}
        config = Config.resolve(defaults("maml", "sinusoid"), settings)
        try:
            if config not in known:
                known[config] = measure_point(settings, args)
            points.append({"value": value} | known[config])
        except MeasurementError as error:
            points.append({"value": value, "left_out": str(error)})
    return points


def measure_point(settings: dict[str, Any], args: argparse.Namespace) -> Point:
    case, tasks = Case("", "maml", settings), settings["META_BATCH_SIZE"]
    with Child() as child:
        point = child.call(measure_step, case, tasks, args.device, args.compile, args.seconds, args.threads)
    return dict(point) | {"us_per_task": 1000 * point["ms"] / tasks}


# ---- output


def axis_text(axis: Axis, points: Sequence[Point]) -> str:
    """A row for each point that was measured, and a line for each that was not."""
    columns = ["ms", "us / task", "step MiB", "process MiB", "threads", "start s"]
    rows = []
    for point in points:
        if "left_out" not in point:
            times = [f"{point['ms']:.3f}", f"{point['us_per_task']:.1f}"]
            memory = [f"{point['peak_mib']:.1f}", f"{point['process_mib']:.0f}"]
            rows.append([f"{point['value']:,}", *times, *memory, str(point["threads"]), f"{point['start_seconds']:.0f}"])
    left_out = [f"left out: {point['value']:,}: {point['left_out']}" for point in points if "left_out" in point]
    return "\n\n".join([axis.title, table([axis.title, *columns], rows), *left_out])


# ---- the command


def main(argv: Sequence[str] | None = None) -> int:
    parser = new_parser(__doc__, device=True)
    parser.add_argument("--axes", nargs="+", choices=list(AXES), default=list(AXES), metavar="AXIS", help="default: all")
    parser.add_argument("--tasks", type=int, help="tasks in a meta-batch where that is not the axis; default: 25")
    parser.add_argument("--seconds", type=float, help="to time each point for; default: 2")
    parser.add_argument("--compile", choices=["always", "never"], help="default: always; with --quick never")
    usual = {"tasks": 25, "seconds": 2.0, "compile": "always"}
    args = parse(parser, argv, usual, {"tasks": 2, "seconds": 0.1, "compile": "never"})
    about, known = machine(args.device), dict[Config, Point]()
    options = {key: getattr(args, key) for key in ("tasks", "seconds", "compile", "threads", "quick")}
    series = {name: measure_axis(AXES[name], args, known) for name in args.axes}
    record = {"schema_version": 2, "machine": about, "options": options, "series": series}
    text = "\n\n".join([machine_line(about), *(axis_text(AXES[name], points) for name, points in series.items())])
    print(text)
    document = filled(args.output, "benchmarks/RESULTS.md", {"scaling.py": text})
    write(args.output, {"benchmarks/results/scaling.json": record, "benchmarks/RESULTS.md": document})
    return 0


if __name__ == "__main__":
    sys.exit(main())

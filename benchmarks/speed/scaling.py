"""What a meta-iteration costs as the work grows: time, peak memory, and the share of the machine's limits that is reached.

    python benchmarks/speed/scaling.py
    python benchmarks/speed/scaling.py --axes tasks steps
    python benchmarks/speed/scaling.py --quick

MAML along four axes (meta-batch size, inner steps, shots, hidden units), everything else at its default, and first-order
MAML along the inner steps. The machine's rates of a large matrix product and of a large copy are measured in the same run.
The limit is the time that the matrix products of an iteration would take at these rates, each operand read and each result
written once. It is no strict bound: memory that fits into a cache is faster than the copy, and fused products pass through
memory less often. Each point is measured in a process of its own; one that takes more memory or time than there is is left
out, with the reason. Prints tables; writes them into RESULTS.md, and scaling.json and scaling.png.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the project, wherever the script is called from

from matplotlib.figure import Figure

from benchmarks.common import (
    add_device_flags,
    add_output_flag,
    machine,
    machine_line,
    new_parser,
    parse,
    progress,
    table,
    with_part,
    write,
)
from benchmarks.speed.child import Child, MeasurementError
from benchmarks.speed.measure import machine_rates, measure_step
from benchmarks.speed.work import Case
from config import Config
from maml import MAML
from visualization import BLUE, GREEN, VERMILION, figure_grid


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


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """The record: the machine's rates for each number of threads, and the points along each axis."""
    counts = sorted({1, args.threads}) if args.device == "cpu" else [args.threads]
    with Child() as child:
        rates = {str(count): child.call(machine_rates, args.device, count, args.quick) for count in counts}
    options = {key: getattr(args, key) for key in ("tasks", "seconds", "compile", "threads", "quick")}
    known: dict[Config, Point] = {}
    series = {name: measure_axis(AXES[name], args, rates, known) for name in args.axes}
    return {"schema_version": 2, "machine": machine(args.device), "options": options, "rates": rates, "series": series}


def measure_axis(axis: Axis, args: argparse.Namespace, rates: Mapping[str, Any], known: dict[Config, Point]) -> list[Point]:
    """The points along an axis; `known` are those that were measured already: several axes share one."""
    points = []
    for value in axis.quick if args.quick else axis.values:
        progress(f"{axis.title}: {value}")
        settings = {"META_BATCH_SIZE": args.tasks, "FIRST_ORDER": axis.first_order, axis.key: value}
        config = Config.resolve(MAML.defaults, settings)
        try:
            if config not in known:
                known[config] = measure_point(settings, args, rates)
            points.append({"value": value} | known[config])
        except MeasurementError as error:
            points.append({"value": value, "left_out": str(error)})
    return points


def measure_point(settings: dict[str, Any], args: argparse.Namespace, rates: Mapping[str, Any]) -> Point:
    """A point, with the shares that it reaches of the machine's rates with as many threads."""
    case, tasks = Case("", MAML, settings), settings["META_BATCH_SIZE"]
    with Child() as child:
        point = child.call(measure_step, case, tasks, args.device, args.compile, args.seconds, args.threads)
    most = rates.get(str(point["threads"])) or rates[str(args.threads)]
    seconds = point["ms"] / 1000
    of_product = point["flops"] / most["flops_per_second"] / seconds
    of_copy = point["bytes"] / most["bytes_per_second"] / seconds
    shares = {"of_product_rate": of_product, "of_copy_rate": of_copy, "of_limit": max(of_product, of_copy)}
    return dict(point) | {"us_per_task": 1000 * point["ms"] / tasks} | shares


# ---- output


def measured(points: Sequence[Point]) -> list[Point]:
    return [point for point in points if "left_out" not in point]


def axis_text(axis: Axis, points: Sequence[Point]) -> str:
    """A row for each point that was measured, and a line for each that was not."""
    columns = ["ms", "us / task", "step MiB", "process MiB", "GFLOP/s", "of product", "of copy", "threads", "start s"]
    rows = [
        [
            f"{point['value']:,}",
            f"{point['ms']:.3f}",
            f"{point['us_per_task']:.1f}",
            f"{point['peak_mib']:.1f}" if math.isfinite(point["peak_mib"]) else "?",
            f"{point['process_mib']:.0f}",
            f"{point['flops'] / point['ms'] / 1e6:.1f}",
            f"{point['of_product_rate']:.0%}",
            f"{point['of_copy_rate']:.0%}",
            str(point["threads"]),
            f"{point['start_seconds']:.0f}",
        ]
        for point in measured(points)
    ]
    left_out = [f"left out: {point['value']:,}: {point['left_out']}" for point in points if "left_out" in point]
    return "\n\n".join([axis.title, table([axis.title, *columns], rows), *left_out])


def results_text(record: Mapping[str, Any]) -> str:
    """The part of RESULTS.md."""
    lines = [machine_line(record["machine"])]
    for threads, rates in record["rates"].items():
        product, copy = rates["flops_per_second"] / 1e9, rates["bytes_per_second"] / 1e9
        lines.append(f"this machine, {threads} threads: matrix product {product:.1f} GFLOP/s, copy {copy:.1f} GB/s")
    return "\n\n".join(["\n".join(lines), *(axis_text(AXES[name], points) for name, points in record["series"].items())])


def draw(record: Mapping[str, Any]) -> Figure:
    """Above, time per task and the limit; below, what a step adds to memory: one column an axis, both logarithmic."""
    keys = list(dict.fromkeys(AXES[name].key for name in record["series"]))
    figure, axes = figure_grid(2, len(keys), 2.6 * len(keys) + 0.6, 5.2, sharex="col", sharey="row")
    handles = {}
    for name, points in record["series"].items():
        axis, points = AXES[name], measured(points)
        time, memory = axes[:, keys.index(axis.key)]
        x = [point["value"] for point in points]
        color, label = (GREEN, "first order") if axis.first_order else (BLUE, "second order")
        handles[label] = time.plot(x, [point["us_per_task"] for point in points], "o-", color=color, ms=4)[0]
        # a step that adds less than a page has no place on a logarithmic axis
        memory.plot(x, [max(point["peak_mib"], 1 / 256) for point in points], "o-", color=color, ms=4)
        if not axis.first_order:
            limits = [point["us_per_task"] * point["of_limit"] for point in points]
            handles["the machine's limit, second order"] = time.plot(x, limits, "--", color=VERMILION, lw=1.2)[0]
            memory.set_xlabel(axis.title)
    for panel in axes.flat:
        panel.set(xscale="log", yscale="log")
        ticks = sorted({x for line in panel.lines for x in line.get_xdata()})
        panel.set_xticks(ticks, [f"{x:g}" for x in ticks], fontsize=7)
        panel.set_xticks([], minor=True)
    axes[0, 0].set_ylabel("microseconds a task")
    axes[1, 0].set_ylabel("MiB that a step adds at its peak")
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3)
    figure.suptitle(f"MAML, {record['options']['tasks']} tasks where not varied, {record['machine']['device']}")
    return figure


# ---- the command


def main(argv: Sequence[str] | None = None) -> int:
    parser = new_parser(__doc__)
    parser.add_argument("--axes", nargs="+", choices=list(AXES), default=list(AXES), metavar="AXIS", help="default: all")
    parser.add_argument("--tasks", type=int, help="tasks in a meta-batch where that is not the axis; default: 25")
    parser.add_argument("--seconds", type=float, help="to time each point for; default: 2")
    parser.add_argument("--compile", choices=["always", "never"], help="default: always; with --quick never")
    add_device_flags(parser)
    add_output_flag(parser)
    usual = {"tasks": 25, "seconds": 2.0, "compile": "always"}
    args = parse(parser, argv, usual, {"tasks": 2, "seconds": 0.1, "compile": "never"})
    record = measure(args)
    text = results_text(record)
    print(text)
    results = {"scaling.json": record, "scaling.png": draw(record)}
    contents: dict[str, Any] = {f"benchmarks/results/{name}": content for name, content in results.items()}
    contents["benchmarks/RESULTS.md"] = with_part(args.output / "benchmarks" / "RESULTS.md", "scaling.py", text)
    write(args.output, contents)
    return 0


if __name__ == "__main__":
    sys.exit(main())

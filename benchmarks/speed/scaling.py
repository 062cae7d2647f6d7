"""What a meta-iteration costs as the work grows: time, peak memory, and the share of the machine's limits that is reached.

    python benchmarks/speed/scaling.py
    python benchmarks/speed/scaling.py --axes tasks steps --max-gib 16
    python benchmarks/speed/scaling.py --quick

MAML along four axes (meta-batch size, inner steps, shots, hidden units), everything else at its default, and first-order
MAML along the inner steps. Along a fifth axis a large meta-batch is shared by several processes, each on one thread. The
machine's rates of a large matrix product and of a large copy are measured in the same run. The limit is the time that the
matrix products of an iteration would take at these rates, each operand read and each result written once. It is no strict
bound: memory that fits into a cache is faster than the copy, and fused products pass through memory less often. Each point is
measured in a process of its own. Prints tables; writes scaling.json and scaling.png.
"""

from __future__ import annotations

import argparse
import math
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the project, wherever the script is called from

import matplotlib
import torch
from matplotlib.figure import Figure

from benchmarks.common import add_common_flags, check_flags, machine, machine_line, progress, save, set_defaults, table
from benchmarks.speed.child import Child, MeasurementError, answer
from benchmarks.speed.measure import machine_rates, measure_step, train_as_peer
from benchmarks.speed.work import Case
from config import Config
from maml import MAML
from visualization import BLUE, GREEN, STYLE, VERMILION


class Axis(NamedTuple):
    """What is varied; `power`: time and memory grow at most like this power of the value."""

    title: str
    key: str
    values: tuple[int, ...]
    quick: tuple[int, ...]
    power: int = 1


AXES = {
    "tasks": Axis("tasks in a meta-batch", "META_BATCH_SIZE", (25, 100, 400, 1600, 6400, 25600), (2, 4)),
    "steps": Axis("inner steps", "INNER_STEPS", (1, 2, 5, 10, 20), (1, 2)),
    "shots": Axis("shots", "SUPPORT_SAMPLES", (5, 10, 50, 100, 500), (10,)),
    "hidden": Axis("hidden units", "HIDDEN_DIM", (40, 80, 160, 320, 512), (40,), power=2),
}
SHARED_TASKS = 1600  # in a meta-batch that several processes share: with 25 they would only wait for each other
Point = dict[str, Any]  # what measure_step returns, with "value"; or "value" and "skipped", the reason


# ---- measuring


def in_child(function: Callable[..., Any], *arguments: Any, timeout: float = 300.0) -> Any:
    """What the function returns in a process of its own; raises `MeasurementError` where it fails."""
    with Child(answer, function, *arguments) as child:
        return child.receive(timeout)


def in_several_children(world: int, *arguments: Any, timeout: float = 300.0) -> Any:
    """What process 0 of `world` processes that train together returns."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with ExitStack() as stack:
        children = [Child(answer, train_as_peer, rank, world, port, *arguments) for rank in range(world)]
        for child in children:
            stack.enter_context(child)
        first, *_ = [child.receive(timeout) for child in children]
        return first


def reason_to_skip(before: Point | None, growth: float, steps_growth: float, args: argparse.Namespace) -> str:
    """Why a point is not measured, predicted from a smaller one on its axis; "" where it fits the limits."""
    if before is None:
        return ""
    gib = growth * max(before["peak_mib"], 0.0) / 1024 + before["process_mib"] / 1024
    if gib > args.max_gib:
        return f"predicted to take {gib:.1f} GiB (--max-gib {args.max_gib:g})"
    # compiling takes longer for more inner steps, which are unrolled, and for nothing else
    seconds = steps_growth * before["start_seconds"] + 8 * growth * before["ms"] / 1000
    if seconds > args.max_seconds:
        return f"predicted to take {seconds:.0f} s (--max-seconds {args.max_seconds:g})"
    return ""


class Sweep:
    """Measures series of points; a point that several series share is measured once."""

    def __init__(self, args: argparse.Namespace):
        self.args, self.known = args, dict[str, Point]()
        counts = sorted({1, args.threads}) if args.device == "cpu" else [args.threads]
        self.rates = {str(count): in_child(machine_rates, args.device, count, args.quick) for count in counts}

    def series(self, name: str, settings: Mapping[str, Any]) -> list[Point]:
        """The points along the axis `name`, for MAML with some `settings`."""
        axis, args = AXES[name], self.args
        points: list[Point] = []
        last: Point | None = None
        for value in axis.quick if args.quick else axis.values:
            growth = (value / last["value"]) ** axis.power if last else 1.0
            reason = reason_to_skip(last, growth, growth if name == "steps" else 1.0, args)
            if not reason:
                progress(f"{axis.title}: {value}")
                try:
                    last = {"value": value} | self.point(dict(settings) | {axis.key: value})
                except MeasurementError as error:
                    reason = str(error)
            points.append({"value": value, "skipped": reason} if reason else dict(last or {}))
        return points

    def point(self, settings: dict[str, Any]) -> Point:
        args, tasks = self.args, settings["META_BATCH_SIZE"]
        key = repr(Config.resolve(MAML.defaults, settings))
        if key not in self.known:
            work = Case("", MAML, settings), tasks, args.device, args.compile, args.seconds, args.threads
            point = in_child(measure_step, *work, timeout=2 * args.max_seconds)
            self.known[key] = point | {"us_per_task": 1000 * point["ms"] / tasks} | self.limits(point)
        return self.known[key]

    def shared(self) -> list[Point]:
        """One meta-batch shared by 1, 2, 4, ... processes, as many as there are threads."""
        args, tasks = self.args, 8 if self.args.quick else SHARED_TASKS
        points: list[Point] = []
        for world in (count for count in (1, 2, 4, 8, 16) if count <= args.threads):
            progress(f"processes: {world}")
            try:
                work = Case("", MAML, {}), tasks, args.device, args.compile, args.seconds
                point = in_several_children(world, *work, timeout=2 * args.max_seconds)
                points.append({"value": world, "us_per_task": 1000 * point["ms"] / tasks} | point)
            except MeasurementError as error:
                points.append({"value": world, "skipped": str(error)})
        return points

    def limits(self, point: Point) -> dict[str, float]:
        """Rates reached, as fractions of the machine's with the same number of threads."""
        rates = self.rates.get(str(point["threads"])) or self.rates[str(self.args.threads)]
        product_ms = 1000 * point["flops"] / rates["flops_per_second"]
        copy_ms = 1000 * point["bytes"] / rates["bytes_per_second"]
        of_product, of_copy = product_ms / point["ms"], copy_ms / point["ms"]
        return {
            "limit_ms": max(product_ms, copy_ms),
            "of_product_rate": of_product,
            "of_copy_rate": of_copy,
            "of_limit": max(of_product, of_copy),
        }


# ---- output


def print_table(title: str, header: Sequence[str], points: Sequence[Point], cells: Callable[[Point], list[str]]) -> None:
    """A row for each point that was measured, and a line for each that was not; header[0] says what is varied."""
    rows = [[f"{point['value']:,}", *cells(point)] for point in measured(points)]
    print(f"\n{title}\n\n{table(header, rows)}", flush=True)
    for point in points:
        if "skipped" in point:
            print(f"skipped: {point['value']:,} {header[0]}: {point['skipped']}", flush=True)


def measured(points: Sequence[Point]) -> list[Point]:
    return [point for point in points if "skipped" not in point]


def print_series(title: str, points: Sequence[Point], what: str) -> None:
    def cells(point: Point) -> list[str]:
        peak = point["peak_mib"]
        return [
            f"{point['ms']:.3f}",
            f"{point['us_per_task']:.1f}",
            f"{peak:.1f}" if math.isfinite(peak) else "?",
            f"{point['process_mib']:.0f}",
            f"{point['flops'] / point['ms'] / 1e6:.1f}",
            f"{point['of_product_rate']:.0%}",
            f"{point['of_copy_rate']:.0%}",
            str(point["threads"]),
            f"{point['start_seconds']:.0f}",
        ]

    columns = ["ms", "us / task", "step MiB", "process MiB", "GFLOP/s", "of product", "of copy", "threads", "start s"]
    print_table(title, [what, *columns], points, cells)


def print_shared(points: Sequence[Point], tasks: int) -> None:
    first = next((point["ms"] for point in measured(points)), math.nan)

    def cells(point: Point) -> list[str]:
        low, high = point["range_ms"]
        spread = f"{low:.2f} - {high:.2f}"
        return [f"{point['ms']:.2f}", spread, f"{point['us_per_task']:.1f}", f"{first / point['ms']:.2f}x"]

    header = ["processes", "ms", "lowest - highest", "us / task", "speed"]
    print_table(f"{tasks} tasks shared by processes", header, points, cells)


@matplotlib.rc_context(STYLE)
def draw(record: Mapping[str, Any]) -> Figure:
    """Above, time per task and the limit; below, what a step adds to memory: one column an axis, both logarithmic."""
    names = list(dict.fromkeys(series["axis"] for series in record["series"]))
    figure = Figure(figsize=(2.6 * len(names) + 0.6, 5.2), layout="constrained")
    axes = figure.subplots(2, len(names), squeeze=False, sharex="col", sharey="row")
    handles = {}
    for series in record["series"]:
        time, memory = axes[:, names.index(series["axis"])]
        points = measured(series["points"])
        x = [point["value"] for point in points]
        color, label = (GREEN, "first order") if series["first_order"] else (BLUE, "second order")
        handles[label] = time.plot(x, [point["us_per_task"] for point in points], "o-", color=color, ms=4)[0]
        # a step that adds less than a page has no place on a logarithmic axis
        memory.plot(x, [max(point["peak_mib"], 1 / 256) for point in points], "o-", color=color, ms=4)
        if not series["first_order"]:
            limits = [point["us_per_task"] * point["of_limit"] for point in points]
            handles["the machine's limit, second order"] = time.plot(x, limits, "--", color=VERMILION, lw=1.2)[0]
        memory.set_xlabel(AXES[series["axis"]].title)
    for axis in axes.flat:
        axis.set(xscale="log", yscale="log")
        axis.grid(alpha=0.25, lw=0.5)
        ticks = sorted({x for line in axis.lines for x in line.get_xdata()})
        axis.set_xticks(ticks, [f"{x:g}" for x in ticks], fontsize=7)
        axis.set_xticks([], minor=True)
    axes[0, 0].set_ylabel("microseconds a task")
    axes[1, 0].set_ylabel("MiB that a step adds at its peak")
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3)
    figure.suptitle(f"MAML, {record['options']['tasks']} tasks where not varied, {record['machine']['device']}")
    return figure


# ---- the command


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0], allow_abbrev=False)
    parser.add_argument("--axes", nargs="+", choices=list(AXES), metavar="AXIS", help=f"of {', '.join(AXES)}; default: all")
    parser.add_argument("--no-processes", dest="processes", action="store_false", help="leave out the axis of processes")
    parser.add_argument("--tasks", type=int, help="tasks in a meta-batch where that is not the axis; default: 25")
    parser.add_argument("--seconds", type=float, help="to time each point for; default: 2")
    parser.add_argument("--compile", choices=["always", "never"], help="default: always; with --quick never")
    parser.add_argument(
        "--max-gib", type=float, help="skip points predicted to take more; default: 4, on CUDA 3/4 of the device"
    )
    parser.add_argument("--max-seconds", type=float, default=120.0, help="skip points predicted to take longer; default: 120")
    add_common_flags(parser)
    args = parser.parse_args(argv)
    check_flags(parser, args, ("tasks", "seconds", "max_gib", "max_seconds"))
    memory = 4.0 if args.device == "cpu" else 0.75 * torch.cuda.get_device_properties(args.device).total_memory / 2**30
    quick, usual = {"tasks": 2, "seconds": 0.1, "compile": "never"}, {"tasks": 25, "seconds": 2.0, "compile": "always"}
    set_defaults(args, {"axes": list(AXES), "max_gib": memory} | (quick if args.quick else usual))
    return args


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    args.output.mkdir(parents=True, exist_ok=True)  # before the minutes of work: it may not be possible
    options = {key: getattr(args, key) for key in ("tasks", "seconds", "compile", "max_gib", "max_seconds", "threads", "quick")}
    record: dict[str, Any] = {"schema_version": 1, "machine": machine(args.device), "options": options}
    print(machine_line(record["machine"]), flush=True)
    sweep = Sweep(args)
    for threads, rates in sweep.rates.items():
        product, copy = rates["flops_per_second"] / 1e9, rates["bytes_per_second"] / 1e9
        print(f"this machine, {threads} threads: matrix product {product:.1f} GFLOP/s, copy {copy:.1f} GB/s", flush=True)
    record |= {"rates": sweep.rates, "series": []}
    for name in dict.fromkeys(args.axes):
        for first_order in (False, True) if name == "steps" else (False,):
            title = f"{AXES[name].title}{', first order' if first_order else ''}"
            series = sweep.series(name, {"META_BATCH_SIZE": args.tasks, "FIRST_ORDER": first_order})
            record["series"].append({"axis": name, "first_order": first_order, "points": series})
            print_series(title, series, AXES[name].title)
    if args.processes:
        record["shared"] = sweep.shared()
        print_shared(record["shared"], 8 if args.quick else SHARED_TASKS)
    save(args.output, "scaling", record, draw(record))
    return 0


if __name__ == "__main__":
    sys.exit(main())

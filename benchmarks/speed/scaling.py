"""What a meta-iteration costs as the work grows: time, peak memory, and how close it comes to the machine's limits.

    python benchmarks/speed/scaling.py
    python benchmarks/speed/scaling.py --axes tasks steps --max-gib 16
    python benchmarks/speed/scaling.py --quick

MAML along four axes (meta-batch size, inner steps, shots, hidden units), everything else at its default, and
first-order MAML along the inner steps. Each point has a process of its own. Along a fifth axis a large meta-batch is
shared by several processes, each on one thread. The machine's rates of a large matrix
product and of a large copy are measured in the same run. The limit is what the matrix products of an iteration
would take at these rates, each operand read and each result written once, if all else were free; memory that
fits into a cache is faster than the copy, and fused products pass through memory less often, so the limit is a
yardstick, not a proof. Prints tables; writes scaling.json and scaling.png. This file refuses to know how a point
is measured.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import socket
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import torch
from matplotlib.figure import Figure
from points import in_process, peer
from report import add_common, check_common, heading, machine, progress, save, say, table
from work import PRELOAD, Case

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
PROCESSES = "processes"
SHARED_TASKS = 1600  # in a meta-batch that several processes share: with 25 they would only wait for each other
Point = dict[str, Any]  # what points.measure returns, with "value"; or "value" and "skipped", the reason


class Child:
    """Runs functions of points.py, each in a fresh process; raises RuntimeError with the reason where one fails."""

    def __init__(self) -> None:
        self.context = multiprocessing.get_context("forkserver")  # a fork of this process would start with its memory
        self.context.set_forkserver_preload(PRELOAD)

    def __call__(self, function: str, *arguments: Any, timeout: float = 300.0) -> Any:
        return self._answer([(in_process, (function, arguments))], timeout)

    def together(self, world: int, *arguments: Any, timeout: float = 300.0) -> Any:
        """What process 0 of `world` processes that run `points.peer` answers."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        return self._answer([(peer, (rank, world, port, *arguments)) for rank in range(world)], timeout)

    def _answer(self, calls: Sequence[tuple[Any, tuple[Any, ...]]], timeout: float) -> Any:
        """Start a process for each function and its arguments after the connection; the one answer that comes."""
        connection, other = self.context.Pipe()
        processes = [
            self.context.Process(target=function, args=(other, *arguments), daemon=True) for function, arguments in calls
        ]
        for process in processes:
            process.start()
        other.close()
        try:
            if not connection.poll(timeout):
                raise RuntimeError(f"it took longer than {timeout:.0f} s")
            good, answer = connection.recv()
        except EOFError:
            raise RuntimeError("its process died, as one does that takes too much memory") from None
        else:
            for process in processes:
                process.join(20)  # a compiler's own helpers end with it
        finally:
            for process in processes:
                process.kill()
                process.join()
        if not good:
            raise RuntimeError(answer)
        return answer


def refusal(before: Point | None, growth: float, steps_growth: float, args: argparse.Namespace) -> str:
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
        self.args, self.child, self.known = args, Child(), dict[str, Point]()
        counts = sorted({1, args.threads}) if args.device == "cpu" else [args.threads]
        self.rates = {str(count): self.child("rates", args.device, count, args.quick) for count in counts}

    def series(self, name: str, settings: Mapping[str, Any]) -> list[Point]:
        axis, args = AXES[name], self.args
        points: list[Point] = []
        last: Point | None = None
        for value in axis.quick if args.quick else axis.values:
            growth = (value / last["value"]) ** axis.power if last else 1.0
            reason = refusal(last, growth, growth if name == "steps" else 1.0, args)
            if not reason:
                progress(f"{axis.title}: {value}")
                try:
                    last = {"value": value} | self.point(dict(settings) | {axis.key: value})
                except RuntimeError as error:
                    reason = str(error)
            points.append({"value": value, "skipped": reason} if reason else dict(last or {}))
        return points

    def point(self, settings: dict[str, Any]) -> Point:
        args, tasks = self.args, settings["META_BATCH_SIZE"]
        key = repr(Config.resolve(MAML.defaults, settings))
        if key not in self.known:
            case = Case("", MAML, settings)
            asked = (case, tasks, args.device, args.compile, args.seconds, args.threads)
            point = self.child("measure", *asked, timeout=2 * args.max_seconds)
            self.known[key] = point | {"us_per_task": 1000 * point["ms"] / tasks} | self.limits(point)
        return self.known[key]

    def shared(self) -> list[Point]:
        """One meta-batch shared by 1, 2, 4, ... processes, as many as there are threads."""
        args, tasks = self.args, 8 if self.args.quick else SHARED_TASKS
        points: list[Point] = []
        for world in (count for count in (1, 2, 4, 8, 16) if count <= args.threads):
            progress(f"{PROCESSES}: {world}")
            try:
                asked = (Case("", MAML, {}), tasks, args.device, args.compile, args.seconds)
                point = self.child.together(world, *asked, timeout=2 * args.max_seconds)
                points.append({"value": world, "us_per_task": 1000 * point["ms"] / tasks} | point)
            except RuntimeError as error:
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


def show_shared(points: Sequence[Point], tasks: int) -> None:
    rows, first = [], next((point["ms"] for point in points if "skipped" not in point), math.nan)
    for point in (point for point in points if "skipped" not in point):
        low, high = point["range_ms"]
        cells = [f"{point['ms']:.2f}", f"{low:.2f} - {high:.2f}", f"{point['us_per_task']:.1f}", f"{first / point['ms']:.2f}x"]
        rows.append([str(point["value"]), *cells])
    say(f"\n{tasks} tasks shared by processes\n\n{table([PROCESSES, 'ms', 'lowest - highest', 'us / task', 'speed'], rows)}")
    for point in points:
        if "skipped" in point:
            say(f"skipped: {point['value']} {PROCESSES}: {point['skipped']}")


def show(title: str, series: Sequence[Point], what: str) -> None:
    header = [what, "ms", "us / task", "step MiB", "process MiB", "GFLOP/s", "of product", "of copy", "threads", "start s"]
    rows = []
    for point in (point for point in series if "skipped" not in point):
        peak = point["peak_mib"]
        rows.append(
            [
                f"{point['value']:,}",
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
        )
    say(f"\n{title}\n\n{table(header, rows)}")
    for point in series:
        if "skipped" in point:
            say(f"skipped: {point['value']:,} {what}: {point['skipped']}")


@matplotlib.rc_context(STYLE)
def draw(record: Mapping[str, Any]) -> Figure:
    """Above, time per task and the limit; below, what a step adds to memory: one column an axis, both logarithmic."""
    names = list(dict.fromkeys(series["axis"] for series in record["series"]))
    figure = Figure(figsize=(2.6 * len(names) + 0.6, 5.2), layout="constrained")
    axes = figure.subplots(2, len(names), squeeze=False, sharex="col", sharey="row")
    handles = {}
    for series in record["series"]:
        time, memory = axes[:, names.index(series["axis"])]
        points = [point for point in series["points"] if "skipped" not in point]
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


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Cost of a MAML iteration as the work grows.", allow_abbrev=False)
    parser.add_argument("--axes", nargs="+", choices=list(AXES), metavar="AXIS", help=f"of {', '.join(AXES)}; default: all")
    parser.add_argument("--no-processes", dest="processes", action="store_false", help="leave out the axis of processes")
    parser.add_argument("--tasks", type=int, help="tasks in a meta-batch where that is not the axis; default: 25")
    parser.add_argument("--seconds", type=float, help="to time each point for; default: 2")
    parser.add_argument("--compile", choices=["always", "never"], help="default: always; with --quick never")
    parser.add_argument(
        "--max-gib", type=float, help="skip points predicted to take more; default: 4, on CUDA 3/4 of the device"
    )
    parser.add_argument(
        "--max-seconds", type=float, default=120.0, help="the same for the time of a point; default: %(default)s"
    )
    add_common(parser)
    args = parser.parse_args(argv)
    check_common(parser, args)
    memory = 4.0 if args.device == "cpu" else 0.75 * torch.cuda.get_device_properties(args.device).total_memory / 2**30
    usual = {"axes": list(AXES), "max_gib": memory}
    usual |= (
        {"tasks": 2, "seconds": 0.1, "compile": "never"} if args.quick else {"tasks": 25, "seconds": 2.0, "compile": "always"}
    )
    for key, value in usual.items():
        if getattr(args, key) is None:
            setattr(args, key, value)
    for key in ("tasks", "seconds", "max_gib", "max_seconds"):
        if not getattr(args, key) > 0:
            parser.error(f"--{key.replace('_', '-')} can't be used (got {getattr(args, key)}; expected above 0)")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    args.output.mkdir(parents=True, exist_ok=True)  # before the minutes of work: it may not be possible
    options = {key: getattr(args, key) for key in ("tasks", "seconds", "compile", "max_gib", "max_seconds", "threads", "quick")}
    record: dict[str, Any] = {"schema_version": 1, "machine": machine(args.device), "options": options}
    say(heading(record["machine"]))
    sweep = Sweep(args)
    for threads, rates in sweep.rates.items():
        product, copy = rates["flops_per_second"] / 1e9, rates["bytes_per_second"] / 1e9
        say(f"this machine, {threads} threads: matrix product {product:.1f} GFLOP/s, copy {copy:.1f} GB/s")
    record |= {"rates": sweep.rates, "series": []}
    for name in dict.fromkeys(args.axes):
        for first_order in (False, True) if name == "steps" else (False,):
            title = f"{AXES[name].title}{', first order' if first_order else ''}"
            series = sweep.series(name, {"META_BATCH_SIZE": args.tasks, "FIRST_ORDER": first_order})
            record["series"].append({"axis": name, "first_order": first_order, "points": series})
            show(title, series, AXES[name].title)
    if args.processes:
        record["shared"] = sweep.shared()
        show_shared(record["shared"], 8 if args.quick else SHARED_TASKS)
    save(args.output, "scaling", record, draw(record))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

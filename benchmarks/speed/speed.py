"""Time the same work for this project and for each peer that is installed, side by side.

    python benchmarks/speed/speed.py
    python benchmarks/speed/speed.py --cases maml-1 --implementations compiled jax-scan --rounds 15
    python benchmarks/speed/speed.py --quick

The work is a meta-iteration with the default settings: tasks drawn, second-order meta-gradient, clipping, optimiser. Before
anything is timed, every implementation has to compute the same meta-gradient on the same batch and weights; one that does
not is left out. All are then timed in rounds, one after another, so that other load on the machine affects all of them, and
ratios are taken within a round. Prints tables; writes them into RESULTS.md, and speed.json and speed.png.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the project, wherever the script is called from

import numpy as np
from matplotlib.figure import Figure

from benchmarks.common import filled, machine, machine_line, new_parser, parse, progress, table, write
from benchmarks.speed.child import Child, MeasurementError
from benchmarks.speed.implementations import IMPLEMENTATIONS, OWN, seconds_for, start, thread_options
from benchmarks.speed.work import CASES, ThisProject, Work
from visualization import BLACK, BLUE, SKY, figure_grid

TOLERANCE = 1e-4  # relative difference of meta-gradients up to which the work counts as the same


# ---- measuring


def gradient_difference(gradient: np.ndarray, reference: np.ndarray) -> float:
    """The relative difference of a meta-gradient [M] from `reference` [M]; raises `MeasurementError` above `TOLERANCE`."""
    if gradient.shape != reference.shape:
        raise MeasurementError(f"its meta-gradient has the shape {gradient.shape}, not {reference.shape}")
    error = float(np.linalg.norm(gradient - reference) / np.linalg.norm(reference))
    if not error <= TOLERANCE:  # NaN is not
        raise MeasurementError(f"its meta-gradient differs by {error:.1e} relative, above {TOLERANCE:.0e}")
    return error


class Ready(NamedTuple):
    """An implementation that computes the right meta-gradient, in a process of its own."""

    process: Child
    unit: int  # it does iterations in multiples of this
    threads: int
    start_seconds: float  # to build and compile it
    difference: float  # of its meta-gradient, relative
    pace: float  # seconds an iteration, about


def start_with(threads: int, name: str, case: str, args: argparse.Namespace, reference: np.ndarray) -> Ready:
    """Start an implementation with a number of threads. Raises `MeasurementError`."""
    process, began = Child(), time.perf_counter()
    try:
        gradient, unit, threads = process.call(start, name, case, args.tasks, args.device, threads)
        taken, difference = time.perf_counter() - began, gradient_difference(gradient, reference)
        return Ready(process, unit, threads, taken, difference, pace(process, unit, min(0.5, args.seconds)))
    except MeasurementError:
        process.close()
        raise


def pace(process: Child, unit: int, seconds: float) -> float:
    """Seconds an iteration, from about `seconds` of work after a warm-up."""
    process.call(seconds_for, unit)
    count, taken = unit, 0.0
    while taken < seconds / 2:
        count *= 2
        taken = process.call(seconds_for, count)
    return taken / count


def start_fastest(name: str, case: str, args: argparse.Namespace, reference: np.ndarray) -> Ready:
    """Start an implementation with each number of threads, and keep the fastest. Raises `MeasurementError`."""
    options = thread_options(name, args.device, args.threads)
    started = [start_with(threads, name, case, args, reference) for threads in options]
    fastest = min(started, key=lambda ready: ready.pace)
    for one in started:
        if one is not fastest:
            one.process.close()
    return fastest


def time_in_rounds(ready: Mapping[str, Ready], rounds: int, seconds: float) -> dict[str, list[float]]:
    """Milliseconds an iteration of each implementation in each round; each is given about `seconds` in a round."""
    times: dict[str, list[float]] = {name: [] for name in ready}
    names = list(ready)
    for _ in range(rounds):
        for name in names:
            one = ready[name]
            count = max(1, round(seconds / one.pace / one.unit)) * one.unit
            times[name].append(1000 * one.process.call(seconds_for, count) / count)
        names = names[1:] + names[:1]  # the order rotates: each leaves the cache to another one
    return times


def measure_case(case: str, args: argparse.Namespace) -> dict[str, Any]:
    """Time all implementations of one case that compute the right meta-gradient; the record for the JSON."""
    reference = ThisProject(Work(CASES[case], args.tasks, args.device), "never").meta_gradient()
    left_out: dict[str, str] = {}
    ready: dict[str, Ready] = {}
    try:
        for name in (name for name in args.implementations if case in IMPLEMENTATIONS[name].cases):
            if IMPLEMENTATIONS[name].missing:
                left_out[name] = f"{IMPLEMENTATIONS[name].needs} is not installed"
                continue
            progress(f"{case}: starting {IMPLEMENTATIONS[name].title}")
            try:
                ready[name] = start_fastest(name, case, args, reference)
            except MeasurementError as error:
                left_out[name] = str(error)
        progress(f"{case}: {args.rounds} rounds of {args.seconds:g} s for each of {len(ready)}")
        times = time_in_rounds(ready, args.rounds, args.seconds)
    finally:
        for one in ready.values():
            one.process.close()
    base = next((name for name in OWN if name in times), None)
    results = {name: result(name, one, times[name], times[base] if base else []) for name, one in ready.items()}
    return {"title": CASES[case].title, "base": base, "implementations": results, "left_out": left_out}


def result(name: str, one: Ready, times: Sequence[float], base: Sequence[float]) -> dict[str, Any]:
    """Median and range of `times` (ms), and of their ratios to `base` in the same round, NaN where there is no base."""
    ratios = [here / there for here, there in zip(times, base, strict=True)] if base else [math.nan]
    return {
        "title": IMPLEMENTATIONS[name].title,
        "threads": one.threads,
        "start_seconds": one.start_seconds,
        "gradient_difference": one.difference,
        "ms": list(times),
        "median_ms": statistics.median(times),
        "range_ms": [min(times), max(times)],
        "ratio": statistics.median(ratios),
        "range_ratio": [min(ratios), max(ratios)],
    }


# ---- output


def case_text(case: Mapping[str, Any]) -> str:
    """One case as a table, and a line for each implementation that was left out."""
    rows = []
    for record in sorted(case["implementations"].values(), key=lambda record: record["median_ms"]):
        (low, high), (least, most) = record["range_ms"], record["range_ratio"]
        times = [f"{record['median_ms']:.3f}", f"{low:.3f} - {high:.3f}"]
        ratios = [f"{record['ratio']:.2f}", f"{least:.2f} - {most:.2f}"]
        rows.append([record["title"], str(record["threads"]), *times, *ratios, f"{record['gradient_difference']:.0e}"])
    against = f"x {IMPLEMENTATIONS[case['base']].title}" if case["base"] else "ratio"
    header = ["implementation", "threads", "ms / iteration", "lowest - highest", against, "lowest - highest", "gradient off by"]
    left_out = [f"left out: {IMPLEMENTATIONS[name].title}: {reason}" for name, reason in case["left_out"].items()]
    return "\n\n".join([f"### {case['title']}", table(header, rows), *left_out])


def draw(record: Mapping[str, Any]) -> Figure:
    """Medians as bars on a logarithmic axis, lowest to highest round as a line, one panel a case."""
    cases = [case for case in record["cases"].values() if case["implementations"]]
    heights = [len(case["implementations"]) + 1 for case in cases] or [1]
    figure, axes = figure_grid(len(heights), 1, 7.5, 0.9 + 0.3 * sum(heights), sharex=True, height_ratios=heights)
    panels = axes[:, 0]
    for panel, case in zip(panels, cases, strict=False):
        items = sorted(case["implementations"].items(), key=lambda item: -item[1]["median_ms"])
        for place, (name, entry) in enumerate(items):
            middle, (low, high) = entry["median_ms"], entry["range_ms"]
            panel.barh(place, middle, color=BLUE if name in OWN else SKY, height=0.7)
            panel.errorbar(middle, place, xerr=[[middle - low], [high - middle]], color=BLACK, lw=1, capsize=2)
            text = f"{middle:.3g} ms  ({entry['ratio']:.3g}x)"
            panel.annotate(text, (high, place), (5, 0), textcoords="offset points", va="center", fontsize=8)
        panel.set_yticks(range(len(items)), [entry["title"] for _, entry in items])
        panel.set_title(case["title"], loc="left")
        panel.grid(axis="y", visible=False)
    ends = [time for case in cases for entry in case["implementations"].values() for time in entry["range_ms"]]
    panels[-1].set_xscale("log")
    panels[-1].xaxis.set_major_formatter("{x:g}")
    limits = min(ends, default=0.1) / 2, max(ends, default=1.0) * 6
    panels[-1].set(xlim=limits, xlabel="ms a meta-iteration (median, lowest to highest round)")
    figure.suptitle(f"{record['options']['tasks']} tasks a meta-batch, {record['machine']['device']}")
    return figure


# ---- the command


def parse_flags(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = new_parser(__doc__, device=True)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), metavar="CASE", help=f"of {', '.join(CASES)}; default: all")
    names = list(IMPLEMENTATIONS)
    parser.add_argument("--implementations", nargs="+", choices=names, default=names, metavar="NAME", help="default: all")
    parser.add_argument("--tasks", type=int, default=25, help="tasks in a meta-batch; default: %(default)s")
    parser.add_argument("--rounds", type=int, help="default: 7")
    parser.add_argument("--seconds", type=float, help="of each implementation in each round; default: 1.5")
    usual = {"cases": list(CASES), "rounds": 7, "seconds": 1.5}
    return parse(parser, argv, usual, {"cases": ["maml-1"], "rounds": 2, "seconds": 0.2})


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit code: 1 where a case has no implementation that could be timed."""
    args = parse_flags(argv)
    options = {key: getattr(args, key) for key in ("tasks", "rounds", "seconds", "threads", "quick")}
    about = machine(args.device)
    cases = {case: measure_case(case, args) for case in args.cases}
    record = {"schema_version": 2, "machine": about, "options": options, "cases": cases}
    text = "\n\n".join([machine_line(about), *map(case_text, cases.values())])
    print(text)
    document = filled(args.output, "benchmarks/RESULTS.md", {"speed.py": text})
    results = {"benchmarks/results/speed.json": record, "benchmarks/results/speed.png": draw(record)}
    write(args.output, results | {"benchmarks/RESULTS.md": document})
    return 0 if all(case["implementations"] for case in cases.values()) else 1


if __name__ == "__main__":
    sys.exit(main())

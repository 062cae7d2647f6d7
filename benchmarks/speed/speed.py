"""Time the same work for this project and for each peer that is installed, side by side.

    python benchmarks/speed/speed.py
    python benchmarks/speed/speed.py --cases maml-1 --implementations compiled jax-scan --rounds 15
    python benchmarks/speed/speed.py --quick

The work is a meta-iteration with the default settings: tasks drawn, second-order meta-gradient, clipping, optimiser. Before
anything is timed, every implementation has to compute the same meta-gradient on the same batch and weights; one that does
not is left out. All are then timed in rounds, one after another, so that other load on the machine affects all of them, and
ratios are taken within a round. Prints tables; writes speed.json and speed.png.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the project, wherever the script is called from

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from benchmarks.common import add_common_flags, check_flags, machine, machine_line, progress, save, set_defaults, table
from benchmarks.speed.child import MeasurementError
from benchmarks.speed.implementations import IMPLEMENTATIONS, OWN, InProcess, missing_module, thread_options
from benchmarks.speed.work import CASES, Implementation, ThisProject, Work
from visualization import BLACK, BLUE, SKY, STYLE

TOLERANCE = 1e-4  # relative difference of meta-gradients up to which the work counts as the same


# ---- measuring


def gradient_difference(implementation: Implementation | InProcess, reference: np.ndarray) -> float:
    """The relative difference of its meta-gradient [M] from `reference` [M]; raises `MeasurementError` above `TOLERANCE`."""
    gradient = implementation.meta_gradient()
    if gradient.shape != reference.shape:
        raise MeasurementError(f"its meta-gradient has the shape {gradient.shape}, not {reference.shape}")
    error = float(np.linalg.norm(gradient - reference) / np.linalg.norm(reference))
    if not error <= TOLERANCE:  # NaN is not
        raise MeasurementError(f"its meta-gradient differs by {error:.1e} relative, above {TOLERANCE:.0e}")
    return error


def seconds_per_iteration(implementation: InProcess, seconds: float) -> float:
    """From about `seconds` of work after a warm-up."""
    implementation.seconds_for(implementation.unit)
    count = implementation.unit
    while True:
        taken = implementation.seconds_for(count)
        if taken >= seconds / 2:
            return taken / count
        count *= 2


class Ready(NamedTuple):
    """An implementation that computes the right meta-gradient."""

    process: InProcess
    difference: float  # of its meta-gradient, relative
    pace: float  # seconds an iteration, about


def start_fastest(name: str, case: str, args: argparse.Namespace, reference: np.ndarray) -> Ready:
    """Start an implementation with each number of threads, and keep the fastest. Raises `MeasurementError`."""
    best: Ready | None = None
    for threads in thread_options(name, args.device, args.threads):
        process = InProcess(name, case, args.tasks, args.device, threads)
        try:
            difference = gradient_difference(process, reference)
            here = Ready(process, difference, seconds_per_iteration(process, min(0.5, args.seconds)))
        except MeasurementError:
            process.close()
            if best:
                best.process.close()
            raise
        slower = here if best and best.pace <= here.pace else best
        best = best if slower is here else here
        if slower:
            slower.process.close()
    assert best is not None
    return best


def time_in_rounds(ready: Mapping[str, Ready], rounds: int, seconds: float) -> dict[str, list[float]]:
    """Milliseconds an iteration of each implementation in each round; each is given about `seconds` in a round."""
    times: dict[str, list[float]] = {name: [] for name in ready}
    names = list(ready)
    for number in range(rounds if names else 0):
        first = number % len(names)  # the order rotates: each leaves the cache to another one
        for name in names[first:] + names[:first]:
            process, _, pace = ready[name]
            count = max(1, round(seconds / pace / process.unit)) * process.unit
            times[name].append(1000 * process.seconds_for(count) / count)
    return times


def measure_case(case: str, args: argparse.Namespace) -> dict[str, Any]:
    """Time all implementations of one case that compute the right meta-gradient; the record for the JSON."""
    reference = ThisProject(Work(CASES[case], args.tasks, args.device), "never").meta_gradient()
    left_out: dict[str, str] = {}
    ready: dict[str, Ready] = {}
    try:
        for name in (name for name in args.implementations if case in IMPLEMENTATIONS[name].cases):
            if module := missing_module(name):
                left_out[name] = f"{module} is not installed"
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
    results = {name: result(name, one, times[name], times[base] if base else None) for name, one in ready.items()}
    return {"title": CASES[case].title, "base": base, "implementations": results, "left_out": left_out}


def result(name: str, one: Ready, times: Sequence[float], base: Sequence[float] | None) -> dict[str, Any]:
    """Median and range of `times` (ms), and of their ratios to `base` in the same round."""
    record = {
        "title": IMPLEMENTATIONS[name].title,
        "threads": one.process.threads,
        "start_seconds": one.process.start_seconds,
        "gradient_difference": one.difference,
        "ms": list(times),
        "median_ms": statistics.median(times),
        "range_ms": [min(times), max(times)],
    }
    if base:
        ratios = [here / there for here, there in zip(times, base, strict=True)]
        record |= {"ratio": statistics.median(ratios), "range_ratio": [min(ratios), max(ratios)]}
    return record


# ---- output


def print_case(case: Mapping[str, Any]) -> None:
    """One case as a table."""
    base, rows = case["base"], []
    against = f"x {IMPLEMENTATIONS[base].title}" if base else "ratio"
    for record in sorted(case["implementations"].values(), key=lambda record: record["median_ms"]):
        (low, high), (least, most) = record["range_ms"], record.get("range_ratio", (float("nan"), float("nan")))
        rows.append(
            [
                record["title"],
                str(record["threads"]),
                f"{record['median_ms']:.3f}",
                f"{low:.3f} - {high:.3f}",
                f"{record.get('ratio', float('nan')):.2f}",
                f"{least:.2f} - {most:.2f}",
                f"{record['gradient_difference']:.0e}",
            ]
        )
    header = ["implementation", "threads", "ms / iteration", "lowest - highest", against, "lowest - highest", "gradient off by"]
    print(f"\n{case['title']}\n\n{table(header, rows)}", flush=True)
    for name, reason in case["left_out"].items():
        print(f"left out: {IMPLEMENTATIONS[name].title}: {reason}", flush=True)


@matplotlib.rc_context(STYLE)
def draw(record: Mapping[str, Any]) -> Figure:
    """Medians as bars on a logarithmic axis, lowest to highest round as a line, one panel a case."""
    cases = [case for case in record["cases"].values() if case["implementations"]]
    heights = [len(case["implementations"]) + 1 for case in cases] or [1]
    figure = Figure(figsize=(7.5, 0.9 + 0.3 * sum(heights)), layout="constrained")
    panels = figure.subplots(len(heights), 1, squeeze=False, sharex=True, height_ratios=heights)[:, 0]
    for panel, case in zip(panels, cases, strict=False):
        items = sorted(case["implementations"].items(), key=lambda item: -item[1]["median_ms"])
        for place, (name, entry) in enumerate(items):
            middle, (low, high) = entry["median_ms"], entry["range_ms"]
            panel.barh(place, middle, color=BLUE if name in OWN else SKY, height=0.7)
            panel.errorbar(middle, place, xerr=[[middle - low], [high - middle]], color=BLACK, lw=1, capsize=2)
            text = f"{middle:.3g} ms" + (f"  ({ratio_text(entry['ratio'])})" if "ratio" in entry else "")
            panel.annotate(text, (high, place), (5, 0), textcoords="offset points", va="center", fontsize=8)
        panel.set_yticks(range(len(items)), [entry["title"] for _, entry in items])
        panel.set_title(case["title"], loc="left")
    ends = [time for case in cases for entry in case["implementations"].values() for time in entry["range_ms"]]
    panels[-1].set_xscale("log")
    panels[-1].xaxis.set_major_formatter("{x:g}")
    limits = min(ends, default=0.1) / 2, max(ends, default=1.0) * 6
    panels[-1].set(xlim=limits, xlabel="ms a meta-iteration (median, lowest to highest round)")
    figure.suptitle(f"{record['options']['tasks']} tasks a meta-batch, {record['machine']['device']}")
    return figure


def ratio_text(ratio: float) -> str:
    """A ratio with about two digits, such as 0.68x, 6.4x, 87x."""
    return f"{ratio:.{2 if ratio < 1.95 else 1 if ratio < 9.95 else 0}f}x"


# ---- the command


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0], allow_abbrev=False)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), metavar="CASE", help=f"of {', '.join(CASES)}; default: all")
    parser.add_argument(
        "--implementations",
        nargs="+",
        choices=list(IMPLEMENTATIONS),
        default=list(IMPLEMENTATIONS),
        metavar="NAME",
        help=f"of {', '.join(IMPLEMENTATIONS)}; default: all that are installed",
    )
    parser.add_argument("--tasks", type=int, default=25, help="tasks in a meta-batch; default: %(default)s")
    parser.add_argument("--rounds", type=int, help="default: 7")
    parser.add_argument("--seconds", type=float, help="of each implementation in each round; default: 1.5")
    add_common_flags(parser)
    args = parser.parse_args(argv)
    check_flags(parser, args, ("tasks", "rounds", "seconds"))
    quick, usual = {"cases": ["maml-1"], "rounds": 2, "seconds": 0.2}, {"cases": list(CASES), "rounds": 7, "seconds": 1.5}
    set_defaults(args, quick if args.quick else usual)
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit code: 1 where a case has no implementation that could be timed."""
    args = parse(argv)
    args.output.mkdir(parents=True, exist_ok=True)  # before the minutes of work: it may not be possible
    options = {key: getattr(args, key) for key in ("tasks", "rounds", "seconds", "threads", "quick")}
    record: dict[str, Any] = {"schema_version": 1, "machine": machine(args.device), "options": options, "cases": {}}
    print(machine_line(record["machine"]), flush=True)
    for case in dict.fromkeys(args.cases):
        record["cases"][case] = measure_case(case, args)
        print_case(record["cases"][case])
    save(args.output, "speed", record, draw(record))
    return 0 if all(case["implementations"] for case in record["cases"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())

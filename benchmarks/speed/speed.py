"""Time the same work for this project and for each peer that is installed, side by side.

    python benchmarks/speed/speed.py
    python benchmarks/speed/speed.py --cases maml-1 --contestants compiled jax-scan --rounds 15
    python benchmarks/speed/speed.py --quick

The work is a meta-iteration with the default settings: tasks drawn, second-order meta-gradient, clipping, Adam.
Before anything is timed, everyone has to show the same meta-gradient on the same batch and weights; who does not
is refused. Then rounds of equal time go around, so that whatever else the machine does meets all alike, and
ratios are taken within a round. Prints tables; writes speed.json and speed.png. This file refuses to know how
any contestant works.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import matplotlib
import numpy as np
from contestants import ENTRIES, OWN, Remote, missing, thread_options
from matplotlib.figure import Figure
from report import add_common, check_common, heading, machine, progress, save, say, table
from work import CASES, Project, Unfit, Work

from visualization import BLACK, BLUE, SKY, STYLE

TOLERANCE = 1e-4  # relative difference of meta-gradients up to which the work counts as the same


class Runner(Protocol):
    """What a race needs of a contestant."""

    unit: int

    def meta_gradient(self) -> np.ndarray: ...
    def run(self, iterations: int) -> float: ...


def admit(contestant: Any, reference: np.ndarray) -> float:
    """The relative difference of its meta-gradient [M] from `reference` [M]; raises `Unfit` above `TOLERANCE`."""
    gradient = contestant.meta_gradient()
    if gradient.shape != reference.shape:
        raise Unfit(f"its meta-gradient has the shape {gradient.shape}, not {reference.shape}")
    error = float(np.linalg.norm(gradient - reference) / np.linalg.norm(reference))
    if not error <= TOLERANCE:  # NaN is not
        raise Unfit(f"its meta-gradient differs by {error:.1e} relative, above {TOLERANCE:.0e}")
    return error


def pace(contestant: Runner, seconds: float) -> float:
    """Seconds an iteration, from about `seconds` of work after a warm-up."""
    contestant.run(contestant.unit)
    count = contestant.unit
    while True:
        taken = contestant.run(count)
        if taken >= seconds / 2:
            return taken / count
        count *= 2


def race(contestants: Mapping[str, Runner], paces: Mapping[str, float], rounds: int, seconds: float) -> dict[str, list[float]]:
    """Milliseconds an iteration of each contestant in each round; each has about `seconds` in a round."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    names = list(contestants)
    for number in range(rounds if names else 0):
        first = number % len(names)  # nobody always follows the same neighbour from a cold cache
        for name in names[first:] + names[:first]:
            unit = contestants[name].unit
            count = max(1, round(seconds / paces[name] / unit)) * unit
            times[name].append(1000 * contestants[name].run(count) / count)
    return times


def enter(name: str, case: str, args: argparse.Namespace, reference: np.ndarray) -> tuple[Remote, float, float]:
    """Start a contestant with each number of threads, keep the fastest: it, its difference, its pace. Or `Unfit`."""
    best: tuple[Remote, float, float] | None = None
    for threads in thread_options(name, args.device, args.threads):
        remote = Remote(name, case, args.tasks, args.device, threads)
        try:
            entry = remote, admit(remote, reference), pace(remote, min(0.5, args.seconds))
        except Unfit:
            remote.close()
            if best:
                best[0].close()
            raise
        if best is None or entry[2] < best[2]:
            best, entry = entry, best
        if entry:
            entry[0].close()
    assert best is not None
    return best


def hold(case: str, args: argparse.Namespace) -> dict[str, Any]:
    """One case: everyone enters, who fits is timed. The record for the JSON."""
    work = Work(CASES[case], args.tasks, args.device)
    reference = Project(work, "never").meta_gradient()
    left_out: dict[str, str] = {}
    entered: dict[str, tuple[Remote, float, float]] = {}
    try:
        for name in args.contestants:
            if case not in ENTRIES[name].cases:
                continue
            if missing(name):
                left_out[name] = f"{missing(name)} is not installed"
                continue
            progress(f"{case}: {ENTRIES[name].title} gets ready")
            try:
                entered[name] = enter(name, case, args, reference)
            except Unfit as error:
                left_out[name] = str(error)
        progress(f"{case}: {args.rounds} rounds of {args.seconds:g} s for each of {len(entered)}")
        remotes = {name: remote for name, (remote, _, _) in entered.items()}
        times = race(remotes, {name: speed for name, (_, _, speed) in entered.items()}, args.rounds, args.seconds)
    finally:
        for remote, _, _ in entered.values():
            remote.close()
    base = next((name for name in OWN if name in times), None)
    results = {}
    for name, (remote, difference, _) in entered.items():
        about = {"title": ENTRIES[name].title, "threads": remote.threads, "start_seconds": remote.start_seconds}
        results[name] = about | {"gradient_difference": difference} | summary(times[name], times[base] if base else None)
    return {"title": CASES[case].title, "base": base, "contestants": results, "left_out": left_out}


def summary(times: Sequence[float], base: Sequence[float] | None) -> dict[str, Any]:
    """Median and spread of `times` (ms), and of their ratios to `base` in the same round."""
    record: dict[str, Any] = {"ms": list(times), "median_ms": statistics.median(times), "range_ms": [min(times), max(times)]}
    if base:
        ratios = [here / there for here, there in zip(times, base, strict=True)]
        record |= {"ratio": statistics.median(ratios), "range_ratio": [min(ratios), max(ratios)]}
    return record


def show(result: Mapping[str, Any]) -> None:
    """One case as a table on the terminal."""
    base = result["base"]
    against = f"x {ENTRIES[base].title}" if base else "ratio"
    header = ["contestant", "threads", "ms / iteration", "lowest - highest", against, "lowest - highest", "gradient off by"]
    rows = []
    for record in sorted(result["contestants"].values(), key=lambda record: record["median_ms"]):
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
    say(f"\n{result['title']}\n\n{table(header, rows)}")
    for name, reason in result["left_out"].items():
        say(f"left out: {ENTRIES[name].title}: {reason}")


@matplotlib.rc_context(STYLE)
def draw(record: Mapping[str, Any]) -> Figure:
    """Medians as bars on a logarithmic axis, lowest to highest round as a line, one panel a case."""
    cases = [case for case in record["cases"].values() if case["contestants"]]
    heights = [len(case["contestants"]) + 1 for case in cases] or [1]
    figure = Figure(figsize=(7.5, 0.9 + 0.3 * sum(heights)), layout="constrained")
    panels = figure.subplots(len(heights), 1, squeeze=False, sharex=True, height_ratios=heights)[:, 0]
    for panel, case in zip(panels, cases, strict=False):
        items = sorted(case["contestants"].items(), key=lambda item: -item[1]["median_ms"])
        for place, (name, entry) in enumerate(items):
            middle, (low, high) = entry["median_ms"], entry["range_ms"]
            panel.barh(place, middle, color=BLUE if name in OWN else SKY, height=0.7)
            panel.errorbar(middle, place, xerr=[[middle - low], [high - middle]], color=BLACK, lw=1, capsize=2)
            text = f"{middle:.3g} ms" + (f"  ({times_text(entry['ratio'])})" if "ratio" in entry else "")
            panel.annotate(text, (high, place), (5, 0), textcoords="offset points", va="center", fontsize=8)
        panel.set_yticks(range(len(items)), [entry["title"] for _, entry in items])
        panel.set_title(case["title"], loc="left")
    highest = max((entry["range_ms"][1] for case in cases for entry in case["contestants"].values()), default=1.0)
    lowest = min((entry["range_ms"][0] for case in cases for entry in case["contestants"].values()), default=0.1)
    panels[-1].set_xscale("log")
    panels[-1].xaxis.set_major_formatter("{x:g}")
    panels[-1].set(xlim=(lowest / 2, highest * 6), xlabel="ms a meta-iteration (median, lowest to highest round)")
    figure.suptitle(f"{record['options']['tasks']} tasks a meta-batch, {record['machine']['device']}")
    return figure


def times_text(ratio: float) -> str:
    """A ratio with about two digits, such as 0.68x, 6.4x, 87x."""
    return f"{ratio:.{2 if ratio < 1.95 else 1 if ratio < 9.95 else 0}f}x"


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Speed of this project against its peers, on the same work.", allow_abbrev=False
    )
    parser.add_argument("--cases", nargs="+", choices=list(CASES), metavar="CASE", help=f"of {', '.join(CASES)}; default: all")
    names = ", ".join(ENTRIES)
    parser.add_argument(
        "--contestants", nargs="+", choices=list(ENTRIES), metavar="NAME", help=f"of {names}; default: all installed"
    )
    parser.add_argument("--tasks", type=int, default=25, help="tasks in a meta-batch; default: %(default)s")
    parser.add_argument("--rounds", type=int, help="default: 7")
    parser.add_argument("--seconds", type=float, help="of each contestant in each round; default: 1.5")
    add_common(parser)
    args = parser.parse_args(argv)
    usual = (["maml-1"], 2, 0.2) if args.quick else (list(CASES), 7, 1.5)
    for key, value in zip(("cases", "rounds", "seconds"), usual, strict=True):
        if getattr(args, key) is None:
            setattr(args, key, value)
    args.contestants = args.contestants or list(ENTRIES)
    for key in ("tasks", "rounds", "seconds"):
        if not getattr(args, key) > 0:
            parser.error(f"--{key} can't be used (got {getattr(args, key)}; expected above 0)")
    check_common(parser, args)
    return args


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    args.output.mkdir(parents=True, exist_ok=True)  # before the minutes of work: it may not be possible
    options = {key: getattr(args, key) for key in ("tasks", "rounds", "seconds", "threads", "quick")}
    record: dict[str, Any] = {"schema_version": 1, "machine": machine(args.device), "options": options, "cases": {}}
    say(heading(record["machine"]))
    for case in dict.fromkeys(args.cases):
        record["cases"][case] = hold(case, args)
        show(record["cases"][case])
    save(args.output, "speed", record, draw(record))
    return 0 if all(case["contestants"] for case in record["cases"].values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())

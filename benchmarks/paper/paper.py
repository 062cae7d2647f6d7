"""The MAML paper's table and curves, LEO's figure, and what all of it must show: one command.

    python benchmarks/paper/paper.py            # trains what is missing (about 45 minutes on two cores), writes PAPER.md
    python benchmarks/paper/paper.py --quick    # everything in a tiny version, under 5 minutes, beside the real one

Runs lie under benchmarks/runs/: what is complete is not trained again, what was interrupted goes on where it was.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
import sine_line
from animation import adaptation_animation
from baselines import STEP_SIZES, Tuned, load_best, oracle, pretrained, random_start
from checks import Check, Link, better_than, order, order_check, times_better
from paths import ROOT
from published import PUBLISHED, REMARKS
from report import available_threads, heading, machine, progress, say, table
from runs import KINDS, QUICK, Job, commits, job, seconds, train

from analysis.comparison import Comparison, Entry, Row, compare_entries, entries
from analysis.text_tables import csv_table
from commands.compare import draw, read_run
from commands.predict import predict_points
from config import ConfigError, parse_assignment
from dataset import Points, SinusoidalTaskGenerator
from evaluation import errors, predict
from runtime.csv_files import read_points
from runtime.errors import RunError
from runtime.storage import figure_bytes, write_atomically

FURTHER = ("Meta-SGD", "ANIL", "CAVIA", "R2-D2", "R2-D2, trained 5-shot")
TRAINED = ("MAML", "first-order MAML", "LEO", "LEO, trained 5-shot", *FURTHER)  # judged by their own runs
ROWS = (*TRAINED, "oracle", "pretrained", "random")
GRADIENTS = (1, 5, 10)
FINN = SinusoidalTaskGenerator().published
POINTS = ROOT / "docs" / "points.csv"  # of 2.5 sin(x - 1), without noise


class Results(NamedTuple):
    """What was measured on the sinusoids."""

    comparison: Comparison
    tuned: list[tuple[int, Tuned]]  # (seed, a fine-tuned baseline)


# ---- measuring


def measure(jobs: Sequence[Job]) -> Results:
    """All methods and baselines on the sinusoids' test tasks, from finished runs; the first one is MAML."""
    found = {(one.label, one.seed): one for one in jobs}
    seeds = sorted({one.seed for one in jobs})
    runs = {key: read_run(one.directory) for key, one in found.items() if key[0] in TRAINED}
    entries(list(runs.values()))  # refuses runs whose test tasks differ
    found_entries, fine_tuned = [], []
    for label in ROWS:
        for seed in seeds:
            maml = found["MAML", seed]
            if label in TRAINED:
                found_entries.append(Entry(label, runs[label, seed].errors))
                continue
            progress(f"{label}, seed {seed} ...")
            if label == "oracle":
                found_entries.append(oracle(found[label, seed].directory, maml.config))
                continue
            one = random_start(maml.config) if label == "random" else pretrained(found[label, seed].directory, maml.config)
            found_entries.append(one.entry)
            fine_tuned.append((seed, one))
    return Results(compare_entries(found_entries), fine_tuned)


def last_errors(found: Comparison, shots: int) -> dict[str, np.ndarray]:
    """label -> [R, T], the errors after the last gradient."""
    return {label: errors[..., -1] for label, errors in found.errors[shots].items()}


def prediction_check(leos: Sequence[Job]) -> Check:
    """The points of docs/points.csv, as `--predict` takes them, against the function that they were taken from."""
    points, measured_errors = read_points(POINTS, 1), []
    for one in leos:
        found = load_best(one.directory)
        low, high = found.generator.x_range
        rng = np.random.default_rng(0)
        predicted = predict_points(found.learner, points, found.config.EVAL_STEPS, (low, high), rng, num_samples=1)
        measured_errors.append(float(np.square(predicted.outputs[-1] - 2.5 * np.sin(predicted.x[:, 0] - 1)).mean()))
    measured = ", ".join(f"{error:.2g}" for error in measured_errors) + " (each seed)"
    what = "`--predict` on docs/points.csv, 10 points of 2.5 sin(x - 1), LEO"
    return Check(what, "error on the whole curve below 0.02", measured, max(measured_errors) < 0.02)


def sinusoid_checks(found: Comparison, links: Sequence[Link], leos: Sequence[Job]) -> list[Check]:
    means = {(row.group, row.shots, row.gradients): row.mean for row in found.rows}
    last = found.last
    return [
        better_than([means["MAML", 5, step] for step in GRADIENTS], [FINN[5][step] for step in GRADIENTS]),
        times_better(
            "5-shot after 10 gradients: LEO, trained 5-shot, against MAML",
            means["LEO, trained 5-shot", 5, last],
            means["MAML", 5, last],
            20,
        ),
        times_better("10-shot after 10 gradients: LEO against MAML", means["LEO", 10, last], means["MAML", 10, last], 20),
        order_check(links),
        prediction_check(leos),
    ]


def time_check(jobs: Sequence[Job], trained: int, took: float) -> Check:
    """How long all of it takes; a call that found some runs complete can't tell."""
    what, must = "all of `benchmarks/paper/paper.py`", "under 60 minutes on 2 cores"
    if trained < len(jobs):
        return Check(what, must, f"{seconds(jobs):.0f} s of training in all, on one core each", None)
    return Check(what, must, f"{took / 60:.0f} minutes", took < 3600)


def animation(maml: Job, leo: Job) -> bytes:
    """MAML beside LEO, 5-shot, on the test task on which MAML's last error is the median one: nobody chose it."""
    both = {"MAML": load_best(maml.directory), "LEO": load_best(leo.directory)}
    reference = both["MAML"]
    config = reference.config
    params, tasks = reference.held_out("test", 5)
    last = errors(reference.learner, tasks, config.EVAL_STEPS)[:, -1]
    place = int(np.argsort(last)[len(last) // 2])
    support = Points(*(part[place : place + 1] for part in tasks.support))
    grid = np.linspace(config.X_MIN, config.X_MAX, 201, dtype=np.float32)
    x = grid[None, :, None]
    paths = {label: predict(one.learner, support, x, config.EVAL_STEPS)[0][0] for label, one in both.items()}
    truth = reference.generator.truth(params[place : place + 1], x)[0, :, 0]
    return adaptation_animation(grid, truth, support.x[0, :, 0], support.y[0, :, 0], paths, "5 points of a new sinusoid")


# ---- writing


def own_cell(row: Row) -> str:
    over_seeds = f" (± {row.ci_seeds:.2g})" if row.seeds > 1 else ""
    return f"{row.mean:.3g} ± {row.ci_tasks:.2g}{over_seeds}"


def paper_table(found: Comparison, shots: int) -> str:
    """Public numbers with their marks, then this project's, after 1, 5 and 10 gradients."""
    rows = []
    for one in PUBLISHED:
        if shots in one.values:
            values = [f"{one.values[shots][step]:g}" if step in one.values[shots] else "" for step in GRADIENTS]
            rows.append([one.source, one.mark, one.protocol, *values])
    protocols = {
        "MAML": "trained 10-shot, 1 step",
        "first-order MAML": "the same, inner gradients as constants",
        "LEO": "trained 10-shot, 5 steps in z, 5 in weights",
        "LEO, trained 5-shot": "trained 5-shot, 5 steps in z, 5 in weights",
        "Meta-SGD": "trained 10-shot, 1 step, a learned step size for each weight",
        "ANIL": "trained 10-shot, 1 step, last layer only",
        "CAVIA": "trained 10-shot, 1 step in 5 context parameters",
        "R2-D2": "trained 10-shot; one closed-form solution, further gradients change nothing",
        "R2-D2, trained 5-shot": "trained 5-shot; the same",
        "oracle": "told amplitude and phase; takes no gradient",
        "pretrained": "fine-tuned, step size from validation tasks",
        "random": "untrained; fine-tuned, step size from validation tasks",
    }
    for label in found.labels:
        cells = [own_cell(row) for row in found.rows if (row.group, row.shots) == (label, shots) and row.gradients in GRADIENTS]
        rows.append([f"**{label}**", "measured", protocols[label], *cells])
    return table(
        ["method", "mark", "protocol", *(f"{step} gradient{'' if step == 1 else 's'}" for step in GRADIENTS)], rows, left=3
    )


def order_table(links: Sequence[Link]) -> str:
    rows = []
    for one in links:
        values = [f"{mean:.3g} ± {half:.2g}" for mean, half in zip(one.means, one.intervals, strict=True)]
        difference = f"{one.difference:.3g} ± {one.difference_ci:.2g}"
        words = ["yes" if yes else "no" for yes in (one.apart, one.seeds_agree)]
        verdict = "holds" if one.holds else "does not hold"
        rows.append([f"{one.lower} {one.relation} {one.upper}", *values, difference, *words, verdict])
    return table(["order", "first", "second", "difference", "intervals apart", "in every seed", "verdict"], rows)


def step_size_table(fine_tuned: Sequence[tuple[int, Tuned]]) -> str:
    rows = []
    for seed, one in fine_tuned:
        for shots, size in one.step_sizes.items():
            best = one.validation[shots][size]
            rows.append([one.entry.label, str(seed), str(shots), f"{size:g}", f"{best:.3g}"])
    return table(["baseline", "seed", "K", "step size", "validation error"], rows)


def check_table(checks: Sequence[Check]) -> str:
    return table(["check", "must", "measured", "verdict"], [[*one[:3], one.verdict] for one in checks], left=4)


def document(results: Results, links: Sequence[Link], checks: Sequence[Check], where: str, mixed: str) -> str:
    """PAPER.md."""
    found = results.comparison
    tasks, seeds = found.rows[0].tasks, found.rows[0].seeds
    sections = {
        "What it must show": check_table(checks),
        "The MAML paper's table: 5-shot": f"{paper_table(found, 5)}\n\n{notes(tasks, seeds)}",
        "The same, 10-shot": paper_table(found, 10) + "\n\n" + "\n".join(f"* {remark}" for remark in REMARKS),
        "Curves": "![error against gradients](../docs/paper_gradients.png)\n\n![error against K](../docs/paper_shots.png)\n\n"
        "Bands and bars are 95% intervals over test tasks, thin lines single seeds. Every number behind the curves is in "
        "[paper.csv](paper.csv).",
        "Who is better": f"After {found.last} gradients, 10-shot. A difference is the second minus the first, task by task.\n\n"
        f"{order_table(links)}\n\n"
        "`<` holds where the intervals over tasks do not touch, the difference's interval is above 0, and the worst seed of "
        "the first is better than the best seed of the second; `<=` holds unless the difference's interval is below 0.",
        "How the baselines were fine-tuned": "With the step size that has the lowest mean error after the last gradient on "
        "validation tasks, as many as there are test tasks, for each K and seed, of "
        f"{', '.join(f'{size:g}' for size in STEP_SIZES)}. MAML and LEO have no such choice: they keep the step size that "
        f"they were trained with, or learned.\n\n{step_size_table(results.tuned)}",
        "LEO's own experiment: sinusoids and lines": mixed,
        "One network adapting": "![MAML beside LEO](../docs/adaptation.gif)\n\nThe test task on which MAML's error after the "
        "last gradient is the median one; LEO is the one trained 5-shot.",
    }
    parts = [f"## {title}\n\n{text}\n" for title, text in sections.items() if text]
    return "\n".join([f"# The papers' tables and figures, by this project\n\n{where}\n", *parts])


def notes(tasks: int, seeds: int) -> str:
    return (
        f"Mean squared error on {tasks} test tasks, the same for all rows of this project, ± its 95% interval over tasks; in "
        f"brackets that over {seeds} seeds (Student's t over the seeds' means). Marks: *read* in the paper's text or in code, "
        "*second hand* from notes or a README, *recalled* and not verified, *measured* here. K shots at test time: one "
        "trained network serves every K."
    )


def provenance(jobs: Sequence[Job], extra: Mapping[str, Any], trained: int, began: float) -> str:
    """Where, when and from what the numbers come: the lines above everything else."""
    here = machine("cpu")
    git = here["git"]
    lines = [
        f"* command: `python benchmarks/paper/paper.py{''.join(' ' + word for word in sys.argv[1:])}`",
        f"* commit: {str(git['commit'])[:12]}{' with changes' if git['dirty'] else ''}; the runs were trained at "
        + ", ".join(commits(jobs)),
        f"* machine: {heading(here)}",
        f"* seeds: {', '.join(map(str, sorted({one.seed for one in jobs})))}",
        f"* time: {seconds(jobs):.0f} s of training and compiling in {len(jobs)} runs, each on one core; this call took "
        f"{time.perf_counter() - began:.0f} s and trained {trained} of them",
    ]
    if extra:
        changed = ", ".join(f"{key}={value}" for key, value in extra.items())
        lines.append(f"* **not those of the papers**: a smaller version, in which all runs have {changed}")
    return "\n".join(lines)


def write(output: Path, contents: Mapping[str, bytes]) -> None:
    for name, data in contents.items():
        path = output / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, data)
        say(f"written: {path}")


# ---- command line


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="paper.py", description=str(__doc__).splitlines()[0], allow_abbrev=False)
    parser.add_argument("--quick", action="store_true", help="a tiny version of everything; its numbers mean nothing")
    parser.add_argument("--seeds", type=int, nargs="+", metavar="N", help="default: 0 1 2, and 0 1 with --quick")
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="a setting of all runs")
    parser.add_argument(
        "--workers", type=int, metavar="N", help="runs at a time, each on one core; default: 2, or as many as there are cores"
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="instead of this project: gets benchmarks/ and docs/")
    args = parser.parse_args(argv)
    args.seeds = args.seeds or ([0, 1] if args.quick else [0, 1, 2])
    args.output = args.output or (ROOT / "benchmarks" / "runs" / "quick" if args.quick else ROOT)
    if args.workers is None:
        args.workers = 0 if args.quick else min(2, available_threads())
    if args.workers < 0 or len(set(args.seeds)) < len(args.seeds):
        parser.error(f"--workers or --seeds can't be used (got {args.workers}, {args.seeds}; expected a count, and no repeats)")
    return args


def run(args: argparse.Namespace) -> list[Check]:
    """Train, measure, write; returns the checks."""
    began = time.perf_counter()
    extra = (QUICK if args.quick else {}) | dict(parse_assignment(text) for text in args.set)
    runs = args.output / "benchmarks" / "runs"
    jobs = [job(label, seed, runs, extra) for seed in args.seeds for label in KINDS]
    trained = train(jobs, args.workers)
    results = measure(jobs)
    links = order(last_errors(results.comparison, 10))
    by_label = {label: [one for one in jobs if one.label == label] for label in KINDS}
    mixed = sine_line.measure(by_label["MAML on sine-line"], by_label["LEO on sine-line"], 20 if args.quick else 100)
    checks = [*sinusoid_checks(results.comparison, links, by_label["LEO"]), *sine_line.checks(mixed)]
    progress("figures ...")
    contents = {
        f"docs/{name.replace('comparison', 'paper')}.png": figure_bytes(figure, "png")
        for name, figure in draw(results.comparison, "Sinusoids", FINN).items()
    }
    contents |= {f"docs/{name}.png": figure_bytes(figure, "png") for name, figure in mixed.figures.items()}
    contents["docs/adaptation.gif"] = animation(by_label["MAML"][0], by_label["LEO, trained 5-shot"][0])
    checks.append(time_check(jobs, trained, time.perf_counter() - began))
    contents["benchmarks/paper.csv"] = csv_table(results.comparison).encode()
    text = document(results, links, checks, provenance(jobs, extra, trained, began), sine_line.section(mixed))
    contents["benchmarks/PAPER.md"] = text.encode()
    write(args.output, contents)
    for one in checks:
        say(f"{one.verdict}: {one.what}: {one.measured} (must: {one.must})")
    return checks


def stop(number: int, frame: Any) -> NoReturn:
    raise SystemExit(128 + number)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit code."""
    args = parse(argv)
    try:
        run(args)
    except (RunError, ConfigError) as error:
        print(f"error: {error}", file=sys.stderr)
        return error.code if isinstance(error, RunError) else 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, stop)  # so that the runs get to save a checkpoint
    sys.exit(main())

"""LEO's own experiment for paper.py: sinusoids and lines, noisy targets, and sampled curves.

Finished runs in; checks, tables and figures out. The metrics are defined in sampling.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from benchmarks.common import progress, table
from benchmarks.paper import sampling
from benchmarks.paper.checks import Check, PairedComparison, compare_pair, verdict
from benchmarks.paper.sampling import Estimate, SampleMetrics
from benchmarks.project import Experiment, load_best, read_run
from benchmarks.runs import Run
from dataset import Points, SineLineTaskGenerator, stream
from learner import sample_tasks
from report.figures import example_tasks
from visualization import task_curves

SHOTS = 5
SAMPLED_TASKS = 200  # test tasks for which curves are sampled: 100 curves for each take their time
AMBIGUOUS_SETS = 50  # support sets that leave the family open
PANELS = 3  # of a figure
LEAST_CORRELATION = 0.3
WIDER = 1.5  # factor on the noise; on validation tasks (seed 0) it covers more and lowers the negative log-likelihood


class SampleRow(NamedTuple):
    """A row of the table of metrics; `several`: there is more than one curve a task."""

    label: str
    seed: str
    metrics: SampleMetrics
    several: bool


class SineLine(NamedTuple):
    """What was measured on sinusoids and lines."""

    families: dict[str, PairedComparison]  # family -> whether LEO's error is below MAML's
    rows: list[SampleRow]
    both_families: list[float]  # for each seed, the share of ambiguous support sets whose samples hold both
    exact_both_families: float  # the same for the exact posterior
    figures: dict[str, Figure]  # by file name
    samples: int


class Tasks(NamedTuple):
    """Support sets, and where and what their functions are."""

    support: Points  # x, y [T, K, 1]
    x: np.ndarray  # [T, N, 1]
    truth: np.ndarray  # [T, N], without noise
    is_line: np.ndarray  # [T] booleans


# ---- measuring


def measure(maml_runs: Sequence[Run], leo_runs: Sequence[Run], samples: int) -> SineLine:
    """Evaluate finished runs on sine-line, one of each method for each seed, in the same order; `samples` curves a task."""
    mamls, leos = ([load_best(run.directory) for run in runs] for runs in (maml_runs, leo_runs))
    generator = sine_line_generator(leos[0])
    tasks, ambiguous = held_out(leos[0]), ambiguous_tasks(generator)
    rows, shares, curves = list[SampleRow](), list[float](), list[np.ndarray]()
    for maml, leo in zip(mamls, leos, strict=True):
        seed = leo.config.RANDOM_SEED
        progress(f"sampled curves, seed {seed} ...")
        rows += sample_rows(maml, leo, tasks, samples)
        curves.append(sampled(leo, ambiguous, stream(seed, "samples", 4), samples))
        shares.append(share_of_both(ambiguous, curves[-1]))
    progress("exact posterior ...")
    exact, _ = sampling.posterior_curves(generator, tasks.support, tasks.x, stream(0, "samples", 2), samples)
    rows.append(SampleRow("exact posterior", "", metrics(exact, tasks, generator.noise_std), True))
    exact, _ = sampling.posterior_curves(generator, ambiguous.support, ambiguous.x, stream(0, "samples", 5), samples)
    figures = {
        "paper_samples": figure_of_test_tasks(leos[0], samples),
        "paper_ambiguous": figure_of_ambiguous_tasks(ambiguous, curves[0]),
    }
    return SineLine(compare_families(maml_runs, leo_runs), rows, shares, share_of_both(ambiguous, exact), figures, samples)


def compare_families(maml_runs: Sequence[Run], leo_runs: Sequence[Run]) -> dict[str, PairedComparison]:
    """LEO against MAML on all test tasks of each family, by the runs' own errors."""
    found = {label: [read_run(run.directory) for run in runs] for label, runs in {"MAML": maml_runs, "LEO": leo_runs}.items()}
    errors = {label: np.stack([one.errors[SHOTS][:, -1] for one in seeds]) for label, seeds in found.items()}  # [R, T]
    is_line = found["LEO"][0].params[:, 0] == 1
    return {
        family: compare_pair("LEO", "<", "MAML", {label: values[:, chosen] for label, values in errors.items()})
        for family, chosen in {"sinusoids": ~is_line, "lines": is_line}.items()
    }


def sine_line_generator(experiment: Experiment) -> SineLineTaskGenerator:
    assert isinstance(experiment.generator, SineLineTaskGenerator)
    return experiment.generator


def held_out(experiment: Experiment) -> Tasks:
    """The first test tasks."""
    params, tasks, _ = experiment.held_out("test", SHOTS)
    first = slice(SAMPLED_TASKS)
    support = Points(*(part[first] for part in tasks.support))
    return Tasks(support, tasks.query.x[first], tasks.query.y[first, :, 0], params[first, 0] == 1)


def on_grid(generator: SineLineTaskGenerator, params: np.ndarray, support: Points) -> Tasks:
    """The functions with `params` [T, F] on a grid over the range of x, with their support points."""
    grid = np.linspace(*generator.x_range, 101, dtype=np.float32)
    x = np.repeat(grid[None, :, None], len(params), axis=0)
    return Tasks(support, x, generator.curve(params, x)[..., 0], params[:, 0] == 1)


def ambiguous_tasks(generator: SineLineTaskGenerator) -> Tasks:
    """Support sets from sinusoids that a line could have given as well."""
    support, waves = sampling.ambiguous_supports(generator, AMBIGUOUS_SETS, SHOTS, stream(0, "samples", 3))
    return on_grid(generator, waves, support)


def sample_rows(maml: Experiment, leo: Experiment, tasks: Tasks, samples: int) -> list[SampleRow]:
    """MAML's and LEO's single curves, and LEO's sampled ones."""
    seed = leo.config.RANDOM_SEED
    curves = {
        "MAML": sampling.single_curves(maml.learner, tasks.support, tasks.x, maml.config.EVAL_STEPS),
        "LEO, without noise": sampling.single_curves(leo.learner, tasks.support, tasks.x, leo.config.EVAL_STEPS),
        "LEO, sampled": sampled(leo, tasks, stream(seed, "samples"), samples),
        f"LEO, sampled, noise x {WIDER:g}": sampled(leo, tasks, stream(seed, "samples"), samples, WIDER),
    }
    noise_std, rows = leo.config.NOISE_STD, curves.items()
    return [SampleRow(label, str(seed), metrics(values, tasks, noise_std), "sampled" in label) for label, values in rows]


def sampled(leo: Experiment, tasks: Tasks, rng: np.random.Generator, samples: int, factor: float = 1.0) -> np.ndarray:
    """LEO's curves [T, M, N] with its noise times `factor`."""
    return sample_tasks(leo.learner, tasks.support, tasks.x, leo.config.EVAL_STEPS, rng, samples, temperature=factor)


def metrics(curves: np.ndarray, tasks: Tasks, noise_std: float) -> SampleMetrics:
    return sampling.sample_metrics(curves, tasks.truth, tasks.is_line, noise_std, stream(0, "samples", 1))


def share_of_both(tasks: Tasks, curves: np.ndarray) -> float:
    """The share of tasks that have sinusoids and lines among their curves [T, M, N]."""
    waves = sampling.looks_sinusoidal(tasks.x[0, :, 0], curves)
    return float((waves.any(1) & ~waves.all(1)).mean())


# ---- figures: LEO's figure 2


def figure_of_test_tasks(leo: Experiment, samples: int) -> Figure:
    """The first test tasks, with both families among them; curves are coloured by the family that they are nearer to."""
    params, tasks, _ = leo.held_out("test", SHOTS)
    waves, lines = np.flatnonzero(params[:, 0] == 0), np.flatnonzero(params[:, 0] == 1)
    chosen = [waves[0], lines[0], waves[1]]
    shown = on_grid(sine_line_generator(leo), params[chosen], Points(*(part[chosen] for part in tasks.support)))
    curves = sampled(leo, shown, stream(leo.config.RANDOM_SEED, "samples", 6), samples)
    names = ["a line" if is_line else "a sinusoid" for is_line in shown.is_line]
    return bundle(shown, curves, f"LEO: {samples} sampled networks for each support set of {SHOTS} noisy points", names)


def figure_of_ambiguous_tasks(ambiguous: Tasks, curves: np.ndarray) -> Figure:
    """The same for the first ambiguous support sets, from their curves [T, M, N]."""
    support = Points(*(part[:PANELS] for part in ambiguous.support))
    shown, curves = Tasks(support, *(part[:PANELS] for part in ambiguous[1:])), curves[:PANELS]
    waves = sampling.looks_sinusoidal(shown.x[0, :, 0], curves)
    names = [f"{1 - share:.0%} of samples nearer to a line" for share in waves.mean(1)]
    return bundle(shown, curves, "LEO: the same, where the points are from a sinusoid but could be from a line", names)


def bundle(tasks: Tasks, curves: np.ndarray, title: str, names: Sequence[str]) -> Figure:
    grid, (x, y) = tasks.x[0, :, 0], tasks.support
    arrays = {"grid": grid, "grid_support_x": x[..., 0], "grid_support_y": y[..., 0], "grid_truth": tasks.truth}
    arrays |= {"grid_samples": curves, "grid_is_sine": sampling.looks_sinusoidal(grid, curves)}
    arrays["grid_names"] = np.array([f"{number}: {name}" for number, name in enumerate(names, 1)])
    return task_curves(example_tasks(arrays), (), title)


# ---- checks and text


def checks(found: SineLine) -> list[Check]:
    result = []
    for family, pair in found.families.items():
        lower, upper, _ = pair.cells()
        what = f"sine-line, 5-shot, error on {family}"
        result.append(Check(what, "LEO below MAML, intervals apart", f"{lower} against {upper}", pair.holds))
    measured = [row.metrics for row in found.rows if row.label == "LEO, sampled"]
    correlations = [one.correlation for one in measured]
    holds = all(one.value >= LEAST_CORRELATION and one.low > 0 for one in correlations)
    must = f"rank correlation of spread and error at least {LEAST_CORRELATION:g}, interval above 0"
    result.append(Check("sine-line, LEO's sampled curves", must, each_seed(correlations), holds))
    what = "sine-line, coverage of the 90% interval of LEO's samples and the known noise"
    covered = each_seed([one.coverage for one in measured])
    result.append(Check(what, "reported; the aim is 85 to 95%", covered, None))
    shares = ", ".join(f"{share:.0%}" for share in found.both_families)
    both = f"so for {shares} of {AMBIGUOUS_SETS} such sets (each seed; exact posterior {found.exact_both_families:.0%})"
    must = f"both families among {found.samples} samples"
    result.append(Check("sine-line, ambiguous support sets, LEO", must, both, min(found.both_families) > 0.5))
    return result


def each_seed(values: Sequence[Estimate]) -> str:
    return "; ".join(map(str, values)) + (" (each seed)" if len(values) > 1 else "")


def family_table(found: SineLine) -> str:
    rows = [
        [family, *pair.cells(), "yes" if pair.seeds_agree else "no", verdict(pair.holds)]
        for family, pair in found.families.items()
    ]
    return table(["family", "LEO", "MAML", "MAML minus LEO", "in every seed", "LEO < MAML"], rows)


def sample_table(found: SineLine) -> str:
    rows = []
    for label, seed, one, several in found.rows:
        errors = [f"{value.value:.3g} ± {value.high - value.value:.2g}" for value in one.mse.values()]
        correlations = [str(one.correlation), str(one.correlation_within)] if several else ["", ""]
        rows.append([label, seed, *errors, f"{one.coverage.value:.1%}", f"{one.nll.value:.3f}", *correlations])
    header = ["curves", "seed", "error, sinusoids", "error, lines", "error, all", "90% coverage", "NLL"]
    return table([*header, "spread against error", "within a task"], rows)

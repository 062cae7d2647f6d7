"""LEO's own experiment for `paper.py`: sinusoids and lines, noisy targets, and curves that are sampled.

Finished runs in; checks, a section of PAPER.md and a figure out. What makes a bundle of curves good is defined in
`sampling.py`; this file refuses to know about training.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import sampling
from baselines import load_best
from checks import Check, Link, link
from matplotlib.figure import Figure
from report import progress, table
from runs import Job
from sampling import Estimate, Judgement

from analysis.figures import sample_bundle
from commands.compare import read_run
from dataset import Points, SineLineTaskGenerator, stream
from evaluation import sample

SHOTS = 5
JUDGED = 200  # test tasks for which curves are sampled: 100 for each of them take their time
AMBIGUOUS = 50  # support sets that leave the family open
LEAST_CORRELATION = 0.3
WARMER = 1.5  # temperature that covers 90% of validation targets; chosen on those, by seed 0


class Bundle(NamedTuple):
    """A row of the table of judgements."""

    label: str
    seed: int | None
    judgement: Judgement


class SineLine(NamedTuple):
    """What was measured on sinusoids and lines."""

    families: dict[str, Link]  # family -> LEO below MAML?
    bundles: list[Bundle]
    both_families: list[float]  # for each seed, the share of ambiguous support sets whose samples hold both
    exact_both_families: float  # the same for the exact posterior
    figures: dict[str, Figure]  # by file name
    samples: int


def measure(mamls: Sequence[Job], leos: Sequence[Job], samples: int) -> SineLine:
    """Judge finished runs on sine-line, one of each method for each seed, in the same order; `samples` curves a task."""
    errors = {  # label -> [R, T]
        label: np.stack([read_run(one.directory).errors[SHOTS][:, -1] for one in jobs])
        for label, jobs in {"MAML": mamls, "LEO": leos}.items()
    }
    is_line = read_run(leos[0].directory).params[:, 0] == 1
    families = {
        family: link("LEO", "<", "MAML", {label: values[:, chosen] for label, values in errors.items()})
        for family, chosen in {"sinusoids": ~is_line, "lines": is_line}.items()
    }
    bundles, shares = [], []
    for place, (maml, leo) in enumerate(zip(mamls, leos, strict=True)):
        progress(f"sampled curves, seed {leo.seed} ...")
        bundles += judged(maml, leo, samples)
        curves, grid = ambiguous_curves(leo, samples, AMBIGUOUS)[2:]
        shares.append(float(with_both(grid, curves).mean()))
        if not place:
            drawn = figures(leo, samples)
    progress("exact posterior ...")
    bundles.append(exact(leos[0], samples))
    exact_share = exact_ambiguous(leos[0], samples)
    return SineLine(families, bundles, shares, exact_share, drawn, samples)


def judged(maml: Job, leo: Job, samples: int) -> list[Bundle]:
    """MAML's and LEO's single curves, and LEO's sampled ones, on the first test tasks."""
    found = {"MAML": load_best(maml.directory), "LEO": load_best(leo.directory)}
    params, tasks = found["LEO"].held_out("test", SHOTS)
    count = min(JUDGED, len(params))
    support, x = Points(*(part[:count] for part in tasks.support)), tasks.query.x[:count]
    truth, is_line = tasks.query.y[:count, :, 0], params[:count, 0] == 1
    steps = {label: one.config.EVAL_STEPS for label, one in found.items()}
    curves = {
        "MAML": sampling.single_curves(found["MAML"].learner, support, x, steps["MAML"]),
        "LEO, without noise": sampling.single_curves(found["LEO"].learner, support, x, steps["LEO"]),
    } | {
        label: sample(
            found["LEO"].learner, support, x, steps["LEO"], stream(leo.seed, "samples"), samples, temperature=temperature
        )
        for label, temperature in {"LEO, sampled": 1.0, f"LEO, sampled, noise x {WARMER:g}": WARMER}.items()
    }
    noise_std = found["LEO"].config.NOISE_STD
    return [
        Bundle(label, leo.seed, sampling.judge(values, truth, is_line, noise_std, stream(0, "samples", 1)))
        for label, values in curves.items()
    ]


def exact(leo: Job, samples: int) -> Bundle:
    """The exact posterior on the same tasks: no method can be better on average."""
    found = load_best(leo.directory)
    params, tasks = found.held_out("test", SHOTS)
    count = min(JUDGED, len(params))
    support, x = Points(*(part[:count] for part in tasks.support)), tasks.query.x[:count]
    curves, _ = sampling.posterior_curves(found.generator, support, x, stream(0, "samples", 2), samples)
    truth, is_line = tasks.query.y[:count, :, 0], params[:count, 0] == 1
    judgement = sampling.judge(curves, truth, is_line, found.config.NOISE_STD, stream(0, "samples", 1))
    return Bundle("exact posterior", None, judgement)


# ---- support sets that leave the family open


def ambiguous(leo: Job, count: int) -> tuple[SineLineTaskGenerator, Points, np.ndarray, np.ndarray]:
    """The generator, `count` ambiguous support sets, the sinusoids [T, N] behind them, and the grid [N]."""
    found = load_best(leo.directory)
    generator, config = found.generator, found.config
    assert isinstance(generator, SineLineTaskGenerator)
    support, waves, _ = sampling.ambiguous_supports(generator, count, SHOTS, stream(0, "samples", 3))
    grid = np.linspace(config.X_MIN, config.X_MAX, 101, dtype=np.float32)
    return generator, support, generator.curve(waves, grid_of(grid, count))[..., 0], grid


def grid_of(grid: np.ndarray, count: int) -> np.ndarray:
    return np.repeat(grid[None, :, None], count, axis=0)  # [T, N, 1]


def ambiguous_curves(leo: Job, samples: int, count: int) -> tuple[Points, np.ndarray, np.ndarray, np.ndarray]:
    """Ambiguous support sets, the sinusoids behind them [T, N], LEO's curves [T, M, N], and the grid [N]."""
    _, support, truth, grid = ambiguous(leo, count)
    found = load_best(leo.directory)
    steps, rng = found.config.EVAL_STEPS, stream(leo.seed, "samples", 4)
    curves = sample(found.learner, support, grid_of(grid, count), steps, rng, samples)
    return support, truth, curves, grid


def with_both(grid: np.ndarray, curves: np.ndarray) -> np.ndarray:
    """Which support sets have both families among their curves [T, M, N]: booleans [T]."""
    waves = sampling.looks_sinusoidal(grid, curves)
    return np.asarray(waves.any(1) & ~waves.all(1))


def exact_ambiguous(leo: Job, samples: int) -> float:
    generator, support, _, grid = ambiguous(leo, AMBIGUOUS)
    at = grid_of(grid, AMBIGUOUS)
    curves, _ = sampling.posterior_curves(generator, support, at, stream(0, "samples", 5), samples)
    return float(with_both(grid, curves).mean())


def figures(leo: Job, samples: int, columns: int = 3) -> dict[str, Figure]:
    """LEO's figure 2 by file name: test tasks, and ambiguous support sets, on scales of their own."""
    support, truth, curves, grid = ambiguous_curves(leo, samples, columns)
    found = load_best(leo.directory)
    params, tasks = found.held_out("test", SHOTS)
    # the first ones, but with both families among them
    chosen = [int(np.flatnonzero(params[:, 0] == family)[place]) for family, place in ((0, 0), (1, 0), (0, 1))][:columns]
    plain = Points(*(part[chosen] for part in tasks.support))
    at, steps, rng = grid_of(grid, columns), found.config.EVAL_STEPS, stream(leo.seed, "samples", 6)
    ordinary = sample(found.learner, plain, at, steps, rng, samples)
    names = ["a line" if params[place, 0] == 1 else "a sinusoid" for place in chosen]
    shares = sampling.looks_sinusoidal(grid, curves).mean(1)
    each = f"{samples} sampled networks for each support set of {SHOTS} noisy points"
    return {
        "paper_samples": bundle(
            grid, plain, ordinary, found.generator.curve(params[chosen], at)[..., 0], f"LEO: {each}", names
        ),
        "paper_ambiguous": bundle(
            grid,
            support,
            curves,
            truth,
            "LEO: the same, where the points are from a sinusoid but could be from a line",
            [f"{1 - share:.0%} of samples nearer to a line" for share in shares],
        ),
    }


def bundle(
    grid: np.ndarray, support: Points, curves: np.ndarray, truth: np.ndarray, title: str, names: Sequence[str]
) -> Figure:
    """One row of panels; curves [T, M, N] are coloured by the family that they are nearer to."""
    waves = sampling.looks_sinusoidal(grid, curves)
    return sample_bundle(grid, support.x[..., 0], support.y[..., 0], curves, title, truth, waves, names)


# ---- what it shows


def checks(found: SineLine) -> list[Check]:
    result = []
    for family, one in found.families.items():
        texts = [f"{mean:.3g} ± {half:.2g}" for mean, half in zip(one.means, one.intervals, strict=True)]
        what = f"sine-line, 5-shot, error on {family}"
        result.append(Check(what, "LEO below MAML, intervals apart", f"{texts[0]} against {texts[1]}", one.holds))
    sampled = [one.judgement for one in found.bundles if one.label == "LEO, sampled"]
    correlations, covered = [one.correlation for one in sampled], [one.coverage for one in sampled]
    holds = all(one.value >= LEAST_CORRELATION and one.low > 0 for one in correlations)
    must = f"rank correlation of spread and error at least {LEAST_CORRELATION:g}, interval above 0"
    result.append(Check("sine-line, LEO's sampled curves", must, listed(correlations), holds))
    what = "sine-line, coverage of the 90% interval of LEO's samples and the known noise"
    result.append(Check(what, "reported; 85 to 95% striven for", listed(covered), None))
    shares = ", ".join(f"{share:.0%}" for share in found.both_families)
    must = f"both families among {found.samples} samples"
    measured = f"so for {shares} of {AMBIGUOUS} such sets (each seed; exact posterior {found.exact_both_families:.0%})"
    result.append(Check("sine-line, ambiguous support sets, LEO", must, measured, min(found.both_families) > 0.5))
    return result


def listed(values: Sequence[Estimate]) -> str:
    return "; ".join(map(str, values)) + (" (each seed)" if len(values) > 1 else "")


def section(found: SineLine) -> str:
    """The section of PAPER.md."""
    rows = []
    for family, one in found.families.items():
        values = [f"{mean:.3g} ± {half:.2g}" for mean, half in zip(one.means, one.intervals, strict=True)]
        difference = f"{one.difference:.3g} ± {one.difference_ci:.2g}"
        rows.append(
            [family, *values, difference, "yes" if one.seeds_agree else "no", "holds" if one.holds else "does not hold"]
        )
    families = table(["family", "LEO", "MAML", "MAML minus LEO", "in every seed", "LEO < MAML"], rows)
    rows = []
    for label, seed, judgement in found.bundles:
        several = "sampled" in label or label == "exact posterior"
        cells = [f"{value.value:.3g} ± {value.high - value.value:.2g}" for value in judgement.mse.values()]
        cells += [f"{judgement.coverage.value:.1%}", f"{judgement.nll.value:.3f}"]
        cells += [str(judgement.correlation), str(judgement.correlation_within)] if several else ["", ""]
        rows.append([label, "" if seed is None else str(seed), *cells])
    header = ["curves", "seed", "error, sinusoids", "error, lines", "error, all", "90% coverage", "NLL"]
    bundles = table([*header, "spread against error", "within a task"], rows)
    return (
        "Half sinusoids, half lines, targets with noise of standard deviation 0.3; trained and tested 5-shot. "
        "MAML takes 10 gradients, LEO the 5 in z that it was trained with.\n\n"
        f"{families}\n\n"
        "Errors are against the noise-free function, on all test tasks, with LEO's code and weights at their means.\n\n"
        f"{bundles}\n\n"
        f"On the first {JUDGED} test tasks, {found.samples} sampled curves each. Error: of the mean curve. Coverage: share of "
        "noisy held-out targets in the central 90% interval of the curves and the known noise. NLL: nats a point, of the "
        "mixture of Gaussians around the curves (of one Gaussian, where there is one curve). Spread against error: Spearman's "
        "correlation between the standard deviation of the curves and the error of their mean, over all held-out points (its "
        "interval by a bootstrap of tasks), and within each task. The exact posterior is the limit for any method. "
        f"Noise x {WARMER:g}: samples of spreads as much wider as covers 90% of *validation* targets (seed 0); it widens the "
        "intervals, and does not lower NLL.\n\n"
        "![sampled networks on test tasks](../docs/paper_samples.png)\n\n"
        "![sampled networks on ambiguous support sets](../docs/paper_ambiguous.png)\n\n"
        "Above, test tasks; below, points from the nearly straight stretch of a sinusoid, which a line could have given: both "
        f"families are among the {found.samples} samples for "
        f"{', '.join(f'{share:.0%}' for share in found.both_families)} of {AMBIGUOUS} such support sets (each seed), and for "
        f"{found.exact_both_families:.0%} with the exact posterior."
    )

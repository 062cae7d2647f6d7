"""Check the linear mixed model of tables against statsmodels, on the same draws.

    python benchmarks/tables/baselines.py
    python benchmarks/tables/baselines.py --quick

Both tables of `examples/`, two splits each, K = 4. Prints a table; exits with code 1 where an error differs by more than 1%.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the project, wherever the script is called from

from benchmarks.common import ROOT, new_parser, parse, progress, table
from benchmarks.tables.methods import TABLES
from dataset import Points, training_points
from evaluation.baselines import baseline_errors, mixed_model
from methods.mixed_model import Estimate, Splines, choose_mixed_model, fit_mixed_model, spline_features
from tables.table import read_table
from tables.tasks import TableTaskGenerator

SHOTS = 4
ALLOWED = 0.01  # relative difference of errors


Model = tuple[Splines, Estimate]


def statsmodels_mixed_model(train: Sequence[Points], own: Model, start: bool) -> Model:
    """MixedLM with the same features, by maximum likelihood; its estimates in this project's formula of prediction.

    Args:
        start: optimise from `own`. From its own start MixedLM does not get to the maximum with four features or more.
    """
    from statsmodels.regression.mixed_linear_model import MixedLM, MixedLMParams

    splines, (beta, covariance, noise, likelihood) = own
    x, y = (np.concatenate(parts) for parts in zip(*train, strict=True))
    features, groups = splines(torch.from_numpy(x)).numpy(), np.repeat(np.arange(len(train)), [len(one.y) for one in train])
    first = MixedLMParams.from_components(fe_params=beta.numpy(), cov_re=covariance.numpy() / noise) if start else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an estimate at the boundary is one
        fit = MixedLM(y[:, 0], features, groups, exog_re=features).fit
        found = fit(start_params=first, reml=False, method=["lbfgs", "bfgs"], maxiter=2000)
    beta, covariance = (torch.from_numpy(np.array(part)) for part in (found.fe_params, found.cov_re))
    progress(f"{len(beta)} features, log likelihood {likelihood:.2f}, statsmodels {found.llf:.2f}")
    return splines, Estimate(beta, covariance, float(found.scale), float(found.llf))


def check(name: str, seed: int) -> list[tuple[str, float, float]]:
    """The errors of each model and of its counterpart: (model, own, other)."""
    generator = TableTaskGenerator(read_table(ROOT / "examples" / f"{name}.csv", TABLES[name], seed=seed))
    train, held_out = training_points(generator), generator.held_out("test", 0, SHOTS, 0)
    lines = spline_features(torch.from_numpy(np.concatenate([points.x for points in train])), 2)
    models = {"with straight lines": (lines, fit_mixed_model(train, lines)), "as runs use it": choose_mixed_model(train)}
    rows = []
    for title, own in models.items():
        other = statsmodels_mixed_model(train, own, start=own[0] is not lines)
        errors = (float(np.nanmean(baseline_errors(mixed_model(*model), held_out))) for model in (own, other))
        rows.append((title, *errors))
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(
        new_parser(__doc__, output=False), argv, {"tables": list(TABLES), "splits": 2}, {"tables": ["chicks"], "splits": 1}
    )
    rows, far = [], False
    for name in args.tables:
        for split in range(args.splits):
            for model, own, other in check(name, split):
                difference = abs(own - other) / other
                far |= not difference <= ALLOWED
                rows.append([f"{name}, split {split}", model, f"{own:.6f}", f"{other:.6f}", f"{100 * difference:.4f}%"])
    print(table(["table", "linear mixed model", "own error", "statsmodels", "difference"], rows, left=2))
    return int(far)


if __name__ == "__main__":
    sys.exit(main())

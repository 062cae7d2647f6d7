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

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the project, wherever the script is called from

from benchmarks.common import ROOT, new_parser, parse, progress, table
from benchmarks.tables.methods import TABLES
from dataset import Points
from evaluation.baselines import MixedModel, baseline_errors, choose_mixed_model, fit_mixed_model, spline_features
from tables.table import read_table
from tables.tasks import TableTaskGenerator

SHOTS = 4
ALLOWED = 0.01  # relative difference of errors


def statsmodels_mixed_model(train: Sequence[Points], own: MixedModel, start: bool) -> MixedModel:
    """MixedLM with the same features, by maximum likelihood; its estimates in this project's formula of prediction.

    Args:
        start: optimise from `own`. From its own start MixedLM does not get to the maximum with four features or more.
    """
    from statsmodels.regression.mixed_linear_model import MixedLM, MixedLMParams

    features = np.concatenate([own.features(points.x) for points in train])
    targets = np.concatenate([points.y[:, 0] for points in train])
    groups = np.repeat(np.arange(len(train)), [len(points.y) for points in train])
    first = MixedLMParams.from_components(fe_params=own.beta[:, 0], cov_re=own.covariance / own.noise) if start else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an estimate at the boundary is one
        fit = MixedLM(targets, features, groups, exog_re=features).fit
        found = fit(start_params=first, reml=False, method=["lbfgs", "bfgs"], maxiter=2000)
    covariance = np.asarray(found.cov_re)
    other = MixedModel(own.features, np.asarray(found.fe_params)[:, None], covariance, float(found.scale), float(found.llf))
    progress(f"{len(covariance)} features, log likelihood {own.likelihood:.2f}, statsmodels {other.likelihood:.2f}")
    for place, points in enumerate(train):
        fitted = own.features(points.x) @ (found.fe_params + np.asarray(found.random_effects[place]))
        ours = other.predict(Points(points.x[None], points.y[None]), points.x[None])[0]
        np.testing.assert_allclose(ours, fitted, atol=1e-6)  # given the variances, the predictions are the same
    return other


def check(name: str, seed: int, quick: bool) -> list[tuple[str, float, float]]:
    """The errors of each model and of its counterpart: (model, own, other)."""
    generator = TableTaskGenerator(read_table(ROOT / "examples" / f"{name}.csv", TABLES[name], seed=seed))
    train = [Points(*(part.astype(float) for part in points)) for points in generator.measurements("train") or []]
    held_out = generator.held_out("test", 0, SHOTS, 0)
    line = fit_mixed_model(train, spline_features(np.concatenate([points.x for points in train]), 2))
    pairs = {"with straight lines": (line, statsmodels_mixed_model(train, line, start=False))}
    if not quick:
        model = choose_mixed_model(train)
        pairs["as runs use it"] = model, statsmodels_mixed_model(train, model, start=True)
    errors = {key: [float(np.nanmean(baseline_errors(one.predict, held_out))) for one in pair] for key, pair in pairs.items()}
    return [(key, own, other) for key, (own, other) in errors.items()]


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(
        new_parser(__doc__, output=False), argv, {"tables": list(TABLES), "splits": 2}, {"tables": ["chicks"], "splits": 1}
    )
    rows, far = [], False
    for name in args.tables:
        for split in range(args.splits):
            for model, own, other in check(name, split, args.quick):
                difference = abs(own - other) / other
                far |= not difference <= ALLOWED
                rows.append([f"{name}, split {split}", model, f"{own:.6f}", f"{other:.6f}", f"{100 * difference:.4f}%"])
    print(table(["table", "linear mixed model", "own error", "statsmodels", "difference"], rows, left=2))
    return int(far)


if __name__ == "__main__":
    sys.exit(main())

"""Check the baselines of tables against statsmodels and scikit-learn, on the same draws.

    python benchmarks/tables/baselines.py
    python benchmarks/tables/baselines.py --quick

Both tables of `examples/`, two splits each, K = 4. Prints a table; exits with code 1 where a baseline's error differs from
the other library's by more than is allowed.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the project, wherever the script is called from

from dataset import Array, Points
from evaluation.baselines import (
    MixedModel,
    baseline_errors,
    choose_mixed_model,
    fit_mixed_model,
    nearest_subject,
    shifted_mean_curve,
    spline_features,
)
from tables.table import read_table
from tables.tasks import TableTaskGenerator

ROOT = Path(__file__).resolve().parents[2]
SHOTS = 4
TABLES = {"chicks": ("task=Chick", "x=Time", "y=weight"), "spruce": ()}
ALLOWED = {"mean curve, shifted": 1e-6, "nearest training subject": 1e-6}  # relative difference of errors; 1% of mixed models

Predict = Callable[[Points, Array], Array]


def statsmodels_mixed_model(train: Sequence[Points], own: MixedModel, start: bool) -> Predict:
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
    print(f"    {len(covariance)} features, log likelihood {own.likelihood:.2f}, statsmodels {other.likelihood:.2f}")
    for place, points in enumerate(train):
        fitted = own.features(points.x) @ (found.fe_params + np.asarray(found.random_effects[place]))
        ours = other.predict(Points(points.x[None], points.y[None]), points.x[None])[0]
        np.testing.assert_allclose(ours, fitted, atol=1e-6)  # given the variances, the predictions are the same
    return other.predict


def regression_on_patsy_splines(train: Sequence[Points]) -> Predict:
    """scikit-learn's LinearRegression on patsy's natural cubic spline with the same knots, shifted to the support points."""
    from patsy import dmatrix
    from sklearn.linear_model import LinearRegression

    x, y = (np.concatenate(parts)[:, 0] for parts in zip(*train, strict=True))
    knots = np.unique(np.quantile(x, np.linspace(0, 1, 10)))
    formula = "cr(x, knots=knots[1:-1], lower_bound=knots[0], upper_bound=knots[-1]) - 1"

    def features(x: Array) -> Array:
        inside = np.clip(x.ravel(), knots[0], knots[-1])  # both tables' test subjects were measured at the same times
        return np.asarray(dmatrix(formula, {"x": inside, "knots": knots}))

    model = LinearRegression(fit_intercept=False).fit(features(x), y)

    def predict(support: Points, x: Array) -> Array:
        known, asked = (model.predict(features(part)).reshape(part.shape[:2]) for part in (support.x, x))
        return asked + (support.y[..., 0] - known).mean(1, keepdims=True)

    return predict


def nearest_neighbour(train: Sequence[Points]) -> Predict:
    """scikit-learn's KNeighborsRegressor from the values at the support points to those at the query points."""
    from scipy.interpolate import interp1d
    from sklearn.neighbors import KNeighborsRegressor

    ends = [(points.y[0, 0], points.y[-1, 0]) for points in train]
    curves = [
        interp1d(points.x[:, 0], points.y[:, 0], bounds_error=False, fill_value=end)
        for points, end in zip(train, ends, strict=True)
    ]

    def one(x: Array, y: Array, asked: Array) -> Array:
        known, targets = (np.stack([curve(places[:, 0]) for curve in curves]) for places in (x, asked))
        return KNeighborsRegressor(n_neighbors=1).fit(known, targets).predict(y.T)[0]

    return lambda support, x: np.stack([one(*row) for row in zip(*support, x, strict=True)])


def check(name: str, seed: int, quick: bool) -> list[tuple[str, float, float]]:
    """The errors of each baseline and of its counterpart: (baseline, own, other)."""
    generator = TableTaskGenerator(read_table(ROOT / "examples" / f"{name}.csv", TABLES[name], seed=seed))
    train = [Points(*(part.astype(float) for part in points)) for points in generator.measurements("train") or []]
    held_out = generator.held_out("test", 0, SHOTS, 0)
    line = fit_mixed_model(train, spline_features(np.concatenate([points.x for points in train]), 2))
    pairs: dict[str, tuple[Predict, Predict]] = {
        "mixed model, straight line": (line.predict, statsmodels_mixed_model(train, line, start=False)),
        "mean curve, shifted": (shifted_mean_curve(train), regression_on_patsy_splines(train)),
        "nearest training subject": (nearest_subject(train), nearest_neighbour(train)),
    }
    if not quick:
        model = choose_mixed_model(train)
        pairs["linear mixed model"] = model.predict, statsmodels_mixed_model(train, model, start=True)
    errors = {key: [float(np.nanmean(baseline_errors(one, held_out))) for one in pair] for key, pair in pairs.items()}
    return [(key, own, other) for key, (own, other) in errors.items()]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one table, one split, the mixed model of straight lines only")
    args = parser.parse_args(argv)
    failed = False
    for name in list(TABLES)[: 1 if args.quick else None]:
        for seed in range(1 if args.quick else 2):
            print(f"{name}, split {seed}")
            for baseline, own, other in check(name, seed, args.quick):
                difference = abs(own - other) / other
                passed = difference <= ALLOWED.get(baseline, 0.01)
                failed |= not passed
                print(f"  {baseline:<28}{own:.6f}  {other:.6f}  {100 * difference:.4f}%{'' if passed else '  TOO FAR'}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())

"""The papers' comparison: end to end in its quick version, and its parts: the baselines, and checks that can fail."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from benchmarks.paper import baselines, checks, figures, methods, paper, sampling
from benchmarks.runs import Run, new_run, train
from config import Config
from dataset import SineLineTaskGenerator
from system.errors import RunError
from tests.tools.methods import TRAINED

SMALLER = {"NUM_TASKS": 30, "EVAL_TASKS": 16, "VALIDATION_TASKS": 4}  # than the quick version


def new(label: str, folder: Path, settings: dict[str, Any] | None = None, seed: int = 0) -> Run:
    """A run of the quick comparison, with some settings."""
    one = methods.TRAININGS[label]
    smaller = methods.QUICK | SMALLER | (settings or {})
    return new_run(label, one.method, one.tasks, folder, one.settings | {"RANDOM_SEED": seed}, smaller)


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the quick version writes."""
    directory = tmp_path_factory.mktemp("paper")
    small = [word for key, value in SMALLER.items() for word in ("--set", f"{key}={value}")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paper, "adaptation_animation", two_frames)
        assert paper.main(["--quick", "--seeds", "0", "--output", str(directory), *small]) == 0
    return directory


def two_frames(grid: Any, truth: Any, x: Any, y: Any, paths: dict[str, Any], title: str) -> bytes:
    """The animation without most of its frames, each of which takes a second to draw."""
    return figures.adaptation_animation(grid, truth, x, y, {label: path[:2] for label, path in paths.items()}, title)


def test_everything_is_written(output: Path) -> None:
    text = (output / "benchmarks" / "PAPER.md").read_text(encoding="utf-8")
    assert (output / "docs" / "adaptation.gif").read_bytes().startswith(b"GIF89a") and "](../docs/adaptation.gif)" in text
    for name in ("paper_gradients", "paper_shots", "paper_samples", "paper_ambiguous"):
        assert (output / "docs" / f"{name}.png").read_bytes().startswith(b"\x89PNG") and f"](../docs/{name}.png)" in text
    for words in ("0.67 / 0.38 / 0.35", "recalled", "second hand", "* commit: ", "* seeds: 0", "not the papers' settings"):
        assert words in text
    assert all(f"| **{label}**" in text for label in methods.ROWS) and " nan" not in text
    (order,) = [line for line in text.splitlines() if line.startswith("| order of methods")]
    assert "not shown: " in order and order.rstrip(" |").endswith("does not hold"), "tiny runs are in no order"


def test_the_table_has_every_method_at_every_k(output: Path) -> None:
    rows = list(csv.DictReader((output / "benchmarks" / "results" / "paper.csv").read_text().splitlines()))
    found = {(row["group"], int(row["shots"]), int(row["gradients"])) for row in rows}
    assert found == {(label, shots, step) for label in methods.ROWS for shots in (5, 10, 20) for step in range(11)}
    assert {(row["seeds"], row["tasks"]) for row in rows} == {("1", "16")}
    trained = [row.training for label, row in methods.ROWS.items() if label not in methods.BASELINES]
    assert {training.method for training in trained if training} <= set(TRAINED)


def test_unusable_flags_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for flags in (["--workers", "-1"], ["--seeds", "1", "1"], ["--set", "WIDTH=3"], ["--seeds", "-1"]):
        try:
            code = paper.main(["--quick", "--output", str(tmp_path), *flags])
        except SystemExit as stop:
            code = stop.code  # type: ignore[assignment]
        assert code == 2 and "got " in capsys.readouterr().err and not any(tmp_path.iterdir())


def test_what_is_complete_is_not_trained_again_and_its_time_is_checked(output: Path) -> None:
    runs = [new(label, output / "benchmarks" / "runs") for label in methods.TRAININGS]
    assert train(runs, 0) == 0
    spent = [(len(runs), 3599.0), (len(runs), 3601.0), (1, 10.0)]
    assert [paper.time_check(runs, *one).holds for one in spent] == [True, False, None]


def test_a_run_is_kept_by_the_settings_that_have_an_effect_and_one_that_fails_is_named(tmp_path: Path) -> None:
    one = new("LEO", tmp_path)
    assert new("LEO", tmp_path, {"LOG_INTERVAL": 7}).directory == one.directory
    assert new("LEO", tmp_path, {"HIDDEN_DIM": 9}).directory != one.directory != new("LEO", tmp_path, seed=1).directory
    with pytest.raises(RunError, match=r"oracle, seed 0 .*DEVICE can't be used") as caught:
        train([new("oracle", tmp_path, {"DEVICE": "cuda:99"})], 0)
    assert caught.value.code == 2


def test_a_step_size_is_chosen_on_validation_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that is best on the test tasks is never even evaluated on them; one that diverges is not chosen."""
    of = {0.01: {"validation": 2.0, "test": 1.0}, 0.1: {"validation": 1.0, "test": 2.0}, 1.0: {"validation": np.nan}}
    config = Config(EVAL_SHOTS=(5,), EVAL_STEPS=3)

    def experiment(size: float) -> SimpleNamespace:
        return SimpleNamespace(learner=of[size], config=config, held_out=lambda purpose, shots: (None, purpose))

    monkeypatch.setattr(
        "benchmarks.paper.baselines.errors", lambda found, purpose, steps: np.full((4, steps + 1), found[purpose])
    )
    found = baselines.fine_tuned("pretrained", experiment, [*of])  # type: ignore[arg-type]
    assert found.step_sizes == {5: 0.1} and found.validation[5][0.01] == 2.0
    assert (found.entry.errors[5] == 2.0).all()


IN_ORDER = {"oracle": 0.004, "LEO": 0.002, "MAML": 0.1, "first-order MAML": 0.15, "pretrained": 2.0, "random": 3.0}


def with_means(means: dict[str, float], spread: float = 0.1) -> dict[str, np.ndarray]:
    """Errors [2, 400] of two seeds with these means, in units of which `spread` is the standard deviation."""
    noise = np.random.default_rng(0).standard_normal((2, 400))
    noise -= noise.mean(1, keepdims=True)
    return {label: mean * (1 + spread * noise) for label, mean in means.items()}


BROKEN = {
    "LEO < MAML": {"LEO": 0.2},
    "oracle < MAML": {"oracle": 0.0999},  # lower in every task, but intervals that overlap
    "MAML <= first-order MAML": {"MAML": 0.2, "first-order MAML": 0.19},
    "pretrained < random": {"pretrained": float("inf")},
}


def test_the_order_holds_only_where_it_is_there() -> None:
    pairs = checks.compare_in_order(with_means(IN_ORDER))
    assert [one.holds for one in pairs] == [True] * 5 and checks.order_check(pairs).verdict == "holds"
    for broken, change in BROKEN.items():
        check = checks.order_check(checks.compare_in_order(with_means(IN_ORDER | change)))
        assert check.verdict == "does not hold" and broken in check.measured
    equal = with_means({"MAML": 1.0, "first-order MAML": 1.0})  # fit at most, but not below
    assert checks.compare_pair("MAML", "<=", "first-order MAML", equal).holds
    assert not checks.compare_pair("MAML", "<", "first-order MAML", equal).holds


def test_thresholds_are_kept() -> None:
    assert checks.better_than_published([0.6, 0.3, 0.3], [0.67, 0.38, 0.35]).holds
    assert not checks.better_than_published([0.6, 0.39, 0.3], [0.67, 0.38, 0.35]).holds
    assert [checks.times_better("", better, 0.2, 20).holds for better in (0.01, 0.0101, np.nan)] == [True, False, False]


GRID = np.linspace(-5, 5, 101)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(5)


@pytest.fixture
def generator() -> SineLineTaskGenerator:
    return SineLineTaskGenerator()


def test_a_single_curve_has_the_gaussian_interval_and_likelihood(rng: np.random.Generator) -> None:
    targets = np.array([[-1.66, -1.63, 0.0, 1.63, 1.66]]) * 0.3  # the 95% point is 1.645
    assert sampling.coverage(np.zeros((1, 1, 5)), targets, 0.3) == pytest.approx(0.6)
    curve, targets = rng.normal(size=(3, 1, 7)), rng.normal(size=(3, 7))
    expected = 0.5 * np.square((targets - curve[:, 0]) / 0.3) + math.log(0.3) + 0.5 * math.log(2 * math.pi)
    assert_allclose(sampling.negative_log_likelihood(curve, targets, 0.3), expected.mean(1))


def test_lines_and_sinusoids_are_distinguished(rng: np.random.Generator, generator: SineLineTaskGenerator) -> None:
    params = generator.draw(500, rng)
    params[:, 1] = np.maximum(params[:, 1], 1)  # a sinusoid flatter than the wobble below is none
    curves = generator.curve(params, np.broadcast_to(GRID[:, None], (500, 101, 1)))[..., 0]
    wobble = 0.2 * np.sin(2.3 * GRID + rng.uniform(0, 6, (500, 1)))
    clear = (params[:, 0] == 0) | (np.abs(params[:, 3]) > 0.3)
    assert_array_equal(sampling.looks_sinusoidal(GRID, curves + wobble)[clear], params[clear, 0] == 0)


def test_exact_posterior_is_calibrated_by_every_metric(generator: SineLineTaskGenerator) -> None:
    rng = np.random.default_rng(0)
    params, task, _ = generator.held_out("test", 60, 5, 50)
    curves, _ = sampling.posterior_curves(generator, task.support, task.query.x, rng, 100, 50_000)
    truth, is_line = task.query.y[..., 0], params[:, 0] == 1
    metrics, single = (sampling.sample_metrics(some, truth, is_line, 0.3, rng) for some in (curves, curves[:, :1]))
    assert 0.86 < metrics.coverage.value < 0.94
    assert metrics.correlation.low > 0.1 and metrics.correlation.value > 0.3
    assert metrics.nll.value < single.nll.value and math.isnan(single.correlation.value)
    assert metrics.mse["all"].value < single.mse["all"].value  # the mean is the best single prediction


def test_ambiguous_supports_leave_the_family_open(rng: np.random.Generator, generator: SineLineTaskGenerator) -> None:
    support, waves = sampling.ambiguous_supports(generator, 8, 5, rng)
    assert support.x.shape == support.y.shape == (8, 5, 1) and (waves[:, 2] <= math.pi).all()  # within the prior's range
    assert np.abs(generator.curve(waves, support.x) - support.y).max() < 5 * 0.3
    curves, drawn = sampling.posterior_curves(generator, support, support.x, rng, 100, 50_000)
    share = (drawn[..., 0] == 0).mean(1)  # of sinusoids
    assert ((share > 0.02) & (share < 0.98)).all() and 0.2 < share.mean() < 0.8
    assert np.abs(curves.mean(1) - support.y[..., 0]).mean() < 0.3, "the posterior fits what it has seen"

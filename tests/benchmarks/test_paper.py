"""The papers' comparison: end to end in its quick version, and its parts: the baselines, and checks that can fail."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image  # matplotlib brings it

import registry
from benchmarks.paper import baselines, checks, figures, methods, paper
from benchmarks.project import errors, load_best
from benchmarks.runs import Run, new_run, train
from config import Config
from evaluation.comparison import Entry, compare_entries
from system.errors import RunError

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
    assert {training.method for training in trained if training} == set(registry.METHODS)


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


def test_fine_tuning_a_pretrained_network_takes_its_weights(output: Path) -> None:
    directory = new("pretrained", output / "benchmarks" / "runs").directory
    assert json.loads((directory / "config.json").read_bytes())["INNER_STEPS"] == 0
    trained, changed = load_best(directory), load_best(directory, {"INNER_LEARNING_RATE": 0.1})
    _, tasks, _ = trained.held_out("test", 5)
    before, after = (errors(one.learner, tasks, 1) for one in (trained, changed))
    assert (before[:, 0] == after[:, 0]).all() and (before[:, 1] != after[:, 1]).any()


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


def test_every_row_of_the_table_has_a_line_of_its_own_in_the_figures() -> None:
    """The methods in colour, the baselines in grey, all in the legend, which is below the panels."""
    values = {shots: np.random.default_rng(shots).uniform(0.5, 2.0, (30, 4)) for shots in (5, 10)}
    found = compare_entries([Entry(label, values) for label in methods.ROWS for _ in range(2)])
    drawn = figures.error_against_gradients(found, {5: {1: 0.67}}), figures.error_against_shots(found, (1, 3))
    for figure in drawn:
        (legend,) = figure.legends
        names = [text.get_text() for text in legend.get_texts()]
        assert names[: len(methods.ROWS)] == list(methods.ROWS)
        lines = {line.get_label(): line for line in figure.axes[0].lines if line.get_label() in methods.ROWS}
        assert len({(line.get_color(), str(line.get_linestyle()), line.get_marker()) for line in lines.values()}) == len(lines)
        grey = {label for label, line in lines.items() if len(set(to_rgb(line.get_color()))) == 1}
        assert grey == set(methods.BASELINES)
    assert "MAML, Finn et al. 2017" in [text.get_text() for text in drawn[0].legends[0].get_texts()]


def test_an_animation_has_a_frame_for_each_gradient_and_holds_the_last() -> None:
    grid, values = np.linspace(-5, 5, 21), np.random.default_rng(0).uniform(0.1, 2.0, (3, 21)).astype(np.float32)
    paths = {label: np.stack([*values[1:], np.full(21, np.nan, np.float32)]) for label in ("one", "two")}  # one that diverged
    data = figures.adaptation_animation(grid, values[0], grid[:4], values[0, :4], paths, seconds=0.6, hold=4)
    durations = []
    with Image.open(io.BytesIO(data)) as image:
        assert (image.format, image.info["loop"]) == ("GIF", 0)
        assert image.size[0] < 800 and len(data) < 3 / 11 * 1_000_000  # 11 frames fit into a README
        for number in range(image.n_frames):
            image.seek(number)
            durations.append(image.info["duration"])
    assert durations == [600, 600, 2400]

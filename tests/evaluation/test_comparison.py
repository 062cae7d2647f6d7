"""Runs side by side: what may be compared, how seeds and tasks are averaged, and what is written of it."""

import csv
import json
import math

import numpy as np
import pytest
from numpy.testing import assert_allclose

import main
from commands.compare import draw, read_run, write
from config import Config
from evaluation.comparison import SAME_METHOD, Entry, Row, choice, compare_entries, entries
from evaluation.statistics import geometric_mean, mean_and_interval, t_quantile
from report.rows import comparison_table
from report.text import csv_table, markdown_table, text_table
from system.errors import RunError
from system.files import to_json
from tests.tools.runs import command

TASKS = 12


def errors_of(seed, shots=(5, 10), steps=6, scale=1.0):
    rng = np.random.default_rng(seed)
    return {count: scale * rng.uniform(0.1, 2.0, (TASKS, steps + 1)) for count in shots}


def text_of(comparison):
    return text_table(comparison_table(comparison))


@pytest.fixture
def make(tmp_path):
    """Make the files of a finished run, as far as a comparison reads them."""

    def run(name, method="maml", tasks="sinusoid", params=None, **settings):
        config = Config(**({"EVAL_TASKS": TASKS, "EVAL_SHOTS": (5, 10), "EVAL_STEPS": 6} | settings))
        directory = tmp_path / name
        (directory / "plots").mkdir(parents=True)
        errors = errors_of(config.RANDOM_SEED, config.EVAL_SHOTS, config.EVAL_STEPS)
        shots = {str(count): mean_and_interval(values) for count, values in errors.items()}
        metrics = {"schema_version": 1, "method": method, "evaluation": {"num_tasks": TASKS, "shots": shots}}
        report = {"status": "complete", "tasks": tasks, "config": config.to_dict()}
        for file, value in {"metrics": metrics, "full_report": report, "config": config.to_dict()}.items():
            (directory / f"{file}.json").write_text(json.dumps(to_json(value)))
        arrays = {f"test_errors_{count}_shot": values for count, values in errors.items()}
        params = np.ones((TASKS, 3), np.float32) if params is None else params
        np.savez_compressed(directory / "plots" / "data.npz", test_params=params, **arrays)
        return directory

    return run


def refusal(*directories):
    """The one line with which a comparison of runs is refused."""
    with pytest.raises(RunError) as caught:
        compare_entries(entries([read_run(directory) for directory in directories]))
    assert caught.value.code == 2 and "\n" not in str(caught.value)
    return str(caught.value)


def labels(*directories):
    return [entry.label for entry in entries([read_run(directory) for directory in directories])]


def change(path, **entries):
    """Replace entries of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def test_a_run_of_the_command_line_can_be_compared(tmp_path):
    sizes = {"EVAL_TASKS": 4, "EVAL_STEPS": 2, "EVAL_SHOTS": [3, 4], "SUPPORT_SAMPLES": 4}
    assert main.main(command(tmp_path, "--name", "mine", **sizes)) == 0
    directory = tmp_path / "MAML_Sinusoidal_mine"
    run = read_run(directory)
    assert (run.method, run.tasks, run.config["HIDDEN_DIM"], run.params.shape) == ("maml", "sinusoid", 6, (4, 3))
    comparison = compare_entries(entries([run]))
    metrics = json.loads((directory / "metrics.json").read_text())
    evaluation = metrics["evaluation"]["shots"]
    assert run.validation[4] == pytest.approx(min(record["mse"][-1] for record in metrics["validation"]), rel=1e-5)
    assert [(row.shots, row.gradients) for row in comparison.rows] == [(k, s) for k in (0, 3, 4) for s in range(3)]
    assert_allclose([row.mean for row in comparison.rows], [value for k in "034" for value in evaluation[k]["mse"]])
    assert_allclose([row.ci_tasks for row in comparison.rows], [value for k in "034" for value in evaluation[k]["ci95"]])


@pytest.mark.parametrize("name", ["metrics.json", "full_report.json", "plots/data.npz"])
def test_a_damaged_file_is_refused_by_name(make, name):
    directory = make("run")
    path = directory / name
    whole = path.read_bytes()
    contents = {"empty": b"", "half": whole[: len(whole) // 2], "random": np.random.default_rng(0).bytes(500)}
    contents |= {"an array": b"[1, 2]", "an object": b'{"evaluation": {"shots": 3}}', "deep": b"[" * 200_000}
    for damage, content in contents.items():
        path.write_bytes(content)
        assert str(path if name == "plots/data.npz" else directory) in refusal(directory), damage
    path.unlink()
    assert str(directory) in refusal(directory)
    path.mkdir()
    assert str(directory) in refusal(directory)


def test_missing_results_unfit_arrays_and_settings_that_can_not_be_used_are_refused_with_the_file(make):
    directory = make("run")
    np.savez(directory / "plots" / "data.npz", test_params=np.ones((2, 3)), **{f"test_errors_{k}_shot": k for k in (5, 10)})
    assert "data.npz does not fit its run" in refusal(directory)
    change(directory / "full_report.json", config={"EPOCHS": -1}, status="interrupted")
    assert "full_report.json: EPOCHS can't be used" in refusal(directory)
    change(directory / "metrics.json", evaluation=None)
    assert f"{directory} has no test results (got status interrupted" in refusal(directory)


DIFFERENT = {"AMPLITUDE_MIN": 0.2, "AMPLITUDE_MAX": 4.0, "PHASE_MIN": 0.5, "PHASE_MAX": 1.0, "X_MIN": -4.0, "X_MAX": 4.0}
DIFFERENT |= {"NOISE_STD": 0.3, "INPUT_DIM": 2, "EVAL_QUERY_SAMPLES": 50}
DIFFERENT |= {key: 0.5 for key in Config().to_dict() if key.startswith(("SLOPE_M", "INTERCEPT_M"))}


def test_runs_with_other_test_tasks_are_refused_by_the_setting(make):
    first = make("first")
    for key, value in DIFFERENT.items():
        second = make(key, **{key: value})
        line = f"{second} has other test tasks than {first} (got {key}={value}; expected {key}="
        assert refusal(first, second).startswith(line)
    second = make("b")
    config = json.loads((second / "full_report.json").read_text())["config"]
    change(second / "full_report.json", config=config | {"EVAL_TASKS": 3})
    arrays = {f"test_errors_{count}_shot": np.ones((3, 7)) for count in (5, 10)}
    np.savez(second / "plots" / "data.npz", test_params=np.ones((3, 3), np.float32), **arrays)
    assert f"got EVAL_TASKS=3; expected EVAL_TASKS={TASKS}" in refusal(first, second)


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"NOISE_STD": 0.3, "X_MAX": 4.0}, "got X_MAX=4.0, NOISE_STD=0.3; expected X_MAX=5.0, NOISE_STD=0.0"),
        ({"tasks": "sine-line"}, "got task family=sine-line; expected task family=sinusoid"),
        ({"method": "leo", "EVAL_SHOTS": (20,)}, "EVAL_SHOTS has no value in common (got MAML: [5, 10]; LEO: [20]"),
        ({"RANDOM_SEED": 1, "params": np.zeros((TASKS, 3), np.float32)}, "got other test_params"),
        ({"COMPILE": "never"}, "got MAML with RANDOM_SEED=0 twice"),
    ],
    ids=["two settings", "family", "shots", "functions", "seed"],
)
def test_what_differs_or_repeats_is_named(make, settings, line):
    assert line in refusal(make("a"), make("b", **settings))


def test_other_shots_are_compared_where_they_agree_and_fewer_steps_keep_the_last_error(make):
    runs = [read_run(make("a")), read_run(make("b", method="leo", EVAL_SHOTS=(10, 20), EVAL_STEPS=3))]
    comparison = compare_entries(entries(runs))
    assert {row.shots for row in comparison.rows} == {10} and comparison.last == 6
    means = {(row.group, row.gradients): row.mean for row in comparison.rows}
    assert means["LEO", 6] == means["LEO", 3] == runs[1].errors[10][:, -1].mean() != means["LEO", 2]
    assert means["MAML", 6] == runs[0].errors[10][:, -1].mean() != means["MAML", 3]
    assert "Fewer gradients are taken by LEO 3: their last rows are after these." in text_of(comparison)


def test_labels_hold_the_settings_that_tell_runs_of_a_method_apart_and_groups_keep_their_order(make):
    runs = [make("b", method="leo", EPOCHS=3), make("a"), make("c", RANDOM_SEED=1)]
    assert labels(*runs) == ["LEO", "MAML", "MAML"]
    assert compare_entries(entries([read_run(run) for run in runs])).labels == ["LEO", "MAML"]
    other = make("d", FIRST_ORDER=True, EPOCHS=3)
    assert labels(runs[1], other, runs[0]) == ["MAML EPOCHS=70 FIRST_ORDER=false", "MAML EPOCHS=3 FIRST_ORDER=true", "LEO"]


def test_a_group_is_split_by_what_chooses_the_best_checkpoint_and_not_by_what_has_no_effect_on_the_result(make):
    other = {"DEVICE": "cuda", "COMPILE": "never", "TASK_CHUNK": 5, "EVAL_SHOTS": (10,), "DATA": "a", "COLUMNS": ("y=b",)}
    alike, first = set(SAME_METHOD) - {"RANDOM_SEED"}, make("first")
    for key in (*alike, "VALIDATION_INTERVAL", "VALIDATION_TASKS", "EVAL_STEPS"):
        second = make(key, RANDOM_SEED=1, **{key: other.get(key, 3)})
        assert len(set(labels(first, second))) == (1 if key in alike else 2), key


def test_the_method_to_use_has_the_lowest_validation_error_and_one_that_diverged_does_not_hide_it(make):
    runs = [read_run(make(method, method)) for method in ("maml", "leo", "cavia")]
    errors = {"MAML": {5: 0.1, 10: math.inf}, "LEO": {5: 0.4, 10: 0.1, 20: 9.0}, "CAVIA": {5: 0.3, 10: 0.3}}
    measured = [run._replace(validation=error) for run, error in zip(runs, errors.values(), strict=True)]
    told = "lowest validation error (K = 5, 10): LEO 0.2 (CAVIA 0.3, MAML inf); the run to use is leo"
    assert choice(measured) == told  # the geometric mean over the K that all have: 0.2 of LEO
    told = [run._replace(verdict=f"answer of {run.method}") for run in measured]
    assert choice(told).endswith("; the run to use is leo. On test tasks: answer of leo")
    assert choice(measured[:1]) == ""


def test_where_validation_errors_decide_nothing_the_reason_is_given(make):
    runs = [read_run(make(method, method))._replace(validation={5: math.inf}) for method in ("maml", "leo")]
    other_tasks = [runs[0], runs[1]._replace(config=runs[1].config | {"VALIDATION_TASKS": 7})]
    other_shots = [runs[0], runs[1]._replace(validation={10: 0.1})]
    assert choice(runs) == "no method is chosen: each diverged on a validation task"
    unrecorded = choice([run._replace(validation={}) for run in runs])
    assert unrecorded == "no method is chosen: no validation error is on record for maml, leo (--evaluate adds it)"
    assert "EVAL_SHOTS, EVAL_QUERY_SAMPLES or VALIDATION_TASKS differ" in choice(other_tasks) == choice(other_shots)


def test_a_validation_error_that_is_null_diverged(make):
    metrics = make("a") / "metrics.json"
    evaluation = json.loads(metrics.read_text())["evaluation"]
    first, second = evaluation["shots"].values()
    first["validation"], second["validation"] = None, 0.5
    change(metrics, evaluation=evaluation)
    assert list(read_run(metrics.parent).validation.values()) == [math.inf, 0.5]


def test_means_and_intervals_are_taken_over_tasks_and_one_that_diverged_shows_in_the_mean_alone():
    errors = np.random.default_rng(0).uniform(0.1, 2.0, (50, 3))
    deviation = np.sqrt(np.square(errors - errors.mean(0)).sum(0) / 49)
    assert_allclose(mean_and_interval(errors)["ci95"], 1.96 * deviation / np.sqrt(50))
    result = mean_and_interval(np.array([[1.0, 10.0], [2.0, 20.0], [6.0, 90.0]]))
    assert_allclose([result["mse"], result["median"]], [[3, 40], [2, 20]])
    for bad in (np.nan, np.inf):
        assert not np.isfinite(mean_and_interval(np.array([[1.0], [bad], [2.0]]))["mse"]).any()
    assert mean_and_interval(np.array([[1.0], [np.inf], [2.0]]))["median"] == [2.0]
    assert geometric_mean([0.1, 10.0, 1.0]) == pytest.approx(1) and geometric_mean(np.array([0.0, 3.0])) == 0
    assert geometric_mean([1.0, math.inf]) == geometric_mean([0.0, math.nan]) == math.inf


def test_students_quantiles_are_those_of_the_tables():
    quantiles = {1: 12.706, 4: 2.776, 10: 2.228, 11: 2.20099, 15: 2.13145, 30: 2.04227, 120: 1.97993, 10**6: 1.95997}
    assert_allclose([t_quantile(degrees) for degrees in quantiles], [*quantiles.values()], atol=2e-4)


@pytest.fixture
def found():
    """Two methods of three seeds each, and a baseline of one."""
    seeds = [Entry("ONE", errors_of(seed)) for seed in range(3)]
    seeds += [Entry("TWO", errors_of(seed + 3, scale=0.1)) for seed in range(3)]
    return [*seeds, Entry("baseline", errors_of(9))]


@pytest.fixture
def comparison(found):
    return compare_entries(found)


def row(comparison, group, shots=10, gradients=6):
    (chosen,) = [r for r in comparison.rows if (r.group, r.shots, r.gradients) == (group, shots, gradients)]
    return chosen


def test_a_row_holds_means_intervals_and_paired_differences(found, comparison):
    one, two = row(comparison, "ONE"), row(comparison, "TWO")
    first, second = (np.stack([e.errors[10][:, 6] for e in found if e.label == label]) for label in ("ONE", "TWO"))  # [R, T]
    each, seeds = first.mean(0), first.mean(1)
    assert (one.seeds, one.tasks) == (3, TASKS)
    assert_allclose(one.mean, first.mean())
    assert_allclose(one.ci_tasks, 1.96 * np.sqrt(np.square(each - each.mean()).sum() / 11 / TASKS))
    assert_allclose(one.ci_seeds, 4.303 * np.sqrt(np.square(seeds - seeds.mean()).sum() / 2 / 3))  # Student's
    paired = second.mean(0) - each
    assert_allclose([two.difference, two.difference_ci], [paired.mean(), 1.96 * paired.std(ddof=1) / np.sqrt(TASKS)])
    assert np.isnan([row(comparison, "baseline").ci_seeds, one.difference, one.difference_ci]).all() and one.in_words == ""


def test_a_difference_is_found_where_its_interval_excludes_zero_however_much_the_tasks_differ():
    for difference, half, verdict in ((-2, 1, "lower"), (2, 1, "higher"), (0.5, 1, "not"), (-1, 1, "not"), (0, 0, "not")):
        found = Row("a", 5, 0, 1, 9, 1.0, 0.1, 0.1, difference, half).in_words
        assert found == ("not distinguishable" if verdict == "not" else verdict)
    hard = np.random.default_rng(0).lognormal(0, 3, (50, 1))
    comparison = compare_entries([Entry("a", {5: hard}), Entry("b", {5: hard - 1e-3})])
    assert row(comparison, "b", 5, 0).in_words == "lower" and row(comparison, "b", 5, 0).ci_tasks > 1


def test_gradients_that_change_nothing_have_no_rows_of_their_own():
    solved = {5: np.repeat(errors_of(0)[5][:, :2], [1, 10], axis=1)}
    baseline = {5: np.repeat(solved[5][:, :1], 11, axis=1)}
    found = [Entry("a", solved), Entry("b", baseline), Entry("c", {5: np.linspace(solved[5][:, 0], 1, 11, axis=1)})]
    rows = [line.split()[1:3] for line in text_of(compare_entries(found)).splitlines() if line.startswith("5 ")]
    assert rows == [["0", "a"], ["0", "c"], ["1", "c"], ["5", "c"], ["10", "a"], ["10", "b"], ["10", "c"]]


def test_intervals_over_the_few_subjects_of_a_table_are_students_and_each_k_has_its_number_of_them():
    found = [Entry(name, {5: errors_of(seed)[5], 10: errors_of(seed)[10][:5]}) for seed, name in enumerate("ab")]
    subjects = compare_entries(found, subjects=True)
    for shots, count, quantile in ((5, TASKS, t_quantile(TASKS - 1)), (10, 5, 2.776)):
        expected = quantile * found[0].errors[shots][:, 1].std(ddof=1) / np.sqrt(count)
        assert_allclose(row(subjects, "a", shots, 1).ci_tasks, expected)
    assert f"over {TASKS} or 5 test tasks" in text_of(subjects)
    assert f"over {TASKS} test tasks" in text_of(compare_entries([Entry(name, errors_of(0)) for name in "ab"]))


@pytest.mark.parametrize("bad", [np.inf, np.nan, 1e308])
def test_a_diverged_task_shows_and_spoils_nothing_else(found, bad):
    found[4].errors[10][2, 4:] = bad
    found[5].errors[10][:, 4:] = bad
    comparison = compare_entries(found)
    assert not row(comparison, "TWO").mean < 1e300 and row(comparison, "TWO", gradients=3).in_words == "lower"
    assert "diverged" in text_of(comparison)
    assert csv_table(comparison) and draw(comparison, "a title")


def test_the_csv_has_a_row_for_every_group_shots_and_gradients(comparison):
    rows = list(csv.DictReader(csv_table(comparison).splitlines()))
    assert len(rows) == 3 * 2 * 7
    chosen = rows[-2]
    assert (chosen["group"], chosen["shots"], chosen["gradients"], chosen["seeds"]) == ("TWO", "10", "6", "3")
    for name in Row._fields[5:]:
        assert float(chosen[name]) == getattr(row(comparison, "TWO"), name)
    assert rows[-1]["ci_seeds"] == "" and rows[-3]["difference"] == ""


def test_the_terminals_table_shows_0_1_5_and_the_last_gradient_in_columns_and_markdown_a_cell_for_each(found, comparison):
    lines = text_of(comparison).splitlines()
    rows = [line.split() for line in lines if line.startswith("10 ")]
    assert [(row[1], row[2]) for row in rows] == [(n, g) for n in "0156" for g in ("ONE", "TWO", "baseline")]
    assert rows[-2][-1] == "lower"
    start = lines[0].index("seeds")
    assert {line[start] for line in lines if line.startswith(("5 ", "10 "))} == {"1", "3"}
    table = markdown_table(comparison_table(compare_entries([*found, Entry("a|b", errors_of(4))])), "A title")
    assert table.startswith("# A title\n\n| K |")
    rows = [line.replace("\\|", "") for line in table.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in rows} == {9} and len(rows) == 2 + 2 * 4 * 4


@pytest.mark.usefixtures("with_figures")
def test_the_files_are_written_whole_and_equal_each_time_for_few_gradients(tmp_path, monkeypatch):
    monkeypatch.setattr("visualization.png_bytes", lambda figure: b"png")
    monkeypatch.setattr("visualization.pdf_bytes", lambda *figures: b"pdf")
    for steps in (0, 1):
        comparison = compare_entries([Entry(name, errors_of(seed, (5,), steps)) for seed, name in enumerate("ab")])
        assert len(draw(comparison, "a title")["comparison_shots"].axes) == 1
        assert len(text_of(comparison).splitlines()) == 2 + 2 * (steps + 1) + 2
    files = write(tmp_path / "new" / "folder", comparison, "A title")
    names = {"comparison.md", "comparison.csv", "comparison_gradients.png", "comparison.pdf"}
    assert {file.name for file in files} == names | {"comparison_shots.png", "report.html"}
    assert {file.name for file in (tmp_path / "new" / "folder").iterdir()} == {file.name for file in files}
    before = {file: file.read_bytes() for file in files}
    write(tmp_path / "new" / "folder", comparison, "A title")
    assert all(file.read_bytes() == data for file, data in before.items())

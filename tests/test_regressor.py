"""The Python door: what goes in, what comes out in own units, what is refused, and that --predict says the same."""

import copy
import csv
import pickle
import random
import re
from array import array
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

import main
from commands.predict import predict_subjects, predictions_csv, warnings_about
from config import Config
from dataset import Points, stream
from maml import MAML
from registry import METHODS
from regressor import FewShotRegressor
from system.errors import RunError
from system.host import flushes_denormals
from tables.arrays import NotFittedError
from tables.coding import Coding
from tables.points import read_points
from tests.tools.methods import learner_of
from tests.tools.tables import toy_rows, write

X, Y = [2.0, 5.0, 9.0, 14.0, 20.0], [52.0, 55.0, 61.0, 48.0, 44.0]
AT = [0.0, 3.0, 7.0, 30.0]
SMALL = {"HIDDEN_DIM": 8, "LEO_LATENT_DIM": 4, "LEO_ENCODER_DIM": 4, "LEO_RELATION_DIM": 4, "LEO_DECODER_DIM": 4}


def model_of(method="maml", dim=1, *, own=True):
    """An untrained learner; in own units, inputs from 0 to 30 and targets of about 50."""
    config = Config.resolve(METHODS[method].defaults, SMALL, {"INPUT_DIM": dim})
    learner = learner_of(method, config)
    coding = Coding(np.array([15.0] * dim + [50.0]), np.array([15.0] * dim + [8.0]))
    return FewShotRegressor(learner, 3, coding if own else Coding.identity(dim, (-1, 1)))


class Column:
    """What a column or a frame of pandas offers."""

    def __init__(self, values, dtype=float):
        self.values, self.dtype = values, dtype

    def __array__(self, dtype=None, copy=None):
        return np.array(self.values, dtype or self.dtype)


KINDS = {
    "lists": list,
    "tuples": tuple,
    "lists of rows": lambda values: [[value] for value in values],
    "int32": lambda values: np.array(values, np.int32),
    "uint8": lambda values: np.array(values, np.uint8),
    "float16": lambda values: np.array(values, np.float16),
    "columns of an array in Fortran's order": lambda values: np.asfortranarray(np.tile(np.array(values)[:, None], 3))[:, :1],
    "every second number of an array": lambda values: np.repeat(np.array(values), 2)[::2],
    "integers of torch": lambda values: torch.tensor(values).long(),
    "torch, with a gradient": lambda values: torch.tensor(values, requires_grad=True),
    "bfloat16 of torch": lambda values: torch.tensor(values, dtype=torch.bfloat16),
    "numbers of numpy in a list": lambda values: [np.float32(value) for value in values],
    "a column of pandas": Column,
    "a nullable column of pandas": lambda values: Column([int(value) for value in values], object),
    "a frame of pandas": lambda values: Column([[value] for value in values]),
    "array.array": lambda values: array("d", values),
    "a masked array without a mask": lambda values: np.ma.masked_array(values),
}


def test_the_same_numbers_of_any_kind_give_equal_predictions():
    expected = model_of().fit(np.array(X), np.array(Y)).predict(np.array(AT))
    for kind, made in KINDS.items():
        found = model_of().fit(made(X), made(Y)).predict(made(AT))
        assert (found.shape, found.dtype) == ((4,), np.float64)
        assert_array_equal(found, expected, kind)


def test_inputs_of_several_columns_are_scaled_each_by_itself():
    rng, model = np.random.default_rng(0), model_of(dim=2)
    x, y = rng.uniform(0, 30, (6, 2)), rng.uniform(40, 60, 6)
    expected = model.fit(x, y).predict(x)
    model.coding.centre[1], model.coding.unit[1] = 1e6, 3.0
    moved = np.stack([x[:, 0], 1e6 + (x[:, 1] - 15) / 5], axis=1)
    assert_allclose(model.fit(moved, y[:, None]).predict(moved), expected, rtol=1e-6)
    expected, model = model_of().fit(X, Y).predict(AT), model_of()  # large offsets lose nothing
    model.coding.centre[:] += [1.7e9, 1e6]
    found = model.fit(np.array(X) + 1.7e9, np.array(Y) + 1e6).predict(np.array(AT) + 1.7e9)
    assert_allclose(found - 1e6, expected, rtol=1e-6)


WRONG = {
    "a question before fit": (lambda m: m.predict(AT), "expected fit"),
    "samples before fit": (lambda m: m.sample(AT), "expected fit"),
    "different lengths": (lambda m: m.fit(X, Y[:3]), "got 5 and 3"),
    "NaN": (lambda m: m.fit(X, [1, 2, np.nan, 4, 5]), "y can't be used (got nan in row 2"),
    "infinity": (lambda m: m.fit(X, Y).predict([1, -np.inf]), "x can't be used (got -inf in row 1"),
    "a masked number": (lambda m: m.fit(np.ma.masked_array(X, [0, 0, 0, 1, 0]), Y), "got nan in row 3"),
    "words": (lambda m: m.fit(["1", "2", "3", "4", "5"], Y), "no array of numbers (got text"),
    "a word in a column": (lambda m: m.fit(Column([1, 2, "x", 4, 5], object), Y), "got str"),
    "a missing value": (lambda m: m.fit([1, None, 3, 4, 5], Y), "got NoneType"),
    "booleans": (lambda m: m.fit(np.array(X) > 6, Y), "got bool"),
    "a boolean among numbers": (lambda m: m.fit([True, 2.0, 3.0, 4.0, 5.0], Y), "got bool"),
    "booleans in rows": (lambda m: m.fit([[value > 6] for value in X], Y), "got bool"),
    "booleans as objects": (lambda m: m.fit(np.array(X, object) > 6, Y), "got bool"),
    "a sparse tensor": (lambda m: m.fit(torch.ones(5).to_sparse(), Y), "no array of numbers"),
    "a tensor without numbers": (lambda m: m.fit(torch.ones(5, device="meta"), Y), "no array of numbers"),
    "numbers with gradients in a list": (lambda m: m.fit([torch.ones((), requires_grad=True)] * 5, Y), "no array of numbers"),
    "no tasks": (lambda m: m.fit_many(None, None), "xs is no sequence (got NoneType"),
    "questions of no tasks": (lambda m: m.fit(X, Y).predict_many(3.0), "xs is no sequence (got float"),
    "complex numbers": (lambda m: m.fit(np.array(X) + 1j, Y), "got complex128"),
    "dates": (lambda m: m.fit(np.array(["2024-01-01"] * 5, "datetime64[s]"), Y), "got datetime64[s]"),
    "rows of different lengths": (lambda m: m.fit([[1], [2, 3], [4], [5], [6]], Y), "no array of numbers"),
    "one number": (lambda m: m.fit(3.0, 4.0), "got []; expected [N] or [N, 1]"),
    "another D": (lambda m: m.fit(np.ones((5, 2)), Y), "got [5, 2]; expected [N] or [N, 1]"),
    "targets of two columns": (lambda m: m.fit(X, np.ones((5, 2))), "y has a shape"),
    "a dictionary": (lambda m: m.fit({"x": X}, Y), "got dict"),
    "a huge integer": (lambda m: m.fit([10**400, 1, 2, 3, 4], Y), "no array of numbers"),
    "a number out of reach": (lambda m: m.fit([1e300, 1, 2, 3, 4], Y), "got 1e+300 in row 0"),
    "samples of a method without randomness": (lambda m: m.fit(X, Y).sample(AT), "no randomness"),
    "a deviation without intervals": (lambda m: m.fit(X, Y).predict(AT, return_std=True), "no calibrated intervals"),
    "no samples at all": (lambda m: model_of("leo").fit(X, Y).sample(AT, 0), "num_samples can't be used (got 0"),
    "samples of a seed below zero": (lambda m: model_of("leo").fit(X, Y).sample(AT, seed=-1), "seed can't be used (got -1"),
    "samples of half a seed": (lambda m: model_of("leo").fit(X, Y).sample(AT, seed=1.5), "seed can't be used (got 1.5"),
    "intervals without a calibration": (lambda m: m.fit(X, Y).predict_interval(AT), "no calibrated intervals"),
    "a coverage of 90": (lambda m: m.fit(X, Y).predict_interval(AT, 90), "got 90; expected a share"),
    "a coverage of 1": (lambda m: m.fit(X, Y).predict_interval(AT, 1.0), "got 1.0; expected a share"),
    "no task": (lambda m: m.fit_many([], []), "at least one"),
    "a task too many": (lambda m: m.fit(X, Y).predict_many([AT, AT]), "got 2; expected 1"),
    "one question for two tasks": (lambda m: m.fit_many([X, X], [Y, Y]).predict(AT), "expected 2, as fitted, by predict_many"),
    "another parameter": (lambda m: m.set_params(alpha=1), "alpha can't be set (got 1; expected steps"),
    "no number of steps": (lambda m: m.set_params(steps=True), "got True"),
    "steps below zero": (lambda m: m.set_params(steps=-1), "got -1"),
}


def test_predictions_that_are_not_finite_are_warned_about():
    model = model_of().fit_many([X, X], [Y, Y])
    assert len(model.predict_many([AT, AT])) == 2  # without a warning, which would be an error here
    with torch.no_grad():
        model.learner.theta.fill_(1e30)
    model.fit_many([X, X], [Y, Y])
    with pytest.warns(RuntimeWarning, match=r"adapting diverged \(got .* not finite in 2 of 2 tasks; expected finite ones\)"):
        model.predict_many([AT, AT])
    with pytest.warns(RuntimeWarning, match="in 1 of 1 tasks"):
        assert not np.isfinite(model.fit(X, Y).predict(AT)).any()


def test_what_can_not_be_used_is_a_value_error_of_one_line():
    for name, (ask, says) in WRONG.items():
        with pytest.raises(ValueError) as refusal:
            ask(model_of())
        text = str(refusal.value)
        assert says in text and "\n" not in text and text.endswith(")") and "; expected" in text, name
    for x in (X, np.ones((5, 1)), np.ones((5, 2, 1))):
        with pytest.raises(ValueError, match=r"expected \[N, 2\]"):
            model_of(dim=2).fit(x, Y)
    with pytest.raises(NotFittedError) as refusal:  # is one of scikit-learn's two kinds
        model_of().predict(AT)
    assert isinstance(refusal.value, ValueError) and isinstance(refusal.value, AttributeError)


def test_fit_returns_the_model_and_predictions_come_in_own_units():
    model = model_of("r2d2")
    assert model.fit(X, Y) is model and model.n_features_in_ == 1
    path = model.staged_predict(X)
    assert path.shape == (4, 5) and np.square(path[-1] - Y).mean() < np.square(path[0] - Y).mean()
    assert_array_equal(model.predict(X), path[-1])
    assert model.score(X, Y) == pytest.approx(1 - np.square(path[-1] - Y).sum() / np.square(Y - np.mean(Y)).sum())
    assert_array_equal(model.x_range, [[0], [30]])
    assert model.extrapolates([0, 30, 30.1, -1e-3]).tolist() == [False, False, True, True]


def test_samples_repeat_with_their_seed_and_spread_in_own_units():
    model = model_of("leo").fit(X, Y)
    curves = model.sample(AT, 20)
    assert curves.shape == (20, 4)
    assert_array_equal(curves, model.sample(AT, 20, seed=0))
    assert_array_equal(curves, model.sample(AT, np.int64(20), seed=np.uint8(0)))
    assert not np.array_equal(curves, model.sample(AT, 20, seed=1))
    prediction, std = model.predict(AT, return_std=True)
    assert_array_equal(prediction, model.predict(AT))
    assert_allclose(std, model.sample(AT).std(0)) and (std > 0).all()


@pytest.mark.parametrize("method", sorted(METHODS))
def test_tasks_of_different_sizes_at_once_are_as_one_by_one(method):
    rng, model = np.random.default_rng(1), model_of(method)
    sizes, asked = [3, 5, 3, 1, 5, 3], [2, 1, 300, 64, 65, 2]
    xs, ys, ats = ([rng.uniform(0, 30, size) for size in counts] for counts in (sizes, sizes, asked))
    together = model.fit_many(xs, ys).predict_many(ats)
    for x, y, at, found in zip(xs, ys, ats, together, strict=True):
        assert_allclose(found, model.fit(x, y).predict(at), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_without_any_point_a_method_answers_by_its_prior(method):
    model = model_of(method).fit([], [])
    assert_allclose(model.predict(AT), model.predict_prior(AT), rtol=1e-4)
    together = model.fit_many([[], [2.0], []], [[], [52.0], []]).predict_many([AT, AT, [3.0]])
    assert_allclose(together[0], model.predict_prior(AT), rtol=1e-4)
    assert_allclose(together[2], model.predict_prior([3.0]), rtol=1e-4)
    assert_allclose(together[1], model.fit([2.0], [52.0]).predict(AT), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("method", ["maml", "leo"])
def test_asking_adapts_no_more_and_other_steps_adapt_once(method, monkeypatch):
    calls = []
    adapt = METHODS[method].adapt

    def counted(learner, support, noise, steps):
        calls.append(steps)
        return adapt(learner, support, noise, steps)

    monkeypatch.setattr(METHODS[method], "adapt", counted)
    model, at = model_of(method).fit(X, Y), np.linspace(0, 30, 300)
    everywhere = model.staged_predict(at)
    for count in (0, 1, 2, 65):
        assert_allclose(model.predict(at[:count]), everywhere[-1, :count], rtol=1e-5)
    fewer = [model.set_params(steps=1).staged_predict(at) for _ in range(2)]
    assert calls == [3, 1] and fewer[0].shape == (2, 300)
    assert_allclose(fewer[1], everywhere[:2], rtol=1e-6)


def test_a_copy_predicts_the_same_and_keeps_its_own_fit():
    for again in (copy.copy, copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))):
        model = model_of("leo").fit(X, Y)
        expected, other = model.predict(AT), again(model)
        assert_array_equal(other.predict(AT), expected)
        other.fit(X, Y[::-1])
        assert_array_equal(model.predict(AT), expected)
        assert repr(other) == "FewShotRegressor(LEO, steps=3, input_dim=1)"
        assert other.set_params(steps=1).get_params() == {"steps": 1} and model.steps == 3


def test_predictions_have_the_same_bits_on_any_number_of_threads_and_in_eight_at_once():
    at, before = np.linspace(0, 30, 250), torch.get_num_threads()
    model = FewShotRegressor(MAML.from_config(Config(), stream(0, "weights")), 10, model_of().coding)
    expected = model.fit(X, Y).staged_predict(at)
    try:
        torch.set_num_threads(2)
        assert_array_equal(model.staged_predict(at), expected)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    shared = model_of("leo")
    targets = [np.roll(Y, shift) + shift for shift in range(8)]

    def ask(y):
        one = copy.copy(shared).fit(X, y)
        return np.concatenate([one.predict(AT), *one.sample(AT, 5)])

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(ask, targets))
    assert_array_equal(found, [ask(y) for y in targets])


def test_nothing_outside_of_the_object_is_changed():
    def state():
        numbers = np.random.get_state()[1].tolist()  # noqa: NPY002
        draws = random.getstate(), numbers, torch.get_rng_state().tolist()
        return *draws, torch.get_num_threads(), torch.is_grad_enabled(), flushes_denormals(), torch.get_default_dtype()

    before = state()
    for enabled in (True, False):
        with torch.set_grad_enabled(enabled):
            model_of("leo").fit(X, Y).predict(AT, return_std=True)
            assert torch.is_grad_enabled() == enabled
    assert state() == before


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs of a few steps: of two methods on a table, of LEO on sine-line and of MAML on sinusoids."""
    folder = tmp_path_factory.mktemp("runs")
    table = write(folder / "toy.csv", toy_rows(), "who,day (d),mass_g")
    settings = ["EPOCHS=3", "META_BATCH_SIZE=3", "HIDDEN_DIM=8", "EVAL_STEPS=2", "COMPILE=never", "VALIDATION_INTERVAL=20"]
    own = ["--name", "toy", "--data", str(table), "--columns", "task=who", "x=day (d)", "y=mass_g"]
    family = ["--name", "waves", "--set", "NUM_TASKS=30", "--set", "EVAL_TASKS=4", "--set", "VALIDATION_TASKS=4", "--tasks"]
    chosen = {"leo": [own, [*family, "sine-line"]], "r2d2": [own], "maml": [[*family, "sinusoid"]]}
    for method, words in ((method, words) for method, each in chosen.items() for words in each):
        flags = [word for setting in settings for word in ("--set", setting)]
        assert main.main(["--method", method, "--output", str(folder), *flags, *words]) == 0
    return folder


def test_a_run_is_loaded_by_its_directory_its_name_a_checkpoint_and_as_the_latest(runs):
    run = runs / "MAML_Sinusoidal_waves"
    asked = [run, str(run), run / "checkpoints" / "best.pt"]
    models = [FewShotRegressor.load(one) for one in asked]
    models += [FewShotRegressor.load(run.name, folder=runs), FewShotRegressor.load("latest", folder=runs)]
    found = [model.fit([-1, 2, 3], [0, 1, 2]).predict([0.5]) for model in models]
    assert len({value.tobytes() for value in found}) == 1 and found[0].dtype == np.float32
    with pytest.raises(RunError, match="no such run"):
        FewShotRegressor.load("nowhere", folder=runs)


@pytest.mark.parametrize("name", ["LEO_Table_toy", "R2D2_Table_toy", "LEO_SineLine_waves"])
@pytest.mark.parametrize("page", ["README.md", "docs/python.md"])
def test_the_lines_of_python_in_the_documentation_run(page, name, runs):
    text = (Path(main.__file__).parent / page).read_text(encoding="utf-8")
    (code,) = (block for block in re.findall(r"```python\n(.*?)```", text, re.S) if "FewShotRegressor" in block)
    names = {}
    loaded = str(runs / name)
    exec(re.sub(r'"(latest|R2D2_Table_chicks)"', lambda _: repr(loaded), code), names)
    assert names["model"].predict([10.0, 21.0]).shape == (2,)


def test_targets_that_no_subject_of_the_table_has_are_warned_about():
    x, y, model = np.array(X)[:, None], np.array(Y)[:, None], model_of()
    assert warnings_about(predict_subjects(model, [Points(x, y)]), model, ("day", "mass")) == []
    (line,) = warnings_about(predict_subjects(model, [Points(x, 1000 * y)]), model, ("day", "mass"))
    assert "5 of 5 points lie 10 standard deviations or more from the mean of training" in line
    assert "(got mass from 44000" in line
    formula = model_of(own=False)
    lines = warnings_about(predict_subjects(formula, [Points(x, 1000 * y)]), formula)
    assert not any("another unit" in line for line in lines)


def questions(path, *, blank=True):
    """A file about 15 new subjects in a mixed order, and each one's rows."""
    rng = random.Random(3)
    rows = [[f"#{n}", f"{rng.uniform(1, 29):.6f}", f"{rng.uniform(40, 60):.6f}"] for n in range(15) for _ in range(2 + n % 4)]
    rows += [[f"#{n}", f"{rng.uniform(1, 29):.6f}", rng.choice(["", "NA"])] for n in range(15) for _ in range(n % 3)] * blank
    rng.shuffle(rows)
    write(path, rows, "who,day (d),mass_g")
    members = {}
    for row in rows:
        members.setdefault(row[0], []).append(row)
    return [row for row in rows if row[2] in ("", "NA")], members


def asked_by_command(run, points):
    """The rows that --predict writes beside the file of points."""
    assert main.main(["--predict", str(run), "--points", str(points)]) == 0
    return list(csv.DictReader((points.parent / "predictions.csv").read_text().splitlines()))


def measured(rows):
    known = [row for row in rows if row[2] not in ("", "NA")]
    return [float(row[1]) for row in known], [float(row[2]) for row in known]


@pytest.mark.parametrize("name", ["LEO_Table_toy", "R2D2_Table_toy"])
def test_new_subjects_are_answered_in_the_files_order_with_the_numbers_of_the_class(name, runs, tmp_path, capsys, monkeypatch):
    asked, members = questions(tmp_path / "new.csv")
    found = []
    monkeypatch.setattr("commands.predict.figures", lambda predictions, *_: found.extend(predictions) or [None] * 2)
    for kind in ("png_bytes", "pdf_bytes"):
        monkeypatch.setattr(f"visualization.{kind}", lambda *_: b"")
    rows = asked_by_command(runs / name, tmp_path / "new.csv")
    assert capsys.readouterr().err == ""
    names = ["prediction_before", "prediction_after", "lower_5", "upper_95"]
    assert list(rows[0]) == ["who", "day (d)", *names, "extrapolated"]
    assert [[row["who"], float(row["day (d)"])] for row in rows] == [[row[0], float(row[1])] for row in asked]
    model = FewShotRegressor.load(runs / name)
    for place, (subject, own) in enumerate(members.items()):
        at = [float(row[1]) for row in own if row[2] in ("", "NA")]
        if not at:
            continue
        after = model.fit(*measured(own)).predict(at)
        assert_allclose(found[place].answer.stages, [after], rtol=1e-6)
        given = [row for row in rows if row["who"] == subject]
        for column, values in zip(names, (model.predict_prior(at), after, *model.predict_interval(at)), strict=True):
            assert_allclose([float(row[column]) for row in given], values, rtol=1e-4, atol=1e-3)


def test_subjects_without_points_are_answered_by_the_prior_with_intervals(runs, tmp_path, capsys):
    for name in ("LEO_Table_toy", "R2D2_Table_toy"):
        write(tmp_path / "new.csv", [["a", "3", "48"], ["b", "8", ""], ["a", "8", ""], ["b", "20", "NA"]], "who,day (d),mass_g")
        rows = asked_by_command(runs / name, tmp_path / "new.csv")
        model = FewShotRegressor.load(runs / name).fit([], [])
        low, high = model.predict_interval([8, 20])
        assert (low < model.predict([8, 20])).all() and (model.predict([8, 20]) < high).all() and np.isfinite(high).all()
        for row, expected in zip((rows[0], rows[2]), model.predict_prior([8, 20]), strict=True):
            assert row["who"] == "b" and row["prediction_before"] == row["prediction_after"]
            assert_allclose(float(row["prediction_after"]), expected, rtol=1e-6)
        assert_allclose(float(rows[2]["upper_95"]), high[1], rtol=1e-6)
        assert "on the 1 points of 2 subjects" in capsys.readouterr().out
        write(tmp_path / "new.csv", [["b", "8", ""], ["c", "20", "NA"]], "who,day (d),mass_g")
        assert len(asked_by_command(runs / name, tmp_path / "new.csv")) == 2
        assert capsys.readouterr().out.startswith("no point is known: ")


def test_a_run_without_a_calibration_at_no_point_has_no_finite_interval_there(runs):
    model = FewShotRegressor.load(runs / "R2D2_Table_toy").fit([], [])
    model.calibration = {
        steps: {k: entry for k, entry in by_shots.items() if k != "0"} for steps, by_shots in model.calibration.items()
    }
    assert np.isinf(model.predict_interval([8.0])).all()


def test_without_questions_each_subject_has_a_grid_and_pages_of_twelve_panels(runs, tmp_path, capsys, undrawn):
    _, members = questions(tmp_path / "new.csv", blank=False)
    rows = asked_by_command(runs / "R2D2_Table_toy", tmp_path / "new.csv")
    printed = capsys.readouterr()
    assert printed.err == "" and "root mean squared error on the 51 points of 15 subjects" in printed.out
    assert [row["who"] for row in rows] == [name for name in members for _ in range(201)]
    names = {path.name for path in tmp_path.iterdir()} - {"new.csv", "predictions.csv"}
    assert names == {"predictions.png", "predictions-2.png", "predictions.pdf"}


def test_a_file_without_the_subjects_column_is_about_one(runs, tmp_path, capsys, undrawn):
    (tmp_path / "one.csv").write_text("Mass_g;DAY (d)\n50,5;2\n;4\n51,5;8\n;400\n")
    rows = asked_by_command(runs / "R2D2_Table_toy", tmp_path / "one.csv")
    assert capsys.readouterr().err.startswith("warning: 1 of 2 questions lie outside the range of meta-training")
    assert list(rows[0]) == ["DAY (d)", "prediction_before", "prediction_after", "lower_5", "upper_95", "extrapolated"]
    assert [(row["DAY (d)"], row["extrapolated"]) for row in rows] == [("4", "0"), ("400", "1")]


def test_a_file_of_subjects_that_can_not_be_used_is_refused_with_its_place(runs, tmp_path, capsys):
    head, points = "who,day (d),mass_g\n", tmp_path / "new.csv"
    wrong = {
        head + ",1,2\n": "line 2, column 'who' can't be used (got an empty name",
        head + "a,x,2\n": "line 2, column 'day (d)'",
        head: "has no points",
        "who,day,mass_g\na,1,2\n": "no column 'day (d)' (got 'who', 'day', 'mass_g'",
    }
    for text, says in wrong.items():
        points.write_text(text)
        argv = ["--predict", str(runs / "R2D2_Table_toy"), "--points", str(points), "--output", str(tmp_path / "out")]
        assert main.main(argv) == 2
        error = capsys.readouterr().err
        assert says in error and error.count("\n") == 1 and not (tmp_path / "out").exists()


def test_subjects_of_several_inputs_are_answered_at_their_questions_or_their_points(tmp_path):
    file, model = tmp_path / "new.csv", model_of("r2d2", 2)
    for blank in (True, False):
        file.write_text("y,b,id,a\n50,1,#1,2\n" + "NA,2,#1,3\n,4,x,5\n" * blank + "51,3,x,1\n49,7,#1,8\n")
        points = read_points(file, 2, ("id", "a", "b", "y", "split"))
        found = predict_subjects(model, points.support, points.query_inputs)
        rows = list(csv.DictReader(predictions_csv(found, model, points).splitlines()))
        places = [("#1", "3", "2"), ("x", "5", "4")] if blank else [("#1", "2", "1"), ("#1", "8", "7"), ("x", "1", "3")]
        assert [(row["id"], row["a"], row["b"]) for row in rows] == places
        assert [row["y"] for row in rows] == ["50", "49", "51"] if not blank else "y" not in rows[0]
        after = model.fit([[2, 1], [8, 7]], [50, 49]).predict([[3, 2]] if blank else [[2, 1], [8, 7]])
        assert_allclose([float(row["prediction_after"]) for row in rows if row["id"] == "#1"], after, rtol=1e-6)


def test_questions_of_a_run_on_formulas_are_answered_too(runs, tmp_path, undrawn):
    (tmp_path / "new.csv").write_text("x,y\n1,2\n2.5,\n-1,0.5\n7,NA\n")
    rows = asked_by_command(runs / "MAML_Sinusoidal_waves", tmp_path / "new.csv")
    after = FewShotRegressor.load(runs / "MAML_Sinusoidal_waves").fit([1, -1], [2, 0.5]).predict([2.5, 7])
    assert [row["x"] for row in rows] == ["2.5", "7"]
    assert [row["prediction_after"] for row in rows] == [f"{value:.7g}" for value in after]

"""The notebook runs from its first cell to its last, in tiny, and a second time where it was stopped."""

import json
from pathlib import Path

import pytest

import main

NOTEBOOK = Path(main.__file__).parent / "examples" / "first_steps.ipynb"
TINY = {"EPOCHS": 1, "HIDDEN_DIM": 6, "COMPILE": "never"}
FORMULA = {"NUM_TASKS": 8, "META_BATCH_SIZE": 4, "EVAL_TASKS": 20, "VALIDATION_TASKS": 4}


def test_the_notebook_stores_no_output():
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells if cell["cell_type"] == "code")


def test_every_cell_runs_and_runs_again(tmp_path, monkeypatch, capsys):
    run = main.main

    def tiny(words):
        changes = {} if "--resume" in words else TINY | ({} if "--data" in words else FORMULA)
        return run([*words, *(word for key, value in changes.items() for word in ("--set", f"{key}={value}"))])

    monkeypatch.setattr(main, "main", tiny)
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("agg")
    work = tmp_path / "some folder"
    (work / "deep").mkdir(parents=True)
    for name in ("regressor.py", "examples"):  # as found from a folder of the clone
        (work / name).symlink_to(NOTEBOOK.parents[1] / name)
    monkeypatch.chdir(work / "deep")
    cells = [cell for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    for _ in range(2):
        names = {}
        for cell in cells:
            exec("".join(cell["source"]), names)
        assert "day 21:" in capsys.readouterr().out
    pyplot.close("all")
    assert {path.name for path in Path("runs").iterdir()} == {"R2D2_Sinusoidal_first", "R2D2_Table_first"}

"""Cross-fitting: a learner for each fold, and one for everybody, in one run."""

import pytest
import torch

from config import Config
from registry import METHODS, defaults
from tables.table import read_table
from tables.tasks import TableTaskGenerator
from tests.tools.tables import toy_rows, write
from training.experiment import Experiment


@pytest.mark.parametrize("method", ["alpaca", "mixed-model"])
def test_folds_are_trained_one_after_another_each_as_alone_and_resumed_anywhere(method, tmp_path):
    def experiment(fold=None):
        table = read_table(write(tmp_path / "toy.csv", toy_rows()), folds=3)
        generator = TableTaskGenerator(table)
        values = {"SUPPORT_SAMPLES": 2, "EVAL_SHOTS": [2], "EPOCHS": 5, "META_BATCH_SIZE": 3, "COMPILE": "never"}
        values |= {"NUM_TASKS": 12, "META_AVERAGE": 0.9, "VALIDATION_INTERVAL": 4}
        config = Config.resolve(defaults(method, "table"), values)
        return Experiment(method, METHODS[method], "table", generator if fold is None else generator.folds[fold], config)

    whole = experiment()
    states = [whole.snapshot()] + [whole.snapshot() for _ in whole.trainer.train()]
    finished = whole.trainer.finished
    assert len(finished) == 3 and len(states) == 1 + whole.trainer.iterations
    for fold, parameters in enumerate(finished):
        alone = experiment(fold)
        for _ in alone.trainer.train():
            pass
        with alone.trainer.meta.averaged():
            assert all(map(torch.equal, alone.learner.state_dict().values(), parameters.values()))
    for place in range(0, len(states), 7 if len(states) > 5 else 1):
        resumed = experiment()
        resumed.load(states[place])
        for _ in resumed.trainer.train():
            pass
        assert torch.equal(resumed.trainer.meta.flat, whole.trainer.meta.flat)
        assert [list(one) for one in resumed.trainer.finished] == [list(one) for one in finished]
        pairs = [
            (one[name], other[name]) for one, other in zip(resumed.trainer.finished, finished, strict=True) for name in one
        ]
        assert all(torch.equal(*pair) for pair in pairs)

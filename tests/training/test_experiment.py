"""A run's life in memory: what is recorded, validated, saved and drawn on the way, and when."""

from types import SimpleNamespace

import torch

from commands.runs import build
from config import Config
from evaluation.examples import example_arrays
from registry import TASKS
from results_manager import NullManager
from tests.tools.chaos import same
from training import experiment as module
from training import progress
from training.signals import Signals

TINY = {"HIDDEN_DIM": 8, "NUM_TASKS": 60, "META_BATCH_SIZE": 3, "VALIDATION_TASKS": 10, "EVAL_TASKS": 10, "COMPILE": "never"}
EVERY = {"LOG_INTERVAL": 5, "VALIDATION_INTERVAL": 20, "CHECKPOINT_INTERVAL": 30, "EPOCHS": 4}  # 80 steps


class Saved(NullManager):
    """A manager that keeps what it is given."""

    def __init__(self):
        self.checkpoints, self.bests, self.scalars = [], [], {}

    def log_scalars(self, iteration, values):
        self.scalars |= {(tag, iteration): value for tag, value in values.items()}

    def save_checkpoint(self, state, best=None):
        self.checkpoints.append(state)
        self.bests += [best] if best else []

    def attempt(self, what, action):
        action()


def trained(method="maml", **settings):
    made = build(method, "sinusoid", Config.resolve(TINY, EVERY, settings))
    made.manager = Saved()
    made.train(Signals())
    made.close()
    return made


def iterations(records):
    return [record["iteration"] for record in records]


def test_a_checkpoint_holds_the_history_up_to_its_step_and_the_best_is_the_state_at_the_lowest_error():
    made = trained()
    assert iterations(made.manager.checkpoints) == [30, 60, 80]
    for state in made.manager.checkpoints:
        end = state["iteration"]
        assert iterations(state["history"]["train"]) == list(range(5, end + 1, 5))
        assert iterations(state["history"]["validation"]) == list(range(20, end + 1, 20))
        assert state["best"] == min(record["mse"][-1] for record in state["history"]["validation"])
    best = made.manager.bests[-1]
    lowest = min(made.history["validation"], key=lambda record: record["mse"][-1])
    assert (best["iteration"], best["best"]) == (lowest["iteration"], lowest["mse"][-1])
    assert best["history"]["validation"][-1] == lowest


def test_where_an_average_is_kept_the_best_is_the_average():
    state = trained(META_AVERAGE=0.9, EPOCHS=1).manager
    best, last = state.bests[0], state.checkpoints[-1]
    weights = torch.cat([tensor.flatten() for tensor in best["meta_parameters"].values()])
    assert torch.equal(weights, last["average"]) and not same(best["meta_parameters"], last["meta_parameters"])


def test_validating_and_saving_more_often_does_not_change_training():
    every = ({"META_AVERAGE": 0.9, "EPOCHS": 1, "VALIDATION_INTERVAL": n, "CHECKPOINT_INTERVAL": n} for n in (1, 20))
    often, seldom = (trained("leo", **settings) for settings in every)
    assert len(often.manager.checkpoints) == 20 and same(often.trainer.state(), seldom.trainer.state())


def test_tensorboard_is_given_shared_values_and_diagnostics_under_their_tags():
    made = trained("leo", EPOCHS=1)
    given, record = made.manager.scalars, made.history["train"][0]
    assert given["train/query_mse", 5] == record["query_mse"] and given["leo/kl", 5] == record["kl"]
    assert given["train/learning_rate", 5] == record["learning_rate"] == made.trainer.learning_rate(4)
    assert given["validation/mse_after_01", 20] == made.history["validation"][0]["mse"][1]
    assert given["performance/tasks_per_second", 20] > 0


def test_pictures_are_drawn_after_validation_1_4_and_16_and_not_at_the_end(monkeypatch):
    drawn = []
    monkeypatch.setattr(module.Experiment, "show_progress", lambda self, iteration: drawn.append(iteration))
    trained(VALIDATION_INTERVAL=2, EPOCHS=2)
    trained(VALIDATION_INTERVAL=5, EPOCHS=1)
    assert drawn == [2, 8, 32, 5]


def test_a_family_of_formulas_may_name_its_tasks(monkeypatch):
    config = Config.resolve({}, TINY)
    generator = TASKS["sinusoid"](config)
    monkeypatch.setattr(type(generator), "task_names", lambda self, params: [str(number) for number in range(len(params))])
    begun = build("maml", "sinusoid", config, generator)
    assert example_arrays(begun.learner, begun.learner, generator, 5, 1)[0]["grid_names"].tolist() == list("012345")
    begun.close()


def test_a_line_of_progress_says_how_long_it_still_takes(monkeypatch, capsys):
    for steps, ending in ((100, "loss 1, 90 s left"), (10, "loss 1, 16 min left"), (1000, "loss 1")):
        now, logged = [5.0], []
        monkeypatch.setattr(progress, "time", SimpleNamespace(perf_counter=now.pop))
        shown = progress.Progress(0, 1000, logged.append)
        monkeypatch.setattr(progress, "time", SimpleNamespace(perf_counter=lambda: 15.0))
        shown.update(steps, "loss 1")
        shown.close()
        assert logged == [f"step {steps} of 1000: {ending}"] == capsys.readouterr().out.splitlines()

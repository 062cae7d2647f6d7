"""Validation beside training: training goes on meanwhile, and what is recorded and saved is as if it had waited."""

import threading

import pytest
import torch

from commands.runs import build
from config import Config
from registry import TASKS
from training import experiment as module
from training.processes import Signals

TINY = {"HIDDEN_DIM": 8, "NUM_TASKS": 60, "META_BATCH_SIZE": 3, "VALIDATION_TASKS": 10, "EVAL_TASKS": 10, "COMPILE": "never"}
EVERY = {"LOG_INTERVAL": 5, "VALIDATION_INTERVAL": 20, "CHECKPOINT_INTERVAL": 20, "EPOCHS": 4}  # 80 steps


class Saved:
    """A manager that keeps what it is given."""

    def __init__(self):
        self.history = {"train": [], "validation": []}
        self.checkpoints, self.bests, self.pictures = [], [], []

    def log_training(self, iteration, epoch, values, lr, speed):
        self.history["train"].append({"iteration": iteration, **values})

    def log_validation(self, iteration, errors):
        self.history["validation"].append({"iteration": iteration, "mse": errors})

    def save_checkpoint(self, state, best):
        self.checkpoints.append(state)
        self.bests += [best] if best else []

    def attempt(self, what, action):
        action()

    def log(self, line): ...

    def log_figure(self, name, figure, iteration): ...


def begin(method="maml", **settings):
    made = build(method, "sinusoid", Config.resolve(TINY, EVERY, settings))
    made.manager = Saved()
    return made


def train(made, wait=True):
    made.trainer.step.one_thread = not wait
    made.train(Signals())
    made.trainer.close()
    return made.manager


def same(left, right):
    if isinstance(left, torch.Tensor):
        return torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left if key != "train_seconds")
    if isinstance(left, list):
        return len(left) == len(right) and all(map(same, left, right))
    return left == right


@pytest.mark.parametrize("settings", [{}, {"META_AVERAGE": 0.9}, {"CHECKPOINT_INTERVAL": 30}], ids=str)
def test_validation_in_a_thread_records_and_saves_what_waiting_for_it_does(settings, monkeypatch):
    monkeypatch.setattr(
        module.Experiment, "show_progress", lambda self, learner, iteration: self.manager.pictures.append(iteration)
    )
    beside, waited = train(begin(**settings), wait=False), train(begin(**settings))
    assert same(beside.history, waited.history) and len(waited.history["validation"]) == 4
    assert same(beside.checkpoints, waited.checkpoints) and same(beside.bests[-1], waited.bests[-1])
    assert beside.pictures == waited.pictures == [20, 40]


def test_a_picture_is_there_before_the_checkpoint_from_which_a_resumed_run_would_not_draw_it(monkeypatch):
    made, written, early = begin(), threading.Event(), []
    save = made.manager.save_checkpoint
    monkeypatch.setattr(made.manager, "save_checkpoint", lambda *args, **kwargs: (written.set(), save(*args, **kwargs)))
    monkeypatch.setattr(module.Experiment, "show_progress", lambda *_: early.append(not written.wait(0.1)))
    train(made, wait=False)
    assert early[0]


def test_a_validation_is_of_the_step_it_was_begun_at_and_training_does_not_wait_for_it(monkeypatch):
    made, free, measure = begin(), threading.Event(), module.held_out_errors

    def slow(learner, tasks, steps):
        assert free.wait(30)
        return measure(learner, tasks, steps)

    def log_training(iteration, *rest):
        free.set() if iteration == 35 else None  # 15 steps after the validation began; the next one is at 40
        Saved.log_training(made.manager, iteration, *rest)

    monkeypatch.setattr(module, "held_out_errors", slow)
    monkeypatch.setattr(made.manager, "log_training", log_training)
    record = train(made, wait=False)
    assert [state["iteration"] for state in record.checkpoints] == [20, 40, 60, 80]
    monkeypatch.setattr(module, "held_out_errors", measure)
    assert same(record.history, train(begin()).history)
    first = record.checkpoints[0]
    assert [entry["iteration"] for entry in first["history"]["train"]] == [5, 10, 15, 20]
    assert [entry["iteration"] for entry in first["history"]["validation"]] == [20]
    assert first["best"] == first["history"]["validation"][0]["mse"][-1]


@pytest.mark.parametrize("when", [25, 39])
def test_an_error_in_training_loses_no_checkpoint_that_waits_for_its_validation(monkeypatch, when):
    made, steps = begin(), module.Trainer.train

    def failing(self, every):
        for iteration, metrics in steps(self, every):
            if iteration == when:
                raise OSError("a disk went away")
            yield iteration, metrics

    monkeypatch.setattr(module.Trainer, "train", failing)
    with pytest.raises(OSError, match="a disk went away"):
        train(made, wait=False)
    assert [state["iteration"] for state in made.manager.checkpoints] == [20]
    assert [entry["iteration"] for entry in made.manager.history["validation"]] == [20]


def test_an_error_in_the_validation_is_an_error_of_the_run(monkeypatch):
    def failing(*_):
        raise MemoryError("no room")

    monkeypatch.setattr(module, "held_out_errors", failing)
    with pytest.raises(MemoryError, match="no room"):
        train(begin(), wait=False)


def test_closing_ends_the_threads():
    made = begin()
    train(made, wait=False)
    made.manager.close = lambda: None
    made.close()
    for thread in made._validator._threads:
        thread.join(30)
        assert not thread.is_alive()


def test_a_family_of_formulas_may_name_its_tasks(monkeypatch):
    config = Config.resolve({}, TINY)
    generator = TASKS["sinusoid"](config)
    monkeypatch.setattr(type(generator), "task_names", lambda self, params: [str(number) for number in range(len(params))])
    begun = build("maml", "sinusoid", config, generator)
    assert begun.example_arrays(begun.learner, 5)[0]["grid_names"].tolist() == list("012345")
    begun.close()

"""What is recorded of a learner where no point is known."""

import numpy as np
import pytest
import torch

from config import Config
from dataset import SineLineTaskGenerator, SinusoidalTaskGenerator, stream
from evaluation.evaluate import Protocol, choose_without_points, evaluate
from maml import MAML
from report.rows import run_table
from tests.tools.methods import learner_of

PROTOCOL = Protocol(shots=(0, 3), steps=1, test_tasks=60, validation_tasks=60, query_samples=20)


def constant(value):
    """A network that says the same everywhere before it adapts."""
    learner = MAML.from_config(Config(HIDDEN_DIM=4), stream(0, "weights"))
    with torch.no_grad():
        learner.theta.zero_()
        learner.theta[-1] = value
    return learner


@pytest.mark.parametrize(("value", "kept"), [(0.0, True), (100.0, False)])
def test_a_poor_prior_gives_way_to_the_mean_curve(value, kept):
    learner, generator = constant(value), SineLineTaskGenerator()
    assert (choose_without_points([(learner, generator)], PROTOCOL)[0][0].without is learner) == kept
    found = evaluate(learner, generator, PROTOCOL)
    own, curve = found.record["shots"]["0"]["mse"][-1], found.record["baselines"]["best single function"]["0"]["mse"]
    assert own == pytest.approx(curve, rel=0.1)
    assert any("the answer is the mean curve" in note for note in run_table(found.record, "MAML", {}).notes) != kept


def test_a_learner_that_learned_nothing_is_said_to_be_no_better_than_one_curve():
    for learner, told in ((constant(0.0), True), (learner_of("mixed-model"), False)):
        problems = evaluate(learner, SinusoidalTaskGenerator(), PROTOCOL).problems
        assert [line.startswith("with known points it predicts no better than one curve") for line in problems] == [True] * told


def test_tasks_that_diverged_are_counted_and_left_out_of_a_second_mean():
    learner = constant(0.0)
    learner.inner_lr = 1e30
    with torch.no_grad():
        learner.theta += 1.0
    found = evaluate(learner, SinusoidalTaskGenerator(), PROTOCOL).record
    assert found["diverged"] == found["shots"]["3"]["diverged"] == 60 and "others" not in found["shots"]["3"]


def test_intervals_without_a_point_hold_what_they_say():
    found = evaluate(learner_of("mixed-model"), SinusoidalTaskGenerator(), PROTOCOL._replace(test_tasks=500))
    interval = found.record["shots"]["0"]["interval"]
    assert 0.85 < interval["coverage"] < 0.95 and np.isfinite(interval["width"])


def test_errors_without_a_point_are_the_same_after_any_gradient():
    record = evaluate(learner_of("maml"), SinusoidalTaskGenerator(), PROTOCOL).record["shots"]
    assert record["0"]["mse"][0] == record["0"]["mse"][1] and record["3"]["mse"][0] != record["3"]["mse"][1]

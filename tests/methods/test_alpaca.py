"""ALPaCA with splines: a linear mixed model to begin with."""

import numpy as np
import torch
from numpy.testing import assert_allclose

from config import Config
from dataset import Points, stream
from learner import adapt_tasks
from methods.alpaca import ALPaCA
from methods.mixed_model import MixedModel
from tests.tools.tables import lines, stacked

CONFIG = Config(ALPACA_SPLINES=True, ACTIVATION="tanh", HIDDEN_LAYERS=1, HIDDEN_DIM=8)


def started(tasks: list[Points]) -> ALPaCA:
    learner = ALPaCA(CONFIG, stream(0, "weights"))
    learner.start_from(tasks)
    return learner


def test_it_starts_as_the_mixed_model_but_for_the_small_prior_of_its_learned_features():
    subjects = lines(40)
    model = MixedModel(CONFIG, stream(0, "weights"))
    model.fit(subjects)
    learner = started(subjects)
    for shots in (0, 3):
        support, query = (Points(*(part.astype(np.float32) for part in points)) for points in stacked(lines(5, seed=1), shots))
        own, other = (adapt_tasks(one, support, query.x, 1).predictions[:, -1] for one in (learner, model))
        assert_allclose(own, other, atol=1e-4 if not shots else 0.05)
    with torch.no_grad():
        learner.factor[:, 16:] = 0
    assert_allclose(adapt_tasks(learner, support, query.x, 1).predictions[:, -1], other, atol=1e-3)


def test_its_splines_are_not_trained():
    learner = started(lines(40))
    support, query = (Points(*(torch.from_numpy(part[0]).float() for part in points)) for points in stacked(lines(5), 3))
    loss = learner.loss(learner.adapt(support, torch.zeros(0)).path, query)
    loss.backward()
    assert learner.knots.grad is None and learner.turn.grad is None and learner.beta.grad.abs().max() > 0

"""The conditional neural process: its code and its loss."""

import numpy as np
import pytest
import torch

from config import Config
from dataset import Points, stream
from methods.cnp import CNP


@pytest.fixture
def learner():
    return CNP(Config(HIDDEN_DIM=6), stream(0, "weights"))


def random_points(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Points(*(torch.randn(count, 1, generator=generator) for _ in range(2)))


def test_the_code_is_a_mean_that_ignores_order_and_counts_the_start_as_a_point(learner):
    with torch.no_grad():
        learner.start.fill_(2.0)
        points = random_points(4)
        codes = learner.encode(learner.encoder, torch.cat(points, 1))
        for support in (points, Points(points.x.flip(0), points.y.flip(0))):
            torch.testing.assert_close(learner.adapt(support, torch.zeros(0)).path[-1], (codes.sum(0) + 2) / 5)


def test_the_loss_is_the_negative_log_density_with_some_of_the_prior_s(learner):
    query, path = random_points(5, 1), learner.adapt(random_points(4), torch.zeros(0)).path
    expected = torch.zeros(())
    for state, weight in ((path[-1], 1.0), (path[0], 0.1)):
        normal = torch.distributions.Normal(learner.predict(state, query.x), learner.std(state, query.x, query))
        expected = expected - weight * (normal.log_prob(query.y[:, 0]) + 0.5 * np.log(2 * np.pi)).mean()
    torch.testing.assert_close(learner.loss(path, query), expected)

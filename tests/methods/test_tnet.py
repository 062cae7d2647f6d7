"""T-net: its maps are not adapted, and bend the steps of the layers."""

import torch

from config import Config
from dataset import Points, stream
from maml import MAML
from methods.tnet import TNet


def support():
    x = torch.linspace(-2, 2, 6)[:, None]
    return Points(x, x.sin())


def test_with_identity_maps_it_is_maml():
    config = Config(HIDDEN_DIM=6, INNER_LEARNING_RATE=0.01)
    tnet, maml = (method(config, stream(0, "weights")) for method in (TNet, MAML))
    for one, other in zip(*(learner.adapt(support(), torch.zeros(0), 3).path for learner in (tnet, maml)), strict=True):
        torch.testing.assert_close(one, other)


def test_a_layer_is_the_product_of_what_is_adapted_and_its_map():
    learner = TNet(Config(HIDDEN_DIM=6), stream(0, "weights"))
    with torch.no_grad():
        for own_map in learner.maps:
            own_map += 0.3 * torch.randn(own_map.shape, generator=torch.Generator().manual_seed(1))
    x = torch.linspace(-1, 1, 5)[:, None]
    first, second, last = learner.network.layers(learner.theta)
    hidden = torch.relu(x @ first[0] @ learner.maps[0] + first[1])
    hidden = torch.relu(hidden @ second[0] @ learner.maps[1] + second[1])
    expected = (hidden @ last[0] @ learner.maps[2] + last[1]).flatten()
    torch.testing.assert_close(learner.predict(learner.prior(), x), expected)


def test_a_map_of_zeros_stops_its_layer_s_matrix():
    learner = TNet(Config(HIDDEN_DIM=6), stream(0, "weights"))
    with torch.no_grad():
        learner.maps[1].zero_()
    before, after = (learner.network.layers(state)[1] for state in learner.adapt(support(), torch.zeros(0), 1).path)
    assert torch.equal(before[0], after[0]) and torch.equal(before[0], torch.zeros(6, 6))

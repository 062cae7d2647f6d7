"""The network and `gradient_descent`, against definitions written out by hand."""

import pytest
import torch
from torch.func import grad
from torch.fx.experimental.proxy_tensor import make_fx

from dataset import stream
from learner import Network, gradient_descent, mse


def test_network_equals_explicit_layers():
    network = Network((2, 5, 4, 1))
    weights = network.init(stream(3, "weights")) + 0.1
    x = torch.linspace(-2, 2, 14).view(7, 2)
    first, second, last = network.layers(weights)
    hidden = torch.relu(torch.relu(x @ first[0] + first[1]) @ second[0] + second[1])
    torch.testing.assert_close(network(weights, x), hidden @ last[0] + last[1])


def test_the_gradient_of_an_error_is_one_concatenation():
    network, x = Network((1, 5, 4, 1)), torch.linspace(-2, 2, 7)[:, None]
    traced = make_fx(grad(lambda weights: mse(network(weights, x), x)))(network.init(stream(3, "weights")))
    joined = [node for node in traced.graph.nodes if "cat" in str(node.target)]
    (result,) = traced.graph.output_node().args
    assert joined == [result]  # no sum of vectors that are mostly zeros


def test_default_network_has_1761_weights():
    assert Network((1, 40, 40, 1)).num_weights == 1761


def test_initial_weights_have_the_stated_variance():
    matrix, bias = Network((400, 300, 1)).layers(Network((400, 300, 1)).init(stream(0, "weights")))[0]
    assert matrix.var().item() == pytest.approx(2 / 400, rel=0.02)
    assert not bias.any()


def test_mse_refuses_shapes_that_broadcast():
    with pytest.raises(AssertionError):
        mse(torch.zeros(4, 1), torch.zeros(4))


def test_descend_on_a_quadratic_follows_the_closed_form():
    start = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
    curvature = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)
    path = gradient_descent(lambda p: 0.5 * (curvature * p * p).sum(), start, 0.1, 4)
    for step, point in enumerate(path):
        torch.testing.assert_close(point, start * (1 - 0.1 * curvature) ** step)


def test_descend_takes_a_step_size_per_coordinate():
    path = gradient_descent(lambda p: p.sum(), torch.zeros(3), torch.tensor([0.1, 0.2, 0.0]), 1)
    torch.testing.assert_close(path[1], torch.tensor([-0.1, -0.2, 0.0]))


def test_clipping_bounds_the_step_and_leaves_short_gradients_alone():
    def loss(p):
        return (torch.tensor([30.0, 40.0]) * p).sum()

    torch.testing.assert_close(gradient_descent(loss, torch.zeros(2), 1.0, 1, clip=5.0)[1], torch.tensor([-3.0, -4.0]))
    torch.testing.assert_close(gradient_descent(loss, torch.zeros(2), 1.0, 1, clip=60.0)[1], torch.tensor([-30.0, -40.0]))


def test_clipping_is_differentiable_at_a_zero_gradient():
    derivative = grad(lambda p: gradient_descent(lambda q: (q * q).sum(), p, 0.1, 1, clip=1.0)[-1].sum())(torch.zeros(3))
    torch.testing.assert_close(derivative, torch.full((3,), 0.8))


def test_first_order_drops_the_second_derivative_only():
    def outer(point, first_order):
        return gradient_descent(lambda p: (p**3).sum(), point, 0.1, 1, first_order=first_order)[-1].sum()

    point = torch.tensor([2.0])
    torch.testing.assert_close(outer(point, True), outer(point, False))
    torch.testing.assert_close(grad(outer)(point, True), torch.tensor([1.0]))
    torch.testing.assert_close(grad(outer)(point, False), torch.tensor([1.0 - 0.1 * 6 * 2.0]))

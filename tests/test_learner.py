"""The network and `gradient_descent`, against definitions written out by hand; and what a method may define of its own."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import grad
from torch.fx.experimental.proxy_tensor import make_fx

import registry
from config import Config
from dataset import Points, SinusoidalTaskGenerator, TaskDataset, stream
from learner import Adaptation, MetaLearner, Network, adapt_tasks, gradient_descent, mse
from tests.tools.methods import learner_of
from training.loop import Trainer


def test_network_equals_explicit_layers():
    network = Network((2, 5, 4, 1))
    weights = network.init(stream(3, "weights")) + 0.1
    x = torch.linspace(-2, 2, 14).view(7, 2)
    first, second, last = network.layers(weights)
    hidden = torch.relu(torch.relu(x @ first[0] + first[1]) @ second[0] + second[1])
    torch.testing.assert_close(network(weights, x), hidden @ last[0] + last[1])
    assert Network((1, 40, 40, 1)).num_weights == 1761  # of the default network


def test_the_gradient_of_an_error_is_one_concatenation():
    network, x = Network((1, 5, 4, 1)), torch.linspace(-2, 2, 7)[:, None]
    traced = make_fx(grad(lambda weights: mse(network(weights, x), x)))(network.init(stream(3, "weights")))
    joined = [node for node in traced.graph.nodes if "cat" in str(node.target)]
    (result,) = traced.graph.output_node().args
    assert joined == [result]  # no sum of vectors that are mostly zeros


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


class NeuralProcess(MetaLearner):
    """A conditional neural process: a state is the mean code of the points; the output is a mean and a log spread."""

    code_size = state_size = 6

    def __init__(self, config, rng):
        super().__init__(config, rng)
        self.encoder_network, self.decoder_network = Network((2, 8, self.code_size)), Network((self.code_size + 1, 8, 2))
        self.encoder = torch.nn.Parameter(self.encoder_network.init(rng))
        self.decoder = torch.nn.Parameter(self.decoder_network.init(rng))

    def adapt(self, support, noise, steps=None):
        code = self.encoder_network(self.encoder, torch.cat([support.x, support.y], 1)).mean(0)
        return Adaptation.along([torch.zeros_like(code)] + [code] * (1 if steps is None else steps))

    def outputs(self, state, x):
        return self.decoder_network(self.decoder, torch.cat([state.expand(len(x), -1), x], 1)).unbind(1)

    def predict(self, state, x):
        return self.outputs(state, x)[0]

    def std(self, state, x, support):
        return self.outputs(state, x)[1].exp()

    def loss(self, path, query):
        mean, log_std = self.outputs(path[-1], query.x)
        return (((query.y[:, 0] - mean) / log_std.exp()).square() / 2 + log_std).mean()


@pytest.fixture
def neural_process():
    return NeuralProcess(Config(), stream(0, "weights"))


def test_a_method_may_have_states_a_loss_and_a_spread_of_its_own(neural_process):
    dataset = TaskDataset(SinusoidalTaskGenerator(), 100, 5, 6, 7, 0)
    config = Config(NUM_TASKS=100, EPOCHS=10, META_BATCH_SIZE=5, META_LEARNING_RATE=0.01, COMPILE="never")
    losses = [metrics.tolist() for _, metrics in Trainer(neural_process, [dataset], config).train()]
    first, last = (sum(loss for loss, *_ in part) for part in (losses[:20], losses[-20:]))
    assert last < first and all(loss != error for loss, error, *_ in losses)  # the query error is logged beside the loss


def test_what_a_method_says_of_its_states_is_what_is_evaluated(neural_process):
    support, query = SinusoidalTaskGenerator().held_out("test", 2, 5, 9).tasks
    adapted = adapt_tasks(neural_process, support, query.x, 1)
    points = Points(*(torch.from_numpy(part[1]) for part in support))
    with torch.no_grad():
        mean, log_std = neural_process.outputs(
            neural_process.adapt(points, torch.empty(0)).path[-1], torch.from_numpy(query.x[1])
        )
    np.testing.assert_allclose(adapted.predictions[1, -1], mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(adapted.std[1], log_std.exp(), rtol=1e-5)


@pytest.mark.parametrize("activation", ["relu", "tanh", "elu", "silu", "sine"])
def test_the_network_has_the_layers_and_the_activation_of_the_settings(activation):
    config = Config(HIDDEN_LAYERS=3, HIDDEN_DIM=5, ACTIVATION=activation, INPUT_DIM=2)
    learner, x = registry.METHODS["maml"](config, stream(0, "weights")), torch.linspace(-1, 1, 8).view(4, 2)
    own = {"relu": nn.ReLU(), "tanh": nn.Tanh(), "elu": nn.ELU(), "silu": nn.SiLU(), "sine": torch.sin}[activation]
    expected = x
    *hidden, (matrix, bias) = learner.network.layers(learner.theta)
    for weights, shift in hidden:
        expected = own(expected @ weights + shift)
    assert len(hidden) == 3
    torch.testing.assert_close(learner.predict(learner.theta, x), (expected @ matrix + bias)[:, 0])


@pytest.mark.parametrize("method", sorted(registry.METHODS))
def test_without_a_point_a_method_answers_by_its_prior(method):
    learner = learner_of(method)
    nobody, x = Points(*np.zeros((2, 3, 0, 1), np.float32)), np.linspace(-5, 5, 21, dtype=np.float32).reshape(3, 7, 1)
    adapted = adapt_tasks(learner, nobody, x, 2)
    with torch.no_grad():
        expected = learner.predict(learner.prior(), torch.from_numpy(x[1]))
    for predictions in adapted.predictions[1]:
        np.testing.assert_allclose(predictions, expected, rtol=1e-4, atol=1e-5)
    assert np.isfinite(adapted.std).all() and (adapted.std > 0).all()


def test_the_prior_of_leo_is_the_network_of_the_mean_code():
    learner = registry.METHODS["leo"].from_config(Config(), stream(0, "weights"))
    with torch.no_grad():
        expected = learner.decode(torch.zeros(learner.latent_dim), torch.zeros(learner.network.num_weights))
        assert torch.equal(learner.prior(), expected)

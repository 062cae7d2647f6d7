"""Claims that hold for every registered method, and the meta-gradient's proofs for MAML and LEO."""

import math

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap

import registry
from config import Config
from dataset import Points, SinusoidalTaskGenerator, TaskDataset
from learner import mse, on_device
from tests.tools.methods import TRAINED, learner_of
from training.loop import Trainer

TINY = {"HIDDEN_DIM": 8, "LEO_LATENT_DIM": 3, "LEO_ENCODER_DIM": 4, "LEO_RELATION_DIM": 5, "LEO_DECODER_DIM": 6}
METHODS = sorted(registry.METHODS)


def make(method, dtype=torch.float64, **settings):
    return learner_of(method, Config.resolve(registry.METHODS[method].defaults, TINY, settings)).to(dtype)


def make_task(dtype=torch.float64, tasks=3, shots=6, queries=7, seed=5):
    dataset = TaskDataset(SinusoidalTaskGenerator(), 100, tasks, shots, queries, seed)
    task = on_device(dataset.draw_block(0), torch.device("cpu"))
    return type(task)(*(Points(points.x[0].to(dtype), points.y[0].to(dtype)) for points in task))


def one(task, number=0):
    return type(task)(*(Points(points.x[number], points.y[number]) for points in task))


def noise_for(learner, dtype=torch.float64, tasks=None):
    generator = torch.Generator().manual_seed(0)
    shape = (learner.noise_dim,) if tasks is None else (tasks, learner.noise_dim)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def meta_loss(learner, task, noise):
    """Meta-loss of one task as a function of the learner's parameters in a dictionary."""

    return lambda parameters: functional_call(learner, parameters, (task, noise))[0]


class Adapting(nn.Module):
    """A learner that adapts where it is called."""

    def __init__(self, learner):
        super().__init__()
        self.learner = learner

    def forward(self, support, noise):
        return self.learner.adapt(support, noise)


def adapted(learner, parameters, support, noise):
    """What `adapt` gives with other meta-parameters."""
    return functional_call(
        Adapting(learner), {f"learner.{name}": value for name, value in parameters.items()}, (support, noise)
    )


def parameters_of(learner):
    return {name: parameter.detach().clone() for name, parameter in learner.named_parameters()}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("steps", [0, 1, 7])
def test_path_has_one_entry_per_gradient_and_one_more(method, steps):
    learner, task = make(method), one(make_task())
    path = learner.adapt(task.support, noise_for(learner), steps).path
    assert len(path) == steps + 1
    assert all(state.shape == (learner.state_size,) for state in path)


@pytest.mark.parametrize("method", METHODS)
def test_longer_adaptation_starts_with_the_shorter_one(method):
    learner, task = make(method), one(make_task())
    short, long = (learner.adapt(task.support, noise_for(learner), steps).path for steps in (3, 8))
    torch.testing.assert_close(long[:4], short)


@pytest.mark.parametrize("method", [name for name in METHODS if name != "cnp"])  # which has to be trained for it
def test_support_error_falls_while_adapting(method):
    learner, task = make(method, INNER_LEARNING_RATE=0.001, LEO_LATENT_LEARNING_RATE=0.001), one(make_task())
    path = learner.adapt(task.support, torch.zeros(learner.noise_dim, dtype=torch.float64), 8).path
    loss = learner.support_loss(task.support)
    assert loss(path[-1]) < loss(path[0])


@pytest.mark.parametrize("method", METHODS)
def test_one_task_alone_adapts_as_in_a_batch(method):
    learner, task = make(method), make_task()
    noise = noise_for(learner, tasks=3)
    batch = vmap(lambda support, n: torch.stack(learner.adapt(support, n, 6).path))(task.support, noise)
    for number in range(3):
        alone = torch.stack(learner.adapt(one(task, number).support, noise[number], 6).path)
        torch.testing.assert_close(batch[number], alone, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("method", TRAINED)
def test_every_meta_parameter_gets_a_finite_nonzero_gradient(method):
    learner, task = make(method), make_task()
    noise = noise_for(learner, tasks=3)
    gradients = [grad(meta_loss(learner, one(task, n), noise[n]))(parameters_of(learner)) for n in range(3)]
    for name in gradients[0]:
        total = sum(gradient[name].abs() for gradient in gradients)
        assert total.isfinite().all(), name
        assert (total > 0).double().mean() > 0.5, f"{name}: most entries have no gradient"


@pytest.mark.parametrize("method", METHODS)
def test_evaluation_leaves_no_graph_and_changes_no_parameter(method):
    learner, task = make(method), one(make_task())
    before = parameters_of(learner)
    with torch.no_grad():
        adaptation = learner.adapt(task.support, noise_for(learner), 4)
    assert all(weights.grad_fn is None for weights in adaptation.path)
    for name, parameter in learner.named_parameters():
        assert torch.equal(parameter, before[name]) and parameter.grad is None


def relative_error_of_finite_differences(learner, task, noise):
    """Compare the meta-gradient with central differences along random directions, in float64."""
    generator = torch.Generator().manual_seed(7)
    loss = meta_loss(learner, task, noise)
    # zero biases behind a dead layer sit exactly on a ReLU's kink, where there is no derivative to compare with
    parameters = {
        name: value + 0.1 * torch.randn(value.shape, generator=generator, dtype=value.dtype)
        for name, value in parameters_of(learner).items()
    }
    gradient = grad(loss)(parameters)
    worst = 0.0
    for _ in range(4):
        direction = {n: torch.randn(p.shape, generator=generator, dtype=p.dtype) for n, p in parameters.items()}
        slope = sum((gradient[name] * direction[name]).sum() for name in parameters)
        values = []
        for sign in (1, -1):
            values.append(loss({n: p + sign * 1e-6 * direction[n] for n, p in parameters.items()}))
        worst = max(worst, (((values[0] - values[1]) / 2e-6 - slope) / slope).abs().item())
    return worst


DIFFERENTIATED = {
    "maml, 1 step": ("maml", {"INNER_STEPS": 1, "INNER_LEARNING_RATE": 0.01}),
    "maml, 5 steps": ("maml", {"INNER_STEPS": 5, "INNER_LEARNING_RATE": 0.01}),
    # the encoder penalty holds back a gradient on purpose, so finite differences can't see what grad computes there
    "leo": (
        "leo",
        {"INNER_STEPS": 4, "LEO_LATENT_STEPS": 2, "LEO_ENCODER_PENALTY": 0.0, "LEO_ORTHOGONALITY": 0.1, "LEO_KL_WEIGHT": 0.1},
    ),
    "alpaca": ("alpaca", {}),
    "t-net, 3 layers of tanh": ("tnet", {"HIDDEN_LAYERS": 3, "ACTIVATION": "tanh", "INNER_LEARNING_RATE": 0.01}),
    "cnp, 1 layer of silu": ("cnp", {"HIDDEN_LAYERS": 1, "ACTIVATION": "silu"}),
}


@pytest.mark.parametrize(("method", "settings"), DIFFERENTIATED.values(), ids=DIFFERENTIATED)
def test_meta_gradient_matches_finite_differences(method, settings):
    learner, task = make(method, **settings), one(make_task())
    assert relative_error_of_finite_differences(learner, task, noise_for(learner)) < 1e-6


def test_leo_encoder_penalty_pulls_the_start_towards_a_fixed_end():
    task = one(make_task())
    settings = {"LEO_KL_WEIGHT": 0.0, "LEO_L2_WEIGHT": 0.0, "LEO_ORTHOGONALITY": 0.0, "INNER_STEPS": 2, "LEO_LATENT_STEPS": 2}
    learner = make("leo", LEO_ENCODER_PENALTY=1.0, **settings)
    noise, parameters = noise_for(learner), parameters_of(learner)

    def start(values):
        return adapted(learner, values, task.support, noise).code

    def penalty(values):
        return adapted(learner, values, task.support, noise).penalty

    end = end_code(learner, task, noise)
    expected = grad(lambda values: (end - start(values)).square().sum())(parameters)["encoder"]
    torch.testing.assert_close(grad(penalty)(parameters)["encoder"], expected)


def end_code(learner, task, noise):
    """z after the latent steps, by a plain autograd loop."""
    z_noise, weight_noise = noise.split([learner.latent_dim, learner.network.num_weights])
    mean, log_spread = learner.encode(task.support)
    z = (mean + log_spread.exp() * z_noise).detach()
    for _ in range(learner.latent_steps):
        z = z.requires_grad_()
        (slope,) = torch.autograd.grad(learner.support_loss(task.support)(learner.decode(z, weight_noise)), z)
        slope = slope * min(1.0, learner.clip / slope.norm().item())
        z = (z - learner.log_latent_lr.exp() * slope).detach()
    return z


def test_leo_trajectory_equals_a_plain_autograd_loop():
    learner, task = make("leo", INNER_STEPS=3, LEO_LATENT_STEPS=3), one(make_task())
    noise = noise_for(learner)
    weights = learner.decode(end_code(learner, task, noise), noise[learner.latent_dim :])
    torch.testing.assert_close(learner.adapt(task.support, noise).path[-1], weights, rtol=1e-9, atol=1e-11)


def test_leo_kl_is_zero_for_a_standard_normal_code_and_positive_elsewhere():
    learner, task = make("leo"), one(make_task())
    assert learner.adapt(task.support, noise_for(learner)).diagnostics["kl"] > 0
    with torch.no_grad():
        learner.relation.zero_()  # mean 0, log spread 0
    assert learner.adapt(task.support, noise_for(learner)).diagnostics["kl"].abs() < 1e-12


def test_leo_code_does_not_depend_on_the_order_of_support_points():
    learner, task = make("leo"), one(make_task())
    shuffled = Points(task.support.x.flip(0), task.support.y.flip(0))
    torch.testing.assert_close(learner.encode(shuffled), learner.encode(task.support))


@pytest.mark.parametrize("latent_steps", [0, 2])  # of 2: all descents in the weights, or, for a method with codes, in those
@pytest.mark.parametrize("method", [name for name in METHODS if "FIRST_ORDER" in registry.settings_read(name)])
def test_first_and_second_order_gradients_differ_and_losses_do_not(method, latent_steps):
    task, settings = one(make_task()), {"INNER_STEPS": 2, "LEO_LATENT_STEPS": latent_steps}
    first, second = (make(method, FIRST_ORDER=flag, **settings) for flag in (True, False))
    noise, parameters = noise_for(first), parameters_of(first)
    assert meta_loss(first, task, noise)(parameters) == meta_loss(second, task, noise)(parameters)
    one_gradient, other = (
        torch.cat([part.flatten() for part in grad(meta_loss(learner, task, noise))(parameters).values()])
        for learner in (first, second)
    )
    assert (one_gradient - other).norm() > 0.001 * other.norm()


def test_first_order_latent_steps_move_the_start_by_constants():
    settings = {"INNER_STEPS": 2, "LEO_LATENT_STEPS": 2, "LEO_ENCODER_PENALTY": 0.0, "LEO_KL_WEIGHT": 0.0}
    learner, task = make("leo", FIRST_ORDER=True, **settings), one(make_task())
    noise, parameters = noise_for(learner), parameters_of(learner)
    shift = (end_code(learner, task, noise) - learner.adapt(task.support, noise).code).detach()

    def query_error(values):
        start = adapted(learner, values, task.support, noise).code
        return mse(learner.network(learner.decode(start + shift, noise[learner.latent_dim :]), task.query.x), task.query.y)

    expected = grad(query_error)(parameters)["relation"]
    torch.testing.assert_close(
        grad(meta_loss(learner, task, noise))(parameters)["relation"],
        expected + grad(lambda values: learner.l2_weight * values["relation"].square().sum())(parameters)["relation"],
    )


@pytest.mark.parametrize("steps", [1, 5])
def test_maml_meta_gradient_equals_a_plain_autograd_loop_over_tasks(steps):
    learner, task = make("maml", INNER_STEPS=steps, INNER_LEARNING_RATE=0.01), make_task()

    theta = learner.theta.detach().clone().requires_grad_()
    total = torch.zeros((), dtype=torch.float64)
    for number in range(3):
        weights, here = theta, one(task, number)
        for _ in range(steps):
            first, second, last = learner.network.layers(weights)
            hidden = torch.relu(torch.relu(here.support.x * first[0] + first[1]) @ second[0] + second[1])
            error = ((hidden @ last[0] + last[1] - here.support.y) ** 2).mean()
            (slope,) = torch.autograd.grad(error, weights, create_graph=True)
            weights = weights - 0.01 * slope
        total = total + ((learner.network(weights, here.query.x) - here.query.y) ** 2).mean() / 3
    (expected,) = torch.autograd.grad(total, theta)

    dataset = TaskDataset(SinusoidalTaskGenerator(), 100, 3, 6, 7, 5)
    trainer = Trainer(learner, [dataset], Config(COMPILE="never"))
    vector = trainer.step._gradient(task, torch.zeros(3, 0), torch.full((3,), 1 / 3, dtype=torch.float64))
    torch.testing.assert_close(vector[: len(expected)], expected, rtol=1e-10, atol=1e-12)
    assert vector[len(expected)].item() == pytest.approx(total.item(), rel=1e-12)


def random_alpaca(shots):
    """The method with a prior unlike the initial one, a task, and its features [N, H + 1] at support and query points."""
    learner, task, generator = make("alpaca"), one(make_task(shots=shots)), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in learner.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    parts = (learner.network.hidden(learner.theta, points.x) for points in task)
    return learner, task, *(torch.nn.functional.pad(part, (0, 1), value=1.0).detach() for part in parts)


@pytest.mark.parametrize("shots", [1, 6, 20])  # fewer points than random effects, and more
def test_alpaca_predicts_as_a_linear_mixed_model_on_its_features(shots):
    learner, task, known, asked = random_alpaca(shots)
    factor, noise = learner.factor.detach(), learner.log_noise.exp().item()
    beta, covariance = learner.theta.detach()[-known.shape[1] :], noise * factor @ factor.T
    variance = known @ covariance @ known.T + noise * torch.eye(shots, dtype=known.dtype)
    effects = covariance @ known.T @ torch.linalg.solve(variance, task.support.y[:, 0] - known @ beta)  # Robinson 1991
    with torch.no_grad():
        found = learner.network(learner.adapt(task.support, torch.zeros(0)).path[-1], task.query.x)
    torch.testing.assert_close(found[:, 0], asked @ (beta + effects), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shots", [1, 6, 20])
def test_alpaca_evidence_is_the_log_density_of_the_support_targets(shots):
    learner, task, known, _ = random_alpaca(shots)
    factor, noise = learner.factor.detach(), learner.log_noise.exp().detach()
    mean = known @ learner.theta.detach()[-known.shape[1] :]
    covariance = noise * (known @ factor @ factor.T @ known.T + torch.eye(shots, dtype=known.dtype))
    density = torch.distributions.MultivariateNormal(mean, covariance).log_prob(task.support.y[:, 0])
    found = learner.adapt(task.support, torch.zeros(0))
    expected = density / shots + 0.5 * math.log(2 * math.pi)
    torch.testing.assert_close(found.diagnostics["evidence"], expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.penalty, -0.1 * expected, rtol=1e-9, atol=1e-9)

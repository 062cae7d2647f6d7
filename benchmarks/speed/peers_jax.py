"""MAML and LEO as a JAX user writes them for speed: one jitted meta-step, called once per step or scanned.

The mathematics is that of maml.py and leo.py, written again; tasks are drawn by `jax.random` inside the compiled
function, so no data comes from Python.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array, lax
from jax import numpy as jnp
from jax.flatten_util import ravel_pytree

from benchmarks.speed.child import MeasurementError
from benchmarks.speed.work import Implementation, Work
from config import Config
from learner import Network
from leo import LOG_SPREAD
from training.optimiser import MATRIX_STEP, MOMENTUM, NEWTON_SCHULZ

jax.config.update("jax_default_matmul_precision", "float32")  # no TF32 on a GPU: torch computes in float32, too

STEPS_PER_SCAN = 100
PARTS = ("encoder", "relation", "decoder")  # the networks of LEO
Layers = list[tuple[Array, Array]]  # (matrix [in, out], bias [out]) of each layer
Tasks = tuple[Array, Array, Array, Array]  # support x, y [T, K, 1], query x, y [T, Q, 1]


class State(NamedTuple):
    """All that a meta-step changes."""

    params: Any
    mean: Any  # Adam's first moment, or Muon's momentum
    square: Any  # Adam's second moment
    step: Array
    key: Array


# ---- networks


def affine(x: Array, matrix: Array, bias: Array) -> Array:
    """[N, in] -> [N, out]; an outer product as such, which XLA's matrix product does not recognise."""
    return (x * matrix if matrix.shape[0] == 1 else x @ matrix) + bias


def network(layers: Layers, x: Array, activation: Callable[[Array], Array] = jax.nn.relu) -> Array:
    for matrix, bias in layers[:-1]:
        x = activation(affine(x, matrix, bias))
    return affine(x, *layers[-1])


def unflatten(weights: Array, sizes: list[int]) -> Layers:
    """Flat weights [P] as layers of a perceptron with `sizes` units."""
    layers, place = [], 0
    for fan_in, fan_out in pairwise(sizes):
        middle = place + fan_in * fan_out
        layers.append((weights[place:middle].reshape(fan_in, fan_out), weights[middle : middle + fan_out]))
        place = middle + fan_out
    return layers


def mse(prediction: Array, target: Array) -> Array:
    return jnp.square(prediction - target).mean()


# ---- the two methods: meta-loss [] of params, tasks and noise [T, ...]


def maml_loss(params: Layers, tasks: Tasks, noise: Array, *, inner_lr: float, steps: int) -> Array:
    def one(support_x: Array, support_y: Array, query_x: Array, query_y: Array) -> Array:
        weights = params
        for _ in range(steps):  # unrolled: a scan of so little work costs more than it saves
            gradient = jax.grad(lambda w: mse(network(w, support_x), support_y))(weights)
            weights = jax.tree.map(lambda w, g: w - inner_lr * g, weights, gradient)
        return mse(network(weights, query_x), query_y)

    return jax.vmap(one)(*tasks).mean()


def gradient_descent(loss: Callable[[Array], Array], point: Array, lr: Array, steps: int, clip: float) -> Array:
    """`steps` of gradient descent from `point` [N], each gradient at most `clip` long."""
    for _ in range(steps):
        gradient = jax.grad(loss)(point)
        gradient = gradient * clip * lax.rsqrt(jnp.maximum(jnp.square(gradient).sum(), clip**2))
        point = point - lr * gradient
    return point


def leo_loss(params: dict[str, Any], tasks: Tasks, noise: Array, *, config: Config, sizes: list[int]) -> Array:
    size, latent_steps = config.LEO_LATENT_DIM, config.LEO_LATENT_STEPS
    weight_steps, clip = config.INNER_STEPS - latent_steps, config.INNER_GRADIENT_CLIP

    def decode(z: Array, weight_noise: Array) -> Array:
        mean, log_spread = jnp.split(network(params["decoder"], z[None], jnp.tanh)[0], 2)  # [P] each
        return mean + jnp.exp(jnp.clip(log_spread, *LOG_SPREAD)) * weight_noise

    def one(support_x: Array, support_y: Array, query_x: Array, query_y: Array, task_noise: Array) -> Array:
        mean, log_spread = encode(params, support_x, support_y)
        start = mean + jnp.exp(log_spread) * task_noise[:size]

        def loss(weights: Array) -> Array:
            return mse(network(unflatten(weights, sizes), support_x), support_y)

        latent_loss = lambda z: loss(decode(z, task_noise[size:]))  # noqa: E731
        code = gradient_descent(latent_loss, start, jnp.exp(params["log_latent_lr"]), latent_steps, clip)
        weights = decode(code, task_noise[size:])
        weights = gradient_descent(loss, weights, jnp.exp(params["log_weight_lr"]), weight_steps, clip)
        kl = 0.5 * (jnp.square(mean) + jnp.exp(2 * log_spread) - 1 - 2 * log_spread).sum()
        encoder_penalty = jnp.square(lax.stop_gradient(code) - start).sum()
        error = mse(network(unflatten(weights, sizes), query_x), query_y)
        return error + config.LEO_KL_WEIGHT * kl + config.LEO_ENCODER_PENALTY * encoder_penalty

    return jax.vmap(one)(*tasks, noise).mean() + generator_penalty(params, config)


def encode(params: dict[str, Any], x: Array, y: Array) -> tuple[Array, Array]:
    """Mean and log spread [Z] of the code of a support set: x [K, 1], y [K, 1]."""
    features = network(params["encoder"], jnp.concatenate([x, y], axis=1))  # [K, E]
    count, width = features.shape
    left = jnp.broadcast_to(features[:, None], (count, count, width))
    right = jnp.broadcast_to(features[None, :], (count, count, width))
    pairs = jnp.concatenate([left, right], axis=2).reshape(count * count, 2 * width)
    mean, log_spread = jnp.split(network(params["relation"], pairs).mean(0), 2)
    return mean, jnp.clip(log_spread, *LOG_SPREAD)


def generator_penalty(params: dict[str, Any], config: Config) -> Array:
    squares = sum(jnp.square(leaf).sum() for part in PARTS for leaf in jax.tree.leaves(params[part]))
    rows = params["decoder"][-1][0]  # [hidden, 2P]
    rows = rows / jnp.maximum(jnp.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    departure = jnp.square(rows @ rows.T - jnp.eye(len(rows))).mean()
    return config.LEO_L2_WEIGHT * squares + config.LEO_ORTHOGONALITY * departure


# ---- the meta-step


def draw(key: Array, config: Config, batches: int) -> Tasks:
    """Meta-batches of random sinusoids, [B, T, K or Q, 1] each."""
    keys = jax.random.split(key, 3)
    count, shots = (batches, config.META_BATCH_SIZE), config.SUPPORT_SAMPLES
    uniform = partial(jax.random.uniform, dtype=jnp.float32)
    amplitude = uniform(keys[0], (*count, 1, 1), minval=config.AMPLITUDE_MIN, maxval=config.AMPLITUDE_MAX)
    phase = uniform(keys[1], (*count, 1, 1), minval=config.PHASE_MIN, maxval=config.PHASE_MAX)
    x = uniform(keys[2], (*count, shots + config.QUERY_SAMPLES, 1), minval=config.X_MIN, maxval=config.X_MAX)
    y = amplitude * jnp.sin(x - phase)
    return x[:, :, :shots], y[:, :, :shots], x[:, :, shots:], y[:, :, shots:]


def orthogonal(matrix: Array) -> Array:
    """Newton and Schulz's iteration, as in training/optimiser.py."""
    (a, b, c), iterations = NEWTON_SCHULZ
    matrix = matrix / (jnp.linalg.norm(matrix) + 1e-7)
    for _ in range(iterations):
        gram = matrix @ matrix.T
        matrix = a * matrix + (b * gram + c * gram @ gram) @ matrix
    return matrix


def optimise(state: State, gradient: Any, hidden: Any, *, lr: float, clip: float) -> State:
    """Clip `gradient` to the norm `clip`, and take a step of Muon in the leaves that are `hidden`, of Adam in the others."""
    norm = jnp.sqrt(sum(jnp.square(leaf).sum() for leaf in jax.tree.leaves(gradient)))
    gradient = jax.tree.map(lambda g: g * jnp.minimum(1.0, clip / (norm + 1e-6)), gradient)
    step = state.step + 1
    decay = jax.tree.map(lambda muon: MOMENTUM if muon else 0.9, hidden)
    mean = jax.tree.map(lambda d, m, g: d * m + (1 - d) * g, decay, state.mean, gradient)
    square = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, state.square, gradient)
    size, root = lr / (1 - 0.9**step), jnp.sqrt(1 - 0.999**step)

    def moved(muon: bool, p: Array, m: Array, v: Array, g: Array) -> Array:
        if muon:
            direction = orthogonal(MOMENTUM * m + (1 - MOMENTUM) * g)
            return p - lr * MATRIX_STEP * max(p.shape) ** 0.5 * direction
        return p - size * m / (jnp.sqrt(v) / root + 1e-8)

    params = jax.tree.map(moved, hidden, state.params, mean, square, gradient)
    return State(params, mean, square, step, state.key)


def units(network: Network) -> list[int]:
    """Numbers of units of the layers, inputs included."""
    return [fan_in for fan_in, _ in network.shapes] + [network.shapes[-1][1]]


def hidden_of(work: Work, params: Any) -> Any:
    """Which of the arrays of `params` take steps of Muon."""
    hidden = jax.tree.map(lambda _: False, params)
    if work.config.META_OPTIMISER == "muon":
        chosen = {matrix.data_ptr() for matrix in work.learner.hidden_matrices()}
        for name in PARTS:
            layers = getattr(work.learner, f"{name}_network").layers(getattr(work.learner, name))
            hidden[name] = [(matrix.data_ptr() in chosen, False) for matrix, _ in layers]
    return hidden


def start_of(work: Work) -> tuple[Any, Callable[..., Array]]:
    """The common initial meta-parameters as JAX keeps them, and the meta-loss that takes them."""
    config, sizes = work.config, units(work.learner.network)
    arrays = {name: jnp.asarray(array) for name, array in work.start.items()}
    if "theta" in arrays:
        loss = partial(maml_loss, inner_lr=config.INNER_LEARNING_RATE, steps=config.INNER_STEPS)
        return unflatten(arrays["theta"], sizes), loss
    parts = {name: unflatten(arrays[name], units(getattr(work.learner, f"{name}_network"))) for name in PARTS}
    return arrays | parts, partial(leo_loss, config=config, sizes=sizes)


class JaxPeer(Implementation):
    """Trains in JAX; `scanned` says whether one call does one meta-step or many."""

    def __init__(self, work: Work, scanned: bool):
        if work.device.startswith("cuda") and jax.default_backend() != "gpu":
            raise MeasurementError("the JAX that is installed sees no GPU")
        config, noise_dim = work.config, work.learner.noise_dim
        self.work, self.unit = work, STEPS_PER_SCAN if scanned else 1
        params, loss = start_of(work)
        zeros = partial(jax.tree.map, jnp.zeros_like)
        self.gradient, hidden = jax.value_and_grad(loss), hidden_of(work, params)
        self.state = State(params, zeros(params), zeros(params), jnp.zeros(()), jax.random.key(0))

        def step(state: State, tasks: Tasks) -> tuple[State, Array]:
            key, here = jax.random.split(state.key)
            noise = jax.random.normal(here, (config.META_BATCH_SIZE, noise_dim), dtype=jnp.float32)
            value, gradient = self.gradient(state.params, tasks, noise)
            state = optimise(state, gradient, hidden, lr=config.META_LEARNING_RATE, clip=config.META_GRADIENT_CLIP)
            return state._replace(key=key), value

        def call(state: State) -> tuple[State, Array]:
            # The tasks of all steps at once, as the project draws its own: MAML gets a quarter faster by it. Not the
            # noise of LEO, which is so much that it gets slower.
            key, here = jax.random.split(state.key)
            tasks = draw(here, config, self.unit)
            if not scanned:
                return step(state._replace(key=key), jax.tree.map(lambda array: array[0], tasks))
            state, values = lax.scan(step, state._replace(key=key), tasks)
            return state, values[-1]

        self.call = jax.jit(call, donate_argnums=0)

    def meta_gradient(self) -> np.ndarray:
        tasks = tuple(jnp.asarray(array) for points in self.work.batch for array in points)
        _, gradient = jax.jit(self.gradient)(self.state.params, tasks, jnp.asarray(self.work.noise))
        if isinstance(gradient, dict):  # JAX sorts a dictionary's keys; the flat vector has the learner's order
            gradient = [gradient[name] for name in self.work.start]
        flat = np.asarray(ravel_pytree(gradient)[0])
        self.state, _ = self.call(self.state)  # compiles; the first step counts for nothing
        return flat

    def run(self, iterations: int) -> float:
        for _ in range(iterations // self.unit):
            self.state, value = self.call(self.state)
        return float(value)  # waits for the end

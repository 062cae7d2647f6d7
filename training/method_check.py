"""A method is tried once on tiny tasks before it is trained: a mistake in it gets one line instead of a traceback."""

from __future__ import annotations

import inspect
import traceback
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap

from config import Config, ConfigError
from dataset import Points, Task, stream
from learner import Adaptation, MetaLearner
from system.errors import RunError

LARGEST = 10**7  # meta-parameters of a method that is tried
INPUTS = 5
HINTS = {  # words of an error, or of the line that raised it -> what to do instead
    "data-dependent control flow": "no branch on the value of a tensor: torch.where",
    "randomness": "random numbers from `noise`, of which there are noise_dim",
    "autograd": "gradients by torch.func.grad, as gradient_descent takes them",
    "backward": "gradients by torch.func.grad, as gradient_descent takes them",
    "Module.__init__": "super().__init__(config, rng) first",
    "'state_size'": "super().__init__(config, rng), or predict and state_size of its own",
    "'network'": "super().__init__(config, rng), or predict and state_size of its own",
    "in-place": "new tensors instead of changed ones",
    ".item()": "tensors instead of numbers: vmap runs over tasks",
}


def checked_learner(name: str, method: type[MetaLearner], config: Config) -> MetaLearner:
    """The learner of a method. Raises `ConfigError`, in one line, where `adapt` or what goes with it breaks its rules."""
    try:
        learner = method.from_config(config, stream(config.RANDOM_SEED, "weights"))
        parameters = sum(parameter.numel() for parameter in learner.parameters())
        if not parameters:
            raise ConfigError(f"{name} has nothing to learn (got no nn.Parameter; expected at least one)")
        if parameters <= LARGEST:
            again = method.from_config(config, stream(config.RANDOM_SEED, "weights"))
            if not all(map(torch.equal, learner.parameters(), again.parameters())):
                _refuse(name, "a second learner has other initial weights", "draws from the argument rng alone")
            _check(name, learner)
    except (ConfigError, RunError, MemoryError, torch.cuda.OutOfMemoryError):
        raise
    except Exception as error:
        raise ConfigError(_in_one_line(name, method, error)) from error
    return learner


def _check(name: str, learner: MetaLearner) -> None:
    x = torch.linspace(-1, 1, 2 * INPUTS * learner.input_dim).reshape(2, INPUTS, learner.input_dim)
    tasks, noise = Points(x, x.sum(-1, keepdim=True).sin()), torch.zeros(2, learner.noise_dim)
    support, state = Points(tasks.x[0], tasks.y[0]), _numbers(learner)
    with torch.no_grad():
        for steps in (0, 1, 3, None):
            found, again = (learner.adapt(support, noise[0], steps) for _ in range(2))
            _check_adaptation(name, learner, found, steps)
            if not all(torch.allclose(*pair, equal_nan=True) for pair in zip(found.path, again.path, strict=True)):
                _refuse(name, "adapt gives other states for the same arguments", HINTS["randomness"])
            _check_predictions(name, learner, found.path[-1], support)
        _check_predictions(name, learner, learner.prior(), support)
    if any(not torch.equal(before, now) for before, now in zip(state, _numbers(learner), strict=True)):
        _refuse(name, "adapt changes a parameter or a buffer", "a pure function, which returns all that it finds")
    if not learner.is_fitted():
        parameters = {key: value.detach() for key, value in learner.named_parameters()}

        def loss(parameters: dict[str, Tensor], task: Task, noise: Tensor) -> Tensor:
            return functional_call(learner, parameters, (task, noise))[0]

        vmap(grad(loss), in_dims=(None, 0, 0))(parameters, Task(tasks, Points(tasks.x[:, 1:], tasks.y[:, 1:])), noise)


def _check_adaptation(name: str, learner: MetaLearner, found: Any, steps: int | None) -> None:
    if not isinstance(found, Adaptation):
        _refuse(name, f"adapt returns {type(found).__name__}", "an Adaptation, such as Adaptation.along(path)")
    if steps is not None and len(found.path) != steps + 1:
        expected = f"{steps + 1}: that before any gradient, and one after each"
        _refuse(name, f"adapt with steps={steps} gives a path of {len(found.path)} states", expected)
    for number, state in enumerate(found.path):
        if tuple(state.shape) != (learner.state_size,):
            _refuse(
                name, f"entry {number} of the path has the shape {list(state.shape)}", f"[{learner.state_size}], state_size"
            )


def _check_predictions(name: str, learner: MetaLearner, state: Tensor, points: Points) -> None:
    if (got := learner.predict(state, points.x)).shape != (INPUTS,):
        _refuse(name, f"predict gives {list(got.shape)} for {INPUTS} inputs", f"[{INPUTS}]: one output for each")


def _numbers(learner: MetaLearner) -> list[Tensor]:
    return [tensor.detach().clone() for tensor in (*learner.parameters(), *learner.buffers())]


def _refuse(name: str, got: str, expected: str) -> None:
    raise ConfigError(f"the method {name} can't be used (got: {got}; expected {expected})")


def _in_one_line(name: str, method: type[MetaLearner], error: Exception) -> str:
    """What went wrong, where in the method's own file, and what to do instead where that is known."""
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == inspect.getfile(method)]
    where = f" in {own[-1].filename.rsplit('/', 1)[-1]}, line {own[-1].lineno}" if own else ""
    text = " ".join(str(error).split())
    seen = text + (own[-1].line or "" if own else "")
    hint = next((hint for words, hint in HINTS.items() if words in seen), "a method as docs/adding_a_method.md describes it")
    return f"the method {name} can't be used (got {type(error).__name__}{where}: {text[:160]}; expected {hint})"

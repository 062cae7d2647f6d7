"""Mistakes in a method of one's own: each gets one line before anything is trained."""

import pytest
import torch
from torch import nn

import main
import registry
from config import Config, ConfigError
from dataset import stream
from learner import Adaptation, GradientLearner, MetaLearner, Network
from training.method_check import checked_learner


class Plain(GradientLearner):
    """MAML without a mistake; each other one changes it."""

    def __init__(self, config, rng):
        super().__init__(config, rng)
        self.theta = nn.Parameter(self.network.init(rng))

    def adapt(self, support, noise, steps=None):
        return Adaptation.along(self.descend(self.support_loss(support), self.theta, self.inner_lr, steps))


class Branches(Plain):
    def adapt(self, support, noise, steps=None):
        found = super().adapt(support, noise, steps)
        return found if self.error(found.path[-1], support) > 0 else Adaptation.along(found.path)


class ByAutograd(Plain):
    def adapt(self, support, noise, steps=None):
        path = [self.theta]
        for _ in range(1 if steps is None else steps):
            with torch.enable_grad():
                (slope,) = torch.autograd.grad(self.error(path[-1], support), path[-1], create_graph=True)
            path.append(path[-1] - 0.01 * slope)
        return Adaptation.along(path)


class ByBackward(Plain):
    def adapt(self, support, noise, steps=None):
        self.error(self.theta, support).backward()
        return Adaptation.along([self.theta] * ((steps or 0) + 1))


class Random(Plain):
    def adapt(self, support, noise, steps=None):
        return Adaptation.along([self.theta + torch.randn(self.state_size)] * ((1 if steps is None else steps) + 1))


class Counts(Plain):
    def __init__(self, config, rng):
        super().__init__(config, rng)
        self.register_buffer("calls", torch.zeros(()))

    def adapt(self, support, noise, steps=None):
        self.calls += 1
        return super().adapt(support, noise, steps)


class IgnoresSteps(Plain):
    def adapt(self, support, noise, steps=None):
        return super().adapt(support, noise, 1)


class GivesItsPath(Plain):
    def adapt(self, support, noise, steps=None):
        return super().adapt(support, noise, steps).path


class GivesTheHead(Plain):
    def adapt(self, support, noise, steps=None):
        return Adaptation.along([state[-9:] for state in super().adapt(support, noise, steps).path])


class HasNoNetwork(MetaLearner):
    def __init__(self, config, rng):
        nn.Module.__init__(self)
        self.input_dim, self.theta = config.INPUT_DIM, nn.Parameter(torch.zeros(3))

    def adapt(self, support, noise, steps=None):
        return Adaptation.along([self.theta] * ((1 if steps is None else steps) + 1))


class NeverBegins(MetaLearner):
    def __init__(self, config, rng):
        self.theta = nn.Parameter(torch.zeros(3))

    def adapt(self, support, noise, steps=None):
        raise NotImplementedError


class HasTwoOutputs(Plain):
    def __init__(self, config, rng):
        super().__init__(config, rng)
        self.network = Network((config.INPUT_DIM, 8, 2))
        self.theta = nn.Parameter(self.network.init(rng))


class LearnsNothing(MetaLearner):
    def adapt(self, support, noise, steps=None):
        return Adaptation.along([torch.zeros(self.state_size)] * ((steps or 0) + 1))


class StartsAnywhere(Plain):
    def __init__(self, config, rng):
        super().__init__(config, rng)
        self.theta = nn.Parameter(torch.randn(self.state_size))


class Misspells(Plain):
    def adapt(self, support, noise, steps=None):
        return Adaptation.along(self.descent(self.support_loss(support)))


MISTAKES = {
    Branches: r"line \d+: .*; expected no branch on the value of a tensor: torch.where",
    ByAutograd: "expected gradients by torch.func.grad",
    ByBackward: "expected gradients by torch.func.grad",
    Random: "got: adapt gives other states for the same arguments; expected random numbers from `noise`",
    Counts: "got: adapt changes a parameter or a buffer; expected a pure function",
    IgnoresSteps: "got: adapt with steps=0 gives a path of 2 states; expected 1: that before any gradient",
    GivesItsPath: "got: adapt returns list; expected an Adaptation",
    GivesTheHead: r"got: entry 0 of the path has the shape \[9\]; expected \[97\], state_size",
    HasNoNetwork: "HasNoNetwork.* has no attribute 'state_size'; expected super",
    NeverBegins: r"NeverBegins.* before Module.__init__\(\) call; expected super\(\).__init__\(config, rng\) first",
    HasTwoOutputs: r"got: predict gives \[10\] for 5 inputs; expected \[5\]: one output for each",
    StartsAnywhere: "got: a second learner has other initial weights; expected draws from the argument rng alone",
    LearnsNothing: "has nothing to learn",
    Misspells: r"AttributeError in test_method_check.py, line \d+: 'Misspells' object has no attribute 'descent'",
}


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.__name__)
def test_a_mistake_is_named_in_one_line(mistake):
    with pytest.raises(ConfigError, match=MISTAKES[mistake]) as caught:
        checked_learner(mistake.__name__, mistake, Config(HIDDEN_DIM=8))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_it_ends_a_command_before_a_directory_is_made(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(registry.METHODS, "own", IgnoresSteps)
    assert main.main(["--method", "own", "--output", str(tmp_path / "runs")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: the method own can't be used") and error.count("\n") == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("settings", [{}, {"INPUT_DIM": 3, "INNER_STEPS": 0}])
@pytest.mark.parametrize("method", [*registry.METHODS, "plain"])
def test_methods_without_a_mistake_pass_with_the_weights_that_they_had(method, settings):
    own = registry.METHODS.get(method, Plain)
    config = Config.resolve(own.defaults, settings, {"HIDDEN_DIM": 8})
    learner = checked_learner(method, own, config)
    for one, other in zip(learner.parameters(), own.from_config(config, stream(0, "weights")).parameters(), strict=True):
        assert torch.equal(one, other) and one.grad is None

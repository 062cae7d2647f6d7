"""Muon: matrices move as torch's own does, everything else as under Adam, and a method says which matrices."""

import math

import pytest
import torch

import registry
from config import Config, ConfigError
from dataset import stream
from leo import LEO
from maml import MAML
from tests.tools.methods import TRAINED
from tests.tools.training import make
from training.experiment import Experiment
from training.optimiser import MATRIX_STEP, Optimiser, clipped_step, offsets_of, orthogonal

PLACES = [(3, 4, 6), (30, 5, 2)]  # in a vector of 42


def start():
    """Parameters [42], Adam's state, whether all is finite, and log values."""
    flat = torch.randn(42, generator=torch.Generator().manual_seed(0))
    return flat, torch.zeros(42), torch.zeros(42), torch.zeros(()), torch.tensor(True), torch.zeros(2)


def gradients(count):
    """Gradients [42] with one log value each."""
    return list(torch.randn(count, 43, generator=torch.Generator().manual_seed(1)))


def matrices_of(vector):
    return [vector[at : at + rows * columns].view(rows, columns) for at, rows, columns in PLACES]


def others_of(vector):
    return torch.cat([vector[:3], vector[27:30], vector[40:]])


def test_matrices_take_the_steps_of_torchs_muon():
    state, lr = start(), torch.tensor(0.01)
    references = [torch.nn.Parameter(matrix.clone()) for matrix in matrices_of(state[0])]
    theirs = torch.optim.Muon(references, lr=0.01, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    for gradient in gradients(6):
        before = state
        state = clipped_step(Optimiser(muon=True), PLACES, state, gradient, lr)
        for reference, slope in zip(references, matrices_of(gradient), strict=True):
            reference.grad = slope.clone()
        old = [reference.detach().clone() for reference in references]
        theirs.step()
        for reference, was, new, last in zip(references, old, matrices_of(state[0]), matrices_of(before[0]), strict=True):
            expected, moved = reference.detach() - was, new - last
            # theirs is computed in bfloat16, with a step of 0.2
            torch.testing.assert_close(moved, expected * MATRIX_STEP / 0.2, rtol=0.05, atol=0.05 * float(moved.abs().max()))


def test_everything_else_takes_the_steps_of_adam_to_the_bit():
    muon, adam, lr = start(), start(), torch.tensor(0.01)
    for gradient in gradients(4):
        muon = clipped_step(Optimiser(1.0, 0.0, True), PLACES, muon, gradient, lr)
        adam = clipped_step(Optimiser(1.0), [], adam, gradient, lr)
    assert torch.equal(others_of(muon[0]), others_of(adam[0])) and torch.equal(others_of(muon[1]), others_of(adam[1]))
    for one, other in zip(matrices_of(muon[0]), matrices_of(adam[0]), strict=True):
        assert (one - other).abs().min() > 0


def test_a_bad_gradient_moves_no_matrix_and_none_is_no_direction():
    state, bad = start(), gradients(1)[0]
    bad[10] = math.nan
    after = clipped_step(Optimiser(muon=True), PLACES, state, bad, torch.tensor(0.01))
    assert torch.equal(after[0], state[0]) and torch.equal(after[1], state[1]) and not after[4]
    assert torch.equal(orthogonal(torch.zeros(3, 5)), torch.zeros(3, 5))


def test_orthogonal_keeps_singular_vectors_and_brings_singular_values_near_one():
    for shape in ((4, 4), (3, 20), (20, 3), (1, 7)):
        matrix = torch.randn(shape, generator=torch.Generator().manual_seed(2))
        left, _, right = torch.linalg.svd(matrix, full_matrices=False)
        values = left.T @ orthogonal(matrix) @ right.T
        assert (values - values.diag().diag()).abs().max() < 1e-4
        assert values.diag().min() > 0.5 and values.diag().max() < 1.3


@pytest.mark.parametrize("method", TRAINED)
def test_the_places_of_hidden_matrices_in_the_flat_vector_hold_their_numbers(method):
    trainer = make(method, iterations=1, settings={"META_OPTIMISER": "muon"})
    matrices = trainer.learner.hidden_matrices()
    assert len(matrices) == len(trainer.step.offsets) > 0
    for matrix, (at, rows, columns) in zip(matrices, trainer.step.offsets, strict=True):
        assert torch.equal(matrix, trainer.meta.flat[at : at + rows * columns].view(rows, columns))


def test_matrices_that_are_no_part_of_the_meta_parameters_are_refused():
    vector = torch.zeros(9)
    square = vector[:4].view(2, 2)
    wrong = {"views": [square.clone()], "two-dimensional": [vector[:4]], "overlap": [square, square]}
    wrong["contiguous"] = [vector[:6].view(2, 3).T]
    for reason, matrices in wrong.items():
        with pytest.raises(ValueError, match=reason):
            offsets_of(matrices, vector)


def test_no_matrices_are_those_of_a_theta_that_is_no_network_nor_of_layers_that_take_points_or_give_weights():
    learner = MAML.from_config(Config(HIDDEN_DIM=8), stream(0, "weights"))
    assert len(learner.hidden_matrices()) == 1
    learner.theta = torch.nn.Parameter(learner.theta.detach()[:-9])
    assert learner.hidden_matrices() == []
    shapes = [tuple(matrix.shape) for matrix in LEO.from_config(Config(), stream(0, "weights")).hidden_matrices()]
    assert shapes == [(16, 16), (16, 16), (32, 32), (32, 32), (32, 32), (16, 32)]


def test_muon_is_refused_where_a_method_names_no_matrices(monkeypatch):
    monkeypatch.setattr(MAML, "hidden_matrices", lambda self: [])
    config = Config(META_OPTIMISER="muon")
    with pytest.raises(ConfigError, match=r"META_OPTIMISER=muon .*\(got maml; expected"):
        Experiment("maml", MAML, "sinusoid", registry.TASKS["sinusoid"](config), config)

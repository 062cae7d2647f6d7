"""One step of Adam on a flat vector, and of Muon on matrices in it, as a function of tensors: it compiles into the graph of the
gradient.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim.adam import adam

STATE = ("exp_avg", "exp_avg_sq", "step")
FIXED: dict[str, Any] = {
    "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.0, "amsgrad": False, "maximize": False, "foreach": False
}  # fmt: skip
Offset = tuple[int, int, int]  # of a matrix in the vector: start, rows, columns
MOMENTUM = 0.95  # of Muon
MATRIX_STEP = 0.8  # root mean square of the steps of a matrix's entries, about, relative to the step size
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315), 5  # coefficients that raise small singular values fast, and iterations


class Optimiser(NamedTuple):
    """How a gradient is used.

    Args:
        clip: bound on its norm; 0 = none.
        decay: of a running average of the parameters (Polyak averaging with an exponential weight; a plain mean at first);
            0 = there is none.
        muon: hidden matrices take steps of Muon, all else of Adam.
    """

    clip: float = 0.0
    decay: float = 0.0
    muon: bool = False


def offsets_of(matrices: Sequence[Tensor], vector: Tensor) -> list[Offset]:
    """Where matrices that are views of `vector` lie in it, in order; raises ValueError where they are not, or overlap."""
    storage = vector.untyped_storage().data_ptr()
    if not all(one.ndim == 2 and one.is_contiguous() and one.untyped_storage().data_ptr() == storage for one in matrices):
        raise ValueError("hidden matrices have to be two-dimensional, contiguous views of the meta-parameters")
    offsets = sorted((one.storage_offset(), *one.shape) for one in matrices)
    if any(start + rows * columns > following[0] for (start, rows, columns), following in pairwise(offsets)):
        raise ValueError("hidden matrices must not overlap")
    return offsets


def clipped_step(
    optimiser: Optimiser, matrices: Sequence[Offset], state: tuple[Tensor, ...], vector: Tensor, lr: Tensor
) -> tuple[Tensor, ...]:
    """`state` after one step, in new tensors.

    In the first step with something that is not finite, only the last two of the state change; in later steps nothing does.

    Args:
        matrices: those that take a step of Muon, in their order.
        state: the parameters [M], Adam's `STATE`, at most one running average of the parameters, whether all has been
            finite up to now [], and the log values [L + 1] of this step, or of the first bad one.
        vector: [M + L], the gradient and log values; its norm becomes the last log value.
        lr: [], the step size.
    """
    *before, finite, logged = state
    gradient, values = vector.split([len(state[0]), len(vector) - len(state[0])])
    norm = torch.linalg.vector_norm(gradient)
    if optimiser.clip:
        gradient = gradient * (optimiser.clip / (norm + 1e-6)).clamp(max=1.0)  # as torch.nn.utils.clip_grad_norm_
    still_finite = finite & values.isfinite().all() & norm.isfinite()
    after = [tensor.clone() for tensor in before]
    flat, exp_avg, exp_avg_sq, step, *averages = after
    capturable = torch.compiler.is_compiling() or flat.is_cuda
    adam([flat], [gradient], [exp_avg], [exp_avg_sq], [], [step], capturable=capturable, lr=lr, **FIXED)
    if matrices:
        flat, exp_avg = _with_muon(before, gradient, lr, matrices, flat, exp_avg)
        after[:2] = flat, exp_avg
    for average in averages:
        average.lerp_(flat, step.reciprocal().clamp(min=1 - optimiser.decay))
    kept = [torch.where(still_finite, tensor, old) for tensor, old in zip(after, before, strict=True)]
    # the log values freeze at the first bad step, so that the message can name it
    return *kept, still_finite, torch.where(finite, torch.cat([values, norm[None]]), logged)


def _with_muon(
    before: list[Tensor], gradient: Tensor, lr: Tensor, matrices: Sequence[Offset], *adams: Tensor
) -> tuple[Tensor, ...]:
    """Parameters and momentum [M] after a step from `before`: Muon's at the offsets of `matrices`, `adams` elsewhere.

    Muon (Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks"): the gradients' average, Nesterov's
    way, made orthogonal. Its entries are scaled to one size for all shapes (Liu et al. 2025, arXiv 2502.16982, section 2.2).
    """
    pieces: list[tuple[Tensor, ...]] = []
    end = 0
    for start, rows, columns in matrices:
        pieces.append(tuple(tensor[end:start] for tensor in adams))
        end = start + rows * columns
        old, momentum, slope = (tensor[start:end] for tensor in (*before[:2], gradient))
        momentum = momentum.lerp(slope, 1 - MOMENTUM)
        direction = orthogonal(slope.lerp(momentum, MOMENTUM).view(rows, columns)).reshape(-1)
        pieces.append((old - lr * MATRIX_STEP * math.sqrt(max(rows, columns)) * direction, momentum))
    return tuple(map(torch.cat, zip(*pieces, (tensor[end:] for tensor in adams), strict=True)))


def orthogonal(matrix: Tensor) -> Tensor:
    """About U V' of the singular value decomposition U S V' of `matrix`, by Newton and Schulz's iteration; zeros stay zeros."""
    (a, b, c), iterations = NEWTON_SCHULZ
    matrix = matrix / (torch.linalg.vector_norm(matrix) + 1e-7)
    for _ in range(iterations):
        gram = matrix @ matrix.T
        matrix = a * matrix + (b * gram + c * gram @ gram) @ matrix
    return matrix


def replace_numbers(target: Tensor, source: Tensor) -> None:
    """Copy `source` into `target`; raises ValueError where it does not fit, or holds what is not finite."""
    if (target.shape, target.dtype) != (source.shape, source.dtype) or not source.isfinite().all():
        got, expected = f"{source.dtype} {tuple(source.shape)}", f"finite {target.dtype} {tuple(target.shape)}"
        raise ValueError(f"its numbers can't be used (got {got}; expected {expected})")
    target.copy_(source)

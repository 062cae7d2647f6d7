"""One step of Adam on a flat vector, as a function of tensors: it compiles into the graph of the gradient.

Independent of what the gradient is of.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.adam import adam

STATE = ("exp_avg", "exp_avg_sq", "step")
FIXED: dict[str, Any] = {
    "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.0, "amsgrad": False, "maximize": False, "foreach": False
}  # fmt: skip


def clipped_step(state: tuple[Tensor, ...], vector: Tensor, lr: Tensor, clip: float, decay: float) -> tuple[Tensor, ...]:
    """`state` after one step, in new tensors; if something is not finite, nothing changes but the last two, now or later.

    Args:
        state: the parameters [M], Adam's `STATE`, at most one running average of the parameters, whether all has been
            finite up to now [], and the log values [L + 1] of this step, or of the first bad one.
        vector: [M + L], the gradient and log values; its norm becomes the last log value.
        lr: [], the step size.
        clip: bound on the norm of the gradient; 0 = none.
        decay: of the average, which is a plain mean at first.
    """
    *before, finite, logged = state
    gradient, values = vector.split([len(state[0]), len(vector) - len(state[0])])
    norm = torch.linalg.vector_norm(gradient)
    if clip:
        gradient = gradient * (clip / (norm + 1e-6)).clamp(max=1.0)  # as torch.nn.utils.clip_grad_norm_
    still_finite = finite & values.isfinite().all() & norm.isfinite()
    flat, exp_avg, exp_avg_sq, step, *averages = after = [tensor.clone() for tensor in before]
    capturable = torch.compiler.is_compiling() or flat.is_cuda
    adam([flat], [gradient], [exp_avg], [exp_avg_sq], [], [step], capturable=capturable, lr=lr, **FIXED)
    for average in averages:
        average.lerp_(flat, step.reciprocal().clamp(min=1 - decay))
    kept = [torch.where(still_finite, tensor, old) for tensor, old in zip(after, before, strict=True)]
    # the log values freeze at the first bad step, so that the message can name it
    return *kept, still_finite, torch.where(finite, torch.cat([values, norm[None]]), logged)


def replace_numbers(target: Tensor, source: Tensor) -> None:
    """Copy `source` into `target`; raises ValueError where it does not fit, or holds what is not finite."""
    if (target.shape, target.dtype) != (source.shape, source.dtype) or not source.isfinite().all():
        got, expected = f"{source.dtype} {tuple(source.shape)}", f"finite {target.dtype} {tuple(target.shape)}"
        raise ValueError(f"its numbers can't be used (got {got}; expected {expected})")
    target.copy_(source)

"""One outer step of any `MetaLearner`: meta-loss, meta-gradient, clipping, Adam or Muon.

There are three ways to run it: gradient and update apart (eager or compiled, for several micro-batches and processes),
both in one compiled graph, and a compiled loop over many steps. `compiled_step` chooses.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import functional_call, grad_and_value, vmap

from dataset import Points, Task
from learner import MetaLearner
from system.threads import available_cores, compute_as_the_caller
from training.compilation import Compiled, can_loop, has_compiler, repeat
from training.optimiser import Optimiser, clipped_step, offsets_of
from training.parallel import FEWEST, MicroBatches, micro_batches_worth, operations_of
from training.processes import all_gather_rows, all_reduce_sum
from training.state import MetaState

MetaBatch = tuple[tuple[Task, Tensor], ...]  # tasks and noise of each micro-batch that this process computes


class Block(NamedTuple):
    """Meta-batches drawn together: tasks [B, T, K or Q, D or 1], noise [B, T, noise_dim], step sizes [B].

    `meta_batches[b]` holds the micro-batches of step b that this process computes; it is empty where the step loops over
    `tasks` itself.
    """

    tasks: Task
    noise: Tensor
    rates: Tensor
    meta_batches: list[MetaBatch]


class MetaGradient:
    """The gradient of the meta-loss, which is the mean over tasks of query loss plus penalty."""

    def __init__(self, learner: MetaLearner, state: MetaState):
        self.learner, self.state = learner, state

    def __call__(self, flat: Tensor, task: Task, noise: Tensor, task_weights: Tensor) -> Tensor:
        """The gradient of tasks weighted by `task_weights` [T] at `flat` [M], and log values: [M + 2 + diagnostics].

        The weights sum to 1 over all micro-batches of all processes."""
        gradient, (loss, values) = grad_and_value(self._meta_loss, has_aux=True)(flat, task, noise, task_weights)
        return torch.cat([gradient, loss[None], values])

    def _meta_loss(self, flat: Tensor, task: Task, noise: Tensor, task_weights: Tensor) -> tuple[Tensor, Tensor]:
        def one(flat: Tensor, task: Task, noise: Tensor) -> tuple[Tensor, Tensor]:
            return functional_call(self.learner, self.state.views(flat), (task, noise))

        losses, values = vmap(one, in_dims=(None, 0, 0))(flat, task, noise)
        return losses @ task_weights, task_weights @ values


class MetaStep(ABC):
    """The step that changes `state`.

    Args:
        gradient: of the meta-loss.
        optimiser: how the meta-gradient is used.
        micro_batches: those that this process computes.
    """

    loops = False  # whether a call takes several steps without a return to Python
    threads = 1  # that compute micro-batches at the same time
    _pool: ThreadPoolExecutor | None = None  # those beside the caller's

    def __init__(self, gradient: MetaGradient, optimiser: Optimiser, micro_batches: MicroBatches):
        self.gradient, self.optimiser, self.micro_batches = gradient, optimiser, micro_batches
        self.learner, self.state, self.device = gradient.learner, gradient.state, gradient.state.flat.device
        self.offsets = offsets_of(self.learner.hidden_matrices(), self.state.flat) if optimiser.muon else []
        self._task_weights = [weights.to(self.device) for weights in micro_batches.task_weights]

    @abstractmethod
    def __call__(self, block: Block, first: int, end: int) -> Tensor:
        """Take steps number `first` to `end` - 1 of `block`; returns the last one's log values, on their device."""

    def warm_up(self, block: Block) -> None:
        """Run everything once, which compiles it. It takes a real step: `_warmed_up` makes it one that changes nothing."""
        self(block, 0, 1)

    def close(self) -> None:
        """End the step's threads."""
        if self._pool:
            self._pool.shutdown(cancel_futures=True)

    def block(self, tasks: Task, noise: Tensor, rates: Sequence[float]) -> Block:
        """Tasks [B, T, K or Q, D or 1], noise [B, T, noise_dim], standard normal, and step sizes of B steps, ready for them."""
        parts = []
        for tasks_of_it in [] if self.loops else self.micro_batches.slices:
            support_x, support_y, query_x, query_y, randomness = (
                tensor[:, tasks_of_it].unbind() for tensor in (*tasks.support, *tasks.query, noise)
            )
            points = map(Points, support_x, support_y), map(Points, query_x, query_y)
            parts.append(list(zip(map(Task, *points), randomness, strict=True)))
        meta_batches = list(zip(*parts, strict=True)) if parts else [()] * len(noise)
        return Block(tasks, noise, torch.tensor(rates, device=self.device), meta_batches)

    def _after(self, state: tuple[Tensor, ...], vector: Tensor, lr: Tensor) -> tuple[Tensor, ...]:
        """`state` after a step along `vector`, as `clipped_step` says."""
        return clipped_step(self.optimiser, self.offsets, state, vector, lr)

    def _update(self, vector: Tensor) -> Tensor:
        return self.state.set(self._after(self.state.changing(), vector, self.state.lr))

    def _one_by_one(self, step: Callable[[MetaBatch], Tensor], block: Block, first: int, end: int) -> Tensor:
        for number in range(first, end):
            self.state.lr.copy_(block.rates[number])
            metrics = step(block.meta_batches[number])
        return metrics


class SeparateStep(MetaStep):
    """Gradient and update apart: any number of micro-batches, threads and processes; eager or compiled."""

    def __init__(self, *args: Any, compiled: bool = False, threads: int = 1):
        super().__init__(*args)
        self.threads = threads
        self._gradient_of: Callable[..., Tensor] = Compiled(self._gradient, self.device) if compiled else self._gradient
        self._update_by: Callable[[Tensor], Tensor] = Compiled(self._update, self.device) if compiled else self._update
        if threads > 1:
            self._pool = ThreadPoolExecutor(threads - 1, "micro-batch", initializer=compute_as_the_caller)

    def __call__(self, block: Block, first: int, end: int) -> Tensor:
        with torch.no_grad():
            return self._one_by_one(self._step, block, first, end)

    def warm_up(self, block: Block) -> None:
        meta_batch = block.meta_batches[0]
        with torch.no_grad():
            self._update_by(self._row(meta_batch[0], self._task_weights[0]) if meta_batch else self.state.no_gradient())

    def _gradient(self, task: Task, noise: Tensor, task_weights: Tensor) -> Tensor:
        return self.gradient(self.state.flat, task, noise, task_weights)

    def _row(self, micro_batch: tuple[Task, Tensor], task_weights: Tensor) -> Tensor:
        """The meta-gradient and log values [M + 2 + diagnostics] of one micro-batch."""
        try:
            return self._gradient_of(*micro_batch, task_weights)
        except torch.linalg.LinAlgError:  # of a method that solves equations: diverged, and every process hears of it
            return self.state.no_gradient()

    def _step(self, meta_batch: MetaBatch) -> Tensor:
        """Micro-batches are summed in one order, whoever computed them: float32 sums depend on their order, and so the result
        would depend on the number of threads and processes."""
        weights, cut = self._task_weights, self.micro_batches
        own = len(meta_batch) // self.threads  # computed by the caller's thread while the others compute the rest
        others = self._pool.map(self._row, meta_batch[own:], weights[own:]) if self._pool else iter(())
        rows = [*map(self._row, meta_batch[:own], weights[:own]), *others]
        if cut.world > 1:
            most = -(-cut.total // cut.world)  # micro-batches of a process
            rows += [torch.zeros_like(self.state.no_gradient())] * (most - len(rows))
            rows = all_gather_rows(torch.stack(rows), cut.total) if cut.size else [all_reduce_sum(rows[0])]
        return self._update_by(functools.reduce(torch.add, rows))


class WholeStep(MetaStep):
    """Gradient and update of one micro-batch in one compiled graph."""

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.graph = Compiled(self._whole, self.device)

    def __call__(self, block: Block, first: int, end: int) -> Tensor:
        with torch.no_grad():
            return self._one_by_one(self._step, block, first, end)

    def _whole(self, task: Task, noise: Tensor) -> Tensor:
        return self._update(self.gradient(self.state.flat, task, noise, self._task_weights[0]))

    def _step(self, meta_batch: MetaBatch) -> Tensor:
        try:
            return self.graph(*meta_batch[0])
        except torch.linalg.LinAlgError:  # of a method that solves equations: diverged
            return self._update(self.state.no_gradient())


class LoopedSteps(MetaStep):
    """Steps of one micro-batch in a compiled loop: without Python between them small steps are a tenth faster."""

    loops = True

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.graph = Compiled(self._steps, self.device)

    def __call__(self, block: Block, first: int, end: int) -> Tensor:
        with torch.no_grad():
            return self.graph(block.tasks, block.noise, block.rates, torch.tensor(first), torch.tensor(end))

    def _steps(self, tasks: Task, noise: Tensor, rates: Tensor, first: Tensor, end: Tensor) -> Tensor:
        def step(state: tuple[Tensor, ...], *row: Tensor) -> tuple[Tensor, ...]:
            *points, randomness, rate = row
            task = Task(Points(*points[:2]), Points(*points[2:]))
            return self._after(state, self.gradient(state[0], task, randomness, self._task_weights[0]), rate)

        rows = *tasks.support, *tasks.query, noise, rates
        return self.state.set(repeat(step, self.state.changing(), rows, first, end))


def compiled_step(eager: SeparateStep, tasks: Task, noise: Tensor, one_thread: bool) -> MetaStep:
    """`eager`, compiled by running it on a block's tasks and noise, without a change of state; raises what the compiler raises.

    A step that is large enough is cut in micro-batches, for the threads that there are cores for; a small one is compiled
    with the loop over a block around it, if it can be.

    Args:
        one_thread: whether each micro-batch is computed on one thread.
    """
    cut, loops = eager.micro_batches, False
    if cut.single and not cut.size and one_thread and has_compiler(eager.device):
        cut, loops = _cut_by_operations(eager, tasks, noise)
    common = eager.gradient, eager.optimiser, cut
    if loops and can_loop():
        with suppress(Exception):  # without the loop it may work; where it does not, the reason is raised below
            return _warmed_up(LoopedSteps(*common), tasks, noise)
    if cut.single:
        return _warmed_up(WholeStep(*common), tasks, noise)
    threads = min(len(cut.slices), available_cores()) if one_thread else 1
    return _warmed_up(SeparateStep(*common, compiled=True, threads=threads), tasks, noise)


def _cut_by_operations(eager: SeparateStep, tasks: Task, noise: Tensor) -> tuple[MicroBatches, bool]:
    """Micro-batches by the operations of a step, counted on a few tasks; and whether the step can be looped over."""
    cut, count = eager.micro_batches, min(eager.micro_batches.meta_batch, FEWEST)
    few = Task(*(Points(points.x[0, :count], points.y[0, :count]) for points in tasks))
    weights = torch.ones(count, device=eager.device)
    operations, checks_errors = operations_of(lambda: eager.gradient(eager.state.flat, few, noise[0, :count], weights))
    number = micro_batches_worth(operations * cut.meta_batch // count)
    if 1 < number <= cut.meta_batch:
        cut = MicroBatches(cut.meta_batch, -(-cut.meta_batch // number))
    return cut, number == 1 and not checks_errors


def _warmed_up(step: MetaStep, tasks: Task, noise: Tensor) -> MetaStep:
    finite = step.state.finite
    finite.fill_(False)  # such a step computes everything and changes nothing
    try:
        block = step.block(tasks, noise, [0.0] * len(noise))
        for _ in range(3 if step.device.type == "cuda" else 1):  # CUDA: compile, record a graph, replay it
            step.warm_up(block)
        return step
    except BaseException:
        step.close()
        raise
    finally:
        finite.fill_(True)

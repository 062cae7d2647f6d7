"""One outer step of any `MetaLearner`: meta-loss, meta-gradient, clipping, Adam or Muon.

All meta-parameters live in one flat vector, so that the step is a function of a few tensors and compiles into one graph, or
two where it is cut in parts. Independent of any method by name, of where tasks come from, and of files, plots and logs.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import functional_call, grad_and_value, vmap

from dataset import Points, Task
from learner import MetaLearner, mse
from system.compiler_cache import load_derivatives
from system.threads import SMALL_WORK, available_cores
from training.compilation import Compiled, can_loop, has_compiler, repeat
from training.optimiser import STATE, Optimiser, clipped_step, offsets_of, replace_numbers
from training.parallel import FEWEST, Helpers, groups, operations_of, parts_of, tasks_at_once
from training.processes import all_gather_rows, all_reduce_sum, world

MetaBatch = tuple[tuple[Task, Tensor], ...]  # tasks and noise of each group that this process computes


class Block(NamedTuple):
    """Meta-batches drawn together: tasks [B, T, K or Q, D or 1], noise [B, T, noise_dim], step sizes [B].

    `meta_batches` has the same one by one; they are empty for a step that loops over them itself.
    """

    tasks: Task
    noise: Tensor
    rates: Tensor
    meta_batches: list[MetaBatch]


class MetaStep:
    """The meta-parameters of `learner`, the optimiser's state, and the step that changes them.

    The meta-loss is the mean over tasks of query error plus penalty. With several processes (`torch.distributed`
    initialised) each takes a share of every meta-batch.

    Args:
        learner: its parameters become views of one flat vector.
        meta_batch: T, tasks in a meta-batch.
        task_work: points x weights of one task, see `tasks_at_once`.
        device: where meta-parameters and tasks live.
        optimiser: how the meta-gradient is used.
        chunk: tasks differentiated at a time; 0 = `tasks_at_once`. A chunk bounds memory, and makes the result
            independent of the number of processes.
    """

    def __init__(
        self,
        learner: MetaLearner,
        meta_batch: int,
        task_work: int,
        device: torch.device,
        optimiser: Optimiser,
        chunk: int,
    ):
        load_derivatives()
        self.learner, self.meta_batch, self.device = learner, meta_batch, device
        self.rank, self.world = world()
        at_once = tasks_at_once(chunk, share := -(-meta_batch // self.world), task_work, self.device)
        self.one_thread = self.device.type == "cpu" and (chunk > 0 or at_once < share or meta_batch * task_work < SMALL_WORK)
        self._gather_meta_parameters(averaged=optimiser.decay > 0)
        self.places = offsets_of(learner.hidden_matrices(), self.flat) if optimiser.muon else []
        self._stepped = functools.partial(clipped_step, optimiser, self.places)
        self._cut(at_once if chunk or at_once < share else 0)
        self.use_eager()

    def _gather_meta_parameters(self, averaged: bool) -> None:
        """Move all meta-parameters into one flat vector; the learner's own become views of it."""
        parameters = dict(self.learner.named_parameters())
        self.shapes = {name: parameter.shape for name, parameter in parameters.items()}
        self.sizes = [parameter.numel() for parameter in parameters.values()]
        self.flat = torch.cat([p.detach().reshape(-1) for p in parameters.values()]).to(self.device)  # [M]
        for parameter, view in zip(parameters.values(), self._views(self.flat).values(), strict=True):
            parameter.data = view
        self.exp_avg, self.exp_avg_sq = torch.zeros_like(self.flat), torch.zeros_like(self.flat)
        self.adam_step = torch.zeros((), device=self.device)
        self.averages = {"average": self.flat.clone()} if averaged else {}  # one, or none
        self.finite = torch.ones((), dtype=torch.bool, device=self.device)  # False from the first bad step on
        self.names = ["meta_loss", "query_mse", *self.learner.diagnostic_names(), "grad_norm"]
        self.metrics = torch.zeros(len(self.names), device=self.device)
        self.lr = torch.zeros((), device=self.device)
        for tensor in (*self._changing(), self.lr):  # a CUDA graph is recorded only where what it changes stays in place
            torch._dynamo.mark_static_address(tensor, guard=False)

    def _views(self, flat: Tensor) -> dict[str, Tensor]:
        return {name: part.view(shape) for (name, shape), part in zip(self.shapes.items(), flat.split(self.sizes), strict=True)}

    # ---- state

    def state(self) -> dict[str, Any]:
        """Everything the next step depends on, as tensors on the CPU."""
        return {
            "meta_parameters": {name: view.detach().cpu().clone() for name, view in self._views(self.flat).items()},
            "adam": {name: tensor.cpu().clone() for name, tensor in zip(STATE, self._adam_state(), strict=True)},
        } | {name: average.cpu().clone() for name, average in self.averages.items()}

    def _adam_state(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.exp_avg, self.exp_avg_sq, self.adam_step

    def _changing(self) -> tuple[Tensor, ...]:
        """All that a step changes."""
        return self.flat, *self._adam_state(), *self.averages.values(), self.finite, self.metrics

    def load(self, state: dict[str, Any]) -> None:
        """Restore `state`; raises ValueError where it does not fit this learner."""
        given = {name: tuple(tensor.shape) for name, tensor in state["meta_parameters"].items()}
        wanted = {name: tuple(shape) for name, shape in self.shapes.items()}
        if given != wanted:
            name = next(n for n in [*wanted, *given] if given.get(n) != wanted.get(n))
            raise ValueError(f"meta-parameter {name} does not fit (got shape {given.get(name)}; expected {wanted.get(name)})")
        sources = [torch.cat([state["meta_parameters"][name].reshape(-1) for name in self.shapes])]
        sources += [state["adam"][name] for name in STATE] + [state[name] for name in self.averages]
        for target, source in zip((self.flat, *self._adam_state(), *self.averages.values()), sources, strict=True):
            replace_numbers(target, source)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """A context in which the learner, and `state`, have the averaged meta-parameters, where an average is kept."""
        kept = self.flat.clone()
        for average in self.averages.values():
            self.flat.copy_(average)
        try:
            yield
        finally:
            self.flat.copy_(kept)

    def first_bad_value(self) -> tuple[int, str, float] | None:
        """Number of the refused step, counted from 0, and which log value was not finite; waits for the device."""
        if self.finite.item():
            return None
        values = dict(zip(self.names, self.metrics.tolist(), strict=True))
        name = next(name for name, value in values.items() if not math.isfinite(value))
        return int(self.adam_step.item()), name, values[name]

    # ---- the step

    def __call__(self, block: Block, first: int, end: int) -> Tensor:
        """Take steps number `first` to `end` - 1 of `block`; returns the last one's log values by `names`, on their device."""
        with torch.no_grad():
            if self.loops:
                return self._steps(*block[:3], torch.tensor(first), torch.tensor(end))
            for number in range(first, end):
                self.lr.copy_(block.rates[number])
                try:
                    metrics = self._step(block.meta_batches[number])
                except torch.linalg.LinAlgError:  # of a method that solves equations: diverged, and here is no gradient
                    metrics = self._update(self._no_gradient())
            return metrics

    def _task_loss(self, flat: Tensor, task: Task, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Meta-loss [] of one task, and what is worth logging [1 + diagnostics]."""
        adaptation = functional_call(self.learner, self._views(flat), (task.support, noise))
        query_mse = mse(self.learner.network(adaptation.path[-1], task.query.x), task.query.y)
        return query_mse + adaptation.penalty, torch.stack([query_mse, *adaptation.diagnostics.values()])

    def _meta_loss(self, flat: Tensor, task: Task, noise: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
        """Weighted sum over tasks of loss [] and log values [1 + diagnostics]; `shares` [T] sum to 1 over all processes."""
        losses, values = vmap(self._task_loss, in_dims=(None, 0, 0))(flat, task, noise)
        return losses @ shares, shares @ values

    def _gradient(self, task: Task, noise: Tensor, shares: Tensor, flat: Tensor | None = None) -> Tensor:
        """The meta-gradient of one group of tasks at `flat`, or at the meta-parameters as they are, and its log values, in one
        vector [M + 2 + diagnostics]."""
        at = self.flat if flat is None else flat
        gradient, (loss, values) = grad_and_value(self._meta_loss, has_aux=True)(at, task, noise, shares)
        return torch.cat([gradient, loss[None], values])

    def _no_gradient(self) -> Tensor:
        return torch.full((len(self.flat) + len(self.names) - 1,), math.nan, device=self.device)

    def _update(self, vector: Tensor) -> Tensor:
        """Clip and take one step of the optimiser, unless something is not finite: then nothing changes, now or later."""
        return self._set(self._stepped(self._changing(), vector, self.lr))

    def _set(self, state: tuple[Tensor, ...]) -> Tensor:
        for tensor, new in zip(self._changing(), state, strict=True):
            tensor.copy_(new)
        return self.metrics.clone()

    def _whole_step(self, meta_batch: MetaBatch) -> Tensor:
        return self._update(self._gradient(*meta_batch[0], self._groups[0][1]))

    def _whole_steps(self, tasks: Task, noise: Tensor, rates: Tensor, first: Tensor, end: Tensor) -> Tensor:
        """Steps number `first` to `end` - 1 [] of a block: without Python between them a tenth faster, where they are small."""

        def step(state: tuple[Tensor, ...], *row: Tensor) -> tuple[Tensor, ...]:
            *points, randomness, rate = row
            task = Task(Points(*points[:2]), Points(*points[2:]))
            gradient = self._gradient(task, randomness, self._groups[0][1], state[0])
            return self._stepped(state, gradient, rate)

        return self._set(repeat(step, self._changing(), (*tasks.support, *tasks.query, noise, rates), first, end))

    # ---- compiled or eager

    def use_eager(self) -> None:
        """Run the step operation by operation: the same numbers to rounding, later."""
        self.helpers, self.loops = Helpers(0), False
        self._step: Callable[[MetaBatch], Tensor] = self._whole_step if self._single else self._split_step
        self._gradient_of_group: Callable[[Task, Tensor, Tensor], Tensor] = self._gradient
        self._update_by: Callable[[Tensor], Tensor] = self._update

    def compile(self, tasks: Task, noise: Tensor) -> None:
        """Compile the step by running it on a block's tasks and noise, without a change of state; raises what the compiler
        raises. A step that is large enough is cut in parts first, for the threads that there are cores for; a small one is
        compiled with the loop over a block around it, if it can be."""
        small = self._single and not self.chunk and self.one_thread and has_compiler(self.device)
        simple = small and self._cut_in_parts(Task(*(Points(points.x[0], points.y[0]) for points in tasks)), noise[0])
        for loops in [True, False] if simple and can_loop() else [False]:
            self.loops = loops
            self.finite.fill_(False)  # such a step computes everything and changes nothing
            try:
                return self._compile(self.block(tasks, noise, [0.0] * len(noise)))
            except Exception:
                if not loops:
                    self.use_eager()
                    raise
            finally:
                self.finite.fill_(True)

    def _compile(self, block: Block) -> None:
        if self.loops:
            self._steps = Compiled(self._whole_steps, self.device)
        elif self._single:
            self._step = Compiled(self._whole_step, self.device)
        else:
            self._step = self._split_step
            self._gradient_of_group = Compiled(self._gradient, self.device)
            self._update_by = Compiled(self._update, self.device)
        with torch.no_grad():
            for _ in range(3 if self.device.type == "cuda" else 1):  # CUDA: compile, record a graph, replay it
                self(block, 0, 1) if self._single else self._rehearse(block.meta_batches[0])
        self.helpers = Helpers(min(len(self._groups), available_cores()) - 1 if self.one_thread else 0)

    # ---- groups of tasks: chunks, and the shares of several processes

    def _cut(self, chunk: int) -> None:
        """Cut the meta-batch in groups of `chunk` tasks, 0 = a share for each process."""
        self.chunk, size = chunk, chunk or -(-self.meta_batch // self.world)
        self._total_groups = -(-self.meta_batch // size) if chunk else self.world
        self._groups = [
            (place, shares.to(self.device))
            for place, shares in groups(self.meta_batch, size, range(self.rank, self._total_groups, self.world))
        ]
        self._single = self.world == 1 and self._total_groups == 1  # one process, one group: one graph

    def _cut_in_parts(self, task: Task, noise: Tensor) -> bool:
        """Cut the step in as many parts as its operations, counted on a few tasks, are worth; whether it can be looped over."""
        count = min(self.meta_batch, FEWEST)
        few = Task(*(Points(points.x[:count], points.y[:count]) for points in task))
        operations, checked = operations_of(lambda: self._gradient(few, noise[:count], torch.ones(count, device=self.device)))
        parts = parts_of(operations * self.meta_batch // count)
        if 1 < parts <= self.meta_batch:
            self._cut(-(-self.meta_batch // parts))
        return parts == 1 and not checked

    def block(self, tasks: Task, noise: Tensor, rates: Sequence[float]) -> Block:
        """Tasks [B, T, K or Q, D or 1], noise [B, T, noise_dim], standard normal, and step sizes of B steps, ready for them."""
        parts = []
        for place, _ in [] if self.loops else self._groups:
            support_x, support_y, query_x, query_y, randomness = (
                tensor[:, place].unbind() for tensor in (*tasks.support, *tasks.query, noise)
            )
            points = map(Points, support_x, support_y), map(Points, query_x, query_y)
            parts.append(list(zip(map(Task, *points), randomness, strict=True)))
        meta_batches = list(zip(*parts, strict=True)) if parts else [()] * len(noise)
        return Block(tasks, noise, torch.tensor(rates, device=self.device), meta_batches)

    def _row(self, meta_batch: MetaBatch, number: int) -> Tensor:
        """The meta-gradient and log values [M + 2 + diagnostics] of one group of this process."""
        try:
            return self._gradient_of_group(*meta_batch[number], self._groups[number][1])
        except torch.linalg.LinAlgError:  # every process hears of it
            return self._no_gradient()

    def _rehearse(self, meta_batch: MetaBatch) -> Tensor:
        return self._update_by(self._row(meta_batch, 0) if meta_batch else self._no_gradient())

    def _split_step(self, meta_batch: MetaBatch) -> Tensor:
        """The same step from several groups. They are summed in one order, whoever computed them: float32 sums depend on
        their order, and so the result would depend on the number of threads and processes."""
        rows = self.helpers.map(functools.partial(self._row, meta_batch), range(len(self._groups)))
        if self.world > 1:
            size = -(-self._total_groups // self.world)  # of the longest list
            mine = torch.stack(rows + [torch.zeros_like(self._no_gradient())] * (size - len(rows)))
            rows = all_gather_rows(mine, self._total_groups) if self.chunk else [all_reduce_sum(mine[0])]
        return self._update_by(functools.reduce(torch.add, rows))

"""The loop that trains any `MetaLearner`, and the one way to judge it.

A meta-step is: draw tasks, differentiate the meta-loss, clip, Adam. All meta-parameters live in one flat vector,
so that the step is a pure function of a few tensors and compiles into one graph. This file refuses to know any
method by name, and to write files, plots or logs: `train` yields after each step, and who listens decides.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.func import functional_call, grad_and_value, vmap
from torch.optim.adam import adam

from compilation import WILL_COMPILE, compile_note, compiled
from dataset import Points, Task, TaskDataset, stream
from learner import MetaLearner, mse
from processes import peers, world

SMALL_WORK = 10**8  # points x weights below which one thread beats several
CACHE_WORK = 3_600_000  # points x weights that a CPU's cache holds; beyond, a task takes two to three times as long
FEWEST = 25  # tasks that are worth a chunk of their own
EVAL_CHUNK = 250  # tasks adapted at a time at evaluation: bounds memory


class Diverged(RuntimeError):
    """A loss or gradient is not finite; the meta-parameters are still those of the step before."""

    def __init__(self, iteration: int, quantity: str, value: float, lr: float):
        super().__init__(f"training diverged at iteration {iteration} (got {quantity} = {value}; expected a finite number)")
        self.iteration, self.quantity, self.lr = iteration, quantity, lr


def tasks_at_once(chunk: int, share: int, work: int, device: torch.device) -> int:
    """How many of a process's `share` of tasks are differentiated together, where a task is `work` points x weights.

    `chunk` where that is given; 0 leaves it to the machine: everything, or on a CPU what its cache holds.
    """
    if chunk:
        return chunk
    cached = CACHE_WORK // max(work, 1)
    if device.type != "cpu" or not FEWEST <= cached < share:
        return share
    return -(-share // -(-share // cached))  # pieces of one size: a short last one is computed as a whole


class Trainer:
    """Trains `learner` on `dataset` by Adam on the meta-loss: the mean over tasks of query error plus penalty.

    Args:
        iterations: outer steps of the whole run; the cosine schedule ends there.
        meta_lr: step size of Adam at the start.
        schedule: "cosine" to zero, or "constant".
        clip: bound on the norm of the meta-gradient; 0 = none.
        chunk: tasks differentiated at a time; 0 = `tasks_at_once`. A chunk bounds memory, and makes the result
            independent of the number of processes.
        device: where meta-parameters and tasks live.
        compile_mode: "auto" (where it pays), "always" or "never".

    With several processes (`torch.distributed` initialised) each takes a share of every meta-batch.
    """

    def __init__(
        self,
        learner: MetaLearner,
        dataset: TaskDataset,
        *,
        iterations: int,
        meta_lr: float,
        schedule: str = "cosine",
        clip: float = 0.0,
        chunk: int = 0,
        device: torch.device | str = "cpu",
        compile_mode: str = "never",
    ):
        self.learner, self.dataset, self.iterations = learner, dataset, iterations
        self.meta_lr, self.schedule, self.clip = meta_lr, schedule, clip
        self.device = torch.device(device)
        self.rank, self.world = world()
        share = -(-dataset.meta_batch // self.world)
        at_once = tasks_at_once(chunk, share, self._work() // dataset.meta_batch, self.device)
        self.chunk = at_once if chunk or at_once < share else 0
        self.iteration = 0  # outer steps taken
        self.compile_seconds = 0.0
        self.compile_note = compile_note(compile_mode, iterations, self.device)
        self.compiled = self.compile_note.startswith(WILL_COMPILE)
        self._drawing = ThreadPoolExecutor(1)
        self._ahead: dict[int, Future[tuple[Task, np.ndarray]]] = {}  # at most the next block
        self._gather_meta_parameters()
        self._groups = [self._group(number) for number in self._my_groups()]
        self._alone = self.world == 1 and self._total_groups == 1
        self._eager_step: Callable[[Task, Tensor], Tensor] = self._whole_step if self._alone else self._split_step
        self._step: Callable[[Task, Tensor], Tensor] = self._eager_step
        self._gradient_of_group: Callable[[Task, Tensor, Tensor], Tensor] = self._gradient
        if self.compiled and self._alone:
            self._step = compiled(self._whole_step, self.device)
        elif self.compiled:
            self._gradient_of_group = compiled(self._gradient, self.device)

    # ---- state

    def _gather_meta_parameters(self) -> None:
        """Move all meta-parameters into one flat vector; the learner's own become views of it."""
        parameters = dict(self.learner.named_parameters())
        self.shapes = {name: parameter.shape for name, parameter in parameters.items()}
        self.sizes = [parameter.numel() for parameter in parameters.values()]
        self.flat = torch.cat([p.detach().reshape(-1) for p in parameters.values()]).to(self.device)  # [M]
        for parameter, view in zip(parameters.values(), self._views(self.flat).values(), strict=True):
            parameter.data = view
        self.exp_avg, self.exp_avg_sq = torch.zeros_like(self.flat), torch.zeros_like(self.flat)
        self.adam_step = torch.zeros((), device=self.device)
        self.alive = torch.ones((), dtype=torch.bool, device=self.device)
        self.names = ["meta_loss", "query_mse", *self._diagnostic_names(), "grad_norm"]
        self.metrics = torch.zeros(len(self.names), device=self.device)
        self.lr = torch.zeros((), device=self.device)

    def _views(self, flat: Tensor) -> dict[str, Tensor]:
        return {name: part.view(shape) for (name, shape), part in zip(self.shapes.items(), flat.split(self.sizes), strict=True)}

    def _diagnostic_names(self) -> list[str]:
        """What the method reports, found by adapting once to a task of zeros."""
        dim = self.dataset.generator.input_dim
        support = Points(torch.zeros(1, dim, device=self.device), torch.zeros(1, 1, device=self.device))
        with torch.no_grad():
            return list(self.learner.adapt(support, torch.zeros(self.learner.noise_dim, device=self.device), 0).diagnostics)

    def state(self) -> dict[str, Any]:
        """Everything the next step depends on: tensors, numbers, strings; raises `Diverged` if there is none."""
        self.check()
        return {
            "iteration": self.iteration,
            "meta_parameters": {name: view.detach().cpu().clone() for name, view in self._views(self.flat).items()},
            "adam": {
                "exp_avg": self.exp_avg.cpu().clone(),
                "exp_avg_sq": self.exp_avg_sq.cpu().clone(),
                "step": self.adam_step.cpu().clone(),
            },
        }

    def load(self, state: dict[str, Any]) -> None:
        """Take up `state`; raises ValueError where it does not fit this learner."""
        given = {name: tuple(tensor.shape) for name, tensor in state["meta_parameters"].items()}
        wanted = {name: tuple(shape) for name, shape in self.shapes.items()}
        if given != wanted:
            name = next(n for n in [*wanted, *given] if given.get(n) != wanted.get(n))
            raise ValueError(f"meta-parameter {name} does not fit (got shape {given.get(name)}; expected {wanted.get(name)})")
        if type(state["iteration"]) is not int or state["iteration"] < 0:
            raise ValueError(f"its step can't be used (got {state['iteration']!r}; expected a whole number from 0 on)")
        sources = [torch.cat([state["meta_parameters"][name].reshape(-1) for name in self.shapes])]
        sources += [state["adam"][name] for name in ("exp_avg", "exp_avg_sq", "step")]
        for target, source in zip((self.flat, self.exp_avg, self.exp_avg_sq, self.adam_step), sources, strict=True):
            if (target.shape, target.dtype) != (source.shape, source.dtype) or not source.isfinite().all():
                got, expected = f"{source.dtype} {tuple(source.shape)}", f"finite {target.dtype} {tuple(target.shape)}"
                raise ValueError(f"its numbers can't be used (got {got}; expected {expected})")
            target.copy_(source)
        self.iteration = state["iteration"]

    # ---- the meta-step

    def _task_loss(self, flat: Tensor, task: Task, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Meta-loss [] of one task, and what is worth logging [1 + diagnostics]."""
        adaptation = functional_call(self.learner, self._views(flat), (task.support, noise))
        query_mse = mse(self.learner.network(adaptation.path[-1], task.query.x), task.query.y)
        return query_mse + adaptation.penalty, torch.stack([query_mse, *adaptation.diagnostics.values()])

    def _meta_loss(self, flat: Tensor, task: Task, noise: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
        """Weighted sum over tasks of loss [] and log values [1 + diagnostics]; `shares` [T] sum to 1 over all processes."""
        losses, values = vmap(self._task_loss, in_dims=(None, 0, 0))(flat, task, noise)
        return losses @ shares, shares @ values

    def _gradient(self, task: Task, noise: Tensor, shares: Tensor) -> Tensor:
        """The meta-gradient of one group of tasks and its log values, in one vector [M + 2 + diagnostics]."""
        gradient, (loss, values) = grad_and_value(self._meta_loss, has_aux=True)(self.flat, task, noise, shares)
        return torch.cat([gradient, loss[None], values])

    def _update(self, vector: Tensor) -> Tensor:
        """Clip and take one Adam step, unless something is not finite: then nothing changes, now or later."""
        gradient, values = vector.split([len(self.flat), len(vector) - len(self.flat)])
        norm = torch.linalg.vector_norm(gradient)
        if self.clip:
            gradient = gradient * (self.clip / (norm + 1e-6)).clamp(max=1.0)  # as torch.nn.utils.clip_grad_norm_
        alive = self.alive & values.isfinite().all() & norm.isfinite()
        state = (self.flat, self.exp_avg, self.exp_avg_sq, self.adam_step)
        before = [tensor.clone() for tensor in state]
        # the functional form of torch.optim.Adam: unlike the class it compiles into the graph of the gradient
        adam(
            [self.flat],
            [gradient],
            [self.exp_avg],
            [self.exp_avg_sq],
            max_exp_avg_sqs=[],
            state_steps=[self.adam_step],
            foreach=False,
            capturable=torch.compiler.is_compiling() or self.device.type == "cuda",
            amsgrad=False,
            beta1=0.9,
            beta2=0.999,
            lr=self.lr,
            weight_decay=0.0,
            eps=1e-8,
            maximize=False,
        )
        for tensor, old in zip(state, before, strict=True):
            tensor.copy_(torch.where(alive, tensor, old))
        # the log values freeze at the first bad step, so that the message can name it
        self.metrics.copy_(torch.where(self.alive, torch.cat([values, norm[None]]), self.metrics))
        self.alive.copy_(alive)
        return self.metrics.clone()

    def _whole_step(self, task: Task, noise: Tensor) -> Tensor:
        return self._update(self._gradient(task, noise, self._groups[0][1]))

    # ---- groups of tasks: chunks, and the shares of several processes

    @property
    def _total_groups(self) -> int:
        return -(-self.dataset.meta_batch // self.chunk) if self.chunk else self.world

    def _my_groups(self) -> range:
        return range(self.rank, self._total_groups, self.world)

    def _group(self, number: int) -> tuple[Tensor, Tensor]:
        """Which tasks form a group, and the share of each in the mean; a short last group repeats tasks at share 0."""
        total = self.dataset.meta_batch
        size = self.chunk or -(-total // self.world)
        index = torch.arange(number * size, (number + 1) * size)
        shares = (index < total).float() / total
        return index.clamp(max=total - 1).to(self.device), shares.to(self.device)

    def _split_gradients(self, task: Task, noise: Tensor) -> Tensor:
        """One row [M + log values] for each group of this process, and zeros where it has fewer than another."""
        rows = torch.zeros(-(-self._total_groups // self.world), len(self.flat) + len(self.names) - 1, device=self.device)
        for row, (index, shares) in zip(rows, self._groups, strict=False):
            part = Task(*(Points(points.x[index], points.y[index]) for points in task))
            row.copy_(self._gradient_of_group(part, noise[index], shares))
        return rows

    def _split_step(self, task: Task, noise: Tensor) -> Tensor:
        """The same step from several groups. Chunks are summed in one order, whoever computed them: float32 sums
        depend on their order, and so the result would depend on the number of processes."""
        rows = self._split_gradients(task, noise)
        if self.world == 1:
            return self._update(rows.sum(0))
        if not self.chunk:
            with peers():
                dist.all_reduce(rows)
            return self._update(rows[0])
        everyone = [torch.empty_like(rows) for _ in range(self.world)]
        with peers():
            dist.all_gather(everyone, rows)
        in_order = torch.stack(everyone, 1).flatten(0, 1)  # row r of rank k is group r * world + k
        return self._update(in_order[: self._total_groups].sum(0))

    # ---- training

    def learning_rate(self, iteration: int) -> float:
        """Step size of Adam in outer step number `iteration`, counted from 0."""
        if self.schedule == "constant":
            return self.meta_lr
        return self.meta_lr * 0.5 * (1 + math.cos(math.pi * min(1.0, iteration / self.iterations)))

    def prepare(self) -> str:
        """Compile the step if that was decided, and say in one line what will run; changes no state.

        A compiler that fails is not the user's problem: the eager step gives the same numbers, later.
        """
        if self.device.type == "cpu" and (self.chunk or self._work() < SMALL_WORK):
            torch.set_num_threads(1)  # threads that wait for each other cost more than layers this small take
        torch.set_flush_denormal(True)  # second derivatives of dead units are full of denormals, each 100 times slower
        if not self.compiled:
            return f"eager meta-step: {self.compile_note}"
        started = time.perf_counter()
        task, noise = self._meta_batches(self.iteration // self.dataset.block)[0]
        self.alive.fill_(False)  # a dead step computes everything and changes nothing
        try:
            with torch.no_grad():
                if self._alone:
                    self._step(task, noise)
                else:
                    self._split_gradients(task, noise)
        except Exception as error:
            self._step, self._gradient_of_group, self.compiled = self._eager_step, self._gradient, False
            self.compile_note = f"compiling failed: {' '.join((str(error) or type(error).__name__).split())[:200]}"
            return f"eager meta-step: {self.compile_note}"
        finally:
            self.alive.fill_(True)
        self.compile_seconds = time.perf_counter() - started
        return f"compiled meta-step: {self.compile_note}, ready in {self.compile_seconds:.1f} s"

    def _work(self) -> int:
        """A measure of the arithmetic in one step: points times weights."""
        points = self.dataset.meta_batch * (self.dataset.shots + self.dataset.queries)
        return points * self.learner.network.num_weights

    def train(self) -> Iterator[tuple[int, Tensor]]:
        """Train to the end; yields (steps taken, log values by `names`) after each step. Raises `Diverged`.

        The log values stay on their device: reading them there synchronises, so read them seldom.
        """
        while self.iteration < self.iterations:
            number, first = divmod(self.iteration, self.dataset.block)
            for task, noise in self._meta_batches(number)[first : first + self.iterations - self.iteration]:
                self.lr.fill_(self.learning_rate(self.iteration))
                with torch.no_grad():
                    metrics = self._step(task, noise)
                self.iteration += 1
                yield self.iteration, metrics
            self.check()  # the only synchronisation of the loop: once a block

    def _meta_batches(self, number: int) -> list[tuple[Task, Tensor]]:
        """A block of meta-batches, drawn and sent to the device at once: tasks [T, ...] and noise [T, noise_dim]."""
        arrays = self._ahead.pop(number, None) or self._drawing.submit(self._draw, number)
        self._ahead.clear()  # what was drawn for a state before `load`
        if (number + 1) * self.dataset.block < self.iterations:  # another core draws the next one meanwhile
            self._ahead[number + 1] = self._drawing.submit(self._draw, number + 1)
        (support, query), noise = on_device(arrays.result(), self.device)
        parts = (tensor.unbind() for tensor in (*support, *query, noise))
        return [(Task(Points(a, b), Points(c, d)), e) for a, b, c, d, e in zip(*parts, strict=True)]

    def _draw(self, number: int) -> tuple[Task, np.ndarray]:
        """Tasks [B, T, ...] and noise [B, T, noise_dim] of a block."""
        shape = (self.dataset.block, self.dataset.meta_batch, self.learner.noise_dim)
        noise = stream(self.dataset.seed, "noise", number).standard_normal(shape, dtype=np.float32)
        return self.dataset.draw_block(number), noise

    def check(self) -> None:
        """Raise `Diverged` if a step was refused; waits for the device."""
        if not self.alive.item():
            values = dict(zip(self.names, self.metrics.tolist(), strict=True))
            quantity = next(name for name, value in values.items() if not math.isfinite(value))
            failed = int(self.adam_step.item())
            raise Diverged(failed + 1, quantity, values[quantity], self.learning_rate(failed))

    # ---- judging

    def predict(self, support: Points, x: Any, steps: int, noise: Any = None) -> tuple[np.ndarray, np.ndarray]:
        """Adapt to many tasks, without a graph, by the `adapt` that training uses.

        Args:
            support: arrays x [T, K, D], y [T, K, 1].
            x: where to predict, [T, N, D].
            noise: [T, noise_dim]; None = zeros, the means of a stochastic method.

        Returns:
            predictions [T, steps + 1, N] after 0 to `steps` gradients, and the codes [T, Z] (Z = 0 without any).
        """
        if noise is None:
            noise = np.zeros((len(x), self.learner.noise_dim), np.float32)

        def one(points: Points, at: Tensor, randomness: Tensor) -> tuple[Tensor, Tensor]:
            adaptation = self.learner.adapt(points, randomness, steps)
            outputs = [self.learner.network(weights, at)[:, 0] for weights in adaptation.path]
            return torch.stack(outputs), adaptation.code  # [S+1, N], [Z]

        outputs, codes = [], []
        with torch.no_grad():
            for first in range(0, len(x), EVAL_CHUNK):
                here = slice(first, first + EVAL_CHUNK)
                points = on_device(Points(support.x[here], support.y[here]), self.device)
                at, randomness = on_device((x[here], noise[here]), self.device)
                output, code = vmap(one)(points, at, randomness)
                outputs.append(output.cpu().numpy())
                codes.append(code.cpu().numpy())
        return np.concatenate(outputs), np.concatenate(codes)

    def sample(
        self,
        support: Points,
        x: Any,
        steps: int,
        rng: np.random.Generator,
        num_samples: int,
        *,
        temperature: float = 1.0,
        together: int = 1000,
    ) -> np.ndarray:
        """Predictions [T, M, N] after `steps` gradients from M = `num_samples` draws of a stochastic method's noise.

        Args:
            support: arrays x [T, K, D], y [T, K, 1]; x: where to predict, [T, N, D].
            rng: the samples of a task depend on it and on the task's place, not on how many tasks follow.
            temperature: factor on the noise, and so on the standard deviations of what is sampled: 1 samples the
                distributions that were trained. Any other value has to be chosen on validation tasks.
            together: copies of support sets that are adapted at a time; it bounds memory and changes no number.
        """
        rows, outputs = len(x) * num_samples, []
        for first in range(0, rows, together):
            task = np.arange(first, min(first + together, rows)) // num_samples
            noise = rng.standard_normal((len(task), self.learner.noise_dim), dtype=np.float32)
            noise *= np.float32(temperature)
            outputs.append(self.predict(Points(support.x[task], support.y[task]), x[task], steps, noise)[0][:, -1])
        return np.concatenate(outputs).reshape(len(x), num_samples, x.shape[1])

    def evaluate(self, task: Task, steps: int) -> np.ndarray:
        """Mean squared error [T, steps + 1] on the query points after 0 to `steps` support gradients."""
        predictions, _ = self.predict(task.support, task.query.x, steps)
        with np.errstate(over="ignore", invalid="ignore"):  # a diverged task is a result, not a warning
            return np.square(predictions - task.query.y[:, None, :, 0], dtype=np.float64).mean(-1)


def on_device(arrays: Any, device: torch.device) -> Any:
    """Nested tuples of numpy arrays as tensors on `device`, in the same tuples."""
    if isinstance(arrays, np.ndarray):
        return torch.from_numpy(arrays).to(device)
    parts = [on_device(part, device) for part in arrays]
    return type(arrays)(*parts) if hasattr(arrays, "_fields") else tuple(parts)

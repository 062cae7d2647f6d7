"""The training loop: the same result however it is computed, and no bad number ever reaches the weights."""

import itertools
import math

import numpy as np
import pytest
import torch
from functorch.compile import make_boxed_func
from torch._functorch.aot_autograd import aot_module_simplified
from torch._guards import TracingContext

from dataset import SinusoidalTaskGenerator, TaskDataset
from evaluation.errors import errors
from learner import Points
from tests.tools.methods import TRAINED
from tests.tools.training import assert_same_bits, make, run
from training.compilation import LOOPS_FROM
from training.loop import Diverged

FEW = {"INNER_STEPS": 2, "LEO_LATENT_STEPS": 1}  # of each kind of gradient one is enough, and quickly compiled
needs_loops = pytest.mark.skipif(torch.__version__ < LOOPS_FROM, reason="needs a newer torch")


def assert_close_steps(one, other):
    """Two trainers take the same steps to rounding."""
    for (_, left), (_, right) in zip(one.train(), other.train(), strict=True):
        torch.testing.assert_close(left, right, rtol=2e-4, atol=1e-5)
    torch.testing.assert_close(one.meta.flat, other.meta.flat, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", TRAINED)
def test_training_lowers_the_error_on_held_out_tasks(method):
    trainer = make(method, iterations=60, tasks=6, settings=FEW)
    tasks = SinusoidalTaskGenerator().held_out("validation", 100, 6, 20)[1]
    before = errors(trainer.learner, tasks, 3).mean(0)
    run(trainer)
    assert errors(trainer.learner, tasks, 3).mean(0)[3] < before[3]


@pytest.mark.parametrize("method", TRAINED)
def test_resuming_at_every_step_gives_the_same_bits(method):
    whole = make(method, iterations=8)
    states = [whole.state()] + [whole.state() for _ in whole.train()]
    for before, after in itertools.pairwise(states):  # what leads from each state to the next one leads to the end
        resumed = make(method, iterations=8)
        resumed.load(before)
        next(resumed.train())
        assert_same_bits(resumed.state(), after)


def test_the_average_is_a_plain_mean_at_first_and_then_weighs_a_step_by_its_age():
    trainer = make(iterations=9)
    expected, number = torch.zeros_like(trainer.meta.flat), 0
    for number, _ in trainer.train():
        expected += max(1 / number, 0.2) * (trainer.meta.flat - expected)
        torch.testing.assert_close(trainer.meta.averages["average"], expected, rtol=1e-5, atol=1e-7)
    assert number == 9


def test_within_averaged_learner_and_state_have_the_average_and_training_goes_on_from_where_it_was():
    interrupted = make()
    run(interrupted, 5)
    before = interrupted.meta.flat.clone()
    with interrupted.meta.averaged():
        average = interrupted.meta.averages["average"]
        assert torch.equal(interrupted.learner.theta, average) and not torch.equal(average, before)
        assert torch.equal(interrupted.state()["meta_parameters"]["theta"], average)
    assert torch.equal(interrupted.meta.flat, before)
    assert_same_bits(run(interrupted), run(make()))


@pytest.mark.parametrize("method", TRAINED)
def test_chunks_of_tasks_give_the_whole_batch_gradient(method):
    (_, whole), *parts = (
        next(make(method, iterations=1, settings=FEW | {"TASK_CHUNK": chunk}).train()) for chunk in (0, 1, 2, 4)
    )
    for _, part in parts:
        torch.testing.assert_close(whole, part, rtol=1e-4, atol=1e-6)


def test_a_meta_batch_beyond_the_cache_is_cut_to_micro_batches_that_fit(monkeypatch):
    whole = make(iterations=1)
    monkeypatch.setattr("training.parallel.FEWEST", 2)
    monkeypatch.setattr("training.parallel.CACHE_WORK", 2 * whole.task_work)
    cut = make(iterations=1)
    assert (whole.step.micro_batches.size, cut.step.micro_batches.size) == (0, 2)
    assert_close_steps(whole, cut)


def test_adam_and_clipping_equal_torch_optim():
    trainer = make(iterations=5)
    reference = torch.nn.Parameter(trainer.meta.flat.clone())
    optimiser = torch.optim.Adam([reference], lr=1e-3)
    for iteration in range(5):
        [(task, noise)] = trainer.step.block(*trainer._block(0), [0.0]).meta_batches[iteration]
        trainer.meta.flat.copy_(reference.detach())
        reference.grad = trainer.step._gradient(task, noise, torch.full((5,), 1 / 5))[: len(reference)]
        torch.nn.utils.clip_grad_norm_([reference], 1.0)
        optimiser.param_groups[0]["lr"] = trainer.learning_rate(iteration)
        optimiser.step()
    torch.testing.assert_close(run(make(iterations=5))["meta_parameters"]["theta"], reference.detach(), rtol=1e-5, atol=1e-7)


def test_short_runs_are_not_compiled_and_their_cosine_schedule_ends_at_zero():
    trainer = make(iterations=100, compile_mode="auto")
    assert "too few" in trainer.prepare()  # to be compiled
    assert [trainer.learning_rate(step) for step in (0, 50, 100)] == pytest.approx([1e-3, 5e-4, 0], abs=1e-12)
    assert make(settings={"META_SCHEDULE": "constant"}).learning_rate(11) == 1e-3


@pytest.mark.parametrize("method", TRAINED)
def test_evaluation_of_a_task_is_the_query_error_of_its_adapted_networks_whatever_its_company(method):
    trainer = make(method)
    tasks = SinusoidalTaskGenerator().held_out("test", 2, 5, 9)[1]
    support = Points(*(torch.from_numpy(values[1]) for values in tasks.support))
    with torch.no_grad():
        path = trainer.learner.adapt(support, torch.zeros(trainer.learner.noise_dim), 4).path
        outputs = [trainer.learner.predict(weights, torch.from_numpy(tasks.query.x[1])).numpy() for weights in path]
    expected = [((output - tasks.query.y[1, :, 0]) ** 2).mean() for output in outputs]
    np.testing.assert_allclose(errors(trainer.learner, tasks, 4)[1], expected, rtol=1e-4)


class Poisoned(TaskDataset):
    """A dataset in which one number of one meta-batch is not finite."""

    def __init__(self, bad_iteration, value, part):
        super().__init__(SinusoidalTaskGenerator(), 40, 5, 6, 7, 0)
        self.bad_iteration, self.value, self.part = bad_iteration, value, part

    def draw_block(self, number):
        task = super().draw_block(number)
        if number == self.bad_iteration // self.block:
            getattr(task, self.part).y[self.bad_iteration % self.block, 0, 0] = self.value
        return task


@pytest.mark.parametrize("step", [0, 3, 7, 11])
def test_a_number_that_is_not_finite_never_reaches_the_weights(step):
    clean = make()
    if step:
        run(clean, step)
    for value, part in itertools.product([math.nan, math.inf], ["support", "query"]):
        trainer = make(dataset=Poisoned(step, value, part))
        with pytest.raises(Diverged) as caught:
            run(trainer)
        assert caught.value.iteration == step + 1
        assert caught.value.quantity in ("meta_loss", "query_mse", "grad_norm")
        assert torch.equal(trainer.meta.flat, clean.meta.flat)
        assert torch.equal(trainer.meta.averages["average"], clean.meta.averages["average"])


# the second one differs from the first in a number: it has an entry of its own in the compiler's cache
@pytest.mark.parametrize(("method", "lr"), [("maml", 0.01), ("maml", 0.05), ("leo", 0.01), ("r2d2", 0.01)])
def test_a_compiled_step_equals_the_eager_one_to_rounding(method, lr):
    settings = FEW | {"INNER_LEARNING_RATE": lr}
    eager, compiled = (make(method, iterations=3, settings=settings, compile_mode=mode) for mode in ("never", "always"))
    start = compiled.state()
    assert compiled.prepare().startswith("compiled")
    assert_same_bits(compiled.state(), start)
    assert_close_steps(eager, compiled)
    end = compiled.state()
    compiled.load(start)  # and the same steps once more, several in one call where they are looped over
    yielded = [iteration for iteration, _ in compiled.train((2, 5))]
    assert compiled.step.loops == (torch.__version__ >= LOOPS_FROM and method != "r2d2")  # its derivative may raise an error
    assert yielded == ([2, 3] if compiled.step.loops else [1, 2, 3])
    assert_same_bits(compiled.state(), end)


def test_all_that_a_compiled_step_changes_stays_in_place_so_that_a_cuda_graph_can_be_recorded(monkeypatch):
    found, trainer = [], make(settings=FEW, compile_mode="always")

    def see(graph, _):
        found.append(TracingContext.get().fw_metadata)
        return make_boxed_func(graph)

    def backend(_):
        return lambda module, examples: aot_module_simplified(module, examples, fw_compiler=see)

    monkeypatch.setattr("training.compilation.Compiled._backend", backend)
    monkeypatch.setattr("training.step.can_loop", lambda: False)  # as on a GPU: a step at a time
    assert trainer.prepare().startswith("compiled")
    names = {id(value): name for name, value in (vars(trainer.meta) | trainer.meta.averages).items()}
    inputs, tokens = [names.get(id(value)) for value in trainer.step.graph.inputs], len(found[0].tokens)
    changed = {inputs[number] for number in found[0].mutated_inp_runtime_indices}
    assert changed == {"flat", "average", "exp_avg", "exp_avg_sq", "adam_step", "finite", "metrics"}
    assert {inputs[number - tokens] for number in found[0].static_input_indices} >= changed | {"lr"}


@needs_loops
def test_loops_keep_bad_numbers_off_the_weights_and_one_that_the_compiler_refuses_costs_the_loop_only(monkeypatch):
    def refused(*_):
        raise NotImplementedError

    settings = FEW | {"INNER_LEARNING_RATE": 0.01}  # as above: compiled once for both tests
    looped, single = (make(settings=settings, compile_mode="always") for _ in range(2))
    assert looped.prepare().startswith("compiled") and looped.step.loops
    monkeypatch.setattr("training.step.repeat", refused)
    assert single.prepare().startswith("compiled") and not single.step.loops
    states = [single.state()] + [single.state() for _ in single.train()]
    for bad, value in ((0, math.inf), (7, math.nan)):
        looped.load(states[0])
        looped.meta.finite.fill_(True)
        looped.datasets = [Poisoned(bad, value, "query")]
        with pytest.raises(Diverged) as caught:
            list(looped.train((5,)))
        assert (caught.value.iteration, caught.value.quantity) == (bad + 1, "meta_loss")
        assert torch.equal(looped.meta.flat, torch.cat([part.flatten() for part in states[bad]["meta_parameters"].values()]))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("method", TRAINED)
def test_cuda_equals_cpu_for_twenty_steps(method):
    cpu, cuda = run(make(method, iterations=20)), run(make(method, iterations=20, device="cuda"))
    for name, tensor in cpu["meta_parameters"].items():
        torch.testing.assert_close(tensor, cuda["meta_parameters"][name], rtol=1e-4, atol=1e-5)


def test_without_a_compiler_the_step_is_traced_says_so_and_equals_the_eager_one(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    eager, traced = (make(iterations=3, settings=FEW | {"TASK_CHUNK": 2}, compile_mode=mode) for mode in ("never", "always"))
    assert "no C++ compiler (no-such-compiler) was found: traced" in traced.prepare()
    assert_close_steps(eager, traced)

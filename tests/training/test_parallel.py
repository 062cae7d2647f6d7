"""Parts of a step: the same numbers whoever computes them, and as many parts as the work is worth."""

import math
import os
import threading

import pytest
import torch

from system.host import flushes_denormals
from system.threads import SMALL_WORK, available_cores, threads_for
from tests.tools.training import assert_same_bits, make, run
from training.parallel import PAYS_FROM, Helpers, groups, parts_of


@pytest.fixture
def helpers():
    made = Helpers(2)
    yield made
    made.close()


@pytest.mark.parametrize("count", [1, 2, 3, 20])
def test_results_stand_in_the_order_of_their_items(helpers, count):
    for _ in range(300):  # trials and what follows them
        assert helpers.map(lambda item: item**2, range(count)) == [item**2 for item in range(count)]


def test_without_helpers_the_caller_computes_everything():
    assert Helpers(0).map(lambda _: threading.current_thread(), range(3)) == [threading.current_thread()] * 3


def test_a_thread_takes_a_part_while_the_caller_is_busy_and_computes_as_the_caller_does(helpers):
    torch.set_flush_denormal(True)
    begun = threading.Event()

    def compute(item):
        if item == 0:
            assert begun.wait(30)
        else:
            begun.set()
        return threading.current_thread().name, flushes_denormals(), torch.is_grad_enabled(), torch.get_num_threads()

    try:
        (caller, *_), (other, *how) = helpers.map(compute, range(2))
    finally:
        torch.set_flush_denormal(False)
    assert caller != other and how == [True, False, 1]


def test_the_caller_computes_what_no_thread_has_begun(helpers):
    free = threading.Event()
    busy = [helpers._pool.submit(free.wait, 30) for _ in range(2)]
    assert helpers.map(lambda _: threading.current_thread(), range(3)) == [threading.current_thread()] * 3
    free.set()
    assert all(future.result() for future in busy)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_an_error_in_any_part_reaches_the_caller(helpers, place):
    with pytest.raises(ZeroDivisionError):
        helpers.map(lambda item: 1 // (item - place), range(3))


@pytest.mark.parametrize(("with_threads", "without"), [(1.0, 2.0), (2.0, 1.0)])
def test_the_faster_way_is_kept_until_the_next_trial(helpers, monkeypatch, with_threads, without):
    clock, shared = [0.0], [0]

    def threads(_function, _items):
        clock[0] += with_threads
        shared[0] += 1

    def alone(_item):
        clock[0] += without / 2

    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    monkeypatch.setattr(helpers, "_shared", threads)
    for _ in range(2 * helpers.PERIOD):
        helpers.map(alone, range(2))
    assert shared[0] == 2 * (helpers.PERIOD - helpers.TRIAL if with_threads < without else helpers.TRIAL)


@pytest.mark.parametrize(("total", "size"), [(25, 13), (25, 25), (7, 3), (6, 3), (5, 1)])
def test_groups_weigh_every_task_once_and_have_one_size(total, size):
    weights = torch.zeros(total)
    for place, shares in groups(total, size, range(-(-total // size))):
        assert len(weights[place]) == size
        weights[place] += shares
    torch.testing.assert_close(weights, torch.full((total,), 1 / total))


@pytest.mark.parametrize(
    ("operations", "parts"), [(9_600_000, 1), (PAYS_FROM, 2), (38_400_000, 2), (358_000_000, 2), (1_432_000_000, 3)]
)
def test_parts_depend_on_the_work_alone(operations, parts):
    assert parts_of(operations) == parts


def test_processes_of_one_machine_share_its_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    found = []
    for processes in ("1", "4", "8", "0", "all"):  # the last two mean nothing
        monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
        found.append(available_cores())
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr("psutil.cpu_count", lambda: 16)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert [*found, available_cores()] == [6, 1, 1, 6, 6, 2]


@pytest.mark.parametrize(("given", "cores"), [("1", 1), ("3", 3), ("0", 1)])
def test_a_number_of_threads_that_somebody_set_is_kept(monkeypatch, given, cores):
    monkeypatch.setenv("OMP_NUM_THREADS", given)
    assert available_cores() == cores


def test_a_large_step_of_a_single_task_is_not_looped_over_so_that_a_signal_need_not_wait(monkeypatch):
    monkeypatch.setattr("training.step.parts_of", lambda operations: 2)
    trainer = make(tasks=1, iterations=2, compile_mode="always")
    assert trainer.prepare().startswith("compiled") and not trainer.step.loops


def test_a_step_cut_in_parts_has_the_same_bits_for_any_number_of_threads_and_rounds_as_the_whole(monkeypatch):
    monkeypatch.setattr("training.step.parts_of", lambda operations: 2 if operations > 0 else math.nan)
    whole, alone, shared = (make(iterations=8, compile_mode=mode) for mode in ("never", "always", "always"))
    for trainer, cores in ((alone, 1), (shared, 2)):
        monkeypatch.setattr("training.step.available_cores", lambda cores=cores: cores)
        assert trainer.prepare().startswith("compiled")
        assert (trainer.step.chunk, trainer.step.helpers.count) == (3, cores - 1)
        run(trainer)
    assert_same_bits(alone.state(), shared.state())
    run(whole)
    torch.testing.assert_close(whole.step.flat, shared.step.flat, rtol=1e-4, atol=1e-5)


def test_threads_that_compute_at_the_same_time_put_the_number_of_threads_back():
    before, inside, first_left = torch.get_num_threads(), threading.Event(), threading.Event()

    def late():  # begins while the caller is inside, and is there when it leaves
        with threads_for(1):
            inside.set()
            first_left.wait(10)

    try:
        torch.set_num_threads(2)
        with threads_for(1):
            other = threading.Thread(target=late)
            other.start()
            inside.wait(10)
        first_left.set()
        other.join()
        counts = []
        later = threading.Thread(target=lambda: counts.append(torch.get_num_threads()))
        later.start()
        later.join()
        assert (torch.get_num_threads(), counts) == (2, [2])
    finally:
        torch.set_num_threads(before)


def test_little_work_is_done_on_one_thread_and_the_callers_number_is_put_back():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with pytest.raises(ZeroDivisionError), threads_for(SMALL_WORK - 1):
            assert torch.get_num_threads() == 1
            raise ZeroDivisionError
        assert torch.get_num_threads() == 2
        with threads_for(SMALL_WORK):
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)

"""Micro-batches: the same numbers whoever computes them, as many as the work is worth, on as many threads as cores."""

import itertools
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from system.host import flushes_denormals
from system.threads import SMALL_WORK, available_cores, compute_as_the_caller, threads_for
from tests.tools.training import assert_same_bits, make, run
from training.parallel import PAYS_FROM, MicroBatches, micro_batches_worth, tasks_at_once


def test_micro_batches_weigh_every_task_once_and_have_one_size():
    cuts = [(25, 13), (25, 25), (7, 3), (6, 3), (5, 1), (5, 0)]
    for (total, size), world in itertools.product(cuts, (1, 2, 4)):
        weights = torch.zeros(total)
        for rank in range(world):
            cut = MicroBatches(total, size, rank, world)
            for tasks, task_weights in zip(cut.slices, cut.task_weights, strict=True):
                assert len(weights[tasks]) == (size or -(-total // world))
                weights[tasks] += task_weights
        torch.testing.assert_close(weights, torch.full((total,), 1 / total))


def test_the_number_of_micro_batches_depends_on_the_work_and_tasks_at_once_on_the_cache():
    work = (9_600_000, PAYS_FROM, 38_400_000, 358_000_000, 1_432_000_000)
    assert [micro_batches_worth(operations) for operations in work] == [1, 2, 2, 2, 3]
    cases = {(0, 25, 35_220, "cpu"): 25, (0, 1600, 35_220, "cpu"): 100, (0, 125, 35_220, "cpu"): 63}  # the first: the default
    cases |= {(0, 1600, 35_220, "cuda"): 1600, (7, 1600, 35_220, "cpu"): 7}
    cases |= {(0, 25, 5_000_000, "cpu"): 25}  # micro-batches too small to be worth it
    for (chunk, local_batch, task_work, device), expected in cases.items():
        assert tasks_at_once(chunk, local_batch, task_work, torch.device(device)) == expected


def test_micro_batches_have_the_same_bits_on_any_number_of_threads(monkeypatch):
    monkeypatch.setattr("training.step.micro_batches_worth", lambda operations: 2)
    monkeypatch.setattr("training.step.available_cores", lambda: 2)
    few = {"INNER_STEPS": 2}
    whole, cut = (make(iterations=8, settings=few, compile_mode=mode) for mode in ("never", "always"))
    start = cut.state()
    assert cut.prepare().startswith("compiled") and (cut.step.micro_batches.size, cut.step.threads) == (3, 2)
    shared = run(cut)
    cut.load(start)
    cut.step.threads = 1
    assert_same_bits(run(cut), shared)
    cut.close()
    run(whole)
    torch.testing.assert_close(whole.meta.flat, cut.meta.flat, rtol=1e-4, atol=1e-5)


def test_a_large_step_of_a_single_task_is_not_looped_over_so_that_a_signal_need_not_wait(monkeypatch):
    monkeypatch.setattr("training.step.micro_batches_worth", lambda operations: 2)
    monkeypatch.setattr("training.step.Compiled", lambda method, device: method)
    trainer = make(tasks=1, iterations=2, compile_mode="always")
    assert trainer.prepare().startswith("compiled") and not trainer.step.loops


def test_a_thread_that_helps_computes_as_the_callers_does():
    with ThreadPoolExecutor(1, initializer=compute_as_the_caller) as pool:
        asked = [pool.submit(state) for state in (flushes_denormals, torch.is_grad_enabled, torch.get_num_threads)]
    assert [future.result() for future in asked] == [True, False, 1]


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
    for given, cores in (("1", 1), ("3", 3), ("0", 1)):  # somebody's own number is kept
        monkeypatch.setenv("OMP_NUM_THREADS", given)
        assert available_cores() == cores


def test_little_work_is_done_on_one_thread_and_the_callers_number_is_put_back_also_of_two_at_a_time(two_threads):
    with pytest.raises(ZeroDivisionError), threads_for(SMALL_WORK - 1):
        assert torch.get_num_threads() == 1
        raise ZeroDivisionError
    assert torch.get_num_threads() == 2
    with threads_for(SMALL_WORK):
        assert torch.get_num_threads() == 2
    inside, first_left = threading.Event(), threading.Event()

    def late():  # begins while the caller is inside, and is there when it leaves
        with threads_for(1):
            inside.set()
            first_left.wait(10)

    with ThreadPoolExecutor(1) as pool:
        with threads_for(1):
            pool.submit(late)
            inside.wait(10)
        first_left.set()
    with ThreadPoolExecutor(1) as pool:
        assert (torch.get_num_threads(), pool.submit(torch.get_num_threads).result()) == (2, 2)

"""The same bits from one process or two; a small part of the chaos tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tools.chaos import command, only_run, ranks, report_of, result_of, same


@pytest.mark.parametrize("method", ["alpaca", "leo", "r2d2"])
def test_two_processes_give_the_bits_of_one_with_the_same_chunk(method: str, tmp_path: Path) -> None:
    """7 tasks in chunks of 2: neither the chunk nor the number of processes divides them."""
    for world in (1, 2):
        argv = command(tmp_path / str(world), "--method", method, META_BATCH_SIZE=7, TASK_CHUNK=2, EPOCHS=1)
        children = ranks(argv, world, "plain")
        assert [child.wait() for child in children] == [0] * world, children[0].err
        assert report_of(only_run(tmp_path / str(world)))["processes"] == world
    assert same(*(result_of(only_run(tmp_path / str(world))) for world in (1, 2)))

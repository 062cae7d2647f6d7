"""`main.main(argv)` is a guest in somebody's process: it leaves it as it was, on every way out."""

from __future__ import annotations

import gc
import os
import random
import re
import signal
import sys
import threading
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch

from main import main
from report.figures import example_figure
from system.host import collection_paused, flushes_denormals
from tests.tools.chaos import at_step, command, only_run, report_of, result_of, same
from training.experiment import Experiment
from training.signals import SAVING, STOPPING

NUMBERS = [getattr(signal, name) for name in (*STOPPING, *SAVING) if hasattr(signal, name)]


def host_state() -> dict[str, Any]:
    """Everything of a process that a guest could leave behind."""
    gc.collect()  # the thread that draws tasks ends with its trainer
    return {
        "handlers": [signal.getsignal(number) for number in NUMBERS],
        "threads of torch": torch.get_num_threads(),
        "denormals": flushes_denormals(),
        "hooks": (sys.excepthook, threading.excepthook, sys.unraisablehook, sys.displayhook),
        "grad mode": (torch.is_grad_enabled(), torch.get_default_dtype(), torch.are_deterministic_algorithms_enabled()),
        "random states": (random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()),  # noqa: NPY002
        "folder": os.getcwd(),
        "environment": dict(os.environ),
        "warnings": list(warnings.filters),
        "figures": dict(matplotlib.rcParams),
        "path": list(sys.path),
        "arguments": list(sys.argv),
        "threads": {thread for thread in threading.enumerate() if thread.is_alive()},
        "numpy": np.geterr(),
        "garbage": gc.isenabled(),
    }


@pytest.fixture(autouse=True)
def a_host_of_its_own(original_signal_handlers: None, two_threads: None) -> None:
    """It has the usual handlers, whatever whoever started the tests ignores, and two threads for torch: a change is seen."""
    for number in NUMBERS:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


def fail(error: Exception) -> None:
    raise error


def leo(output: Path, **settings: Any) -> list[str]:
    """The command line of a run of three steps."""
    return command(output, "--method", "leo", **{"EPOCHS": 1, "NUM_TASKS": 12} | settings)


def kill(number: int, times: int = 1) -> None:
    for _ in range(times):
        os.kill(os.getpid(), number)


WILD = {"META_LEARNING_RATE": 10.0, "META_GRADIENT_CLIP": 0, "AMPLITUDE_MAX": 1e6, "NUM_TASKS": 300}
ERRORS = (["--method", "nobody"], ["--set", "EPOCHS=no"], ["--resume", "nowhere"], ["--compare", "nowhere"], ["--seed", "x"])


def test_every_way_out_leaves_the_host_as_it_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(leo(tmp_path / "first"))  # imports and caches, once
    before = host_state()

    def leaves(name: str, argv: list[str], action: Callable[[], Any] = lambda: None) -> int:
        with pytest.MonkeyPatch.context() as patch:
            at_step(2, action, patch.setattr)
            code = main(["--output", str(tmp_path / name), *argv])
        assert host_state() == before, name
        return code

    usual = leo(tmp_path)[2:]
    assert leaves("end", usual) == 0
    assert leaves("divergence", leo(tmp_path, **WILD)[2:]) == 3
    assert [leaves("refused", argv) for argv in ERRORS] == [2] * len(ERRORS)
    for error, says in ((OSError(28, "No space left on device"), "No space left"), (MemoryError(), "out of memory")):
        capsys.readouterr()
        assert leaves("failure", usual, lambda error=error: fail(error)) == 1
        assert re.fullmatch(rf"error: [^\n]*{says}[^\n]*\n", capsys.readouterr().err)
    with pytest.raises(RuntimeError, match="a fault of the code"):
        leaves("fault", usual, lambda: fail(RuntimeError("a fault of the code")))
    assert host_state() == before
    for number in NUMBERS:
        code = 0 if number.name in SAVING else 128 + number
        assert leaves(number.name, usual, lambda number=number: kill(number)) == code
        assert number.name in SAVING or report_of(only_run(tmp_path / number.name))["reason"] == number.name


def test_figures_leave_the_host_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_figures: None) -> None:
    # a figure of each kind takes ten times as long, and changes nothing else
    monkeypatch.setattr(Experiment, "show_progress", lambda *_: None)
    monkeypatch.setattr("report.figures.run_figures", lambda *args: {"one": example_figure(args[0], "")})
    main(leo(tmp_path / "first"))
    before = host_state()
    assert main(["--output", str(tmp_path / "first"), "--evaluate", "latest"]) == 0
    assert list(tmp_path.glob("first/*/plots/*.png")) and host_state() == before


def test_only_a_process_of_our_own_keeps_what_was_made_out_of_the_collection() -> None:
    with collection_paused():
        pass
    assert not gc.get_freeze_count()
    gc.disable()
    cyclic = type("Cyclic", (), {})()
    cyclic.itself, gone = cyclic, weakref.ref(cyclic)
    del cyclic
    try:
        with collection_paused(program=True):
            pass
        gc.collect()
        assert gc.get_freeze_count() and gone() is not None
        with collection_paused(program=True):  # the next run
            assert gone() is None
    finally:
        gc.unfreeze()
        gc.enable()


@pytest.mark.parametrize("times", [1, 2])
def test_an_interrupt_never_ends_the_host_and_its_own_ctrl_c_works_afterwards(
    times: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        at_step(2, lambda: kill(signal.SIGINT, times), patch.setattr)
        assert main(leo(tmp_path / "training")) == 130
    monkeypatch.setattr("commands.evaluate.evaluate_learner", lambda *_: kill(signal.SIGINT, times))
    assert main(leo(tmp_path / "evaluation")) == 130
    with pytest.raises(KeyboardInterrupt):
        kill(signal.SIGINT)


def test_a_run_in_a_thread_gives_the_bits_of_the_main_thread_s_and_leaves_the_host_as_it_was(tmp_path: Path) -> None:
    assert main(leo(tmp_path / "main")) == 0
    before, codes = host_state(), []
    thread = threading.Thread(target=lambda: codes.append(main(leo(tmp_path / "thread"))))
    thread.start()
    thread.join(60)
    assert codes == [0] and host_state() == before
    assert same(result_of(only_run(tmp_path / "main")), result_of(only_run(tmp_path / "thread")))
    given = ["main.py", *leo(tmp_path / "main")]  # and not the host's
    assert report_of(only_run(tmp_path / "main"))["command"] == given

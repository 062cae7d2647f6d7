"""What every test shares: one thread, restored signal handlers, a small generator of tasks, a voice."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator

import pytest
import torch

from dataset import SinusoidalTaskGenerator
from experiment import Experiment
from runtime.processes import SAVING, STOPPING

torch.set_num_threads(1)  # the networks are small: threads would only wait for each other


@pytest.fixture(autouse=True)
def original_signal_handlers() -> Iterator[None]:
    """A test that runs the command line in process leaves the signal handlers as they were."""
    numbers = [getattr(signal, name) for name in (*STOPPING, *SAVING) if hasattr(signal, name)]
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def denormal_numbers() -> Iterator[None]:
    """A trainer flushes them for its whole process; the next test gets them back."""
    yield
    torch.set_flush_denormal(False)


@pytest.fixture
def with_figures() -> None:
    """Asked for by a test that looks at a run's figures."""


@pytest.fixture
def without_figures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """No run draws: that takes ten times as long as all the rest of a tiny one. Whoever asks for `with_figures` has them."""
    if "with_figures" not in request.fixturenames:
        monkeypatch.setattr("commands.evaluate.draw", lambda *_: None)
        monkeypatch.setattr(Experiment, "show_progress", lambda *_: None)


@pytest.fixture
def sinusoids() -> SinusoidalTaskGenerator:
    """The paper's tasks: amplitude in [0.1, 5], phase in [0, pi], x in [-5, 5], no noise."""
    return SinusoidalTaskGenerator()


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    """Print a line of the record past pytest's capture."""

    def line(text: str) -> None:
        with capsys.disabled():
            print(text)

    return line

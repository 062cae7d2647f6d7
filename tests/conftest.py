"""What every test shares: one thread, restored signal handlers, a small generator of tasks, a voice."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest
import torch

from commands import compare, evaluate
from dataset import SinusoidalTaskGenerator
from training.experiment import Experiment
from training.signals import SAVING, STOPPING

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


DRAWING = ((evaluate, "draw"), (compare, "draw"), (Experiment, "show_progress"))
DRAWN = [(owner, name, getattr(owner, name)) for owner, name in DRAWING]


@pytest.fixture(scope="session", autouse=True)
def without_figures() -> Iterator[None]:
    """No run or comparison draws: that takes ten times as long as all the rest of a tiny one."""
    with pytest.MonkeyPatch.context() as patch:
        for owner, name in DRAWING:
            patch.setattr(owner, name, lambda *_: {})
        yield


@pytest.fixture(scope="session")
def figures() -> Callable[[], AbstractContextManager[None]]:
    """Makes contexts in which runs and comparisons draw."""

    @contextmanager
    def drawn() -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            for owner, name, function in DRAWN:
                patch.setattr(owner, name, function)
            yield

    return drawn


@pytest.fixture
def with_figures(figures: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
    """Asked for by a test that looks at figures."""
    with figures():
        yield


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


@pytest.fixture
def full_disk() -> Callable[[str], AbstractContextManager[None]]:
    """Makes contexts in which a function of `os` fails as on a full disk."""

    @contextmanager
    def full(call: str) -> Iterator[None]:
        def fail(*_: object, **__: object) -> None:
            raise OSError(28, "No space left on device")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(f"os.{call}", fail)
            yield

    return full

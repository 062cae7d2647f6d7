"""What every test shares: one thread, restored signal handlers, a small generator of tasks, a voice."""

import signal
from contextlib import contextmanager

import pytest
import torch

from commands import compare, evaluate
from dataset import SinusoidalTaskGenerator
from training.experiment import Experiment
from training.signals import SAVING, STOPPING, Signals

torch.set_num_threads(1)  # the networks are small: threads would only wait for each other


@pytest.fixture(autouse=True)
def original_signal_handlers():
    """A test that runs the command line in process leaves the signal handlers as they were."""
    numbers = [getattr(signal, name) for name in (*STOPPING, *SAVING) if hasattr(signal, name)]
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def denormal_numbers():
    """A trainer flushes them for its whole process; the next test gets them back."""
    yield
    torch.set_flush_denormal(False)


DRAWING = ((evaluate, "draw"), (compare, "draw"), (Experiment, "show_progress"))
DRAWN = [(owner, name, getattr(owner, name)) for owner, name in DRAWING]


@pytest.fixture(scope="session", autouse=True)
def without_figures():
    """No run or comparison draws: that takes ten times as long as all the rest of a tiny one."""
    with pytest.MonkeyPatch.context() as patch:
        for owner, name in DRAWING:
            patch.setattr(owner, name, lambda *_: {})
        yield


@contextmanager
def drawing():
    """Within it runs and comparisons draw."""
    with pytest.MonkeyPatch.context() as patch:
        for owner, name, function in DRAWN:
            patch.setattr(owner, name, function)
        yield


@pytest.fixture(scope="session")
def figures():
    return drawing


@pytest.fixture
def with_figures():
    """Asked for by a test that looks at figures."""
    with drawing():
        yield


@pytest.fixture
def undrawn(monkeypatch):
    """Predictions have no figures, which take longer than all the rest."""
    for name in ("png_bytes", "pdf_bytes"):
        monkeypatch.setattr(f"visualization.{name}", lambda *_: b"")


@pytest.fixture
def two_threads():
    """The caller's thread may use two threads for torch; its number is put back."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def sinusoids():
    """The paper's tasks: amplitude in [0.1, 5], phase in [0, pi], x in [-5, 5], no noise."""
    return SinusoidalTaskGenerator()


@pytest.fixture
def say(capsys):
    """Print a line of the record past pytest's capture."""

    def line(text):
        with capsys.disabled():
            print(text)

    return line


@pytest.fixture
def stopped(monkeypatch):
    """Signals of which each run gets SIGTERM in its first step, while `stop` is set."""
    signals = Signals()
    signals.stop = 15
    monkeypatch.setattr(signals, "listen", lambda: None)  # not before the first step
    monkeypatch.setattr("commands.train.Signals", lambda _: signals)
    return signals


@pytest.fixture
def full_disk():
    """Makes contexts in which a function of `os` fails as on a full disk."""

    @contextmanager
    def full(call):
        def fail(*_, **__):
            raise OSError(28, "No space left on device")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(f"os.{call}", fail)
            yield

    return full

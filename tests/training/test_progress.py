"""The line of progress that a person sees."""

from types import SimpleNamespace

import pytest

from training import progress


@pytest.mark.parametrize(("steps", "ending"), [(100, "loss 1, 90 s left"), (10, "loss 1, 16 min left"), (1000, "loss 1")])
def test_a_line_of_progress_says_how_long_it_still_takes(steps, ending, monkeypatch, capsys):
    now, logged = 5.0, []
    monkeypatch.setattr(progress, "time", SimpleNamespace(perf_counter=lambda: now))
    shown = progress.Progress(0, 1000, logged.append)
    now += 10.0
    shown.update(steps, "loss 1")
    shown.close()
    assert logged == [f"step {steps} of 1000: {ending}"] == capsys.readouterr().out.splitlines()

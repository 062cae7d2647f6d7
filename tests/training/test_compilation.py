"""A compiler that fails, or has no place for its files, costs time only; nothing of it reaches the terminal or stays behind."""

import errno
import logging
import os
import re
import shutil
import sys
import tempfile
import warnings
from pathlib import Path

import pytest
import torch

from system.compiler_cache import FOLDER, check_paths, load_derivatives, one_line, usual_folder, with_cache
from tests.tools.training import make
from training.compilation import Compiled
from training.experiment import Experiment


@pytest.fixture(autouse=True)
def own_place(tmp_path, monkeypatch):
    """Temporary files lie in a folder of the test's own; torch's variables are as they were."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.setenv(FOLDER, str(tmp_path / "cache"))
    monkeypatch.delenv("TRITON_CACHE_DIR", raising=False)


def refused(number):
    def action(*_, **__):
        raise OSError(number, os.strerror(number), "the folder")

    return action


def test_a_usable_folder_is_taken_and_nothing_is_remarked(tmp_path):
    before = dict(os.environ)
    assert with_cache(lambda: (tmp_path / "cache" / "made").write_text("whole"))[1] == ""
    assert (tmp_path / "cache" / "made").read_text() == "whole" and dict(os.environ) == before


@pytest.mark.parametrize("fault", ["under a file", "forbidden", "full"])
def test_without_a_usable_folder_a_private_one_is_taken_and_removed(fault, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    if fault == "under a file":
        monkeypatch.setenv(FOLDER, str(tmp_path / "file" / "cache"))
    elif fault == "forbidden":
        monkeypatch.setattr(os, "makedirs", refused(errno.EACCES))
    else:
        monkeypatch.setattr(tempfile, "TemporaryFile", refused(errno.ENOSPC))
    before = dict(os.environ)
    (folder, triton), reason = with_cache(lambda: (os.environ[FOLDER], os.environ["TRITON_CACHE_DIR"]))
    assert "Not a directory" in reason or "the folder" in reason
    assert Path(folder).parent == tmp_path / "tmp" and triton.startswith(folder)
    assert not any((tmp_path / "tmp").iterdir()) and dict(os.environ) == before
    if fault == "under a file":  # where nothing can be written the reason is raised
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "file"))
        with pytest.raises(NotADirectoryError):
            with_cache(lambda: None)


def test_what_fails_twice_is_raised_and_leaves_nothing_behind(tmp_path):
    attempts, before = [], dict(os.environ)

    def action():
        attempts.append(os.environ[FOLDER])
        os.environ["_TORCHINDUCTOR_PYOBJECT_TENSOR_DATA_PTR"] = "1"  # as torch does
        raise RuntimeError(f"attempt {len(attempts)}")

    with pytest.raises(RuntimeError, match="attempt 2"):
        with_cache(action)
    assert len(set(attempts)) == 2 and dict(os.environ) == before and not any((tmp_path / "tmp").iterdir())


def test_an_account_without_a_name_has_a_folder(monkeypatch):
    def nameless():
        raise KeyError("getpwuid(): uid not found: 12345")

    monkeypatch.setattr("getpass.getuser", nameless)
    monkeypatch.delenv(FOLDER)
    monkeypatch.delenv("HOME", raising=False)
    assert usual_folder() == os.path.join(tempfile.gettempdir(), f"torchinductor_uid_{os.getuid()}")


def test_the_first_derivative_needs_no_folder(monkeypatch):
    monkeypatch.setattr(os, "makedirs", refused(errno.EROFS))
    before = dict(os.environ)
    load_derivatives.__wrapped__()
    assert dict(os.environ) == before


@pytest.mark.parametrize("trouble", ["", "file too short"])
def test_trouble_is_one_warning_and_everything_else_one_line_of_output(trouble, capsys, monkeypatch):
    class Told:
        warn = staticmethod(lambda message: print(f"warning: {message}", file=sys.stderr))
        log = staticmethod(lambda message: None)

    experiment = object.__new__(Experiment)
    experiment.manager, experiment.trainer = Told(), make(compile_mode="always")
    monkeypatch.setattr("training.loop.with_cache", lambda _: (experiment.trainer.step, trouble))
    experiment.prepare()
    out, err = capsys.readouterr()
    told = "compiled meta-step: worth it for 12 iterations"
    if trouble:
        assert re.match(rf"warning: {told}, anew since its cache folder could not be used: {trouble}, .*\n$", err)
    assert (err == "", told in out) == (not trouble, not trouble)


def test_the_reason_is_what_went_wrong_and_not_what_torch_wraps_around_it():
    error = RuntimeError("backend raised:\n  pages")
    error.inner_exception = OSError("file\ntoo short")
    assert one_line(error) == "file too short" and one_line(ValueError()) == "ValueError"


def test_torch_is_quiet_while_it_compiles_and_others_are_not(monkeypatch):
    heard = []
    inside, outside = logging.getLogger("torch._inductor.some_test"), logging.getLogger("somebody")

    def action():
        inside.warning("a page of torch")
        outside.warning("another program")
        warnings.warn("a page of torch", stacklevel=1)

    for logger in (inside, outside):
        terminal = logging.StreamHandler()
        terminal.emit = lambda record: heard.append(record.getMessage())
        monkeypatch.setattr(logger, "handlers", [terminal])
        monkeypatch.setattr(logger, "propagate", False)
    monkeypatch.delenv("TORCH_LOGS", raising=False)
    with_cache(action)
    inside.warning("later")
    assert heard == ["another program", "later"] and not inside.handlers[0].filters


def test_an_environment_with_a_blank_or_quote_runs_eager_and_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "prefix", "/über/$x")
    check_paths()  # these are no trouble
    for name in ("my project", "it's", 'the "new" one'):
        monkeypatch.setattr(sys, "prefix", str(tmp_path / name))
        trainer = make(compile_mode="always")
        told = trainer.prepare()
        assert told.startswith("eager meta-step: compiling failed: torch can't compile with this path (got ") and name in told
        assert trainer.compile_trouble and not trainer.compiled


class Curve:
    def __init__(self):
        self.weights = torch.linspace(0, 1, 40)

    def step(self, x):
        return (torch.sin(x) * self.weights).exp().sum(0)


def compile_curve():
    """What was remarked, and the bits of the compiled result; as if in a new process."""
    from torch._inductor.utils import clear_caches

    clear_caches()
    curve, results = Curve(), []
    x = torch.linspace(-1, 1, 400).reshape(10, 40)

    def action():
        step = Compiled(curve.step, torch.device("cpu"))
        results[:] = [step(x), step(x)]

    _, reason = with_cache(action)
    assert torch.equal(*results)
    return reason, results[0]


@pytest.fixture(scope="module")
def whole_cache(tmp_path_factory):
    place = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(FOLDER, str(place))
        reason, bits = compile_curve()
    assert reason == ""
    return place, bits


@pytest.mark.chaos
def test_a_cache_folder_with_a_blank_is_replaced_by_a_private_one(whole_cache, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv(FOLDER, str(tmp_path / "my cache"))
    reason, bits = compile_curve()
    assert "my cache" in reason and torch.equal(bits, whole_cache[1]) and capfd.readouterr() == ("", "")


@pytest.mark.chaos
def test_emptied_files_in_the_cache_cost_only_time(whole_cache, tmp_path, monkeypatch, capfd):
    whole, bits = whole_cache
    monkeypatch.setenv(FOLDER, str(shutil.copytree(whole, tmp_path / "copy")))
    for path in (tmp_path / "copy").rglob("*"):
        if path.is_file():
            os.truncate(path, 0)
    assert torch.equal(compile_curve()[1], bits)
    assert capfd.readouterr() == ("", "")


@pytest.mark.chaos
def test_a_cache_on_a_full_disk_costs_only_time(whole_cache, tmp_path, monkeypatch):
    from torch._inductor import codecache

    def no_room(path, *args, **kwargs):
        if str(path).startswith(str(tmp_path / "cache")):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        return write_atomic(path, *args, **kwargs)

    write_atomic = codecache.write_atomic
    monkeypatch.setattr(codecache, "write_atomic", no_room)
    reason, bits = compile_curve()
    assert "No space left" in reason and torch.equal(bits, whole_cache[1])

"""A compiler that fails, or has no place for its files, costs time only; nothing of it reaches the terminal or stays behind."""

import errno
import logging
import os
import shutil
import sys
import tempfile
import warnings
from pathlib import Path

import pytest
import torch

from system import compiler_cache
from system.compiler_cache import FOLDER, check_library, load_derivatives, one_line, sound_compiler, usual_folder, with_cache
from tests.tools.training import make
from training.compilation import Compiled
from training.experiment import Experiment

HOSTILE = 'my project\'s "über" $x'


@pytest.fixture(autouse=True)
def own_place(tmp_path, monkeypatch):
    """Temporary files lie in a folder of the test's own; torch's variables are as they were."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.setenv(FOLDER, str(tmp_path / "cache"))
    monkeypatch.delenv("TRITON_CACHE_DIR", raising=False)


def write(name, text):
    (Path(os.environ[FOLDER]) / name).write_text(text)


# ---- which folder


def test_a_usable_folder_is_taken_and_nothing_is_remarked(tmp_path):
    before = dict(os.environ)
    assert with_cache(lambda: write("made", "whole")) == ""
    assert (tmp_path / "cache" / "made").read_text() == "whole" and dict(os.environ) == before


def under_a_file(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv(FOLDER, str(tmp_path / "file" / "cache"))


def forbidden(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "makedirs", refused(errno.EACCES))


def full(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "TemporaryFile", refused(errno.ENOSPC))


def refused(number):
    def action(*_, **__):
        raise OSError(number, os.strerror(number), "the folder")

    return action


@pytest.mark.parametrize("fault", [under_a_file, forbidden, full])
def test_without_a_usable_folder_a_private_one_is_taken_and_removed(fault, tmp_path, monkeypatch):
    places = []
    fault(tmp_path, monkeypatch)
    before = dict(os.environ)
    reason = with_cache(lambda: places.append((os.environ[FOLDER], os.environ["TRITON_CACHE_DIR"])))
    assert "Not a directory" in reason or "the folder" in reason
    ((folder, triton),) = places
    assert Path(folder).parent == tmp_path / "tmp" and triton.startswith(folder)
    assert not any((tmp_path / "tmp").iterdir()) and dict(os.environ) == before


def test_where_nothing_can_be_written_the_reason_is_raised(tmp_path, monkeypatch):
    under_a_file(tmp_path, monkeypatch)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "file"))
    with pytest.raises(NotADirectoryError):
        with_cache(lambda: None)


def test_the_files_of_the_second_attempt_replace_damaged_ones(tmp_path):
    folder = tmp_path / "cache"
    (folder / "ab").mkdir(parents=True)
    (folder / "ab" / "step.so").write_text("cut")
    (folder / "other").write_text("of another program")

    def action():
        place = Path(os.environ[FOLDER], "ab", "step.so")
        if not place.exists():
            place.parent.mkdir()
            place.write_text("whole")
        if place.read_text() == "cut":
            raise OSError("file too short")

    assert with_cache(action) == "file too short"
    assert {path.name: path.read_text() for path in folder.rglob("*") if path.is_file()} == {
        "step.so": "whole",
        "other": "of another program",
    }
    assert with_cache(action) == ""


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


def test_the_first_derivative_needs_no_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(compiler_cache, "_writable_folder", refused(errno.EROFS))
    before = dict(os.environ)
    load_derivatives.__wrapped__()
    assert dict(os.environ) == before


# ---- what a person sees


def test_the_step_says_that_it_was_compiled_anew_and_why(monkeypatch):
    trainer = make(compile_mode="always")
    monkeypatch.setattr("training.loop.with_cache", lambda _: "file too short")
    assert "anew since its cache folder could not be used: file too short" in trainer.prepare()
    assert trainer.compiled and trainer.compile_trouble


@pytest.mark.parametrize("trouble", [False, True])
def test_trouble_is_one_warning_and_everything_else_one_line_of_output(trouble, capsys):
    class Told:
        warn = staticmethod(lambda message: print(f"warning: {message}", file=sys.stderr))
        log = staticmethod(lambda message: None)

    class Prepared:
        compiled, compile_trouble = False, trouble
        prepare = staticmethod(lambda: "the meta-step")

    experiment = object.__new__(Experiment)
    experiment.manager, experiment.trainer = Told(), Prepared()
    experiment.prepare()
    out, err = capsys.readouterr()
    assert (out, err) == (("", "warning: the meta-step\n") if trouble else ("the meta-step\n", ""))


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
    assert heard == ["another program"]
    inside.warning("later")
    assert heard[1:] == ["later"] and not inside.handlers[0].filters


# ---- what is put right in torch


def test_a_command_line_keeps_paths_in_one_piece(tmp_path, monkeypatch):
    monkeypatch.setenv(FOLDER, place := str(tmp_path / HOSTILE))
    words = compiler_cache._quoting()
    line = f"g++ {place}/a.cpp -D X -I{words['quote'](place)}/include -o {place}/a.so"
    assert words["split"](line) == ["g++", f"{place}/a.cpp", "-D", "X", f"-I{place}/include", "-o", f"{place}/a.so"]


def test_ordinary_paths_are_left_to_torch(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "prefix", "/plain")
    monkeypatch.setattr(sys, "base_prefix", "/plain")
    monkeypatch.setattr(torch, "__file__", "/plain/torch/__init__.py")
    monkeypatch.setattr(compiler_cache.sysconfig, "get_path", lambda _: "/plain/include")
    monkeypatch.setattr(compiler_cache.sysconfig, "get_config_var", lambda _: "/plain/lib")
    assert compiler_cache._quoting() == {}


@pytest.mark.skipif(not (sys.platform.startswith("linux") and shutil.which("g++")), reason="needs g++ and ELF")
def test_a_real_library_is_built_in_a_hostile_folder_and_again_where_it_is_cut_short(tmp_path, monkeypatch):
    from torch._inductor import cpp_builder
    from torch._inductor.cpu_vec_isa import VecAVX2

    monkeypatch.setenv(FOLDER, str(tmp_path / HOSTILE))
    kind, code = type("Plain", (VecAVX2,), {"_arch_flags": ""}), 'extern "C" int answer() { return 42; }'
    before = cpp_builder.shlex, VecAVX2.check_build
    with sound_compiler():
        assert kind().check_build(code)
        (library,) = (tmp_path / HOSTILE).rglob("*.so")
        check_library(library)
        os.truncate(library, library.stat().st_size - 1)
        with pytest.raises(OSError, match="cut short"):
            check_library(library)
        os.truncate(library, 100)
        assert kind().check_build(code) and library.stat().st_size > 1000
        assert not kind().check_build("no program")
    assert (cpp_builder.shlex, VecAVX2.check_build) == before


# ---- whole compilers: minutes


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

    reason = with_cache(action)
    assert torch.equal(*results)
    return reason, results[0]


def emptied(path):
    os.truncate(path, 0)


def cut(path):
    os.truncate(path, min(100, path.stat().st_size))


def library_cut(path):
    if path.suffix == ".so":
        os.truncate(path, path.stat().st_size // 10)  # loading it would end the process by SIGBUS


@pytest.fixture(scope="module")
def whole_cache(tmp_path_factory):
    place = tmp_path_factory.mktemp("whole") / HOSTILE
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(FOLDER, str(place))
        reason, bits = compile_curve()
    assert reason == ""
    return place, bits


@pytest.mark.chaos
@pytest.mark.parametrize("damage", [emptied, cut, library_cut])
def test_a_damaged_cache_is_compiled_anew_to_the_same_bits_and_is_whole_again(
    damage, whole_cache, tmp_path, monkeypatch, capfd
):
    whole, bits = whole_cache
    monkeypatch.setenv(FOLDER, str(shutil.copytree(whole, tmp_path / HOSTILE)))
    for path in (tmp_path / HOSTILE).rglob("*"):
        if path.is_file():
            damage(path)
    for wanted in ("anew", "from the cache"):
        reason, again = compile_curve()
        assert torch.equal(again, bits) and bool(reason) == (wanted == "anew"), reason
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

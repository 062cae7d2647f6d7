"""No optional service of a file system is needed: synchronised drives, network disks and memory sticks lack some."""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from main import main
from system.files import write_atomically
from tests.tools.chaos import ROOT, command, only_run, result_of, same


def refuse(module: Any, name: str, number: int, where: Callable[..., bool] = lambda *_: True) -> Callable[..., None]:
    """A fault: that call answers with an error."""

    def plant(monkeypatch: pytest.MonkeyPatch) -> None:
        call = getattr(module, name)

        def refused(*args: Any, **kwargs: Any) -> Any:
            if where(*args):
                raise OSError(number, os.strerror(number))
            return call(*args, **kwargs)

        monkeypatch.setattr(module, name, refused)

    return plant


def is_folder(descriptor: int) -> bool:
    return stat.S_ISDIR(os.fstat(descriptor).st_mode)


FAULTS: dict[str, Callable[..., None]] = {
    "link": refuse(os, "link", errno.EPERM),
    "flock": refuse(fcntl, "flock", errno.ENOLCK),
    "fsync of a folder": refuse(os, "fsync", errno.EINVAL, is_folder),
    "fsync of a file": refuse(os, "fsync", errno.EINVAL, lambda descriptor: not is_folder(descriptor)),
    "fsync": refuse(os, "fsync", errno.ENOTSUP),
    "chmod": refuse(os, "chmod", errno.EPERM),
    "folders can't be opened": refuse(os, "open", errno.EACCES, lambda path, *_: Path(path).is_dir()),
}
LIVES = {  # faults that meet different functions in each; tests/system has the errors that each function meets
    "locks, links and permissions": ["link", "flock", "chmod"],
    "fsync of files": ["fsync of a file"],
    "everything": [*FAULTS],
}


def whole_life(folder: Path) -> tuple[dict[str, Any], bytes]:
    """Train a part, resume to the end, evaluate and predict; what all that gave."""
    points, runs = folder / "points.csv", folder / "runs"
    folder.mkdir()
    points.write_text("x,y\n0,1\n1,2\n-2,0.5\n")
    assert main(command(runs, "--method", "leo", EPOCHS=1)) == 0
    for arguments in (["--resume", "latest", "--set", "EPOCHS=2"], ["--evaluate", "latest"]):
        assert main(["--output", str(runs), *arguments]) == 0
    directory = only_run(runs)
    assert main(["--output", str(folder), "--predict", str(directory), "--points", str(points)]) == 0
    assert (directory / "checkpoints" / "previous.pt").exists()
    hidden = {path.name for path in folder.rglob(".*")}
    assert hidden <= {".lock"}, "leftovers"
    return result_of(directory), (folder / "predictions.csv").read_bytes()


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], bytes]:
    return whole_life(tmp_path_factory.mktemp("sound") / "life")


@pytest.mark.parametrize("faults", LIVES.values(), ids=LIVES)
def test_a_run_lives_its_whole_life_to_the_same_bits_without(
    faults: list[str], tmp_path: Path, expected: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for fault in faults:
        FAULTS[fault](monkeypatch)
    result, predictions = whole_life(tmp_path / "life")
    assert same(result, expected[0]) and predictions == expected[1]
    said = capsys.readouterr().err.count("after a power failure its newest files may be missing")
    assert said == (0 if "chmod" in faults and "fsync" not in faults else 3)  # once in each command that writes into a run


@pytest.mark.parametrize("fault", FAULTS)
def test_a_file_is_written_whole_without(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    FAULTS[fault](monkeypatch)
    write_atomically(tmp_path / "file", b"old")
    confirmed = write_atomically(tmp_path / "file", b"new")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"new"]
    assert confirmed == (fault in ("link", "flock", "chmod"))
    monkeypatch.setattr("system.files.sys.platform", "win32")  # where no folder can be opened, and a file alone is confirmed
    assert write_atomically(tmp_path / "file", b"new") == ("fsync" not in fault or fault == "fsync of a folder")


def test_what_is_not_optional_stays_an_error_that_leaves_what_was_there(tmp_path: Path) -> None:
    for before in ([], [b"old"]):
        for content in before:
            write_atomically(tmp_path / "file", content)
        for call, number in itertools.product(("fsync", "replace"), (errno.EIO, errno.ENOSPC, errno.EROFS)):
            with pytest.MonkeyPatch.context() as patch, pytest.raises(OSError) as caught:
                refuse(os, call, number)(patch)
                write_atomically(tmp_path / "file", b"new")
            assert caught.value.errno == number and [path.read_bytes() for path in tmp_path.iterdir()] == before


WITHOUT_POSIX = """
import os, signal, sys
import matplotlib.backends.backend_agg, psutil, torch.utils.tensorboard, torch._dynamo  # others may need it
for name in ("fcntl", "resource", "termios", "pwd", "grp"):
    sys.modules[name] = None
for name in ("SIGUSR1", "SIGUSR2", "SIGHUP", "SIGXCPU", "SIGQUIT", "SIGALRM"):
    delattr(signal, name)
for name in ("link", "fork", "getuid", "setsid", "killpg", "statvfs"):
    delattr(os, name)
opened = os.open
def no_folders(path, *args, **kwargs):
    if os.path.isdir(path):
        raise PermissionError(13, "Permission denied", str(path))
    return opened(path, *args, **kwargs)
os.open = no_folders

sys.path[:0] = [sys.argv[1], sys.argv[1] + "/tests"]
from pathlib import Path
from tests.tools.runs import command
from commands import evaluate
from main import main
evaluate.draw = lambda *_: None
output = Path(sys.argv[2])
points, runs = output / "points.csv", output / "runs"
points.write_text("x,y\\n0,1\\n1,2\\n")
codes = [
    main(command(runs, "--method", "leo", EPOCHS=1, COMPILE="never")),
    main(["--output", str(runs), "--resume", "latest", "--set", "EPOCHS=2"]),
    main(["--output", str(runs), "--evaluate", "latest"]),
    main(["--output", str(output), "--predict", str(next(runs.iterdir())), "--points", str(points)]),
    main(["--output", str(output / "compared"), "--compare", str(next(runs.iterdir()))]),
]
assert codes == [0] * 5, codes
"""


def test_train_resume_evaluate_predict_and_compare_work_without_posix(tmp_path: Path) -> None:
    argv = [sys.executable, "-W", "ignore", "-c", WITHOUT_POSIX, str(ROOT), str(tmp_path)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    (tmp_path / "predictions.csv").read_text()

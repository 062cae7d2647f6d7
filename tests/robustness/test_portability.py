"""The program on a system without POSIX, as Windows is one: everything but signals and the system's locks works."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
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
(output / "points.csv").write_text("x,y\\n0,1\\n1,2\\n")
runs = output / "runs"
codes = [
    main(command(runs, "--method", "leo", EPOCHS=1, COMPILE="never")),
    main(["--output", str(runs), "--resume", "latest", "--set", "EPOCHS=2"]),
    main(["--output", str(runs), "--evaluate", "latest"]),
    main(["--output", str(output), "--predict", str(next(runs.iterdir())), "--points", str(output / "points.csv")]),
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

"""Puts the project, and what both benchmarks share, on the path of the scripts in this folder."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
for folder in (ROOT / "benchmarks", ROOT):
    sys.path.insert(0, str(folder))

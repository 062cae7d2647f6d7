"""Files that are whole or absent, and JSON that is strict."""

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest

from system.files import json_bytes, to_json, write_atomically


def test_a_file_is_synced_then_renamed_then_its_directory_synced(tmp_path, monkeypatch):
    happened = []
    fsync, replace = os.fsync, os.replace

    def recording_fsync(descriptor):
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        happened.append("sync directory" if path == tmp_path else f"sync file of {path.stat().st_size} bytes")
        fsync(descriptor)

    def recording_replace(source, target):
        happened.append(f"rename {Path(source).parent.name} to {Path(target).name}")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", recording_fsync)
    monkeypatch.setattr(os, "replace", recording_replace)
    write_atomically(tmp_path / "file", b"12345")
    assert happened == ["sync file of 5 bytes", f"rename {tmp_path.name} to file", "sync directory"]


def test_values_are_written_as_strict_json():
    cases = [
        ([math.nan, math.inf, -math.inf, np.float32("nan"), np.float64("inf")], [None] * 5),
        (np.arange(3), [0, 1, 2]),
        (np.array([[1.5, np.nan]]), [[1.5, None]]),
        ([np.float32(0.5), np.int64(3), np.bool_(True)], [0.5, 3, True]),
        ((1, 2), [1, 2]),
        ({5: (1,)}, {"5": [1]}),
        ({"a": {"b": np.array([math.inf])}}, {"a": {"b": [None]}}),
        ([True, None, "NaN", 2**64 - 1], [True, None, "NaN", 2**64 - 1]),
    ]
    for value, expected in cases:
        written = json.loads(json_bytes(value), parse_constant=lambda name: pytest.fail(f"{name} in JSON"))
        assert repr(written) == repr(expected) == repr(to_json(value))

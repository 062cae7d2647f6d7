"""Whatever bytes a file holds, its reader returns something sound or one clean error: never a traceback."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from config import KEYS, Config, ConfigError, load_settings
from system.checkpoints import SCHEMA_VERSION, checkpoint_bytes, read_checkpoint
from system.errors import RunError
from tests.tools.hostile import sealed

calm = settings(derandomize=True, deadline=None, max_examples=200, database=None)

SOUND_SETTINGS = json.dumps(Config().to_dict(), indent=1).encode()
SOUND_CHECKPOINT = checkpoint_bytes(
    {"schema_version": SCHEMA_VERSION, "iteration": 3, "meta_parameters": {"theta": torch.arange(20.0)}, "best": 0.5}
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that every example writes anew."""
    return tmp_path_factory.mktemp("fuzz") / "file"


def mutations(sound: bytes) -> st.SearchStrategy[bytes]:
    """`sound` with a few stretches of bytes replaced by others, of the same length or not."""
    places = st.tuples(st.integers(0, len(sound)), st.integers(0, 30), st.binary(max_size=30))

    def mutated(edits: list[tuple[int, int, bytes]]) -> bytes:
        data = sound
        for start, length, new in edits:
            data = data[:start] + new + data[start + length :]
        return data

    return st.lists(places, min_size=1, max_size=4).map(mutated)


def assert_clean(error: Exception) -> None:
    assert str(error) and "\n" not in str(error)


numbers = st.integers() | st.floats() | st.sampled_from([10**400, -(10**400), 2**64, True])
values = st.recursive(
    st.none() | st.booleans() | numbers | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=4,
)


SETTINGS = st.dictionaries(st.sampled_from(sorted(KEYS)) | st.text(max_size=8), values, max_size=4)


@calm
@given(content=(SETTINGS | values).map(lambda value: json.dumps(value).encode()) | st.binary() | mutations(SOUND_SETTINGS))
def test_any_settings_file_gives_a_configuration_or_one_clean_error(place: Path, content: bytes) -> None:
    place.write_bytes(content)
    try:
        config = Config.resolve(load_settings(place))
    except ConfigError as error:
        assert_clean(error)
    else:
        assert Config.resolve(json.loads(json.dumps(config.to_dict(), allow_nan=False))) == config


@calm
@given(content=mutations(SOUND_CHECKPOINT) | st.binary(max_size=500))
def test_a_checkpoint_that_is_not_as_it_was_is_one_clean_error_and_a_forged_one_at_most(place: Path, content: bytes) -> None:
    body = content[:-66]
    for data in (content, sealed(body)):
        place.write_bytes(data)
        try:
            state = read_checkpoint(place)
        except RunError as error:
            assert_clean(error)
        else:
            assert data in (SOUND_CHECKPOINT, sealed(body)) and state["schema_version"] == SCHEMA_VERSION

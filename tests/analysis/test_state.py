"""What was learnt, as a file: whole, or not believed."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from openmanager_analysis import state

DOCUMENT = {"position": 7, "series": [["web-1", "cpu_usage"]]}
ARRAYS = {
    "level": np.arange(2000.0),
    "known": np.array([[True, False], [False, True]]),
    "nothing": np.empty(0, np.float32),
}


def test_what_is_stored_comes_back_and_nothing_is_nothing(tmp_path: Path):
    path = tmp_path / "deep" / "state"
    assert state.load(path) is None
    assert state.save(path, DOCUMENT, ARRAYS) == path.stat().st_size
    document, arrays = state.load(path)
    assert document == DOCUMENT
    assert list(arrays) == list(ARRAYS)
    for name, array in ARRAYS.items():
        assert arrays[name].dtype == array.dtype
        assert np.array_equal(arrays[name], array)
    state.save(path, {}, {})
    assert state.load(path) == ({}, {})


@pytest.mark.parametrize("place", [0, 9, 100, 9000, -60, -9, -8, -1])
def test_damage_anywhere_is_seen(tmp_path: Path, place: int):
    state.save(tmp_path / "state", DOCUMENT, ARRAYS)
    content = bytearray((tmp_path / "state").read_bytes())
    content[place] ^= 1
    (tmp_path / "state").write_bytes(content)
    with pytest.raises(ValueError, match=r"."):
        state.load(tmp_path / "state")


@pytest.mark.parametrize("content", [b"", b"x", b"OMANALYS", b"\n00000000"])
def test_what_is_no_state_is_not_read(tmp_path: Path, content: bytes):
    (tmp_path / "state").write_bytes(content)
    with pytest.raises(ValueError, match=r"."):
        state.load(tmp_path / "state")


def test_a_state_is_stored_without_a_copy_of_it(tmp_path: Path):
    """A fleet's is hundreds of megabytes."""
    arrays = {f"array{each}": np.ones(1 << 19) for each in range(16)}
    tracemalloc.start()
    try:
        state.save(tmp_path / "state", DOCUMENT, arrays)
        stored = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        kept = sum(each.nbytes for each in state.load(tmp_path / "state")[1].values())
        loaded = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert stored < kept / 2
    assert loaded < kept * 1.5

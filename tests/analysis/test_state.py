"""What was learnt, as a file: whole, or not believed."""

from __future__ import annotations

from pathlib import Path

import pytest
from openmanager_analysis import state

DOCUMENT, LOOKOUT = {"position": 7, "series": [["web-1", "cpu_usage"]]}, bytes(range(256)) * 40


def test_what_is_stored_comes_back_and_nothing_is_nothing(tmp_path: Path):
    path = tmp_path / "deep" / "state"
    assert state.load(path) is None
    assert state.save(path, DOCUMENT, LOOKOUT) == path.stat().st_size
    assert state.load(path) == (DOCUMENT, LOOKOUT)
    state.save(path, {}, b"")
    assert state.load(path) == ({}, b"")


@pytest.mark.parametrize("place", [0, 9, 100, -5000, -60, -9, -8, -1])
def test_damage_anywhere_is_seen(tmp_path: Path, place: int):
    state.save(tmp_path / "state", DOCUMENT, LOOKOUT)
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

"""Row groups in memory: bounded, those asked for last, and none that may not stay true."""

from __future__ import annotations

import numpy as np
import pytest
from openmanager_timeseries.group_cache import GroupCache
from openmanager_timeseries.sealed import Group


def group(rows: int, series: int = 0, values: np.ndarray | None = None) -> Group:
    """Return a row group of one series."""
    columns = {"value": np.zeros(rows) if values is None else values}
    return Group(np.array([series]), np.array([0, rows]), np.zeros(rows, np.int64), columns, 0, 0)


def test_the_one_not_asked_for_longest_goes_first():
    one = group(100)
    cache = GroupCache(10 * one.nbytes)
    for key in range(10):
        cache.put(key, group(100))
    assert cache.get(0) is not None
    cache.put("more", one)
    assert cache.get(1) is None
    assert cache.get(0) is not None
    assert cache.get("more") is one


def test_a_group_is_held_once():
    one = group(100)
    cache = GroupCache(9 * one.nbytes)
    for _ in range(100):
        cache.put("same", one)
        cache.put("other", group(100))
    assert cache.get("same") is one
    assert cache.get("other") is not None


def test_only_what_is_asked_for_again_is_wanted_and_nothing_that_would_drive_out_too_many():
    cache = GroupCache(800)
    assert [cache.wants("small", 100), cache.wants("small", 100)] == [False, True]
    assert [cache.wants("large", 101), cache.wants("large", 101)] == [False, False]
    assert [GroupCache(0).wants("any", 1) for _ in range(3)] == [False] * 3


def test_what_was_asked_for_long_ago_is_asked_for_the_first_time(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("openmanager_timeseries.group_cache._REMEMBERED", 3)
    cache = GroupCache(800)
    assert not any(cache.wants(key, 1) for key in range(4))
    assert cache.wants(1, 1)
    assert not cache.wants(0, 1)


def test_a_series_that_is_not_known_yet_is_looked_up_again():
    cache = GroupCache(1 << 20)
    cache.put("unknown", group(1, series=-1))
    assert cache.get("unknown") is None


def test_objects_of_unknown_size_are_not_held():
    cache = GroupCache(1 << 20)
    cache.put("sketches", group(1, values=np.array([b"sketch"], object)))
    assert cache.get("sketches") is None


def test_what_may_not_be_held_is_not_wanted_again():
    cache = GroupCache(1 << 20)
    assert not cache.wants("unknown", 10)
    assert cache.wants("unknown", 10)
    cache.put("unknown", group(1, series=-1))
    assert [cache.wants("unknown", 10) for _ in range(3)] == [False] * 3

"""Processes that are killed under load: with two shards, two gateways and a copy of each store, nobody notices."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.store import victoria_binary
from chaos import scale
from chaos.doubled import SENTINEL

STORES = ("redis master 0", "postgresql primary")


@pytest.mark.timeout(180)
async def test_a_killed_shard_and_killed_stores_fail_no_call_and_lose_nothing(tmp_path: Path):
    redis, stores = (SENTINEL, STORES) if victoria_binary() else ("", ())
    # The machine may be slow to start a process: calls may wait longer than they usually do.
    found = await scale.run(tmp_path, names=("timeseries/1", *stores), rate=50, seconds=30, redis=redis)
    assert [each.service for each in found.restarts] == ["timeseries/1", *stores]
    assert found.failures == []
    assert found.verdict.sound
    assert found.verdict.acknowledged > 0

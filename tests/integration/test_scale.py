"""A shard that is killed under load: with two of them, and two gateways, nobody notices."""

from __future__ import annotations

from pathlib import Path

import pytest

from chaos import scale


@pytest.mark.timeout(180)
async def test_a_killed_shard_fails_no_call_and_loses_nothing(tmp_path: Path):
    # The machine may be slow to start a process: calls may wait longer than they usually do.
    found = await scale.run(tmp_path, names=("timeseries/1",), rate=50, seconds=30)
    assert [each.service for each in found.restarts] == ["timeseries/1"]
    assert found.failures == []
    assert found.verdict.sound
    assert found.verdict.acknowledged > 0

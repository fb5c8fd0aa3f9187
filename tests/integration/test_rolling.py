"""Services that are restarted under load: with a second gateway nobody notices."""

from __future__ import annotations

from pathlib import Path

import pytest

from chaos import rolling


@pytest.mark.timeout(120)
async def test_a_restart_of_a_gateway_and_of_timeseries_fails_no_call_and_loses_nothing(tmp_path: Path):
    # The machine may be slow to start a process: calls may wait longer than they usually do.
    found = await rolling.run(tmp_path, names=(rolling.SECOND, "timeseries"), rate=50, seconds=30)
    assert [each.service for each in found.restarts] == [rolling.SECOND, "timeseries"]
    assert len(found.calls) > 50
    assert found.failures == []
    assert found.verdict.sound
    assert found.verdict.acknowledged > 0

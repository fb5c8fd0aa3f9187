"""Work on history ends when nobody waits for it."""

from __future__ import annotations

import asyncio
import contextlib
import threading

import numpy as np
import pytest
from openmanager_analysis.analyst import Analyst, IsOver, detect
from openmanager_analysis.anomaly import Severity
from openmanager_analysis.history import Buckets, Selection, Span

from openmanager.api.provenance.v1 import provenance_pb2
from openmanager.errors import ResourceExhaustedError

MINUTE = 60 * 10**9
BEGIN = 1_790_000_040 * 10**9


def buckets(times: int, series: int = 3) -> Buckets:
    random = np.random.default_rng(1)
    return Buckets(
        names=tuple((f"s{each}", "cpu_usage") for each in range(series)),
        times=BEGIN + MINUTE * np.arange(times),
        values=50 + random.normal(0, 1, (series, times)),
        provenance=provenance_pb2.Provenance(),
    )


def test_a_step_that_lasts_is_found_and_what_only_grows_is_none():
    found = buckets(3_000)
    found.values[0, 2_500:] += 30
    found.values[1] = np.cumsum(np.abs(found.values[1]))

    anomalies = detect(found, frozenset({("s1", "cpu_usage")}), lambda: False)

    assert [each.server for each in anomalies] == ["s0"]
    assert BEGIN + 2_500 * MINUTE <= anomalies[0].start_nanos <= BEGIN + 2_530 * MINUTE
    assert anomalies[0].blames[0].metric == "cpu_usage"
    assert anomalies[0].blames[0].high < anomalies[0].blames[0].value


async def test_who_hangs_up_is_not_worked_for():
    begun, ended = threading.Event(), threading.Event()

    def work(is_over: IsOver) -> None:
        begun.set()
        while not is_over():
            pass
        ended.set()

    call = asyncio.create_task(Analyst(None, None)._beside(work))  # type: ignore[arg-type]
    await asyncio.to_thread(begun.wait, 10)
    call.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await call
    assert await asyncio.to_thread(ended.wait, 10)


async def test_more_than_can_be_looked_at_is_refused_before_it_is_read():
    with pytest.raises(ResourceExhaustedError, match="20,000 at most"):
        await Analyst(None, None).anomalies(  # type: ignore[arg-type]
            Selection(), Span(start=BEGIN, end=BEGIN + 20_001 * MINUTE, step=MINUTE), Severity.INFO
        )

"""Work on history ends when nobody waits for it."""

from __future__ import annotations

import asyncio
import contextlib
import threading

import numpy as np
import pytest
from openmanager_analysis import wire
from openmanager_analysis.analyst import Analyst, IsOver, detect
from openmanager_analysis.anomaly import Register, Severity
from openmanager_analysis.history import DAY_NANOS, Buckets, Selection, Span
from openmanager_analysis.scoring import Fault

from openmanager.api.provenance.v1 import provenance_pb2
from openmanager.client.analysis import scores
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


class Recorded:
    """Stored history of a processor with a season by the hour, from `begin` on, and two faults, one of an unknown server."""

    def __init__(self, begin: int) -> None:
        self.begin = begin

    async def buckets(self, _: Selection, span: Span, aggregation: str = "MEAN", *, most: int) -> Buckets:
        assert most >= 1
        assert aggregation in {"MEAN", "MAX"}
        times = np.arange(span.start // span.step, -(-span.end // span.step)) * span.step
        values = 60 + 30 * np.sin(times / DAY_NANOS * 2 * np.pi) + np.random.default_rng(1).normal(0, 1, len(times))
        values = np.where(times >= self.begin, values, np.nan)[None]
        about = provenance_pb2.Provenance()
        return Buckets(names=(("web", "cpu_usage"),), times=times, values=values, provenance=about)

    async def between(self, start: int, end: int) -> list[Fault]:
        middle = (start + end) // 2
        return [
            Fault(pattern="CPU_SPIKE", servers=(server,), start_nanos=middle, end_nanos=middle + MINUTE, severity=0.5)
            for server in ("web", "elsewhere")
        ]


END = BEGIN // DAY_NANOS * DAY_NANOS


async def test_a_score_counts_what_was_watched_and_makes_forecasts_again():
    stored = Recorded(END - 20 * DAY_NANOS)
    found = await Analyst(stored, stored).score(Register(), END - 4 * DAY_NANOS, END)  # type: ignore[arg-type]

    assert (found.detection.total.fault_count, found.server_count) == (1, 1)
    (cpu,) = found.rolled.forecasts
    assert (cpu.metric, cpu.forecast_count) == ("cpu_usage", 4)
    assert found.rolled.exhaustion is not None
    assert found.rolled.exhaustion.answer_count > 0
    assert [each.seconds // 3_600 for each in found.rolled.predictions] == [1, 6, 24]
    assert found.rolled.omissions == ()


async def test_a_score_of_a_young_fleet_says_what_it_cannot_score():
    stored = Recorded(END - DAY_NANOS)
    found = await Analyst(stored, stored).score(Register(), END - DAY_NANOS, END)  # type: ignore[arg-type]

    assert (found.rolled.forecasts, found.rolled.exhaustion, found.rolled.predictions) == ((), None, ())
    assert len(found.rolled.omissions) == 3
    message = wire.score(found)
    assert not message.HasField("exhaustion")
    assert list(message.omissions) == list(found.rolled.omissions)


async def test_a_score_goes_over_the_wire_and_comes_back():
    stored = Recorded(END - 20 * DAY_NANOS)
    found = await Analyst(stored, stored).score(Register(), END - 4 * DAY_NANOS, END)  # type: ignore[arg-type]
    told = scores(wire.score(found))

    (cpu,), one = told.forecasts, told.predictions[0]
    assert cpu.relative_error == pytest.approx(found.rolled.forecasts[0].error / found.rolled.forecasts[0].naive_error)
    assert one.brier == pytest.approx(found.rolled.predictions[0].brier)
    assert sum(count for count, _, _ in one.bins) == one.count
    assert told.exhaustion is not None

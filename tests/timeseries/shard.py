"""One shard of history on real files, for tests: a clock that stands still, short names for frames and questions."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
from openmanager_timeseries.config import TimeseriesConfig
from openmanager_timeseries.disk import PosixDisk
from openmanager_timeseries.history import History, open_history
from openmanager_timeseries.query import RangeQuery

from openmanager.frame import Frame

SECOND = 10**9
NOW = 1_790_000_000 * SECOND


class StillClock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.nanos = NOW
        self.seconds = 0.0

    def now_nanos(self) -> int:
        return self.nanos

    def monotonic(self) -> float:
        return self.seconds


def config(folder: Path) -> TimeseriesConfig:
    return TimeseriesConfig(data_dir=folder, ballast_size=0, seal_interval=timedelta(days=9), max_series=1000)


@contextlib.asynccontextmanager
async def opened(folder: Path, **changes) -> AsyncIterator[History]:
    settings_ = replace(config(folder), **changes)
    async with open_history(settings_, PosixDisk(folder / "log"), StillClock()) as history:
        yield history


def frame(time: int, values: dict[str, dict[str, float]], **more) -> Frame:
    """Return a frame of one time: values by server and metric, absent ones NaN."""
    servers = tuple(values)
    metrics = tuple(sorted({metric for found in values.values() for metric in found}))
    grid = np.array([[[values[s].get(m, np.nan) for m in metrics] for s in servers]])
    return Frame(times=np.array([NOW + time * SECOND]), servers=servers, metrics=metrics, values=grid, **more)


def asked(start: int, end: int, **changes) -> RangeQuery:
    query = RangeQuery(
        servers=(),
        server_filter="",
        metrics=(),
        start=NOW + start * SECOND,
        end=NOW + end * SECOND,
        step=0,
        aggregation="MEAN",
        group_by="SERVER",
    )
    return replace(query, **changes)


async def raw(
    history: History, start: int = -3600, end: int = 600, **changes
) -> dict[tuple[str, str], list[tuple[int, float]]]:
    answer = await history.query_range(asked(start, end, **changes), 10)
    assert answer.raw is not None
    found = {}
    for row, name in enumerate(answer.names):
        part = slice(int(answer.raw.offsets[row]), int(answer.raw.offsets[row + 1]))
        times = ((answer.raw.times[part] - NOW) // SECOND).tolist()
        found[name.server, name.metric] = list(zip(times, answer.raw.values[part].tolist(), strict=True))
    return found

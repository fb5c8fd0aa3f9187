"""One shard of history on real files, for tests: a clock that stands still, short names for frames and questions."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from openmanager_timeseries import keeper
from openmanager_timeseries.config import TimeseriesConfig
from openmanager_timeseries.disk import PosixDisk
from openmanager_timeseries.history import History
from openmanager_timeseries.keeper import Keeper
from openmanager_timeseries.opening import open_history
from openmanager_timeseries.query import Answer, RangeQuery
from openmanager_timeseries.rollup_import import RollupImport

from openmanager.frame import Frame, MetricInfo, encode
from openmanager.rollup import COLUMNS, Grid, encode_grid

SECOND = 10**9
MINUTE, HOUR, DAY = 60 * SECOND, 3600 * SECOND, 86_400 * SECOND
NOW = 1_790_000_000 * SECOND
# The whole hour before now.
END = NOW // HOUR * HOUR
GAUGE, COUNTER = MetricInfo(name="load", kind=1), MetricInfo(name="requests", kind=2)


class StillClock:
    """A clock that stands still until it is moved; `jump` is what people set it forward by."""

    def __init__(self) -> None:
        self.nanos = NOW
        self.seconds = 0.0
        self.jump = 0

    def now_nanos(self) -> int:
        return self.nanos + self.jump

    def monotonic(self) -> float:
        return self.seconds + (self.nanos - NOW) / SECOND


def config(folder: Path) -> TimeseriesConfig:
    return TimeseriesConfig(data_dir=folder, ballast_size=0, seal_interval=timedelta(days=9), max_series=1000)


@contextlib.asynccontextmanager
async def opened(folder: Path, **changes) -> AsyncIterator[History]:
    """Open a shard whose upkeep is done by the test, step by step."""
    settings_ = replace(config(folder), **changes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keeper, "KEEP_SECONDS", 1e6)
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


class NoDisk:
    """A volume that is nearly empty."""

    def free_bytes(self) -> tuple[int, int]:
        return 1 << 40, 1 << 40


async def write(history: History, times, servers=("a",), **metrics) -> None:
    """Write samples of some servers: one list of values by time for each metric, the same for all servers."""
    values = np.array([[[column[at] for column in metrics.values()]] * len(servers) for at in range(len(times))], float)
    made = Frame(
        times=np.asarray(times, np.int64),
        servers=tuple(servers),
        metrics=tuple(metrics),
        values=values,
        metric_infos=(GAUGE, COUNTER),
    )
    await history.write(encode(made))


async def rolled(history: History) -> None:
    """Seal, and compute every bucket that is over."""
    await history.seal()
    upkeep = Keeper(history, NoDisk())
    while history.roller.next() is not None:
        await upkeep.roll_up()


async def ask(history: History, start: int, end: int, step: int, aggregation: str = "MEAN", **changes) -> Answer:
    """Ask for times in nanoseconds."""
    query = replace(asked(0, 0), start=start, end=end, step=step, aggregation=aggregation)
    return await history.query_range(replace(query, **changes), 10)


async def both(history: History, start: int, end: int, step: int, aggregation: str, **changes) -> tuple[Answer, Answer]:
    """Return the answer as it comes, and the one made of samples alone."""
    found = await ask(history, start, end, step, aggregation, **changes)
    tiers, history.roller.tiers = history.roller.tiers, ()
    try:
        samples = await ask(history, start, end, step, aggregation, **changes)
    finally:
        history.roller.tiers = tiers
    return found, samples


def ticks(start: int, count: int, interval: int = 10 * SECOND) -> list[int]:
    return [start + at * interval for at in range(count)]


def decimals(count: int, seed: int = 1) -> list[float]:
    return np.round(np.random.default_rng(seed).normal(50, 5, count), 2).tolist()


def grid(
    times: Sequence[int], count: float, value: float, server: str = "a", metrics: tuple[str, ...] = ("load",)
) -> Grid:
    """Return buckets of one server that all count as many samples of one value."""
    shape = (len(times), 1, len(metrics))
    columns = {name: np.full(shape, value) for name in COLUMNS}
    columns["count"] = np.full(shape, count)
    columns["sum"] = np.full(shape, count * value)
    columns["first"], columns["growth"] = np.full(shape, np.nan), np.full(shape, np.nan)
    return Grid(times=np.asarray(times, np.int64), servers=(server,), metrics=metrics, columns=columns)


async def imported(history: History, tier: str, what: Grid) -> tuple[int, int]:
    """Import one request as a stream of its own; return how many buckets were taken and refused."""
    importing = RollupImport(history)
    assert importing.add(encode_grid(tier, what))
    (taken,) = await importing.flush()
    importing.finish()
    return taken.accepted, taken.rejected

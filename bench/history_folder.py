"""Folders of history, made quickly and by the real code: frames through admission and log, sealed hour by hour."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from openmanager_timeseries import keeper
from openmanager_timeseries.config import TimeseriesConfig
from openmanager_timeseries.disk import PosixDisk
from openmanager_timeseries.history import History
from openmanager_timeseries.opening import open_history
from openmanager_timeseries.upkeep import BLOCK_WINDOWS, next_merge

from bench.data import INTERVAL
from openmanager.config import Size
from openmanager.frame import Frame, encode, split
from openmanager.runtime.clock import SystemClock

HOUR = 3600 * 10**9
DAY = 24 * HOUR
HOUR_TICKS = HOUR // INTERVAL
# Frames under way at once while a folder is filled.
_IN_FLIGHT = 32


@contextlib.asynccontextmanager
async def opened(folder: Path, *, kept: bool = True, **changes: object) -> AsyncIterator[History]:
    """Open the history of a folder in this process; with `kept` false nothing but what is asked goes on in it."""
    config = replace(TimeseriesConfig(data_dir=folder), **changes)  # type: ignore[arg-type]
    seconds = keeper.KEEP_SECONDS
    keeper.KEEP_SECONDS = seconds if kept else 1e6
    try:
        async with open_history(config, PosixDisk(folder / "log"), SystemClock()) as history:
            await asyncio.sleep(0)  # the keeper has read how long it sleeps
            keeper.KEEP_SECONDS = seconds
            yield history
    finally:
        keeper.KEEP_SECONDS = seconds


class Series:
    """Endless standard series: mean-reverting (φ 0.9) around a base in 10–80 with unit steps, rounded to 0.01."""

    def __init__(self, servers: int, metrics: int, seed: int = 1) -> None:
        self._generator = np.random.Generator(np.random.SFC64(seed))
        self._base = self._generator.uniform(10, 80, (servers, metrics))
        self._state = np.zeros((servers, metrics))

    def ticks(self, count: int) -> np.ndarray:
        """Return the next ticks: float64[T, S, M]."""
        out = np.empty((count, *self._base.shape))
        self._generator.standard_normal(out=out)
        for tick in range(count):
            out[tick] += 0.9 * self._state
            self._state = out[tick].copy()
        out += self._base
        return np.round(out, 2, out=out)


def frames(names: tuple[tuple[str, ...], tuple[str, ...]], start: int, values: np.ndarray) -> Iterator[Frame]:
    """Yield the frames of some ticks, one time each."""
    for tick in range(len(values)):
        times = np.array([start + tick * INTERVAL])
        yield from split(Frame(times=times, servers=names[0], metrics=names[1], values=values[tick : tick + 1]))


async def write(history: History, made: Iterator[Frame]) -> None:
    """Write frames, many under way at once."""
    under_way: set[asyncio.Task[object]] = set()
    for frame in made:
        under_way.add(asyncio.create_task(history.write(encode(frame))))
        if len(under_way) >= _IN_FLIGHT:
            done, under_way = await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
    await asyncio.gather(*under_way)


async def fill(
    folder: Path,
    names: tuple[tuple[str, ...], tuple[str, ...]],
    start: int,
    hours: int,
    values_of: Callable[[int], np.ndarray],
    *,
    tail: np.ndarray | None = None,
) -> None:
    """Fill a folder with sealed hours that are rolled up and merged; what `tail` holds after them stays in the log."""
    async with opened(folder, head_size=Size(1 << 30)) as history:
        for hour in range(hours):
            await write(history, frames(names, start + hour * HOUR, values_of(hour)))
            await history.seal()
            history.head.drop(0)
        await idle(history)
        if tail is not None:
            await write(history, frames(names, start + hours * HOUR, tail))


async def idle(history: History) -> None:
    """Return when nothing is left to be rolled up or merged."""
    while _has_work(history):  # noqa: ASYNC110  (the keeper looks once a second)
        await asyncio.sleep(0.1)
    async with history.changing:
        pass


def _has_work(history: History) -> bool:
    now = history.clock.now_nanos()
    return history.roller.next() is not None or bool(next_merge(history.blocks.files, BLOCK_WINDOWS, now))

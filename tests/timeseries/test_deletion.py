"""Deletion: what was deleted is gone, and stays gone, whatever happens before, meanwhile and after."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openmanager_timeseries import deletion, durable, erasure, sealed, sealed_store
from openmanager_timeseries.deletion import Deletion, delete_series
from openmanager_timeseries.history import History
from openmanager_timeseries.keeper import Keeper
from openmanager_timeseries.query import EARLIEST_NANOS, LATEST_NANOS
from openmanager_timeseries.retention import Hold, Policy, Rule, Selector
from timeseries.shard import (
    DAY,
    END,
    HOUR,
    MINUTE,
    NOW,
    SECOND,
    NoDisk,
    ask,
    both,
    decimals,
    grid,
    imported,
    opened,
    rolled,
    ticks,
    write,
)

from openmanager.api.timeseries.v1 import timeseries_pb2 as pb
from openmanager.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    OutOfRangeError,
    Reason,
    UnavailableError,
)

START = END - 4 * HOUR
Key = tuple[str, str, int]


async def delete(  # noqa: PLR0913
    history: History,
    servers: Sequence[str] = (),
    metrics: Sequence[str] = (),
    start: int = EARLIEST_NANOS,
    end: int = LATEST_NANOS,
    *,
    dry: bool = False,
) -> Deletion:
    chosen = history.catalog.select(tuple(servers), "", tuple(metrics))
    return await delete_series(history, chosen, start, end, dry=dry)


async def samples(history: History, start: int = START - HOUR, end: int = NOW + HOUR) -> dict[Key, float]:
    """Return every sample that a query finds, by server, metric and time."""
    answer = await ask(history, start, end, 0)
    assert (answer.partial_reason, answer.raw is None) == ("", False)
    rows = answer.raw.rows
    return {
        (answer.names[row].server, answer.names[row].metric, time): value
        for row, time, value in zip(
            rows.tolist(), answer.raw.times.tolist(), answer.raw.values.tolist(), strict=True
        )
    }


def listed(history: History) -> dict[tuple[str, str], tuple[int, float]]:
    """Return the series that there are, with the newest sample of each."""
    ids = history.catalog.select((), "", ()).ids
    servers, metrics = history.catalog.names(ids)
    times, values = history.catalog.last(ids)
    newest = zip(times.tolist(), values.tolist(), strict=True)
    return dict(zip(zip(servers, metrics, strict=True), newest, strict=True))


def newest(model: dict[Key, float]) -> dict[tuple[str, str], tuple[int, float]]:
    found: dict[tuple[str, str], tuple[int, float]] = {}
    for (server, metric, time), value in sorted(model.items()):
        found[server, metric] = (time, value)
    return found


def on_disk(folder: Path) -> set[Key]:
    """Return the keys of all rows in the Parquet files of a folder; a sketch and a bucket stand at its start."""
    found: set[Key] = set()
    for path in sorted(folder.rglob("*.parquet")):
        if path.name != "catalog.parquet":
            table = pq.read_table(path, columns=["server", "metric", "time"])
            times = table.column("time").cast("int64").to_pylist()
            names = zip(table.column("server").to_pylist(), table.column("metric").to_pylist(), strict=True)
            found |= {(*name, time * 10**6) for name, time in zip(names, times, strict=True)}
    return found


async def linger(history: History) -> None:
    """Let the time pass after which no query reads a replaced file any more."""
    history.clock.seconds += sealed_store.LINGER_SECONDS
    await Keeper(history, NoDisk()).delete_replaced()


# ── a model of samples ─────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Shard:
    """A shard, and what its samples should be."""

    folder: Path
    model: dict[Key, float] = field(default_factory=dict)

    async def write(self, history: History, at: int, count: int, server: str, seed: int) -> None:
        times = ticks(START + at * 20 * SECOND, count, 20 * SECOND)
        load = decimals(count, seed)
        grown = np.cumsum(np.random.default_rng(seed).integers(-1, 5, count)).astype(float).tolist()
        await write(history, times, (server,), load=load, requests=grown)
        for time, some, other in zip(times, load, grown, strict=True):
            self.model[server, "load", time], self.model[server, "requests", time] = some, other

    async def delete(self, history: History, servers: tuple, metrics: tuple, start: int, end: int) -> None:
        going = {
            key for key in self.model if key[0] in servers and key[1] in metrics and start <= key[2] < end
        }
        told = await delete(history, servers, metrics, start, end, dry=True)
        assert told.samples == len(going)
        done = await delete(history, servers, metrics, start, end)
        assert (done.series, done.samples, done.buckets) == (told.series, told.samples, told.buckets)
        assert done.bytes >= 0
        for key in going:
            del self.model[key]

    async def check(self, history: History) -> None:
        assert await samples(history) == self.model
        assert listed(history) == newest(self.model)
        for aggregation in ("COUNT", "SUM", "INCREASE"):
            metric = ("requests",) if aggregation == "INCREASE" else ("load",)
            answer, from_samples = await both(history, START, END, HOUR, aggregation, metrics=metric)
            np.testing.assert_allclose(answer.values, from_samples.values, rtol=1e-12, atol=1e-9)


times_of_range = st.tuples(st.integers(-50, 4 * 180 + 50), st.integers(1, 4 * 180)).map(
    lambda each: (START + each[0] * 20 * SECOND, START + (each[0] + each[1]) * 20 * SECOND)
)
steps = st.one_of(
    st.tuples(
        st.just("write"), st.integers(0, 4 * 180), st.integers(1, 60), st.sampled_from("abc"), st.integers(0, 1000)
    ),
    st.tuples(
        st.just("delete"),
        st.sampled_from([("a",), ("b",), ("a", "b"), ("a", "b", "c")]),
        st.sampled_from([("load",), ("requests",), ("load", "requests")]),
        st.one_of(times_of_range, st.just((EARLIEST_NANOS, LATEST_NANOS))),
    ),
    st.tuples(st.sampled_from(["seal", "roll", "merge", "restart", "linger", "damage", "expire"])),
)


@given(st.lists(steps, min_size=3, max_size=14))
@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_what_was_deleted_stays_gone_and_all_else_stays(tmp_path_factory, wanted):
    """Writes, deletions, seals, roll-ups, merges, restarts and damaged blocks in any order."""
    shard = Shard(tmp_path_factory.mktemp("deletion"))
    waiting = list(wanted)
    damaged = None
    while waiting or damaged:
        if damaged:
            break_file(damaged)
        async with opened(shard.folder) as history:
            if damaged:
                await Keeper(history, NoDisk()).mend()
                damaged = None
            while waiting:
                step = waiting.pop(0)
                if step[0] == "write":
                    await shard.write(history, *step[1:])
                elif step[0] == "delete":
                    await shard.delete(history, step[1], step[2], *step[3])
                elif step[0] == "seal":
                    await history.seal()
                elif step[0] == "roll":
                    await rolled(history)
                elif step[0] == "merge":
                    await Keeper(history, NoDisk()).merge_files()
                elif step[0] == "expire":
                    await Keeper(history, NoDisk()).expire()
                elif step[0] == "linger":
                    await linger(history)
                    assert {key for key in on_disk(shard.folder / "blocks")} <= shard.model.keys()
                elif step[0] == "restart":
                    break
                elif step[0] == "damage" and history.blocks.files:
                    damaged = history.blocks.files[step_number(wanted, history)].path
                    break
                if step[0] not in {"write", "linger"}:
                    await shard.check(history)
            else:
                await shard.check(history)
                await rolled(history)
                await shard.check(history)
                total = history.ledger.message(history.log)
                for consumer in total.consumers:
                    assert (
                        consumer.delivered_sample_count + consumer.waiting_sample_count + consumer.damaged_sample_count
                        == total.accepted_sample_count
                    )
        assert {key for key in on_disk(shard.folder / "blocks")} <= shard.model.keys()


def step_number(wanted, history: History) -> int:
    return len(wanted) % len(history.blocks.files)


def break_file(path: Path) -> None:
    """Damage a file so that it cannot be opened."""
    path.write_bytes(path.read_bytes()[:-9])

"""Moving and keeping history through the client: exports, imports, deletions, retention."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import aclosing
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest
from conftest import wait_until

from client.mesh import METRICS, NOBODY, frame_of
from openmanager.client import (
    Client,
    ExportChunk,
    Frame,
    LegalHold,
    RetentionPolicy,
    RetentionRule,
    Selector,
    split,
)
from openmanager.errors import (
    AbortedError,
    FailedPreconditionError,
    InvalidArgumentError,
    OpenManagerError,
    UnavailableError,
)
from openmanager.rollup import COLUMNS, Grid

HOUR = 3600 * 10**9


async def each(things: Iterable) -> AsyncIterator:
    for thing in things:
        yield thing


def noisy(servers: int, ticks: int) -> Frame:
    """Return a frame whose values do not compress, so that an export of it takes its time."""
    made = frame_of(servers, ticks)
    values = np.random.default_rng(1).normal(50, 10, made.values.shape)
    return Frame(times=made.times, servers=made.servers, metrics=made.metrics, values=values)


async def written(client: Client, servers: int, ticks: int) -> Frame:
    """Write more samples than a chunk of an export has, and return them."""
    whole = noisy(servers, ticks)
    async for _ in client.import_frames(each(split(whole))):
        pass
    return whole


async def rows_of(chunks: AsyncIterator[ExportChunk]) -> pa.Table:
    return pa.concat_tables([chunk.table() async for chunk in chunks]).unify_dictionaries()


def start_of(frame: Frame) -> int:
    return int(frame.times[0])


# ── exports ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_an_export_has_every_sample_by_metric_server_and_time(client: Client):
    frame = noisy(3, 5)
    await client.write_frame(frame)
    table = await rows_of(client.export_series(start=start_of(frame)))
    rows = list(zip(*(table.column(name).to_pylist() for name in ("metric", "server", "time")), strict=True))
    assert rows == sorted(rows)
    assert len(rows) == 3 * 5 * len(METRICS)
    order = np.argsort(np.array(frame.metrics))
    assert table.column("value").to_pylist() == frame.values[:, :, order].transpose(2, 1, 0).ravel().tolist()


async def test_an_export_tells_how_far_it_is_and_where_from(client: Client):
    frame = noisy(20, 5)
    await client.write_frame(frame)
    chunks = [chunk async for chunk in client.export_series(start=start_of(frame))]
    assert {chunk.series_count for chunk in chunks} == {80}
    assert [chunk.done_series_count for chunk in chunks][-1] == 80
    assert sum(chunk.row_count for chunk in chunks) == frame.sample_count
    assert {chunk.provenance.tier for chunk in chunks} == {"raw"}


async def test_an_export_chooses_series_and_a_range(client: Client):
    frame = noisy(3, 10)
    await client.write_frame(frame)
    start, end = (datetime.fromtimestamp(int(frame.times[at]) / 1e9, UTC) for at in (2, 5))
    table = await rows_of(client.export_series("memory_usage", servers="web-01", start=start, end=end))
    assert table.column("metric").to_pylist() == ["memory_usage"] * 3
    assert table.column("value").to_pylist() == frame.values[2:5, 1, 1].tolist()


async def test_an_export_that_is_cut_goes_on_without_loss_or_repetition(client: Client, road):
    whole = await written(client, 40, 4000)
    away: list[OpenManagerError] = []
    road.cut_after = 3 << 20
    async with asyncio.timeout(50), Client(road.address) as far:
        async with aclosing(far.export_series(start=start_of(whole), on_away=away.append)) as export:
            chunks = [chunk async for chunk in export]
    key = ["metric", "server", "time"]
    plain = pa.schema([("metric", pa.string()), ("server", pa.string()), ("time", pa.timestamp("ms", "UTC"))])
    keys = pa.concat_tables([chunk.table().select(key).cast(plain) for chunk in chunks])
    assert keys.num_rows == keys.group_by(key).aggregate([]).num_rows == whole.sample_count
    assert keys.equals(keys.sort_by([(name, "ascending") for name in key]))
    assert len(away) >= 1


async def test_an_export_goes_on_by_the_token_of_the_last_chunk(client: Client):
    frame = await written(client, 20, 4000)
    start = start_of(frame)
    first = await anext(client.export_series(start=start))
    rest = await rows_of(client.export_series(start=start, resume_token=first.resume_token))
    assert first.row_count + len(rest) == frame.sample_count
    with pytest.raises(InvalidArgumentError):
        await anext(client.export_series("cpu_usage", start=start, resume_token=first.resume_token))


async def test_an_export_of_a_tier_that_does_not_exist_names_those_that_do(client: Client):
    await client.write_frame(noisy(1, 1))
    with pytest.raises(InvalidArgumentError, match="5m"):
        await anext(client.export_series(start=1, tier="7m"))


async def test_an_export_that_never_began_fails_at_once():
    async with Client(NOBODY) as client:
        with pytest.raises(UnavailableError):
            await anext(client.export_series(start=1))


# ── imports and deletions ──────────────────────────────────────────────────────────────────────────────────────────


async def test_imported_frames_may_lie_in_the_future(client: Client):
    later = frame_of(2, 3, end=time.time_ns() + 48 * HOUR)
    acks = [ack async for ack in client.import_frames(each([later, frame_of(2, 3)]))]
    assert [(ack.accepted_sample_count, ack.rejected_sample_count) for ack in acks] == [(24, 0), (24, 0)]
    table = await rows_of(client.export_series(start=start_of(later), end=int(later.times[-1]) + 1))
    assert len(table) == 24


async def test_imported_buckets_are_in_their_tier(client: Client):
    await client.write_frame(frame_of(1, 1))
    width = 300 * 10**9
    times = (time.time_ns() // width - np.arange(20, 0, -1)) * width
    columns = {name: np.full((20, 1, 1), np.nan if name in {"first", "growth"} else 30.0) for name in COLUMNS}
    grid = Grid(times=times, servers=("web-00",), metrics=("old.metric",), columns=columns)
    acks = [ack async for ack in client.import_rollups("5m", each([grid]))]
    assert [(ack.accepted_bucket_count, ack.rejected_bucket_count) for ack in acks] == [(20, 0)]
    table = await rows_of(client.export_series("old.metric", start=int(times[0]), tier="5m"))
    assert table.column("count").to_pylist() == [30] * 20
    assert table.column("first").null_count == 20


async def test_a_deletion_is_shown_before_it_is_done(client: Client):
    frame = frame_of(2, 10)
    await client.write_frame(frame)
    end = int(frame.times[5])
    would = await client.delete_series("memory_usage", servers="web-01", end=end, validate_only=True)
    assert (would.series_count, would.sample_count) == (1, 5)
    assert len(await rows_of(client.export_series("memory_usage", start=start_of(frame)))) == 20
    done = await client.delete_series("memory_usage", servers="web-01", end=end)
    assert (done.series_count, done.sample_count) == (1, 5)
    assert len(await rows_of(client.export_series("memory_usage", start=start_of(frame)))) == 15


async def test_a_deletion_of_everything_by_accident_is_refused(client: Client):
    with pytest.raises(InvalidArgumentError):
        await client.delete_series()


# ── retention ──────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_the_tiers_are_listed_with_what_they_hold(client: Client):
    await client.write_frame(frame_of(2, 10))
    found = await client.retention.tiers()
    assert [(tier.name, tier.resolution) for tier in found.tiers] == [
        ("raw", None),
        ("5m", timedelta(minutes=5)),
        ("1h", timedelta(hours=1)),
    ]

    async def looked_at_the_disk() -> bool:
        return (await client.retention.tiers()).disk.limit_bytes > 0

    await wait_until(looked_at_the_disk)


async def test_a_policy_is_not_changed_while_nobody_can_store_it(client: Client):
    assert await client.retention.get() == RetentionPolicy()
    with pytest.raises(UnavailableError):
        await client.retention.update(RetentionPolicy())


async def test_buckets_are_rebuilt_on_demand(client: Client):
    await client.write_frame(frame_of(2, 10))
    assert await client.retention.rebuild("1h", start=time.time_ns() - 2 * HOUR) >= 0
    with pytest.raises(InvalidArgumentError):
        await client.retention.rebuild("7m", start=1)


async def test_a_policy_is_stored_and_a_hold_keeps_its_series(mesh):
    name = f"hold-{secrets.token_hex(4)}"
    async with Client(mesh.gateway) as client:
        before = await client.retention.get()
        rule = RetentionRule(tier="raw", selector=Selector(metrics=("debug.*",)), retention=timedelta(days=2))
        hold = LegalHold(
            name=name,
            selector=Selector(metrics=("cpu_usage",), where="role = nothing OR role != nothing"),
            end_time=datetime(2030, 1, 1, tzinfo=UTC),
            reason="audit",
        )
        wanted = RetentionPolicy(rules=(rule,), holds=(hold,), etag=before.etag)
        stored = await client.retention.update(wanted)
        assert (stored.rules, stored.holds) == ((rule,), (hold,))
        with pytest.raises(AbortedError):
            await client.retention.update(RetentionPolicy(etag="stale"))

        async def held() -> bool:
            try:
                await client.delete_series("cpu_usage", end=datetime(2020, 1, 2, tzinfo=UTC))
            except FailedPreconditionError as err:
                return err.reason == "LEGAL_HOLD"
            return False

        await wait_until(held)
        after = await client.retention.update(RetentionPolicy(etag=stored.etag))
        assert (after.rules, after.holds) == ((), ())

"""Reading through the client."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from client.mesh import METRICS, NOBODY, STEP, frame_of, replica_filled, servers_known
from openmanager.api.timeseries.v1.timeseries_pb2 import QueryRangeResponse
from openmanager.client import Aggregation, Client, GroupBy, SeriesName, ServerState, StorageState
from openmanager.client.history import range_request, selector
from openmanager.client.rpc import QUERY_RANGE
from openmanager.errors import (
    DeadlineExceededError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    OpenManagerError,
    UnavailableError,
)


def at(nanos: int) -> datetime:
    return datetime.fromtimestamp(nanos / 1e9, UTC)


async def test_buckets_come_as_one_array(client: Client):
    frame = frame_of(3, 30)
    await client.write_frame(frame)
    start, end = int(frame.times[0]), int(frame.times[-1]) + STEP
    found = await client.query_range("cpu_usage", start=at(start), end=at(end), step=timedelta(seconds=10))
    assert found.series == tuple(SeriesName(server=server, metric="cpu_usage") for server in frame.servers)
    assert np.array_equal(found.times, frame.times)
    assert np.array_equal(found.values, frame.values[:, :, 0].T)
    assert found.provenance.tier == "raw"
    assert found.raw == ()


async def test_raw_samples_come_with_their_own_times(client: Client):
    frame = frame_of(2, 30)
    await client.write_frame(frame)
    found = await client.query_range(["cpu_usage"], start=int(frame.times[0]), servers="web-01")
    assert [name.server for name in found.series] == ["web-01"]
    assert np.array_equal(found.raw[0].times, frame.times)
    assert np.array_equal(found.raw[0].values, frame.values[:, 1, 0])
    assert found.values.shape == (1, 0)


async def test_groups_are_pooled_and_named(client: Client):
    frame = frame_of(4, 6)
    await client.write_frame(frame)
    found = await client.query_range(
        "memory_usage",
        start=int(frame.times[0]),
        end=int(frame.times[-1]) + STEP,
        where="environment = production OR environment = staging",
        step=timedelta(days=1),
        aggregation=Aggregation.MAX,
        group_by=GroupBy.ENVIRONMENT,
    )
    assert [name.group for name in found.series] == ["production", "staging"]
    assert np.nanmax(found.values, axis=1).tolist() == [25.0, 35.0]


async def test_a_selector_that_chooses_nothing_is_an_empty_answer(client: Client):
    found = await client.query_range("nothing", start=time.time_ns() - STEP, step=timedelta(seconds=10))
    assert found.series == ()
    assert found.values.shape[0] == 0
    raw = await client.query_range("nothing", start=time.time_ns() - STEP)
    assert raw.raw == ()


async def test_a_time_without_a_zone_is_refused(client: Client):
    with pytest.raises(InvalidArgumentError, match="time zone") as caught:
        await client.query_range("cpu_usage", start=datetime(2026, 7, 1))  # noqa: DTZ001  (that is the point)
    assert caught.value.field == "start"


async def test_a_word_that_is_none_is_refused_with_those_there_are(client: Client):
    with pytest.raises(InvalidArgumentError, match="must be one of MEAN, MIN") as caught:
        await client.query_range("cpu_usage", start=0, aggregation="MEDIAN")
    assert caught.value.field == "aggregation"


async def test_the_newest_samples_come_as_frames(client: Client):
    frame = frame_of(3, 4)
    ack = await client.write_frame(frame)
    found = await client.query_latest(["cpu_usage", "disk_usage"])
    assert found.position == ack.position
    assert [each.times.tolist() for each in found.frames] == [[int(frame.times[-1])]]
    assert np.array_equal(found.frames[0].values[0], frame.values[-1][:, [0, 2]])


async def test_series_are_listed(client: Client):
    frame = frame_of(2, 1)
    await client.write_frame(frame)
    listed = [(series.server, series.metric) async for series in client.list_series()]
    assert listed == sorted((server, metric) for server in frame.servers for metric in METRICS)
    some = [series async for series in client.list_series("cpu*", servers=["web-01"])]
    assert [(series.metric, series.last_time) for series in some] == [("cpu_usage", at(int(frame.times[-1])))]
    assert len([series async for series in client.list_series(limit=3)]) == 3


async def test_a_server_comes_with_all_its_metrics(client: Client):
    frame = frame_of(3, 4)
    await client.write_frame(frame)
    await servers_known(client, 3)
    server = await client.get_server("web-02")
    assert server.state is ServerState.HEALTHY
    assert server.metrics == METRICS
    assert np.array_equal(server.values, frame.values[-1, 2])
    assert server.memory_usage == 25.0
    assert server.labels == {"rack": "r2"}
    assert server.sample_time == at(int(frame.times[-1]))
    assert server.interval == timedelta(seconds=10)
    assert server.provenance.source == "replica"
    assert not server.provenance.degraded


async def test_a_server_that_never_sent_does_not_exist(client: Client):
    await client.write_frame(frame_of(1, 1))
    await servers_known(client, 1)
    with pytest.raises(NotFoundError) as caught:
        await client.get_server("nobody")
    assert caught.value.resource == "server/nobody"


async def test_lists_go_on_over_pages(client: Client):
    count = 2300
    times = np.array([time.time_ns() // STEP * STEP])
    ids = [f"s-{k:04d}" for k in range(count)]
    await client.write(times=times, servers=ids, metrics=["cpu_usage"], values=np.ones((1, count, 1)))
    await servers_known(client, count)
    assert [server.id async for server in client.list_servers()] == ids
    assert [server.id async for server in client.list_servers(limit=1500)] == ids[:1500]
    chosen = [server.id async for server in client.list_servers("id : s-22", order_by="id desc", limit=3)]
    assert chosen == ["s-2299", "s-2298", "s-2297"]


async def test_the_summary_counts_the_fleet(client: Client):
    await client.write_frame(frame_of(10, 4))
    await servers_known(client, 10)
    summary = await client.fleet_summary()
    assert (summary.total, summary.healthy, summary.warning, summary.critical) == (10, 7, 1, 2)
    assert summary.series_count == 40
    assert summary.mean_memory_usage == 50.0
    assert [(group.name, group.total) for group in summary.environments] == [("production", 5), ("staging", 5)]


async def test_the_board_has_a_row_for_every_service_and_books_that_balance(client: Client):
    await client.write_frame(frame_of(2, 3))
    await replica_filled(client)
    board = await client.storage_status()
    assert [(service.service, service.state) for service in board.services] == [
        ("gateway", StorageState.OK),
        ("timeseries", StorageState.OK),
        ("cache", StorageState.OK),
        ("metadata", StorageState.DOWN),
        ("analysis", StorageState.DOWN),
        ("simulator", StorageState.DOWN),
    ]
    assert board.overall_state is StorageState.DOWN
    assert not board.overall_state.is_useful
    assert board.ledger is not None
    assert board.ledger.accepted_sample_count == 24
    assert board.ledger.balanced
    assert (await client.ledger()).head_position == 1


async def test_entries_live_until_they_are_deleted_or_expire(client: Client):
    stored = await client.entries.set("session", "k", b"\x00value", ttl=timedelta(minutes=1))
    assert stored.expire_time is not None
    assert timedelta(seconds=50) < stored.expire_time - datetime.now(UTC) <= timedelta(minutes=1)
    assert (await client.entries.get("session", "k")).value == b"\x00value"
    assert await client.entries.delete("session", "k")
    assert not await client.entries.delete("session", "k")
    with pytest.raises(NotFoundError):
        await client.entries.get("session", "k")


async def test_a_service_that_is_away_is_named(client: Client):
    with pytest.raises(UnavailableError, match="metadata cannot be reached"):
        await client.inventory.get("web-01")
    with pytest.raises(UnavailableError, match="simulator cannot be reached"):
        await client.simulation.get()


async def test_a_gateway_that_is_away_is_told_at_once():
    async with Client(NOBODY) as client:
        with pytest.raises(UnavailableError, match="the gateway cannot be reached"):
            await client.fleet_summary()


async def test_a_gateway_that_does_not_answer_is_given_up_in_time(road):
    async with Client(road.address) as client:
        await client.storage_status()
        road.open.clear()
        start = time.monotonic()
        with pytest.raises(DeadlineExceededError):
            await client.storage_status(seconds=0.3)
        assert time.monotonic() - start < 2


async def test_a_closed_client_says_so():
    with pytest.raises(FailedPreconditionError, match="async with"):
        await Client(NOBODY).fleet_summary()


async def test_every_error_has_a_stable_reason(client: Client):
    with pytest.raises(OpenManagerError) as caught:
        _ = [server async for server in client.list_servers("nonsense ~ 1")]
    assert caught.value.reason in {"INVALID_FIELD", "SERVICE_UNAVAILABLE", "STORE_UNAVAILABLE"}


@pytest.mark.parametrize("step", [None, timedelta(seconds=10)])
async def test_series_come_one_by_one_or_many_in_a_message_and_are_the_same(client: Client, step: timedelta | None):
    frame = frame_of(3, 30)
    await client.write_frame(frame)
    request = range_request(
        selector((), frame.servers, ""),
        start=int(frame.times[0]),
        end=int(frame.times[-1]) + STEP,
        step=step,
        aggregation="MEAN",
        group_by="SERVER",
    )

    async def replies(many: int) -> list[QueryRangeResponse]:
        request.series_per_message = many
        header, *rest = [reply async for reply in client.rpc.stream(QUERY_RANGE, request, seconds=5)]
        assert header.header.series_count == len(frame.servers) * len(frame.metrics)
        return rest

    single = [reply.series for reply in await replies(0)]
    assert len(single) == len(frame.servers) * len(frame.metrics)
    for many in (1, 2, 5, 2000):
        batches = [list(reply.batch.series) for reply in await replies(many)]
        assert [len(batch) for batch in batches[:-1]] == [many] * (len(batches) - 1)
        assert [series for batch in batches for series in batch] == single
    with pytest.raises(InvalidArgumentError, match="negative") as caught:
        await replies(-1)
    assert caught.value.field == "series_per_message"

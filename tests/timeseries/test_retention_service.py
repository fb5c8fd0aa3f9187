"""Retention and imports over gRPC: what may be asked, where it is stored, who hears of it."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import numpy as np
import pytest
from conftest import Mesh, secret, wait_until
from openmanager_metadata.backends.postgresql import PostgresqlDatabase
from openmanager_metadata.config import MetadataConfig
from openmanager_metadata.policy import Policies
from openmanager_metadata.service import PolicyService
from openmanager_timeseries import policy_store, rollup_import
from openmanager_timeseries.history import History
from openmanager_timeseries.policy_store import MetadataPolicies, apply, follow, look
from openmanager_timeseries.retention import Hold, Policy, Rule, Selector
from openmanager_timeseries.retention_service import ImportService, RetentionService
from timeseries.shard import (
    DAY,
    END,
    HOUR,
    MINUTE,
    NOW,
    SECOND,
    StillClock,
    ask,
    decimals,
    grid,
    opened,
    rolled,
    ticks,
    write,
)

from openmanager import durable
from openmanager.api.status.v1 import status_pb2
from openmanager.api.timeseries.v1 import timeseries_pb2 as pb
from openmanager.config import Secret
from openmanager.errors import (
    AbortedError,
    InvalidArgumentError,
    OpenManagerError,
    OutOfRangeError,
    Reason,
    ResourceExhaustedError,
    UnavailableError,
)
from openmanager.frame import length_delimited
from openmanager.rollup import COLUMNS, Grid, encode_grid
from openmanager.runtime.module import ServerConfig, Service
from openmanager.runtime.peer import Peer
from openmanager.runtime.server import Server

PACKAGE = "openmanager.api.timeseries.v1"
NOBODY = "127.0.0.1:1"
ROLLUPS = f"/{PACKAGE}.ImportService/ImportRollups"


@contextlib.asynccontextmanager
async def served(servicers: dict[str, object]) -> AsyncIterator[Peer]:
    server = Server(
        service=Service(servicers=servicers),
        name="test",
        address="127.0.0.1:0",
        config=ServerConfig(),
        clock=StillClock(),
    )
    async with server.running(), Peer("the test", f"127.0.0.1:{server.port}") as peer:
        yield peer


@pytest.fixture
async def policies(mesh: Mesh) -> AsyncIterator[MetadataPolicies]:
    """A metadata service with a database of its own."""
    whole = secret(mesh, "metadata", "DATABASE_URL")
    name = f"t_{uuid.uuid4().hex[:12]}"
    admin = await asyncpg.connect(whole)
    try:
        await admin.execute(f"CREATE DATABASE {name}")
        url = urlunsplit(urlsplit(whole)._replace(path=f"/{name}"))
        database = PostgresqlDatabase(MetadataConfig(database_url=Secret(url)))
        async with database.connecting():

            async def answers() -> bool:
                with contextlib.suppress(OSError):
                    return (await database.look()).state == status_pb2.STORAGE_STATE_OK
                return False

            await wait_until(answers)
            servicers = {"openmanager.api.metadata.v1.PolicyService": PolicyService(Policies(database))}
            async with served(servicers) as peer:
                made = MetadataPolicies(peer)
                made.database = database
                yield made
        await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
    finally:
        await admin.close()


@contextlib.asynccontextmanager
async def nobody() -> AsyncIterator[MetadataPolicies]:
    async with Peer("metadata", NOBODY) as peer:
        yield MetadataPolicies(peer)


class Calls:
    """The methods of a served history."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer

    async def get(self) -> pb.GetRetentionPolicyResponse:
        return await self._call("GetRetentionPolicy", pb.GetRetentionPolicyRequest(), pb.GetRetentionPolicyResponse)

    async def update(self, policy: pb.RetentionPolicy | None) -> pb.RetentionPolicy:
        request = pb.UpdateRetentionPolicyRequest(policy=policy)
        return (await self._call("UpdateRetentionPolicy", request, pb.UpdateRetentionPolicyResponse)).policy

    async def tiers(self) -> pb.ListTiersResponse:
        return await self._call("ListTiers", pb.ListTiersRequest(), pb.ListTiersResponse)

    async def rebuild(self, tier: str, start: int | None, end: int | None = None) -> int:
        request = pb.RebuildTierRequest(tier=tier)
        if start is not None:
            request.start_time.FromNanoseconds(start)
        if end is not None:
            request.end_time.FromNanoseconds(end)
        return (await self._call("RebuildTier", request, pb.RebuildTierResponse)).waiting_bucket_count

    async def _call(self, name: str, request, reply):
        return await self._peer.unary(f"/{PACKAGE}.RetentionService/{name}", request, reply, seconds=10)

    async def send(self, requests: AsyncIterator[bytes] | Iterable[bytes]) -> AsyncIterator[tuple[int, int]]:
        stream = requests if hasattr(requests, "__anext__") else _each(requests)
        async for reply in self._peer.bidi_stream(ROLLUPS, stream, seconds=30):
            ack = pb.ImportRollupsResponse.FromString(reply)
            yield ack.accepted_bucket_count, ack.rejected_bucket_count


async def _each(requests: Iterable[bytes]) -> AsyncIterator[bytes]:
    for request in requests:
        yield request


@contextlib.asynccontextmanager
async def calls(history: History, policies: MetadataPolicies) -> AsyncIterator[Calls]:
    servicers = {
        f"{PACKAGE}.RetentionService": RetentionService(history, policies),
        f"{PACKAGE}.ImportService": ImportService(history),
    }
    async with served(servicers) as peer:
        yield Calls(peer)


def wanted(etag: str = "") -> pb.RetentionPolicy:
    policy = pb.RetentionPolicy(etag=etag)
    rule = policy.rules.add(tier="raw")
    rule.selector.metrics.append("load")
    rule.retention.FromNanoseconds(3 * DAY)
    held = policy.holds.add(name="case-7", reason="because")
    held.selector.server_filter = "role = web"
    held.start_time.FromNanoseconds(END - DAY)
    return policy


# ── policies ───────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_policy_is_stored_applied_and_told_with_where_it_is_from(policies, tmp_path: Path):
    async with opened(tmp_path) as history, calls(history, policies) as client:
        empty = await client.get()
        assert (list(empty.policy.rules), empty.policy.etag, empty.provenance.source) == ([], "", "postgresql")
        stored = await client.update(wanted())
        assert stored.etag
        assert stored.HasField("update_time")
        assert [rule.retention.ToNanoseconds() for rule in stored.rules] == [3 * DAY]
        assert not stored.holds[0].HasField("end_time")
        told = await client.get()
        assert (told.policy, told.provenance.source, told.provenance.degraded) == (stored, "postgresql", False)
        assert history.retention.policy.holds == (
            Hold(name="case-7", selector=Selector(server_filter="role = web"), start=END - DAY, reason="because"),
        )
        await write(history, [NOW - 4 * DAY], load=[1.0])
        again = await client.update(wanted(stored.etag))
        assert again.etag != stored.etag
        for stale in (stored.etag, "nonsense"):
            with pytest.raises(AbortedError):
                await client.update(wanted(stale))
        assert history.retention.policy.etag == again.etag
    async with opened(tmp_path) as history, nobody() as away, calls(history, away) as client:
        copy = await client.get()
        assert (copy.policy, copy.provenance.source, copy.provenance.degraded) == (again, "snapshot", True)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda policy: policy.rules[0].ClearField("retention"), "policy.rules.retention"),
        (lambda policy: policy.rules[0].retention.FromNanoseconds(0), "policy.rules.retention"),
        (lambda policy: policy.rules[0].retention.FromNanoseconds(-DAY), "policy.rules.retention"),
        (lambda policy: policy.rules[0].retention.FromSeconds(10**11), "policy.rules.retention"),
        (lambda policy: setattr(policy.rules[0], "tier", "7m"), "policy.rules.tier"),
        (
            lambda policy: setattr(policy.rules[0].selector, "server_filter", "x ="),
            "policy.rules.selector.server_filter",
        ),
        (lambda policy: policy.rules[0].selector.servers.extend(["x"] * 10_001), "policy.rules.selector.servers"),
        (lambda policy: policy.rules.extend([policy.rules[0]] * 100), "policy.rules"),
        (lambda policy: policy.holds.add(name="case-7"), "policy.holds.name"),
        (lambda policy: policy.holds.add(), "policy.holds.name"),
        (lambda policy: policy.holds[0].end_time.FromNanoseconds(END - DAY), "policy.holds.end_time"),
        (lambda policy: setattr(policy.holds[0].start_time, "nanos", -1), "policy.holds.start_time"),
        (lambda policy: policy.holds[0].selector.metrics.append("x{a"), "policy.holds.selector.metrics"),
        (lambda policy: setattr(policy, "etag", "x" * 65), "policy.etag"),
    ],
)
async def test_a_bad_policy_is_refused_by_its_field_and_nothing_changes(tmp_path: Path, change, field: str):
    async with opened(tmp_path) as history, nobody() as away, calls(history, away) as client:
        policy = wanted()
        change(policy)
        with pytest.raises(InvalidArgumentError) as failure:
            await client.update(policy)
        assert failure.value.field == field
        assert history.retention.policy == Policy()


async def test_a_policy_and_a_time_must_be_there_and_possible(tmp_path: Path):
    async with opened(tmp_path) as history, nobody() as away, calls(history, away) as client:
        with pytest.raises(InvalidArgumentError) as failure:
            await client.update(None)
        assert failure.value.field == "policy"
        policy = wanted()
        policy.holds[0].end_time.FromSeconds(10**10)
        with pytest.raises(OutOfRangeError) as late:
            await client.update(policy)
        assert late.value.field == "policy.holds.end_time"


async def test_while_the_metadata_service_is_away_nothing_changes(tmp_path: Path):
    async with opened(tmp_path) as history, nobody() as away, calls(history, away) as client:
        await apply(history, Policy(rules=(Rule(tier="raw", selector=Selector(), retention=5 * DAY),), etag="v1"))
        before = (tmp_path / "retention.json").read_bytes()
        with pytest.raises(UnavailableError):
            await client.update(wanted())
        assert ((tmp_path / "retention.json").read_bytes(), history.retention.policy.etag) == (before, "v1")
        told = await client.get()
        assert (told.provenance.source, told.policy.etag, len(told.policy.rules)) == ("snapshot", "v1", 1)


class _Hung:
    """A metadata service that takes a call and never answers."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()

    async def GetPolicy(self, request, context):
        self.asked.set()
        await asyncio.sleep(3600)

    UpdatePolicy = ListPolicies = DeletePolicy = GetPolicy


async def test_a_metadata_service_that_hangs_is_away(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(policy_store, "SECONDS", 0.2)
    async with served({"openmanager.api.metadata.v1.PolicyService": _Hung()}) as peer:
        policies = MetadataPolicies(peer)
        async with opened(tmp_path) as history, calls(history, policies) as client:
            with pytest.raises(UnavailableError):
                await client.update(wanted())
            assert (await client.get()).provenance.source == "snapshot"


async def test_the_change_of_another_instance_is_followed(policies, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(policy_store, "FOLLOW_SECONDS", 0.01)
    async with opened(tmp_path / "a") as one, opened(tmp_path / "b") as other, calls(other, policies) as client:
        following = asyncio.create_task(follow(policies, one))
        try:
            stored = await client.update(wanted())

            kept = tmp_path / "a" / "retention.json"

            async def heard() -> bool:
                return one.retention.policy.etag == stored.etag

            async def written() -> bool:
                return kept.exists() and durable.load(kept)["policy"]["etag"] == stored.etag

            await wait_until(heard)
            await wait_until(written)

            def full(*_, **__):
                raise OSError(28, "no space")

            with pytest.MonkeyPatch.context() as patch:  # a full disk does not end it
                patch.setattr(durable, "replace", full)
                stored = await client.update(wanted(stored.etag))
                await wait_until(heard)
            stored = await client.update(wanted(stored.etag))
            await wait_until(heard)
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)


async def test_what_was_read_before_a_change_does_not_undo_it(tmp_path: Path):
    """A hold that was just set must not be forgotten for a minute because an older answer was under way."""

    class Slow:
        def __init__(self) -> None:
            self.asked, self.answer = asyncio.Event(), asyncio.Event()

        async def get(self) -> Policy:
            self.asked.set()
            await self.answer.wait()
            return Policy(etag="v1")

    async with opened(tmp_path) as history:
        slow = Slow()
        looking = asyncio.create_task(look(slow, history))
        await slow.asked.wait()
        newer = Policy(holds=(Hold(name="x", selector=Selector()),), etag="v2")
        await apply(history, newer)
        slow.answer.set()
        await looking
        assert history.retention.policy == newer


async def test_a_policy_that_its_place_has_lost_goes_on(policies, tmp_path: Path):
    """A database that comes back empty must not end a legal hold."""
    async with opened(tmp_path) as history, calls(history, policies) as client:
        stored = await client.update(wanted())
        await policies.database.fetch("DELETE FROM policies RETURNING id")
        await look(policies, history)
        assert history.retention.policy.etag == stored.etag
        told = await client.get()
        assert (told.policy, told.provenance.source) == (stored, "snapshot")
        assert "goes on" in told.provenance.reason
        with pytest.raises(AbortedError):
            await client.update(wanted(stored.etag))
        await client.update(pb.RetentionPolicy())
        await look(policies, history)
        assert (history.retention.policy.holds, (await client.get()).provenance.source) == ((), "postgresql")


async def test_a_damaged_copy_is_replaced_by_what_the_place_of_policies_says(policies, tmp_path: Path):
    async with opened(tmp_path) as history, calls(history, policies) as client:
        stored = await client.update(wanted())
    state = tmp_path / "retention.json"
    state.write_bytes(state.read_bytes()[:-1])
    async with opened(tmp_path) as history, nobody() as away, calls(history, away) as client:
        assert not history.retention.certain
        with pytest.raises(UnavailableError):
            await client.get()
        await look(policies, history)
        assert (history.retention.certain, history.retention.policy.etag) == (True, stored.etag)


# ── tiers ──────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_tiers_tell_what_they_hold_and_what_waits(tmp_path: Path):
    async with opened(tmp_path, sketch_metrics="load") as history, nobody() as away, calls(history, away) as client:
        empty = await client.tiers()
        assert [(tier.name, tier.row_count, tier.HasField("oldest_time")) for tier in empty.tiers] == [
            ("raw", 0, False),
            ("5m", 0, False),
            ("1h", 0, False),
        ]
        await write(history, ticks(END - 2 * HOUR, 720), load=decimals(720))
        await history.seal()
        waiting = {tier.name: tier.waiting_bucket_count for tier in (await client.tiers()).tiers}
        assert waiting == {"raw": 0, "5m": 24, "1h": 2}
        await rolled(history)
        raw, fine, coarse = (await client.tiers()).tiers
        assert [tier.row_count for tier in (raw, fine, coarse)] == [720, 24, 2]
        assert (fine.oldest_time.ToNanoseconds(), fine.newest_time.ToNanoseconds()) == (END - 2 * HOUR, END)
        assert raw.newest_time.ToNanoseconds() == END - 10 * SECOND + 1
        assert (fine.file_count, list(fine.sketch_metrics)) == (
            len(history.roller.tiers[0].buckets.files) + len(history.roller.tiers[0].sketches.files),
            ["load"],
        )
        assert await client.rebuild("1h", END - HOUR) == 1
        assert await client.rebuild("", END - HOUR, END) == 12 + 1
        for start, end, field in ((None, None, "start_time"), (END, END, "end_time"), (END, END - 1, "end_time")):
            with pytest.raises(InvalidArgumentError) as failure:
                await client.rebuild("", start, end)
            assert failure.value.field == field
        with pytest.raises(InvalidArgumentError, match="tier must be one of 5m, 1h, or empty"):
            await client.rebuild("raw", END - HOUR)


# ── imports ────────────────────────────────────────────────────────────────────────────────────────────────────────

LONG_AGO = (END // DAY - 30) * DAY


def request(tier: str, what: Grid) -> bytes:
    return length_delimited(1, encode_grid(tier, what))


def hours(first: int, count: int, server: str = "a", samples: float = 360, value: float = 2.0) -> bytes:
    return request("1h", grid(ticks(LONG_AGO + first * HOUR, count, HOUR), samples, value, server))


async def sums(history: History, count: int = 24, **changes) -> dict[str, list]:
    found = await ask(history, LONG_AGO, LONG_AGO + count * HOUR, HOUR, "SUM", **changes)
    assert found.partial_reason == ""
    return {name.server: values.tolist() for name, values in zip(found.names, found.values, strict=True)}


async def test_acknowledgements_come_in_order_and_make_few_files(tmp_path: Path):
    async with opened(tmp_path) as history, nobody() as away, calls(history, away) as client:
        requests = [hours(hour, 1, server) for server in ("a", "b", "c") for hour in range(24)]
        requests += [hours(0, 48, f"s{at:03d}") for at in range(100)]
        acks = [ack async for ack in client.send(requests)]
        assert acks == [(1, 0)] * 72 + [(48, 0)] * 100
        assert len(history.roller.tiers[1].buckets.files) == 1
        found = await sums(history)
        assert len(found) == 103
        assert all(values == [720.0] * 24 for values in found.values())


async def test_a_pause_brings_the_acknowledgements_of_what_was_sent(tmp_path: Path):
    async with opened(tmp_path) as history, nobody() as away, calls(history, away) as client:
        go_on = asyncio.Event()

        async def requests() -> AsyncIterator[bytes]:
            for hour in range(3):
                yield hours(hour, 1)
            await go_on.wait()
            yield hours(3, 1)

        got = []
        async for ack in client.send(requests()):
            got.append(ack)
            if len(got) == 3:
                assert (await sums(history, 3))["a"] == [720.0] * 3
                go_on.set()
        assert got == [(1, 0)] * 4


async def test_of_duplicates_in_one_stream_the_one_with_more_samples_stays(tmp_path: Path):
    async with opened(tmp_path) as history, nobody() as away, calls(history, away) as client:
        requests = [
            hours(0, 2, samples=100),
            hours(0, 2, samples=100, value=3.0),
            hours(1, 2, samples=200),
            hours(0, 1, samples=50),
            hours(0, 3, "b"),
            hours(2, 2, "b"),
        ]
        acks = [ack async for ack in client.send(requests)]
        assert acks == [(2, 0), (0, 2), (2, 0), (0, 1), (3, 0), (1, 1)]
        found = await sums(history, 4)
        assert found["a"][:3] == [200.0, 400.0, 400.0]
        assert found["b"] == [720.0] * 4


async def test_an_empty_request_between_hides_no_duplicate(tmp_path: Path):
    async with opened(tmp_path) as history, nobody() as away, calls(history, away) as client:
        nothing = request("1h", grid([], 1, 1.0))
        acks = [ack async for ack in client.send([hours(0, 3), nothing, hours(1, 3, samples=400), nothing])]
        assert acks == [(3, 0), (0, 0), (3, 0), (0, 0)]
        assert (await sums(history, 4))["a"] == [720.0, 800.0, 800.0, 800.0]


async def test_servers_and_metrics_in_any_order_and_sets_are_kept_apart(tmp_path: Path):
    def mixed(servers: tuple[str, ...], metrics: tuple[str, ...], seed: int) -> tuple[bytes, Grid]:
        shape = (2, len(servers), len(metrics))
        values = np.round(np.random.default_rng(seed).normal(50, 5, shape), 2)
        columns = dict.fromkeys(COLUMNS, values)
        columns["count"] = np.where(np.random.default_rng(seed).random(shape) < 0.2, 0.0, 7.0)
        columns["first"], columns["growth"] = np.full(shape, np.nan), np.full(shape, np.nan)
        made = Grid(times=np.asarray(ticks(LONG_AGO, 2, HOUR)), servers=servers, metrics=metrics, columns=columns)
        return request("1h", made), made

    async with opened(tmp_path) as history, nobody() as away, calls(history, away) as client:
        sent = [
            mixed(("c", "a"), ("y", "x"), 1),
            mixed(("a", "c"), ("z",), 2),
            mixed(("b", "d"), ("x", "z"), 3),
            mixed(("e",), ("y", "x"), 4),
        ]
        acks = [ack async for ack in client.send([each for each, _ in sent])]
        assert acks == [(int((made.columns["count"] > 0).sum()), 0) for _, made in sent]
        assert len(history.roller.tiers[1].buckets.files) == 1
        found = await ask(history, LONG_AGO, LONG_AGO + 2 * HOUR, HOUR, "MAX")
        values = {(name.server, name.metric): row for name, row in zip(found.names, found.values, strict=True)}
        for _, made in sent:
            for s, server in enumerate(made.servers):
                for m, metric in enumerate(made.metrics):
                    right = np.where(made.columns["count"] > 0, made.columns["max"], np.nan)[:, s, m]
                    mine = values.get((server, metric), np.full(2, np.nan))
                    np.testing.assert_array_equal(mine, right)


@pytest.mark.parametrize(
    ("bad", "field", "error"),
    [
        (b"\xff", "", InvalidArgumentError),
        (length_delimited(1, b"\xff"), "", InvalidArgumentError),
        (pb.ImportRollupsRequest().SerializeToString(), "frame", InvalidArgumentError),
        (request("", grid([LONG_AGO], 1, 1.0)), "frame.tier", InvalidArgumentError),
        (request("7m", grid([LONG_AGO], 1, 1.0)), "frame.tier", InvalidArgumentError),
        (request("raw", grid([LONG_AGO], 1, 1.0)), "frame.tier", InvalidArgumentError),
        (request("1h", grid([LONG_AGO + 1], 1, 1.0)), "frame.time_unix_nanos", InvalidArgumentError),
        (request("1h", grid([LONG_AGO, LONG_AGO], 1, 1.0)), "frame.time_unix_nanos", InvalidArgumentError),
        (request("1h", grid([HOUR], 1, 1.0)), "frame.time_unix_nanos", OutOfRangeError),
        (request("1h", grid([LONG_AGO], 1.5, 1.0)), "frame.count", InvalidArgumentError),
        (request("1h", grid([LONG_AGO], 1, float("inf"))), "frame.min", InvalidArgumentError),
    ],
)
async def test_a_bad_request_ends_the_stream_and_those_before_it_stay(tmp_path: Path, bad: bytes, field: str, error):
    async with opened(tmp_path) as history, nobody() as away, calls(history, away) as client:
        got = []
        with pytest.raises(error) as failure:
            async for ack in client.send([hours(0, 2), hours(2, 2), bad, hours(4, 2)]):
                got.append(ack)  # noqa: PERF401  (those before the failure count)
        assert (failure.value.field, got) == (field, [(2, 0), (2, 0)])
        assert (await sums(history, 4))["a"] == [720.0] * 4
        assert history.roller.tiers[1].buckets.row_count == 4


async def test_beyond_the_limit_of_series_a_stream_ends_and_takes_no_room(tmp_path: Path):
    async with opened(tmp_path, max_series=2) as history, nobody() as away, calls(history, away) as client:
        for _ in range(2):
            got = []
            with pytest.raises(ResourceExhaustedError) as failure:
                async for ack in client.send([hours(0, 2, "a"), hours(0, 2, "b"), hours(0, 2, "c")]):
                    got.append(ack)  # noqa: PERF401  (those before the failure count)
            assert (failure.value.reason, len(got)) == (Reason.SERIES_LIMIT, 2)
        with pytest.raises(ResourceExhaustedError):
            async for _ in client.send([hours(0, 2, "c")]):
                pass
        assert history.catalog.alive == 2


async def test_names_without_buckets_of_theirs_are_not_kept(tmp_path: Path):
    async with opened(tmp_path, max_series=2) as history, nobody() as away, calls(history, away) as client:
        assert [ack async for ack in client.send([hours(0, 2, "a")])] == [(2, 0)]
        old = [request("5m", grid(ticks(END - 91 * DAY, 3, 5 * MINUTE), 30, 1.0, f"old-{at}")) for at in range(3)]
        assert [ack async for ack in client.send(old)] == [(0, 3)] * 3
        assert list(history.catalog.servers) == ["a"]


async def test_buckets_that_are_too_old_are_refused_and_make_no_series(tmp_path: Path):
    async with opened(tmp_path) as history, nobody() as away, calls(history, away) as client:
        old = request("5m", grid(ticks(END - 91 * DAY, 3, 5 * MINUTE), 30, 1.0, "old"))
        edge = NOW - 90 * DAY
        first = -(-edge // (5 * MINUTE)) * 5 * MINUTE
        border = request("5m", grid(ticks(first - 5 * MINUTE, 3, 5 * MINUTE), 30, 1.0))
        acks = [ack async for ack in client.send([old, border])]
        assert acks == [(0, 3), (2, 1)]
        assert history.catalog.count == 1
        found = await ask(history, first, first + 10 * MINUTE, 5 * MINUTE, "COUNT")
        assert (found.values.tolist(), found.partial_reason) == ([[30.0, 30.0]], "")


async def test_a_request_of_more_than_4_mib_is_refused(tmp_path: Path):
    async with opened(tmp_path) as history, nobody() as away, calls(history, away) as client:
        large = request("1h", grid(ticks(LONG_AGO, 120_000, HOUR), 1, 1.0))
        assert len(large) > 4 << 20
        with pytest.raises(OpenManagerError) as failure:
            async for _ in client.send([hours(0, 1), large]):
                pass
        assert isinstance(failure.value, ResourceExhaustedError)
        assert (await sums_or_nothing(history)) in ({}, {"a": [720.0]})


async def sums_or_nothing(history: History) -> dict[str, list]:
    return await sums(history, 1) if history.catalog.alive else {}


async def test_a_stream_that_is_cut_off_leaves_whole_requests_or_nothing(tmp_path: Path, monkeypatch):
    async with opened(tmp_path) as history, nobody() as away, calls(history, away) as client:
        writing, loop, plain = asyncio.Event(), asyncio.get_running_loop(), rollup_import._write
        go_on = asyncio.Event()

        def slow(waiting):
            loop.call_soon_threadsafe(writing.set)
            asyncio.run_coroutine_threadsafe(go_on.wait(), loop).result()
            return plain(waiting)

        monkeypatch.setattr(rollup_import, "_write", slow)

        async def read() -> None:
            async for _ in client.send([hours(0, 24), request("5m", grid(ticks(LONG_AGO, 24, 5 * MINUTE), 30, 2.0))]):
                pass

        reading = asyncio.create_task(read())
        await writing.wait()
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        # Its file is under way and nobody else's may get in its way.
        assert history.changing.locked()
        go_on.set()
        async with asyncio.timeout(10), history.changing:
            pass
        assert (await sums(history))["a"] == [720.0] * 24
        monkeypatch.setattr(rollup_import, "_write", plain)
        acks = [ack async for ack in client.send([hours(0, 25)])]
        assert acks == [(1, 24)]
        assert history.roller.dirty(1) == ()
        names = [file.about.first for file in history.roller.tiers[1].buckets.files]
        assert names == sorted(set(names))


async def test_imported_series_are_found_after_a_restart_though_a_catalogue_was_stored_before(tmp_path: Path):
    async with opened(tmp_path) as history, nobody() as away, calls(history, away) as client:
        await write(history, [NOW], ("raw",), load=[1.0])
        await history.seal()
        assert [ack async for ack in client.send([hours(0, 24)])] == [(24, 0)]
    async with opened(tmp_path) as history:
        assert (await sums(history))["a"] == [720.0] * 24


async def test_coarser_buckets_are_right_from_the_first_acknowledgement_on(tmp_path: Path):
    """Also of other series beside, in a span that has coarser buckets already, and after a crash."""
    fine = [request("5m", grid(ticks(LONG_AGO, 48, 5 * MINUTE), 30, 2.0, "b"))]
    async with opened(tmp_path) as history, nobody() as away, calls(history, away) as client:
        assert [ack async for ack in client.send([hours(0, 4, "a")])] == [(4, 0)]
        go_on = asyncio.Event()

        async def requests() -> AsyncIterator[bytes]:
            yield fine[0]
            await go_on.wait()

        async for ack in client.send(requests()):
            assert ack == (48, 0)
            assert await sums(history, 4) == {"a": [720.0] * 4, "b": [720.0] * 4}
            assert history.roller.next() is None  # it may still send them itself
            stored = durable.load(tmp_path / "rollups.json")["dirty"]["1h"]
            assert stored == [[LONG_AGO, LONG_AGO + 4 * HOUR]]
            go_on.set()
        await rolled(history)
        found = await ask(history, LONG_AGO, LONG_AGO + 4 * HOUR, HOUR, "SUM")
        assert (found.values.tolist(), [part.tier for part in found.parts]) == ([[720.0] * 4] * 2, ["1h"])


async def test_coarser_buckets_that_the_stream_sends_itself_are_not_computed(tmp_path: Path):
    async with opened(tmp_path) as history, nobody() as away, calls(history, away) as client:
        fine = request("5m", grid(ticks(LONG_AGO, 48, 5 * MINUTE), 30, 2.0))
        assert [ack async for ack in client.send([fine, hours(0, 4)])] == [(48, 0), (4, 0)]
        assert history.roller.waiting(1) == 0
        assert (await sums(history, 4))["a"] == [720.0] * 4


async def test_a_damaged_file_does_not_stop_an_import(tmp_path: Path):
    async with opened(tmp_path) as history, nobody() as away, calls(history, away) as client:
        assert [ack async for ack in client.send([hours(0, 24)])] == [(24, 0)]
        path = history.roller.tiers[1].buckets.files[0].path
        content = bytearray(path.read_bytes())
        content[4:200] = bytes(196)
        path.write_bytes(content)
        assert [ack async for ack in client.send([hours(0, 24)])] == [(24, 0)]
        assert history.roller.tiers[1].buckets.quarantined


async def test_an_import_that_the_disk_does_not_take_is_unavailable(tmp_path: Path, monkeypatch):
    async with opened(tmp_path) as history, nobody() as away, calls(history, away) as client:

        def full(*_, **__):
            raise OSError(28, "no space")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(durable, "sync", full)
            with pytest.raises(UnavailableError) as failure:
                async for _ in client.send([hours(0, 24)]):
                    pass
        assert failure.value.reason == Reason.STORE_UNAVAILABLE
        assert [ack async for ack in client.send([hours(0, 24)])] == [(24, 0)]

from __future__ import annotations

import random
from contextlib import aclosing

import numpy as np
import pytest

from openmanager.api.cache.v1 import cache_pb2
from openmanager.api.provenance.v1 import provenance_pb2
from openmanager.api.server.v1 import server_pb2
from openmanager.errors import InvalidArgumentError, NotFoundError, OutOfRangeError
from openmanager.hot import HotFleet, ListQuery, make_server, take_apart

CREATED, SNAPSHOT = server_pb2.WATCH_KIND_CREATED, server_pb2.WATCH_KIND_SNAPSHOT
DELTA = server_pb2.WATCH_KIND_DELTA
METRICS = ("cpu_usage", "x")


def server(name: str, cpu: float, **fields):
    message = server_pb2.Server(id=name, hostname=name, cpu_usage=cpu, state=server_pb2.SERVER_STATE_HEALTHY, **fields)
    return make_server(message, METRICS, np.array([cpu, 1.0]))


@pytest.fixture
def fleet() -> HotFleet:
    made = HotFleet()
    made.learn_metrics(METRICS)
    made.put([server(f"s{at:03d}", float(at % 7), role="web" if at % 2 else "db") for at in range(250)])
    return made


def listed(fleet: HotFleet, **changes) -> cache_pb2.ListServersResponse:
    query = {"page_size": 0, "page_token": "", "filter": "", "order_by": "", "full": False, **changes}
    return cache_pb2.ListServersResponse.FromString(fleet.list_reply(ListQuery(**query)))


@pytest.mark.parametrize("order_by", ["", "id", "id desc", "cpu_usage", "cpu_usage desc", "role", "state desc"])
@pytest.mark.parametrize("text", ["", "role = web", "id:s00"])
def test_pages_hold_every_server_once_in_order(fleet: HotFleet, order_by: str, text: str):
    found, token = [], ""
    while True:
        page = listed(fleet, page_size=17, page_token=token, order_by=order_by, filter=text)
        found += [(each.cpu_usage, each.id) for each in page.servers]
        token = page.next_page_token
        if not token:
            break
    assert len(found) == len(set(found)) == page.total_count
    if order_by == "cpu_usage desc":
        assert found == sorted(found, key=lambda each: (-each[0], each[1]))
    if order_by == "id desc":
        assert found == sorted(found, key=lambda each: each[1], reverse=True)


def test_a_token_of_another_query_is_refused(fleet: HotFleet):
    token = listed(fleet, page_size=3).next_page_token
    with pytest.raises(InvalidArgumentError, match="invalid page token"):
        listed(fleet, page_size=3, page_token=token, order_by="role")


@pytest.mark.parametrize("changes", [{"order_by": "colour"}, {"order_by": "id sideways"}, {"filter": "colour = red"}])
def test_unknown_fields_are_refused(fleet: HotFleet, changes: dict):
    with pytest.raises(InvalidArgumentError):
        listed(fleet, **changes)


def test_a_reply_is_a_message_with_names_and_values(fleet: HotFleet):
    found = cache_pb2.GetServerResponse.FromString(fleet.reply("s003", full=True)).server
    assert (tuple(found.metrics), list(found.values), found.metric_count) == (METRICS, [3.0, 1.0], 2)
    assert not cache_pb2.GetServerResponse.FromString(fleet.reply("s003", full=False)).server.values
    with pytest.raises(NotFoundError):
        fleet.reply("nobody", full=True)


def test_the_summary_counts(fleet: HotFleet):
    summary = fleet.summary()
    assert (summary.total_count, summary.healthy_count, summary.series_count) == (250, 250, 500)
    assert [(group.name, group.total_count) for group in summary.roles] == [("db", 125), ("web", 125)]


class Watch:
    """A watch that is read message by message."""

    def __init__(self, fleet: HotFleet, token: str = "", text: str = "", *, full: bool = False) -> None:
        self.messages = fleet.watch(token, text, full=full, describe=provenance_pb2.Provenance)

    async def next(self) -> cache_pb2.WatchServersResponse:
        return cache_pb2.WatchServersResponse.FromString(await anext(self.messages))


async def test_a_watch_begins_with_creation_and_snapshot_and_goes_on_with_changes(fleet: HotFleet):
    watch = Watch(fleet, full=True)
    async with aclosing(watch.messages):
        assert (await watch.next()).kind == CREATED
        snapshot = await watch.next()
        assert (snapshot.kind, len(snapshot.servers)) == (SNAPSHOT, 250)
        assert [bool(each.metrics) for each in snapshot.servers].count(True) == 1
        fleet.put([server("s001", 50.0)])
        fleet.delete(["s002"])
        delta = await watch.next()
        assert (delta.kind, [each.id for each in delta.servers], list(delta.deleted_ids)) == (DELTA, ["s001"], ["s002"])
        assert not delta.servers[0].metrics


async def test_a_watch_is_resumed_where_it_was_left(fleet: HotFleet):
    watch = Watch(fleet)
    async with aclosing(watch.messages):
        await watch.next()
        token = (await watch.next()).resume_token
    fleet.put([server("s009", 1.0)])
    again = Watch(fleet, token)
    async with aclosing(again.messages):
        assert (await again.next()).kind == CREATED
        delta = await again.next()
        assert (delta.kind, [each.id for each in delta.servers]) == (DELTA, ["s009"])


@pytest.mark.parametrize("token", ["x", "00000000-1", "-", "é-1"])
async def test_a_token_that_cannot_be_resumed_is_compacted(fleet: HotFleet, token: str):
    watch = Watch(fleet, token)
    with pytest.raises(OutOfRangeError) as failure:
        await watch.next()
    assert failure.value.reason == "HISTORY_COMPACTED"


async def test_a_server_that_stops_matching_is_reported_as_deleted(fleet: HotFleet):
    watch = Watch(fleet, text="role = web")
    async with aclosing(watch.messages):
        await watch.next()
        assert len((await watch.next()).servers) == 125
        fleet.put([server("s001", 1.0, role="db"), server("s002", 1.0, role="db")])
        assert list((await watch.next()).deleted_ids) == ["s001"]


async def test_a_reader_that_lags_gets_the_newest_state_once(fleet: HotFleet):
    watch = Watch(fleet)
    async with aclosing(watch.messages):
        await watch.next()
        await watch.next()
        for cpu in range(100):
            fleet.put([server("s001", float(cpu))])
        delta = await watch.next()
        assert [(each.id, each.cpu_usage) for each in delta.servers] == [("s001", 99.0)]


async def test_only_the_last_message_of_a_large_snapshot_can_be_resumed_after():
    fleet = HotFleet()
    wide = tuple(f"metric.number.{at}" for at in range(5000))
    fleet.learn_metrics(wide)
    fleet.put([make_server(server_pb2.Server(id=f"s{at}"), wide, np.ones(5000)) for at in range(100)])
    watch = Watch(fleet, full=True)
    async with aclosing(watch.messages):
        assert (await watch.next()).kind == CREATED
        tokens, count = [], 0
        while count < 100:
            message = await watch.next()
            assert message.kind == SNAPSHOT
            tokens.append(message.resume_token)
            count += len(message.servers)
    assert len(tokens) > 2
    assert [bool(token) for token in tokens] == [False] * (len(tokens) - 1) + [True]


def with_metrics(name: str, *metrics: str):
    return make_server(server_pb2.Server(id=name), metrics, np.ones(len(metrics)))


def put(fleet: HotFleet, name: str, *metrics: str) -> None:
    fleet.learn_metrics(metrics)
    fleet.put([with_metrics(name, *metrics)])


def test_lists_of_metrics_that_no_server_has_any_more_are_forgotten(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("openmanager.hot._UNUSED_KEYS", 100)
    fleet, metrics = HotFleet(), list[str]()
    put(fleet, "other", "x")
    for number in range(100):  # a server that has one metric more every time
        metrics.append(f"m{number}")
        put(fleet, "s", *metrics)
    assert fleet.metrics_of(fleet.get("s")) == tuple(metrics)
    assert fleet.metrics_of(fleet.get("other")) == ("x",)
    assert sum(map(len, fleet._metrics.values())) <= 100 + len(metrics) + 1
    fleet.delete(["s", "other"])
    assert sum(map(len, fleet._metrics.values())) <= 100


async def test_who_watches_knows_the_metrics_of_every_server_whatever_is_forgotten(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("openmanager.hot._UNUSED_KEYS", 0)
    dice, fleet, copy = random.Random(1), HotFleet(), HotFleet()
    lists = [("a",), ("a", "b"), ("c",), ("d", "e", "f")]
    put(fleet, "s0", *lists[0])
    watch = Watch(fleet, full=True)
    async with aclosing(watch.messages):
        await watch.next()
        for _ in range(200):
            message = await watch.next()
            told = [take_apart(each) for each in message.servers]
            for _, metrics in told:
                if metrics:
                    copy.learn_metrics(metrics)
            copy.put(server for server, _ in told)
            copy.delete(message.deleted_ids)
            for each in fleet:
                assert copy.metrics_of(copy.get(each.message.id)) == fleet.metrics_of(each) != ()
            for _ in range(dice.randint(1, 4)):
                name = f"s{dice.randint(0, 2)}"
                if dice.random() < 0.2:
                    fleet.delete([name])
                put(fleet, name, *dice.choice(lists))

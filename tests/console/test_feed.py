"""What pages are told: one watch for all of them, what they missed, and words when nobody can be asked."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from client.mesh import LocalMesh, frame_of
from openmanager_console import feed as feeding
from openmanager_console.feed import FLEET, Feed, Page

from console.served import Console, serving
from openmanager.api.gateway.v1 import gateway_pb2 as pb
from openmanager.api.server.v1 import server_pb2
from openmanager.client import Client
from openmanager.client.credential import Token
from openmanager.runtime.edge import Edge, Load
from openmanager.runtime.grpc_server import GuardedServer
from openmanager.runtime.module import service_descriptor

GATEWAY = "openmanager.api.gateway.v1.GatewayService"


class Gateway:
    """A gateway that counts who watches, and says what it is told to."""

    def __init__(self) -> None:
        self.watching = {"status": 0, "fleet": 0}
        self.began = {"status": 0, "fleet": 0}
        self.changed = asyncio.Event()
        self.servers: list[server_pb2.Server] = []

    def change(self, *servers: server_pb2.Server) -> None:
        """Have watches told of servers; none misses it."""
        self.servers = list(servers)
        changed, self.changed = self.changed, asyncio.Event()
        changed.set()

    @contextlib.contextmanager
    def _counted(self, topic: str):
        self.watching[topic] += 1
        self.began[topic] += 1
        try:
            yield
        finally:
            self.watching[topic] -= 1

    async def WatchStorageStatus(self, request: Any, context: Any) -> AsyncIterator[Any]:
        with self._counted("status"):
            while True:
                yield pb.WatchStorageStatusResponse(status=pb.GetStorageStatusResponse())
                await asyncio.sleep(0.05)

    async def WatchServers(self, request: Any, context: Any) -> AsyncIterator[Any]:
        with self._counted("fleet"):
            yield pb.WatchServersResponse(kind=server_pb2.WATCH_KIND_CREATED)
            kind = server_pb2.WATCH_KIND_SNAPSHOT
            while True:
                changed = self.changed
                yield pb.WatchServersResponse(kind=kind, servers=self.servers, resume_token="1")
                kind = server_pb2.WATCH_KIND_DELTA
                await changed.wait()

    async def GetFleetSummary(self, request: Any, context: Any) -> Any:
        return pb.GetFleetSummaryResponse()

    def __getattr__(self, name: str) -> Any:
        async def nothing(request: Any, context: Any) -> Any:
            raise NotImplementedError

        return nothing


@contextlib.asynccontextmanager
async def gatewaying() -> AsyncIterator[tuple[Gateway, str]]:
    server, servicer = GuardedServer(()), Gateway()
    Edge(server, Load()).add(service_descriptor(GATEWAY), servicer)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield servicer, f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


async def first(events: AsyncIterator[tuple[str, Any]], topic: str, condition: Any = lambda _: True) -> Any:
    """Return the first news of a topic that are as wanted."""
    async with asyncio.timeout(15):
        async for found, content in events:
            if found == topic and condition(content):
                return content
    raise AssertionError("the stream has ended")


async def test_pages_of_the_same_person_share_their_watches_and_leave_none(monkeypatch):
    monkeypatch.setattr(feeding, "LINGER_SECONDS", 0.05)
    async with gatewaying() as (gateway, address), serving(address) as made:
        async with contextlib.AsyncExitStack() as stack:
            pages = [await stack.enter_async_context(made.events()) for _ in range(8)]
            for page in pages:
                await first(page, "status", lambda content: "board" in content)
            assert gateway.watching == {"status": 1, "fleet": 1}
        async with asyncio.timeout(10):
            while gateway.watching != {"status": 0, "fleet": 0}:
                await asyncio.sleep(0.02)
        assert gateway.began["status"] == 1


async def test_another_person_has_watches_of_their_own():
    async with gatewaying() as (gateway, address), serving(address) as made:
        async with made.events() as one, made.events(headers={"Authorization": "Bearer omk_x"}) as other:
            await first(one, "fleet")
            await first(other, "fleet")
            assert gateway.watching["fleet"] == 2


async def test_there_is_room_for_so_many_pages_and_people():
    async with gatewaying() as (_, address), serving(address, max_pages=3, max_identities=2) as made:
        async with made.events(), made.events(headers={"Authorization": "Bearer a"}):
            status, body, _ = await made.ask("GET", "/api/events", headers={"Authorization": "Bearer b"})
            assert (status, body["error"]["message"]) == (429, "more than 2 people have pages that follow")
            async with made.events():
                assert (await made.ask("GET", "/api/events"))[0] == 429


def server(name: str, cpu: float) -> server_pb2.Server:
    return server_pb2.Server(id=name, state=server_pb2.SERVER_STATE_HEALTHY, cpu_usage=cpu)


async def test_a_page_that_was_slow_is_told_the_newest_of_what_has_changed_only():
    async with gatewaying() as (gateway, address), Client(address) as client:
        gateway.servers = [server("a", 1.0), server("b", 2.0)]
        feed, page = Feed(client), Page(Token())
        feed.pages[page] = None
        feed.start()
        try:
            async with asyncio.timeout(10):
                while FLEET not in feed.trouble:
                    await asyncio.sleep(0.01)
            assert [each[0] for each in feed.news(page)[FLEET]["servers"]] == ["a", "b"]
            for cpu in range(50):
                gateway.change(server("b", float(cpu)))
                async with asyncio.timeout(5):
                    while feed.servers["b"][2] != cpu:
                        await asyncio.sleep(0.001)
            news = feed.news(page)[FLEET]
            assert (news["reset"], [each[:3] for each in news["servers"]]) == (False, [["b", "HEALTHY", 49.0]])
            assert feed.news(page) == {}
        finally:
            await feed.close()


async def test_more_servers_than_a_page_shows_are_counted(monkeypatch):
    monkeypatch.setattr(feeding, "MAX_SERVERS", 3)
    async with gatewaying() as (gateway, address):
        gateway.servers = [server(f"s{at}", 1.0) for at in range(5)]
        async with serving(address) as made, made.events() as page:
            news = await first(page, "fleet", lambda content: "servers" in content)
            assert (len(news["servers"]), news["left_out"]) == (3, 2)


async def test_a_gateway_that_goes_is_said_in_words_and_found_again(local: LocalMesh, monkeypatch):
    async with Client(local.gateway) as client:
        await client.write_frame(frame_of(2, 3))
    async with serving(local.gateway) as made, made.events() as page:
        await first(page, "fleet", lambda content: len(content.get("servers", ())) == 2)
        await local.stop_gateway()
        lost = await first(page, "status", lambda content: content["trouble"])
        assert lost["trouble"]["message"] in {
            "the gateway cannot be reached",
            "the server is going down",
            "the gateway ended the watch",
        }
        await local.start_gateway()
        await first(page, "status", lambda content: content["trouble"] is None and "board" in content)


async def test_a_gateway_that_was_never_there_is_said_in_words(lonely: Console):
    async with lonely.events() as page:
        found = await first(page, "status")
        assert found == {"trouble": {"message": "the gateway cannot be reached", "reason": "SERVICE_UNAVAILABLE"}}


async def test_a_gateway_that_is_silent_is_not_believed(monkeypatch):
    monkeypatch.setattr(feeding, "SILENCE_SECONDS", 0.3)
    async with gatewaying() as (gateway, address):
        gateway.servers = [server("a", 1.0)]
        async with serving(address) as made, made.events() as page:
            # The fleet's watch says nothing after its snapshot.
            found = await first(page, "fleet", lambda content: content["trouble"])
            assert found["trouble"]["message"] == "the gateway does not answer"


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/api/chart", "server"),
        ("/api/chart?server=a", "metric"),
        ("/api/chart?server=a&metric=b", "start"),
        ("/api/chart?server=a&metric=b&start=-1&end=2&step=1", "start"),
        ("/api/chart?server=a&metric=b&start=1&end=99999999999999999999&step=1", "end"),
        ("/api/chart?server=a&metric=b&start=2&end=1&step=1", "end"),
        ("/api/chart?server=a&metric=b&start=0&end=1000000&step=1", "step"),
        ("/api/chart?server=a&metric=b&start=0&end=10&step=0", "step"),
        ("/api/forecast?server=a&metric=b&limit=nan&hours=1", "limit"),
        ("/api/forecast?server=a&metric=b&limit=1&hours=99999", "hours"),
        ("/api/servers/a/faults", "start"),
        ("/api/servers/a/anomalies?start=x", "start"),
    ],
)
async def test_bad_input_names_the_field(lonely: Console, path, field):
    status, body, _ = await lonely.ask("GET", path)
    assert (status, body["error"]["field"]) == (400, field)


async def test_a_chart_holds_what_was_written(console: Console, local: LocalMesh):
    frame = frame_of(2, 30)
    async with Client(local.gateway) as client:
        await client.write_frame(frame)
    start, end = int(frame.times[0]) // 10**6, int(frame.times[-1]) // 10**6 + 1
    status, body, _ = await console.ask(
        "GET", f"/api/chart?server=web-01&metric=cpu_usage&start={start}&end={end}&step=10000"
    )
    assert status == 200
    assert body["mean"] == pytest.approx(frame.values[:, 1, 0].tolist())
    assert body["low"] == body["high"] == pytest.approx(body["mean"])
    assert [round(each * 1000) for each in body["times"]] == [int(each) // 10**6 for each in frame.times]


async def test_what_is_not_there_is_said(console: Console):
    for path in ("/api/servers/nobody", "/api/chart?server=nobody&metric=cpu_usage&start=0&end=10&step=10"):
        status, body, _ = await console.ask("GET", path)
        assert (status, body["error"]["code"]) in {(404, 5), (503, 14)}

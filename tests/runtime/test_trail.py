"""What is written down of a call, before it and after it, on a real server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from google.protobuf import wrappers_pb2
from test_edge import NAME, TestService, describe

from openmanager import access
from openmanager.access import LOCAL, Grant, Identity, Permission, Role
from openmanager.api.metadata.v1 import metadata_pb2
from openmanager.api.simulator.v1 import simulator_pb2
from openmanager.audit import Outcome, Record, check_record
from openmanager.config import Secret
from openmanager.errors import AbortedError, PermissionDeniedError, ResourceExhaustedError, UnavailableError
from openmanager.policy import POLICY, Reach, Rule
from openmanager.runtime import trail
from openmanager.runtime.audit import Auditor
from openmanager.runtime.clock import SystemClock
from openmanager.runtime.edge import forwarded
from openmanager.runtime.gate import Gate
from openmanager.runtime.mesh_key import HEADER, MeshKey
from openmanager.runtime.module import ServerConfig, Service
from openmanager.runtime.peer import Peer
from openmanager.runtime.server import Server

KEY = MeshKey(Secret("k" * 40), "gateway", SystemClock())
ALICE = Identity("users/a", (Grant(Role.OPERATOR),))
CHANGE = Rule(Permission.OPERATE, Reach.ALL, audited="things/{value}")


class Book:
    """Takes entries, unless it is away."""

    def __init__(self) -> None:
        self.away = False
        self.entries: list[tuple[str, Any]] = []

    def _take(self, kind: str, what: Any) -> int:
        if self.away:
            raise UnavailableError("PostgreSQL does not answer")
        if isinstance(what, Record):
            check_record(what)
        self.entries.append((kind, what))
        return len(self.entries)

    async def intent(self, record: Record) -> int:
        return self._take("intent", record)

    async def outcome(self, intent: int, outcome: Outcome) -> int:
        return self._take("outcome", (intent, outcome))

    async def event(self, record: Record, outcome: Outcome | None = None, count: int = 1) -> int:
        return self._take("event", (record, outcome, count))


class Doer(TestService):
    """Does something, and remembers that it did."""

    def __init__(self) -> None:
        super().__init__()
        self.done: list[str] = []

    async def Call(self, request, context):
        if request.value == "fails":
            raise AbortedError("somebody was faster")
        self.done.append(request.value)
        return wrappers_pb2.BytesValue(value=b"done")


@asynccontextmanager
async def serving(rule: Rule = CHANGE, doer: Doer | None = None) -> AsyncIterator[tuple[Book, Doer, str]]:
    describe()
    book, doer = Book(), doer or Doer()
    clock = SystemClock()
    async with Auditor(book, "test") as auditor:
        server = Server(
            service=Service(
                rules={**POLICY, NAME: dict.fromkeys(("Call", "Watch", "Talk"), rule)}, servicers={NAME: doer}
            ),
            name="test",
            address="127.0.0.1:0",
            config=ServerConfig(),
            clock=clock,
            gate=Gate(anonymous=LOCAL, mesh_key=MeshKey(Secret("k" * 40), "test", clock)),
            auditor=auditor,
        )
        async with server.running():
            yield book, doer, f"127.0.0.1:{server.port}"


async def call(address: str, value: str, who: Identity = ALICE) -> bytes:
    async with Peer("test", address, identify=lambda: ((HEADER, KEY.token(who, "192.0.2.7")),)) as peer:
        request = wrappers_pb2.StringValue(value=value)
        return (await peer.unary(f"/{NAME}/Call", request, wrappers_pb2.BytesValue, seconds=5)).value


async def test_a_change_is_written_down_before_it_is_made_and_how_it_ended_after():
    async with serving() as (book, _, address):
        await call(address, "one")
        with pytest.raises(AbortedError):
            await call(address, "fails")
    (_, intent), (_, other) = (each for each in book.entries if each[0] == "intent")
    assert (intent.actor, intent.action, intent.object) == ("users/a", f"{NAME}/Call", "things/one")
    assert (intent.source, intent.subject, intent.via) == ("192.0.2.7", "users/a", "test")
    assert len(intent.request_hash) == 32
    assert intent.request_hash != other.request_hash
    ends = [each[1] for kind, each in book.entries if kind == "outcome"]
    assert sorted((each.code, each.reason) for each in ends) == [(0, ""), (10, "ETAG_MISMATCH")]


async def test_what_cannot_be_written_down_is_not_done():
    async with serving() as (book, doer, address):
        book.away = True
        with pytest.raises(UnavailableError) as failure:
            await call(address, "one")
        assert failure.value.message == "the audit log does not answer: nothing is changed without it"
        assert doer.done == []
        book.away = False
        await call(address, "two")
        assert doer.done == ["two"]


async def test_refusals_are_counted_and_change_nothing():
    async with serving() as (book, doer, address):
        for _ in range(3):
            with pytest.raises(PermissionDeniedError):
                await call(address, "one", Identity("users/v", (Grant(Role.VIEWER),)))
    assert doer.done == []
    ((kind, (record, outcome, count)),) = book.entries
    assert (kind, record.actor, record.action, count) == ("event", "users/v", f"{NAME}/Call", 3)
    assert (outcome.code, outcome.reason) == (7, "PERMISSION_DENIED")


async def test_what_servers_do_by_themselves_and_what_is_passed_on_is_not_written_down():
    async with serving() as (book, doer, address):
        await call(address, "one", access.server("gateway"))
        assert doer.done == ["one"]

    class Passing(Doer):
        @forwarded
        async def Call(self, request, context):
            return wrappers_pb2.BytesValue(value=b"elsewhere")

    passing = Passing()
    async with serving(doer=passing) as (other, _, address):
        await call(address, "two")
    assert book.entries == other.entries == []


async def test_of_a_request_with_a_password_no_hash_is_left_that_it_could_be_guessed_by():
    async with serving(Rule(Permission.OPERATE, Reach.ALL, audited="users", secret=True)) as (book, _, address):
        await call(address, "correct horse")
    assert [each.request_hash for kind, each in book.entries if kind == "intent"] == [b""]


async def test_whoever_needs_no_credentials_does_not_fill_the_log_by_knocking(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(trail, "MAX_KNOCKS", 3)
    async with serving(Rule(Permission.NOTHING, Reach.NONE, audited="sessions")) as (book, doer, address):
        for at in range(3):
            await call(address, f"{at}")
        with pytest.raises(ResourceExhaustedError) as failure:
            await call(address, "3")
        assert failure.value.reason == "TOO_MANY_ATTEMPTS"
        assert len(doer.done) == 3
    assert len([each for each in book.entries if each[0] == "intent"]) == 3


async def test_a_read_that_gives_much_away_is_noted_and_goes_on_without_the_log():
    async with serving(Rule(Permission.READ, Reach.SOME, noted="series")) as (book, doer, address):
        await call(address, "one")
        book.away = True
        await call(address, "two")
    assert doer.done == ["one", "two"]
    assert [(kind, each[0].object) for kind, each in book.entries] == [("event", "series")]


def test_the_object_is_what_the_request_says():
    request = metadata_pb2.UpdateServerRequest(server=metadata_pb2.Server(id="web-1"))
    assert trail.object_of("servers/{server.id}", request) == "servers/web-1"
    fault = simulator_pb2.InjectFaultRequest(fault=simulator_pb2.Fault(servers=["a", "b"]))
    assert trail.object_of("servers/{fault.servers}", fault) == "servers/a,b"
    assert trail.object_of("history", None) == "history"


def test_every_object_of_the_policy_names_fields_that_there_are():
    from openmanager.runtime.module import service_descriptor

    for service, rules in POLICY.items():
        for method, rule in rules.items():
            for path in trail._FIELD.findall(rule.audited):
                found = service_descriptor(service).methods_by_name[method].input_type
                for name in path.split("."):
                    field = found.fields_by_name[name]
                    found = field.message_type

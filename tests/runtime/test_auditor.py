"""Recording from another service, against the metadata service of a mesh."""

from __future__ import annotations

import asyncio
import hashlib
import time
import uuid
from collections.abc import AsyncIterator

import pytest
from client.proxy import proxy
from conftest import Mesh, wait_until

from openmanager.audit import Kind, Record
from openmanager.client import AuditEntry, Client
from openmanager.errors import InvalidArgumentError, UnavailableError
from openmanager.runtime import audit
from openmanager.runtime.audit import Auditor, PeerRecorder
from openmanager.runtime.peer import Peer

ACTION = "openmanager.api.metadata.v1.ServerService/UpdateServer"


@pytest.fixture
def actor() -> str:
    return f"users/{uuid.uuid4().hex[:12]}"


@pytest.fixture
async def client(mesh: Mesh) -> AsyncIterator[Client]:
    async with Client(mesh.gateway) as made:
        yield made


@pytest.fixture
async def auditor(mesh: Mesh) -> AsyncIterator[Auditor]:
    async with Peer("metadata", mesh.address("metadata")) as peer:
        async with Auditor(PeerRecorder(peer), "gateway", window=0.05) as made:
            yield made


async def entries(client: Client, actor: str) -> list[AuditEntry]:
    return [each async for each in client.audit.list(f'actor = "{actor}"', order_by="number", personal=True)]


async def recorded(client: Client, actor: str, count: int) -> list[AuditEntry]:
    async def there() -> bool:
        return len(await entries(client, actor)) >= count

    await wait_until(there)
    return await entries(client, actor)


async def test_a_change_is_an_intent_before_it_and_an_outcome_after_it(auditor: Auditor, client: Client, actor: str):
    record = Record(actor=actor, action=ACTION, object="servers/web-1", request_id="r 1; Grace", source="10.0.0.9")
    intent = await auditor.intent(record, b"the request")
    (before,) = await entries(client, actor)
    assert (before.number, before.kind, before.via) == (intent.number, Kind.INTENT, "gateway")
    assert before.request_hash == hashlib.sha256(b"the request").digest()
    assert before.request_id.startswith("sha256:")  # what a person may have typed is not in clear
    assert before.personal == {"source": "10.0.0.9"}
    intent.outcome(6, "ALREADY_EXISTS", after=b"what is there")
    _, after = await recorded(client, actor, 2)
    assert (after.kind, after.intent_number, after.code, after.reason) == (
        Kind.OUTCOME,
        intent.number,
        6,
        "ALREADY_EXISTS",
    )
    assert after.after_hash == hashlib.sha256(b"what is there").digest()


async def test_a_flood_of_refusals_is_one_entry_with_their_number(auditor: Auditor, client: Client, actor: str):
    for _ in range(5000):
        auditor.denied(Record(actor=actor, action=ACTION, source="10.0.0.9"), 7, "PERMISSION_DENIED")
    auditor.denied(Record(actor=actor, action=ACTION), 16, "CREDENTIALS_REQUIRED")
    first, second = await recorded(client, actor, 2)
    assert sorted([(first.code, first.occurrence_count), (second.code, second.occurrence_count)]) == [
        (7, 5000),
        (16, 1),
    ]
    assert first.details.keys() == {"first_time", "last_time"}


async def test_more_kinds_of_refusals_than_fit_are_told_in_one_entry(auditor: Auditor, client: Client, monkeypatch):
    monkeypatch.setattr(audit, "MAX_REFUSALS", 3)
    some = uuid.uuid4().hex[:12]
    for number in range(10):
        auditor.denied(Record(actor=f"users/{some}-{number}", action=ACTION), 7)

    async def told() -> list[AuditEntry]:
        found = [each async for each in client.audit.list(f'action = "{audit.OTHERS}"', limit=1)]
        found += [each async for each in client.audit.list(f'actor : "{some}"')]
        return found

    async def there() -> bool:
        return len(await told()) == 4

    await wait_until(there)
    assert [each.occurrence_count for each in await told()] == [7, 1, 1, 1]


async def test_nothing_may_be_done_while_nobody_takes_the_intent(actor: str):
    async with Peer("metadata", "127.0.0.1:9") as peer:
        async with Auditor(PeerRecorder(peer), "gateway") as auditor:
            began = time.monotonic()
            with pytest.raises(UnavailableError, match="nothing is changed without it"):
                await auditor.intent(Record(actor=actor, action=ACTION))
            assert time.monotonic() - began < 3


async def test_what_cannot_be_recorded_is_a_defect_and_not_an_outage(auditor: Auditor):
    with pytest.raises(InvalidArgumentError):
        await auditor.intent(Record(actor="somebody with a name", action=ACTION))


async def test_outcomes_are_told_when_the_log_is_back(mesh: Mesh, client: Client, actor: str):
    async with proxy(mesh.address("metadata")) as way, Peer("metadata", way.address) as peer:
        async with Auditor(PeerRecorder(peer), "gateway") as auditor:
            intents = [await auditor.intent(Record(actor=actor, action=ACTION)) for _ in range(3)]
            way.open.clear()
            for intent in intents:
                intent.outcome()
            with pytest.raises(UnavailableError):
                await auditor.intent(Record(actor=actor, action=ACTION))
            assert auditor.waiting_count > 0
            way.open.set()
            found = await recorded(client, actor, 6)
    told = [each.intent_number for each in found if each.kind == Kind.OUTCOME]
    assert sorted(told) == sorted(intent.number for intent in intents)


async def test_what_is_too_much_to_wait_is_counted(actor: str, monkeypatch):
    monkeypatch.setattr(audit, "MAX_WAITING", 5)
    monkeypatch.setattr(audit, "CLOSE_SECONDS", 0.1)
    async with Peer("metadata", "127.0.0.1:9") as peer:
        async with Auditor(PeerRecorder(peer), "gateway", window=0.01) as auditor:
            for number in range(8):
                auditor.denied(Record(actor=f"{actor}-{number}", action=ACTION), 7)

            async def full() -> bool:
                return auditor.lost_count > 0

            await wait_until(full)
            assert auditor.lost_count == 3


async def test_what_waits_is_told_before_the_end(mesh: Mesh, client: Client, actor: str):
    async with Peer("metadata", mesh.address("metadata")) as peer:
        async with Auditor(PeerRecorder(peer), "gateway") as auditor:
            intent = await auditor.intent(Record(actor=actor, action=ACTION))
            intent.outcome()
            auditor.denied(Record(actor=actor, action=ACTION), 7)
    assert [each.kind for each in await entries(client, actor)].count(Kind.EVENT) == 1
    assert len(await entries(client, actor)) == 3


async def test_many_at_once_are_recorded_without_a_gap(auditor: Auditor, client: Client, actor: str):
    intents = await asyncio.gather(*(auditor.intent(Record(actor=actor, action=ACTION)) for _ in range(50)))
    for intent in intents:
        intent.outcome()
    found = await recorded(client, actor, 100)
    assert len({each.number for each in found}) == 100

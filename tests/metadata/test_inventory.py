"""The inventory over gRPC, on the real PostgreSQL of a mesh. Every test has servers of its own."""

from __future__ import annotations

import uuid

import pytest
from google.protobuf import field_mask_pb2

from openmanager.api.frame.v1 import frame_pb2
from openmanager.api.metadata.v1 import metadata_pb2 as pb
from openmanager.errors import (
    AbortedError,
    AlreadyExistsError,
    InvalidArgumentError,
    NotFoundError,
    OpenManagerError,
    ResourceExhaustedError,
)
from openmanager.runtime.peer import Peer

SERVICE = "/openmanager.api.metadata.v1.ServerService"
POLICIES = "/openmanager.api.metadata.v1.PolicyService"


async def call(peer: Peer, method: str, request, service: str = SERVICE):
    reply = getattr(pb, type(request).__name__.replace("Request", "Response"))
    return await peer.unary(f"{service}/{method}", request, reply, seconds=5)


@pytest.fixture
def name() -> str:
    return f"t-{uuid.uuid4().hex[:12]}"


async def create(peer: Peer, server_id: str, *, request_id: str = "", **fields) -> pb.Server:
    request = pb.CreateServerRequest(server=pb.Server(id=server_id, **fields), request_id=request_id)
    return (await call(peer, "CreateServer", request)).server


async def get(peer: Peer, server_id: str) -> pb.Server:
    return (await call(peer, "GetServer", pb.GetServerRequest(id=server_id))).server


def update(server: pb.Server, *paths: str) -> pb.UpdateServerRequest:
    return pb.UpdateServerRequest(server=server, update_mask=field_mask_pb2.FieldMask(paths=paths))


def register(server_id: str, seen_nanos: int, **fields) -> pb.RegisterServersRequest:
    request = pb.RegisterServersRequest(server_infos=[frame_pb2.ServerInfo(id=server_id, **fields)])
    request.seen_time.FromNanoseconds(seen_nanos)
    return request


async def test_a_server_is_created_read_and_listed(gateway: Peer, name: str):
    made = await create(gateway, name.upper(), role="web", labels={"team": "a b"})
    assert (made.id, made.hostname, made.role, dict(made.labels)) == (name, name, "web", {"team": "a b"})
    reply = await call(gateway, "GetServer", pb.GetServerRequest(id=name))
    assert reply.server == made
    assert reply.provenance.source == "postgresql"
    with pytest.raises(AlreadyExistsError):
        await create(gateway, name)


async def test_a_repeated_request_is_answered_as_the_first(gateway: Peer, name: str):
    made = await create(gateway, name, request_id=name, role="web")
    assert await create(gateway, name, request_id=name, role="web") == made
    with pytest.raises(AlreadyExistsError) as failure:
        await create(gateway, name, request_id=name, role="db")
    assert failure.value.reason == "REQUEST_ID_REUSED"


async def test_only_what_the_mask_names_is_changed_and_only_by_who_read_the_newest(gateway: Peer, name: str):
    made = await create(gateway, name, role="web", environment="aws")
    made.role, made.environment = "db", "gcp"
    made.thresholds.cpu_warning = 55
    changed = (await call(gateway, "UpdateServer", update(made, "role", "thresholds"))).server
    assert (changed.role, changed.environment, changed.thresholds.cpu_warning) == ("db", "aws", 55)
    with pytest.raises(AbortedError):
        await call(gateway, "UpdateServer", update(made, "role"))
    made.etag = ""
    assert (await call(gateway, "UpdateServer", update(made, "environment"))).server.environment == "gcp"


async def test_a_deleted_server_is_hidden_and_can_be_seen_again(gateway: Peer, name: str):
    await create(gateway, name)
    hidden = (await call(gateway, "DeleteServer", pb.DeleteServerRequest(id=name))).server
    assert hidden.HasField("delete_time")
    with pytest.raises(NotFoundError):
        await get(gateway, name)
    await call(gateway, "DeleteServer", pb.DeleteServerRequest(id=name))
    listing = pb.ListServersRequest(filter=f"id = {name}")
    assert (await call(gateway, "ListServers", listing)).total_count == 0
    listing.show_deleted = True
    assert (await call(gateway, "ListServers", listing)).total_count == 1
    before, after = hidden.delete_time.ToNanoseconds() - 10**9, hidden.delete_time.ToNanoseconds() + 10**9
    assert (await call(gateway, "RegisterServers", register(name, before))).restored_count == 0
    assert (await call(gateway, "RegisterServers", register(name, after))).restored_count == 1
    assert (await get(gateway, name)).id == name
    await call(gateway, "DeleteServer", pb.DeleteServerRequest(id=name, purge=True))
    with pytest.raises(NotFoundError):
        await call(gateway, "DeleteServer", pb.DeleteServerRequest(id=name))


async def test_registration_fills_in_what_nobody_set_and_changes_nothing_twice(gateway: Peer, name: str):
    await create(gateway, name, role="mine")
    reply = await call(gateway, "RegisterServers", register(name, 1, hostname="h", role="theirs", labels={"a": "1"}))
    assert reply.created_count == 0
    found = await get(gateway, name)
    assert (found.role, found.hostname, dict(found.labels)) == ("mine", "h", {"a": "1"})
    await call(gateway, "RegisterServers", register(name, 2, hostname="h", role="theirs", labels={"a": "1"}))
    assert (await get(gateway, name)).etag == found.etag
    assert (await call(gateway, "RegisterServers", register(f"{name}-2", 3))).created_count == 1


async def test_pages_are_in_order_and_complete(gateway: Peer, name: str):
    infos = [frame_pb2.ServerInfo(id=f"{name}-{at:03d}", role=f"r{at % 3}") for at in range(250)]
    request = pb.RegisterServersRequest(server_infos=infos)
    request.seen_time.GetCurrentTime()
    assert (await call(gateway, "RegisterServers", request)).created_count == 250
    for order_by in ("", "role", "role desc", "update_time"):
        found, token = [], ""
        while True:
            listing = pb.ListServersRequest(page_size=60, page_token=token, filter=f"id:{name}", order_by=order_by)
            reply = await call(gateway, "ListServers", listing)
            found += [(server.role, server.id) for server in reply.servers]
            token = reply.next_page_token
            assert reply.total_count == 250
            if not token:
                break
        assert len(set(found)) == 250
        if order_by == "role desc":
            assert found == sorted(found, key=lambda each: (-int(each[0][1]), each[1]))


@pytest.mark.parametrize(
    "hostile", ["'; DROP TABLE servers; --", "100%", "a_b", "\\", "ü€𝄞", "x\u202ey", "${jndi:x}", "%s", "../.."]
)
async def test_hostile_text_goes_in_and_comes_out_unchanged(gateway: Peer, name: str, hostile: str):
    await create(gateway, name, role=hostile, labels={hostile: hostile})
    found = await get(gateway, name)
    assert (found.role, found.labels[hostile]) == (hostile, hostile)
    quoted = '"' + hostile.replace("\\", "\\\\").replace('"', '\\"') + '"'
    for text in (f"role = {quoted}", f"role : {quoted}"):
        reply = await call(gateway, "ListServers", pb.ListServersRequest(filter=f"id = {name} AND {text}"))
        assert reply.total_count == 1
    reply = await call(gateway, "ListServers", pb.ListServersRequest(filter=f"id = {name} AND role : x%y"))
    assert reply.total_count == 0


async def test_several_servers_are_read_at_once(gateway: Peer, name: str):
    await create(gateway, name)
    reply = await call(gateway, "BatchGetServers", pb.BatchGetServersRequest(ids=["nobody", name, name.upper()]))
    assert [server.id for server in reply.servers] == [name]
    assert list(reply.missing_ids) == ["nobody"]


BAD = [
    ("CreateServer", pb.CreateServerRequest(), "server.id"),
    ("CreateServer", pb.CreateServerRequest(server=pb.Server(id="a b")), "server.id"),
    ("CreateServer", pb.CreateServerRequest(server=pb.Server(id="x", role="r" * 51)), "server.role"),
    ("CreateServer", pb.CreateServerRequest(server=pb.Server(id="x", hostname="a\nb")), "server.hostname"),
    ("CreateServer", pb.CreateServerRequest(server=pb.Server(id="x", labels={"": "a"})), "server.labels"),
    ("CreateServer", pb.CreateServerRequest(server=pb.Server(id="x"), request_id="r" * 65), "request_id"),
    (
        "CreateServer",
        pb.CreateServerRequest(server=pb.Server(id="x", thresholds=pb.Thresholds(cpu_warning=0))),
        "server.thresholds.cpu_warning",
    ),
    (
        "CreateServer",
        pb.CreateServerRequest(server=pb.Server(id="x", thresholds=pb.Thresholds(disk_warning=9, disk_critical=8))),
        "server.thresholds.disk_warning",
    ),
    ("CreateServer", pb.CreateServerRequest(server=pb.Server(id="x"), request_id="a\0"), "request_id"),
    ("GetServer", pb.GetServerRequest(), "id"),
    ("UpdateServer", update(pb.Server(id="x")), "update_mask"),
    ("UpdateServer", update(pb.Server(id="x"), "*"), "update_mask"),
    ("UpdateServer", update(pb.Server(id="x"), "id"), "update_mask"),
    ("UpdateServer", update(pb.Server(id="x"), "create_time"), "update_mask"),
    ("UpdateServer", update(pb.Server(id="x"), *["role"] * 10_000), "update_mask"),
    ("UpdateServer", update(pb.Server(id="x", etag="a\0"), "role"), "server.etag"),
    ("DeleteServer", pb.DeleteServerRequest(), "id"),
    ("DeleteServer", pb.DeleteServerRequest(id="x", etag="a\0"), "etag"),
    ("BatchGetServers", pb.BatchGetServersRequest(), "ids"),
    ("BatchGetServers", pb.BatchGetServersRequest(ids=["x"] * 1001), "ids"),
    ("ListServers", pb.ListServersRequest(filter="colour = red"), "filter"),
    ("ListServers", pb.ListServersRequest(filter='update_time > "yesterday"'), "filter"),
    ("ListServers", pb.ListServersRequest(filter='role = "a\0"'), "filter"),
    ("ListServers", pb.ListServersRequest(filter='labels.a\0 = "a"'), "filter"),
    ("ListServers", pb.ListServersRequest(filter='update_time > "0001-01-01T00:00:00+14:00"'), "filter"),
    ("ListServers", pb.ListServersRequest(order_by="id; DROP TABLE servers"), "order_by"),
    ("RegisterServers", pb.RegisterServersRequest(), "server_infos"),
    ("RegisterServers", pb.RegisterServersRequest(server_infos=[frame_pb2.ServerInfo(id="x")]), "seen_time"),
]


@pytest.mark.parametrize(("method", "request_", "field"), BAD, ids=[f"{method}-{field}" for method, _, field in BAD])
async def test_bad_input_names_its_field(gateway: Peer, method: str, request_, field: str):
    with pytest.raises(InvalidArgumentError) as failure:
        await call(gateway, method, request_)
    assert failure.value.field == field


@pytest.mark.parametrize("method", ["GetServer", "DeleteServer", "UpdateServer"])
async def test_an_unknown_server_is_not_found(gateway: Peer, name: str, method: str):
    request = {
        "GetServer": pb.GetServerRequest(id=name),
        "DeleteServer": pb.DeleteServerRequest(id=name),
        "UpdateServer": update(pb.Server(id=name), "role"),
    }[method]
    with pytest.raises(NotFoundError) as failure:
        await call(gateway, method, request)
    assert failure.value.resource == f"server/{name}"


def policy(kind: str, policy_id: str, document: dict, etag: str = "") -> pb.UpdatePolicyRequest:
    request = pb.UpdatePolicyRequest(policy=pb.Policy(kind=kind, id=policy_id, etag=etag))
    request.policy.document.update(document)
    return request


def fault(**changes) -> dict:
    return {
        "id": "f",
        "pattern": "cpu_spike",
        "servers": ["a"],
        "start_nanos": "1",
        "end_nanos": "2",
        "severity": 0.5,
        "seed": "3",
        **changes,
    }


async def test_a_policy_is_written_read_listed_and_deleted(gateway: Peer, name: str):
    made = (await call(gateway, "UpdatePolicy", policy("fault", name, fault(more=[1, {"b": None}])), POLICIES)).policy
    found = (await call(gateway, "GetPolicy", pb.GetPolicyRequest(kind="fault", id=name), POLICIES)).policy
    assert found == made
    changed = (
        await call(gateway, "UpdatePolicy", policy("fault", name, fault(severity=1), made.etag), POLICIES)
    ).policy
    with pytest.raises(AbortedError):
        await call(gateway, "UpdatePolicy", policy("fault", name, fault(), made.etag), POLICIES)
    with pytest.raises(AbortedError):
        await call(gateway, "DeletePolicy", pb.DeletePolicyRequest(kind="fault", id=name, etag=made.etag), POLICIES)
    deletion = pb.DeletePolicyRequest(kind="fault", id=name, etag=changed.etag)
    assert (await call(gateway, "DeletePolicy", deletion, POLICIES)).policy.document["severity"] == 1
    with pytest.raises(NotFoundError):
        await call(gateway, "GetPolicy", pb.GetPolicyRequest(kind="fault", id=name), POLICIES)


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (policy("colour", "x", {}), InvalidArgumentError),
        (policy("fault", "a b", {}), InvalidArgumentError),
        (policy("thresholds", "x", {"cpu_warning": "high"}), InvalidArgumentError),
        (policy("thresholds", "x", {"colour": 1}), InvalidArgumentError),
        (policy("thresholds", "x", {"cpu_warning": 101}), InvalidArgumentError),
        (policy("fault", "x", fault(more="b" * 70_000)), ResourceExhaustedError),
        (policy("fault", "x", fault(more=float("nan"))), InvalidArgumentError),
        (policy("fault", "x", fault(more="a\0")), InvalidArgumentError),
        (policy("fault", "x", fault(servers=[])), InvalidArgumentError),
        (policy("fault", "x", fault(pattern=1)), InvalidArgumentError),
        (policy("fault", "x", fault(end_nanos="1")), InvalidArgumentError),
        (policy("fault", "x", fault(start_nanos="-1")), InvalidArgumentError),
        (policy("fault", "x", fault(severity=0)), InvalidArgumentError),
        (policy("fault", "x", fault(seed="x")), InvalidArgumentError),
    ],
)
async def test_a_policy_that_cannot_be_is_refused(gateway: Peer, request_, error: type[OpenManagerError]):
    with pytest.raises(error):
        await call(gateway, "UpdatePolicy", request_, POLICIES)

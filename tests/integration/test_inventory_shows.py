"""What people set in the inventory shows in the hot state, and what frames tell shows in the inventory."""

from __future__ import annotations

import time

import numpy as np
from conftest import wait_until
from google.protobuf import field_mask_pb2

from openmanager.api.gateway.v1 import gateway_pb2
from openmanager.api.metadata.v1 import metadata_pb2 as pb
from openmanager.api.server.v1 import server_pb2
from openmanager.errors import NotFoundError
from openmanager.frame import Frame, ServerInfo, encode_write_request
from openmanager.runtime.peer import Peer

INVENTORY = "/openmanager.api.metadata.v1.ServerService"
POLICIES = "/openmanager.api.metadata.v1.PolicyService"
GATEWAY = "/openmanager.api.gateway.v1.GatewayService"


async def write(peer: Peer, server: str, cpu: float, role: str) -> None:
    frame = Frame(
        times=np.array([time.time_ns() // 10**6 * 10**6]),
        servers=(server,),
        metrics=("cpu_usage",),
        values=np.array([[[cpu]]]),
        server_infos=(ServerInfo(id=server, role=role, hostname="told"),),
    )
    await peer.unary(f"{GATEWAY}/WriteFrame", encode_write_request(frame), gateway_pb2.WriteFrameResponse, seconds=5)


async def hot(peer: Peer, server: str) -> server_pb2.Server | None:
    request = gateway_pb2.GetServerRequest(id=server, view=server_pb2.VIEW_BASIC)
    try:
        return (await peer.unary(f"{GATEWAY}/GetServer", request, gateway_pb2.GetServerResponse, seconds=5)).server
    except NotFoundError:
        return None


async def inventory(peer: Peer, server: str) -> pb.Server | None:
    try:
        request = pb.GetServerRequest(id=server)
        return (await peer.unary(f"{INVENTORY}/GetServer", request, pb.GetServerResponse, seconds=5)).server
    except NotFoundError:
        return None


async def test_a_server_first_seen_is_registered_renamed_and_deleted(gateway: Peer):
    name = "shown-1"
    await write(gateway, name, 10.0, "web")

    async def is_registered() -> bool:
        found = await inventory(gateway, name)
        return found is not None and (found.role, found.hostname) == ("web", "told")

    await wait_until(is_registered)
    update = pb.UpdateServerRequest(
        server=pb.Server(id=name, hostname="mine", thresholds=pb.Thresholds(cpu_critical=5, cpu_warning=4)),
        update_mask=field_mask_pb2.FieldMask(paths=["hostname", "thresholds"]),
    )
    await gateway.unary(f"{INVENTORY}/UpdateServer", update, pb.UpdateServerResponse, seconds=5)

    async def is_shown() -> bool:
        found = await hot(gateway, name)
        return found is not None and (found.hostname, found.state) == ("mine", server_pb2.SERVER_STATE_CRITICAL)

    await wait_until(is_shown)
    await gateway.unary(
        f"{INVENTORY}/DeleteServer", pb.DeleteServerRequest(id=name), pb.DeleteServerResponse, seconds=5
    )

    async def is_hidden() -> bool:
        return await hot(gateway, name) is None

    await wait_until(is_hidden)
    await write(gateway, name, 1.0, "web")

    async def is_back() -> bool:
        await write(gateway, name, 1.0, "web")
        return await hot(gateway, name) is not None and await inventory(gateway, name) is not None

    await wait_until(is_back, 20)


async def test_a_policy_for_a_role_changes_the_state_of_its_servers(gateway: Peer):
    name, role = "judged-1", "judged"
    await write(gateway, name, 30.0, role)
    request = pb.UpdatePolicyRequest(policy=pb.Policy(kind="thresholds", id=role))
    request.policy.document.update({"cpu_warning": 20, "cpu_critical": 40})
    await gateway.unary(f"{POLICIES}/UpdatePolicy", request, pb.UpdatePolicyResponse, seconds=5)

    async def is_judged() -> bool:
        found = await hot(gateway, name)
        return found is not None and found.state in {server_pb2.SERVER_STATE_WARNING, server_pb2.SERVER_STATE_OFFLINE}

    await wait_until(is_judged)

"""Who may call what: every method of every service, as every role, over all servers and over some.

The table beside this file says what is expected, and the policy does not make it: who changes one changes both.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import yaml
from google.protobuf.descriptor import MethodDescriptor

from openmanager import access, policy, suite
from openmanager.access import Grant, Identity, Role
from openmanager.config import Secret
from openmanager.errors import OpenManagerError, PermissionDeniedError, UnauthenticatedError
from openmanager.runtime import reflection
from openmanager.runtime.clock import SystemClock
from openmanager.runtime.edge import raw
from openmanager.runtime.gate import Gate
from openmanager.runtime.mesh_key import HEADER, MeshKey
from openmanager.runtime.module import ServerConfig, Service, service_descriptor
from openmanager.runtime.peer import Peer
from openmanager.runtime.server import Server

EXPECTED = yaml.safe_load(Path(__file__).with_name("access.yaml").read_text(encoding="utf-8"))
SCOPES = ("", "role = web")
OWN = {"openmanager.api.gateway.v1.GatewayService", "opentelemetry.proto.collector.metrics.v1.MetricsService"}
# Served by every server, behind the same edge.
COMMON = {
    "openmanager.api.status.v1.StatusService",
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
}


def served() -> set[str]:
    """Return every service that some server of the suite serves."""
    reflection._v1_descriptor()  # which is made when a server is
    return {*OWN, *COMMON, *(name for names in suite.SERVICES.values() for name in names)}


class Stub:
    """Answers every method with nothing: what is tried is the door."""

    def __init__(self, service: str) -> None:
        for method in service_descriptor(service).methods:
            setattr(self, method.name, self._stream if method.server_streaming else self._unary)

    @staticmethod
    @raw
    async def _unary(data: object, context: object) -> bytes:
        return b""

    @staticmethod
    @raw
    async def _stream(data: object, context: object) -> AsyncIterator[bytes]:
        yield b""


@asynccontextmanager
async def serving() -> AsyncIterator[str]:
    clock = SystemClock()
    server = Server(
        service=Service(servicers={name: Stub(name) for name in served() - COMMON}),
        name="test",
        address="127.0.0.1:0",
        config=ServerConfig(),
        clock=clock,
        gate=Gate(anonymous=None, mesh_key=MeshKey(Secret("k" * 40), "test", clock)),
    )
    async with server.running():
        yield f"127.0.0.1:{server.port}"


async def call(peer: Peer, method: MethodDescriptor) -> type[OpenManagerError] | None:
    """Call a method; return why one did not come in, None when one did."""
    path = f"/{method.containing_service.full_name}/{method.name}"
    try:
        if not method.server_streaming:
            await peer.unary_bytes(path, b"", seconds=5)
        elif method.client_streaming:

            async def nothing() -> AsyncIterator[bytes]:
                return
                yield b""

            async for _ in peer.bidi_stream(path, nothing(), seconds=5):
                break
        else:
            async for _ in peer.server_stream(path, b"", seconds=5):
                break
    except (PermissionDeniedError, UnauthenticatedError) as err:
        return type(err)
    except OpenManagerError:
        pass  # it came in, and asked for something that is not there
    return None


def test_every_method_has_a_line_in_the_policy_and_every_line_a_method():
    there = {name: {method.name for method in service_descriptor(name).methods} for name in served()}
    assert {name: set(rules) for name, rules in policy.POLICY.items()} == there
    assert {name: set(rules) for name, rules in EXPECTED.items()} == there


def test_who_changes_something_for_others_leaves_a_trace():
    changes = ("Create", "Update", "Delete", "Start", "Stop", "Advance", "Backfill", "Inject", "Clear", "Erase",
               "Rotate", "Invite", "Accept", "Change", "Rebuild", "Retry", "Import")  # fmt: skip
    silent = {
        f"{service.rpartition('.')[2]}/{method}"
        for service, rules in policy.POLICY.items()
        for method, rule in rules.items()
        if method.startswith(changes) and not rule.audited
    }
    # Recorded for what they are, in tables of their own; entries are a cache.
    assert silent == {"InteractionService/CreateInteraction", "EntryService/DeleteEntry"}


@pytest.mark.parametrize(
    ("role", "scope"),
    [*((role, scope) for role in access.ROLES for scope in SCOPES), (Role.MESH, ""), (None, "")],
    ids=lambda value: str(value or "all"),
)
async def test_every_method_opens_to_whom_the_table_says_and_to_nobody_else(role: Role | None, scope: str):
    key = MeshKey(Secret("k" * 40), "gateway", SystemClock())
    identity = Identity("users/x", () if role is None else (Grant(role, scope),))
    wrong = []
    async with serving() as address, Peer("test", address, identify=lambda: ((HEADER, key.token(identity)),)) as peer:
        for service, methods in EXPECTED.items():
            for name, words in methods.items():
                opens = set(words.split())
                may = bool(opens & {"all", "each"}) or role is Role.MESH or str(role) in opens
                if scope and not opens & {"all", "each", "*"}:
                    may = False
                found = await call(peer, service_descriptor(service).methods_by_name[name])
                if found is not (None if may else PermissionDeniedError):
                    wrong.append((service, name, found))
    assert wrong == []


async def test_without_credentials_only_what_is_open_to_all_opens():
    async with serving() as address, Peer("test", address) as peer:
        opened = {
            f"{service}/{name}"
            for service, methods in EXPECTED.items()
            for name in methods
            if await call(peer, service_descriptor(service).methods_by_name[name]) is None
        }
    assert opened == {
        f"{service}/{name}"
        for service, methods in EXPECTED.items()
        for name, words in methods.items()
        if words == "all"
    }

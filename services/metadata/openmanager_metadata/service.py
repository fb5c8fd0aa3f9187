"""The edge of the metadata service."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from google.protobuf import json_format

from openmanager import access
from openmanager.api.frame.v1 import frame_pb2
from openmanager.api.metadata.v1 import metadata_pb2 as pb
from openmanager.api.provenance.v1 import provenance_pb2
from openmanager.errors import UnavailableError, invalid, missing
from openmanager.frame import check_server_id, checked_info
from openmanager.runtime import validate
from openmanager.runtime.clock import Clock
from openmanager_metadata.inventory import UPDATABLE, Inventory, ListQuery, Page, Server, Snapshot, arrange, checked_ids
from openmanager_metadata.policy import Policies, Policy


class ServerService:
    """openmanager.api.metadata.v1.ServerService: reads fall back to the snapshot, marked; writes do not."""

    def __init__(self, inventory: Inventory, snapshot: Snapshot, clock: Clock) -> None:
        self._inventory = inventory
        self._snapshot = snapshot
        self._clock = clock

    async def CreateServer(self, request: pb.CreateServerRequest, context: Any) -> pb.CreateServerResponse:  # noqa: ARG002, N802
        """Create a server."""
        if not request.server.id:
            raise missing("server.id")
        server = _server(request.server)
        access.check_may_change(access.fields_of(server), "server")
        made = await self._inventory.create(server, request.request_id)
        self._snapshot.put(made)
        return pb.CreateServerResponse(server=_message(made))

    async def GetServer(self, request: pb.GetServerRequest, context: Any) -> pb.GetServerResponse:  # noqa: ARG002, N802
        """Return one server."""
        if not request.id:
            raise missing("id")
        server_id = check_server_id(request.id, "id")
        try:
            found, stale = await self._inventory.get(server_id), False
            self._snapshot.put(found)
        except UnavailableError:
            found, stale = self._snapshot.get(server_id), True
        access.check_reaches(access.fields_of(found), server_id)
        return pb.GetServerResponse(server=_message(found), provenance=self._provenance(stale=stale))

    async def ListServers(self, request: pb.ListServersRequest, context: Any) -> pb.ListServersResponse:  # noqa: ARG002, N802
        """List servers."""
        query = ListQuery(
            page_size=request.page_size,
            page_token=request.page_token,
            filter=access.narrowed(request.filter),
            order_by=request.order_by,
            show_deleted=request.show_deleted,
        )
        try:
            found, stale = await self._inventory.list(query), False
        except UnavailableError:
            found, stale = self._snapshot.list(query), True
        about = self._provenance(stale=stale)
        if found.damaged:
            about.partial, about.reason = True, f"{found.damaged} servers cannot be read"
        return _list_response(found, about)

    async def UpdateServer(self, request: pb.UpdateServerRequest, context: Any) -> pb.UpdateServerResponse:  # noqa: ARG002, N802
        """Change some fields of a server."""
        if not request.server.id:
            raise missing("server.id")
        fields = validate.mask(request.update_mask.paths, UPDATABLE)
        await self._check_reached(request.server.id, _server(request.server), fields)
        changed = await self._inventory.update(_server(request.server), fields)
        self._snapshot.put(changed)
        return pb.UpdateServerResponse(server=_message(changed))

    async def DeleteServer(self, request: pb.DeleteServerRequest, context: Any) -> pb.DeleteServerResponse:  # noqa: ARG002, N802
        """Hide a server or remove its row."""
        if not request.id:
            raise missing("id")
        server_id = check_server_id(request.id, "id")
        await self._check_reached(server_id)
        gone = await self._inventory.delete(server_id, request.etag, purge=request.purge)
        self._snapshot.drop(server_id)
        return pb.DeleteServerResponse(server=_message(gone))

    async def BatchGetServers(self, request: pb.BatchGetServersRequest, context: Any) -> pb.BatchGetServersResponse:  # noqa: ARG002, N802
        """Return several servers."""
        ids = checked_ids(request.ids)
        try:
            (found, absent), stale = await self._inventory.batch_get(ids), False
        except UnavailableError:
            (found, absent), stale = arrange(self._snapshot.known(), ids), True
        beyond = {each.id for each in found if not access.reaches(access.fields_of(each))}
        return pb.BatchGetServersResponse(
            servers=[_message(each) for each in found if each.id not in beyond],
            missing_ids=[each for each in ids if each in beyond or each in absent],
            provenance=self._provenance(stale=stale),
        )

    async def RegisterServers(self, request: pb.RegisterServersRequest, context: Any) -> pb.RegisterServersResponse:  # noqa: ARG002, N802
        """Register servers that sent frames."""
        infos = _infos(request.server_infos)
        if not request.HasField("seen_time"):
            raise missing("seen_time")
        created, restored = await self._inventory.register(infos, request.seen_time.ToDatetime(tzinfo=UTC))
        return pb.RegisterServersResponse(created_count=created, restored_count=restored)

    async def _check_reached(self, server_id: str, becomes: Server | None = None, fields: Sequence[str] = ()) -> None:
        """Raise NotFoundError for a server beyond the caller's reach, PermissionDeniedError for putting it there."""
        if not access.scope():
            return
        known = await self._inventory.get(check_server_id(server_id, "id"))
        access.check_reaches(access.fields_of(known), server_id)
        if becomes is not None:
            changed = replace(known, **{name: getattr(becomes, name) for name in fields})
            access.check_may_change(access.fields_of(changed), "server")

    def _provenance(self, *, stale: bool) -> provenance_pb2.Provenance:
        now = self._clock.now_nanos()
        as_of = self._snapshot.taken_nanos if stale else now
        about = provenance_pb2.Provenance(source="snapshot" if stale else "postgresql", degraded=stale)
        about.reason = "PostgreSQL does not answer" if stale else ""
        about.as_of_time.FromNanoseconds(as_of)
        about.staleness.FromNanoseconds(max(0, now - as_of))
        return about


class PolicyService:
    """openmanager.api.metadata.v1.PolicyService."""

    def __init__(self, policies: Policies) -> None:
        self._policies = policies

    async def GetPolicy(self, request: pb.GetPolicyRequest, context: Any) -> pb.GetPolicyResponse:  # noqa: ARG002, N802
        """Return one policy."""
        return pb.GetPolicyResponse(policy=_policy_message(await self._policies.get(request.kind, request.id)))

    async def ListPolicies(self, request: pb.ListPoliciesRequest, context: Any) -> pb.ListPoliciesResponse:  # noqa: ARG002, N802
        """List the policies of a kind."""
        found, token = await self._policies.list(request.kind, request.page_size, request.page_token)
        return pb.ListPoliciesResponse(policies=map(_policy_message, found), next_page_token=token)

    async def UpdatePolicy(self, request: pb.UpdatePolicyRequest, context: Any) -> pb.UpdatePolicyResponse:  # noqa: ARG002, N802
        """Create or replace a policy."""
        policy = request.policy
        for name in ("kind", "id"):
            if not getattr(policy, name):
                raise missing(f"policy.{name}")
        if not policy.HasField("document"):
            raise missing("policy.document")
        document = _document(policy.document)
        stored = await self._policies.update(policy.kind, policy.id, document, policy.etag)
        return pb.UpdatePolicyResponse(policy=_policy_message(stored))

    async def DeletePolicy(self, request: pb.DeletePolicyRequest, context: Any) -> pb.DeletePolicyResponse:  # noqa: ARG002, N802
        """Delete a policy."""
        deleted = await self._policies.delete(request.kind, request.id, request.etag)
        return pb.DeletePolicyResponse(policy=_policy_message(deleted))


# ── proto → domain ─────────────────────────────────────────────────────────────────────────────────────────────────


def _server(message: pb.Server) -> Server:
    return Server(
        id=check_server_id(message.id, "server.id"),
        hostname=message.hostname,
        environment=message.environment,
        role=message.role,
        location=message.location,
        labels=dict(message.labels),
        thresholds={field.name: value for field, value in message.thresholds.ListFields()},
        etag=message.etag,
    )


def _infos(messages: Sequence[frame_pb2.ServerInfo]) -> list[Any]:
    if not 1 <= len(messages) <= 1000:
        raise invalid("server_infos", "must have 1–1,000 entries")
    infos = [checked_info(message, "server_infos") for message in messages]
    if len({info.id for info in infos}) != len(infos):
        raise invalid("server_infos", "has an id twice")
    return infos


def _document(struct: Any) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json_format.MessageToDict(struct)
    except (json_format.Error, ValueError, RecursionError) as err:
        raise invalid("policy.document", "holds a value that JSON does not have") from err
    return found


# ── domain → proto ─────────────────────────────────────────────────────────────────────────────────────────────────


def _message(server: Server) -> pb.Server:
    message = pb.Server(
        id=server.id,
        hostname=server.hostname,
        environment=server.environment,
        role=server.role,
        location=server.location,
        labels=dict(server.labels),
        etag=server.etag,
    )
    if server.thresholds:
        message.thresholds.CopyFrom(pb.Thresholds(**{name: float(v) for name, v in server.thresholds.items()}))
    for name in ("create_time", "update_time", "delete_time"):
        time: datetime | None = getattr(server, name)
        if time is not None:
            getattr(message, name).FromDatetime(time)
    return message


def _list_response(found: Page, provenance: provenance_pb2.Provenance) -> pb.ListServersResponse:
    return pb.ListServersResponse(
        servers=map(_message, found.servers),
        next_page_token=found.next_page_token,
        total_count=found.total_count,
        provenance=provenance,
    )


def _policy_message(policy: Policy) -> pb.Policy:
    message = pb.Policy(kind=policy.kind, id=policy.id, etag=policy.etag)
    json_format.ParseDict(dict(policy.document), message.document)
    message.update_time.FromDatetime(policy.update_time)
    return message

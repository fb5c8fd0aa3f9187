"""The inventory: which servers there are, and what people say of them."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from google.protobuf.field_mask_pb2 import FieldMask

from openmanager.api.metadata.v1 import metadata_pb2
from openmanager.client import codec, model, rpc
from openmanager.client.rpc import DEADLINE_SECONDS, Rpc


class Inventory:
    """Reads and changes the inventory."""

    def __init__(self, calls: Rpc) -> None:
        self._calls = calls

    async def create(
        self, server: model.InventoryServer, *, request_id: str = "", seconds: float = DEADLINE_SECONDS
    ) -> model.InventoryServer:
        """Create a server; AlreadyExistsError when its id exists.

        Repeated with the same `request_id`, by default a new one, it returns what the first call returned.
        """
        request = metadata_pb2.CreateServerRequest(
            server=codec.inventory_message(server), request_id=request_id or uuid.uuid4().hex
        )
        reply = await self._calls.call(rpc.CREATE_INVENTORY_SERVER, request, seconds=seconds)
        return codec.inventory_server(reply.server)

    async def get(self, server_id: str, *, seconds: float = DEADLINE_SECONDS) -> model.InventoryServer:
        """Return a server; NotFoundError when it does not exist or was deleted."""
        request = metadata_pb2.GetServerRequest(id=server_id)
        reply = await self._calls.call(rpc.GET_INVENTORY_SERVER, request, seconds=seconds)
        return codec.inventory_server(reply.server)

    async def list(
        self,
        filter: str = "",  # noqa: A002  (the contract's word)
        *,
        order_by: str = "",
        show_deleted: bool = False,
        limit: int | None = None,
        seconds: float = DEADLINE_SECONDS,
    ) -> AsyncIterator[model.InventoryServer]:
        """Yield servers, page after page; `seconds` is for one page."""
        request = metadata_pb2.ListServersRequest(filter=filter, order_by=order_by, show_deleted=show_deleted)
        async for page in self._calls.pages(rpc.LIST_INVENTORY_SERVERS, request, limit=limit, seconds=seconds):
            for each in page.servers:
                yield codec.inventory_server(each)

    async def update(
        self,
        server_id: str,
        *,
        hostname: str | None = None,
        environment: str | None = None,
        role: str | None = None,
        location: str | None = None,
        labels: Mapping[str, str] | None = None,
        thresholds: model.Thresholds | None = None,
        etag: str = "",
        seconds: float = DEADLINE_SECONDS,
    ) -> model.InventoryServer:
        """Change what is given and return the server as it is now.

        NotFoundError; AbortedError when `etag` is given and the server was changed since it was read.
        """
        texts = {"hostname": hostname, "environment": environment, "role": role, "location": location}
        changes: dict[str, Any] = {name: value for name, value in texts.items() if value is not None}
        if labels is not None:
            changes["labels"] = dict(labels)
        if thresholds is not None:
            changes["thresholds"] = codec.thresholds_message(thresholds)
        request = metadata_pb2.UpdateServerRequest(
            server=metadata_pb2.Server(id=server_id, etag=etag, **changes), update_mask=FieldMask(paths=sorted(changes))
        )
        reply = await self._calls.call(rpc.UPDATE_INVENTORY_SERVER, request, seconds=seconds)
        return codec.inventory_server(reply.server)

    async def delete(
        self, server_id: str, *, etag: str = "", purge: bool = False, seconds: float = DEADLINE_SECONDS
    ) -> model.InventoryServer:
        """Hide a server and its hot state, or with `purge` remove its row; return it as it was. Its history stays."""
        request = metadata_pb2.DeleteServerRequest(id=server_id, etag=etag, purge=purge)
        reply = await self._calls.call(rpc.DELETE_INVENTORY_SERVER, request, seconds=seconds)
        return codec.inventory_server(reply.server)

    async def batch_get(
        self, server_ids: Sequence[str], *, seconds: float = DEADLINE_SECONDS
    ) -> tuple[tuple[model.InventoryServer, ...], tuple[str, ...]]:
        """Return the servers of 1–1,000 ids that exist, in the order of the ids, and the ids that do not."""
        request = metadata_pb2.BatchGetServersRequest(ids=server_ids)
        reply = await self._calls.call(rpc.BATCH_GET_INVENTORY_SERVERS, request, seconds=seconds)
        return tuple(codec.inventory_server(each) for each in reply.servers), tuple(reply.missing_ids)

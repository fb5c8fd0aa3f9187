"""Follows the inventory: what people set of servers, which are deleted, and the thresholds in force."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from openmanager.api.metadata.v1 import metadata_pb2 as pb
from openmanager.errors import OpenManagerError
from openmanager.frame import server_info
from openmanager.runtime.clock import until_next
from openmanager.runtime.peer import Peer
from openmanager_cache.fleet import Fleet
from openmanager_cache.threshold import Thresholds

LIST_SERVERS = "/openmanager.api.metadata.v1.ServerService/ListServers"
LIST_POLICIES = "/openmanager.api.metadata.v1.PolicyService/ListPolicies"
CALL_SECONDS = 2.0
# Two writers' transactions may become visible out of order of their times: look back this far at every question.
OVERLAP = timedelta(seconds=5)

log = logging.getLogger(__name__)


class InventoryFollower:
    """Asks the metadata service for what has changed, every few seconds."""

    def __init__(self, *, peer: Peer, fleet: Fleet, interval: timedelta) -> None:
        self._peer = peer
        self._fleet = fleet
        self._interval = interval.total_seconds()
        self._since = datetime(1970, 1, 1, tzinfo=UTC)
        self._seen: dict[str, str] = {}
        self._policies: dict[str, str] = {}
        self.failing = False

    async def run(self) -> None:
        """Follow for ever."""
        while True:
            try:
                await self._take_servers()
                await self._take_thresholds()
                self.failing = False
            except OpenManagerError as err:
                if not self.failing:
                    log.info("the inventory is out of reach: %s", err)
                self.failing = True
            await asyncio.sleep(until_next(self._interval))

    async def _take_servers(self) -> None:
        request = pb.ListServersRequest(
            page_size=1000,
            show_deleted=True,
            filter=f'update_time >= "{self._since.isoformat()}"',
            order_by="update_time",
        )
        while True:
            reply = await self._peer.unary(LIST_SERVERS, request, pb.ListServersResponse, seconds=CALL_SECONDS)
            if reply.provenance.degraded:
                return  # a snapshot of older days tells nothing new
            self._take([server for server in reply.servers if self._seen.get(server.id) != server.etag])
            for server in reply.servers:
                self._seen[server.id] = server.etag
                self._since = max(self._since, server.update_time.ToDatetime(tzinfo=UTC) - OVERLAP)
            if not reply.next_page_token:
                return
            request.page_token = reply.next_page_token

    def _take(self, servers: list[pb.Server]) -> None:
        if not servers:
            return
        self._fleet.delete(
            {server.id: server.delete_time.ToNanoseconds() for server in servers if server.HasField("delete_time")}
        )
        kept = [server for server in servers if not server.HasField("delete_time")]
        for server in kept:
            overrides = {field.name: value for field, value in server.thresholds.ListFields()}
            if overrides:
                self._fleet.thresholds.servers[server.id] = overrides
            else:
                self._fleet.thresholds.servers.pop(server.id, None)
        self._fleet.learn(list(map(server_info, kept)))

    async def _take_thresholds(self) -> None:
        request = pb.ListPoliciesRequest(kind="thresholds", page_size=1000)
        reply = await self._peer.unary(LIST_POLICIES, request, pb.ListPoliciesResponse, seconds=CALL_SECONDS)
        etags = {policy.id: policy.etag for policy in reply.policies}
        if etags == self._policies:
            return
        self._policies = etags
        documents = {policy.id: _numbers(policy.document) for policy in reply.policies}
        table = self._fleet.thresholds
        table.default = Thresholds().with_overrides(documents.pop("default", {}))
        table.roles = dict(documents)
        self._fleet.refresh_all()


def _numbers(document: Any) -> Mapping[str, float]:
    return {name: value.number_value for name, value in document.fields.items() if value.HasField("number_value")}

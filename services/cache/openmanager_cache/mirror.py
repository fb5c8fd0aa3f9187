"""Keeps the report's keys in Redis: written behind, so that a Redis that is away costs nothing.

Keys, under the configured prefix: `server:{id}` a GetServerResponse without provenance and without metric keys (these
are under `metrics:{metric_set}`, once); `servers:all` a ListServersResponse of the BASIC view, left out above 4 MiB;
`servers:count` and `servers:healthy` decimal numbers; `epoch` (in a cluster one at each master), the number of the last write, which tells our own data from
an empty store and from a copy that lacks the last of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Iterable
from datetime import timedelta

from google.protobuf.message import DecodeError

from openmanager.api.cache.v1 import cache_pb2
from openmanager.api.server.v1 import server_pb2
from openmanager.errors import OpenManagerError
from openmanager.frame import encode_names, length_delimited
from openmanager.hot import HotFleet, HotServer, metric_set, take_apart
from openmanager.runtime import telemetry
from openmanager_cache.backends import KeyValueStore

MAX_LIST_BYTES = 4 * 1024 * 1024
BATCH_BYTES = 4 << 20
# What the breaker keeps from Redis costs nothing.
RETRY_SECONDS = 0.5
# Keys live for their TTL, and what does not change must not expire: everything is written anew well before that.
REWRITE_SECONDS = 30.0

log = logging.getLogger(__name__)


class Mirror:
    """Writes what changes in a fleet to a store, the newest state only, and everything again after it was lost."""

    def __init__(self, *, fleet: HotFleet, store: KeyValueStore, server_ttl: timedelta, list_ttl: timedelta) -> None:
        self._fleet = fleet
        self._store = store
        self._server_ttl = server_ttl
        self._list_ttl = list_ttl
        self._name = secrets.token_hex(8)
        self._writes = 0
        self._written_change = 0
        self._written_sets: set[str] = set()
        self._wake = asyncio.Event()
        self._trace_parent = ""
        self.failing = False

    async def load(self) -> list[tuple[HotServer, tuple[str, ...]]]:
        """Return the servers that the store holds, with their metric keys; none when it holds none of ours."""
        listing, *epochs = await self._store.get_many(["servers:all", *await self._store.epochs()])
        if listing is None or None in epochs:
            return []
        try:
            ids = [server.id for server in cache_pb2.ListServersResponse.FromString(listing).servers]
            blobs = await self._store.get_many([f"server:{server_id}" for server_id in ids])
            found = [_stored_server(server_id, blob) for server_id, blob in zip(ids, blobs, strict=True) if blob]
        except DecodeError:
            return []
        servers = [server for server in found if server is not None]
        sets = sorted({server.message.metric_set for server in servers})
        lists = dict(zip(sets, await self._store.get_many([f"metrics:{name}" for name in sets]), strict=True))
        return [(server, _metrics(lists[server.message.metric_set], server.message.metric_set)) for server in servers]

    def changed(self, trace_parent: str) -> None:
        """Say that the fleet has changed, on behalf of the write of a trace."""
        self._trace_parent = trace_parent or self._trace_parent
        self._wake.set()

    async def run(self) -> None:
        """Write changes for ever; after a failure everything is written again, for nobody knows what was lost."""
        loop = asyncio.get_running_loop()
        anew = loop.time() + REWRITE_SECONDS
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(anew):
                    await self._wake.wait()
            if loop.time() >= anew:
                self._forget()
                anew = loop.time() + REWRITE_SECONDS
            self._wake.clear()
            try:
                await self._write()
                self.failing = False
            except OpenManagerError as err:
                if not self.failing:
                    log.warning("hot state is not mirrored: %s", err)
                self.failing = True
                self._forget()
                await asyncio.sleep(RETRY_SECONDS)
                self._wake.set()

    def _forget(self) -> None:
        self._written_change = 0
        self._written_sets.clear()

    async def _write(self) -> None:
        if not len(self._fleet):
            return
        epochs = await self._store.epochs()
        if any(found != self._epoch for found in await self._store.get_many(epochs)):
            self._forget()  # it came back empty or old, lacks our last write, or somebody else has written
        now, parent = self._fleet.change, self._trace_parent
        servers = self._fleet.changed_since(self._written_change)
        with telemetry.continued(parent):
            for gone in self._fleet.deleted_since(self._written_change):
                await self._store.delete(f"server:{gone}")
            batch: dict[str, tuple[bytes, timedelta | None]] = self._lists(servers)
            size = 0
            for server in servers:
                blob = length_delimited(1, self._fleet.encode(server, full=True, metrics=False))
                batch[f"server:{server.message.id}"] = (blob, self._server_ttl)
                size += len(blob)
                if size > BATCH_BYTES:
                    await self._store.set_many(batch)
                    batch, size = {}, 0
            self._writes += 1
            # The last of it, so that a copy which has it has everything.
            await self._store.set_many(batch | self._totals() | dict.fromkeys(epochs, (self._epoch, None)))
        self._written_change = now

    @property
    def _epoch(self) -> bytes:
        return f"{self._name}:{self._writes}".encode()

    def _lists(self, servers: Iterable[HotServer]) -> dict[str, tuple[bytes, timedelta | None]]:
        fresh: dict[str, tuple[bytes, timedelta | None]] = {}
        for server in servers:
            name = server.message.metric_set
            if name not in self._written_sets and (metrics := self._fleet.metrics_of(server)):
                self._written_sets.add(name)
                fresh[f"metrics:{name}"] = (encode_names(16, metrics), self._server_ttl)
        return fresh

    def _totals(self) -> dict[str, tuple[bytes, timedelta | None]]:
        servers = list(self._fleet)
        healthy = sum(server.message.state == server_pb2.SERVER_STATE_HEALTHY for server in servers)
        totals: dict[str, tuple[bytes, timedelta | None]] = {
            "servers:count": (b"%d" % len(servers), self._server_ttl),
            "servers:healthy": (b"%d" % healthy, self._list_ttl),
        }
        listing = b"".join(length_delimited(1, server.basic) for server in servers)
        if len(listing) <= MAX_LIST_BYTES:
            totals["servers:all"] = (listing, self._list_ttl)
        return totals


def _stored_server(server_id: str, blob: bytes) -> HotServer | None:
    """Return the server of a blob, None when it is another's: what comes out of a store is not trusted."""
    message = cache_pb2.GetServerResponse.FromString(blob).server
    return take_apart(message)[0] if message.id == server_id else None


def _metrics(stored: bytes | None, name: str) -> tuple[str, ...]:
    try:
        metrics = tuple(server_pb2.Server.FromString(stored or b"").metrics)
    except DecodeError:
        return ()
    return metrics if metric_set(metrics) == name else ()

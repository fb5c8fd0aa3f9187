"""The edge of the cache service."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from openmanager.api.cache.v1 import cache_pb2 as pb
from openmanager.runtime.clock import Clock
from openmanager_cache.entry import Entries, entry_name, entry_ttl

_SHOWN_TTL = timedelta(days=366)


class EntryService:
    """openmanager.api.cache.v1.EntryService."""

    def __init__(self, entries: Entries, clock: Clock) -> None:
        self._entries = entries
        self._clock = clock

    async def GetEntry(self, request: pb.GetEntryRequest, context: Any) -> pb.GetEntryResponse:  # noqa: ARG002, N802
        """Return one entry."""
        value = await self._entries.get(entry_name(request.namespace, request.key))
        return pb.GetEntryResponse(entry=pb.Entry(namespace=request.namespace, key=request.key, value=value))

    async def SetEntry(self, request: pb.SetEntryRequest, context: Any) -> pb.SetEntryResponse:  # noqa: ARG002, N802
        """Write one entry."""
        name = entry_name(request.namespace, request.key)
        seconds = min(max(request.ttl.seconds, -1), int(_SHOWN_TTL.total_seconds()))
        nanos = request.ttl.nanos
        # Away from zero, which would mean the default.
        micros = nanos // 1000 if nanos < 0 else -(-nanos // 1000)
        ttl = entry_ttl(timedelta(seconds=seconds, microseconds=micros))
        await self._entries.set(name, request.value, ttl)
        entry = pb.Entry(namespace=request.namespace, key=request.key)
        entry.expire_time.FromNanoseconds(self._clock.now_nanos() + int(ttl.total_seconds() * 1e9))
        return pb.SetEntryResponse(entry=entry)

    async def DeleteEntry(self, request: pb.DeleteEntryRequest, context: Any) -> pb.DeleteEntryResponse:  # noqa: ARG002, N802
        """Delete one entry."""
        return pb.DeleteEntryResponse(deleted=await self._entries.delete(entry_name(request.namespace, request.key)))

"""Small things stored for a while: query results, sessions. Not durable."""

from __future__ import annotations

from datetime import timedelta

from openmanager.api.cache.v1 import cache_pb2
from openmanager.client import codec, model, rpc
from openmanager.client.rpc import DEADLINE_SECONDS, Rpc


class Entries:
    """Reads and writes entries by namespace (`[a-z][a-z0-9_-]{0,62}`) and key (1–512 bytes)."""

    def __init__(self, calls: Rpc) -> None:
        self._calls = calls

    async def get(self, namespace: str, key: str, *, seconds: float = DEADLINE_SECONDS) -> model.Entry:
        """Return an entry; NotFoundError when it does not exist or has expired."""
        request = cache_pb2.GetEntryRequest(namespace=namespace, key=key)
        return codec.entry((await self._calls.call(rpc.GET_ENTRY, request, seconds=seconds)).entry)

    async def set(
        self,
        namespace: str,
        key: str,
        value: bytes,
        *,
        ttl: timedelta | None = None,
        seconds: float = DEADLINE_SECONDS,
    ) -> model.Entry:
        """Write an entry of at most 1 MiB that lives for `ttl`: 1 ms–30 days, 5 minutes unless given."""
        request = cache_pb2.SetEntryRequest(namespace=namespace, key=key, value=value)
        if ttl is not None:
            request.ttl.CopyFrom(codec.duration(ttl))
        return codec.entry((await self._calls.call(rpc.SET_ENTRY, request, seconds=seconds)).entry)

    async def delete(self, namespace: str, key: str, *, seconds: float = DEADLINE_SECONDS) -> bool:
        """Delete an entry; return whether there was one."""
        request = cache_pb2.DeleteEntryRequest(namespace=namespace, key=key)
        return (await self._calls.call(rpc.DELETE_ENTRY, request, seconds=seconds)).deleted

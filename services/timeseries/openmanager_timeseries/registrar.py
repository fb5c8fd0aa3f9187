"""Registers the servers that frames come from with the metadata service: a consumer of the log."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from typing import Protocol

from openmanager.frame import FrameReader, ServerInfo
from openmanager.runtime import telemetry
from openmanager.runtime.clock import Clock
from openmanager_timeseries.catalog import merge_info
from openmanager_timeseries.dead_letter import Refusal
from openmanager_timeseries.port import InfoOf
from openmanager_timeseries.record import Record

BATCH = 1000
# A server that was deleted and still sends is shown again after at most this long.
REFRESH_SECONDS = 10.0


class Inventory(Protocol):
    """Where servers are registered."""

    async def register(self, infos: Sequence[ServerInfo], seen_nanos: int) -> None:
        """Register servers, at most BATCH; an OpenManagerError means “again later”."""
        ...


class Registrar:
    """The consumer `registrar`."""

    name = "registrar"
    take_seconds = 5.0
    rewinds = 0

    def __init__(self, inventory: Inventory, clock: Clock, info_of: InfoOf) -> None:
        self._inventory = inventory
        self._info_of = info_of
        self._clock = clock
        self._reader = FrameReader()
        self._known: dict[str, ServerInfo] = {}
        self._refreshed = clock.monotonic()

    async def take(self, records: Sequence[Record]) -> Sequence[Refusal]:
        """Register what is new or changed in the records, within the trace of the frame that brought it."""
        changed: dict[str, ServerInfo] = {}
        trace_parent, seen = "", set[str]()
        for record in records:
            frame, _ = self._reader.read(record.payload)
            seen.update(frame.servers)
            new = (ServerInfo(id=server) for server in frame.servers if server not in self._known)
            infos = [*new, *frame.server_infos]
            for info in infos:
                merged = merge_info(changed.get(info.id) or self._known.get(info.id), info)
                if merged != self._known.get(info.id):
                    changed[info.id] = merged
                    trace_parent = trace_parent or record.trace_parent
        refresh = self._clock.monotonic() - self._refreshed >= REFRESH_SECONDS
        again = {server: self._known.get(server) or ServerInfo(id=server) for server in seen} if refresh else {}
        wanted = again | changed
        with telemetry.continued(trace_parent):
            rest = iter(wanted.values())
            while batch := list(islice(rest, BATCH)):
                await self._inventory.register(batch, records[-1].receive_nanos)
        self._known |= changed
        if refresh:
            self._refreshed = self._clock.monotonic()
        return ()

    async def take_again(self, refusal: Refusal, done: Callable[[int], None]) -> str:  # noqa: ARG002  (it is quick)
        """Register the servers again."""
        infos = iter([self._info_of(server) for server in refusal.servers])
        while batch := list(islice(infos, BATCH)):
            await self._inventory.register(batch, self._clock.now_nanos())
        return ""

    def settled(self, position: int, accepted: int) -> tuple[int, int]:
        """Return the same: what the metadata service has acknowledged is durable."""
        return position, accepted

    def cut_loose(self) -> None:
        """Do nothing: servers that send are registered with the next frame."""

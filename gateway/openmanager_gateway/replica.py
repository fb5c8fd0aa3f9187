"""The gateway's own copy of hot state, kept by watching the cache service.

While the cache is away the copy answers on, marked; the newest samples then come from timeseries' head.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Sequence
from datetime import timedelta

import numpy as np

from openmanager import progress
from openmanager.api.cache.v1 import cache_pb2
from openmanager.api.provenance.v1 import provenance_pb2
from openmanager.api.server.v1 import server_pb2
from openmanager.api.status.v1 import status_pb2
from openmanager.api.timeseries.v1 import timeseries_pb2
from openmanager.errors import OpenManagerError, OutOfRangeError
from openmanager.frame import Frame, ServerInfo, decode_trusted
from openmanager.hot import HotFleet, HotServer, make_server, take_apart
from openmanager.runtime.clock import Clock
from openmanager.runtime.peer import Peer, backoff
from openmanager.runtime.status import Finding
from openmanager.shard import shard_of
from openmanager.watch import compacted
from openmanager_gateway.shards.calls import joined_provenance

WATCH = "/openmanager.api.cache.v1.CacheService/WatchServers"
LATEST = "/openmanager.api.timeseries.v1.TimeseriesService/QueryLatest"
LATEST_SECONDS = 3.0
# A cache that is followed has come as far as the head within this time.
AHEAD_SECONDS = 5.0
# A server, and its metric keys where they were told with it.
Told = tuple[HotServer, tuple[str, ...]]

log = logging.getLogger(__name__)


class Replica:
    """Hot state in this process. `fleet` is what is served, `describe` says how good it is.

    Of several shards each has a replica, and all of them share one fleet: `is_ours` says which servers are of this one.
    """

    def __init__(
        self,
        *,
        cache: Peer,
        timeseries: Peer,
        clock: Clock,
        jitter: random.Random,
        head_interval: timedelta,
        fleet: HotFleet | None = None,
        is_ours: Callable[[str], bool] = lambda _: True,
    ) -> None:
        self.fleet = fleet if fleet is not None else HotFleet()
        self._is_ours = is_ours
        self._cache = cache
        self._timeseries = timeseries
        self._clock = clock
        self._jitter = jitter
        self._head_interval = head_interval.total_seconds()
        self._token = ""
        self._following = False
        self._from_head = False
        self._as_of_nanos = 0
        # The samples that the head told of, until the cache has come as far: what was shown is not taken back.
        self._ahead: dict[str, int] = {}
        self._ahead_until = 0.0
        self._cache_says: provenance_pb2.Provenance | None = None

    def known(self) -> bool:
        """Say whether the copy was ever filled."""
        return self._as_of_nanos > 0

    async def look(self) -> Finding:
        """Return what a probe of the copy sees."""
        count = sum(self._is_ours(server.message.id) for server in self.fleet)
        if not self.known():
            return Finding(state=status_pb2.STORAGE_STATE_RECOVERING, reason="is being filled")
        if not self._following:
            return Finding(state=status_pb2.STORAGE_STATE_SLOW, reason="is stale: the cache is away", item_count=count)
        return Finding(item_count=count)

    async def run(self) -> None:
        """Follow the cache for ever."""
        attempt = 0
        while True:
            try:
                await self._watch()
            except OutOfRangeError:
                self._token = ""
            except (OpenManagerError, TimeoutError) as err:
                if self._following:
                    log.warning("the cache is out of reach: %s", err)
            attempt = 0 if self._following else attempt + 1
            self._following = False
            await asyncio.sleep(backoff(attempt, self._jitter.random(), cap=1.0).total_seconds())

    async def run_fallback(self) -> None:
        """Read the head at intervals while the cache is not followed, for ever."""
        while True:
            await asyncio.sleep(self._head_interval)
            if not self._following:
                with contextlib.suppress(OpenManagerError, TimeoutError):
                    await self._read_head()

    async def _watch(self) -> None:
        request = cache_pb2.WatchServersRequest(resume_token=self._token, view=server_pb2.VIEW_FULL)
        request.progress_interval.FromTimedelta(progress.OWN)
        stream = self._cache.server_stream(WATCH, request)
        fresh: list[Told] | None = None if self._token else []
        try:
            while True:
                async with asyncio.timeout(progress.SILENCE_SECONDS):
                    message = cache_pb2.WatchServersResponse.FromString(await anext(stream))
                fresh = self._take(message, fresh)
        except StopAsyncIteration:
            return
        finally:
            await stream.aclose()  # type: ignore[attr-defined]

    def _take(self, message: cache_pb2.WatchServersResponse, fresh: list[Told] | None) -> list[Told] | None:
        """Apply one message; `fresh` gathers a snapshot until its last message, the one with a token."""
        if fresh is None and self._from_head:
            raise compacted()  # the head was read since: what does not change now would stay as it says
        told = [take_apart(each) for each in message.servers]
        if message.kind == server_pb2.WATCH_KIND_SNAPSHOT and fresh is not None:
            fresh.extend(told)
            if not message.resume_token:
                return fresh
            self.fleet.replace_all(self._learnt(fresh), self._is_ours)
        else:
            if told:
                self.fleet.put(self._learnt(told))
            self.fleet.delete(message.deleted_ids)
        if message.kind != server_pb2.WATCH_KIND_CREATED:
            self._token = message.resume_token
            self._following, self._from_head = True, False
            self._as_of_nanos = self._clock.now_nanos()
        self._cache_says = message.provenance
        return fresh

    def _learnt(self, told: list[Told]) -> list[HotServer]:
        """Return servers as they are now, their metric keys being known from here on."""
        for _, metrics in told:
            if metrics:
                self.fleet.learn_metrics(metrics)
        return [self._newest(server) for server, _ in told]

    def _newest(self, server: HotServer) -> HotServer:
        """Return what the cache says of a server, or what the head has said of it, where that is newer."""
        name = server.message.id
        ahead = self._ahead.get(name)
        if ahead is None:
            return server
        if server.message.sample_time.ToNanoseconds() < ahead and self._clock.monotonic() < self._ahead_until:
            return self.fleet.peek(name) or server
        del self._ahead[name]
        return server

    async def _read_head(self) -> None:
        request = timeseries_pb2.QueryLatestRequest()
        frames = []
        async with asyncio.timeout(LATEST_SECONDS):
            async for data in self._timeseries.server_stream(LATEST, request, seconds=LATEST_SECONDS):
                part = timeseries_pb2.QueryLatestResponse.FromString(data)
                if part.WhichOneof("part") == "frame":
                    frames.append(decode_trusted(part.frame))
        if self._following:
            return
        for frame in frames:
            self._apply(frame)
        self._ahead_until = self._clock.monotonic() + AHEAD_SECONDS
        self._token, self._from_head = "", True
        self._as_of_nanos = self._clock.now_nanos()

    def _apply(self, frame: Frame) -> None:
        infos = {info.id: info for info in frame.server_infos}
        self.fleet.learn_metrics(frame.metrics)
        servers = []
        for at, server_id in enumerate(frame.servers):
            before = self.fleet.peek(server_id)
            message = _message(infos.get(server_id) or ServerInfo(id=server_id), before)
            newest = dict(zip(frame.metrics, frame.values[-1, at].tolist(), strict=True))
            for name in ("cpu_usage", "memory_usage", "disk_usage"):
                if name in newest and not np.isnan(newest[name]):
                    setattr(message, name, newest[name])
            newest_nanos = int(frame.times[-1])
            if before is not None and before.message.sample_time.ToNanoseconds() > newest_nanos:
                continue  # the head itself may have just begun to read the log again
            message.sample_time.FromNanoseconds(newest_nanos)
            self._ahead[server_id] = newest_nanos
            servers.append(make_server(message, frame.metrics, frame.values[-1, at]))
        self.fleet.put(servers)

    def staleness(self) -> float | None:
        """Return the seconds for which nobody has told of changes; None as long as nothing is known at all."""
        if self._following:
            return 0.0
        return max(0, self._clock.now_nanos() - self._as_of_nanos) / 1e9 if self._as_of_nanos else None

    def describe(self) -> provenance_pb2.Provenance:
        """Return the provenance of an answer given now."""
        now = self._clock.now_nanos()
        if self._following:
            self._as_of_nanos = now
        about = provenance_pb2.Provenance(source="head" if self._from_head else "replica")
        about.as_of_time.FromNanoseconds(self._as_of_nanos)
        about.staleness.FromNanoseconds(max(0, now - self._as_of_nanos))
        if not self._following:
            about.degraded, about.partial = True, self._from_head
            about.reason = "the cache service is away" + (": states are the last known" if self._from_head else "")
        elif self._cache_says is not None and self._cache_says.degraded:
            about.degraded, about.reason = True, self._cache_says.reason
        return about


class Replicas:
    """The replicas of all shards as one."""

    def __init__(self, parts: Sequence[Replica]) -> None:
        self.fleet = parts[0].fleet
        self._parts = parts

    def known(self) -> bool:
        """Say whether the copy of any shard was ever filled."""
        return any(part.known() for part in self._parts)

    def unheard(self) -> list[int]:
        """Return the shards whose copy was never filled."""
        return [shard for shard, part in enumerate(self._parts) if not part.known()]

    def describe(self) -> provenance_pb2.Provenance:
        """Return the provenance of an answer of all servers given now; partial while a shard was never heard of."""
        if len(self._parts) == 1:
            return self._parts[0].describe()
        about = joined_provenance([part.describe() for part in self._parts])
        if unheard := self.unheard():
            about.partial = True
            about.reason = f"shard {', '.join(map(str, unheard))} of {len(self._parts)} was not heard of yet"
        return about

    def staleness(self) -> float | None:
        """Return the seconds for which nobody has told of changes of some shard; None as long as nothing is known."""
        known = [seconds for part in self._parts if (seconds := part.staleness()) is not None]
        return max(known, default=None)

    def describe_one(self, server: str) -> provenance_pb2.Provenance:
        """Return the provenance of an answer about one server."""
        part = self._parts[shard_of(server, len(self._parts))]
        about = part.describe()
        about.partial = about.partial or not part.known()
        return about


def _message(info: ServerInfo, before: HotServer | None) -> server_pb2.Server:
    """Return what is known of a server without the cache: its last state stays, for thresholds are the cache's."""
    if before is not None:
        message = server_pb2.Server()
        message.CopyFrom(before.message)
        return message
    return server_pb2.Server(
        id=info.id,
        hostname=info.hostname or info.id,
        environment=info.environment,
        role=info.role,
        location=info.location,
        labels=dict(info.labels),
    )

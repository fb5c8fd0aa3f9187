"""Hot state as it is served: the servers of the fleet, ready on the wire, and the four ways to read them.

The cache service fills one from the log, the gateway one from watching the cache; both answer from it with the same
code. A server is kept as the bytes of its BASIC view and of its values; a reply is put together by joining bytes. Metric
keys, which are long and the same for many servers, are kept once for each distinct list.
"""

from __future__ import annotations

import bisect
import hashlib
import secrets
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openmanager import filter as server_filter
from openmanager import page
from openmanager.api.cache.v1 import cache_pb2
from openmanager.api.provenance.v1 import provenance_pb2
from openmanager.api.server.v1 import server_pb2
from openmanager.errors import NotFoundError, invalid
from openmanager.frame import encode_names, length_delimited, packed
from openmanager.progress import DEFAULT_SECONDS
from openmanager.runtime.clock import until_next
from openmanager.watch import Bell, change_of, token_of

MESSAGE_BYTES = 1 << 20
PAGE_BYTES = 4 * 1024 * 1024 - 64 * 1024
_DELETIONS = 10_000
# Metric keys that are remembered in lists which no server has.
_UNUSED_KEYS = 1 << 18
_METRICS_FIELD = 16
_VALUES_FIELD = 17

FILTER_FIELDS = dict.fromkeys(
    ("id", "hostname", "environment", "role", "location", "labels.*", "state"), server_filter.TEXT
)
_ORDERS = ("id", "hostname", "environment", "role", "state", "cpu_usage", "memory_usage", "disk_usage")

ServerState = server_pb2.ServerState


def state_name(state: ServerState.ValueType) -> str:
    """Return a state as filters and tables write it: `HEALTHY`."""
    return ServerState.Name(state).removeprefix("SERVER_STATE_")


@lru_cache(maxsize=4096)
def metric_set(metrics: tuple[str, ...]) -> str:
    """Return the name of a list of metric keys: 12 hexadecimal digits of its hash."""
    return hashlib.blake2b("\n".join(metrics).encode(), digest_size=6).hexdigest()


class HotServer:
    """One server: `message` is its BASIC view with `metric_set`, `values` the packed field of its values."""

    __slots__ = ("basic", "change", "message", "values")

    def __init__(self, message: server_pb2.Server, values: bytes) -> None:
        self.message = message
        self.basic = message.SerializeToString()
        self.values = values
        self.change = 0


def make_server(message: server_pb2.Server, metrics: tuple[str, ...], values: NDArray[np.float64]) -> HotServer:
    """Return a server from its BASIC view and its newest values, float64[M] in the order of `metrics`."""
    message.metric_set = metric_set(metrics)
    message.metric_count = len(metrics)
    return HotServer(message, packed(_VALUES_FIELD, values))


def take_apart(message: server_pb2.Server) -> tuple[HotServer, tuple[str, ...]]:
    """Return a server from its FULL view, and its metric keys where they were sent with it."""
    metrics, values = tuple(message.metrics), np.asarray(message.values, np.float64)
    message.ClearField("metrics")
    message.ClearField("values")
    return HotServer(message, packed(_VALUES_FIELD, values)), metrics


@dataclass(frozen=True, slots=True, kw_only=True)
class ListQuery:
    """What ListServers asks for."""

    page_size: int
    page_token: str
    filter: str
    order_by: str
    full: bool


class HotFleet:
    """The servers of the fleet and their changes, for one event loop."""

    def __init__(self) -> None:
        self.epoch = secrets.token_hex(4)
        self.change = 0
        self._servers: OrderedDict[str, HotServer] = OrderedDict()  # least recently changed first
        self._metrics: dict[str, tuple[str, ...]] = {}  # by the name of the list
        self._users: Counter[str] = Counter()  # how many servers have it
        # Lists that no server has, the longest known first, and how many keys are in them.
        self._unused: OrderedDict[str, None] = OrderedDict()
        self._unused_keys = 0
        # How often a list has lost its last server.
        self.disuses = 0
        self._ids: list[str] | None = None
        self._deletions: deque[tuple[int, str]] = deque(maxlen=_DELETIONS)
        self._oldest_change = 0
        self._bell = Bell()

    def __len__(self) -> int:
        return len(self._servers)

    def __iter__(self) -> Iterator[HotServer]:
        return iter(self._servers.values())

    def __contains__(self, server_id: object) -> bool:
        return server_id in self._servers

    # ── changing ───────────────────────────────────────────────────────────────────────────────────────────────────

    def learn_metrics(self, metrics: tuple[str, ...]) -> None:
        """Remember a list of metric keys by its name: as long as servers have it, and for a while when none has."""
        name = metric_set(metrics)
        if name not in self._metrics:
            self._metrics[name] = metrics
            if name not in self._users:
                self._set_aside(name)

    def _set_aside(self, name: str) -> None:
        """Take note that no server has a list, which may be about to come back."""
        if name in self._metrics:
            self._unused[name] = None
            self._unused_keys += len(self._metrics[name])

    def _take_up(self, name: str) -> None:
        """Take note that one more server has a list."""
        self._users[name] += 1
        if name in self._unused:
            del self._unused[name]
            self._unused_keys -= len(self._metrics[name])

    def _let_go(self, name: str) -> None:
        """Take note that one server less has a list."""
        self._users[name] -= 1
        if not self._users[name]:
            del self._users[name]
            self.disuses += 1
            self._set_aside(name)

    def _forget_unused(self) -> None:
        """Forget lists that no server has: every new metric makes another of those of its server."""
        while self._unused_keys > _UNUSED_KEYS:
            name, _ = self._unused.popitem(last=False)
            self._unused_keys -= len(self._metrics.pop(name))

    def has_users(self, name: str) -> bool:
        """Say whether a server has the list of a name."""
        return name in self._users

    def metrics_of(self, server: HotServer) -> tuple[str, ...]:
        """Return the metric keys of a server; empty when they are not known yet."""
        return self._metrics.get(server.message.metric_set, ())

    def put(self, servers: Iterable[HotServer]) -> None:
        """Take servers that are new or changed, as one change."""
        self.change += 1
        for server in servers:
            before = self._servers.get(server.message.id)
            if before is None:
                self._ids = None
            if before is None or before.message.metric_set != server.message.metric_set:
                self._take_up(server.message.metric_set)
                if before is not None:
                    self._let_go(before.message.metric_set)
            server.change = self.change
            self._servers[server.message.id] = server
            self._servers.move_to_end(server.message.id)
        self._forget_unused()
        self._bell.ring()

    def delete(self, ids: Iterable[str]) -> None:
        """Take servers out, as one change."""
        gone = []
        for server_id in ids:
            if (before := self._servers.pop(server_id, None)) is not None:
                gone.append(server_id)
                self._let_go(before.message.metric_set)
        if not gone:
            return
        self._forget_unused()
        self.change += 1
        self._ids = None
        for server_id in gone:
            if len(self._deletions) == _DELETIONS:
                self._oldest_change = self._deletions[0][0]
            self._deletions.append((self.change, server_id))
        self._bell.ring()

    def replace_all(self, servers: Sequence[HotServer], is_meant: Callable[[str], bool] = lambda _: True) -> None:
        """Take a whole new fleet, or the part of it that is meant: what of that is not there is gone."""
        keep = {server.message.id for server in servers}
        gone = [server_id for server_id in self._servers if server_id not in keep and is_meant(server_id)]
        self.put(servers)
        self.delete(gone)

    # ── reading ────────────────────────────────────────────────────────────────────────────────────────────────────

    def get(self, server_id: str) -> HotServer:
        """Return one server; NotFoundError when there is none of that id."""
        server = self._servers.get(server_id)
        if server is None:
            raise NotFoundError("there is no such server", resource=f"server/{server_id}")
        return server

    def peek(self, server_id: str) -> HotServer | None:
        """Return one server, None when there is none of that id."""
        return self._servers.get(server_id)

    def encode(self, server: HotServer, *, full: bool, metrics: bool = True) -> bytes:
        """Return a server on the wire."""
        if not full:
            return server.basic
        names = encode_names(_METRICS_FIELD, self.metrics_of(server)) if metrics else b""
        return server.basic + names + server.values

    def reply(self, server_id: str, *, full: bool) -> bytes:
        """Return a GetServerResponse without its provenance."""
        return length_delimited(1, self.encode(self.get(server_id), full=full))

    def list_reply(self, query: ListQuery) -> bytes:
        """Return a ListServersResponse without its provenance."""
        size = page.page_size(query.page_size)
        key = (query.filter, query.order_by, query.full)
        after = page.decode_token(key, query.page_token, parts=2)
        chosen = self._ordered(query.order_by, self._matching(query.filter))
        first = bisect.bisect_right([_position(rank, server) for rank, server in chosen], tuple(after)) if after else 0
        parts: list[bytes] = []
        room = PAGE_BYTES
        for _, server in chosen[first : first + size]:
            encoded = length_delimited(1, self.encode(server, full=query.full))
            room -= len(encoded)
            if parts and room < 0:
                break
            parts.append(encoded)
        about = cache_pb2.ListServersResponse(total_count=len(chosen))
        end = first + len(parts)
        if end < len(chosen):
            about.next_page_token = page.encode_token(key, list(_position(*chosen[end - 1])))
        return b"".join((*parts, about.SerializeToString()))

    def _matching(self, text: str) -> Iterable[HotServer]:
        node = server_filter.parse(text)
        server_filter.check_fields(node, FILTER_FIELDS)
        if self._ids is None:
            self._ids = sorted(self._servers)
        servers = (self._servers[server_id] for server_id in self._ids)
        return (server for server in servers if node is None or server_filter.matches(node, lookup(server.message)))

    def _ordered(self, order_by: str, servers: Iterable[HotServer]) -> list[tuple[str, HotServer]]:
        """Return servers with a text that ranks them, in the wanted order; ties by id."""
        field, _, direction = (order_by.strip() or "id").partition(" ")
        if field not in _ORDERS or direction not in {"", "asc", "desc"}:
            raise invalid("order_by", f"must be one of {', '.join(_ORDERS)}, with “ desc” for descending")
        if field == "id" and direction != "desc":
            return [("", server) for server in servers]
        ranked = sorted(((_rank(server.message, field), server) for server in servers), key=lambda item: item[0])
        if direction == "desc":
            # Ranks are turned round as numbers, so that ids still ascend among equals and tokens still compare.
            ranks = {rank: index for index, rank in enumerate(sorted({rank for rank, _ in ranked}, reverse=True))}
            ranked = [(f"{ranks[rank]:08d}", server) for rank, server in ranked]
        return sorted(ranked, key=lambda item: _position(*item))

    def summary(self, text: str = "") -> server_pb2.FleetSummary:
        """Return counts and means over the fleet, or over the servers that a filter chooses."""
        messages = [server.message for server in (self._matching(text) if text else self)]
        out = server_pb2.FleetSummary(
            total_count=len(messages),
            series_count=sum(message.metric_count for message in messages),
            mean_cpu_usage=_mean(m.cpu_usage for m in messages if m.HasField("cpu_usage")),
            mean_memory_usage=_mean(m.memory_usage for m in messages if m.HasField("memory_usage")),
            mean_disk_usage=_mean(m.disk_usage for m in messages if m.HasField("disk_usage")),
            **_counts(messages),
        )
        for groups, field in ((out.environments, "environment"), (out.roles, "role")):
            for name in sorted({getattr(message, field) for message in messages}):
                some = [message for message in messages if getattr(message, field) == name]
                cpu = _mean(m.cpu_usage for m in some if m.HasField("cpu_usage"))
                groups.add(name=name, total_count=len(some), mean_cpu_usage=cpu, **_counts(some))
        return out

    # ── watching ───────────────────────────────────────────────────────────────────────────────────────────────────

    async def watch(
        self,
        token: str,
        text: str,
        *,
        full: bool,
        describe: Callable[[], provenance_pb2.Provenance],
        progress: float = DEFAULT_SECONDS,
    ) -> AsyncIterator[bytes]:
        """Yield WatchServersResponses: created, a snapshot unless the token could be resumed, then every change.

        After `progress` seconds without one a message says so. A reader that lags gets the newest state of what changed, not every state in between.
        """
        node = server_filter.parse(text)
        server_filter.check_fields(node, FILTER_FIELDS)
        seen = change_of(token, self.epoch, oldest=self._oldest_change, newest=self.change)
        watcher = _Watcher(self, node, full=full, resumed=seen is not None, describe=describe)
        yield watcher.message(server_pb2.WATCH_KIND_CREATED, seen or 0)
        if seen is None:
            now = self.change
            for message in watcher.snapshot(now):
                yield message
            seen = now
        while True:
            if not await self._bell.wait_until(partial(self._is_past, seen), until_next(progress)):
                yield watcher.message(server_pb2.WATCH_KIND_PROGRESS, seen)
                continue
            now = self.change
            for message in watcher.delta(seen, now):
                yield message
            seen = now

    def _is_past(self, change: int) -> bool:
        return self.change != change

    def changed_since(self, change: int) -> list[HotServer]:
        """Return the servers that changed after a change, the latest change first."""
        found = []
        for server in reversed(self._servers.values()):
            if server.change <= change:
                break
            found.append(server)
        return found

    def deleted_since(self, change: int) -> list[str]:
        """Return the ids that went after a change and are not back."""
        return [server_id for at, server_id in self._deletions if at > change and server_id not in self._servers]


class _Watcher:
    """What one watch has sent: which servers its filter chose, and which lists of metric keys."""

    def __init__(
        self,
        fleet: HotFleet,
        node: server_filter.Node | None,
        *,
        full: bool,
        resumed: bool,
        describe: Callable[[], provenance_pb2.Provenance],
    ) -> None:
        self._fleet = fleet
        self._node = node
        self._full = full
        self._resumed = resumed  # then anything may have been shown before
        self._describe = describe
        self._shown: set[str] = set()
        # The lists of metric keys that whoever watches knows: those that servers have, which are not forgotten there.
        self._sets: set[str] = set()
        self._disuses = fleet.disuses

    def message(self, kind: server_pb2.WatchKind.ValueType, change: int | None) -> bytes:
        """Return a message without servers; None for the change of one that cannot be resumed after."""
        token = "" if change is None else token_of(self._fleet.epoch, change)
        return cache_pb2.WatchServersResponse(
            resume_token=token, kind=kind, provenance=self._describe()
        ).SerializeToString()

    def snapshot(self, now: int) -> Iterator[bytes]:
        """Yield every server of the filter, in messages of about MESSAGE_BYTES; at least one message."""
        yield from self._messages(server_pb2.WATCH_KIND_SNAPSHOT, list(self._fleet), [], now)

    def delta(self, seen: int, now: int) -> Iterator[bytes]:
        """Yield what changed after `seen`."""
        gone = self._fleet.deleted_since(seen)
        yield from self._messages(server_pb2.WATCH_KIND_DELTA, self._fleet.changed_since(seen), gone, now)

    def _messages(
        self, kind: server_pb2.WatchKind.ValueType, servers: list[HotServer], gone: list[str], now: int
    ) -> Iterator[bytes]:
        parts: list[bytes] = []
        size = 0
        for server in servers:
            server_id = server.message.id
            if self._node is not None and not server_filter.matches(self._node, lookup(server.message)):
                if self._resumed or server_id in self._shown:
                    self._shown.discard(server_id)
                    gone = [*gone, server_id]
                continue
            self._shown.add(server_id)
            name = server.message.metric_set
            encoded = self._fleet.encode(server, full=self._full, metrics=name not in self._sets)
            if self._full:
                self._sets.add(name)
            if parts and size + len(encoded) > MESSAGE_BYTES:
                # Only the last message carries the new token: a resume repeats the change rather than losing part of it.
                yield b"".join(
                    (*parts, self.message(kind, None if kind == server_pb2.WATCH_KIND_SNAPSHOT else now - 1))
                )
                parts, size = [], 0
            parts.append(length_delimited(3, encoded))
            size += len(encoded)
        self._shown.difference_update(gone)
        ids = cache_pb2.WatchServersResponse(deleted_ids=gone).SerializeToString()
        if parts or gone or kind == server_pb2.WATCH_KIND_SNAPSHOT:
            yield b"".join((*parts, ids, self.message(kind, now)))
        if self._disuses != self._fleet.disuses:
            self._disuses = self._fleet.disuses
            self._sets = set(filter(self._fleet.has_users, self._sets))


def lookup(message: server_pb2.Server) -> Callable[[str], str]:
    """Return the lookup of a server's fields for filters."""

    def value(field: str) -> str:
        if field.startswith("labels."):
            return message.labels.get(field.removeprefix("labels."), "")
        return state_name(message.state) if field == "state" else str(getattr(message, field))

    return value


def _rank(message: server_pb2.Server, field: str) -> str:
    """Return a text that sorts as a field does; percentages with three digits before the point."""
    if field.endswith("_usage"):
        return f"{getattr(message, field):016.9f}" if message.HasField(field) else ""  # type: ignore[arg-type]
    if field == "state":
        return str(message.state)
    return str(getattr(message, field))


def _position(rank: str, server: HotServer) -> tuple[str, str]:
    return rank, server.message.id


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found) if found else 0.0


def _counts(messages: Sequence[server_pb2.Server]) -> dict[str, Any]:
    states = [message.state for message in messages]
    return {
        "healthy_count": states.count(server_pb2.SERVER_STATE_HEALTHY),
        "warning_count": states.count(server_pb2.SERVER_STATE_WARNING),
        "critical_count": states.count(server_pb2.SERVER_STATE_CRITICAL),
        "offline_count": states.count(server_pb2.SERVER_STATE_OFFLINE),
    }

"""The fleet as frames tell it: the newest value of every metric of every server, and the state that follows."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta

import numpy as np
from numpy.typing import NDArray

from openmanager.api.server.v1 import server_pb2
from openmanager.frame import Frame, ServerInfo
from openmanager.hot import HotFleet, HotServer, make_server
from openmanager.runtime.clock import Clock
from openmanager_cache.threshold import HEADLINES, ThresholdTable, judge

_NANOS = 1_000_000_000
# A server counts as gone after so many of its own intervals without a frame.
OFFLINE_INTERVALS = 3
# Used until a server's interval is known; also the least time before it can be offline.
UNKNOWN_INTERVAL_NANOS = 10 * _NANOS
_INTERVALS = 9


@dataclass(slots=True, kw_only=True)
class Tracked:
    """What is remembered of one server between frames."""

    info: ServerInfo
    metrics: tuple[str, ...] = ()
    values: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    sample_nanos: int = 0
    received_nanos: int = 0
    intervals: deque[int] = field(default_factory=lambda: deque(maxlen=_INTERVALS))
    state: server_pb2.ServerState.ValueType = server_pb2.SERVER_STATE_UNSPECIFIED
    state_reason: str = ""
    since_nanos: int = 0

    @property
    def interval_nanos(self) -> int:
        """The median time between frames, 0 before the third."""
        return int(statistics.median(self.intervals)) if len(self.intervals) > 1 else 0

    def value(self, metric: str) -> float | None:
        """Return the newest value of a metric, None where there is none."""
        try:
            found = float(self.values[self.metrics.index(metric)])
        except ValueError:
            return None
        return None if np.isnan(found) else found

    def take(self, metrics: tuple[str, ...], values: NDArray[np.float64]) -> None:
        """Lay newer values over the known ones: float64[M], NaN leaves the old value."""
        if metrics != self.metrics:
            known = dict(zip(self.metrics, self.values.tolist(), strict=True))
            known.update(dict.fromkeys(set(metrics) - known.keys(), np.nan))
            self.metrics = tuple(sorted(known)) if self.metrics else metrics
            self.values = np.asarray([known[metric] for metric in self.metrics])
        at = slice(None) if metrics == self.metrics else _places(self.metrics, metrics)
        self.values = self.values.copy()
        self.values[at] = np.where(np.isnan(values), self.values[at], values)


def _places(metrics: tuple[str, ...], wanted: tuple[str, ...]) -> NDArray[np.int64]:
    index = {metric: at for at, metric in enumerate(metrics)}
    return np.asarray([index[metric] for metric in wanted], np.int64)


class Fleet:
    """Turns frames into hot servers. `hot` is what is served."""

    def __init__(self, clock: Clock) -> None:
        self.hot = HotFleet()
        self.thresholds = ThresholdTable()
        self._clock = clock
        self._tracked: dict[str, Tracked] = {}
        self._inventory: dict[str, ServerInfo] = {}
        self._deleted_nanos: dict[str, int] = {}

    def apply(self, frame: Frame, received_nanos: int) -> list[HotServer]:
        """Take a frame that the log received at `received_nanos`; return the servers that changed."""
        infos = {info.id: info for info in frame.server_infos}
        changed = []
        for at, server_id in enumerate(frame.servers):
            if received_nanos <= self._deleted_nanos.get(server_id, 0):
                continue
            self._deleted_nanos.pop(server_id, None)
            present = ~np.all(np.isnan(frame.values[:, at]), axis=1)
            if not present.any():
                continue
            tracked = self._tracked.setdefault(server_id, Tracked(info=ServerInfo(id=server_id)))
            if server_id in infos:
                tracked.info = infos[server_id]
            self._observe(tracked, frame, at, received_nanos)
            changed.append(self._make(tracked))
        if changed:
            for metrics in {self._tracked[server.message.id].metrics for server in changed}:
                self.hot.learn_metrics(metrics)
            self.hot.put(changed)
        return changed

    def _observe(self, tracked: Tracked, frame: Frame, at: int, received_nanos: int) -> None:
        for time, values in zip(frame.times.tolist(), frame.values[:, at], strict=True):
            if time < tracked.sample_nanos or np.isnan(values).all():
                continue  # late: history takes it, the present is not changed by it
            if time > tracked.sample_nanos > 0:
                tracked.intervals.append(time - tracked.sample_nanos)
            tracked.take(frame.metrics, values)
            tracked.sample_nanos = time
        tracked.received_nanos = max(tracked.received_nanos, received_nanos)

    def _make(self, tracked: Tracked, *, offline: bool = False) -> HotServer:
        info = self._info(tracked)
        usage = {name: tracked.value(f"{name}_usage") for name in HEADLINES}
        known = {name: value for name, value in usage.items() if value is not None}
        if offline:
            state, reason = server_pb2.SERVER_STATE_OFFLINE, "nothing came for three intervals"
        else:
            state, reason = judge(known, self.thresholds.of(info.id, info.role), tracked.state)
        if state != tracked.state:
            tracked.since_nanos = self._clock.now_nanos()
        tracked.state, tracked.state_reason = state, reason
        message = server_pb2.Server(
            id=info.id,
            hostname=info.hostname or info.id,
            environment=info.environment,
            role=info.role,
            location=info.location,
            labels=dict(info.labels),
            state=state,
            state_reason=reason,
            cpu_usage=usage["cpu"],
            memory_usage=usage["memory"],
            disk_usage=usage["disk"],
        )
        message.sample_time.FromNanoseconds(tracked.sample_nanos)
        message.state_since_time.FromNanoseconds(tracked.since_nanos)
        if tracked.interval_nanos:
            message.interval.FromTimedelta(timedelta(microseconds=tracked.interval_nanos // 1000))
        return make_server(message, tracked.metrics, tracked.values)

    def _info(self, tracked: Tracked) -> ServerInfo:
        """Return what is known of a server: what the inventory says goes before what its frames say."""
        set_by_people = self._inventory.get(tracked.info.id)
        if set_by_people is None:
            return tracked.info
        return ServerInfo(
            id=tracked.info.id,
            hostname=set_by_people.hostname or tracked.info.hostname,
            environment=set_by_people.environment or tracked.info.environment,
            role=set_by_people.role or tracked.info.role,
            location=set_by_people.location or tracked.info.location,
            labels={**tracked.info.labels, **set_by_people.labels},
        )

    # ── what comes from elsewhere ──────────────────────────────────────────────────────────────────────────────────

    def restore(self, servers: Iterable[tuple[HotServer, tuple[str, ...]]]) -> None:
        """Serve servers as they were stored, until frames tell more; known ones are left alone."""
        fresh = []
        for server, metrics in servers:
            if server.message.id not in self._tracked:
                self.hot.learn_metrics(metrics)
                fresh.append(server)
        if fresh:
            self.hot.put(fresh)

    def learn(self, infos: Iterable[ServerInfo]) -> None:
        """Take what the inventory says of servers."""
        for info in infos:
            self._inventory[info.id] = info
        self.refresh(info.id for info in infos)

    def refresh(self, ids: Iterable[str]) -> None:
        """Judge servers again after something about them has changed."""
        tracked = [self._tracked[server_id] for server_id in ids if server_id in self._tracked]
        if tracked:
            self.hot.put([self._make(each, offline=each.state == server_pb2.SERVER_STATE_OFFLINE) for each in tracked])

    def refresh_all(self) -> None:
        """Judge every server again after the thresholds have changed."""
        self.refresh(list(self._tracked))

    def delete(self, deleted: Mapping[str, int]) -> None:
        """Hide servers, by id, deleted at a time in nanoseconds: frames received later show them again."""
        gone = []
        for server_id, at in deleted.items():
            tracked = self._tracked.get(server_id)
            if tracked is not None and tracked.received_nanos > at:
                continue
            self._deleted_nanos[server_id] = at
            self._tracked.pop(server_id, None)
            gone.append(server_id)
        self.hot.delete(gone)

    def mark_offline(self) -> list[HotServer]:
        """Mark the servers that have gone silent; return those that have just done so."""
        now = self._clock.now_nanos()
        silent = []
        for tracked in self._tracked.values():
            interval = max(tracked.interval_nanos or UNKNOWN_INTERVAL_NANOS, _NANOS // 3)
            gone = now - tracked.received_nanos > OFFLINE_INTERVALS * interval
            if gone and tracked.state != server_pb2.SERVER_STATE_OFFLINE:
                silent.append(self._make(tracked, offline=True))
        if silent:
            self.hot.put(silent)
        return silent

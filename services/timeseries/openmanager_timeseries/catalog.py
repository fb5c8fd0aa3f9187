"""Which servers, metrics and series there are, and the newest sample of each, in arrays.

A series is a pair of a server and a metric. Its id is its row in the arrays; ids are dense and never reused while the
process lives. About 45 bytes a series: no Python object.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openmanager import filter as server_filter
from openmanager.frame import Frame, MetricInfo, ServerInfo
from openmanager.metric import parse_key, select

SERVER_FIELDS = {
    **dict.fromkeys(("id", "hostname", "environment", "role", "location", "labels.*"), server_filter.TEXT),
}
_SHIFT = 32


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """The servers and metrics of a frame, and the ids of their series: int64[S, M], −1 for a series never seen."""

    servers: NDArray[np.int64]
    metrics: NDArray[np.int64]
    ids: NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Selection:
    """Chosen servers and metrics as masks, and the ids of the series that exist among them, by server and metric."""

    servers: NDArray[np.bool_]
    metrics: NDArray[np.bool_]
    ids: NDArray[np.int64]
    # For every series id its row in the answer, −1 where it is not chosen: int64[series].
    rows: NDArray[np.int64]


class _Names:
    """Distinct names with an index for each."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self._index: dict[str, int] = {}

    def intern(self, names: Iterable[str]) -> NDArray[np.int64]:
        """Return the indices of names, new ones for those not seen before."""
        out = []
        for name in names:
            index = self._index.get(name)
            if index is None:
                index = self._index[name] = len(self.names)
                self.names.append(name)
            out.append(index)
        return np.asarray(out, np.int64)

    def get(self, name: str) -> int | None:
        """Return the index of a name, None when it was never seen."""
        return self._index.get(name)


class Catalog:
    """The series of one shard."""

    def __init__(self, max_series: int) -> None:
        self._max_series = max_series
        self._servers = _Names()
        self._metrics = _Names()
        self.infos: dict[str, ServerInfo] = {}
        self.metric_infos: dict[str, MetricInfo] = {}
        self.count = 0
        self._keys: NDArray[np.int64] = np.empty(0, np.int64)  # server << 32 | metric, by id
        self._sorted = np.empty(0, np.int64)  # the keys, ascending
        self._sorted_ids = np.empty(0, np.int64)
        self._last_times: NDArray[np.int64] = np.empty(0, np.int64)
        self._last_values: NDArray[np.float64] = np.empty(0, np.float64)
        self._layouts: dict[tuple[tuple[str, ...], tuple[str, ...]], Layout] = {}

    @property
    def servers(self) -> Sequence[str]:
        """The server ids by index."""
        return self._servers.names

    @property
    def metrics(self) -> Sequence[str]:
        """The metric keys by index."""
        return self._metrics.names

    def server_index(self, server: str) -> int:
        """Return the index of a server that was seen; KeyError otherwise."""
        found = self._servers.get(server)
        if found is None:
            raise KeyError(server)
        return found

    def layout(self, servers: tuple[str, ...], metrics: tuple[str, ...]) -> Layout:
        """Return the layout of a frame; the same object as long as the same names come."""
        key = (servers, metrics)
        found = self._layouts.get(key)
        if found is None:
            server_ids, metric_ids = self._servers.intern(servers), self._metrics.intern(metrics)
            ids = self._find(server_ids[:, None] << _SHIFT | metric_ids[None, :])
            found = Layout(server_ids, metric_ids, ids)
            if len(self._layouts) >= 4096:  # agents that change their metrics at every export must not fill memory
                self._layouts.clear()
            self._layouts[key] = found
        return found

    def _find(self, keys: NDArray[np.int64]) -> NDArray[np.int64]:
        if not len(self._sorted):
            return np.full(keys.shape, -1, np.int64)
        at = np.minimum(np.searchsorted(self._sorted, keys), len(self._sorted) - 1)
        found: NDArray[np.int64] = np.where(self._sorted[at] == keys, self._sorted_ids[at], -1)
        return found

    def admit(self, layout: Layout, present: NDArray[np.bool_]) -> NDArray[np.bool_] | None:
        """Give ids to the series of a layout that have samples and none yet: `present` is bool[S, M].

        Returns None when all found room, else a mask bool[S, M] of the series that did not.
        """
        missing = present & (layout.ids < 0)
        if not missing.any():
            return None
        keys = (layout.servers[:, None] << _SHIFT | layout.metrics[None, :])[missing]
        found = self._find(keys)  # another layout may have brought them meanwhile
        fresh = keys[found < 0]
        room = max(0, self._max_series - self.count)
        found[found < 0] = np.where(np.arange(len(fresh)) < room, np.arange(len(fresh)) + self.count, -1)
        self._add(fresh[:room])
        layout.ids[missing] = found
        refused = np.zeros(present.shape, np.bool_)
        refused[missing] = found < 0
        return refused if len(fresh) > room else None

    def _add(self, keys: NDArray[np.int64]) -> None:
        count = self.count + len(keys)
        if count > len(self._keys):
            capacity = max(1024, count + count // 4)
            self._keys = _grown(self._keys, capacity, 0)
            self._last_times = _grown(self._last_times, capacity, np.iinfo(np.int64).min)
            self._last_values = _grown(self._last_values, capacity, np.nan)
        self._keys[self.count : count] = keys
        self.count = count
        order = np.argsort(self._keys[:count], kind="stable")
        self._sorted, self._sorted_ids = self._keys[:count][order], order

    def observe(self, layout: Layout, frame: Frame) -> None:
        """Take the newest samples of an accepted frame, and what it tells of servers and metrics."""
        for time, values in zip(frame.times, frame.values, strict=True):
            newer = ~np.isnan(values) & (layout.ids >= 0)
            ids = layout.ids[newer]
            values_of = values[newer]
            if len(ids) and int(self._last_times[ids].max()) > time:
                late = self._last_times[ids] <= time
                ids, values_of = ids[late], values_of[late]
            self._last_times[ids] = time
            self._last_values[ids] = values_of
        self.learn(frame.server_infos, frame.metric_infos)

    def learn(self, infos: Iterable[ServerInfo], metric_infos: Iterable[MetricInfo]) -> None:
        """Take what is told of servers and metrics; empty fields overwrite nothing."""
        for info in infos:
            self.infos[info.id] = merge_info(self.infos.get(info.id), info)
        for metric in metric_infos:
            self.metric_infos[metric.name] = metric

    # ── asking ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def select(self, servers: Sequence[str], text: str, patterns: Sequence[str]) -> Selection:
        """Return the series of the chosen servers and metrics; InvalidArgumentError for a malformed filter or glob."""
        node = server_filter.parse(text, "selector.server_filter")
        server_filter.check_fields(node, SERVER_FIELDS, "selector.server_filter")
        server_mask = self._server_mask(servers, node)
        metric_mask = np.zeros(len(self.metrics), np.bool_)
        metric_mask[select(self.metrics, patterns)] = True
        keys = self._sorted
        chosen = server_mask[keys >> _SHIFT] & metric_mask[keys & 0xFFFFFFFF] if len(keys) else np.zeros(0, np.bool_)
        ids = self._sorted_ids[chosen]
        ids = ids[self._by_name(ids)]
        rows = np.full(self.count, -1, np.int64)
        rows[ids] = np.arange(len(ids))
        return Selection(server_mask, metric_mask, ids, rows)

    def _server_mask(self, servers: Sequence[str], node: server_filter.Node | None) -> NDArray[np.bool_]:
        mask = np.zeros(len(self.servers), np.bool_)
        if servers:
            wanted = [self._servers.get(name.lower()) for name in servers]
            mask[[index for index in wanted if index is not None]] = True
        else:
            mask[:] = True
        if node is not None:
            for index in np.flatnonzero(mask).tolist():
                mask[index] = server_filter.matches(node, self._lookup(self.servers[index]))
        return mask

    def _lookup(self, server: str) -> Callable[[str], str | None]:
        info = self.infos.get(server) or ServerInfo(id=server)

        def value(field: str) -> str | None:
            if field.startswith("labels."):
                return info.labels.get(field.removeprefix("labels."))
            return str(getattr(info, field))

        return value

    def _by_name(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the order of series ids by server and metric name."""
        order: NDArray[np.int64] = np.lexsort(
            (_ranks(self.metrics)[self._keys[ids] & 0xFFFFFFFF], _ranks(self.servers)[self._keys[ids] >> _SHIFT])
        )
        return order

    def find(
        self, servers: tuple[Sequence[str], NDArray[np.int64]], metrics: tuple[Sequence[str], NDArray[np.int64]]
    ) -> NDArray[np.int64]:
        """Return the ids of series given as dictionaries and codes, as Arrow has them; −1 for unknown ones."""
        server_ids = np.asarray([self._or_none(self._servers, name) for name in servers[0]], np.int64)
        metric_ids = np.asarray([self._or_none(self._metrics, name) for name in metrics[0]], np.int64)
        # Looked up once for each pair of names, not for each sample.
        pairs = self._find(server_ids[:, None] << _SHIFT | metric_ids[None, :])
        pairs[server_ids < 0, :] = -1
        pairs[:, metric_ids < 0] = -1
        return pairs[servers[1], metrics[1]]

    @staticmethod
    def _or_none(names: _Names, name: str) -> int:
        found = names.get(name)
        return -1 if found is None else found

    def server_of(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the server indices of series."""
        return self._keys[ids] >> _SHIFT

    def metric_of(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the metric indices of series."""
        return self._keys[ids] & 0xFFFFFFFF

    def last(self, ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return the time and the value of the newest sample of series; the time is int64's minimum where none is."""
        return self._last_times[ids], self._last_values[ids]

    def metric_info(self, key: str) -> MetricInfo:
        """Return what is known of a metric key."""
        name = parse_key(key)[0]
        return self.metric_infos.get(name) or MetricInfo(name=name)

    def restore(
        self,
        servers: Sequence[str],
        metrics: Sequence[str],
        times: NDArray[np.int64],
        values: NDArray[np.float64],
    ) -> None:
        """Take series from a stored catalogue: parallel columns of names, newest times and values."""
        keys = self._servers.intern(servers) << _SHIFT | self._metrics.intern(metrics)
        known = self._find(keys)
        self._add(keys[known < 0][: max(0, self._max_series - self.count)])
        ids = self._find(keys)
        newer = (ids >= 0) & (times >= self._last_times[ids])
        self._last_times[ids[newer]] = times[newer]
        self._last_values[ids[newer]] = values[newer]


def _ranks(names: Sequence[str]) -> NDArray[np.int64]:
    ranks = np.empty(len(names), np.int64)
    ranks[sorted(range(len(names)), key=names.__getitem__)] = np.arange(len(names))
    return ranks


def _grown(array: NDArray[Any], capacity: int, fill: float) -> NDArray[Any]:
    out = np.full(capacity, fill, array.dtype)
    out[: len(array)] = array
    return out


def merge_info(old: ServerInfo | None, new: ServerInfo) -> ServerInfo:
    """Return the newer of two infos, its empty fields filled from the older."""
    if old is None:
        return new
    return replace(
        new,
        hostname=new.hostname or old.hostname,
        environment=new.environment or old.environment,
        role=new.role or old.role,
        location=new.location or old.location,
        labels={**old.labels, **new.labels},
    )

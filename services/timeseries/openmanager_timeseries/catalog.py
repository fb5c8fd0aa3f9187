"""Which servers, metrics and series there are, and the newest sample of each, in arrays.

A series is a pair of a server and a metric. Its id is its row in the arrays; ids are dense and never reused while the
process lives. A series *lives* while it has a sample; one that was forgotten keeps its id for when it comes back. No
Python object is kept per series. The event loop writes; threads may read beside it, and see an array as it was or as
it is, since arrays are replaced when they grow.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from openmanager import filter as server_filter
from openmanager.frame import Frame, MetricInfo, ServerInfo
from openmanager.metric import select

SERVER_FIELDS = {
    **dict.fromkeys(("id", "hostname", "environment", "role", "location", "labels.*"), server_filter.TEXT),
}
NEVER = np.iinfo(np.int64).min  # the newest time of a series that has no sample
_SHIFT = 32
_REMEMBERED = 32  # masks and answers
_REMEMBERED_TEXT = 4096  # characters that one of them may be asked by
_LABEL_SETS = 4096
# Agents that change their metrics at every export must not fill memory; a server that sends its own frames needs a
# layout all the same, or each of its frames begins a chunk in the head. In cells of 8 bytes, about 56 a layout besides
# its ids.
_LAYOUT_CELLS = 1 << 22
_LAYOUT_CELLS_PER_SERIES = 16
_CELLS_PER_LAYOUT = 56

_Bools = NDArray[np.bool_]
_Ints = NDArray[np.int64]
_Rows = NDArray[np.int32]  # ids and indices where there is one for each series


@dataclass(slots=True, eq=False)
class Layout:
    """The servers and metrics of a frame, and the ids of their series: int64[S, M], −1 for a series never seen."""

    servers: _Ints
    metrics: _Ints
    ids: _Ints
    # How often series had been forgotten when the ids were last looked through.
    checked: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Selection:
    """Chosen servers and metrics as masks, and the ids of the series that live among them, by server and metric."""

    servers: _Bools
    metrics: _Bools
    ids: _Ints
    # For every series id its row in the answer, −1 where it is not chosen: int64[series].
    rows: _Ints


class _Names:
    """Distinct names with an index for each."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self._index: dict[str, int] = {}
        self._ranks: _Rows = np.empty(0, np.int32)

    def intern(self, names: Iterable[str]) -> _Ints:
        """Return the indices of names, new ones for those not seen before."""
        out = []
        for name in names:
            index = self._index.get(name)
            if index is None:
                index = len(self.names)
                self.names.append(name)
                self._index[name] = index
            out.append(index)
        return np.asarray(out, np.int64)

    def get(self, name: str) -> int | None:
        """Return the index of a name, None when it was never seen."""
        return self._index.get(name)

    def own(self, names: Iterable[str]) -> tuple[str, ...]:
        """Return names that were seen before as the very objects that are kept here."""
        return tuple(self.names[self._index[name]] for name in names)

    def of(self, indices: NDArray[Any]) -> list[str]:
        """Return the names of some indices."""
        return list(map(self.names.__getitem__, indices.tolist()))

    def ranks(self) -> _Rows:
        """Return for every index its place among the sorted names."""
        known, count = len(self._ranks), len(self.names)
        if known < count:
            ordered = np.argsort(self._ranks)
            fresh = sorted(range(known, count), key=self.names.__getitem__)
            before = np.asarray(self.names, object)[ordered]
            at = np.searchsorted(before, np.asarray([self.names[index] for index in fresh], object))
            ranks = np.empty(count, np.int32)
            ranks[np.insert(ordered, at, fresh)] = np.arange(count)
            self._ranks = ranks
        return self._ranks


class _Index:
    """The ids of keys, in sorted runs each at least twice as long as the next: adding costs no sorting of all."""

    def __init__(self) -> None:
        self._runs: tuple[tuple[_Ints, _Rows], ...] = ()

    def find(self, keys: _Ints) -> _Ints:
        """Return the ids of keys, −1 for unknown ones."""
        found = np.full(keys.shape, -1, np.int64)
        for held, ids in self._runs:
            at = np.minimum(np.searchsorted(held, keys), len(held) - 1)
            np.copyto(found, ids[at], where=held[at] == keys)
        return found

    def add(self, keys: _Ints, ids: _Rows) -> None:
        """Take keys that are not held yet."""
        runs = list(self._runs)
        while True:
            order = np.argsort(keys, kind="stable")  # two sorted runs are merged, not sorted
            keys, ids = keys[order], ids[order]
            if not runs or len(runs[-1][0]) >= 2 * len(keys):
                break
            before = runs.pop()
            keys, ids = np.concatenate((before[0], keys)), np.concatenate((before[1], ids))
        self._runs = (*runs, (keys, ids))


class _Order(NamedTuple):
    """The living series by server name and metric key."""

    ids: _Rows
    metrics: _Rows  # their metrics
    servers: _Rows  # the servers that have some, and where those of each begin: S' and S' + 1
    starts: _Ints

    @classmethod
    def of(cls, ids: _Rows, metrics: _Rows, servers: _Rows) -> _Order:
        """Return the order of parallel columns that are in order."""
        firsts = np.flatnonzero(servers[1:] != servers[:-1]) + 1
        firsts = np.append(0, firsts) if len(servers) else firsts
        return cls(ids, metrics, servers[firsts], np.append(firsts, len(servers)))

    def server_column(self, of_server: NDArray[Any]) -> NDArray[Any]:
        """Return for each series what `of_server` says of its server."""
        return np.repeat(of_server, np.diff(self.starts))


@dataclass(slots=True)
class _MetricSet:
    """The layouts of the frames with the same metrics, by their servers."""

    metrics: _Ints
    layouts: dict[tuple[str, ...], Layout] = field(default_factory=dict)


class _Layouts:
    """The layouts of late, in two ages: the older one is dropped when the younger is full."""

    def __init__(self) -> None:
        self._young: dict[tuple[str, ...], _MetricSet] = {}
        self._old: dict[tuple[str, ...], _MetricSet] = {}
        self._cells = 0

    def find(self, servers: tuple[str, ...], metrics: tuple[str, ...]) -> Layout | None:
        """Return the layout of some names if it is of the younger age."""
        group = self._young.get(metrics)
        return group.layouts.get(servers) if group else None

    def take_old(self, servers: tuple[str, ...], metrics: tuple[str, ...]) -> Layout | None:
        """Return the layout of some names and forget it if it is of the older age."""
        group = self._old.get(metrics)
        return group.layouts.pop(servers, None) if group else None

    def put(self, servers: tuple[str, ...], metrics: tuple[str, ...], layout: Layout, limit: int) -> Layout:
        """Keep a layout, about `limit` cells in each age; return it, its metrics shared with its like."""
        group = self._young.setdefault(metrics, _MetricSet(layout.metrics))
        layout.metrics = group.metrics
        if servers not in group.layouts:
            self._cells += layout.ids.size + _CELLS_PER_LAYOUT
        group.layouts[servers] = layout
        if self._cells > limit:
            self._old, self._young, self._cells = self._young, {}, 0
        return layout


class _Masks:
    """Answers about names that only ever grow in number, remembered by the question."""

    def __init__(self) -> None:
        self.held: dict[Any, _Bools] = {}

    def get(self, question: Hashable, count: int, answer: Callable[[int], _Bools]) -> _Bools:
        """Return the mask of `count` names; `answer(first)` gives it from index `first` on."""
        known = self.held.pop(question, None)
        if known is None:
            known = answer(0)
        elif len(known) < count:
            known = np.concatenate((known, answer(len(known))))
        if len(self.held) >= _REMEMBERED:
            del self.held[next(iter(self.held))]
        self.held[question] = known
        return known


class _Facts(NamedTuple):
    """What is known of the metrics by index, as of a version of their infos."""

    version: int
    kinds: _Ints
    temporalities: _Ints


class Catalog:
    """The series of one shard."""

    def __init__(self, max_series: int) -> None:
        self._max_series = max_series
        self._servers = _Names()
        self._metrics = _Names()
        self.infos: dict[str, ServerInfo] = {}
        self.metric_infos: dict[str, MetricInfo] = {}
        self.count = 0  # ids given out
        self.alive = 0
        # By id. A series counts against the limit from when it is admitted, before its first sample is durable.
        self._server_of: _Rows = np.empty(0, np.int32)
        self._metric_of: _Rows = np.empty(0, np.int32)
        self._last_times: _Ints = np.empty(0, np.int64)
        self._last_values: NDArray[np.float64] = np.empty(0, np.float64)
        self._counted: _Bools = np.empty(0, np.bool_)
        self._counted_series = 0
        self._index = _Index()
        self._layouts = _Layouts()
        self._forgettings = 0
        self._order = _Order.of(*(np.empty(0, np.int32),) * 3)
        self._placed: _Bools = np.empty(0, np.bool_)  # by id: in the order
        self._order_is_old = False
        self._label_sets: dict[tuple[tuple[str, str], ...], Mapping[str, str]] = {}
        self._comparisons = _Masks()
        self._patterns = _Masks()
        self._answers: dict[Hashable, _Answer] = {}
        self._infos_version = 0
        self._facts = _Facts(0, np.empty(0, np.int64), np.empty(0, np.int64))

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

    # ── writing ────────────────────────────────────────────────────────────────────────────────────────────────────

    def layout(self, servers: tuple[str, ...], metrics: tuple[str, ...]) -> Layout:
        """Return the layout of a frame; the same object as long as the same names come and none is forgotten."""
        found = self._layouts.find(servers, metrics)
        if found is not None and found.checked == self._forgettings:
            return found
        found = found or self._layouts.take_old(servers, metrics)
        if found is None or not self._is_current(found):
            # Equal tuples are compared for every frame: in a moment if their texts are the same objects.
            server_ids, metric_ids = self._servers.intern(servers), self._metrics.intern(map(sys.intern, metrics))
            ids = self._index.find(server_ids[:, None] << _SHIFT | metric_ids[None, :])
            if self._forgettings:
                ids[~self._counts(ids)] = -1
            found = Layout(server_ids, metric_ids, ids, self._forgettings)
        limit = max(_LAYOUT_CELLS, _LAYOUT_CELLS_PER_SERIES * self._counted_series)
        return self._layouts.put(self._servers.own(servers), self._metrics.own(metrics), found, limit)

    def _is_current(self, layout: Layout) -> bool:
        """Say whether none of the series was forgotten; frames under way and the head go on with the layout if so."""
        current = not (~self._counts(layout.ids) & (layout.ids >= 0)).any()
        if current:
            layout.checked = self._forgettings
        return current

    def _counts(self, ids: _Ints) -> _Bools:
        return (ids >= 0) & self._counted[ids] if len(self._counted) else ids >= 0

    def admit(self, layout: Layout, present: _Bools) -> _Bools | None:
        """Give ids to the series of a layout that have samples and none yet: `present` is bool[S, M].

        Returns None when all found room, else a mask bool[S, M] of the series that did not.
        """
        missing = present & (layout.ids < 0)
        if not missing.any():
            return None
        # Another layout may have brought them meanwhile.
        found = self._make_room((layout.servers[:, None] << _SHIFT | layout.metrics[None, :])[missing])
        layout.ids[missing] = found
        if (found >= 0).all():
            return None
        refused = np.zeros(present.shape, np.bool_)
        refused[missing] = found < 0
        return refused

    def _make_room(self, keys: _Ints) -> _Ints:
        """Return the ids of series, each given once, that count against the limit from now on; −1 for those over it."""
        ids = self._index.find(keys)
        wanting = np.flatnonzero(~self._counts(ids))
        room = max(0, self._max_series - self._counted_series)
        ids[wanting[room:]] = -1
        taken = wanting[:room]
        new = taken[ids[taken] < 0]
        ids[new] = np.arange(self.count, self.count + len(new))
        self._add(keys[new])
        self._counted[ids[taken]] = True
        self._counted_series += len(taken)
        return ids

    def _add(self, keys: _Ints) -> None:
        if not len(keys):
            return
        count = self.count + len(keys)
        if count > len(self._server_of):
            capacity = max(1024, count + count // 8)
            self._server_of = _grown(self._server_of, capacity, 0)
            self._metric_of = _grown(self._metric_of, capacity, 0)
            self._last_times = _grown(self._last_times, capacity, NEVER)
            self._last_values = _grown(self._last_values, capacity, np.nan)
            self._counted = _grown(self._counted, capacity, False)
            self._placed = _grown(self._placed, capacity, False)
        self._server_of[self.count : count] = keys >> _SHIFT
        self._metric_of[self.count : count] = keys & 0xFFFFFFFF
        self._index.add(keys, np.arange(self.count, count, dtype=np.int32))
        self.count = count

    def observe(self, layout: Layout, frame: Frame) -> None:
        """Take the newest samples of an accepted frame, and what it tells of servers and metrics."""
        for time, values in zip(frame.times, frame.values, strict=True):
            newer = ~np.isnan(values) & (layout.ids >= 0)
            whole = newer.all()
            ids = layout.ids.ravel() if whole else layout.ids[newer]
            values_of = values.ravel() if whole else values[newer]
            if not len(ids):
                continue
            before = self._last_times[ids]
            if int(before.min()) == NEVER:
                self._wake(ids[before == NEVER])
            if int(before.max()) > time:
                late = before <= time
                ids, values_of = ids[late], values_of[late]
            self._last_times[ids] = time
            self._last_values[ids] = values_of
        self.learn(frame.server_infos, frame.metric_infos)

    def _wake(self, ids: _Ints) -> None:
        """Take series that get their first sample, or one after they were forgotten."""
        if not len(ids):
            return
        self.alive += len(ids)
        self._counted_series += len(ids) - int(np.count_nonzero(self._counted[ids]))
        self._counted[ids] = True
        self._change()

    def _change(self) -> None:
        self._order_is_old = True
        self._answers.clear()

    def restore(
        self, servers: Sequence[str], metrics: Sequence[str], times: _Ints, values: NDArray[np.float64]
    ) -> None:
        """Take series from a stored catalogue, each once: parallel columns of names, newest times and values."""
        ids = self._make_room(self._servers.intern(servers) << _SHIFT | self._metrics.intern(metrics))
        known = (ids >= 0) & (times != NEVER)
        ids, times, values = ids[known], times[known], values[known]
        before = self._last_times[ids]
        self._wake(ids[before == NEVER])
        newer = times >= before
        self._last_times[ids[newer]] = times[newer]
        self._last_values[ids[newer]] = values[newer]

    def forget(self, ids: _Ints) -> None:
        """Take note that series have no samples any more: they are not there until a new sample comes."""
        ids = np.unique(ids)
        self.alive -= int(np.count_nonzero(self._last_times[ids] != NEVER))
        self._counted_series -= int(np.count_nonzero(self._counted[ids]))
        self._counted[ids] = False
        self._last_times[ids] = NEVER
        self._last_values[ids] = np.nan
        self._forgettings += 1
        self._change()

    def learn(self, infos: Iterable[ServerInfo], metric_infos: Iterable[MetricInfo]) -> None:
        """Take what is told of servers and metrics; empty fields overwrite nothing."""
        for info in infos:
            before = self.infos.get(info.id)
            if before != info and before != (now := merge_info(before, info)):
                self._tell(now)
        for metric in metric_infos:
            if self.metric_infos.get(metric.name) != metric:
                self.metric_infos[metric.name] = metric
                self._infos_version += 1

    def _tell(self, info: ServerInfo) -> None:
        info = self._shared(info)
        self.infos[info.id] = info
        index = self._servers.get(info.id)
        for comparison, mask in self._comparisons.held.items():
            if index is not None and index < len(mask):
                mask[index] = _test(comparison)(info)
        self._answers.clear()

    def _shared(self, info: ServerInfo) -> ServerInfo:
        """Return an info whose texts are those of other servers where they are equal: most are."""
        index = self._servers.get(info.id)
        key = tuple(sorted(info.labels.items()))
        labels = self._label_sets.get(key)
        if labels is None:
            if len(self._label_sets) >= _LABEL_SETS:
                self._label_sets.clear()
            labels = self._label_sets[key] = {sys.intern(name): sys.intern(value) for name, value in key}
        return ServerInfo(
            id=info.id if index is None else self.servers[index],
            hostname=info.hostname,
            environment=sys.intern(info.environment),
            role=sys.intern(info.role),
            location=sys.intern(info.location),
            labels=labels,
        )

    # ── asking ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def select(self, servers: Sequence[str], text: str, patterns: Sequence[str]) -> Selection:
        """Return the series of the chosen servers and metrics (on the event loop).

        Raises InvalidArgumentError for a malformed filter or glob.
        """
        answer = self._answer(tuple(servers), text, tuple(patterns))
        ids = answer.ids.astype(np.int64)
        rows = np.full(self.count, -1, np.int64)
        rows[ids] = np.arange(len(ids))
        return Selection(answer.servers, answer.metrics, ids, rows)

    def ordered(self, servers: Sequence[str], text: str, patterns: Sequence[str]) -> _Rows:
        """Return the ids of what `select` chooses, in its order (on the event loop); not the caller's to change."""
        return self._answer(tuple(servers), text, tuple(patterns)).ids

    def _answer(self, servers: tuple[str, ...], text: str, patterns: tuple[str, ...]) -> _Answer:
        question = (servers, text, patterns)
        found = self._answers.get(question)
        if found is None:
            found = self._look(servers, text, patterns)
            if _is_short((*servers, text, *patterns)):
                self._remember(question, found)
        return found

    def _remember(self, question: Hashable, answer: _Answer) -> None:
        """Keep an answer until anything changes: whoever lists the series comes back for every page."""
        room = 4 * self.count - self._nbytes(answer)
        held = sum(map(self._nbytes, self._answers.values()))
        while self._answers and (held > room or len(self._answers) >= _REMEMBERED):
            held -= self._nbytes(self._answers.pop(next(iter(self._answers))))
        self._answers[question] = answer

    def _nbytes(self, answer: _Answer) -> int:
        ids = 0 if answer.ids is self._order.ids else answer.ids.nbytes
        return ids + answer.servers.nbytes + answer.metrics.nbytes

    def _look(self, servers: tuple[str, ...], text: str, patterns: tuple[str, ...]) -> _Answer:
        server_mask, metric_mask = self._server_mask(servers, text), self._metric_mask(patterns)
        order = self._in_order()
        blocks = server_mask[order.servers]
        ids, metrics = order.ids, order.metrics
        if not blocks.all():
            at = _ranges(order.starts[:-1][blocks], order.starts[1:][blocks])
            ids, metrics = ids[at], metrics[at]
        if not metric_mask.all():
            ids = ids[_chosen(metrics, metric_mask)]
        return _Answer(server_mask, metric_mask, ids)

    def _in_order(self) -> _Order:
        """Return the living series in order: what is new since it was last asked for is put in its place."""
        if not self._order_is_old:
            return self._order
        order, lives = self._order, self._last_times != NEVER
        gone = self._placed & ~lives
        if gone.any():
            stays = ~gone[order.ids]
            order = _Order.of(order.ids[stays], order.metrics[stays], order.server_column(order.servers)[stays])
        new = np.flatnonzero(lives & ~self._placed).astype(np.int32)
        server_ranks, metric_ranks = self._servers.ranks().astype(np.int64) << _SHIFT, self._metrics.ranks()
        keys = server_ranks[self._server_of[new]] | metric_ranks[self._metric_of[new]]
        by_name = np.argsort(keys)
        new = new[by_name]
        held = order.server_column(server_ranks[order.servers]) | metric_ranks[order.metrics]
        at = np.searchsorted(held, keys[by_name])
        self._order = _Order.of(
            np.insert(order.ids, at, new),
            np.insert(order.metrics, at, self._metric_of[new]),
            np.insert(order.server_column(order.servers), at, self._server_of[new]),
        )
        self._placed, self._order_is_old = lives, False
        return self._order

    def _metric_mask(self, patterns: tuple[str, ...]) -> _Bools:
        def chosen(first: int) -> _Bools:
            mask = np.zeros(len(self.metrics) - first, np.bool_)
            mask[select(self.metrics[first:], patterns)] = True
            return mask

        if not patterns:
            return np.ones(len(self.metrics), np.bool_)
        return self._patterns.get(patterns, len(self.metrics), chosen) if _is_short(patterns) else chosen(0)

    def _server_mask(self, servers: Sequence[str], text: str) -> _Bools:
        node = server_filter.parse(text, "selector.server_filter")
        server_filter.check_fields(node, SERVER_FIELDS, "selector.server_filter")
        mask = np.full(len(self.servers), not servers, np.bool_)
        wanted = [self._servers.get(name.lower()) for name in servers]
        mask[[index for index in wanted if index is not None]] = True
        if node is not None:
            mask &= self._matches(node)
        return mask

    def _matches(self, node: server_filter.Node) -> _Bools:
        """Return the servers that a filter holds for, as `filter.matches` says for each."""
        found: _Bools
        match node:
            case server_filter.And(parts=parts):
                found = np.all([self._matches(part) for part in parts], axis=0)
            case server_filter.Or(parts=parts):
                found = np.any([self._matches(part) for part in parts], axis=0)
            case server_filter.Not(part=part):
                found = ~self._matches(part)
            case server_filter.Comparison():
                found = self._comparisons.get(node, len(self.servers), lambda first: self._compare(node, first))
        return found

    def _compare(self, comparison: server_filter.Comparison, first: int) -> _Bools:
        test, names = _test(comparison), self.servers[first:]
        infos = (self.infos.get(name) or ServerInfo(id=name) for name in names)
        return np.fromiter(map(test, infos), np.bool_, len(names))

    def find(self, servers: tuple[Sequence[str], _Ints], metrics: tuple[Sequence[str], _Ints]) -> _Ints:
        """Return the ids of series given as dictionaries and codes, as Arrow has them; −1 for unknown ones."""
        server_ids = np.asarray([self._or_none(self._servers, name) for name in servers[0]], np.int64)
        metric_ids = np.asarray([self._or_none(self._metrics, name) for name in metrics[0]], np.int64)
        # Looked up once for each pair of names, not for each sample.
        pairs = self._index.find(server_ids[:, None] << _SHIFT | metric_ids[None, :])
        pairs[server_ids < 0, :] = -1
        pairs[:, metric_ids < 0] = -1
        found: _Ints = pairs[servers[1], metrics[1]]
        return found

    @staticmethod
    def _or_none(names: _Names, name: str) -> int:
        found = names.get(name)
        return -1 if found is None else found

    def server_of(self, ids: NDArray[Any]) -> _Ints:
        """Return the server indices of series."""
        return np.asarray(self._server_of[ids], np.int64)

    def metric_of(self, ids: NDArray[Any]) -> _Ints:
        """Return the metric indices of series."""
        return np.asarray(self._metric_of[ids], np.int64)

    def names(self, ids: NDArray[Any]) -> tuple[list[str], list[str]]:
        """Return the servers and the metric keys of series."""
        return self._servers.of(self._server_of[ids]), self._metrics.of(self._metric_of[ids])

    def last(self, ids: NDArray[Any]) -> tuple[_Ints, NDArray[np.float64]]:
        """Return the time and the value of the newest sample of series; the time is NEVER where none is."""
        return self._last_times[ids], self._last_values[ids]

    def metric_info(self, key: str) -> MetricInfo:
        """Return what is known of a metric key."""
        name = key.partition("{")[0]
        return self.metric_infos.get(name) or MetricInfo(name=name)

    def kinds(self, ids: NDArray[Any]) -> _Ints:
        """Return the kind of the metric of each series, numbers of the proto enum."""
        found: _Ints = self._known_facts().kinds[self._metric_of[ids]]
        return found

    def temporalities(self, ids: NDArray[Any]) -> _Ints:
        """Return the temporality of the metric of each series, numbers of the proto enum."""
        found: _Ints = self._known_facts().temporalities[self._metric_of[ids]]
        return found

    def _known_facts(self) -> _Facts:
        """Return the facts of all metrics; may run in threads: the version is read before what it is the version of."""
        version, facts = self._infos_version, self._facts
        if facts.version != version:
            facts = _Facts(version, facts.kinds[:0], facts.temporalities[:0])
        known = len(facts.kinds)
        if known < len(self.metrics):
            infos = [self.metric_info(key) for key in self.metrics[known:]]
            facts = _Facts(
                version,
                np.append(facts.kinds, [info.kind for info in infos]),
                np.append(facts.temporalities, [info.temporality for info in infos]),
            )
            self._facts = facts
        return facts


@dataclass(frozen=True, slots=True, eq=False)
class _Answer:
    """What a selector chooses: masks of servers and metrics, and the ids in order."""

    servers: _Bools
    metrics: _Bools
    ids: _Rows


def _is_short(texts: Sequence[str]) -> bool:
    return len(texts) + sum(map(len, texts)) <= _REMEMBERED_TEXT


def _test(comparison: server_filter.Comparison) -> Callable[[ServerInfo], bool]:
    """Return what `filter.matches` does for one comparison of text; a label that is absent is an empty text."""
    wanted = comparison.value
    if comparison.field.startswith("labels."):
        label = comparison.field.removeprefix("labels.")
        have: Callable[[ServerInfo], str] = lambda info: info.labels.get(label, "")  # noqa: E731
    else:
        have = attrgetter(comparison.field)
    match comparison.operator:
        case ":":
            return lambda info: wanted in have(info)
        case "=":
            return lambda info: have(info) == wanted
        case _:
            return lambda info: have(info) != wanted


def _chosen(indices: _Rows, mask: _Bools) -> _Bools:
    """Return the mask's value for each index; few are compared, which is twenty times faster than looking up each."""
    few = np.flatnonzero(mask)
    if len(few) > 8:
        return mask[indices]
    found = np.zeros(len(indices), np.bool_)
    for index in few.tolist():
        found |= indices == index
    return found


def _ranges(starts: _Ints, ends: _Ints) -> _Ints:
    """Return the numbers of all ranges [start, end), one range after the other."""
    lengths = ends - starts
    before = np.cumsum(lengths) - lengths
    return np.repeat(starts - before, lengths) + np.arange(int(lengths.sum()))


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

"""Which servers, metrics and series there are, and the newest sample of each, in arrays.

A series is a pair of a server and a metric. Its id is its row in the arrays; ids are dense and never reused while the
process lives. A series *lives* while it has a sample; one that was forgotten keeps its id for when it comes back. No
Python object is kept per series. The event loop writes; threads may read beside it, and see an array as it was or as
it is, since arrays are replaced when they grow. What is newest is written under a lock, for asking writes it too.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from openmanager import filter as server_filter
from openmanager.frame import Frame, MetricInfo, ServerInfo
from openmanager.metric import select
from openmanager_timeseries.samples import Bools, Ints, ranges
from openmanager_timeseries.series_index import (
    REMEMBERED,
    Facts,
    Ids,
    KeyIndex,
    Layout,
    Layouts,
    Masks,
    Names,
    SeriesOrder,
)

SERVER_FIELDS = {
    **dict.fromkeys(("id", "hostname", "environment", "role", "location", "labels.*"), server_filter.TEXT),
}
Indices = NDArray[np.integer[Any]]
NEVER = np.iinfo(np.int64).min  # the newest time of a series that has no sample
_SHIFT = 32
_REMEMBERED_TEXT = 4096  # characters that one of them may be asked by
_LABEL_SETS = 4096
# What is told of metrics may come before their samples: of so many of them.
_STRANGE_METRICS = 4096
_REMEMBERED_FRAMES = 1024
_REMEMBERED_BYTES = 96 << 20
# Agents that change their metrics at every export must not fill memory; a server that sends its own frames needs a
# layout all the same, or each of its frames begins a chunk in the head. In cells of 8 bytes, about 56 a layout besides
# its ids.
_LAYOUT_CELLS = 1 << 22
_LAYOUT_CELLS_PER_SERIES = 16


@dataclass(frozen=True, slots=True, eq=False)
class Selection:
    """Chosen servers and metrics as masks, and the ids of the series that live among them, by server and metric."""

    servers: Bools
    metrics: Bools
    ids: Ints
    # For every series id its row in the answer, −1 where it is not chosen: int64[series].
    rows: Ints

    def rows_of(self, ids: Ints) -> Ints:
        """Return the rows of series, −1 for one that is not chosen, not known (−1) or came later."""
        known = (ids >= 0) & (ids < len(self.rows))
        if known.all():
            return self.rows[ids]
        found = np.full(ids.shape, -1, np.int64)
        found[known] = self.rows[ids[known]]
        return found


class Catalog:
    """The series of one shard."""

    def __init__(self, max_series: int) -> None:
        self._max_series = max_series
        self._servers = Names()
        self._metrics = Names()
        self.infos: dict[str, ServerInfo] = {}
        self.metric_infos: dict[str, MetricInfo] = {}
        self.count = 0  # ids given out
        self.alive = 0
        # By id. A series counts against the limit from when it is admitted, before its first sample is durable.
        self._server_of: Ids = np.empty(0, np.int32)
        self._metric_of: Ids = np.empty(0, np.int32)
        self._last_times: Ints = np.empty(0, np.int64)
        self._last_values: NDArray[np.float64] = np.empty(0, np.float64)
        # By layout: complete frames whose samples are still to be taken, in the order of arrival.
        self._newest: dict[int, _Newest] = {}
        self._newest_bytes = 0
        self._settling = threading.Lock()
        # By server, once somebody asks what is late: when its newest sample is at the latest, and was then.
        self._ends: Ints | None = None
        self._unjudged: Ints = np.empty(0, np.int64)
        self._counted: Bools = np.empty(0, np.bool_)
        self._counted_series = 0
        self._index = KeyIndex()
        self._layouts = Layouts()
        self._forgettings = 0
        self._order = SeriesOrder.of(*(np.empty(0, np.int32),) * 3)
        self._placed: Bools = np.empty(0, np.bool_)  # by id: in the order
        self._order_is_old = False
        self._label_sets: dict[tuple[tuple[str, str], ...], Mapping[str, str]] = {}
        self._comparisons = Masks()
        self._patterns = Masks()
        self._answers: dict[Hashable, _Answer] = {}
        self._infos_version = 0
        self._facts = Facts(0, np.empty(0, np.int64), np.empty(0, np.int64))

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

    def current(self, servers: tuple[str, ...], metrics: tuple[str, ...]) -> Layout | None:
        """Return the layout of a frame whose names came together before, None when they did not of late."""
        found = self._layouts.find(servers, metrics)
        return found if found is not None and found.checked == self._forgettings else None

    def known(self, servers: tuple[str, ...], metrics: tuple[str, ...]) -> tuple[Bools, Bools]:
        """Say of each server and of each metric whether it has a place here; once given, a name keeps it."""
        return self._servers.known(servers), self._metrics.known(metrics)

    def names_for(
        self, servers: tuple[str, ...], metrics: tuple[str, ...], present: Bools, room: int
    ) -> tuple[Bools, Bools]:
        """Say the same when the names of the first `room` strange series that are `present`, bool[S, M], get theirs.

        The names of all others must not: those of samples that are refused, or not there, would fill the memory.
        """
        of_servers, of_metrics = self.known(servers, metrics)
        strange = np.argwhere(present & ~(of_servers[:, None] & of_metrics[None, :]))[:room]
        of_servers[strange[:, 0]] = True
        of_metrics[strange[:, 1]] = True
        return of_servers, of_metrics

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

    def _counts(self, ids: Ints) -> Bools:
        return (ids >= 0) & self._counted[ids] if len(self._counted) else ids >= 0

    @property
    def room(self) -> int:
        """How many more series there may be."""
        return max(0, self._max_series - self._counted_series)

    def admit(self, layout: Layout, present: Bools, most: int | None = None) -> Bools | None:
        """Give ids to the series of a layout that have samples and none yet, to `most` of them: `present` is bool[S, M].

        Returns None when all found room, else a mask bool[S, M] of the series that did not.
        """
        missing = present & (layout.ids < 0)
        if not missing.any():
            return None
        # Another layout may have brought them meanwhile.
        with self._settling:
            found = self._make_room((layout.servers[:, None] << _SHIFT | layout.metrics[None, :])[missing], most)
        layout.ids[missing] = found
        layout.is_whole = bool((layout.ids >= 0).all())
        if (found >= 0).all():
            return None
        refused = np.zeros(present.shape, np.bool_)
        refused[missing] = found < 0
        return refused

    def _make_room(self, keys: Ints, most: int | None = None) -> Ints:
        """Return the ids of series, each given once, that count against the limit from now on; −1 for those over it."""
        ids = self._index.find(keys)
        wanting = np.flatnonzero(~self._counts(ids))
        room = self.room if most is None else min(most, self.room)
        ids[wanting[room:]] = -1
        taken = wanting[:room]
        new = taken[ids[taken] < 0]
        ids[new] = np.arange(self.count, self.count + len(new))
        self._add(keys[new])
        self._counted[ids[taken]] = True
        self._counted_series += len(taken)
        return ids

    def _add(self, keys: Ints) -> None:
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

    def observe(self, layout: Layout, frame: Frame, *, complete: bool = False) -> None:
        """Take the newest samples of an accepted frame, and what it tells of servers and metrics.

        `complete` says that it has a sample for every server and metric at every time. The frames of a fleet mostly
        are, and then the newest one is only remembered until somebody asks what was in it.
        """
        with self._settling:
            if not (complete and self._supersede(layout, frame)):
                self._settle()
                for time, values in zip(frame.times, frame.values, strict=True):
                    self._take(layout.ids, int(time), values, complete=complete)
                if complete and layout.is_whole:
                    layout.lives = self._forgettings
            if self._ends is not None:
                ends = self._grown_ends(self._ends)
                ends[layout.servers] = np.maximum(ends[layout.servers], frame.times[-1])
        self.learn(frame.server_infos, frame.metric_infos)

    def is_late(self, layout: Layout, frame: Frame) -> bool:
        """Say whether a frame, before it is observed, has a sample that is not newer than the newest of its series.

        The newest sample once more, with the same value, is not late in a frame of one time: that is a frame that was
        sent again. Of what was there before this was asked for the first time nobody knows, and it is late all the same.
        """
        with self._settling:
            ends = self._grown_ends(self._begin_ends() if self._ends is None else self._ends)
            if int(ends[layout.servers].max(initial=NEVER)) < int(frame.times[0]):
                return False  # as nearly always: nothing has to be settled
            self._settle()
            return self._has_late(layout, frame)

    def _has_late(self, layout: Layout, frame: Frame) -> bool:
        ids, times, present = layout.ids, frame.times, ~np.isnan(frame.values)
        last = np.where(ids >= 0, self._last_times[ids], NEVER)
        if len(times) > 1:
            return bool((present.any(axis=0) & (times[present.argmax(axis=0)] <= last)).any())
        again = present[0] & (last >= times[0])
        if not again.any():
            return False
        values = np.ascontiguousarray(frame.values[0])
        same = (last == times[0]) & (self._last_values[ids].view(np.int64) == values.view(np.int64))
        old = layout.servers < len(self._unjudged)
        same[old] &= (self._unjudged[layout.servers[old]] < times[0])[:, None]
        return bool((again & ~same).any())

    def _begin_ends(self) -> Ints:
        self._settle()
        self._ends = np.full(len(self.servers), NEVER, np.int64)
        np.maximum.at(self._ends, self._server_of[: self.count], self._last_times[: self.count])
        self._unjudged = self._ends.copy()
        return self._ends

    def _grown_ends(self, ends: Ints) -> Ints:
        """Return the ends with a place for every server."""
        if len(ends) < len(self.servers):
            self._ends = ends = _grown(ends, len(self.servers) + len(self.servers) // 8, NEVER)
        return ends

    def _supersede(self, layout: Layout, frame: Frame) -> bool:
        """Remember a complete frame instead of the one before it; False where that would lose something."""
        if layout.lives != self._forgettings:
            return False
        newest = self._newest.get(id(layout))
        if newest is not None and newest.time > frame.times[-1]:
            return False
        if newest is not None:
            del self._newest[id(layout)]
            self._newest_bytes -= newest.values.nbytes
        # Of several ticks the last one alone is worth its memory.
        values = frame.values[-1] if len(frame.times) == 1 else frame.values[-1].copy()
        if self._newest_bytes + values.nbytes > _REMEMBERED_BYTES or len(self._newest) >= _REMEMBERED_FRAMES:
            self._settle()
        # At the end: of two samples of one time the later one counts, so they are taken in the order of arrival.
        self._newest[id(layout)] = _Newest(layout, int(frame.times[-1]), values)
        self._newest_bytes += values.nbytes
        return True

    def _settle(self) -> None:
        """Take the samples of the frames that were only remembered."""
        for each in self._newest.values():
            self._take(each.layout.ids, each.time, each.values, complete=True)
        self._newest.clear()
        self._newest_bytes = 0

    def _take(self, of: Ints, time: int, values: NDArray[np.float64], *, complete: bool) -> None:
        """Take the values of one time for the series `of`: both [S, M]."""
        if complete and (run := _run(of)) is not None:
            self._take_run(run, time, values.ravel())
            return
        newer = ~np.isnan(values) & (of >= 0)
        ids, values = of[newer], values[newer]
        if not len(ids):
            return
        before = self._last_times[ids]
        if int(before.min()) == NEVER:
            self._wake(ids[before == NEVER])
        if int(before.max()) > time:
            late = before <= time
            ids, values = ids[late], values[late]
        self._last_times[ids] = time
        self._last_values[ids] = values

    def _take_run(self, run: slice, time: int, values: NDArray[np.float64]) -> None:
        """Do as `_take` does for series whose ids follow each other, as those of a frame mostly do."""
        before = self._last_times[run]
        if int(before.min()) == NEVER:
            self._wake(np.arange(run.start, run.stop)[before == NEVER])
        late = before <= time
        np.copyto(self._last_values[run], values, where=late)
        np.copyto(before, time, where=late)

    def _wake(self, ids: Ints) -> None:
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

    def restore(self, servers: Sequence[str], metrics: Sequence[str], times: Ints, values: NDArray[np.float64]) -> None:
        """Take series from a stored catalogue, each once: parallel columns of names, newest times and values."""
        with self._settling:
            self._settle()
            ids = self._make_room(self._servers.intern(servers) << _SHIFT | self._metrics.intern(metrics))
            known = (ids >= 0) & (times != NEVER)
            ids, times, values = ids[known], times[known], values[known]
            before = self._last_times[ids]
            self._wake(ids[before == NEVER])
            self._ends = None
            newer = times >= before
            self._last_times[ids[newer]] = times[newer]
            self._last_values[ids[newer]] = values[newer]

    def forget(self, ids: Ints) -> None:
        """Take note that series have no samples any more: they are not there until a new sample comes."""
        with self._settling:
            self._settle()
            ids = np.unique(ids)
            self.alive -= int(np.count_nonzero(self._last_times[ids] != NEVER))
            self._counted_series -= int(np.count_nonzero(self._counted[ids]))
            self._counted[ids] = False
            self._last_times[ids] = NEVER
            self._last_values[ids] = np.nan
            self._forgettings += 1
            self._change()

    def learn(self, infos: Iterable[ServerInfo], metric_infos: Iterable[MetricInfo]) -> None:
        """Take what is told of servers and metrics; empty fields overwrite nothing.

        What is told of a metric may come before its samples; of more metrics than may be about to come it is not kept.
        """
        for info in infos:
            before = self.infos.get(info.id)
            if before != info and before != (now := merge_info(before, info)):
                self._tell(now)
        for metric in metric_infos:
            before_it = self.metric_infos.get(metric.name)
            if before_it is None and len(self.metric_infos) >= len(self.metrics) + _STRANGE_METRICS:
                continue
            if before_it != metric:
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

    def ordered(self, servers: Sequence[str], text: str, patterns: Sequence[str]) -> Ids:
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
        while self._answers and (held > room or len(self._answers) >= REMEMBERED):
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
            at = ranges(order.starts[:-1][blocks], order.starts[1:][blocks])
            ids, metrics = ids[at], metrics[at]
        if not metric_mask.all():
            ids = ids[_chosen(metrics, metric_mask)]
        return _Answer(server_mask, metric_mask, ids)

    def _in_order(self) -> SeriesOrder:
        """Return the living series in order: what is new since it was last asked for is put in its place."""
        if not self._order_is_old:
            return self._order
        order, lives = self._order, self._last_times != NEVER
        gone = self._placed & ~lives
        if gone.any():
            stays = ~gone[order.ids]
            order = SeriesOrder.of(order.ids[stays], order.metrics[stays], order.server_column(order.servers)[stays])
        new = np.flatnonzero(lives & ~self._placed).astype(np.int32)
        server_ranks, metric_ranks = self._servers.ranks().astype(np.int64) << _SHIFT, self._metrics.ranks()
        keys = server_ranks[self._server_of[new]] | metric_ranks[self._metric_of[new]]
        by_name = np.argsort(keys)
        new = new[by_name]
        held = order.server_column(server_ranks[order.servers]) | metric_ranks[order.metrics]
        at = np.searchsorted(held, keys[by_name])
        self._order = SeriesOrder.of(
            np.insert(order.ids, at, new),
            np.insert(order.metrics, at, self._metric_of[new]),
            np.insert(order.server_column(order.servers), at, self._server_of[new]),
        )
        self._placed, self._order_is_old = lives, False
        return self._order

    def _metric_mask(self, patterns: tuple[str, ...]) -> Bools:
        def chosen(first: int) -> Bools:
            mask = np.zeros(len(self.metrics) - first, np.bool_)
            mask[select(self.metrics[first:], patterns)] = True
            return mask

        if not patterns:
            return np.ones(len(self.metrics), np.bool_)
        return self._patterns.get(patterns, len(self.metrics), chosen) if _is_short(patterns) else chosen(0)

    def _server_mask(self, servers: Sequence[str], text: str) -> Bools:
        node = server_filter.parse(text, "selector.server_filter")
        server_filter.check_fields(node, SERVER_FIELDS, "selector.server_filter")
        mask = np.full(len(self.servers), not servers, np.bool_)
        wanted = [self._servers.get(name.lower()) for name in servers]
        mask[[index for index in wanted if index is not None]] = True
        if node is not None:
            mask &= self._matches(node)
        return mask

    def _matches(self, node: server_filter.Node) -> Bools:
        """Return the servers that a filter holds for, as `filter.matches` says for each."""
        found: Bools
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

    def _compare(self, comparison: server_filter.Comparison, first: int) -> Bools:
        test, names = _test(comparison), self.servers[first:]
        return np.fromiter(map(test, map(self.info_of, names)), np.bool_, len(names))

    def find(self, servers: tuple[Sequence[str], Indices], metrics: tuple[Sequence[str], Indices]) -> Ints:
        """Return the ids of series given as dictionaries and codes, as Arrow has them; −1 for unknown ones."""
        server_ids = np.asarray([self._or_none(self._servers, name) for name in servers[0]], np.int64)
        metric_ids = np.asarray([self._or_none(self._metrics, name) for name in metrics[0]], np.int64)
        # Looked up once for each pair of names, not for each sample.
        pairs = self._index.find(server_ids[:, None] << _SHIFT | metric_ids[None, :])
        pairs[server_ids < 0, :] = -1
        pairs[:, metric_ids < 0] = -1
        found: Ints = pairs[servers[1], metrics[1]]
        return found

    @staticmethod
    def _or_none(names: Names, name: str) -> int:
        found = names.get(name)
        return -1 if found is None else found

    def server_of(self, ids: NDArray[Any]) -> Ints:
        """Return the server indices of series."""
        return np.asarray(self._server_of[ids], np.int64)

    def metric_of(self, ids: NDArray[Any]) -> Ints:
        """Return the metric indices of series."""
        return np.asarray(self._metric_of[ids], np.int64)

    def names(self, ids: NDArray[Any]) -> tuple[list[str], list[str]]:
        """Return the servers and the metric keys of series."""
        return self._servers.of(self._server_of[ids]), self._metrics.of(self._metric_of[ids])

    def last(self, ids: NDArray[Any]) -> tuple[Ints, NDArray[np.float64]]:
        """Return the time and the value of the newest sample of series; the time is NEVER where none is."""
        with self._settling:
            self._settle()
            return self._last_times[ids], self._last_values[ids]

    def info_of(self, server: str) -> ServerInfo:
        """Return what is known of a server."""
        return self.infos.get(server) or ServerInfo(id=server)

    def metric_info(self, key: str) -> MetricInfo:
        """Return what is known of a metric key."""
        name = key.partition("{")[0]
        return self.metric_infos.get(name) or MetricInfo(name=name)

    def kinds(self, ids: NDArray[Any]) -> Ints:
        """Return the kind of the metric of each series, numbers of the proto enum."""
        found: Ints = self._known_facts().kinds[self._metric_of[ids]]
        return found

    def temporalities(self, ids: NDArray[Any]) -> Ints:
        """Return the temporality of the metric of each series, numbers of the proto enum."""
        found: Ints = self._known_facts().temporalities[self._metric_of[ids]]
        return found

    def _known_facts(self) -> Facts:
        """Return the facts of all metrics; may run in threads: the version is read before what it is the version of."""
        version, facts = self._infos_version, self._facts
        if facts.version != version:
            facts = Facts(version, facts.kinds[:0], facts.temporalities[:0])
        known = len(facts.kinds)
        if known < len(self.metrics):
            infos = [self.metric_info(key) for key in self.metrics[known:]]
            facts = Facts(
                version,
                np.append(facts.kinds, [info.kind for info in infos]),
                np.append(facts.temporalities, [info.temporality for info in infos]),
            )
            self._facts = facts
        return facts


class _Newest(NamedTuple):
    """The newest complete frame of a layout: its last time and the values of it, float64[S, M]."""

    layout: Layout
    time: int
    values: NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class _Answer:
    """What a selector chooses: masks of servers and metrics, and the ids in order."""

    servers: Bools
    metrics: Bools
    ids: Ids


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


def _run(ids: Ints) -> slice | None:
    """Return ids as a slice if each is one more than the one before, None otherwise."""
    flat = ids.ravel()
    if not flat.size or not (flat[1:] - flat[:-1] == 1).all() or flat[0] < 0:
        return None
    return slice(int(flat[0]), int(flat[-1]) + 1)


def _chosen(indices: Ids, mask: Bools) -> Bools:
    """Return the mask's value for each index; few are compared, which is twenty times faster than looking up each."""
    few = np.flatnonzero(mask)
    if len(few) > 8:
        return mask[indices]
    found = np.zeros(len(indices), np.bool_)
    for index in few.tolist():
        found |= indices == index
    return found


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

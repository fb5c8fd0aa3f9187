"""Collects samples of frames into spans of one length, so that all series are looked at together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from openmanager.api.frame.v1 import frame_pb2
from openmanager.frame import Frame, ServerInfo
from openmanager.metric import parse_key

NANOS_PER_MILLI = 1_000_000
# A span is looked at when so many more have begun by the clock of the log: what was measured in it has come then.
OPEN_SPANS = 2
# The log's clock has gone back by more than this: it jumped (ADR 0018).
STEP_MILLIS = 10_000
# Of the layouts that are remembered: so many, of so many series all together.
_MAX_LAYOUTS, _MAX_CELLS = 4096, 1 << 22
# The places of a series that was not seen yet, and of one that came when there were the most already.
_UNSEEN, _UNWATCHED = -1, -2
_INFO = ("hostname", "environment", "role", "location", "labels")


@dataclass(slots=True)
class Names:
    """The series that are watched, in the order they were first seen, and what is known of their servers."""

    most: int
    series: list[tuple[str, str]] = field(default_factory=list)
    is_counter: list[bool] = field(default_factory=list)
    infos: dict[str, ServerInfo] = field(default_factory=dict)
    # How often something new was learnt of a server.
    info_changes: int = 0
    counters: set[str] = field(default_factory=set)
    # Of samples of series beyond the most.
    unwatched_count: int = 0
    _places: dict[tuple[str, str], int] = field(default_factory=dict)

    def learn(self, frame: Frame) -> None:
        """Note what a frame tells of servers and metrics."""
        for info in frame.server_infos:
            self.note(info)
        for metric in frame.metric_infos:
            if metric.kind == frame_pb2.METRIC_KIND_COUNTER:
                self.counters.add(metric.name)

    def note(self, info: ServerInfo) -> None:
        """Note what is known of a server; what is empty is not."""
        known = self.infos.get(info.id)
        if info == known or (known is None and len(self.infos) >= self.most):
            return
        if known is not None:
            told = {name: value for name in _INFO if (value := getattr(info, name))}
            info = replace(known, **told)
        if info != known:
            self.infos[info.id] = info
            self.info_changes += 1

    def environment(self, server: str) -> str:
        """Return the environment of a server, empty where it is not known."""
        info = self.infos.get(server)
        return info.environment if info is not None else ""

    def places(self, servers: Sequence[str], metrics: Sequence[str]) -> NDArray[np.int64]:
        """Return the place of each series, int64[S, M]; less than 0 for one that is not watched."""
        found = [self._places.get((server, metric), _UNSEEN) for server in servers for metric in metrics]
        return np.array(found, np.int64).reshape(len(servers), len(metrics))

    def watch(self, frame: Frame, wanted: NDArray[np.bool_], places: NDArray[np.int64]) -> None:
        """Give places to the series of a frame that are wanted, bool[S, M], and put them into `places`, int64[S, M]."""
        for server, metric in np.argwhere(wanted).tolist():
            places[server, metric] = self._place(frame.servers[server], frame.metrics[metric])

    def restore(self, series: Sequence[tuple[str, str]], is_counter: Sequence[bool]) -> None:
        """Watch these, in this order."""
        self.series, self.is_counter = [*series], [*is_counter]
        self._places = {name: place for place, name in enumerate(self.series)}

    def _place(self, server: str, metric: str) -> int:
        place = self._places.get((server, metric))
        if place is None:
            if len(self.series) >= self.most:
                return _UNWATCHED
            place = self._places[server, metric] = len(self.series)
            self.series.append((server, metric))
            self.is_counter.append(parse_key(metric)[0] in self.counters)
        return place


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """What was measured from `time_millis` on: `values` float64[K], the last of each series, NaN where nothing was.

    `position` is that of the first frame of it.
    """

    time_millis: int
    values: NDArray[np.float64]
    position: int = 0


class Collector:
    """Spans of `interval_millis`, aligned to the epoch, told apart by the times of samples and ended by those of the log.

    What comes for a span that was looked at, or that has not begun, is counted and left out: a clock that is wrong must not
    hide what the others say. When the log's own clock was ahead and is put back, spans go on from there.
    """

    def __init__(self, names: Names, interval_millis: int) -> None:
        self.names = names
        self.late_count = 0
        self._interval = interval_millis
        self._next = 0  # the number of the first span that was not looked at
        self._open: dict[int, Span] = {}
        self._layouts: dict[tuple[tuple[str, ...], tuple[str, ...]], NDArray[np.int64]] = {}
        self._cells = 0

    @property
    def next_millis(self) -> int:
        """From when on samples are still taken."""
        return self._next * self._interval

    def begin(self, time_millis: int) -> None:
        """Take nothing from before a time."""
        self._next = max(self._next, time_millis // self._interval)

    def position(self, newest: int) -> int:
        """Return the position of the log from after which it gives all that is collected, `newest` having been taken."""
        return min((span.position - 1 for span in self._open.values()), default=newest)

    def add(self, frame: Frame, receive_nanos: int, position: int = 0) -> Iterator[Span]:
        """Take the samples of the frame at a position of the log; yield the spans that are over by now, in order.

        One that was yielded is no more collected.
        """
        now = receive_nanos // NANOS_PER_MILLI // self._interval
        if self._next - now > max(1, STEP_MILLIS // self._interval):
            self._step_back(now)
        self.begin((now - OPEN_SPANS) * self._interval)
        self.names.learn(frame)
        places = self._places(frame)
        for row, time in enumerate((frame.times // NANOS_PER_MILLI // self._interval).tolist()):
            if self._next <= time <= now:
                self._put(time, frame, row, places, position)
            else:
                self.late_count += frame.values[row].size
        yield from self._over(now)

    def _step_back(self, now: int) -> None:
        self._next = now
        self._open = {number: span for number, span in self._open.items() if number <= now}

    def _over(self, now: int) -> Iterator[Span]:
        for number in sorted(self._open):
            if number > now - OPEN_SPANS:
                return
            self._next = max(self._next, number + 1)
            yield self._open.pop(number)

    def _places(self, frame: Frame) -> NDArray[np.int64]:
        layout = (frame.servers, frame.metrics)
        found = self._layouts.get(layout)
        if found is None:
            found = self.names.places(*layout)
            if len(self._layouts) >= _MAX_LAYOUTS or self._cells + found.size > _MAX_CELLS:
                self._layouts.clear()
                self._cells = 0
            self._layouts[layout] = found
            self._cells += found.size
        return found

    def _put(self, number: int, frame: Frame, row: int, places: NDArray[np.int64], position: int) -> None:
        values = frame.values[row]
        is_there = ~np.isnan(values)
        # A frame has a place for every metric of every server, also where there was never a sample.
        is_new = is_there & (places == _UNSEEN)
        if is_new.any():
            self.names.watch(frame, is_new, places)
        count = len(self.names.series)
        empty = Span(time_millis=number * self._interval, values=np.empty(0), position=position)
        known = self._open.get(number, empty)
        if len(known.values) < count:
            more = np.full(count - len(known.values), np.nan)
            known = self._open[number] = replace(known, values=np.concatenate([known.values, more]))
        is_taken = is_there & (places >= 0)
        self.names.unwatched_count += int(np.count_nonzero(is_there & ~is_taken))
        known.values[places[is_taken]] = values[is_taken]

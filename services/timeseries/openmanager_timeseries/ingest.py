"""Admission: what a frame must be before the log takes it, at least as strict as the strictest store downstream.

A frame that is malformed fails whole. Single samples that cannot be taken are rejected with a reason and the rest is
accepted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import compress

import numpy as np

from openmanager.errors import Reason, ResourceExhaustedError
from openmanager.frame import MAX_FRAME_BYTES, Frame, FrameReader, encode
from openmanager.shard import ALONE, Shard
from openmanager_timeseries.catalog import Catalog
from openmanager_timeseries.quota import NewSeries
from openmanager_timeseries.record import Payload
from openmanager_timeseries.samples import Bools
from openmanager_timeseries.series_index import Layout
from openmanager_timeseries.wall import ADMISSION_SECONDS, Wall

MAX_REJECTIONS = 100
_NANOS = 1_000_000_000
_ROOM = 2.0  # as much again is what names take, of few servers


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejection:
    """Samples that were refused: of which server and metric, why, how many."""

    server: str
    metric: str
    reason: str
    sample_count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Admitted:
    """A frame as the log takes it, its wire form, and what of it was refused."""

    frame: Frame
    layout: Layout
    payload: Payload
    accepted: int
    rejected: int
    rejections: tuple[Rejection, ...]

    @property
    def complete(self) -> bool:
        """Whether there is a sample for every server and metric at every time."""
        return self.accepted == self.frame.values.size


class Admission:
    """Checks frames against the limits of one shard."""

    def __init__(
        self,
        *,
        catalog: Catalog,
        wall: Wall,
        kept_from: Callable[[int], int],
        future_limit: timedelta,
        new_series: NewSeries,
        shard: Shard = ALONE,
    ) -> None:
        self._shard = shard
        self._catalog = catalog
        self._wall = wall
        self._reader = FrameReader()
        self._kept_from = kept_from
        self._new_series = new_series
        self._future_nanos = int(future_limit.total_seconds() * _NANOS)

    def admit(self, wire: Payload, *, any_future: bool = False, rationed: bool = False) -> Admitted:
        """Return what is taken of a frame, given its wire form; of one that is `rationed` only some new series.

        Raises InvalidArgumentError or OutOfRangeError for a malformed frame, ResourceExhaustedError for one too large.
        """
        told, exact = self._reader.read(wire)
        frame, strange = told, list[tuple[str, Bools]]()
        layout = self._catalog.current(told.servers, told.metrics)
        if layout is None:
            self._shard.check(told.servers)  # what is known already was checked then
            frame, strange = self._without_strangers(told, any_future=any_future, rationed=rationed)
            layout = self._catalog.layout(frame.servers, frame.metrics)
        # What is told of a server that nothing is taken of would be kept by every reader of the log.
        strangers = {info.id for info in frame.server_infos} - {*frame.servers}
        if strangers:
            frame = replace(frame, server_infos=tuple(each for each in frame.server_infos if each.id not in strangers))
        refused, taken = self._refused(frame, layout, any_future=any_future, rationed=rationed)
        accepted = frame.values.size if taken is None else int(np.count_nonzero(taken))
        if refused and taken is not None:
            frame = replace(frame, values=np.where(taken, frame.values, np.nan))
        elif len(wire) > _ROOM * frame.values.nbytes:  # the head keeps values, and would keep all that came with them
            frame = replace(frame, values=frame.values.copy())
        payload: Payload = wire if exact and not refused and not strange and not strangers else encode(frame)
        if len(payload) > MAX_FRAME_BYTES:
            raise ResourceExhaustedError(
                f"the frame is larger than {MAX_FRAME_BYTES} bytes: split it", reason=Reason.MESSAGE_TOO_LARGE
            )
        found = [rejection for reason, mask in strange for rejection in _explain(told, reason, mask)]
        found += [rejection for reason, mask in refused for rejection in _explain(frame, reason, mask)]
        return Admitted(
            frame=frame,
            layout=layout,
            payload=payload,
            accepted=accepted,
            rejected=sum(int(np.count_nonzero(mask)) for _, mask in (*strange, *refused)),
            rejections=tuple(found[:MAX_REJECTIONS]),
        )

    def _without_strangers(
        self, frame: Frame, *, any_future: bool, rationed: bool
    ) -> tuple[Frame, list[tuple[str, Bools]]]:
        """Return a frame without the names that no series is made of, and the samples that go with them by reason."""
        known_servers, known_metrics = self._catalog.known(frame.servers, frame.metrics)
        if known_servers.all() and known_metrics.all():
            return frame, []
        wrong, taken = self._wrong(frame, any_future=any_future)
        reason, room = self._room(rationed=rationed)
        servers, metrics = self._catalog.names_for(frame.servers, frame.metrics, np.any(taken, axis=0), room)
        if servers.all() and metrics.all():
            return frame, []
        gone = ~(servers[:, None] & metrics[None, :])
        kept = replace(
            frame,
            servers=tuple(compress(frame.servers, servers)),
            metrics=tuple(compress(frame.metrics, metrics)),
            values=frame.values[:, servers][:, :, metrics],
        )
        return kept, [(why, mask & gone) for why, mask in (*wrong, (reason, taken))]

    def _room(self, *, rationed: bool) -> tuple[str, int]:
        """Return how many more series there may be, and why no more."""
        room = self._catalog.room
        if rationed and self._new_series.left < room:
            return "SERIES_RATE", self._new_series.left
        return "SERIES_LIMIT", room

    def _wrong(self, frame: Frame, *, any_future: bool) -> tuple[list[tuple[str, Bools]], Bools]:
        """Return the samples that no store can take by reason, as masks bool[T, S, M], and the mask of the others."""
        refused: list[tuple[str, Bools]] = []
        taken: Bools = np.isfinite(frame.values)
        if not taken.all() and (infinite := np.isinf(frame.values)).any():
            refused.append(("VALUE_NOT_FINITE", infinite))
        earliest, latest = self._wall.range(ADMISSION_SECONDS)
        first, last = (int(frame.times[0]), int(frame.times[-1])) if len(frame.times) else (latest, earliest)
        kept_from, until = self._kept_from(earliest), latest + self._future_nanos
        wrong_times = [("TIME_TOO_OLD", frame.times < kept_from)] if first < kept_from else []
        if last > until and not any_future:
            wrong_times.append(("TIME_IN_FUTURE", frame.times > until))
        for reason, wrong in wrong_times:
            mask = taken & wrong[:, None, None]
            taken &= ~wrong[:, None, None]
            if mask.any():
                refused.append((reason, mask))
        return refused, taken

    def _refused(
        self, frame: Frame, layout: Layout, *, any_future: bool, rationed: bool
    ) -> tuple[list[tuple[str, Bools]], Bools | None]:
        """Return the refused samples by reason, as masks bool[T, S, M], and the mask of those that are taken.

        No mask says that all are, as they mostly are.
        """
        refused, taken = self._wrong(frame, any_future=any_future)
        if not refused and layout.is_whole and taken.all():
            return [], None
        reason, without_room = self._without_room(layout, np.any(taken, axis=0), rationed=rationed)
        if without_room is not None:
            mask = taken & without_room
            taken &= ~without_room
            refused.append((reason, mask))
        return refused, taken

    def _without_room(self, layout: Layout, present: Bools, *, rationed: bool) -> tuple[str, Bools | None]:
        """Give the series that are present their ids; return why some get none, and which as a mask bool[S, M]."""
        if layout.is_whole or not rationed:
            return "SERIES_LIMIT", None if layout.is_whole else self._catalog.admit(layout, present)
        reason, room = self._room(rationed=True)
        known = layout.ids >= 0
        without_room = self._catalog.admit(layout, present, room)
        self._new_series.take(int(np.count_nonzero((layout.ids >= 0) & ~known)))
        return reason, without_room


def _explain(frame: Frame, reason: str, mask: Bools) -> Iterator[Rejection]:
    """Yield a rejection for each series of a mask bool[T, S, M], at most MAX_REJECTIONS."""
    counts = mask.sum(axis=0)
    for server, metric in np.argwhere(counts)[:MAX_REJECTIONS].tolist():
        yield Rejection(
            server=frame.servers[server],
            metric=frame.metrics[metric],
            reason=reason,
            sample_count=int(counts[server, metric]),
        )

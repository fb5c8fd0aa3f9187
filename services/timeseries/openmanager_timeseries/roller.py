"""Makes the tiers: a consumer of the log that reads it as blocks, since a bucket can only be made of what is sealed.

What a new block touches becomes *dirty* in every tier: until its buckets have been computed again the planner takes a
finer tier there. Late samples are nothing special: their block makes old buckets dirty. A bucket is computed from
all that the finer tier holds of it, and replaces what was there unless that counts more samples, as buckets do that were
imported or whose raw samples are partly gone.

How far this has come is in one small file, so that a crash means at most that some buckets are computed once more.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from openmanager import durable, metric, rollup
from openmanager.runtime.clock import Clock
from openmanager_timeseries import sealed, sketch, span
from openmanager_timeseries.catalog import Catalog
from openmanager_timeseries.rollup_file import ROLLUPS, SKETCHES
from openmanager_timeseries.samples import Bools, Ints
from openmanager_timeseries.sealed import About, Batch, ByMetric, Rows, Sealed, Values
from openmanager_timeseries.sealed_store import SealedStore
from openmanager_timeseries.span import Span, Spans
from openmanager_timeseries.tier import Tier

COUNTER = 2  # openmanager.api.frame.v1.METRIC_KIND_COUNTER
# How much time is computed in one go: enough to be worth a file, little enough to be held in memory.
BUCKETS_AT_ONCE = {True: 12, False: 24}  # of the finest tier, of the others
_NANOS_PER_MILLI = 1_000_000
# A cell is a server and a time: 43 bits of milliseconds since 1990 reach to 2268, and a million servers go before them.
_TIME_BITS = 43
_EARLIEST_NANOS = 631_152_000 * 10**9

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class TierFiles:
    """A tier and its files: buckets, and sketches of the metrics that have some."""

    tier: Tier
    buckets: SealedStore
    sketches: SealedStore

    def number(self) -> int:
        """Return the number of the next file."""
        return max(self.buckets.last, self.sketches.last) + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Buckets that are to be computed: those of a tier in a span, from files of the finer one."""

    at: int
    span: Span
    inputs: Sequence[Sealed]
    sketches: Sequence[Sealed]


class Roller:
    """Keeps the tiers of one shard up to date. Its methods are for the event loop, except `build`."""

    def __init__(
        self,
        *,
        tiers: Sequence[TierFiles],
        blocks: SealedStore,
        catalog: Catalog,
        clock: Clock,
        state: Path,
        sketch_metrics: Sequence[str],
    ) -> None:
        self.tiers = tuple(tiers)
        self.position = 0
        self.sketch_metrics = tuple(sketch_metrics)
        self._blocks = blocks
        self._catalog = catalog
        self._clock = clock
        self._state = state
        self._patterns = [metric.Pattern.parse(text).matcher() for text in sketch_metrics]
        self._dirty: list[Spans] = [() for _ in tiers]
        self._building: list[Spans] = [() for _ in tiers]
        # What somebody is bringing at present: the number of the tier, and where, by whom.
        self._expected: dict[int, list[Spans]] = {}
        self._load()

    # ── what is to be done ─────────────────────────────────────────────────────────────────────────────────────────

    def dirty(self, at: int) -> Spans:
        """Return where buckets of a tier are not what the blocks say."""
        expected = (part for spans in self._expected.values() for part in spans[at])
        return span.union((*self._dirty[at], *self._building[at], *expected))

    def expect(self, whom: int, at: int, spans: Spans) -> None:
        """Have buckets of a tier count as dirty while somebody may still bring them, and not be computed yet."""
        expected = self._expected.setdefault(whom, [() for _ in self.tiers])
        expected[at] = span.union((*expected[at], *span.outward(spans, self.tiers[at].tier.width)))

    def expect_no_more(self, whom: int) -> None:
        """Let go of what somebody was to bring."""
        self._expected.pop(whom, None)

    def mark(self, at: int, spans: Spans) -> None:
        """Have the buckets of a tier that meet some spans computed again, and then those of the coarser ones."""
        for index in range(at, len(self.tiers)):
            self.mark_one(index, spans)

    def mark_one(self, at: int, spans: Spans) -> None:
        """Have the buckets of a tier that meet some spans computed again, of that tier alone."""
        self._dirty[at] = span.union((*self._dirty[at], *span.outward(spans, self.tiers[at].tier.width)))

    def finer(self, at: int) -> list[SealedStore]:
        """Return what a tier is made of: the blocks, or the buckets of the finer tier and its sketches."""
        return [self.tiers[at - 1].buckets, self.tiers[at - 1].sketches] if at else [self._blocks]

    def take(self, accepted: int) -> int:
        """Mark what blocks have come; return the running total of samples up to the newest of them."""
        for file in self._blocks.files:
            if file.about.last > self.position:
                self.mark(0, file.spans)
                accepted = max(accepted, file.about.accepted)
        self.position = max([self.position, *(file.about.last for file in self._blocks.files)])
        return accepted

    def needs(self, file: Sealed) -> bool:
        """Say whether buckets are still to be made of a block."""
        return bool(self.tiers) and bool(span.intersection(file.spans, self.dirty(0)))

    def waiting(self, at: int) -> int:
        """Return how many buckets of time of a tier are dirty."""
        return span.length(self.dirty(at)) // self.tiers[at].tier.width

    def next(self) -> Work | None:
        """Return what to compute next: the oldest buckets that are over, of the finest tier first."""
        sealed_until = max((file.about.max_time for file in self._blocks.files), default=0)
        over = max(self._clock.now_nanos(), sealed_until)
        for at, files in enumerate(self.tiers):
            width = files.tier.width
            due = span.clip(self._dirty[at], 0, over // width * width)
            if at:  # what it is made of comes first
                due = span.difference(due, span.outward(self.dirty(at - 1), width))
            if not due:
                continue
            start, end = due[0]
            window = width * BUCKETS_AT_ONCE[at == 0]
            end = min(end, start // window * window + window)
            inputs, *sketches = [[file for file in store.files if file.meets(start, end)] for store in self.finer(at)]
            return Work(at=at, span=(start, end), inputs=inputs, sketches=sketches[0] if sketches else ())
        return None

    @property
    def is_done(self) -> bool:
        """Whether nothing is being computed, and nothing can be now."""
        return not any(self._building) and self.next() is None

    # ── doing it ───────────────────────────────────────────────────────────────────────────────────────────────────

    def begin(self, work: Work) -> None:
        """Take over some buckets; what becomes dirty from now on is computed once more."""
        self._dirty[work.at] = span.difference(self._dirty[work.at], (work.span,))
        self._building[work.at] = (work.span,)

    def end(self, work: Work, made: Sequence[tuple[SealedStore, Sealed]] | None) -> None:
        """Make what was built readable; None when it could not be built: then it stays to be done."""
        self._building[work.at] = ()
        if made is None:
            self._dirty[work.at] = span.union((*self._dirty[work.at], work.span))
            return
        for store, file in made:
            store.add(file)

    def build(self, work: Work) -> list[tuple[SealedStore, Sealed]] | None:
        """Compute buckets and write them to files (in a thread).

        None when an input is damaged: it is set aside then, and the work is to be begun again.
        """
        try:
            return self._build(work)
        except (pa.ArrowException, OSError):
            own = self.tiers[work.at]
            stores = (*self.finer(work.at), own.buckets, own.sketches)
            damaged = [store.drop_unsound(*work.span) for store in stores]
            if not any(damaged):
                raise  # the disk is full, say
            return None

    def _build(self, work: Work) -> list[tuple[SealedStore, Sealed]]:
        own = self.tiers[work.at]
        kind = self._blocks.kind if work.at == 0 else ROLLUPS
        start, end = work.span
        existing = [file for file in own.buckets.files if file.meets(start, end)]
        inputs = ((kind, work.inputs), (ROLLUPS, existing), (SKETCHES, work.sketches))
        servers = sorted({name for of, files in inputs for name in sealed.server_names(of, files)})
        rank = {name: code for code, name in enumerate(servers)}
        about = About(first=own.number(), last=own.number(), spans=(work.span,))
        sketches: list[Batch] = []
        outnumbered: dict[str, Ints] = {}

        def keep(_: Sequence[str], __: Sequence[str], rows: Rows) -> Bools:
            inside: Bools = (rows.times >= start) & (rows.times < end)
            return inside

        with ByMetric(kind, work.inputs, rank, keep) as finer, ByMetric(ROLLUPS, existing, rank, keep) as there:

            def batches() -> Iterator[Batch]:
                for batch in finer:
                    key = batch.metrics[0]
                    made, old = self._reduced(batch, own.tier.width, raw=work.at == 0), there.rows(key)
                    if any(match(key) for match in self._patterns):
                        outnumbered[key] = _outnumbered(made, old)
                        if work.at == 0:
                            sketches.append(_sketched(batch, own.tier.width, _of_samples))
                    yield Batch([key], better(made, old))

            made = [(own.buckets, sealed.write(own.buckets.folder, ROLLUPS, about, servers, batches(), own.tier.width))]
        if work.at:
            with ByMetric(SKETCHES, work.sketches, rank, keep) as finest:
                sketches = [_sketched(batch, own.tier.width, _of_sketches) for batch in finest]
        sketches = [_without(batch, outnumbered.get(batch.metrics[0])) for batch in sketches]
        if any(len(batch.rows.times) for batch in sketches):
            made.append(
                (own.sketches, sealed.write(own.sketches.folder, SKETCHES, about, servers, sketches, own.tier.width))
            )
        return [(store, file) for store, file in made if file.about.row_count or store.discard(file)]

    def _reduced(self, batch: Batch, width: int, *, raw: bool) -> Rows:
        """Return the buckets of one metric's rows."""
        rows = batch.rows
        starts = rows.times // width * width
        cells = _cells(rows.servers, starts)
        if raw:
            is_counter = self._catalog.metric_info(batch.metrics[0]).kind == COUNTER
            counters = np.full(len(cells), is_counter)
            found, columns = rollup.reduce_samples(rows.values["value"], cells, counters)
        else:
            found, columns = rollup.coarsen(rows.values, cells)
        return _rows(found, columns)

    # ── how far it has come ────────────────────────────────────────────────────────────────────────────────────────

    def _load(self) -> None:
        try:
            stored = durable.load(self._state)
            dirty = {name: tuple((int(a), int(b)) for a, b in spans) for name, spans in stored["dirty"].items()}
            position = int(stored["position"])
        except FileNotFoundError:
            return
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            log.warning("how far the tiers have come cannot be read; they are made again from all blocks")
            return
        if set(dirty) != {files.tier.name for files in self.tiers}:
            log.warning("the tiers are others than before; they are made again from all blocks")
            return
        self._dirty = [span.union(dirty[files.tier.name]) for files in self.tiers]
        self.position = position

    def snapshot(self) -> bytes:
        """Return what `save` writes."""
        dirty = {files.tier.name: self.dirty(at) for at, files in enumerate(self.tiers)}
        return durable.encode({"position": self.position, "dirty": dirty})

    def save(self, stored: bytes) -> None:
        """Make durable how far it has come (blocking)."""
        durable.replace(self._state, stored)


def _cells(servers: Ints, starts: Ints) -> Ints:
    """Return a number for each server and bucket, ascending where these are."""
    return servers << _TIME_BITS | (starts - _EARLIEST_NANOS) // _NANOS_PER_MILLI


def _rows(cells: Ints, columns: Values) -> Rows:
    times = (cells & (1 << _TIME_BITS) - 1) * _NANOS_PER_MILLI + _EARLIEST_NANOS
    return Rows(np.zeros(len(cells), np.int64), cells >> _TIME_BITS, times, columns)


def _matched(made: Rows, there: Rows) -> tuple[Bools, Ints]:
    """Return which of the rows there are already, and where."""
    old, new = _cells(there.servers, there.times), _cells(made.servers, made.times)
    if not len(old):
        return np.zeros(len(new), np.bool_), np.zeros(len(new), np.int64)
    at = np.minimum(np.searchsorted(old, new), len(old) - 1)
    return old[at] == new, at


def better(made: Rows, there: Rows, *, new_only: bool = False) -> Rows:
    """Return the rows that are to be written: those that are not there, or count more.

    And those that count as many and differ, unless only new ones are wanted.
    """
    exists, at = _matched(made, there)
    if not exists.any():
        return made
    count, old = made.values["count"], there.values["count"][at]
    if new_only:
        return made.take(~exists | (count > old))
    same = np.ones(len(count), np.bool_)
    for name in rollup.COLUMNS:
        mine, other = made.values[name], there.values[name][at]
        same &= (mine == other) | (np.isnan(mine) & np.isnan(other))
    return made.take(~exists | (count > old) | ((count == old) & ~same))


def _outnumbered(made: Rows, there: Rows) -> Ints:
    """Return the cells of rows of which more samples are counted where they are already."""
    exists, at = _matched(made, there)
    if not exists.any():
        return np.empty(0, np.int64)
    fewer = exists & (made.values["count"] < there.values["count"][at])
    return _cells(made.servers[fewer], made.times[fewer])


def _sketched(batch: Batch, width: int, make: Callable[[Values, slice], bytes]) -> Batch:
    """Return the sketches of the buckets of one metric's rows."""
    rows = batch.rows
    cells = _cells(rows.servers, rows.times // width * width)
    begins = np.flatnonzero(np.concatenate(([True], cells[1:] != cells[:-1]))) if len(cells) else cells
    ends = np.append(begins[1:], len(cells))
    blobs = np.empty(len(begins), object)
    for index, (begin, end) in enumerate(zip(begins.tolist(), ends.tolist(), strict=False)):
        blobs[index] = make(rows.values, slice(begin, end))
    return Batch(batch.metrics, _rows(cells[begins], {"sketch": blobs}))


def _of_samples(values: Values, some: slice) -> bytes:
    return sketch.of_samples(values["value"][some])


def _of_sketches(values: Values, some: slice) -> bytes:
    return bytes(sketch.merged(values["sketch"][some]).serialize())


def _without(batch: Batch, cells: Ints | None) -> Batch:
    if cells is None or not len(cells):
        return batch
    return batch._replace(rows=batch.rows.take(~np.isin(_cells(batch.rows.servers, batch.rows.times), cells)))

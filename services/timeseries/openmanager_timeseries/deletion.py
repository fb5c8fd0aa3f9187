"""Deletes series for good: from the head, the blocks and the tiers at once, and from the engine where it is able to.

What is to go is written down first, then every file is written anew without it; whatever a crash comes into is carried
out again from there, by the upkeep, until it is done.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import pyarrow as pa

from openmanager.errors import FailedPreconditionError, Reason, UnavailableError
from openmanager.shield import shielded
from openmanager_timeseries import head as recent
from openmanager_timeseries import sealed, selection, span
from openmanager_timeseries.catalog import NEVER, Catalog, Selection
from openmanager_timeseries.erasure import Erasure
from openmanager_timeseries.evidence import REQUEST
from openmanager_timeseries.history import History
from openmanager_timeseries.query import EARLIEST_NANOS, LATEST_NANOS
from openmanager_timeseries.retention import Match
from openmanager_timeseries.samples import Bools, Floats, Ints, merge
from openmanager_timeseries.sealed import ByMetric, Rows, Sealed
from openmanager_timeseries.sealed_store import SealedStore
from openmanager_timeseries.tier import RAW

log = logging.getLogger(__name__)
T = TypeVar("T")
_LAST = np.iinfo(np.int64).max


@dataclass(frozen=True, slots=True)
class _Scope:
    """What is deleted: some series in [start, end) nanoseconds."""

    match: Match
    start: int
    end: int

    def taken(self, width: int) -> sealed.Keep:
        """Return which rows go: those of the series whose bucket of `width`, 1 for samples, meets the range."""

        def taken(metrics: Sequence[str], servers: Sequence[str], rows: Rows) -> Bools:
            chosen = self.match.mask(metrics, servers)[rows.metrics, rows.servers]
            found: Bools = chosen & (rows.times < self.end) & (rows.times > self.start - width)
            return found

        return taken

    def meets(self, file: Sealed, width: int) -> bool:
        """Say whether a file may have rows that go."""
        return file.meets(self.start - width + 1, self.end) and any(
            not self.match.metrics.isdisjoint(keys) for keys in file.groups
        )


@dataclass(slots=True, kw_only=True)
class Deletion:
    """What was deleted, or would be."""

    series: int = 0
    samples: int = 0
    buckets: int = 0
    bytes: int = 0


async def delete_series(history: History, chosen: Selection, start: int, end: int, *, dry: bool) -> Deletion:
    """Delete the samples of a selection in [start, end) nanoseconds; with `dry` only count them.

    FailedPreconditionError (`LEGAL_HOLD`, `ENGINE_CANNOT`), and nothing is deleted; UnavailableError when the disk does
    not take what has to be written for it: then it is done by the upkeep, or by deleting again. Once begun it goes on
    to its end, whoever waits for it.
    """
    return await shielded(_delete_series(history, chosen, start, end, dry=dry))


async def _delete_series(history: History, chosen: Selection, start: int, end: int, *, dry: bool) -> Deletion:
    servers, metrics = history.catalog.names(chosen.ids)
    scope = _Scope(Match(frozenset(servers), frozenset(metrics)), start, end)
    async with history.changing:
        _check_holds(history, scope)
        if not len(chosen.ids):
            return Deletion()
        try:
            return await _count_and_delete(history, scope, Deletion(series=len(chosen.ids)), dry=dry)
        except OSError as err:
            raise UnavailableError("the deletion could not be written to disk", reason=Reason.LOG_UNFIT) from err


async def _count_and_delete(history: History, scope: _Scope, done: Deletion, *, dry: bool) -> Deletion:
    if history.engine is not None and not dry:
        await history.engine.delete(scope.match, scope.start, scope.end)
    await history.seal()  # what is counted and what is deleted then stands in files
    done.samples = await asyncio.to_thread(_count, history.blocks, scope)
    for files in history.roller.tiers:
        done.buckets += await asyncio.to_thread(_count, files.buckets, scope)
    if dry:
        return done
    erasure = Erasure(
        position=history.blocks.last,
        servers=scope.match.servers,
        metrics=scope.match.metrics,
        start=scope.start,
        end=scope.end,
    )
    await asyncio.to_thread(history.erasures.add, erasure)
    if history.engine is not None:  # once more: what it was given before it could know
        await history.engine.delete(scope.match, scope.start, scope.end)
    done.bytes = max(0, await carry_out(history, erasure))
    return done


# ── holds ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _check_holds(history: History, scope: _Scope) -> None:
    if not history.retention.certain:
        raise UnavailableError("the legal holds are not known at present", reason=Reason.STORE_UNAVAILABLE)
    start, end = _reach(history, scope)
    for held, low, high, name in history.retention.holds():
        if low < end and high > start and scope.match.meets(held):
            raise FailedPreconditionError(
                f"the legal hold {name!r} covers a part of it: nothing was deleted", reason=Reason.LEGAL_HOLD
            )


def _reach(history: History, scope: _Scope) -> tuple[int, int]:
    """Return the range of which nothing will be known any more: where raw samples are not kept, whole buckets go."""
    start, end = scope.start, scope.end
    kept_from = history.retention.kept_from(RAW, history.clock.now_nanos())
    for files in history.roller.tiers:
        width = files.tier.width
        if scope.start // width * width < kept_from:
            start = min(start, scope.start // width * width)
        if scope.end // width * width < kept_from:
            end = max(end, -(-scope.end // width) * width)
    return start, end


# ── files ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _reading(store: SealedStore, scope: _Scope, work: Callable[[], T]) -> T:
    """Return what work that reads files returns (blocking); it begins again without the damaged ones."""
    while True:
        try:
            return work()
        except (pa.ArrowException, OSError):
            if not store.drop_unsound(scope.start - store.width + 1, scope.end):
                raise  # the disk is full, say


def _count(store: SealedStore, scope: _Scope) -> int:
    """Count the samples or buckets that go, each once however many files it stands in (blocking)."""

    def count() -> int:
        files = [file for file in store.files if scope.meets(file, store.width)]
        rank = defaultdict(int, {name: at for at, name in enumerate(sorted(scope.match.servers))})
        with ByMetric(store.kind, files, rank, scope.taken(store.width)) as found:
            return sum(len(found.rows(key).times) for key in sorted(scope.match.metrics))

    return _reading(store, scope, count)


async def carry_out(history: History, erasure: Erasure) -> int:
    """Write the files anew without what was deleted; return the bytes that this freed.

    Whoever calls it holds `history.changing`. It is remembered as done when all that follows from it is durable.
    """
    scope = _Scope(Match(erasure.servers, erasure.metrics), erasure.start, erasure.end)
    freed = 0
    for tier, store in history.stores():
        for file in store.files:
            made = await asyncio.to_thread(_without, store, file, scope)
            if made is None:
                continue
            store.replace([file], made)
            history.retention.count(tier, file, made, history.clock.now_nanos(), REQUEST)
            freed += file.size_bytes - made.size_bytes
    history.head.drop(-1)
    _mark_edges(history, scope)
    await _forget(history, erasure)
    await history.retention.save()
    await asyncio.to_thread(history.roller.save, history.roller.snapshot())
    await asyncio.to_thread(history.erasures.finish, erasure)
    return freed


def _without(store: SealedStore, file: Sealed, scope: _Scope) -> Sealed | None:
    """Write a file anew without what goes (blocking); None when nothing of it does, or it is damaged."""
    taken = scope.taken(store.width)
    if not scope.meets(file, store.width):
        return None

    def rewritten() -> Sealed | None:
        if file not in store.files or not _has_some(store, file, scope, taken):
            return None
        # Also when no row is left: the empty file stands for the old one should a crash bring that back.
        return store.merge([file], lambda metrics, servers, rows: ~taken(metrics, servers, rows))

    return _reading(store, scope, rewritten)


def _has_some(store: SealedStore, file: Sealed, scope: _Scope, taken: sealed.Keep) -> bool:
    with sealed.Reader(file, store.kind) as reader:
        return any(
            bool(taken(*reader.group(index, ())).any())
            for index, keys in enumerate(file.groups)
            if not scope.match.metrics.isdisjoint(keys)
        )


def _mark_edges(history: History, scope: _Scope) -> None:
    """Have the buckets computed again of which only a part went, where there is anything to compute them from."""
    held = history.blocks.spans
    for at, files in enumerate(history.roller.tiers):
        width = files.tier.width
        edges = span.outward(tuple((time, time + 1) for time in (scope.start, scope.end) if time % width), width)
        history.roller.mark_one(at, span.intersection(edges, held))
        held = span.union((*held, *files.buckets.spans))


# ── the catalogue ──────────────────────────────────────────────────────────────────────────────────────────────────


async def _forget(history: History, erasure: Erasure) -> None:
    """Let the catalogue know, durably, which sample is now the newest of each series, if there is one."""
    catalog = history.catalog
    ids = _living(catalog, erasure)
    times, _ = catalog.last(ids)
    widest = max([1, *(files.tier.width for files in history.roller.tiers)])
    ids = ids[(times < erasure.end) & (times > erasure.start - widest)]
    if len(ids):
        some = selection.of_series(catalog, ids)
        times, values = await asyncio.to_thread(_newest_in_files, history, some, erasure)
        # From here to the end nothing may wait: what has come meanwhile is in the head.
        _add_recent(history, some, times, values)
        there = np.flatnonzero(times != NEVER)
        servers, metrics = catalog.names(ids[there])
        catalog.forget(ids)
        catalog.restore(servers, metrics, times[there], values[there])
    await history.save_catalog(history.blocks.last)


def _living(catalog: Catalog, erasure: Erasure) -> Ints:
    """Return the ids of an erasure's series that have samples."""
    servers, metrics = sorted(erasure.servers), sorted(erasure.metrics)
    rows, columns = np.divmod(np.arange(len(servers) * len(metrics)), max(1, len(metrics)))
    ids = catalog.find((servers, rows), (metrics, columns))
    ids = ids[ids >= 0]
    living: Ints = ids[catalog.last(ids)[0] != NEVER]
    return living


def _newest_in_files(history: History, chosen: Selection, erasure: Erasure) -> tuple[Ints, Floats]:
    """Return the time and value of the newest sample of each series that a file has (blocking).

    A bucket stands for its newest sample, at its start, where the sample itself is not kept.
    """
    times, values = np.full(len(chosen.ids), NEVER), np.full(len(chosen.ids), np.nan)
    stores = [(history.blocks, "value"), *((files.buckets, "last") for files in history.roller.tiers)]
    for store, name in stores:
        numbers = np.where(times != NEVER, _LAST, -1)  # of two of one time what stands in the finer store counts
        for file in sorted(store.files, key=lambda each: each.about.max_time, reverse=True):
            if file.about.row_count and file.about.max_time < int(times.min()):
                break
            # What was written up to then has nothing left that is newer than the range.
            old = store is history.blocks and file.about.last <= erasure.position
            end = min(erasure.start, LATEST_NANOS) if old else LATEST_NANOS
            if not file.meets(EARLIEST_NANOS, end):
                continue
            for found in store.read(file, chosen, EARLIEST_NANOS, end, (name,)):
                newer = found.times > times[found.rows]
                newer |= (found.times == times[found.rows]) & (file.about.last > numbers[found.rows])
                rows = found.rows[newer]
                # Ascending in time within a row: the last one that is written stays.
                times[rows], values[rows] = found.times[newer], found.values[name][newer]
                numbers[rows] = file.about.last
    return times, values


def _add_recent(history: History, chosen: Selection, times: Ints, values: Floats) -> None:
    """Put in what the head has that is newer, or as new: it came later than the files."""
    pieces = list(recent.pieces(history.head.generations, chosen, EARLIEST_NANOS, LATEST_NANOS))
    found = merge(len(chosen.ids), pieces)
    rows = np.flatnonzero(np.diff(found.offsets))
    ends = found.offsets[rows + 1] - 1
    newer = found.times[ends] >= times[rows]
    rows, ends = rows[newer], ends[newer]
    times[rows], values[rows] = found.times[ends], found.values[ends]

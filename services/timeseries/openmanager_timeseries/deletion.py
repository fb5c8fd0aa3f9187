"""Deletes series for good: from the head, the blocks and the tiers at once, and from the engine where it is able to."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from openmanager.errors import FailedPreconditionError, Reason, UnavailableError
from openmanager_timeseries import sealed
from openmanager_timeseries.catalog import Selection
from openmanager_timeseries.erasure import Erasure
from openmanager_timeseries.history import History
from openmanager_timeseries.retention import Match
from openmanager_timeseries.samples import Bools, Floats, Ints
from openmanager_timeseries.sealed import Rows, Sealed
from openmanager_timeseries.sealed_store import SealedStore
from openmanager_timeseries.tier import RAW

log = logging.getLogger(__name__)


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


@dataclass(slots=True, kw_only=True)
class Deletion:
    """What was deleted, or would be."""

    series: int = 0
    samples: int = 0
    buckets: int = 0
    bytes: int = 0


async def delete_series(history: History, selection: Selection, start: int, end: int, *, dry: bool) -> Deletion:
    """Delete the samples of a selection in [start, end) nanoseconds; with `dry` only count them.

    FailedPreconditionError (`LEGAL_HOLD`, `ENGINE_CANNOT`), and nothing is deleted; UnavailableError when the disk does
    not take what has to be written for it: then it is done at the next start, or by deleting again.
    """
    match = _match(history, selection)
    _check_holds(history, match, start, end)
    done = Deletion(series=len(selection.ids))
    if not len(selection.ids):
        return done
    if dry:
        await _count(history, match, start, end, done)
        return done
    async with history.changing:
        if history.engine is not None:
            await history.engine.delete(match, start, end)
        try:
            await history.seal()
            erasure = Erasure(
                position=history.blocks.last, servers=match.servers, metrics=match.metrics, start=start, end=end
            )
            await asyncio.to_thread(history.erasures.add, erasure)
            await carry_out(history, erasure, done)
        except OSError as err:
            raise UnavailableError("the deletion could not be written to disk", reason=Reason.LOG_UNFIT) from err
        await _forget(history, selection.ids, start, end)
    return done


def _match(history: History, selection: Selection) -> Match:
    servers, metrics = history.catalog.names(selection.ids)
    return Match(frozenset(servers), frozenset(metrics))


def _check_holds(history: History, match: Match, start: int, end: int) -> None:
    for held, low, high, name in history.retention.holds():
        if low < end and high > start and match.meets(held):
            raise FailedPreconditionError(
                f"the legal hold {name!r} covers a part of it: nothing was deleted", reason=Reason.LEGAL_HOLD
            )


async def _count(history: History, match: Match, start: int, end: int, done: Deletion) -> None:
    for at, store in _stores(history):
        width = history.roller.tiers[at].tier.width if at >= 0 else 1
        found = await asyncio.to_thread(_rows_in, store, _Scope(match, start, end), width)
        done.samples += found if at < 0 else 0
        done.buckets += found if at >= 0 and store is history.roller.tiers[at].buckets else 0
    done.samples += _in_head(history, match, start, end)


def _in_head(history: History, match: Match, start: int, end: int) -> int:
    """Count what no block holds yet."""
    count = 0
    for generation in history.head.generations:
        for chunk in generation.chunks if not generation.sealed else ():
            servers = [history.catalog.servers[at] in match.servers for at in chunk.layout.servers.tolist()]
            metrics = [history.catalog.metrics[at] in match.metrics for at in chunk.layout.metrics.tolist()]
            times = chunk.times[: chunk.count]
            ticks = slice(*np.searchsorted(times, (start, end)).tolist())
            values = chunk.series(np.flatnonzero(servers), np.flatnonzero(metrics), ticks)
            count += values.size - int(np.count_nonzero(np.isnan(values)))
    return count


def _stores(history: History) -> list[tuple[int, SealedStore]]:
    """Return the stores and the tier of each, −1 for raw."""
    tiers = enumerate(history.roller.tiers)
    return [(-1, history.blocks), *((at, store) for at, files in tiers for store in (files.buckets, files.sketches))]


def _rows_in(store: SealedStore, scope: _Scope, width: int) -> int:
    return sum(_rows_of(store, file, scope, width) for file in store.files)


def _rows_of(store: SealedStore, file: Sealed, scope: _Scope, width: int) -> int:
    """Count the rows of a file that go (blocking)."""
    if not file.meets(scope.start - width + 1, scope.end):
        return 0
    taken = scope.taken(width)
    with sealed.Reader(file, store.kind) as reader:
        groups = (
            reader.group(index, ())
            for index, keys in enumerate(file.groups)
            if not scope.match.metrics.isdisjoint(keys)
        )
        return sum(int(np.count_nonzero(taken(*group))) for group in groups)


async def carry_out(history: History, erasure: Erasure, done: Deletion | None = None) -> None:
    """Write the files anew without what was deleted; whoever calls it holds `history.changing`."""
    done = done or Deletion()
    scope = _Scope(Match(erasure.servers, erasure.metrics), erasure.start, erasure.end)
    for at, store in _stores(history):
        tier = history.roller.tiers[at].tier if at >= 0 else None
        width = tier.width if tier else 1
        for file in store.files:
            gone, made = await asyncio.to_thread(_without, store, file, scope, width)
            if not gone:
                continue
            store.replace([file], made)
            history.retention.count(tier.name if tier else RAW, file, made)
            done.bytes += file.size_bytes - (made.size_bytes if made else 0)
            done.samples += gone if at < 0 else 0
            done.buckets += gone if at >= 0 and store is history.roller.tiers[at].buckets else 0
    history.head.drop(-1)
    _mark_edges(history, scope)
    await asyncio.to_thread(history.erasures.finish, erasure)
    await asyncio.to_thread(history.retention.save, history.retention.snapshot())
    await asyncio.to_thread(history.roller.save, history.roller.snapshot())


def _without(store: SealedStore, file: Sealed, scope: _Scope, width: int) -> tuple[int, Sealed | None]:
    """Write a file anew without what goes (blocking); the number of rows that went, and the file."""
    gone = _rows_of(store, file, scope, width)
    if not gone:
        return 0, None
    taken = scope.taken(width)
    made = store.merge([file], lambda metrics, servers, rows: ~taken(metrics, servers, rows))
    return (gone, made) if made is not None else (0, None)


def _mark_edges(history: History, scope: _Scope) -> None:
    """Have the buckets computed again of which only a part went."""
    for at, files in enumerate(history.roller.tiers):
        edges = [(time, time + 1) for time in (scope.start, scope.end) if time % files.tier.width]
        history.roller.mark_one(at, tuple(edges))


async def _forget(history: History, ids: Ints, start: int, end: int) -> None:
    """Let the catalogue know which sample is now the newest of each series, if there is one."""
    catalog = history.catalog
    times, _ = catalog.last(ids)
    ids = ids[(times >= start) & (times < end)]
    servers, _ = catalog.names(ids)
    selection = catalog.select(sorted(set(servers)), "", ()) if len(ids) else None
    catalog.forget(ids)
    if selection is None:
        return
    wanted = np.isin(selection.ids, ids)
    newest = await asyncio.to_thread(_newest, history, selection, wanted)
    found = np.flatnonzero(newest[0] != np.iinfo(np.int64).min)
    if len(found):
        names = catalog.names(selection.ids[found])
        catalog.restore(names[0], names[1], newest[0][found], newest[1][found])
    await history.save_catalog(history.blocks.last)


def _newest(history: History, selection: Selection, wanted: Bools) -> tuple[Ints, Floats]:
    """Return the time and value of the newest sample of each series of a selection, from all files (blocking)."""
    times = np.full(len(selection.ids), np.iinfo(np.int64).min)
    values = np.full(len(selection.ids), np.nan)
    stores: list[tuple[SealedStore, str]] = [(history.blocks, "value")]
    stores += [(files.buckets, "last") for files in history.roller.tiers]
    for store, name in stores:
        for file in sorted(store.files, key=lambda each: each.about.max_time):
            for found in store.read(file, selection, -(2**63), 2**63 - 1, (name,)):
                better = wanted[found.rows] & (found.times >= times[found.rows])
                rows = found.rows[better]
                # Ascending in time within a row: the last one that is written stays.
                times[rows], values[rows] = found.times[better], found.values[name][better]
    return times, values

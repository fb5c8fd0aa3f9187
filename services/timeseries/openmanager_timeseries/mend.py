"""Makes damaged files anew: blocks from what the log still holds, buckets from what is finer."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

import numpy as np

from openmanager.errors import OpenManagerError, OutOfRangeError
from openmanager_timeseries import block, sealed, span
from openmanager_timeseries.head import Generation
from openmanager_timeseries.history import History
from openmanager_timeseries.log import Cursor
from openmanager_timeseries.record import Record
from openmanager_timeseries.sealed_store import SealedStore
from openmanager_timeseries.span import GAP_NANOS, Spans
from openmanager_timeseries.tier import RAW

log = logging.getLogger(__name__)


async def mend_files(history: History) -> None:
    """Mend what was set aside since the last time."""
    waiting = history.blocks.take_damaged()
    while waiting:
        name, spans = waiting.popitem()
        try:
            mended = await _mend_block(history, name)
        except (OSError, OpenManagerError):
            for each, times in {name: spans, **waiting}.items():  # another time
                history.blocks.return_damaged(each, times)
            raise
        if mended:
            log.warning("the block %s was damaged and has been made anew from the log", name)
            await asyncio.to_thread(history.blocks.forget_damaged, name)
    for at, files in enumerate(history.roller.tiers):
        for store in (files.buckets, files.sketches):
            _mend_buckets(history, at, store)


async def _mend_block(history: History, name: str) -> bool:
    """Make a block anew; False when the log does not hold all of it any more."""
    try:
        lost = sealed.Name.parse(name)
        history.log.check_kept(lost.first)
    except (ValueError, OutOfRangeError):
        return False
    if lost.first <= history.erasures.unknown_through:
        return False
    generation = Generation(first=lost.first)
    cursor = Cursor(lost.first, accepted=await asyncio.to_thread(_accepted_before, history, lost.first))
    while cursor.position <= lost.last and (records := await history.log.read(cursor)):
        if not generation.last and cursor.accepted < 0 and records[0].position != lost.first:
            return False
        _gather(history, generation, [record for record in records if record.position <= lost.last])
    if cursor.damaged or generation.last != lost.last:
        return False  # some of its frames are damaged in the log too
    generation.close()
    made = await asyncio.to_thread(
        block.write, history.blocks.folder, generation, history.catalog, revision=lost.revision + 1
    )
    history.blocks.replace((), made)
    history.roller.mark(0, made.spans)
    return True


def _accepted_before(history: History, first: int) -> int:
    """Return the running total of samples before a position, −1 when nobody knows it (blocking)."""
    before = [file.about for file in history.blocks.files if file.about.last == first - 1]
    if before:
        return before[0].accepted
    if first == 1:
        return 0
    return history.log.accepted_at(first - 1) if history.log.first_position < first else -1


def _gather(history: History, generation: Generation, records: Sequence[Record]) -> None:
    for record in records:
        frame = history.erasures.frame_of(record)
        layout = history.catalog.layout(frame.servers, frame.metrics)
        if history.catalog.admit(layout, ~np.all(np.isnan(frame.values), axis=0)) is None:
            history.catalog.observe(layout, frame)  # the catalogue may have been lost with it
        generation.append(layout, frame, record.position)
        generation.accepted = record.accepted


def _mend_buckets(history: History, at: int, store: SealedStore) -> None:
    """Have the buckets of damaged files computed again, as far as what is finer is kept."""
    for name, spans in store.take_damaged().items():
        held = history.roller.finer(at)[0].spans
        history.roller.mark(at, span.intersection(spans, held) if spans else held)
        log.warning("the file %s of a tier was damaged; what can be is computed again", name)
        if spans and _is_whole(history, at, spans):
            store.mending[name] = spans
    for name, spans in tuple(store.mending.items()):
        if not span.intersection(spans, history.roller.dirty(at)):
            store.forget_damaged(name)
            log.warning("the file %s of a tier was damaged and has been made anew", name)


def _is_whole(history: History, at: int, spans: Spans) -> bool:
    """Say whether everything is there that the buckets of some spans were made of."""
    stores = history.roller.finer(at)
    verdicts = history.retention.verdicts(history.roller.tiers[at - 1].tier.name if at else RAW)
    kept = spans[0][0] >= history.clock.now_nanos() - verdicts.shortest
    near = tuple((low - GAP_NANOS, high + GAP_NANOS) for low, high in stores[0].spans)
    return kept and not any(store.quarantined for store in stores) and not span.difference(spans, span.union(near))

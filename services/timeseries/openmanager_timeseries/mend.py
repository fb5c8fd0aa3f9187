"""Makes damaged files anew: blocks from what the log still holds, buckets from what is finer."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from openmanager.api.frame.v1 import frame_pb2
from openmanager.errors import OutOfRangeError
from openmanager.frame import decode_trusted
from openmanager_timeseries import block, sealed, span
from openmanager_timeseries.head import Generation
from openmanager_timeseries.history import History
from openmanager_timeseries.log import Cursor
from openmanager_timeseries.record import Record
from openmanager_timeseries.sealed_store import SealedStore

log = logging.getLogger(__name__)


async def mend_files(history: History) -> None:
    """Mend what was set aside since the last time."""
    for name in history.blocks.take_damaged():
        if await _mend_block(history, name):
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
    generation = Generation(first=lost.first)
    cursor = Cursor(lost.first)
    while cursor.position <= lost.last and (records := await history.log.read(cursor)):
        _gather(history, generation, [record for record in records if record.position <= lost.last])
    if cursor.damaged:
        return False
    generation.last = lost.last
    generation.close()
    made = await asyncio.to_thread(
        block.write, history.blocks.folder, generation, history.catalog, revision=lost.revision + 1
    )
    history.blocks.replace((), made)
    for at in range(len(history.roller.tiers)):
        history.roller.mark(at, made.spans)
    return True


def _gather(history: History, generation: Generation, records: Sequence[Record]) -> None:
    for record in records:
        frame = decode_trusted(frame_pb2.Frame.FromString(record.payload))
        frame = history.erasures.apply(frame, record.position)
        layout = history.catalog.layout(frame.servers, frame.metrics)
        generation.append(layout, frame, record.position)
        generation.accepted = record.accepted


def _mend_buckets(history: History, at: int, store: SealedStore) -> None:
    """Have the buckets of damaged files computed again, as far as what is finer is kept."""
    for name, spans in store.take_damaged().items():
        finer = history.blocks if at == 0 else history.roller.tiers[at - 1].buckets
        held = span.union(part for file in finer.files for part in file.spans)
        history.roller.mark(at, span.intersection(spans, held) if spans else held)
        log.warning("the file %s of a tier was damaged; what can be is computed again", name)

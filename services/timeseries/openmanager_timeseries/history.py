"""One shard of history: the log, and what is kept of it in memory and in blocks.

    frame ─► admission ─► log ─► acknowledged
                           ├─► catalogue and head, at once
                           └─► blocks, sealed from the head

The head holds what no block holds, so a query reads the blocks below the head's first position and the head above it:
there is no seam, and the last write of a sample wins by its position.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import numpy as np

from openmanager.api.frame.v1 import frame_pb2
from openmanager.errors import OpenManagerError
from openmanager.frame import decode_trusted
from openmanager.runtime import telemetry
from openmanager.runtime.clock import Clock
from openmanager_timeseries import block, snapshot
from openmanager_timeseries.catalog import Catalog
from openmanager_timeseries.config import TimeseriesConfig
from openmanager_timeseries.disk import Disk
from openmanager_timeseries.head import Generation, Head
from openmanager_timeseries.ingest import Admission, Admitted
from openmanager_timeseries.ledger import Ledger
from openmanager_timeseries.log import Cursor, Log, LogOptions
from openmanager_timeseries.query import Answer, Limits, Planner, RangeQuery, Stop
from openmanager_timeseries.record import Record
from openmanager_timeseries.sealed_store import SealedStore
from openmanager_timeseries.upkeep import BLOCK_WINDOWS, next_merge

CATALOG = "catalog.parquet"
KEEP_SECONDS = 1.0
SEAL_RETRY_SECONDS = 10.0
SAVE_SECONDS = 2.0
QUERY_THREADS = 4
_NANOS = 1_000_000_000

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """What became of a frame: its position in the log (0 when it had no samples) and what was refused of it."""

    position: int
    admitted: Admitted


class History:
    """The history of one shard; open it with `open_history`."""

    def __init__(
        self,
        *,
        config: TimeseriesConfig,
        clock: Clock,
        disk: Disk,
        source: Log,
        ledger: Ledger,
        catalog: Catalog,
        blocks: SealedStore,
    ) -> None:
        self._config = config
        self._clock = clock
        self._disk = disk
        self.log = source
        self.ledger = ledger
        self.catalog = catalog
        self.blocks = blocks
        self.head = Head(first=blocks.last + 1, now=clock.monotonic())
        self.warnings: list[str] = []
        self._seal_after = 0.0  # after a failure not at once again
        self._admission = Admission(
            catalog=catalog, clock=clock, raw_retention=config.raw_retention, future_limit=config.future_limit
        )
        limits = Limits(
            max_series=config.max_query_series,
            max_buckets=config.max_buckets,
            raw_retention_nanos=int(config.raw_retention.total_seconds()) * _NANOS,
        )
        self._planner = Planner(catalog=catalog, head=self.head, blocks=blocks, clock=clock, limits=limits)
        self._threads = ThreadPoolExecutor(QUERY_THREADS, thread_name_prefix="query")
        # Frames between admission and commit, so that none is decoded twice; by the identity of their payload.
        self._admitted: dict[int, Admitted] = {}
        source.on_commit = self._committed

    # ── writing ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def write(self, wire: bytes, *, any_future: bool = False) -> Accepted:
        """Admit a frame, given its wire form, append it to the log, and return when it is durable."""
        admitted = self._admission.admit(wire, any_future=any_future)
        if admitted.accepted == 0:
            return Accepted(position=0, admitted=admitted)
        self._admitted[id(admitted.payload)] = admitted
        try:
            with telemetry.store_span("openmanager.log", "append", size_bytes=len(admitted.payload)):
                record = await self.log.append(admitted.payload, admitted.accepted, telemetry.trace_parent())
        except BaseException:
            self._admitted.pop(id(admitted.payload), None)
            raise
        return Accepted(position=record.position, admitted=admitted)

    def _committed(self, records: Sequence[Record]) -> None:
        """Take what the log has just made durable (on the event loop, before the writer is answered)."""
        for record in records:
            admitted = self._admitted.pop(id(record.payload), None)
            if admitted is None:  # its writer has gone away in between
                self._apply(record)
            else:
                self.catalog.observe(admitted.layout, admitted.frame)
                self.head.append(admitted.layout, admitted.frame, record.position, record.accepted, record.samples)
        self._head_is_at(records[-1])
        if self.head.nbytes > self._config.head_size:
            self.head.drop(self._config.head_size)

    def _apply(self, record: Record) -> None:
        frame = decode_trusted(frame_pb2.Frame.FromString(record.payload))
        layout = self.catalog.layout(frame.servers, frame.metrics)
        self.catalog.admit(layout, ~np.all(np.isnan(frame.values), axis=0))
        self.catalog.observe(layout, frame)
        self.head.append(layout, frame, record.position, record.accepted, record.samples)

    def _head_is_at(self, record: Record) -> None:
        books = self.ledger.open_books("head")
        books.position, books.accepted = record.position, record.accepted
        books.confirmed_nanos = record.receive_nanos

    async def replay(self) -> None:
        """Rebuild the head from the log: everything that no block holds."""
        sealed = self.ledger.open_books("blocks")
        first = max(self.head.first_position, self.log.first_position)
        cursor = Cursor(first, accepted=sealed.accepted if first == self.head.first_position else -1)
        record = None
        while records := await self.log.read(cursor):
            for record in records:
                self._apply(record)
            if self.head.nbytes > self._config.head_size:
                await self.seal()
        books = self.ledger.open_books("head")
        books.damaged += cursor.damaged
        sealed.damaged += cursor.damaged
        if record is not None:
            self._head_is_at(record)
        else:
            books.position, books.accepted = self.log.state.head_position, self.log.state.accepted

    # ── reading ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def query_range(self, query: RangeQuery, seconds: float) -> Answer:
        """Answer a range query within `seconds`."""
        plan = self._planner.plan(query)
        stop = Stop(self._clock, seconds)
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, self._planner.compute, plan, stop)
        finally:
            stop.cancel()

    # ── keeping ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def seal(self) -> None:
        """Seal what the head holds into a block; on failure it stays in the head and is tried again."""
        self.head.rotate(self._clock.monotonic())
        for generation in tuple(self.head.generations[:-1]):
            if not generation.sealed:
                await self._seal(generation)
        self.head.drop(self._config.head_size // 2)

    async def _seal(self, generation: Generation) -> None:
        made = await asyncio.to_thread(block.write, self.blocks.folder, generation, self.catalog)
        self.blocks.add(made)
        generation.sealed = True
        books = self.ledger.open_books("blocks")
        books.position, books.accepted = made.about.last, made.about.accepted
        books.confirmed_nanos = self._clock.now_nanos()
        await asyncio.to_thread(snapshot.save, self._config.data_dir / CATALOG, self.catalog, made.about.last)
        await self.ledger.save(self.log)

    async def keep(self) -> None:
        """Delete what is no longer kept, seal, and save positions, for ever.

        Deletion comes first and no step waits for another: on a full disk it is what makes room for the rest.
        """
        steps = (self._delete_old, self._keep_within_cap, self._seal_when_due, self._save, self.merge_files)
        while True:
            await asyncio.sleep(KEEP_SECONDS)
            failed = [step.__name__.strip("_") for step in steps if not await self._done(step)]
            self.warnings = [f"{name} failed and is tried again" for name in failed]

    async def _done(self, step: Callable[[], Awaitable[None]]) -> bool:
        try:
            await step()
        except (OSError, OpenManagerError) as err:
            log.warning("%s failed and is tried again: %s", step.__name__.strip("_"), type(err).__name__)
            return False
        except Exception:  # a defect in one step must not end the others: they keep the disk from filling
            log.exception("%s failed and is tried again", step.__name__.strip("_"))
            return False
        return True

    async def _delete_old(self) -> None:
        now = self._clock.now_nanos()
        await asyncio.to_thread(self.blocks.delete_before, now - _nanos(self._config.raw_retention))
        before = now - _nanos(self._config.log_retention)
        await asyncio.to_thread(self.log.delete_through, self.ledger.slowest(), before)

    async def _seal_when_due(self) -> None:
        if self._clock.monotonic() < self._seal_after:
            return
        age = self._clock.monotonic() - self.head.generations[-1].opened
        unsealed = sum(each.nbytes for each in self.head.generations if not each.sealed)
        if age >= self._config.seal_interval.total_seconds() or unsealed > self._config.head_size // 2:
            self._seal_after = self._clock.monotonic() + SEAL_RETRY_SECONDS
            await self.seal()
            self._seal_after = 0.0

    async def merge_files(self) -> None:
        """Merge small blocks, at most one run of neighbours, and delete what was merged a while ago."""
        inputs = next_merge(self.blocks.files, BLOCK_WINDOWS, self._clock.now_nanos())
        made = await asyncio.to_thread(self.blocks.merge, inputs) if inputs else None
        if made is not None:
            self.blocks.replace(inputs, made)
        await asyncio.to_thread(self.blocks.delete_replaced)

    async def _save(self) -> None:
        await self.ledger.save(self.log)

    async def _keep_within_cap(self) -> None:
        """Cut loose the consumers that would hold back more than the log may take; they copy the state instead."""
        _, total = await asyncio.to_thread(self._disk.free_bytes)
        cap = min(self._config.log_max_size, int(total * self._config.log_max_share))
        if self.log.size_bytes() <= cap:
            return
        await self.seal()
        over = self.log.size_bytes() - cap
        through = 0
        for segment in self.log.oldest_segments()[:-1]:
            if over <= 0:
                break
            over -= segment.end
            through = segment.last
        sealed = self.ledger.open_books("blocks").position
        await asyncio.to_thread(self.log.delete_through, min(through, sealed), self._clock.now_nanos())

    async def close(self) -> None:
        """Make positions durable and stop the threads."""
        with contextlib.suppress(OSError):
            await self.ledger.save(self.log)
        self._threads.shutdown(wait=False, cancel_futures=True)
        await self.log.close()


def _nanos(duration: timedelta) -> int:
    return int(duration.total_seconds()) * _NANOS


@contextlib.asynccontextmanager
async def open_history(config: TimeseriesConfig, disk: Disk, clock: Clock) -> AsyncIterator[History]:
    """Open the history of a folder: the blocks, the catalogue, the log, and the head rebuilt from it."""
    folder: Path = config.data_dir
    catalog = Catalog(config.max_series)
    blocks = SealedStore(folder / "blocks", block.FORMAT, catalog, clock)
    await asyncio.to_thread(_open_blocks, folder, blocks, catalog)
    ledger = Ledger(disk, clock)
    books = ledger.open_books("blocks")
    if blocks.files and blocks.last > books.position:
        books.position, books.accepted = blocks.last, blocks.files[-1].about.accepted
    options = LogOptions(
        segment_size=config.segment_size, ballast_size=config.ballast_size, reserve=config.disk_reserve
    )
    floor = max(ledger.floor.position, blocks.last)
    accepted = max(ledger.floor.accepted, books.accepted)
    source = await Log.open(disk, options, clock, floor=floor, accepted=accepted)
    history = History(
        config=config, clock=clock, disk=disk, source=source, ledger=ledger, catalog=catalog, blocks=blocks
    )
    await history.replay()
    keeper = asyncio.create_task(history.keep())
    try:
        yield history
    finally:
        keeper.cancel()
        await asyncio.gather(keeper, return_exceptions=True)
        await history.close()


def _open_blocks(folder: Path, blocks: SealedStore, catalog: Catalog) -> None:
    blocks.open()
    position = snapshot.load(folder / CATALOG, catalog)
    for file in blocks.files:
        if file.about.last > position:
            snapshot.restore_from(catalog, file, block.FORMAT, "value")

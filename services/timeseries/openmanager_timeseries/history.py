"""One shard of history: the log, and what is kept of it in memory, in blocks and in tiers.

    frame ─► admission ─► log ─► acknowledged
                           ├─► catalogue and head, at once
                           └─► blocks, sealed from the head ─► tiers, computed from the blocks

The head holds what no block holds, so a query reads the blocks below the head's first position and the head above it:
there is no seam, and the last write of a sample wins by its position.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from openmanager import grid
from openmanager.errors import invalid
from openmanager.frame import Frame
from openmanager.runtime import telemetry
from openmanager.runtime.clock import Clock
from openmanager.shard import Shard
from openmanager_timeseries import block, snapshot, span
from openmanager_timeseries.catalog import Catalog, Selection
from openmanager_timeseries.cell import Cells
from openmanager_timeseries.config import TimeseriesConfig
from openmanager_timeseries.erasure import Erasures
from openmanager_timeseries.head import Chunk, Generation, Head
from openmanager_timeseries.ingest import Admission, Admitted
from openmanager_timeseries.ledger import Ledger, Stretch
from openmanager_timeseries.log import Cursor, Log
from openmanager_timeseries.plan import RawSource
from openmanager_timeseries.planner import Planner
from openmanager_timeseries.query import BUDGET_SECONDS, Answer, Limits, RangeQuery, Stop
from openmanager_timeseries.quota import NewSeries
from openmanager_timeseries.record import Payload, Record
from openmanager_timeseries.retention import Retention
from openmanager_timeseries.roller import Roller, TierFiles
from openmanager_timeseries.sealed_store import SealedStore
from openmanager_timeseries.tier import RAW
from openmanager_timeseries.usage import Usage
from openmanager_timeseries.wall import Wall

CATALOG = "catalog.parquet"
QUERY_THREADS = 4
# Turning takes fresh memory, as much as the frames did: as much work as to write them, and nobody waits for it.
TURN_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """What became of a frame: its position in the log (0 when it had no samples) and what was refused of it."""

    position: int
    admitted: Admitted


class Writing(NamedTuple):
    """A frame on its way into the log: `done` is its record, when it is durable, or None for one without samples."""

    admitted: Admitted
    done: asyncio.Future[Record] | None


class History:
    """The history of one shard; `opening.open_history` opens it."""

    def __init__(
        self,
        *,
        config: TimeseriesConfig,
        clock: Clock,
        source: Log,
        ledger: Ledger,
        catalog: Catalog,
        blocks: SealedStore,
        roller: Roller,
        retention: Retention,
        erasures: Erasures,
        shard: Shard,
    ) -> None:
        self.config = config
        self.shard = shard
        self.clock = clock
        self.log = source
        self.ledger = ledger
        self.catalog = catalog
        self.blocks = blocks
        self.roller = roller
        self.retention = retention
        self.erasures = erasures
        self.head = Head(first=blocks.last + 1, now=clock.monotonic())
        self.warnings: list[str] = []
        self.usage = Usage()
        # Whoever changes files holds it: merging, rolling up, expiring and deleting would undo each other.
        self.changing = asyncio.Lock()
        # Whether a start would find the series without looking through the files.
        self.catalog_saved = (config.data_dir / CATALOG).exists()
        # Until then, by the monotonic clock, files keep coming in bulk, and merging them would be done again and again.
        self.importing_until = 0.0
        # Set by whoever runs an engine beside the blocks.
        self.engine: RawSource | None = None
        self.wall = Wall(clock)
        self._admission = Admission(
            catalog=catalog,
            wall=self.wall,
            kept_from=lambda now: retention.kept_from(RAW, now),
            future_limit=config.future_limit,
            new_series=NewSeries(config.max_new_series, clock),
            shard=shard,
        )
        self._planner = Planner(
            catalog=catalog,
            head=self.head,
            blocks=blocks,
            roller=roller,
            retention=retention,
            wall=self.wall,
            limits=Limits(max_series=config.max_query_series, max_buckets=config.max_buckets),
        )
        self._threads = ThreadPoolExecutor(QUERY_THREADS, thread_name_prefix="query")
        self._turner = ThreadPoolExecutor(1, thread_name_prefix="turner")
        self._full: list[Chunk] = []
        self._turn_timer: asyncio.TimerHandle | None = None
        # Frames between admission and commit, so that none is decoded twice; by the identity of their payload.
        self._admitted: dict[int, Admitted] = {}
        source.on_commit = self._committed

    def stores(self) -> list[tuple[str, SealedStore]]:
        """Return every folder of files with the name of its tier, the finest first: blocks, and buckets and sketches."""
        tiers = [(files.tier.name, store) for files in self.roller.tiers for store in (files.buckets, files.sketches)]
        return [(RAW, self.blocks), *tiers]

    # ── writing ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def write(self, wire: Payload, *, any_future: bool = False, rationed: bool = False) -> Accepted:
        """Admit a frame, given its wire form, append it to the log, and return when it is durable."""
        return await self.written(self.begin_write(wire, any_future=any_future, rationed=rationed))

    def begin_write(self, wire: Payload, *, any_future: bool = False, rationed: bool = False) -> Writing:
        """Admit a frame, given its wire form, and append it to the log; `written` says when it is durable."""
        admitted = self._admission.admit(wire, any_future=any_future, rationed=rationed)
        if admitted.accepted == 0:
            return Writing(admitted, None)
        done = self.log.begin(admitted.payload, admitted.accepted, telemetry.trace_parent())
        self._admitted[id(admitted.payload)] = admitted
        return Writing(admitted, done)

    async def written(self, writing: Writing) -> Accepted:
        """Return what became of a frame when it is durable; who does not wait for that gives it up."""
        if writing.done is None:
            return Accepted(position=0, admitted=writing.admitted)
        try:
            with telemetry.store_span("openmanager.log", "append", size_bytes=len(writing.admitted.payload)):
                record = await writing.done
        except BaseException:
            self.give_up(writing)
            raise
        return Accepted(position=record.position, admitted=writing.admitted)

    def give_up(self, writing: Writing) -> None:
        """Take note that nobody waits for a frame any more; it may become durable all the same."""
        if writing.done is not None:
            writing.done.cancel()
            self._admitted.pop(id(writing.admitted.payload), None)

    def _committed(self, records: Sequence[Record]) -> None:
        """Take what the log has just made durable (on the event loop, before the writer is answered)."""
        for record in records:
            admitted = self._admitted.pop(id(record.payload), None)
            if admitted is None:  # its writer has gone away in between
                self._apply(record)
            else:
                self.catalog.observe(admitted.layout, admitted.frame, complete=admitted.complete)
                self.head.append(admitted.layout, admitted.frame, record.position, record.accepted, record.samples)
        self._turn_full()
        self._head_took(records, records[0].accepted - records[0].samples)
        if self.head.nbytes > self.config.head_size:
            self.head.drop(self.config.head_size)

    def _apply(self, record: Record) -> None:
        frame = self.erasures.frame_of(record)
        layout = self.catalog.layout(frame.servers, frame.metrics)
        self.catalog.admit(layout, ~np.all(np.isnan(frame.values), axis=0))
        self.catalog.observe(layout, frame)
        self.head.append(layout, frame, record.position, record.accepted, record.samples)

    def _turn_full(self) -> None:
        """Have what is full turned in a moment, when the burst that filled it is acknowledged."""
        self._full += self.head.generations[-1].take_full()
        if self._full and self._turn_timer is None:
            self._turn_timer = asyncio.get_running_loop().call_later(TURN_SECONDS, self._turn)

    def _turn(self) -> None:
        self._turn_timer = None
        full, self._full = self._full, []
        for chunk in full:
            self._turner.submit(chunk.turn)

    def _head_took(self, records: Sequence[Record], before: int) -> None:
        self.ledger.took("head", records, before)
        books = self.ledger.open_books("head")
        books.stand_at(records[-1].position, records[-1].accepted)
        books.confirmed_nanos = records[-1].receive_nanos

    async def replay(self) -> None:
        """Rebuild the head from the log: everything that no block holds."""
        books, sealed = self.ledger.open_books("head"), self.ledger.open_books("blocks")
        first, before = max(self.head.first_position, self.log.first_position), sealed.accepted
        if sealed.position != self.head.first_position - 1:  # blocks were lost
            before = await asyncio.to_thread(self.log.accepted_at, first - 1)
        self.head.generations[-1].before = before
        self.ledger.brought("head", self.head.first_position - 1, before)
        cursor = Cursor(first, accepted=before)
        while records := await self.log.read(cursor):
            for record in records:
                self._apply(record)
            self._head_took(records, before)
            before = records[-1].accepted
            self._turn_full()
            if self.head.nbytes > self.config.head_size:
                await self.seal()
        # Newer frames than those that are there were lost.
        position, accepted = self.log.state.head_position, self.log.state.accepted
        lost = Stretch(position=position, before=books.counted_accepted, accepted=accepted, samples=0)
        self.ledger.taken("head", lost)
        books.stand_at(position, accepted)
        self.rolled_up()

    # ── reading ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def query_range(
        self, asked: RangeQuery, seconds: float, selection: Selection | None = None, *, own: bool = False
    ) -> Answer:
        """Answer a range query within `seconds`, from `own` stores alone if that is wanted.

        A selection that was made already stands for the one asked for.
        """
        plan = self._planner.plan(asked, selection)
        stop = Stop(self.clock, seconds)
        borrowed, degraded = None, ""
        try:
            if self.engine is not None and plan.blocks and not own:
                borrowed, degraded = await self.engine.read(plan, self.head.first_position, seconds)
            if self._planner.is_light(plan):
                return self._planner.compute(plan, stop)
            loop = asyncio.get_running_loop()
            answer = await loop.run_in_executor(self._threads, self._planner.compute, plan, stop, borrowed)
        finally:
            stop.cancel()
        return answer if not degraded else answer.degraded(degraded)

    async def frames_of(self, servers: tuple[str, ...], start: int, end: int) -> tuple[list[Frame], str]:
        """Return the samples of servers in [start, end) nanoseconds that our own stores hold, and why some are missing."""
        asked = RangeQuery(
            servers=servers,
            server_filter="",
            metrics=(),
            start=start,
            end=end,
            step=0,
            aggregation="MEAN",
            group_by="SERVER",
        )
        answer = await self.query_range(asked, BUDGET_SECONDS, own=True)
        assert answer.raw is not None  # noqa: S101  (samples were asked for)
        (of_servers, servers_of), (of_metrics, metrics_of) = (
            np.unique(np.asarray(names, object), return_inverse=True)
            for names in ([name.server for name in answer.names], [name.metric for name in answer.names])
        )
        series = answer.raw.rows
        rows = grid.Rows(
            servers=of_servers.tolist(),
            server_codes=servers_of[series],
            metrics=of_metrics.tolist(),
            metric_codes=metrics_of[series],
            times=answer.raw.times,
            columns={"value": answer.raw.values},
        )
        return await asyncio.to_thread(lambda: list(grid.frames(rows))), answer.partial_reason

    async def read_buckets(self, files: TierFiles, selection: Selection, start: int, end: int, seconds: float) -> Cells:
        """Return the buckets that a tier holds in [start, end), with all columns, within `seconds`."""
        stop = Stop(self.clock, seconds)
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._threads, self._planner.buckets, files, selection, start, end, stop)
        finally:
            stop.cancel()

    # ── sealing ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def seal(self) -> None:
        """Seal what the head holds into a block; on failure it stays in the head and is tried again."""
        self.head.rotate(self.clock.monotonic())
        for generation in tuple(self.head.generations[:-1]):
            if not generation.sealed:
                await self._seal(generation)
        self.head.drop(self.config.head_size // 2)

    async def _seal(self, generation: Generation) -> None:
        made = await asyncio.to_thread(block.write, self.blocks.folder, generation, self.catalog)
        self.blocks.add(made)
        generation.sealed = True
        self.head.recount()
        self.ledger.taken(
            "blocks",
            Stretch(
                position=generation.last,
                before=generation.before,
                accepted=generation.accepted,
                samples=generation.sample_count,
            ),
        )
        books = self.ledger.open_books("blocks")
        books.stand_at(made.about.last, made.about.accepted)
        books.confirmed_nanos = self.clock.now_nanos()
        self.rolled_up()
        await self.save_catalog(made.about.last)
        await self.ledger.save(self.log)

    def rolled_up(self) -> None:
        """Let the tiers know what was sealed, and the ledger how far they have come."""
        books = self.ledger.open_books("rollups")
        accepted = self.roller.take(books.accepted)
        if self.roller.position > books.position:
            books.confirmed_nanos = self.clock.now_nanos()
        self.ledger.brought("rollups", self.roller.position, accepted)
        books.stand_at(self.roller.position, accepted)

    def rebuild(self, tier: str, start: int, end: int) -> int:
        """Have the buckets of a tier, of all with an empty name, computed again where samples are; return how many wait.

        InvalidArgumentError when there is no such tier.
        """
        names = [files.tier.name for files in self.roller.tiers]
        if tier and tier not in names:
            raise invalid("tier", f"must be one of {', '.join(names)}, or empty")
        count = 0
        for at, files in enumerate(self.roller.tiers):
            if tier in {"", files.tier.name}:
                self.roller.mark_one(at, span.clip(self.roller.finer(at)[0].spans, start, end))
                count += self.roller.waiting(at)
        return count

    async def save_catalog(self, position: int) -> None:
        """Make the catalogue durable as of a log position."""
        await asyncio.to_thread(snapshot.save, self.config.data_dir / CATALOG, self.catalog, position)
        self.catalog_saved = True

    async def close(self) -> None:
        """Make positions durable and stop the threads."""
        with contextlib.suppress(OSError):
            await self.ledger.save(self.log)
        self._threads.shutdown(wait=False, cancel_futures=True)
        with contextlib.suppress(OSError):  # what was replaced by nothing would be back at the next start
            await asyncio.to_thread(self._delete_replaced)
        await self.log.close()  # it hands over what was pending
        if self._turn_timer is not None:
            self._turn_timer.cancel()
        self._turner.shutdown(wait=False, cancel_futures=True)

    def _delete_replaced(self) -> None:
        for _, store in self.stores():
            store.delete_replaced(0.0)

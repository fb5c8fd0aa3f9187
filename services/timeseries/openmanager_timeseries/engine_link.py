"""An engine as a consumer of the log: written to in order, watched, filled again when it comes back empty or another.

Whether a store is ours is told by a marker, its *epoch*. Without it the store is new or was emptied: then everything that
the blocks hold is written to it first, and the log goes on from there. Until that is done nobody reads from it.

What an engine has accepted is believed when it can no longer lose it: a position waits for `durable_after`, and when the
engine's process is another one than before, all that waits is written again.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from openmanager import durable, grid
from openmanager.api.status.v1 import status_pb2
from openmanager.api.status.v1.status_pb2 import StorageState
from openmanager.errors import OpenManagerError, Reason, UnavailableError
from openmanager.frame import Frame
from openmanager.runtime.breaker import Breaker, NotAskedError
from openmanager.runtime.clock import Clock
from openmanager_timeseries import block
from openmanager_timeseries.dead_letter import Refusal, windows
from openmanager_timeseries.engines.port import Engine, EngineState, Refused, RefusedCredentialsError
from openmanager_timeseries.history import History
from openmanager_timeseries.record import Record
from openmanager_timeseries.sealed import Reader, Sealed

WATCH_SECONDS = 0.4
# With the time between two looks: who hangs is known within three seconds.
CHECK_SECONDS = 2.0
# So much is read at once to be written again.
RETRY_NANOS, RETRY_SERVERS = 3600 * 10**9, 16
# Slower is slow; what is written or read in bulk has time for its samples, at a rate that any engine reaches.
SLOW_SECONDS = 1.0
SAMPLES_PER_SECOND = 50_000
# Writes come one after the other, and questions now and then: ten seconds hold few that are slow.
LEAST_CALLS = 5

log = logging.getLogger(__name__)


class Condition(StrEnum):
    """How an engine is."""

    UNKNOWN = "is not known yet"
    OK = ""
    DOWN = "cannot be reached"
    HUNG = "does not answer"
    EMPTY = "was emptied or replaced"
    FILLING = "is being filled"
    REFUSED = "auth: the credentials are refused"


STATES = {
    Condition.UNKNOWN: status_pb2.STORAGE_STATE_RECOVERING,
    Condition.OK: status_pb2.STORAGE_STATE_OK,
    Condition.DOWN: status_pb2.STORAGE_STATE_DOWN,
    Condition.HUNG: status_pb2.STORAGE_STATE_HUNG,
    Condition.EMPTY: status_pb2.STORAGE_STATE_EMPTY,
    Condition.FILLING: status_pb2.STORAGE_STATE_RECOVERING,
    Condition.REFUSED: status_pb2.STORAGE_STATE_DOWN,
}


@dataclass(slots=True, kw_only=True)
class Progress:
    """How far a filling has come: files of all."""

    done: int = 0
    total: int = 0


class EngineLink:
    """The consumer of an engine's name."""

    # Many requests, each with a deadline of its own: an engine takes seconds for a tick of a thousand servers.
    take_seconds = 60.0

    def __init__(self, engine: Engine, history: History, clock: Clock, state: Path) -> None:
        self.engine = engine
        self.name = engine.name
        self.rewinds = 0
        self.condition = Condition.UNKNOWN
        self.found: EngineState | None = None
        self.progress = Progress()
        jitter = random.Random()  # noqa: S311  (jitter)
        self.reads, self.writes = (
            Breaker(engine.name, operation, clock, jitter, slow_seconds=SLOW_SECONDS, least_calls=LEAST_CALLS)
            for operation in ("reads", "writes")
        )
        self._history = history
        self._clock = clock
        self._state = state
        self._epoch, self._filled = self._load()
        self._stored = self._filled
        # What was written and may still be lost, or not be seen: when, and the position and running total then.
        self._unsettled: deque[tuple[float, int, int]] = deque()
        self._seen: deque[tuple[float, int]] = deque()
        self._visible = 0
        # The newest position that it was given.
        self._through = 0
        # One at a time, so that what was read is not written after something newer.
        self._writing = asyncio.Lock()
        self._filled_at = float("-inf")

    @property
    def ready(self) -> bool:
        """Whether it is ours, whole, and answers."""
        return self.condition is Condition.OK

    @property
    def dead_letters(self) -> int:
        """How many letters there are of what it refused."""
        return len(self._history.ledger.letters.of(self.name))

    # ── the consumer ───────────────────────────────────────────────────────────────────────────────────────────────

    async def take(self, records: Sequence[Record]) -> Sequence[Refusal]:
        """Write the frames of records; return what the engine refused for good."""
        async with self._writing:
            return await self._take(records)

    async def _take(self, records: Sequence[Record]) -> Sequence[Refusal]:
        self._check_ready()
        rewinds = self.rewinds
        # What was read before the engine was filled is in it.
        records = [record for record in records if record.position > self._through]
        if not records:
            return ()
        frames = [self._history.erasures.frame_of(record) for record in records]
        refusals = await self._write(frames, records[0].position, records[-1].position)
        if self.rewinds != rewinds:  # it was filled anew, or may have lost this: what comes next is read again
            raise UnavailableError(f"{self.name} {Condition.EMPTY}", reason=Reason.STORE_UNAVAILABLE)
        self._through = records[-1].position
        now = self._clock.monotonic()
        self._unsettled.append((now, records[-1].position, records[-1].accepted))
        self._seen.append((now, records[-1].position))
        return refusals

    def _check_ready(self) -> None:
        if not self.ready:
            why = str(self.condition)
            raise NotAskedError(self.name, Reason.STORE_UNAVAILABLE, STATES[self.condition], why)
        self.writes.check()

    async def take_again(self, refusal: Refusal, done: Callable[[int], None]) -> str:
        """Write what our own stores hold of the samples that were refused."""
        if not refusal.servers:
            return "nobody could see which samples these are"
        reasons: dict[str, None] = {}
        for servers, start, end in windows(refusal, RETRY_NANOS, RETRY_SERVERS):
            # What is read is written before anything newer is, and before it is deleted.
            async with self._writing, self._history.changing:
                self._check_ready()
                frames, missing = await self._history.frames_of(servers, start, end)
                if missing:
                    reasons[f"history no longer has all of it: {missing}"] = None
                for frame in frames:
                    reasons.update(dict.fromkeys(each.reason for each in await self._written([frame])))
            if not reasons and servers[-1] == refusal.servers[-1]:
                done(end)
        return "; ".join(reasons)

    async def _written(self, frames: Sequence[Frame]) -> Sequence[Refused]:
        start = self._clock.monotonic()
        try:
            refused = await self.engine.write(frames, self._history.catalog.info_of)
        except (UnavailableError, TimeoutError) as err:
            # It may be another one by now: nobody reads from it before that is known. What was in flight is written again.
            self.condition = Condition.UNKNOWN
            self.writes.failed(start, *trouble(err))
            raise
        self.writes.answered(start, sum(frame.values.size for frame in frames) / SAMPLES_PER_SECOND)
        return refused

    async def _write(self, frames: Sequence[Frame], first: int, last: int) -> Sequence[Refusal]:
        """Write frames from a range of positions; return what was refused for good."""
        refused: Counter[tuple[str, tuple[str, ...]]] = Counter()
        for each in await self._written(frames):
            refused[each.reason, each.servers] += each.sample_count
        refusals = []
        for (reason, servers), count in refused.items():
            log.warning("%s refused %d samples for good: %s", self.name, count, reason)
            chosen = set(servers)
            times = [time for frame in frames if chosen.intersection(frame.servers) for time in frame.times[[0, -1]]]
            start, end = (int(min(times)), int(max(times)) + 1) if times else (0, 0)
            refusals.append(
                Refusal(
                    reason=reason, servers=servers, start=start, end=end, first=first, last=last, sample_count=count
                )
            )
        return refusals

    def settled(self, position: int, accepted: int) -> tuple[int, int]:
        """Return the position and the running total up to which nothing can be lost any more."""
        window = self.engine.capabilities.durable_after.total_seconds()
        books = self._history.ledger.open_books(self.name)
        found = books.position, books.accepted
        if not window:
            self._unsettled.clear()
            return max(found, (position, accepted))
        while self._unsettled and self._unsettled[0][0] + window <= self._clock.monotonic():
            found = self._unsettled.popleft()[1:]
        return found

    def cut_loose(self) -> None:
        """Have it filled anew from the blocks: what the log no longer holds is there."""
        self.condition = Condition.EMPTY
        self._store(self._epoch, filled=False)

    @property
    def visible(self) -> int:
        """The position up to which it answers with what it was given."""
        window = self.engine.capabilities.visible_after.total_seconds()
        while self._seen and self._seen[0][0] + window <= self._clock.monotonic():
            self._visible = self._seen.popleft()[1]
        return self._visible

    # ── how it is ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def watch(self) -> None:
        """Look after the engine, for ever."""
        while True:
            try:
                await self.look()
            except Exception:  # whatever it answered, it is looked after
                self.condition = Condition.DOWN
                log.exception("%s could not be looked after", self.name)
            await asyncio.sleep(WATCH_SECONDS)

    async def look(self) -> None:
        """Find out how the engine is, and fill it where it has to be."""
        start = self._clock.monotonic()
        try:
            async with asyncio.timeout(CHECK_SECONDS):
                found = await self.engine.check()
        except (OpenManagerError, TimeoutError) as err:
            self.condition = _condition(err)
            self._probed(*trouble(err))
            return
        slow = self._clock.monotonic() - start > SLOW_SECONDS
        self._probed(status_pb2.STORAGE_STATE_SLOW if slow else status_pb2.STORAGE_STATE_OK)
        if self.found is not None and found.started != self.found.started:
            self._begin_again()
        self.found = found
        if self._filled and not self._stored and not self._filled_lately():
            self._store(self._epoch, filled=True)
        books = self._history.ledger.open_books(self.name)
        if books.position + 1 < self._history.log.first_position:
            self._filled = False  # it was away for longer than the log waits
        if found.epoch != self._epoch or not self._epoch or not self._filled:
            self.condition = Condition.EMPTY
            try:
                await self._fill(found)
            except (OpenManagerError, TimeoutError) as err:
                self.condition = _condition(err)
                return
        self.condition = Condition.OK

    def _probed(self, state: StorageState.ValueType, reason: str = "") -> None:
        for breaker in (self.reads, self.writes):
            breaker.probed(state, reason)

    def _begin_again(self) -> None:
        """Its process is another one: what it had only in memory is gone."""
        self._filled = self._filled and not self._filled_lately()
        self._through = self._history.ledger.open_books(self.name).position
        if self._unsettled:
            log.warning("%s was restarted: what it may have lost is written again", self.name)
            self._unsettled.clear()
            self.rewinds += 1

    def _filled_lately(self) -> bool:
        """Say whether what it was filled with may still be lost."""
        return self._clock.monotonic() - self._filled_at < self.engine.capabilities.durable_after.total_seconds()

    async def _fill(self, found: EngineState) -> None:
        """Write everything that the blocks hold, and let the log go on from there."""
        if found.epoch != self._epoch or not self._epoch:
            if found.epoch:
                self._distrust()
            self._store(uuid.uuid4().hex, filled=False)
            log.warning("%s is new here, or was emptied: it is filled from the blocks", self.name)
        self.condition = Condition.FILLING
        await self.engine.mark(self._epoch)
        files = self._history.blocks.files
        self.progress = Progress(total=len(files))
        refusals: list[Refusal] = []
        for file in files:
            frames = _frames_of(file)
            while (frame := await asyncio.to_thread(next, frames, None)) is not None:
                refusals += await self._write([frame], file.about.first, file.about.last)
            self.progress.done += 1
        position, accepted = (files[-1].about.last, files[-1].about.accepted) if files else (0, 0)
        self._history.ledger.refill(self.name, position, accepted, refusals)
        self._unsettled.clear()
        self._through = position
        self._seen.append((self._clock.monotonic(), position))
        self.rewinds += 1
        self._filled, self._filled_at = True, self._clock.monotonic()
        if not self.engine.capabilities.durable_after:
            self._store(self._epoch, filled=True)

    def _distrust(self) -> None:
        """Have the blocks answer for what they hold: the engine has samples from another life, maybe other values."""
        rewritten, held = self._history.rewritten, self._history.blocks.spans
        if rewritten is not None and held and not self.engine.capabilities.overwrites:
            rewritten.add(held[0][0], held[-1][1])

    # ── on disk ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _load(self) -> tuple[str, bool]:
        try:
            stored = json.loads(self._state.read_text(encoding="utf-8"))
            return str(stored["epoch"]), bool(stored["filled"])
        except (OSError, ValueError, LookupError, TypeError):
            return "", False

    def _store(self, epoch: str, *, filled: bool) -> None:
        self._epoch, self._filled, self._stored = epoch, filled, filled
        durable.replace(self._state, json.dumps({"epoch": epoch, "filled": filled}).encode())


def trouble(err: Exception) -> tuple[StorageState.ValueType, str]:
    """Return the state of an engine that an error tells of, and why in words."""
    state = status_pb2.STORAGE_STATE_HUNG if isinstance(err, TimeoutError) else status_pb2.STORAGE_STATE_DOWN
    return state, str(_condition(err))


def _condition(err: Exception) -> Condition:
    if isinstance(err, TimeoutError):
        return Condition.HUNG
    return Condition.REFUSED if isinstance(err, RefusedCredentialsError) else Condition.DOWN


def _frames_of(file: Sealed) -> Iterator[Frame]:
    """Yield the samples of a block as frames (blocking)."""
    with Reader(file, block.FORMAT) as reader:
        for index in range(len(file.groups)):
            metrics, servers, rows = reader.group(index, block.FORMAT.names)
            yield from grid.frames(
                grid.Rows(
                    servers=servers,
                    server_codes=rows.servers,
                    metrics=metrics,
                    metric_codes=rows.metrics,
                    times=rows.times,
                    columns=rows.values,
                )
            )

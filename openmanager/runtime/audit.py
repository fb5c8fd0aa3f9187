"""The side of those who record: an intent before something is changed, its outcome after it, events of one entry.

`intent` is answered when the entry is durable, within a second, or raises UnavailableError: then nothing may be changed.
Outcomes and refusals are told in the background, again and again, from a bounded queue; an outcome that is never told
leaves its intent without one, which the log reports. Refusals are counted by who, what and how over ten seconds, so that a
flood of them is a few entries.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol, Self

from openmanager.api.metadata.v1 import audit_pb2
from openmanager.audit import MAX_OBJECT, MAX_SMALL, MAX_SOURCE, Outcome, Record, opaque
from openmanager.errors import (
    InvalidArgumentError,
    NotFoundError,
    OpenManagerError,
    Reason,
    UnavailableError,
)
from openmanager.runtime.clock import Clock, SystemClock, show_time
from openmanager.runtime.peer import Peer, backoff

SECONDS = 1.0
WINDOW_SECONDS = 10.0
MAX_WAITING = 10_000
# Different refusals in one window; the rest is told in one entry.
MAX_REFUSALS = 1000
TOGETHER = 32
CLOSE_SECONDS = 1.0
OTHERS = "access.denied_others"
SERVICE = "/openmanager.api.metadata.v1.AuditService"

log = logging.getLogger(__name__)


class Recorder(Protocol):
    """Where entries go: the log itself in the metadata service, a peer elsewhere. Each returns the entry's number."""

    async def intent(self, record: Record) -> int:
        """Record that something is about to be done."""
        ...

    async def outcome(self, intent: int, outcome: Outcome) -> int:
        """Record how it ended; once, however often it is told."""
        ...

    async def event(self, record: Record, outcome: Outcome | None = None, count: int = 1) -> int:
        """Record something of one entry."""
        ...


class PeerRecorder:
    """A `Recorder` that is the metadata service, or the gateway before it."""

    def __init__(self, peer: Peer, *, seconds: float = SECONDS) -> None:
        self._peer, self._seconds = peer, seconds

    async def intent(self, record: Record) -> int:
        """Record that something is about to be done."""
        request = audit_pb2.RecordIntentRequest(record=_message(record))
        reply = await self._peer.unary(
            f"{SERVICE}/RecordIntent", request, audit_pb2.RecordIntentResponse, seconds=self._seconds
        )
        return reply.number

    async def outcome(self, intent: int, outcome: Outcome) -> int:
        """Record how it ended."""
        request = audit_pb2.RecordOutcomeRequest(
            intent_number=intent, code=outcome.code, reason=outcome.reason, after_hash=outcome.after_hash
        )
        reply = await self._peer.unary(
            f"{SERVICE}/RecordOutcome", request, audit_pb2.RecordOutcomeResponse, seconds=self._seconds
        )
        return reply.number

    async def event(self, record: Record, outcome: Outcome | None = None, count: int = 1) -> int:
        """Record something of one entry."""
        ended = outcome or Outcome()
        request = audit_pb2.RecordEventRequest(
            record=_message(record), code=ended.code, reason=ended.reason, occurrence_count=count
        )
        reply = await self._peer.unary(
            f"{SERVICE}/RecordEvent", request, audit_pb2.RecordEventResponse, seconds=self._seconds
        )
        return reply.number


def _message(record: Record) -> audit_pb2.AuditRecord:
    return audit_pb2.AuditRecord(
        actor=record.actor,
        via=record.via,
        action=record.action,
        object=record.object,
        request_hash=record.request_hash,
        request_id=record.request_id,
        trace_id=record.trace_id,
        policy_version=record.policy_version,
        details=dict(record.details),
        subject=record.subject,
        personal=dict(record.personal),
        source=record.source,
    )


@dataclass(frozen=True, slots=True)
class Intent:
    """Something that may be done now; `outcome` says how it ended, once, without waiting."""

    number: int
    _tell: Callable[[int, Outcome], None]

    def outcome(self, code: int = 0, reason: str = "", *, after: bytes | None = None) -> None:
        """Say how it ended: a number of `google.rpc.Code`, a reason of our errors, the bytes of what is there now."""
        digest = hashlib.sha256(after).digest() if after is not None else b""
        self._tell(self.number, Outcome(code=code, reason=reason, after_hash=digest))


@dataclass(slots=True)
class _Refusals:
    record: Record
    outcome: Outcome
    first: int
    last: int
    count: int = 0


class Auditor:
    """Records for one service, `via`; an async context manager that tells in the background what need not be waited for.

    Texts of a record that could say more than they should are replaced by a part of their hash, see `opaque`.
    """

    def __init__(
        self, recorder: Recorder, via: str, *, clock: Clock | None = None, window: float = WINDOW_SECONDS
    ) -> None:
        self._recorder, self._via = recorder, via
        self._clock, self._window = clock or SystemClock(), window
        self._jobs: deque[Callable[[], Awaitable[int]]] = deque()
        self._refusals: dict[tuple[str, str, int], _Refusals] = {}
        self._wake = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._under_way = 0
        # What was given up because too much was waiting.
        self.lost_count = 0

    async def __aenter__(self) -> Self:
        """Begin to tell."""
        self._tasks = [asyncio.create_task(self._tell_all()), asyncio.create_task(self._tell_refusals())]
        return self

    async def __aexit__(self, *_: object) -> None:
        """Tell what is left, for at most a second."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._take_refusals()
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                while self._jobs and await self._tell_some():
                    pass
        except TimeoutError:
            log.warning("%d audit entries could not be told before the end", len(self._jobs))

    @property
    def waiting_count(self) -> int:
        """How many entries wait to be told."""
        return len(self._jobs) + self._under_way + len(self._refusals)

    async def intent(self, record: Record, request: bytes | None = None) -> Intent:
        """Record that something is about to be done, `request` being its bytes; UnavailableError: then it must not be."""
        wanted = self._prepared(record)
        if request is not None:
            wanted = replace(wanted, request_hash=hashlib.sha256(request).digest())
        return Intent(await self._now(lambda: self._recorder.intent(wanted)), self._tell_outcome)

    async def event(self, record: Record, outcome: Outcome | None = None, count: int = 1) -> int:
        """Record something of one entry and return its number; UnavailableError when nobody has taken it."""
        wanted = self._prepared(record)
        return await self._now(lambda: self._recorder.event(wanted, outcome, count))

    def denied(self, record: Record, code: int, reason: str = "") -> None:
        """Count a refusal. It is told within ten seconds, with all others of the same actor, action and code."""
        now, key = self._clock.now_nanos(), (record.actor, record.action, code)
        if key not in self._refusals and len(self._refusals) >= MAX_REFUSALS:
            record = Record(actor="others", action=OTHERS)
            key = (record.actor, record.action, 0)
            code, reason = 0, ""
        found = self._refusals.get(key)
        if found is None:
            outcome = Outcome(code=code, reason=reason)
            found = self._refusals[key] = _Refusals(self._prepared(record), outcome, first=now, last=now)
        found.count += 1
        found.last = now

    def _prepared(self, record: Record) -> Record:
        return replace(
            record,
            via=record.via or self._via,
            object=opaque(record.object, MAX_OBJECT),
            request_id=opaque(record.request_id),
            trace_id=opaque(record.trace_id, MAX_SMALL),
            policy_version=opaque(record.policy_version, MAX_SMALL),
            source="".join(each for each in record.source[:MAX_SOURCE] if each.isprintable()),
        )

    async def _now(self, work: Callable[[], Awaitable[int]]) -> int:
        try:
            async with asyncio.timeout(SECONDS):
                return await work()
        except InvalidArgumentError:
            raise  # a defect of who records
        except (OpenManagerError, TimeoutError) as err:
            raise UnavailableError(
                "the audit log does not answer: nothing is changed without it", reason=Reason.STORE_UNAVAILABLE
            ) from err

    def _tell_outcome(self, intent: int, outcome: Outcome) -> None:
        self._tell(lambda: self._recorder.outcome(intent, outcome))

    def _tell(self, job: Callable[[], Awaitable[int]]) -> None:
        if len(self._jobs) >= MAX_WAITING:
            if not self.lost_count:
                log.error("more than %d audit entries are waiting: what comes now is lost", MAX_WAITING)
            self.lost_count += 1
            return
        self._jobs.append(job)
        self._wake.set()

    async def _tell_all(self) -> None:
        attempt = 0
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._jobs:
                attempt = 0 if await self._tell_some() else attempt + 1
                if attempt:
                    await asyncio.sleep(backoff(attempt, 1.0, cap=2.0).total_seconds())

    async def _tell_some(self) -> bool:
        """Tell what has waited longest; put back, in order, what nobody has taken, and say whether all was taken."""
        jobs = [self._jobs.popleft() for _ in range(min(TOGETHER, len(self._jobs)))]
        self._under_way = len(jobs)
        try:
            told = await asyncio.gather(*(_is_told(job) for job in jobs))
        except asyncio.CancelledError:
            self._jobs.extendleft(reversed(jobs))
            raise
        finally:
            self._under_way = 0
        self._jobs.extendleft(reversed([job for job, done in zip(jobs, told, strict=True) if not done]))
        return all(told)

    async def _tell_refusals(self) -> None:
        while True:
            await asyncio.sleep(self._window)
            self._take_refusals()

    def _take_refusals(self) -> None:
        found, self._refusals = self._refusals, {}
        for each in found.values():
            details = {**each.record.details, "first_time": show_time(each.first), "last_time": show_time(each.last)}
            record = replace(each.record, details=details)
            self._tell(partial(self._recorder.event, record, each.outcome, each.count))


async def _is_told(job: Callable[[], Awaitable[int]]) -> bool:
    """Tell one entry; False where it may be taken another time."""
    try:
        async with asyncio.timeout(SECONDS):
            await job()
    except (InvalidArgumentError, NotFoundError) as err:
        log.error("an audit entry was refused: %s", err.message)  # noqa: TRY400  (the text says it all)
    except (OpenManagerError, TimeoutError):
        return False
    return True

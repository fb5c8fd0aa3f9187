"""Appending to the audit log: one after the other, many callers sharing one transaction.

Whoever is answered has a durable entry. A transaction whose fate is not known may have made entries that nobody was told
of: intents of things that were then not done, which shows as intents without an outcome.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from openmanager.audit import (
    CLOCK_SET_BACK,
    LOG_RESTORED,
    MAX_SUBJECT,
    SOURCE,
    SUBJECT_ERASED,
    Kind,
    Outcome,
    Record,
    check_opaque,
    check_outcome,
    check_record,
)
from openmanager.errors import (
    DataLossError,
    NotFoundError,
    OpenManagerError,
    ResourceExhaustedError,
    invalid,
    store_unavailable,
)
from openmanager.merkle import leaf_hash
from openmanager.runtime.clock import Clock
from openmanager_metadata.audit.entry import Entry, decode, encode
from openmanager_metadata.audit.head import TILE_LEVEL, Head, catch_up, lock
from openmanager_metadata.audit.seal import SubjectKey, erase, subject_keys
from openmanager_metadata.backends import Database, Statements

MAX_BATCH, MAX_WAITING = 256, 10_000
# A clock that went back by less is waited for: entries have the time of the one before.
CLOCK_NANOS = 5 * 10**9
MAX_COUNT = 2**63 - 1
SELF = Record(actor="services/metadata", via="metadata", action="")

log = logging.getLogger(__name__)

_INSERT = """
INSERT INTO audit_entries (number, entry, leaf_hash, time_unix_nanos, kind, actor, via, action, object, code, reason,
    request_id, trace_id, intent)
SELECT * FROM unnest($1::bigint[], $2::bytea[], $3::bytea[], $4::bigint[], $5::smallint[], $6::text[], $7::text[],
    $8::text[], $9::text[], $10::smallint[], $11::text[], $12::text[], $13::text[], $14::bigint[])
"""
_TILES = "INSERT INTO audit_tiles (index, hash) SELECT * FROM unnest($1::bigint[], $2::bytea[]) ON CONFLICT DO NOTHING"
_INTENTS = "SELECT number, entry FROM audit_entries WHERE number = ANY($1::bigint[]) AND kind = 1"
_OUTCOMES = "SELECT intent, number FROM audit_entries WHERE intent = ANY($1::bigint[]) AND kind = 2"

# What is done in the transaction of an entry, before it; returns what the entry says of it.
Work = Callable[[Statements], Awaitable[Mapping[str, str]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """An entry that has no number yet."""

    kind: Kind
    record: Record = SELF
    outcome: Outcome = field(default_factory=Outcome)
    intent: int = 0
    count: int = 1
    work: Work | None = None


@dataclass(frozen=True, slots=True)
class _Waiting:
    draft: Draft
    number: asyncio.Future[int]


class AuditLog:
    """The log in a database. `running` appends for the life of the context; `head` is its end as it was seen last."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self.head = Head()
        # What an operator should know of.
        self.warnings: tuple[str, ...] = ()
        # Set whenever entries were appended.
        self.grown = asyncio.Event()
        self._database = database
        self._clock = clock
        self._waiting: deque[_Waiting] = deque()
        self._wake = asyncio.Event()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Append what callers ask for."""
        task = asyncio.create_task(self._append_all())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            for each in self._waiting:
                each.number.cancel()

    async def intent(self, record: Record) -> int:
        """Record that something is about to be done; return the number of the entry."""
        check_record(record)
        return await self._append(Draft(kind=Kind.INTENT, record=record))

    async def outcome(self, intent: int, outcome: Outcome) -> int:
        """Record how an intent ended, once; return the number of the entry. NotFoundError for no intent."""
        if not 0 < intent <= MAX_COUNT:
            raise invalid("intent_number", "must be the number of an intent")
        check_outcome(outcome)
        return await self._append(Draft(kind=Kind.OUTCOME, intent=intent, outcome=outcome))

    async def event(self, record: Record, outcome: Outcome | None = None, count: int = 1) -> int:
        """Record something of one entry; return its number."""
        check_record(record)
        outcome = outcome or Outcome()
        check_outcome(outcome)
        if count < 1:
            raise invalid("occurrence_count", "must not be negative")
        return await self._append(Draft(kind=Kind.EVENT, record=record, outcome=outcome, count=count))

    async def own_event(self, action: str, of: str, details: Mapping[str, str]) -> int:
        """Record something that the log itself did."""
        return await self._append(Draft(kind=Kind.EVENT, record=_own(action, of, details)))

    async def erase(self, subject: str) -> tuple[int, int]:
        """Delete the keys of a subject and record it, both or neither; return how many, and the number of the entry."""
        check_opaque("subject", subject, MAX_SUBJECT, required=True)
        count = 0

        async def work(statements: Statements) -> Mapping[str, str]:
            nonlocal count
            count = await erase(subject, statements)
            return {"keys": str(count)}

        number = await self._append(Draft(kind=Kind.EVENT, record=_own(SUBJECT_ERASED, subject, {}), work=work))
        return count, number

    async def _append(self, draft: Draft) -> int:
        if len(self._waiting) >= MAX_WAITING:
            raise ResourceExhaustedError(f"more than {MAX_WAITING} audit entries are waiting")
        waiting = _Waiting(draft, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        self._wake.set()
        return await waiting.number

    async def _append_all(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while batch := self._batch():
                await self._commit(batch)

    def _batch(self) -> list[_Waiting]:
        """Return who is next and was not given up: many, or one that does something else in its transaction too."""
        batch: list[_Waiting] = []
        while self._waiting and len(batch) < MAX_BATCH:
            if batch and self._waiting[0].draft.work is not None:
                break
            each = self._waiting.popleft()
            if not each.number.cancelled():
                batch.append(each)
                if each.draft.work is not None:
                    break
        return batch

    async def _commit(self, batch: Sequence[_Waiting]) -> None:
        drafts = [each.draft for each in batch]
        numbers: Sequence[int | OpenManagerError]
        try:
            self.head, numbers = await self._database.transaction(lambda statements: self._write(drafts, statements))
        except DataLossError as err:
            self.warnings = (err.message,)
            log.exception("the audit log is damaged")
            numbers = [store_unavailable("PostgreSQL") for _ in batch]
        except OpenManagerError:
            numbers = [store_unavailable("PostgreSQL") for _ in batch]
        except Exception:
            log.exception("audit entries could not be written")
            numbers = [store_unavailable("PostgreSQL") for _ in batch]
        for each, found in zip(batch, numbers, strict=True):
            if each.number.done():
                continue
            if isinstance(found, OpenManagerError):
                each.number.set_exception(found)
            else:
                each.number.set_result(found)
        self.grown.set()

    async def _write(
        self, drafts: Sequence[Draft], statements: Statements
    ) -> tuple[Head, Sequence[int | OpenManagerError]]:
        await lock(statements)
        head, restored = await catch_up(self.head, statements)
        page = _Page(head, self._clock.now_nanos())
        if restored:
            known = {
                "known_size": str(self.head.size),
                "found_size": str(head.size),
                "known_log": self.head.log_id.hex(),
            }
            page.add(Draft(kind=Kind.EVENT, record=_own(LOG_RESTORED, "", known)), {})
            self.warnings = (f"the audit log came back with {head.size} of {self.head.size} entries",)
            log.error("PostgreSQL: %s", self.warnings[0])
        told = await _told(drafts, statements)
        page.keys = await subject_keys({_subject(each.record) for each in drafts if _personal(each.record)}, statements)
        numbers: list[int | OpenManagerError] = []
        for draft in drafts:
            if draft.kind == Kind.OUTCOME:
                numbers.append(told.outcome(draft, page))
            else:
                numbers.append(page.add(draft, await draft.work(statements) if draft.work else {}))
        if page.entries:
            await statements.fetch(_INSERT, *page.columns())
        if page.tiles:
            await statements.fetch(_TILES, *zip(*page.tiles, strict=True))
        return page.head(), numbers


class _Page:
    """The entries of one transaction, in a row."""

    def __init__(self, head: Head, now: int) -> None:
        self._log_id, self._leaf, self._time = head.log_id, head.leaf, head.time_unix_nanos
        self._tree = head.tree.copy()
        self._now = now
        self._hashes: list[bytes] = []
        self._encoded: list[bytes] = []
        self.entries: list[Entry] = []
        self.tiles: list[tuple[int, bytes]] = []
        self.keys: Mapping[str, SubjectKey] = {}
        if self._time - now > CLOCK_NANOS:
            details = {"from_unix_nanos": str(self._time), "to_unix_nanos": str(now)}
            self._time = now
            self.add(Draft(kind=Kind.EVENT, record=_own(CLOCK_SET_BACK, "", details)), {})

    def add(self, draft: Draft, more: Mapping[str, str]) -> int:
        """Add an entry and return its number."""
        record, outcome = draft.record, draft.outcome
        self._time = max(self._time, self._now)
        personal, subject = _personal(record), _subject(record)
        entry = Entry(
            number=self._tree.size + 1,
            time_unix_nanos=self._time,
            kind=draft.kind,
            actor=record.actor,
            via=record.via,
            action=record.action,
            object=record.object,
            reason=outcome.reason,
            request_id=record.request_id,
            trace_id=record.trace_id,
            policy_version=record.policy_version,
            subject=subject if personal else "",
            intent=draft.intent,
            code=outcome.code,
            count=draft.count,
            request_hash=record.request_hash,
            after_hash=outcome.after_hash,
            sealed=self.keys[subject].seal(personal) if personal else b"",
            details={**record.details, **more},
        )
        data = encode(entry)
        self._leaf = leaf_hash(data)
        for level, index, node in self._tree.append(self._leaf):
            if level == TILE_LEVEL:
                self.tiles.append((index, node))
        self.entries.append(entry)
        self._encoded.append(data)
        self._hashes.append(self._leaf)
        return entry.number

    def columns(self) -> list[list[Any]]:
        """Return the columns of the table's rows."""
        names = ("kind", "actor", "via", "action", "object", "code", "reason", "request_id", "trace_id", "intent")
        return [
            [entry.number for entry in self.entries],
            self._encoded,
            self._hashes,
            [entry.time_unix_nanos for entry in self.entries],
            *([getattr(entry, name) for entry in self.entries] for name in names),
        ]

    def head(self) -> Head:
        """Return the end of the log once these are in it."""
        return Head(log_id=self._log_id, tree=self._tree, leaf=self._leaf, time_unix_nanos=self._time)


class _Told:
    """The intents that drafts tell the outcomes of."""

    def __init__(self, intents: Mapping[int, Entry], outcomes: dict[int, int]) -> None:
        self._intents, self._outcomes = intents, outcomes

    def outcome(self, draft: Draft, page: _Page) -> int | OpenManagerError:
        """Add an outcome with what its intent says; the number of the first one where there is one already."""
        if draft.intent in self._outcomes:
            return self._outcomes[draft.intent]
        intent = self._intents.get(draft.intent)
        if intent is None:
            return NotFoundError("there is no such intent", resource=f"auditEntry/{draft.intent}")
        record = Record(
            actor=intent.actor,
            via=intent.via,
            action=intent.action,
            object=intent.object,
            request_id=intent.request_id,
            trace_id=intent.trace_id,
            policy_version=intent.policy_version,
        )
        number = page.add(Draft(kind=Kind.OUTCOME, record=record, outcome=draft.outcome, intent=draft.intent), {})
        self._outcomes[draft.intent] = number
        return number


async def _told(drafts: Sequence[Draft], statements: Statements) -> _Told:
    wanted = [draft.intent for draft in drafts if draft.kind == Kind.OUTCOME]
    if not wanted:
        return _Told({}, {})
    intents = {row["number"]: decode(bytes(row["entry"])) for row in await statements.fetch(_INTENTS, wanted)}
    outcomes = {row["intent"]: row["number"] for row in await statements.fetch(_OUTCOMES, wanted)}
    return _Told(intents, outcomes)


def _subject(record: Record) -> str:
    return record.subject or record.actor


def _personal(record: Record) -> Mapping[str, str]:
    return {**record.personal, SOURCE: record.source} if record.source else record.personal


def _own(action: str, of: str, details: Mapping[str, str]) -> Record:
    return Record(actor=SELF.actor, via=SELF.via, action=action, object=of, details=details)

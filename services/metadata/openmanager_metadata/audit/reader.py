"""Reading the audit log: lists, single entries with their proof, the file, checkpoints, how it is."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from openmanager import filter as entry_filter
from openmanager import page
from openmanager.audit import Kind
from openmanager.errors import (
    DataLossError,
    InvalidArgumentError,
    NotFoundError,
    OutOfRangeError,
    Reason,
    invalid,
    missing,
)
from openmanager.merkle import CompactRange, fold, inclusion_ranges, subtrees
from openmanager.runtime.clock import Clock
from openmanager_metadata.audit import where
from openmanager_metadata.audit.checkpoint import checkpoint, newest_checkpoint
from openmanager_metadata.audit.entry import Checkpoint, Entry, decode, file_head, framed
from openmanager_metadata.audit.head import TILE, TILE_LEVEL, Head, edge, load, log_of
from openmanager_metadata.audit.seal import opened
from openmanager_metadata.backends import Database, Row, Statements

# An intent without an outcome for so long is an orphan: whoever recorded it is gone.
ORPHAN_NANOS = 60 * 10**9
# Intents are looked through so many entries at a time, and so often a call.
SCANNED, MAX_SCANS = 50_000, 10
# What one message may take of entries, below the 4 MiB of a message.
# A page is looked for in windows of so many numbers, four times as many while that is quick, for at most so long.
WINDOW, QUICK_SECONDS, SEARCH_SECONDS = 50_000, 0.03, 0.4
PAGE_BYTES, CHUNK_BYTES, CHUNK_ENTRIES = 2_000_000, 1 << 20, 2000

_FIRST = "SELECT min(number) AS number FROM audit_entries"
_OUTCOMES = "SELECT intent FROM audit_entries WHERE intent = ANY($1::bigint[]) AND kind = 2"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """An entry as it is shown: `personal` is None where it cannot be read any more."""

    entry: Entry
    canonical: bytes
    personal: Mapping[str, str] | None = None
    orphaned: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Proven:
    """An entry with the newest checkpoint and the hashes that lead to its root; without one, not covered yet."""

    shown: Shown
    checkpoint: Checkpoint | None
    hashes: Sequence[bytes] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """A part of the file, and the number that comes next."""

    data: bytes
    next_number: int
    log_id: bytes
    last_number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How the log is."""

    head: Head
    first_number: int
    checkpoint: Checkpoint | None
    orphans: Sequence[int] = field(default_factory=tuple)
    # Up to which number intents were looked through for those without an outcome.
    scanned: int = 0


class _Search:
    """A page that is looked for in windows of numbers, so that no statement takes long whatever the filter.

    `passed` is the last number that was looked at, `is_over` that there are no more.
    """

    def __init__(self, node: entry_filter.Node | None, wanted: int, order: str, after: int | None) -> None:
        self.rows: list[Row] = []
        self.window = WINDOW
        self.is_over = False
        self.passed = after or 0
        self._node, self._wanted, self._order, self._after = node, wanted, order, after
        self._descends = order.endswith("DESC")
        self._first = self._last = 0

    def begin(self, first: int, last: int) -> None:
        """Say what there is."""
        self._first, self._last = first, last
        if self._after is None:
            self.passed = last + 1 if self._descends else first - 1

    @property
    def is_due(self) -> bool:
        """Whether there is more to look through, and room for it."""
        return len(self.rows) < self._wanted and not self.is_over

    def statement(self) -> tuple[str, list[Any]]:
        """Return what to ask next."""
        low, high = self._bounds()
        arguments: list[Any] = [low, high, self._wanted - len(self.rows)]
        condition = where.sql(self._node, arguments)
        sql = (
            f"SELECT number, entry FROM audit_entries WHERE number > $1 AND number <= $2 AND {condition}"
            f" ORDER BY {self._order} LIMIT $3"
        )
        return sql, arguments

    def take(self, rows: Sequence[Row]) -> None:
        """Take what was found."""
        low, high = self._bounds()
        self.rows.extend(rows)
        self.passed = low + 1 if self._descends else high
        self.is_over = len(self.rows) < self._wanted and (low < self._first if self._descends else high >= self._last)

    def _bounds(self) -> tuple[int, int]:
        """Return the window: numbers above the first, up to the second."""
        if self._descends:
            high = min(self.passed - 1, self._last)
            return max(self._first - 1, high - self.window), high
        low = max(self.passed, self._first - 1)
        return low, min(self._last, low + self.window)


class AuditReader:
    """Reads the log of a database."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database, self._clock = database, clock
        # Intents without an outcome among the first so many entries: those that came after are looked at once a call.
        self._orphans: dict[int, int] = {}
        self._scanned = 0
        self._log_id = b""

    async def list(
        self, text: str, order_by: str, size: int, token: str, *, full: bool = False
    ) -> tuple[Sequence[Shown], str]:
        """Return a page of entries and the next token; with `full` personal data is read too."""
        size, node = page.page_size(size), where.checked(text)
        order = _order(order_by, "number", default="number desc")
        key = ("audit", text, order)
        search = _Search(node, size + 1, order, _number(page.decode_token(key, token)))
        await self._search(search)
        some = _fitting(search.rows[:size])
        after = some[-1]["number"] if len(some) < len(search.rows) else search.passed
        more = page.encode_token(key, [str(after)]) if len(some) < len(search.rows) or not search.is_over else ""
        return await self._shown(some, full=full), more

    async def _search(self, search: _Search) -> None:
        """Look through the log window by window, for as long as a page may take; what is quick is looked through faster."""
        rows = await self._database.fetch("SELECT min(number) AS first, max(number) AS last FROM audit_entries")
        if not rows[0]["last"]:
            search.is_over = True
            return
        search.begin(rows[0]["first"], rows[0]["last"])
        began = self._clock.monotonic()
        while search.is_due and self._clock.monotonic() - began < SEARCH_SECONDS:
            start = self._clock.monotonic()
            sql, arguments = search.statement()
            search.take(await self._database.fetch(sql, *arguments))
            if self._clock.monotonic() - start < QUICK_SECONDS:
                search.window *= 4

    async def get(self, number: int) -> Proven:
        """Return one entry and its proof."""
        if number <= 0:
            raise missing("number") if number == 0 else invalid("number", "must be at least 1")

        async def work(statements: Statements) -> tuple[Row, Checkpoint | None, Sequence[bytes]]:
            rows = await statements.fetch("SELECT number, entry FROM audit_entries WHERE number = $1", number)
            if not rows:
                raise await _gone(number, statements)
            log_id = await log_of(statements)
            newest = await newest_checkpoint(statements, log_id)
            if newest is None or newest.size < number:
                return rows[0], None, ()
            return rows[0], newest, await _proof(number - 1, newest.size, statements)

        row, newest, hashes = await self._database.transaction(work, writes=False)
        (shown,) = await self._shown([row], full=True)
        return Proven(shown=shown, checkpoint=newest, hashes=hashes)

    async def export(self, start: int) -> AsyncIterator[Chunk]:
        """Yield the file from the entry `start` on; from 0 the whole of it, with its head."""
        if start < 0:
            raise invalid("from_number", "must not be negative")
        head = await self._database.transaction(load, writes=False)
        first = await self._first()
        if 0 < start < first:
            raise OutOfRangeError(f"the entries before {first} were deleted", reason=Reason.HISTORY_COMPACTED)
        if start > head.size + 1:
            raise OutOfRangeError("the log is shorter", reason=Reason.POSITION_OUT_OF_RANGE, field="from_number")
        before = await self._database.transaction(
            lambda statements: edge((first or 1) // TILE, statements), writes=False
        )
        begin = file_head(head.log_id, before.size + 1, before.hashes) if start == 0 else b""
        at = start or before.size + 1
        yield Chunk(data=begin, next_number=at, log_id=head.log_id, last_number=head.size)
        while at <= head.size:
            rows = await self._database.fetch(
                "SELECT number, entry FROM audit_entries WHERE number >= $1 AND number <= $2 ORDER BY number LIMIT $3",
                at,
                head.size,
                CHUNK_ENTRIES,
            )
            if not rows:
                raise OutOfRangeError(f"the entries from {at} on were deleted", reason=Reason.HISTORY_COMPACTED)
            some = _fitting(rows, CHUNK_BYTES)
            # What is not there is left out, as it is: the verifier says what is missing.
            at = some[-1]["number"] + 1
            data = b"".join(framed(bytes(row["entry"])) for row in some)
            yield Chunk(data=data, next_number=at, log_id=head.log_id, last_number=head.size)

    async def checkpoints(self, order_by: str, size: int, token: str) -> tuple[Sequence[Checkpoint], str]:
        """Return a page of checkpoints and the next token."""
        size = page.page_size(size)
        order = _order(order_by, "size", default="size")
        key = ("checkpoints", order)
        after = _number(page.decode_token(key, token))
        arguments = [size + 1] if after is None else [size + 1, after]
        sign = "<" if order.endswith("DESC") else ">"
        condition = "true" if after is None else f"size {sign} $2"
        rows = await self._database.fetch(
            f"SELECT * FROM audit_checkpoints WHERE {condition} ORDER BY {order} LIMIT $1", *arguments
        )
        more = page.encode_token(key, [str(rows[size - 1]["size"])]) if len(rows) > size else ""
        log_id = await log_of(self._database)
        return [checkpoint(row, log_id) for row in rows[:size]], more

    async def standing(self) -> Standing:
        """Return how the log is."""

        async def work(statements: Statements) -> tuple[Head, Checkpoint | None]:
            head = await load(statements)
            return head, await newest_checkpoint(statements, head.log_id)

        head, newest = await self._database.transaction(work, writes=False)
        orphans = await self.orphans(head)
        return Standing(
            head=head, first_number=await self._first(), checkpoint=newest, orphans=orphans, scanned=self._scanned
        )

    async def orphans(self, head: Head) -> Sequence[int]:
        """Return the intents that have had no outcome for more than 60 s, the newest first."""
        if head.size < self._scanned or head.log_id != self._log_id:
            self._orphans, self._scanned, self._log_id = {}, 0, head.log_id
        for _ in range(MAX_SCANS):
            if self._scanned >= head.size:
                break
            until = min(head.size, self._scanned + SCANNED)
            rows = await self._database.fetch(
                "SELECT number, time_unix_nanos FROM audit_entries i WHERE kind = 1 AND number > $1 AND number <= $2"
                " AND NOT EXISTS (SELECT FROM audit_entries o WHERE o.intent = i.number AND o.kind = 2)",
                self._scanned,
                until,
            )
            self._orphans |= {row["number"]: row["time_unix_nanos"] for row in rows}
            self._scanned = until
        if self._orphans:
            told = await self._database.fetch(_OUTCOMES, list(self._orphans))
            for row in told:
                self._orphans.pop(row["intent"], None)
        now = self._clock.now_nanos()
        return sorted((each for each, time in self._orphans.items() if now - time > ORPHAN_NANOS), reverse=True)

    async def _shown(self, rows: Sequence[Row], *, full: bool) -> Sequence[Shown]:
        entries = [_decoded(row) for row in rows]
        keys = await opened(entries, self._database)
        open_intents = [entry.number for entry in entries if entry.kind == Kind.INTENT]
        told = await self._database.fetch(_OUTCOMES, open_intents) if open_intents else []
        over = {row["intent"] for row in told}
        now = self._clock.now_nanos()
        found = []
        for row, entry in zip(rows, entries, strict=True):
            personal = keys.get(entry.number) if entry.sealed else {}
            orphaned = entry.kind == Kind.INTENT and entry.number not in over
            found.append(
                Shown(
                    entry=entry,
                    canonical=bytes(row["entry"]),
                    personal=personal if full or personal is None else {},
                    orphaned=orphaned and now - entry.time_unix_nanos > ORPHAN_NANOS,
                )
            )
        return found

    async def _first(self) -> int:
        return (await self._database.fetch(_FIRST))[0]["number"] or 0


async def _proof(index: int, size: int, statements: Statements) -> Sequence[bytes]:
    """Return the hashes that lead from a leaf to the root of the tree of a size, from the leaf up."""
    tiles = await statements.fetch("SELECT index, hash FROM audit_tiles WHERE index < $1", size // TILE)
    nodes = {(TILE_LEVEL, row["index"]): bytes(row["hash"]) for row in tiles}
    # Every leaf that is needed is in the tile of the entry, or in the last one, which is not whole.
    for tile in {index // TILE, size // TILE}:
        rows = await statements.fetch(
            "SELECT number, leaf_hash FROM audit_entries WHERE number > $1 AND number <= $2",
            tile * TILE,
            min(size, (tile + 1) * TILE),
        )
        nodes |= {(0, row["number"] - 1): bytes(row["leaf_hash"]) for row in rows}
    try:
        return [
            fold([_node(nodes, level, place) for level, place in subtrees(start, end)])
            for start, end in inclusion_ranges(index, size)
        ]
    except KeyError as err:
        raise DataLossError("the audit log has lost a part of its tree") from err


def _node(nodes: Mapping[tuple[int, int], bytes], level: int, index: int) -> bytes:
    """Return the hash of a perfect subtree from those below it that are known; KeyError where one is missing."""
    known = TILE_LEVEL if level >= TILE_LEVEL else 0
    if level == known:
        return nodes[level, index]
    below = CompactRange()
    for each in range(index << (level - known), (index + 1) << (level - known)):
        below.append(nodes[known, each])
    return below.root()


async def _gone(number: int, statements: Statements) -> NotFoundError | OutOfRangeError:
    first = (await statements.fetch(_FIRST))[0]["number"] or 0
    if number < first:
        return OutOfRangeError(f"the entries before {first} were deleted", reason=Reason.HISTORY_COMPACTED)
    return NotFoundError("there is no such entry", resource=f"auditEntry/{number}")


def _decoded(row: Row) -> Entry:
    try:
        return decode(bytes(row["entry"]))
    except ValueError as err:
        raise DataLossError(
            "what is stored of the entry cannot be read", resource=f"auditEntry/{row['number']}"
        ) from err


def _fitting(rows: Sequence[Row], room: int = PAGE_BYTES) -> Sequence[Row]:
    """Return as many rows, at least one, as go into one message."""
    for at, row in enumerate(rows):
        # Twice: the same texts with the names of fields around them.
        room -= len(row["entry"]) + 64
        if room < 0 and at:
            return rows[:at]
    return rows


def _order(order_by: str, column: str, *, default: str) -> str:
    """Return the order as SQL; InvalidArgumentError for another."""
    text = order_by.strip() or default
    if text not in {column, f"{column} asc", f"{column} desc"}:
        raise invalid("order_by", f"must be {column}, with “ desc” for descending")
    return f"{column} DESC" if text.endswith("desc") else f"{column} ASC"


def _number(after: Sequence[str] | None) -> int | None:
    if after is None:
        return None
    if not after[0].isascii() or not after[0].isdigit() or len(after[0]) > 18:
        raise InvalidArgumentError("invalid page token", reason=Reason.INVALID_PAGE_TOKEN, field="page_token")
    return int(after[0])

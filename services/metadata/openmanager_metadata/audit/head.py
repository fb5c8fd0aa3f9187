"""Where the log ends: the tree's right edge and the newest entry, as one database has them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from openmanager.errors import DataLossError
from openmanager.merkle import CompactRange
from openmanager_metadata.backends import AUDIT_LOCK, Row, Statements

TILE_LEVEL = 10
TILE = 1 << TILE_LEVEL
# More than so many new leaves are not read one by one.
MAX_BEHIND = 4 * TILE

_NEWEST = "SELECT number, time_unix_nanos, leaf_hash FROM audit_entries ORDER BY number DESC LIMIT 1"
_LEAVES = (
    "SELECT number, time_unix_nanos, leaf_hash FROM audit_entries WHERE number >= $1 AND number <= $2 ORDER BY number"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """The end of the log. `tree` covers all entries, `leaf` and `time_unix_nanos` are of the newest."""

    log_id: bytes = b""
    tree: CompactRange = field(default_factory=CompactRange)
    leaf: bytes = b""
    time_unix_nanos: int = 0

    @property
    def size(self) -> int:
        """How many entries there are."""
        return self.tree.size


async def log_of(statements: Statements) -> bytes:
    """Return the id of the log, 16 bytes."""
    found: bytes = (await statements.fetch("SELECT id FROM audit_log"))[0]["id"].bytes
    return found


async def lock(statements: Statements) -> None:
    """Have the end of the log for oneself until the transaction ends: to append, to sign, to delete."""
    await statements.fetch("SELECT pg_advisory_xact_lock($1)", AUDIT_LOCK)


async def catch_up(known: Head, statements: Statements) -> tuple[Head, bool]:
    """Return the end of the log, and whether it is another than the one that was known with what came after it.

    The first is cheap where nobody else has appended. The second is true of a database that came back empty or old.
    """
    newest = await statements.fetch(_NEWEST)
    size = newest[0]["number"] if newest else 0
    if known.log_id and size == known.size and (not size or bytes(newest[0]["leaf_hash"]) == known.leaf):
        return known, False
    if known.log_id and 0 < known.size < size <= known.size + MAX_BEHIND:
        rows = await statements.fetch(_LEAVES, known.size, size)
        if bytes(rows[0]["leaf_hash"]) == known.leaf:
            return _grown(known.log_id, known.tree.copy(), rows[1:]), False
    found = await load(statements)
    return found, bool(known.size) and (found.size < known.size or found.log_id != known.log_id)


async def load(statements: Statements) -> Head:
    """Return the end of the log from what is stored: whole tiles, and the leaves after them."""
    log_id = await log_of(statements)
    newest = await statements.fetch(_NEWEST)
    size = newest[0]["number"] if newest else 0
    tree = await edge(size // TILE, statements)
    if tree.size == size:
        newest_leaf = bytes(newest[0]["leaf_hash"]) if newest else b""
        time = newest[0]["time_unix_nanos"] if newest else 0
        return Head(log_id=log_id, tree=tree, leaf=newest_leaf, time_unix_nanos=time)
    return _grown(log_id, tree, await statements.fetch(_LEAVES, tree.size + 1, size))


async def edge(tiles: int, statements: Statements) -> CompactRange:
    """Return the right edge of the tree over the first so many whole tiles; DataLossError when one is not there."""
    rows = await statements.fetch("SELECT index, hash FROM audit_tiles WHERE index < $1 ORDER BY index", tiles)
    if len(rows) != tiles:
        raise DataLossError("the audit log has lost a part of its tree")
    upper = CompactRange()
    for row in rows:
        upper.append(bytes(row["hash"]))
    return CompactRange(tiles * TILE, upper.hashes)


def _grown(log_id: bytes, tree: CompactRange, rows: Sequence[Row]) -> Head:
    for row in rows:
        if row["number"] != tree.size + 1:
            raise DataLossError("the audit log has lost an entry", resource=f"auditEntry/{tree.size + 1}")
        tree.append(bytes(row["leaf_hash"]))
    return Head(
        log_id=log_id, tree=tree, leaf=bytes(rows[-1]["leaf_hash"]), time_unix_nanos=rows[-1]["time_unix_nanos"]
    )

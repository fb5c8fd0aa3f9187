"""Giving users, keys and sessions back to a database that has lost them: one that was revoked must not come back to life."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any
from uuid import UUID

from openmanager_metadata.directory import SESSIONS, TABLES, Directory

_JSON = frozenset({"grants"})


async def give_back(connection: Any, directory: Directory, taken: datetime, *, since: datetime | None = None) -> int:
    """Write what the directory holds to a database, as far as it was written after `since`; return how many rows changed.

    Rows that it has, and that are older than the copy of the time `taken` without being in it, had been removed since.
    """
    if not directory.known:
        return 0
    changed = 0
    for table in TABLES:
        rows = list(directory.rows[table].values())
        if newest := [row for row in rows if since is None or row["updated_at"] > since]:
            documents = json.dumps([_document(row) for row in newest])
            changed += await connection.fetchval(_statement(table, list(newest[0].keys())), documents)
        # Sessions that have ended are not remembered, and are no loss.
        living = " AND ends > now()" if table == SESSIONS else ""
        gone = f"WITH gone AS (DELETE FROM {table} WHERE updated_at <= $1 AND NOT id = ANY($2){living} RETURNING 1)"
        changed += await connection.fetchval(f"{gone} SELECT count(*) FROM gone", taken, [row["id"] for row in rows])
    return changed


def _statement(table: str, columns: list[str]) -> str:
    sets = ", ".join(f"{name} = excluded.{name}" for name in columns if name != "id")
    return (
        f"WITH back AS (INSERT INTO {table} AS t SELECT * FROM jsonb_populate_recordset(NULL::{table}, $1::jsonb)"
        f" ON CONFLICT (id) DO UPDATE SET {sets} WHERE t.version < excluded.version RETURNING 1)"
        " SELECT count(*) FROM back"
    )


def _document(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _plain(name, value) for name, value in row.items()}


def _plain(name: str, value: Any) -> Any:
    match value:
        case bytes():
            return f"\\x{value.hex()}"
        case datetime():
            return value.isoformat()
        case UUID():
            return str(value)
        case str() if name in _JSON:
            return json.loads(value)
        case _:
            return value

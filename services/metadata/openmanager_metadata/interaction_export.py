"""Exports of interactions: JSON lines or Parquet in chunks, the oldest first, to be gone on with after any of them."""

from __future__ import annotations

import asyncio
import io
import json
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from openmanager import page
from openmanager.errors import InvalidArgumentError, Reason
from openmanager_metadata.backends import Database, Row, Statements
from openmanager_metadata.interaction import Interaction
from openmanager_metadata.interaction_filter import Where
from openmanager_metadata.interaction_redaction import redacted
from openmanager_metadata.interaction_search import PLAN, estimate, fetch_rows, parse_moment

JSONL, PARQUET = "jsonl", "parquet"
# A chunk holds so many interactions, of so many bytes; as JSON a text may become twice as long.
CHUNK_ROWS, CHUNK_BYTES = 500, 1_500_000
_FIELDS = (
    "id",
    "session_id",
    "subject",
    "trace_id",
    "query",
    "response",
    "confidence",
    "rating",
    "rating_comment",
    "rating_time",
    "model",
    "intent",
    "latency_seconds",
    "prompt_token_count",
    "response_token_count",
    "servers",
    "metrics",
    "start_time",
    "end_time",
    "labels",
    "create_time",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportQuery:
    """What ExportInteractions asks for; `redactions` are kinds of `interaction_redaction`."""

    filter: str
    form: str
    redactions: tuple[str, ...]
    resume_token: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """Some interactions as bytes."""

    data: bytes
    count: int
    done: int
    resume_token: str


@dataclass(slots=True)
class _Position:
    """How far an export is: behind `moment` and `id`, until `end`, `done` interactions."""

    end: datetime
    moment: datetime = datetime.min  # noqa: DTZ901  (as the database has times)
    id: uuid.UUID = uuid.UUID(int=0)
    done: int = 0


class Export:
    """One export. `begin` returns about how many interactions it has; then `chunks` yields them."""

    def __init__(self, database: Database, query: ExportQuery) -> None:
        self._database = database
        self._query = query
        self._bound = (query.filter, query.form, query.redactions)
        self._position = _resumed(self._bound, query.resume_token)
        self._where()

    def _where(self) -> Where:
        return Where(self._query.filter)

    async def begin(self) -> int:
        """Set the end of what is exported, and return PostgreSQL's estimate of how many that are."""
        where = self._where()

        async def work(database: Statements) -> tuple[datetime, int]:
            rows = await database.fetch("SELECT localtimestamp AS now")
            return rows[0]["now"], await estimate(database, where.sql, where.arguments)

        now, count = await self._database.transaction(work, writes=False)
        if self._position is None:
            self._position = _Position(now)
        return count

    async def chunks(self) -> AsyncIterator[Chunk]:
        """Yield chunk after chunk: each is read when the one before was taken."""
        position = self._position
        if position is None:
            return
        while True:
            keys, found = await self._read(position)
            if not keys:
                if not position.done:  # a Parquet file of nothing has its columns
                    yield await self._chunk(position, [])
                return
            # What does not fit comes with the next; what was erased in between is passed over.
            last = next((at for at, key in enumerate(keys) if found and str(key["id"]) == found[-1].id), len(keys) - 1)
            position.moment, position.id = keys[last]["created_at"], keys[last]["id"]
            position.done += len(found)
            if found:
                yield await self._chunk(position, found)

    async def _chunk(self, position: _Position, found: Sequence[Interaction]) -> Chunk:
        data = await asyncio.to_thread(encode, found, self._query.form, self._query.redactions)
        parts = [position.end.isoformat(), position.moment.isoformat(), str(position.id), str(position.done)]
        token = page.encode_token(self._bound, parts)
        return Chunk(data=data, count=len(found), done=position.done, resume_token=token)

    async def _read(self, position: _Position) -> tuple[list[Row], list[Interaction]]:
        where = self._where()
        where.add(f"created_at <= {where.parameter(position.end)}")
        where.add(f"(created_at, id) > ({where.parameter(position.moment)}, {where.parameter(position.id)})")
        sql = f"SELECT id, created_at FROM ai_interactions WHERE {where.sql} ORDER BY created_at, id LIMIT {CHUNK_ROWS}"

        async def work(database: Statements) -> tuple[list[Row], list[Interaction]]:
            await database.fetch(PLAN)
            keys = await database.fetch(sql, *where.arguments)
            return keys, await fetch_rows(database, [key["id"] for key in keys], full=True, room=CHUNK_BYTES)

        return await self._database.transaction(work, writes=False)


def _resumed(bound: tuple[object, ...], text: str) -> _Position | None:
    try:
        token = page.decode_token(bound, text, parts=4)
        if token is None:
            return None
        return _Position(parse_moment(token[0]), parse_moment(token[1]), uuid.UUID(token[2]), int(token[3]))
    except (InvalidArgumentError, ValueError, OverflowError) as err:
        raise InvalidArgumentError(
            "invalid resume token", reason=Reason.INVALID_PAGE_TOKEN, field="resume_token"
        ) from err


def encode(found: Sequence[Interaction], form: str, redactions: Sequence[str]) -> bytes:
    """Return interactions as JSON lines or as a Parquet file."""
    rows = [_row(redacted(each, redactions)) for each in found]
    return _parquet(rows) if form == PARQUET else _jsonl(rows)


def _row(each: Interaction) -> dict[str, Any]:
    latency = each.latency.total_seconds() if each.latency is not None else None
    row = {name: latency if name == "latency_seconds" else getattr(each, name) for name in _FIELDS}
    return {**row, "servers": list(each.servers), "metrics": list(each.metrics), "labels": dict(each.labels)}


def _jsonl(rows: Sequence[dict[str, Any]]) -> bytes:
    lines = (json.dumps(row, ensure_ascii=False, default=_show_time) for row in rows)
    return "".join(f"{line}\n" for line in lines).encode()


def _show_time(moment: datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")


def _parquet(rows: Sequence[dict[str, Any]]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    text, moment, texts = pa.string(), pa.timestamp("us", "UTC"), pa.list_(pa.string())
    kinds = {
        **dict.fromkeys(("confidence", "latency_seconds"), pa.float64()),
        **dict.fromkeys(("prompt_token_count", "response_token_count"), pa.int64()),
        **dict.fromkeys(("rating_time", "start_time", "end_time", "create_time"), moment),
        **dict.fromkeys(("servers", "metrics"), texts),
        "rating": pa.int32(),
        "labels": pa.map_(text, text),
    }
    schema = pa.schema([(name, kinds.get(name, text)) for name in _FIELDS])
    columns = {name: [row[name] for row in rows] for name in _FIELDS}
    columns["labels"] = [list(labels.items()) for labels in columns["labels"]]
    out = io.BytesIO()
    pq.write_table(pa.table(columns, schema=schema), out, compression="zstd")
    return out.getvalue()

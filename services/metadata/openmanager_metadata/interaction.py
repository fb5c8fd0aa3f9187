"""Interactions: what people asked an AI, what it answered, and how good they found it."""

from __future__ import annotations

import hashlib
import json
import math
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from openmanager.errors import (
    AlreadyExistsError,
    NotFoundError,
    OutOfRangeError,
    Reason,
    invalid,
    missing,
)
from openmanager.frame import check_labels, check_server_id, check_text
from openmanager_metadata.backends import Database, Row, Statements
from openmanager_metadata.sql import aware, plain

MAX_TEXT_BYTES = 256 * 1024
MAX_COMMENT = 4096
MAX_LIST = 100
MAX_METRIC = 512
MAX_TOKENS = 10**9
MAX_LATENCY = timedelta(days=1)
TEXTS = {"session_id": 255, "subject": 255, "trace_id": 64, "model": 100, "intent": 100}
RATINGS = range(1, 6)
# What int64 nanoseconds since the epoch can say: 1677-09-21 to 2262-04-11.
EARLIEST, LATEST = datetime(1677, 9, 22, tzinfo=UTC), datetime(2262, 4, 11, tzinfo=UTC)
# Rows that one statement erases: more would not be done in the time that a statement has.
ERASE_ROWS = 2000

# Everything that is not printed, but tabs and line ends.
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_UUID = re.compile(r"[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Interaction:
    """One question and its answer; None is not known, or not rated."""

    query: str
    id: str = ""
    session_id: str = ""
    response: str = ""
    confidence: float | None = None
    rating: int | None = None
    create_time: datetime | None = None
    subject: str = ""
    trace_id: str = ""
    servers: Sequence[str] = ()
    start_time: datetime | None = None
    end_time: datetime | None = None
    metrics: Sequence[str] = ()
    model: str = ""
    intent: str = ""
    latency: timedelta | None = None
    prompt_token_count: int | None = None
    response_token_count: int | None = None
    rating_comment: str = ""
    rating_time: datetime | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    # Whether the query or the response is only its beginning.
    truncated: bool = False


# The column of each field that a caller gives.
COLUMNS = {
    "session_id": "session_id",
    "query": "query",
    "response": "response",
    "confidence": "confidence",
    "subject": "subject",
    "trace_id": "trace_id",
    "servers": "servers",
    "start_time": "range_start",
    "end_time": "range_end",
    "metrics": "metrics",
    "model": "model",
    "intent": "intent",
    "latency": "latency_seconds",
    "prompt_token_count": "prompt_tokens",
    "response_token_count": "response_tokens",
    "labels": "labels",
}
SELECTED = ", ".join(("id", *COLUMNS.values(), "user_rating", "rating_comment", "rated_at", "created_at"))
_INSERT = (
    f"INSERT INTO ai_interactions (id, {', '.join(COLUMNS.values())})"
    f" VALUES ({', '.join(f'${at}' for at in range(1, len(COLUMNS) + 2))}) RETURNING {SELECTED}"
)


def check_id(text: str, name: str = "id") -> str:
    """Return an id in lower case; InvalidArgumentError naming the field `name` for what is no UUID."""
    if not text:
        raise missing(name)
    if not _UUID.fullmatch(text):
        raise invalid(name, "is not a UUID")
    return text.lower()


def check_long_text(name: str, text: str, limit_bytes: int = MAX_TEXT_BYTES) -> None:
    """Raise InvalidArgumentError for a text that is too long, or has a control character but tabs and line ends."""
    if len(text.encode()) > limit_bytes:
        raise invalid(name, f"is longer than {limit_bytes // 1024} KiB")
    if _CONTROL.search(text):
        raise invalid(name, "has a control character")


def checked(asked: Interaction) -> Interaction:
    """Return an interaction as it can be recorded; InvalidArgumentError or OutOfRangeError naming the field if it cannot."""
    if not asked.query:
        raise missing("interaction.query")
    check_long_text("interaction.query", asked.query)
    check_long_text("interaction.response", asked.response)
    for name, limit in TEXTS.items():
        check_text(f"interaction.{name}", getattr(asked, name), limit)
    check_labels("interaction.labels", asked.labels)
    _check_numbers(asked)
    _check_range(asked)
    return replace(asked, servers=_checked_servers(asked.servers), metrics=_checked_metrics(asked.metrics))


def _check_numbers(asked: Interaction) -> None:
    if asked.confidence is not None and not 0 <= asked.confidence <= 1:
        raise invalid("interaction.confidence", "must be from 0 to 1")
    for name in ("prompt_token_count", "response_token_count"):
        count = getattr(asked, name)
        if count is not None and not 0 <= count <= MAX_TOKENS:
            raise invalid(f"interaction.{name}", f"must be from 0 to {MAX_TOKENS:,}")
    if asked.latency is not None and not timedelta() <= asked.latency <= MAX_LATENCY:
        raise invalid("interaction.latency", "must be from 0 to a day")


def check_time(name: str, moment: datetime) -> None:
    """Raise OutOfRangeError for a time that nothing here can be of."""
    if not EARLIEST <= moment <= LATEST:
        raise OutOfRangeError(f"{name} is outside 1677-09-22 to 2262-04-11", field=name)


def _check_range(asked: Interaction) -> None:
    for name in ("start_time", "end_time"):
        if (moment := getattr(asked, name)) is not None:
            check_time(f"interaction.{name}", moment)
    if asked.start_time is not None and asked.end_time is not None and asked.end_time < asked.start_time:
        raise invalid("interaction.end_time", "is before start_time")


def _checked_servers(servers: Sequence[str]) -> tuple[str, ...]:
    if len(servers) > MAX_LIST:
        raise invalid("interaction.servers", f"has more than {MAX_LIST} entries")
    return tuple(dict.fromkeys(check_server_id(each, "interaction.servers") for each in servers))


def _checked_metrics(metrics: Sequence[str]) -> tuple[str, ...]:
    if len(metrics) > MAX_LIST:
        raise invalid("interaction.metrics", f"has more than {MAX_LIST} entries")
    for each in metrics:
        if not each:
            raise invalid("interaction.metrics", "has an empty entry")
        check_text("interaction.metrics", each, MAX_METRIC)
    return tuple(dict.fromkeys(metrics))


def of_row(row: Row) -> Interaction:
    """Return the interaction of a row of the columns SELECTED; `truncated` where the row says so."""
    # What an earlier program wrote may be no number.
    latency, confidence = (
        value if value is not None and math.isfinite(value) else None
        for value in (row["latency_seconds"], row["confidence"])
    )
    labels = json.loads(row["labels"]) if row["labels"] != "{}" else {}
    return Interaction(
        id=str(row["id"]),
        session_id=row["session_id"] or "",
        query=row["query"] or "",
        response=row["response"] or "",
        confidence=confidence,
        rating=row["user_rating"],
        create_time=aware(row["created_at"]),
        subject=row["subject"],
        trace_id=row["trace_id"],
        servers=tuple(row["servers"]),
        start_time=aware(row["range_start"]),
        end_time=aware(row["range_end"]),
        metrics=tuple(row["metrics"]),
        model=row["model"],
        intent=row["intent"],
        latency=timedelta(seconds=latency) if latency is not None else None,
        prompt_token_count=row["prompt_tokens"],
        response_token_count=row["response_tokens"],
        rating_comment=row["rating_comment"],
        rating_time=aware(row["rated_at"]),
        labels={str(name): str(value) for name, value in labels.items()} if isinstance(labels, dict) else {},
        truncated=bool(row.get("truncated")),
    )


def _values(asked: Interaction) -> dict[str, Any]:
    """Return what is stored, by field."""
    return {
        **{name: getattr(asked, name) for name in COLUMNS},
        "servers": list(asked.servers),
        "metrics": list(asked.metrics),
        "start_time": plain(asked.start_time),
        "end_time": plain(asked.end_time),
        "latency": asked.latency.total_seconds() if asked.latency is not None else None,
        "labels": json.dumps(dict(asked.labels), ensure_ascii=False, sort_keys=True),
    }


def _digest(values: Mapping[str, Any]) -> bytes:
    """Return a hash that two requests share only when they ask for the same."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).digest()


async def _repeated(database: Statements, request_id: str, digest: bytes) -> Row:
    """Return what an earlier request of the same id recorded; AlreadyExistsError when it recorded something else."""
    rows = await database.fetch(
        "SELECT r.body_hash, i.* FROM interaction_requests r JOIN ai_interactions i ON i.id = r.interaction_id"
        " WHERE r.request_id = $1",
        request_id,
    )
    if not rows or bytes(rows[0]["body_hash"]) != digest:
        raise AlreadyExistsError("request_id was used with another body", reason=Reason.REQUEST_ID_REUSED)
    return rows[0]


class Interactions:
    """Interactions in a database: recorded, rated, erased; `interaction_search.Search` reads them."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(self, asked: Interaction, request_id: str) -> Interaction:
        """Record an interaction; what the same request recorded before is returned as it was then."""
        values = _values(checked(asked))
        check_text("request_id", request_id, 64)
        digest = _digest(values)
        new = uuid.uuid4()

        async def work(database: Statements) -> Row:
            if request_id:
                # A second of the same waits here for the first to commit.
                first = await database.fetch(
                    "INSERT INTO interaction_requests (request_id, body_hash, interaction_id) VALUES ($1, $2, $3)"
                    " ON CONFLICT DO NOTHING RETURNING 1",
                    request_id,
                    digest,
                    new,
                )
                if not first:
                    return await _repeated(database, request_id, digest)
            return (await database.fetch(_INSERT, new, *values.values()))[0]

        made = of_row(await self._database.transaction(work))
        return replace(made, rating=None, rating_comment="", rating_time=None)

    async def forget_requests(self) -> None:
        """Forget the requests of more than a day ago: whoever repeats one now means another."""
        await self._database.fetch("DELETE FROM interaction_requests WHERE created_at < now() - interval '24 hours'")

    async def rate(self, interaction_id: str, rating: int, comment: str) -> Interaction:
        """Rate an interaction, whatever it was rated before."""
        key = check_id(interaction_id)
        if rating not in RATINGS:
            raise invalid("rating", "must be from 1 to 5")
        check_long_text("comment", comment)
        if len(comment) > MAX_COMMENT:
            raise invalid("comment", f"is longer than {MAX_COMMENT:,} characters")
        rows = await self._database.fetch(
            "UPDATE ai_interactions SET user_rating = $2, rating_comment = $3, rated_at = now() WHERE id = $1"
            f" RETURNING {SELECTED}",
            uuid.UUID(key),
            rating,
            comment,
        )
        if not rows:
            raise not_found(key)
        return of_row(rows[0])

    async def count_of(self, *, session_id: str = "", subject: str = "") -> int:
        """Return how many interactions of a session or of a subject there are."""
        column, value = _whose(session_id, subject)
        rows = await self._database.fetch(f"SELECT count(*) AS count FROM ai_interactions WHERE {column} = $1", value)
        return int(rows[0]["count"])

    async def erase(self, *, session_id: str = "", subject: str = "") -> int:
        """Erase the interactions of a session or of a subject and what came with them; return how many these were."""
        column, value = _whose(session_id, subject)

        async def work(database: Statements) -> int:
            gone = await database.fetch(
                f"DELETE FROM ai_interactions WHERE id = ANY(ARRAY(SELECT id FROM ai_interactions WHERE {column} = $1"
                f" LIMIT {ERASE_ROWS})) RETURNING 1",
                value,
            )
            if gone:
                await database.fetch("INSERT INTO interaction_erasures DEFAULT VALUES")
            return len(gone)

        count = 0
        while gone := await self._database.transaction(work):
            count += gone
        return count


def _whose(session_id: str, subject: str) -> tuple[str, str]:
    for column, value in (("session_id", session_id), ("subject", subject)):
        check_text(column, value, TEXTS[column])
        if value:
            return column, value
    raise missing("session_id or subject")


def not_found(interaction_id: str) -> NotFoundError:
    """Return the error for an interaction that does not exist."""
    return NotFoundError("there is no such interaction", resource=f"interaction/{interaction_id}")

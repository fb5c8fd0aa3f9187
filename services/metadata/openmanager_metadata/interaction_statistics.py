"""Statistics of interactions: by model and intent, over time."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from openmanager.errors import Reason, ResourceExhaustedError, invalid
from openmanager_metadata.backends import Database, Row, Statements
from openmanager_metadata.interaction import EARLIEST, check_time
from openmanager_metadata.interaction_filter import Where
from openmanager_metadata.sql import aware, plain

MAX_BUCKETS, MAX_ROWS = 11_000, 4000
MIN_STEP, MAX_STEP = timedelta(seconds=1), timedelta(days=3660)
DEFAULT_RANGE = timedelta(days=30)
MODEL, INTENT = "model", "intent"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """What was recorded in a bucket, of a model and an intent; empty where all are together, None where none is known."""

    start_time: datetime
    model: str
    intent: str
    interaction_count: int
    rated_count: int
    mean_confidence: float | None
    mean_rating: float | None
    latency_p50: timedelta | None
    latency_p95: timedelta | None
    prompt_token_count: int
    response_token_count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StatisticsQuery:
    """What GetInteractionStatistics asks for; `by` are the columns that separate."""

    filter: str
    start_time: datetime | None
    end_time: datetime | None
    step: timedelta | None
    by: tuple[str, ...]


def _range(query: StatisticsQuery, now: datetime) -> tuple[datetime, datetime]:
    """Return the range that is meant, [start, end)."""
    end = query.end_time or now
    check_time("end_time", end)
    start = query.start_time or max(end - DEFAULT_RANGE, EARLIEST)
    check_time("start_time", start)
    if start >= end:
        raise invalid("start_time", "must be before end_time")
    if query.step is None:
        return start, end
    if not MIN_STEP <= query.step <= MAX_STEP:
        raise invalid("step", "must be from a second to 3,660 days")
    if (end - start) / query.step > MAX_BUCKETS:
        raise ResourceExhaustedError(
            f"more than {MAX_BUCKETS:,} buckets: a larger step is needed", reason=Reason.TOO_MANY_BUCKETS
        )
    return start, end


async def statistics(database: Database, query: StatisticsQuery, now: datetime) -> list[Statistics]:
    """Return the statistics by bucket, model and intent."""
    start, end = _range(query, now)
    where = Where(query.filter)
    where.add(f"created_at >= {where.parameter(plain(start))} AND created_at < {where.parameter(plain(end))}")
    if query.step is None:
        bucket = f"{where.parameter(plain(start))}::timestamp"
    else:
        bucket = f"date_bin({where.parameter(query.step)}::interval, created_at, {where.parameter(plain(_EPOCH))})"
    groups = {name: name if name in query.by else "''::text" for name in (MODEL, INTENT)}
    sql = (
        f"SELECT {bucket} AS bucket, {groups[MODEL]} AS model, {groups[INTENT]} AS intent, count(*) AS count,"
        " count(user_rating) AS rated, avg(confidence) AS confidence, avg(user_rating)::float8 AS rating,"
        " percentile_cont(ARRAY[0.5, 0.95]) WITHIN GROUP (ORDER BY latency_seconds) AS latency,"
        " coalesce(sum(prompt_tokens), 0)::bigint AS prompts, coalesce(sum(response_tokens), 0)::bigint AS responses"
        f" FROM ai_interactions WHERE {where.sql} GROUP BY 1, 2, 3 ORDER BY 1, 2, 3 LIMIT {MAX_ROWS + 1}"
    )

    async def work(statements: Statements) -> list[Row]:
        return await statements.fetch(sql, *where.arguments)

    rows = await database.transaction(work, writes=False)
    if len(rows) > MAX_ROWS:
        raise ResourceExhaustedError(
            f"more than {MAX_ROWS:,} rows: a larger step or fewer groups are needed", reason=Reason.TOO_MANY_BUCKETS
        )
    return [_of_row(row) for row in rows]


def _of_row(row: Row) -> Statistics:
    half, most = row["latency"] or (None, None)
    return Statistics(
        start_time=aware(row["bucket"]),
        model=row["model"],
        intent=row["intent"],
        interaction_count=row["count"],
        rated_count=row["rated"],
        mean_confidence=row["confidence"],
        mean_rating=row["rating"],
        latency_p50=None if half is None else timedelta(seconds=half),
        latency_p95=None if most is None else timedelta(seconds=most),
        prompt_token_count=row["prompts"],
        response_token_count=row["responses"],
    )

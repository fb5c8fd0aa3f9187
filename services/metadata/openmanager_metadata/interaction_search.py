"""Lists of interactions: by time, by relevance, by similarity; pages that cost the same however deep they are."""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from openmanager import page
from openmanager.errors import InvalidArgumentError, Reason, invalid, missing
from openmanager.frame import check_text
from openmanager_metadata.backends import Database, Row, Statements
from openmanager_metadata.interaction import (
    MAX_TEXT_BYTES,
    SELECTED,
    Interaction,
    check_id,
    check_long_text,
    not_found,
    of_row,
)
from openmanager_metadata.interaction_filter import Where

MAX_SEARCH = 1000
MAX_SIMILAR_TEXT = 16_384
SIMILAR_COUNT, MAX_SIMILAR_COUNT = 10, 100
# What the interactions of one page may take, below the 4 MiB of a message.
PAGE_BYTES = 3_500_000
BASIC_CHARACTERS = 300
# Of what a search finds so many, the newest, are ranked: ranking reads every one.
RANKED = 200
# Of the words of a text so many, the rarest, say what is similar to it; and about so many interactions are compared.
SIMILAR_WORDS, SIMILAR_COMPARED, SIMILAR_READ = 16, 2000, 200
ORDERS = {"": False, "create_time desc": False, "create_time": True, "create_time asc": True}
RELEVANCE = ("relevance", "relevance desc")

# The plan of a common word is not that of a rare one; a second process only costs time where so little is read.
PLAN = (
    "SELECT set_config('plan_cache_mode', 'force_custom_plan', true), set_config('jit', 'off', true),"
    " set_config('max_parallel_workers_per_gather', '0', true)"
)
_SIZE = (
    "octet_length(concat(session_id, subject, trace_id, model, intent, rating_comment, labels::text, servers, metrics))"
    " + 400 + 4 * cardinality(servers || metrics)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ListQuery:
    """What ListInteractions asks for."""

    page_size: int = 0
    page_token: str = ""
    filter: str = ""
    search: str = ""
    order_by: str = ""
    full: bool = False
    exact_total_count: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """A page of a list."""

    interactions: Sequence[Interaction]
    next_page_token: str
    total_count: int
    is_estimate: bool


@dataclass(frozen=True, slots=True)
class _Key:
    """Where a row stands in its list; `rank` only where ranks order it."""

    id: uuid.UUID
    moment: datetime
    rank: float = 0.0


class Search:
    """Reads lists of interactions from a database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get(self, interaction_id: str) -> Interaction:
        """Return one interaction with its whole texts."""
        key = check_id(interaction_id)
        found = await fetch_rows(self._database, [uuid.UUID(key)], full=True)
        if not found:
            raise not_found(key)
        return found[0]

    async def similar(self, text: str, filter: str, limit: int, *, full: bool) -> list[tuple[Interaction, float]]:  # noqa: A002
        """Return interactions whose queries share words with a text, and which share of them, the best first."""
        if not text:
            raise missing("text")
        check_long_text("text", text)
        if len(text) > MAX_SIMILAR_TEXT:
            raise invalid("text", f"is longer than {MAX_SIMILAR_TEXT:,} characters")
        if limit < 0:
            raise invalid("limit", "must not be negative")
        chosen = Where(filter)

        async def work(database: Statements) -> list[tuple[Interaction, float]]:
            await database.fetch(PLAN)
            wanted = _weighed(await database.fetch(_RARITY, text))
            if not wanted:
                return []
            some = min(limit or SIMILAR_COUNT, MAX_SIMILAR_COUNT)
            keys = await database.fetch(_similar(chosen, wanted, some), *chosen.arguments)
            shown = await fetch_rows(database, [key["id"] for key in keys], full=full)
            scores = {str(key["id"]): min(1.0, key["score"]) for key in keys}
            return [(each, scores[each.id]) for each in shown]

        return await self._database.transaction(work, writes=False)

    async def list(self, query: ListQuery) -> Page:
        """Return a page of interactions."""
        size = page.page_size(query.page_size)
        check_text("search", query.search, MAX_SEARCH)
        by_rank = _is_by_rank(query)
        bound = (query.filter, query.search, query.order_by)
        token = page.decode_token(bound, query.page_token, parts=4)
        after, until = _after(token) if token is not None else (None, None)
        chosen = Where(query.filter)
        if query.search:
            chosen.add(f"words @@ {_words(chosen.parameter(query.search))}")
        count_sql, count_arguments = chosen.sql, tuple(chosen.arguments)
        if by_rank:
            keys_sql = _ranked(chosen, query.search, after, until, size + 1)
        else:
            keys_sql = _timed(chosen, after, size + 1, ascending=ORDERS[query.order_by.strip()])

        async def work(database: Statements) -> tuple[list[Row], list[Interaction], int, bool]:
            await database.fetch(PLAN)
            keys = await database.fetch(keys_sql, *chosen.arguments)
            shown = await fetch_rows(database, [key["id"] for key in keys[:size]], full=query.full)
            if token is None and len(keys) <= size:
                return keys, shown, len(keys), False
            if query.exact_total_count:
                return keys, shown, await exact_count(database, count_sql, count_arguments), False
            return keys, shown, max(len(keys), await estimate(database, count_sql, count_arguments)), True

        keys, shown, count, estimated = await self._database.transaction(work, writes=False)
        # The page may have been cut, and rows may have been erased in between.
        last = next((at for at, key in enumerate(keys) if shown and str(key["id"]) == shown[-1].id), size - 1)
        more = _token(bound, keys[last]) if last + 1 < len(keys) else ""
        return Page(interactions=shown, next_page_token=more, total_count=count, is_estimate=estimated)


def _is_by_rank(query: ListQuery) -> bool:
    order = query.order_by.strip()
    if order in RELEVANCE:
        if not query.search:
            raise invalid("order_by", "can be relevance only where there is a search")
        return True
    if order not in ORDERS:
        raise invalid("order_by", "must be create_time, with “ desc” for the newest first, or relevance")
    return False


def _words(parameter: str) -> str:
    return f"websearch_to_tsquery('english', {parameter}::text)"


# ── where pages begin ──────────────────────────────────────────────────────────────────────────────────────────────


def _token(bound: tuple[object, ...], key: Row) -> str:
    rank, until = key.get("rank", 0.0), key.get("until")
    return page.encode_token(
        bound, [str(key["id"]), key["created_at"].isoformat(), repr(rank), until.isoformat() if until else ""]
    )


def _after(token: Sequence[str]) -> tuple[_Key, datetime | None]:
    """Return the key that a token continues after, and the newest that a ranking takes."""
    try:
        key = _Key(uuid.UUID(token[0]), parse_moment(token[1]), float(token[2]))
        return key, parse_moment(token[3]) if token[3] else None
    except (ValueError, OverflowError) as err:
        raise InvalidArgumentError("invalid page token", reason=Reason.INVALID_PAGE_TOKEN, field="page_token") from err


def parse_moment(text: str) -> datetime:
    """Return a time of the database from its text; ValueError for what is none."""
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is not None:
        raise ValueError
    return moment


# ── statements ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _timed(where: Where, after: _Key | None, limit: int, *, ascending: bool) -> str:
    sign, direction = (">", "ASC") if ascending else ("<", "DESC")
    if after is not None:
        where.add(f"(created_at, id) {sign} ({where.parameter(after.moment)}, {where.parameter(after.id)})")
    return (
        f"SELECT id, created_at FROM ai_interactions WHERE {where.sql}"
        f" ORDER BY created_at {direction}, id {direction} LIMIT {limit}"
    )


def _ranked(where: Where, search: str, after: _Key | None, until: datetime | None, limit: int) -> str:
    words = _words(where.parameter(search))
    newest = f"{where.parameter(until)}::timestamp"
    where.add(f"created_at <= coalesce({newest}, localtimestamp)")
    rest = ""
    if after is not None:
        key = ", ".join(map(where.parameter, (after.rank, after.moment, after.id)))
        rest = f"WHERE (rank, created_at, id) < ({key})"
    # 1: long texts are not better for having more words.
    return (
        f"SELECT id, created_at, rank, coalesce({newest}, localtimestamp) AS until FROM"
        f" (SELECT i.id, i.created_at, ts_rank(i.words, {words}, 1)::float8 AS rank FROM"
        f" (SELECT id FROM ai_interactions WHERE {where.sql} ORDER BY created_at DESC, id DESC LIMIT {RANKED}) found"
        f" JOIN ai_interactions i USING (id)) ranked {rest}"
        f" ORDER BY rank DESC, created_at DESC, id DESC LIMIT {limit}"
    )


# How often each word of a text is in interactions, as far as the statistics know: 0 is rarer than those they list.
_RARITY = """
WITH known AS (
    SELECT unnest(most_common_elems::text::text[]) AS word, unnest(most_common_elem_freqs) AS share
    FROM pg_stats WHERE schemaname = current_schema() AND tablename = 'ai_interactions' AND attname = 'words'
)
SELECT word, coalesce(share, 0)::float8 AS share,
    (SELECT greatest(reltuples, 1)::float8 FROM pg_class WHERE oid = 'ai_interactions'::regclass) AS count
FROM unnest(tsvector_to_array(to_tsvector('english', $1::text))) AS word LEFT JOIN known USING (word)
ORDER BY share, length(word) DESC, word
"""


def _weighed(rows: Sequence[Row]) -> list[tuple[str, float, float]]:
    """Return the rarest words as queries, each with its weight and with about how many interactions have it."""
    found = []
    for row in rows[:SIMILAR_WORDS]:
        # The statistics list a thousand words: what is not among them is in a few interactions in a thousand.
        share = row["share"] or 0.001
        quoted = row["word"].replace("\\", "\\\\").replace("'", "''")
        found.append((f"'{quoted}':A", math.log(1 + 1 / share), share * row["count"]))
    return found


def _similar(where: Where, wanted: Sequence[tuple[str, float, float]], limit: int) -> str:
    """Compare those that have one of the rarest words; of common words only as many as the comparison can take."""
    rare: list[str] = []
    room = float(SIMILAR_COMPARED)
    for words, _, count in wanted:
        room -= count
        if rare and room < 0:
            break
        rare.append(words)
    where.add(f"words @@ {where.parameter(' | '.join(rare))}::text::tsquery")
    words = where.parameter([each for each, _, _ in wanted])
    weights = where.parameter([each for _, each, _ in wanted])
    total = where.parameter(sum(each for _, each, _ in wanted))
    return (
        f"WITH wanted AS MATERIALIZED (SELECT word::tsquery AS word, weight"
        f" FROM unnest({words}::text[], {weights}::float8[]) AS u(word, weight))"
        f" SELECT id, i.created_at, (SELECT sum(weight) FROM wanted WHERE i.words @@ wanted.word)"
        f" / {total}::float8 AS score FROM (SELECT id FROM ai_interactions WHERE {where.sql}"
        f" ORDER BY created_at DESC, id DESC LIMIT {SIMILAR_READ}) found JOIN ai_interactions i USING (id)"
        f" ORDER BY score DESC, i.created_at DESC, id DESC LIMIT {limit}"
    )


async def fetch_rows(
    database: Statements, ids: Sequence[uuid.UUID], *, full: bool, room: int = PAGE_BYTES
) -> list[Interaction]:
    """Return the interactions of some ids in their order, at least one, as many as are no larger than `room` bytes."""
    # What somebody else wrote here may be longer than what we take.
    most = MAX_TEXT_BYTES if full else BASIC_CHARACTERS
    cut = {name: f"left({name}, {most}) AS {name}" for name in ("query", "response")}
    shown = ", ".join(cut.get(name, name) for name in SELECTED.split(", "))
    texts = " + ".join(f"least(coalesce(octet_length({name}), 0), {4 * most})" for name in cut)
    rows = await database.fetch(
        f"SELECT {shown}, greatest(length(query), length(response)) > {most} AS truncated FROM (SELECT i.*, k.n, sum({texts} + {_SIZE}) OVER (ORDER BY k.n)"
        f" AS taken FROM unnest($1::uuid[]) WITH ORDINALITY AS k(id, n) JOIN ai_interactions i ON i.id = k.id) s"
        f" WHERE taken <= $2 OR n = 1 ORDER BY n",
        list(ids),
        room,
    )
    return [of_row(row) for row in rows]


async def exact_count(database: Statements, where: str, arguments: Sequence[Any]) -> int:
    """Return how many interactions there are that fulfil some conditions."""
    rows = await database.fetch(f"SELECT count(*) AS total FROM ai_interactions WHERE {where}", *arguments)
    return int(rows[0]["total"])


async def estimate(database: Statements, where: str, arguments: Sequence[Any]) -> int:
    """Return about how many these are, as PostgreSQL's planner guesses it, in the time of a plan."""
    rows = await database.fetch(f"EXPLAIN (FORMAT JSON) SELECT 1 FROM ai_interactions WHERE {where}", *arguments)
    return int(json.loads(rows[0][0])[0]["Plan"]["Plan Rows"])

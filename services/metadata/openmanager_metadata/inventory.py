"""The inventory: servers as people and frames tell of them."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from openmanager import filter as server_filter
from openmanager import page
from openmanager.errors import (
    AbortedError,
    AlreadyExistsError,
    DataLossError,
    NotFoundError,
    Reason,
    invalid,
    store_unavailable,
)
from openmanager.frame import MAX_LABELS, ServerInfo, check_labels, check_server_id, check_text
from openmanager_metadata.backends import Database, Row, Statements
from openmanager_metadata.sql import aware, condition, plain

TEXTS = {"hostname": 255, "environment": 50, "role": 50, "location": 100}
UPDATABLE = (*TEXTS, "labels", "thresholds")
THRESHOLDS = ("cpu", "memory", "disk")
_THRESHOLD_NAMES = {f"{figure}_{level}" for figure in THRESHOLDS for level in ("warning", "critical")}
MAX_BATCH = 1000
# After so long servers that are asked for by their ids are told from the copy.
QUICK_SECONDS = 0.3
# What the servers of one page may take, below the 4 MiB of a message.
PAGE_BYTES = 3_500_000
ORDERS = ("id", "hostname", "environment", "role", "location", "create_time", "update_time")
FILTERS = {
    **dict.fromkeys(("id", *TEXTS, "labels.*"), server_filter.TEXT),
    "update_time": server_filter.NUMBER,
}
_COLUMNS = (
    "id, hostname, environment, role, location, labels, thresholds, set_by_people, version, created_at, updated_at,"
    " deleted_at"
)
log = logging.getLogger(__name__)

_TIMES = {"create_time": "created_at", "update_time": "updated_at"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A server of the inventory."""

    id: str
    hostname: str = ""
    environment: str = ""
    role: str = ""
    location: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    thresholds: Mapping[str, float] = field(default_factory=dict)
    # The fields that a person set: registration leaves them alone.
    set_by_people: Sequence[str] = ()
    etag: str = ""
    create_time: datetime | None = None
    update_time: datetime | None = None
    delete_time: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ListQuery:
    """What ListServers asks for."""

    page_size: int
    page_token: str
    filter: str
    order_by: str
    show_deleted: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """A page of a list."""

    servers: Sequence[Server]
    next_page_token: str
    total_count: int
    # Rows of this page that nobody can read.
    damaged: int = 0


def check_server(server: Server, fields: Sequence[str] = UPDATABLE) -> None:
    """Raise InvalidArgumentError, naming the field, for what a server cannot be."""
    for name in fields:
        if name in TEXTS:
            check_text(f"server.{name}", getattr(server, name), TEXTS[name])
    if "labels" in fields:
        check_labels("server.labels", server.labels)
    if "thresholds" in fields:
        check_thresholds("server.thresholds", server.thresholds)


def check_thresholds(name: str, thresholds: Mapping[str, float]) -> None:
    """Raise InvalidArgumentError unless 0 < warning ≤ critical ≤ 100 for each figure, as far as they are given."""
    for figure in THRESHOLDS:
        warning, critical = thresholds.get(f"{figure}_warning"), thresholds.get(f"{figure}_critical")
        for key, value in ((f"{figure}_warning", warning), (f"{figure}_critical", critical)):
            if value is not None and not 0 < value <= 100:
                raise invalid(f"{name}.{key}", "must be more than 0 and at most 100")
        if warning is not None and critical is not None and warning > critical:
            raise invalid(f"{name}.{figure}_warning", f"must be at most {figure}_critical")


def _server(row: Row) -> Server:
    """Return the server of a row; DataLossError for one that no version of ours has written."""
    labels, thresholds = json.loads(row["labels"]), json.loads(row["thresholds"])
    if not _holds(labels, str) or not _holds(thresholds, (int, float)) or not set(thresholds) <= _THRESHOLD_NAMES:
        raise DataLossError("what is stored of the server cannot be read", resource=f"server/{row['id']}")
    return Server(
        id=row["id"],
        hostname=row["hostname"],
        environment=row["environment"] or "",
        role=row["role"] or "",
        location=row["location"] or "",
        labels=labels,
        thresholds=thresholds,
        set_by_people=tuple(row["set_by_people"]),
        etag=f"v{row['version']}",
        create_time=aware(row["created_at"]),
        update_time=aware(row["updated_at"]),
        delete_time=aware(row["deleted_at"]),
    )


def _holds(document: Any, kind: type | tuple[type, ...]) -> bool:
    return isinstance(document, dict) and all(isinstance(value, kind) for value in document.values())


def _readable(rows: Sequence[Row]) -> list[Server]:
    """Return the servers of the rows that can be read: one that cannot must not hide the others."""
    found = []
    for row in rows:
        try:
            found.append(_server(row))
        except DataLossError:
            log.warning("the row of server %s cannot be read", row["id"])
    return found


def _not_found(server_id: str) -> NotFoundError:
    return NotFoundError("there is no such server", resource=f"server/{server_id}")


def _digest(server: Server) -> bytes:
    """Return a hash that two requests share only when they ask for the same server."""
    asked = {**{name: getattr(server, name) for name in ("id", *TEXTS)}, "labels": dict(server.labels)}
    asked["thresholds"] = dict(server.thresholds)
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).digest()


async def _repeated(database: Statements, server: Server, request_id: str) -> Row:
    """Return what an earlier request of the same id made; AlreadyExistsError when it asked for something else."""
    rows = await database.fetch(
        "SELECT r.body_hash, s.* FROM requests r CROSS JOIN LATERAL jsonb_populate_record(NULL::servers, r.reply) s"
        " WHERE request_id = $1",
        request_id,
    )
    if not rows or bytes(rows[0]["body_hash"]) != _digest(server):
        raise AlreadyExistsError("request_id was used with another body", reason=Reason.REQUEST_ID_REUSED)
    return rows[0]


class Inventory:
    """Servers in a database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(self, server: Server, request_id: str) -> Server:
        """Create a server; what the same request created before is returned."""
        check_server(server)
        check_text("request_id", request_id, 64)

        async def work(database: Statements) -> Row:
            if request_id:
                # The row is there for others only together with the server; a second of the same waits for the first.
                first = await database.fetch(
                    "INSERT INTO requests (request_id, body_hash) VALUES ($1, $2) ON CONFLICT DO NOTHING RETURNING 1",
                    request_id,
                    _digest(server),
                )
                if not first:
                    return await _repeated(database, server, request_id)
            set_by_people = [name for name in UPDATABLE if getattr(server, name)]
            # A deleted server is made anew; one that is there is left alone, and nothing is returned.
            created = await database.fetch(
                f"INSERT INTO servers AS s (id, hostname, environment, role, location, labels, thresholds,"
                f" set_by_people) VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT (id) DO UPDATE SET"
                f" hostname = excluded.hostname,"
                f" environment = excluded.environment, role = excluded.role, location = excluded.location,"
                f" labels = excluded.labels, thresholds = excluded.thresholds, set_by_people = excluded.set_by_people,"
                f" version = s.version + 1, created_at = now(), updated_at = now(), deleted_at = NULL"
                f" WHERE s.deleted_at IS NOT NULL RETURNING {_COLUMNS}",
                server.id,
                server.hostname or server.id,
                server.environment,
                server.role,
                server.location,
                json.dumps(dict(server.labels)),
                json.dumps(dict(server.thresholds)),
                set_by_people,
            )
            if not created:
                raise AlreadyExistsError("there is such a server already", resource=f"server/{server.id}")
            if request_id:
                await database.fetch(
                    "UPDATE requests SET reply = (SELECT to_jsonb(s) FROM servers s WHERE s.id = $2)"
                    " WHERE request_id = $1",
                    request_id,
                    server.id,
                )
            return created[0]

        return _server(await self._database.transaction(work))

    async def forget_requests(self) -> None:
        """Forget the requests of more than a day ago: whoever repeats one now means another."""
        await self._database.fetch("DELETE FROM requests WHERE created_at < now() - interval '24 hours'")

    async def get(self, server_id: str) -> Server:
        """Return one server."""
        rows = await self._database.fetch(
            f"SELECT {_COLUMNS} FROM servers WHERE id = $1 AND deleted_at IS NULL",
            server_id,
            seconds=QUICK_SECONDS,
        )
        if not rows:
            raise _not_found(server_id)
        return _server(rows[0])

    async def batch_get(self, ids: Sequence[str]) -> tuple[list[Server], list[str]]:
        """Return the servers that exist among `ids`, in their order, and the ids that do not."""
        rows = await self._database.fetch(
            f"SELECT {_COLUMNS} FROM servers WHERE id = ANY($1) AND deleted_at IS NULL",
            list(ids),
            seconds=QUICK_SECONDS,
        )
        return arrange({server.id: server for server in _readable(rows)}, ids)

    async def all(self, limit: int) -> tuple[list[Server], bool]:
        """Return the servers that are not deleted, by id, at most `limit`; and whether these are all there are."""
        rows = await self._database.fetch(
            f"SELECT {_COLUMNS} FROM servers WHERE deleted_at IS NULL ORDER BY id LIMIT $1",
            limit,
        )
        found = _readable(rows)
        return found, len(found) == len(rows) < limit

    async def list(self, query: ListQuery) -> Page:
        """Return a page of servers."""
        size = page.page_size(query.page_size)
        key = (query.filter, query.order_by, query.show_deleted)
        after = page.decode_token(key, query.page_token, parts=2)
        column, descending = parse_order(query.order_by)
        arguments: list[Any] = []
        where = condition(checked_filter(query.filter), lambda node: _comparison(node, arguments))
        if not query.show_deleted:
            where = f"{where} AND deleted_at IS NULL"
        rank = f"coalesce({_TIMES.get(column, column)}::text, '') COLLATE \"C\""
        count_sql, counted = f"SELECT count(*) AS total FROM servers WHERE {where}", tuple(arguments)
        if after is not None:
            arguments += [*after]
            first, second = len(arguments) - 1, len(arguments)
            sign = "<" if descending else ">"
            id_c = 'id COLLATE "C"'
            where += f" AND ({rank} {sign} ${first} OR ({rank} = ${first} AND {id_c} > ${second}))"
        arguments.append(size + 1)
        order = f'{rank} {"DESC" if descending else "ASC"}, id COLLATE "C"'
        rows_sql = (
            f"SELECT {_COLUMNS}, {rank} AS rank FROM servers WHERE {where} ORDER BY {order} LIMIT ${len(arguments)}"
        )

        async def work(database: Statements) -> tuple[int, list[Row]]:
            totals = await database.fetch(count_sql, *counted)
            return totals[0]["total"], await database.fetch(rows_sql, *arguments)

        count, rows = await self._database.transaction(work, writes=False)
        readable = _readable(rows[:size])
        some = _fitting(readable)
        shown = [row["id"] for row in rows].index(some[-1].id) + 1 if len(some) < len(readable) else len(rows[:size])
        token = ""
        if len(rows) > shown:
            last = rows[shown - 1]
            token = page.encode_token(key, [last["rank"], last["id"]])
        return Page(servers=some, next_page_token=token, total_count=count, damaged=shown - len(some))

    async def update(self, server: Server, fields: Sequence[str]) -> Server:
        """Change some fields; AbortedError when `server.etag` is given and is not the stored one."""
        check_server(server, fields)
        check_text("server.etag", server.etag, 64)
        values: list[Any] = [server.id, list(fields)]
        parts = []
        for name in fields:
            value = getattr(server, name)
            values.append(json.dumps(dict(value)) if name in {"labels", "thresholds"} else value)
            parts.append(f"{name} = ${len(values)}")
        values.append(server.etag)
        rows = await self._database.fetch(
            f"UPDATE servers SET {', '.join(parts)}, version = version + 1, updated_at = now(), set_by_people ="
            f" (SELECT array_agg(DISTINCT f) FROM unnest(set_by_people || $2::text[]) f)"
            f" WHERE id = $1 AND deleted_at IS NULL AND (${len(values)} = '' OR 'v' || version = ${len(values)})"
            f" RETURNING {_COLUMNS}",
            *values,
        )
        if not rows:
            await self.get(server.id)
            raise _changed()
        return _server(rows[0])

    async def delete(self, server_id: str, etag: str, *, purge: bool) -> Server:
        """Hide a server, or remove its row."""
        check_text("etag", etag, 64)
        chosen = "WHERE id = $1 AND ($2 = '' OR 'v' || version = $2)"
        if purge:
            gone = await self._database.fetch(f"DELETE FROM servers {chosen} RETURNING {_COLUMNS}", server_id, etag)
        else:
            gone = await self._database.fetch(
                f"UPDATE servers SET deleted_at = now(), updated_at = now(), version = version + 1"
                f" {chosen} AND deleted_at IS NULL RETURNING {_COLUMNS}",
                server_id,
                etag,
            )
        if gone:
            return _server(gone[0])
        rows = await self._database.fetch(f"SELECT {_COLUMNS} FROM servers WHERE id = $1", server_id)
        if not rows:
            raise _not_found(server_id)
        found = _server(rows[0])
        if found.delete_time is None or (etag and etag != found.etag):
            raise _changed()
        return found  # it was hidden before

    async def register(self, infos: Sequence[ServerInfo], seen: datetime) -> tuple[int, int]:
        """Register servers that sent frames; return how many are new and how many are shown again."""
        document = json.dumps(
            [
                {
                    "id": info.id,
                    "hostname": info.hostname,
                    "environment": info.environment,
                    "role": info.role,
                    "location": info.location,
                    "labels": dict(info.labels),
                }
                for info in infos
            ]
        )
        rows = await self._database.fetch(_REGISTER, document, seen.replace(tzinfo=None), MAX_LABELS)
        return sum(row["created"] for row in rows), sum(row["restored"] for row in rows)


# What frames tell fills in what nobody set; what is the same again changes nothing, not even the version.
_REGISTER = """
WITH told AS (
    SELECT DISTINCT ON (t.id) t.* FROM jsonb_to_recordset($1::jsonb)
    AS t(id text, hostname text, environment text, role text, location text, labels jsonb)
), before AS (
    SELECT s.id, s.deleted_at FROM servers s JOIN told USING (id)
), written AS (
    INSERT INTO servers AS s (id, hostname, environment, role, location, labels)
    SELECT id, coalesce(nullif(hostname, ''), id), environment, role, location, labels FROM told
    ON CONFLICT (id) DO UPDATE SET
        hostname = CASE WHEN 'hostname' = ANY(s.set_by_people) OR excluded.hostname = s.id
            THEN s.hostname ELSE excluded.hostname END,
        environment = CASE WHEN 'environment' = ANY(s.set_by_people) OR excluded.environment = ''
            THEN s.environment ELSE excluded.environment END,
        role = CASE WHEN 'role' = ANY(s.set_by_people) OR excluded.role = '' THEN s.role ELSE excluded.role END,
        location = CASE WHEN 'location' = ANY(s.set_by_people) OR excluded.location = ''
            THEN s.location ELSE excluded.location END,
        labels = CASE WHEN 'labels' = ANY(s.set_by_people) THEN s.labels
            WHEN jsonb_typeof(s.labels) <> 'object' THEN excluded.labels
            WHEN (SELECT count(*) FROM jsonb_object_keys(s.labels || excluded.labels)) > $3 THEN excluded.labels
            ELSE s.labels || excluded.labels END,
        deleted_at = CASE WHEN s.deleted_at < $2 THEN NULL ELSE s.deleted_at END,
        version = s.version + 1,
        updated_at = now()
    WHERE (s.deleted_at IS NOT NULL AND s.deleted_at < $2)
        OR (NOT 'hostname' = ANY(s.set_by_people) AND excluded.hostname NOT IN (s.id, s.hostname))
        OR (NOT 'environment' = ANY(s.set_by_people)
            AND excluded.environment <> '' AND excluded.environment IS DISTINCT FROM s.environment)
        OR (NOT 'role' = ANY(s.set_by_people) AND excluded.role <> '' AND excluded.role IS DISTINCT FROM s.role)
        OR (NOT 'location' = ANY(s.set_by_people)
            AND excluded.location <> '' AND excluded.location IS DISTINCT FROM s.location)
        OR (NOT 'labels' = ANY(s.set_by_people) AND NOT s.labels @> excluded.labels)
    RETURNING s.id, s.deleted_at
)
SELECT before.id IS NULL AS created,
    before.deleted_at IS NOT NULL AND written.deleted_at IS NULL AS restored
FROM written LEFT JOIN before USING (id)
"""


def _fitting(servers: list[Server]) -> list[Server]:
    """Return as many servers, at least one, as go into one message."""
    room = PAGE_BYTES
    for at, server in enumerate(servers):
        texts = (server.id, server.hostname, server.environment, server.role, server.location)
        # 4: the most bytes of a character; 256: times, etag, thresholds, and what surrounds the fields.
        room -= 256 + 4 * sum(map(len, texts)) + sum(4 * (len(k) + len(v)) + 8 for k, v in server.labels.items())
        if room < 0 and at:
            return servers[:at]
    return servers


def arrange(found: Mapping[str, Server], ids: Sequence[str]) -> tuple[list[Server], list[str]]:
    """Return the found servers in the order of `ids`, and the ids that were not found."""
    return [found[each] for each in ids if each in found], [each for each in ids if each not in found]


def parse_order(order_by: str) -> tuple[str, bool]:
    """Return the field and whether it descends; InvalidArgumentError for anything else."""
    name, _, direction = (order_by.strip() or "id").partition(" ")
    if name not in ORDERS or direction not in {"", "asc", "desc"}:
        raise invalid("order_by", f"must be one of {', '.join(ORDERS)}, with “ desc” for descending")
    return name, direction == "desc"


def checked_filter(text: str) -> server_filter.Node | None:
    """Return the tree of a filter on the inventory."""
    node = server_filter.parse(text)
    server_filter.check_fields(node, FILTERS)
    return node


def _changed() -> AbortedError:
    return AbortedError("the server was changed in between: read it again")


def _comparison(node: server_filter.Comparison, arguments: list[Any]) -> str:
    """Return a comparison as SQL: its values are added to `arguments`, names come from our own list."""

    def parameter(value: Any) -> str:
        arguments.append(value)
        return f"${len(arguments)}"

    if node.field == "update_time":
        sign = "<>" if node.operator == "!=" else node.operator
        return f"updated_at {sign} {parameter(plain(server_filter.parse_time(node.value)))}"
    column = node.field
    if node.field.startswith("labels."):
        column = f"labels->>{parameter(node.field.removeprefix('labels.'))}"
    value = parameter(node.value)
    match node.operator:
        case "=":
            return f"coalesce({column}, '') = {value}"
        case "!=":
            return f"coalesce({column}, '') <> {value}"
        case _:
            return f"position({value} in coalesce({column}, '')) > 0"


class Snapshot:
    """The inventory as it was read last, for when the database is away."""

    def __init__(self) -> None:
        self.servers: dict[str, Server] | None = None
        self.taken_nanos = 0

    def take(self, servers: Sequence[Server], now: int) -> None:
        """Replace the copy."""
        self.servers, self.taken_nanos = {server.id: server for server in servers}, now

    def put(self, server: Server) -> None:
        """Take over what is newer than the copy."""
        if self.servers is not None:
            self.servers[server.id] = server

    def drop(self, server_id: str) -> None:
        """Take a deleted server out of the copy."""
        if self.servers is not None:
            self.servers.pop(server_id, None)

    def known(self) -> dict[str, Server]:
        """Return the copy; UnavailableError when there is none yet."""
        if self.servers is None:
            raise store_unavailable("PostgreSQL")
        return self.servers

    def get(self, server_id: str) -> Server:
        """Return one server of the copy; UnavailableError for others, which may be newer than the copy."""
        found = self.known().get(server_id)
        if found is None:
            raise store_unavailable("PostgreSQL")
        return found

    def list(self, query: ListQuery) -> Page:
        """Return a page of the copy; deleted servers are not in it."""
        node = checked_filter(query.filter)
        column, descending = parse_order(query.order_by)
        size = page.page_size(query.page_size)
        key = (query.filter, query.order_by, query.show_deleted)
        after = page.decode_token(key, query.page_token, parts=2)
        chosen = [each for each in self.known().values() if server_filter.matches(node, _lookup(each))]
        ranked = sorted(chosen, key=lambda each: each.id)
        ranked.sort(key=lambda each: _rank(each, column), reverse=descending)
        rest = [each for each in ranked if after is None or _is_after(each, column, after, descending=descending)]
        some = _fitting(rest[:size])
        more = len(some) < len(rest)
        token = page.encode_token(key, [_rank(some[-1], column), some[-1].id]) if more else ""
        return Page(servers=some, next_page_token=token, total_count=len(ranked))


def _is_after(server: Server, column: str, after: Sequence[str], *, descending: bool) -> bool:
    rank, (last_rank, last_id) = _rank(server, column), after
    if rank == last_rank:
        return server.id > last_id
    return (rank < last_rank) is descending


def _rank(server: Server, column: str) -> str:
    value = getattr(server, column)
    return value.replace(tzinfo=None).isoformat(" ") if isinstance(value, datetime) else str(value)


def _lookup(server: Server) -> Any:
    def value(name: str) -> str | datetime | None:
        if name.startswith("labels."):
            return server.labels.get(name.removeprefix("labels."))
        if name == "update_time":
            return server.update_time
        return str(getattr(server, name))

    return value


def checked_ids(ids: Sequence[str]) -> list[str]:
    """Return 1–1,000 ids, lower-cased, each once."""
    if not 1 <= len(ids) <= MAX_BATCH:
        raise invalid("ids", f"must have 1–{MAX_BATCH} entries")
    return list(dict.fromkeys(check_server_id(each, "ids") for each in ids))

"""What the service remembers of its database, and gives back to one that comes back empty or old.

A database is known by its *epoch*, which is made with its tables, and by its *beat*, which every copy counts up. Another
epoch is another database, or one that was emptied; a smaller beat is the same one as it was some time ago. Before anybody
asks such a database it is given what was remembered: the servers, the policies, and who may come in, as far as it lacks
them or has them in an older version.
Another *timeline* is a standby that was promoted. It may have everything, or lack what was changed since the last copy: of
that it is given what was written here.
What nobody here has seen since the last copy cannot be given back.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from openmanager.runtime.clock import Clock
from openmanager_metadata.backends import Database, Statements, StrangerError
from openmanager_metadata.directory import Directory
from openmanager_metadata.give_back import give_back
from openmanager_metadata.inventory import Inventory, Server, Snapshot
from openmanager_metadata.policy import Policies, Policy
from openmanager_metadata.sql import plain

log = logging.getLogger(__name__)

# The first eight digits of the name of a file of its log are the timeline, which a standby has none of.
_MARK = """
SELECT id::text AS epoch, beat, localtimestamp AS taken, current_setting('transaction_read_only') = 'off' AS writable,
    CASE WHEN pg_is_in_recovery() THEN '' ELSE left(pg_walfile_name(pg_current_wal_lsn()), 8) END AS timeline
FROM epoch
"""
_BEAT = "UPDATE epoch SET beat = greatest(beat, $1::bigint) + 1 RETURNING beat"

_SERVERS = """
WITH known AS (
    SELECT * FROM jsonb_populate_recordset(NULL::servers, $1::jsonb)
), back AS (
    INSERT INTO servers AS s SELECT * FROM known ON CONFLICT (id) DO UPDATE SET
        hostname = excluded.hostname, environment = excluded.environment, role = excluded.role,
        location = excluded.location, created_at = excluded.created_at, updated_at = excluded.updated_at,
        labels = excluded.labels, thresholds = excluded.thresholds, set_by_people = excluded.set_by_people,
        version = excluded.version, deleted_at = NULL
    WHERE s.version < excluded.version RETURNING 1
), gone AS (
    UPDATE servers SET deleted_at = now(), updated_at = now(), version = version + 1
    WHERE $2::boolean AND deleted_at IS NULL AND updated_at <= $3::timestamp AND id NOT IN (SELECT id FROM known)
    RETURNING 1
)
SELECT (SELECT count(*) FROM back) + (SELECT count(*) FROM gone) AS changed
"""

_POLICIES = """
WITH known AS (
    SELECT * FROM jsonb_populate_recordset(NULL::policies, $1::jsonb)
), back AS (
    INSERT INTO policies AS p SELECT * FROM known ON CONFLICT (kind, id) DO UPDATE SET
        document = excluded.document, version = excluded.version, updated_at = excluded.updated_at
    WHERE p.version < excluded.version RETURNING 1
), gone AS (
    DELETE FROM policies WHERE updated_at <= $2::timestamp AND (kind, id) NOT IN (SELECT kind, id FROM known)
    RETURNING 1
)
SELECT (SELECT count(*) FROM back) + (SELECT count(*) FROM gone) AS changed
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """Which database it was, how often it had been copied, when by its own clock, and the timeline of its log."""

    epoch: str
    beat: int
    taken: datetime
    timeline: str


class Memory:
    """The copy of one database. `snapshot` is what reads fall back on."""

    def __init__(self, clock: Clock, limit: int, directory: Directory | None = None) -> None:
        self.snapshot = Snapshot()
        self._directory = directory
        # What an operator should know of: that something had to be given back.
        self.warnings: tuple[str, ...] = ()
        self._clock = clock
        self._limit = limit
        self._policies: Sequence[Policy] = ()
        # Whether the copy holds all servers that there are.
        self._whole = False
        self._mark: Mark | None = None

    async def copy(self, database: Database) -> None:
        """Read everything, at most `limit` servers."""
        mark = await database.transaction(self._recognised, writes=False)
        beat = mark["beat"]
        if mark["writable"]:
            beat = (await database.fetch(_BEAT, beat))[0]["beat"]
        policies = await Policies(database).all()
        if self._directory is not None:
            await self._directory.copy(database)
        servers, self._whole = await Inventory(database).all(self._limit)
        self.snapshot.take(servers, self._clock.now_nanos())
        self._policies = policies
        self._mark = Mark(epoch=mark["epoch"], beat=beat, taken=mark["taken"], timeline=mark["timeline"])

    async def recognise(self, connection: Any) -> None:
        """Raise StrangerError unless a new connection leads to the database that we know, as new as we know it."""
        if self._mark is not None:
            self._check(await connection.fetchrow(_MARK))

    async def _recognised(self, statements: Statements) -> Any:
        """Return the mark of the database; StrangerError where a PgBouncer has led us to another one."""
        rows = await statements.fetch(_MARK)
        self._check(rows[0] if rows else None)
        return rows[0]

    def _check(self, found: Any) -> None:
        if self._mark is not None and (found is None or self._is_old(found) or self._is_promoted(found)):
            raise StrangerError

    def _is_old(self, found: Any) -> bool:
        known = self._mark
        return known is not None and (found["epoch"] != known.epoch or found["beat"] < known.beat)

    def _is_promoted(self, found: Any) -> bool:
        known = self._mark
        return (
            known is not None and "" not in {known.timeline, found["timeline"]} and found["timeline"] != known.timeline
        )

    async def give_back(self, connection: Any) -> None:
        """Write what is remembered to a database that does not have it, before anybody asks it."""
        known = self._mark
        async with connection.transaction():
            found = await connection.fetchrow(_MARK)
            if known is None or not found["writable"]:
                return
            if self._is_old(found):
                changed = await self._give_all(connection, known)
            elif self._is_promoted(found):
                changed = await self._give_newest(connection, known)
            else:
                return
            beat = await connection.fetchval(_BEAT, known.beat if found["epoch"] == known.epoch else 0)
        self._say(known, found, changed)
        self._mark = Mark(epoch=found["epoch"], beat=beat, taken=known.taken, timeline=found["timeline"])

    async def _give_all(self, connection: Any, known: Mark) -> int:
        documents = json.dumps([_server_row(each) for each in self.snapshot.known().values()])
        changed: int = await connection.fetchval(_SERVERS, documents, self._whole, known.taken)
        policies = json.dumps([_policy_row(each) for each in self._policies])
        changed += await connection.fetchval(_POLICIES, policies, known.taken)
        if self._directory is not None:
            changed += await give_back(connection, self._directory, known.taken)
        return changed

    async def _give_newest(self, connection: Any, known: Mark) -> int:
        """Write the servers and who may come in that were written here since the last copy, where they are lacking."""
        newest = [
            each for each in self.snapshot.known().values() if (plain(each.update_time) or known.taken) > known.taken
        ]
        documents = json.dumps([_server_row(each) for each in newest])
        changed: int = await connection.fetchval(_SERVERS, documents, False, known.taken)
        if self._directory is not None:
            changed += await give_back(connection, self._directory, known.taken, since=known.taken)
        return changed

    def _say(self, known: Mark, found: Any, changed: int) -> None:
        if found["epoch"] != known.epoch:
            what = f"came back empty or as another: {changed} rows were written back from memory"
        elif found["beat"] < known.beat:
            what = f"came back old: {changed} rows were written back from memory"
        elif changed:
            what = f"failed over and lost the last changes: {changed} rows were written back from memory"
        else:
            log.warning("PostgreSQL failed over to a server that has everything we know of")
            return
        self.warnings = (what,)
        log.error("PostgreSQL %s", what)


def _server_row(server: Server) -> dict[str, Any]:
    return {
        "id": server.id,
        "hostname": server.hostname,
        "environment": server.environment,
        "role": server.role,
        "location": server.location,
        "created_at": _plain(server.create_time),
        "updated_at": _plain(server.update_time),
        "labels": dict(server.labels),
        "thresholds": dict(server.thresholds),
        "set_by_people": list(server.set_by_people),
        "version": int(server.etag.removeprefix("v")),
    }


def _policy_row(policy: Policy) -> dict[str, Any]:
    return {
        "kind": policy.kind,
        "id": policy.id,
        "document": dict(policy.document),
        "version": int(policy.etag.removeprefix("v")),
        "updated_at": _plain(policy.update_time),
    }


def _plain(time: datetime | None) -> str | None:
    return time.replace(tzinfo=None).isoformat() if time else None

"""Deleting entries whose retention has passed, from the oldest on, in whole tiles, never past what a hold keeps.

The log says what is deleted before it is; the database's own function checks the rule once more and deletes. The roots of
the deleted tiles stay, so that what is left verifies as before.
"""

from __future__ import annotations

import json
import logging
from typing import Any

from openmanager.audit import PRUNED
from openmanager.errors import InvalidArgumentError, NotFoundError
from openmanager.runtime.clock import Clock
from openmanager_metadata.audit import where
from openmanager_metadata.audit.head import TILE, edge, lock
from openmanager_metadata.audit.log import AuditLog
from openmanager_metadata.audit.rule import ID, KIND, Rule, rule
from openmanager_metadata.backends import Database, Statements
from openmanager_metadata.policy import Policies, Policy

# So many at once: a statement has a second.
MAX_ENTRIES = 16 * TILE

log = logging.getLogger(__name__)


class Pruning:
    """Deletes what is too old, by the policy `audit/default`."""

    def __init__(self, database: Database, audit: AuditLog, clock: Clock) -> None:
        self._database, self._audit, self._clock = database, audit, clock

    async def prune(self) -> int:
        """Delete what may be deleted now, at most MAX_ENTRIES; return how many entries went."""
        try:
            policy = await Policies(self._database).get(KIND, ID)
            found = rule(policy.document)
        except NotFoundError:
            return 0
        except InvalidArgumentError as err:
            log.warning("the audit log's policy cannot be applied: %s", err.message)
            return 0
        through = await self._through(found)
        if not through:
            return 0
        await self._say(through, policy)

        async def work(statements: Statements) -> int:
            await lock(statements)
            await _hold(found, statements)
            return int((await statements.fetch("SELECT audit_prune($1) AS gone", through))[0]["gone"])

        gone = await self._database.transaction(work)
        log.info("deleted %d audit entries, up to number %d", gone, through)
        return gone

    async def _through(self, found: Rule) -> int:
        """Return the number of the last entry to delete, 0 for none."""
        if found.retention is None:
            return 0
        limit = self._clock.now_nanos() - round(found.retention.total_seconds()) * 10**9
        rows = await self._database.fetch("SELECT min(number) AS first, max(number) AS newest FROM audit_entries")
        first = rows[0]["first"] or 1
        # What says so must come after what is deleted: the newest entries stay whatever their age.
        last = min(first + MAX_ENTRIES, rows[0]["newest"] or 0) - 1
        rows = await self._database.fetch(
            "SELECT min(number) AS young FROM audit_entries WHERE number <= $1 AND time_unix_nanos >= $2", last, limit
        )
        last = min(last, (rows[0]["young"] or last + 1) - 1)
        through = last // TILE * TILE
        for hold in found.holds:
            arguments: list[Any] = [through, hold.start_unix_nanos, hold.end_unix_nanos]
            condition = where.sql(hold.node, arguments)
            rows = await self._database.fetch(
                "SELECT min(number) AS number FROM audit_entries WHERE number <= $1 AND time_unix_nanos >= $2"
                f" AND time_unix_nanos < $3 AND {condition}",
                *arguments,
            )
            through = min(through, ((rows[0]["number"] or through + 1) - 1) // TILE * TILE)
        return through if through >= first else 0

    async def _say(self, through: int, policy: Policy) -> None:
        """Record what is about to be deleted, unless it is recorded already."""
        of = f"entries/1-{through}"
        rows = await self._database.fetch(
            "SELECT 1 FROM audit_entries WHERE action = $1 AND object = $2 LIMIT 1", PRUNED, of
        )
        if rows:
            return
        rows = await self._database.fetch(
            "SELECT count(*) AS count, min(time_unix_nanos) AS oldest, max(time_unix_nanos) AS newest, min(number) AS first"
            " FROM audit_entries WHERE number <= $1",
            through,
        )
        tree = await self._database.transaction(lambda statements: edge(through // TILE, statements), writes=False)
        details = {
            "count": str(rows[0]["count"]),
            "first_number": str(rows[0]["first"]),
            "last_number": str(through),
            "oldest_unix_nanos": str(rows[0]["oldest"]),
            "newest_unix_nanos": str(rows[0]["newest"]),
            "policy": f"{policy.kind}/{policy.id}",
            "policy_version": policy.etag,
            "retention_days": str(int(policy.document["retention_days"])),
            "root": tree.root().hex(),
        }
        await self._audit.own_event(PRUNED, of, details)


async def _hold(found: Rule, statements: Statements) -> None:
    """Write down the holds where the database's function looks for them."""
    await statements.fetch("DELETE FROM audit_holds")
    for hold in found.holds:
        await statements.fetch(
            "INSERT INTO audit_holds (id, condition, start_unix_nanos, end_unix_nanos, reason)"
            " VALUES ($1, $2::jsonb, $3, $4, $5)",
            hold.id,
            json.dumps(where.tree(hold.node)) if hold.node else None,
            hold.start_unix_nanos,
            hold.end_unix_nanos,
            hold.reason,
        )

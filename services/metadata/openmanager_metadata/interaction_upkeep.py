"""What is left to do after an erasure: the words of what went leave the index, and samples of it the statistics."""

from __future__ import annotations

import asyncio
import contextlib
import logging

from openmanager.errors import OpenManagerError
from openmanager_metadata.backends import Database
from openmanager_metadata.interaction import Interactions

# Without an erasure here: one that another process did, or that a restart interrupted.
PATIENCE_SECONDS = 60.0
FORGET_SECONDS = 3600.0
# Making the index anew is work: however often somebody erases, in between there is a rest.
REST_SECONDS = 10.0

log = logging.getLogger(__name__)

_STATEMENTS = (
    # Left over where a making anew was interrupted.
    "DROP INDEX IF EXISTS ai_interactions_words_ccnew",
    "VACUUM ai_interactions, interaction_requests",
    # VACUUM leaves the words in the index, only without rows.
    "REINDEX INDEX CONCURRENTLY ai_interactions_words",
    "ANALYZE ai_interactions, interaction_requests",
)


class Upkeep:
    """Cleans up after erasures, also after those of other processes; forgets requests that are a day old."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._wanted = asyncio.Event()

    def wanted(self) -> None:
        """Have it looked soon whether there is something to clean up."""
        self._wanted.set()

    async def run(self) -> None:
        """Clean up for ever; a database that is away is tried again."""
        loop = asyncio.get_running_loop()
        forgot = loop.time() - FORGET_SECONDS
        while True:
            try:
                if loop.time() - forgot >= FORGET_SECONDS:
                    await Interactions(self._database).forget_requests()
                    forgot = loop.time()
                if await self.clean():
                    await asyncio.sleep(REST_SECONDS)
            except OpenManagerError:
                pass  # the status of the store says it
            except Exception:
                log.exception("what was erased could not be cleaned up")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PATIENCE_SECONDS):
                    await self._wanted.wait()
            self._wanted.clear()

    async def clean(self) -> bool:
        """Clean up after the erasures so far; say whether there were any."""
        rows = await self._database.fetch("SELECT max(id) AS last FROM interaction_erasures")
        if rows[0]["last"] is None:
            return False
        await self._database.upkeep(*_STATEMENTS)
        await self._database.fetch("DELETE FROM interaction_erasures WHERE id <= $1", rows[0]["last"])
        return True

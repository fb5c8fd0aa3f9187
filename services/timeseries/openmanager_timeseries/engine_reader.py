"""Raw samples from an engine instead of our blocks."""

from __future__ import annotations

from openmanager_timeseries.planner import Borrowed, Plan
from openmanager_timeseries.retention import Match


class EngineReader:
    """Asks the engine where it has everything that the blocks would be asked for."""

    async def read(self, plan: Plan, first_position: int) -> tuple[Borrowed | None, str]:
        """Return what the engine has of a plan, or None and why the blocks are to be read instead."""
        raise NotImplementedError

    async def delete(self, match: Match, start: int, end: int) -> None:
        """Delete series."""
        raise NotImplementedError

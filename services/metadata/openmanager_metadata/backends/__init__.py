"""Where inventory and policies are kept."""

from __future__ import annotations

from typing import Any, Protocol

from openmanager.runtime.status import Finding

Row = Any


class Database(Protocol):
    """A relational store. Every call has its own deadline; UnavailableError while it is away."""

    async def fetch(self, sql: str, *arguments: Any) -> list[Row]:
        """Run one statement and return its rows."""
        ...

    async def fetch_all(self, *statements: tuple[str, tuple[Any, ...]]) -> list[list[Row]]:
        """Run statements in one transaction and return the rows of each."""
        ...

    async def look(self) -> Finding:
        """Return what a probe sees; OSError when the store cannot be reached."""
        ...

"""Where inventory and policies are kept."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeVar

from openmanager.runtime.status import Finding

# What the service's connections are called, in every version.
APPLICATION = "openmanager-metadata"
Row = Any
T = TypeVar("T")
# Advisory locks, the same in every version: of migrations, of the end of the audit log (a migration names it too), and
# of changes of users.
MIGRATION_LOCK, AUDIT_LOCK, USERS_LOCK = 7_265_001, 7_265_002, 7_265_003


class StrangerError(Exception):
    """A connection leads to another database than the one that is known, or to an older state of it."""


class Statements(Protocol):
    """Runs statements."""

    async def fetch(self, sql: str, *arguments: Any) -> list[Row]:
        """Run one statement and return its rows."""
        ...


class Database(Statements, Protocol):
    """A relational store. Every call has its own deadline.

    UnavailableError while it is away, InvalidArgumentError for a value that it cannot hold; nothing else of its own.
    """

    async def fetch(self, sql: str, *arguments: Any, seconds: float | None = None) -> list[Row]:
        """Run one statement and return its rows; within `seconds` where somebody else can answer."""
        ...

    async def transaction(self, work: Callable[[Statements], Awaitable[T]], *, writes: bool = True) -> T:
        """Run what `work` asks for in one transaction, undone when it raises; say so where it only reads."""
        ...

    async def upkeep(self, *statements: str) -> None:
        """Run statements that take long, one after the other, each by itself; what our user may not do is left out."""
        ...

    async def look(self) -> Finding:
        """Return what a probe sees; OSError when the store cannot be reached."""
        ...

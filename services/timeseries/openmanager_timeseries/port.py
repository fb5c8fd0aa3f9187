"""The port behind which readers of the log stand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from openmanager.frame import ServerInfo
from openmanager_timeseries.dead_letter import Refusal
from openmanager_timeseries.record import Record

# What is known of a server.
InfoOf = Callable[[str], ServerInfo]


class Consumer(Protocol):
    """A reader of the log in this process: it takes records in order, and may be slow or down."""

    name: str
    # How long it may take for one batch of records.
    take_seconds: float
    # How often reading had to begin again after the position in the books: what was read before is not to be taken.
    rewinds: int

    async def take(self, records: Sequence[Record]) -> Sequence[Refusal]:
        """Deal with the records for good; return what was refused of them.

        UnavailableError, TimeoutError and their like mean “again later”; any other OpenManagerError that they can never
        be taken at all.
        """
        ...

    async def take_again(self, refusal: Refusal, done: Callable[[int], None]) -> str:
        """Take what history holds of what was refused; return why it is refused again, nothing when it is not.

        `done` is told up to which time (nanoseconds) everything was taken, as often as that is known: who is interrupted
        goes on from there.

        UnavailableError or TimeoutError when nothing can be taken now; any other OpenManagerError says why not.
        """
        ...

    def settled(self, position: int, accepted: int) -> tuple[int, int]:
        """Return how far what was taken can no longer be lost, having taken up to a position and running total."""
        ...

    def cut_loose(self) -> None:
        """Take note, durably, that the log no longer holds what comes next (blocking): it goes on at the oldest frame."""
        ...

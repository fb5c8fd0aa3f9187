"""The port behind which readers of the log stand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from openmanager_timeseries.record import Record


class Consumer(Protocol):
    """A reader of the log in this process: it takes records in order, and may be slow or down."""

    name: str
    # How long it may take for one batch of records.
    take_seconds: float

    async def take(self, records: Sequence[Record]) -> None:
        """Deal with the records for good; an OpenManagerError means “again later”."""
        ...

    def settled(self, position: int, accepted: int) -> tuple[int, int]:
        """Return how far what was taken can no longer be lost, having taken up to a position and running total."""
        ...

    def rewound(self) -> bool:
        """Say, once, that reading has to begin again after the position in the books."""
        ...

"""The ports behind which stores of history and readers of the log stand."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from openmanager_timeseries.catalog import Selection
from openmanager_timeseries.record import Record
from openmanager_timeseries.samples import Long


class RawSource(Protocol):
    """A store that holds raw samples up to some log position."""

    name: str

    def read(self, selection: Selection, start: int, end: int, *, check: Callable[[], None]) -> Iterator[Long]:
        """Yield the samples of a selection in [start, end) nanoseconds; runs in a thread.

        `check` is to be called between chunks of work; it raises when the answer is no longer wanted.
        """
        ...


class Consumer(Protocol):
    """A reader of the log in this process: it takes records in order, and may be slow or down."""

    name: str

    async def take(self, records: Sequence[Record]) -> None:
        """Deal with the records for good; an OpenManagerError means “again later”."""
        ...

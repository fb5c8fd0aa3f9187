"""Where hot state is kept outside this process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Protocol

from openmanager.runtime.breaker import Breaker
from openmanager.runtime.status import Finding

# What the keys begin with that tell our own newest data from an empty or an older copy.
EPOCH = "epoch"


class KeyValueStore(Protocol):
    """A store of short-lived values under our prefix. Every call has its own deadline; UnavailableError otherwise."""

    # What the probe closes again.
    breakers: Sequence[Breaker]

    async def set_many(self, values: Mapping[str, tuple[bytes, timedelta | None]]) -> None:
        """Write values in order, in one round trip, each with its time to live, None for ever."""
        ...

    async def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        """Return values by key, None where there is none."""
        ...

    async def delete(self, key: str) -> bool:
        """Delete a value; say whether there was one."""
        ...

    async def epochs(self) -> Sequence[str]:
        """Return a key for each part of the store that may be lost alone, kept in that part."""
        ...

    async def look(self) -> Finding:
        """Return what a probe sees; OSError when the store cannot be reached."""
        ...

    async def close(self) -> None:
        """Close the connections."""
        ...

"""A `KeyValueStore` in this process, for a cache without Redis: bounded, gone with the process."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from datetime import timedelta

from openmanager.errors import Reason, ResourceExhaustedError
from openmanager.runtime.breaker import Breaker
from openmanager.runtime.clock import Clock
from openmanager.runtime.status import Finding
from openmanager_cache.backends import EPOCH


class MemoryStore:
    """Values in a dictionary, the least recently written going first when `limit` bytes are passed."""

    breakers: Sequence[Breaker] = ()

    def __init__(self, clock: Clock, limit: int) -> None:
        self._clock = clock
        self._limit = limit
        self._size = 0
        self._values: OrderedDict[str, tuple[bytes, float | None]] = OrderedDict()
        self._hits = 0
        self._misses = 0

    async def set_many(self, values: Mapping[str, tuple[bytes, timedelta | None]]) -> None:
        """Keep values."""
        now = self._clock.monotonic()
        for key, (value, ttl) in values.items():
            if len(value) > self._limit:
                raise ResourceExhaustedError("the value is larger than the whole store", reason=Reason.OVERLOADED)
            await self.delete(key)
            self._values[key] = (value, now + ttl.total_seconds() if ttl else None)
            self._size += len(key) + len(value)
        while self._size > self._limit:
            await self.delete(next(iter(self._values)))

    async def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        """Return values that have not expired."""
        found = [self._get(key) for key in keys]
        self._misses += found.count(None)
        self._hits += len(found) - found.count(None)
        return found

    def _get(self, key: str) -> bytes | None:
        value, expires = self._values.get(key, (None, None))
        return None if expires is not None and expires <= self._clock.monotonic() else value

    async def delete(self, key: str) -> bool:
        """Forget a value."""
        there = self._get(key) is not None
        value, _ = self._values.pop(key, (None, None))
        if value is not None:
            self._size -= len(key) + len(value)
        return there

    async def epochs(self) -> Sequence[str]:
        """Return one key: all of it is lost at once."""
        return [EPOCH]

    async def look(self) -> Finding:
        """Return how much is kept."""
        return Finding(
            size_bytes=self._size, item_count=len(self._values), hit_count=self._hits, miss_count=self._misses
        )

    async def close(self) -> None:
        """Nothing is open."""

"""Entries: what can be computed again, kept for a while, apart from each other by namespace."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import timedelta

from openmanager.errors import NotFoundError, Reason, ResourceExhaustedError, invalid
from openmanager_cache.backends import KeyValueStore

MAX_KEY_BYTES = 512
MAX_VALUE_BYTES = 1 << 20
DEFAULT_TTL = timedelta(minutes=5)
MIN_TTL = timedelta(milliseconds=1)
MAX_TTL = timedelta(days=30)
_NAMESPACE = re.compile(r"[a-z][a-z0-9_-]{0,62}")


@dataclass(frozen=True, slots=True)
class EntryName:
    """A namespace and a key in it, both checked."""

    namespace: str
    key: str

    @property
    def stored(self) -> str:
        """The key in the store; a namespace holds no colon, so that no entry can pass for another's."""
        return f"entry:{self.namespace}:{self.key}"


def entry_name(namespace: str, key: str) -> EntryName:
    """Return the checked name of an entry; InvalidArgumentError naming the field."""
    if not _NAMESPACE.fullmatch(namespace):
        raise invalid("namespace", f"must match {_NAMESPACE.pattern}")
    if not 1 <= len(key.encode()) <= MAX_KEY_BYTES:
        raise invalid("key", f"must have 1–{MAX_KEY_BYTES} bytes")
    return EntryName(namespace, key)


def entry_ttl(ttl: timedelta) -> timedelta:
    """Return how long an entry lives: the default for zero; InvalidArgumentError when it is out of range."""
    if not ttl:
        return DEFAULT_TTL
    if not MIN_TTL <= ttl <= MAX_TTL:
        raise invalid("ttl", "must be between 1 ms and 30 days")
    return ttl


class Entries:
    """Reads and writes entries in a store."""

    def __init__(self, store: KeyValueStore) -> None:
        self._store = store

    async def get(self, name: EntryName) -> bytes:
        """Return a value; NotFoundError when there is none."""
        (value,) = await self._store.get_many([name.stored])
        if value is None:
            raise NotFoundError("there is no such entry", resource=f"entry/{name.namespace}/{name.key}")
        return value

    async def set(self, name: EntryName, value: bytes, ttl: timedelta) -> None:
        """Write a value."""
        if len(value) > MAX_VALUE_BYTES:
            raise ResourceExhaustedError("value is larger than 1 MiB", reason=Reason.MESSAGE_TOO_LARGE, field="value")
        await self._store.set_many({name.stored: (value, ttl)})

    async def delete(self, name: EntryName) -> bool:
        """Delete a value; say whether there was one."""
        return await self._store.delete(name.stored)

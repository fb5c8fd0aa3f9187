"""Personal data under a key for each subject: who deletes the key has deleted the data, and no entry has changed.

What is sealed is 16 bytes of the key's id, 12 of a nonce, and AES-256-GCM's ciphertext with its tag; the subject is bound in.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from openmanager.runtime.clock import Clock
from openmanager_metadata.audit.entry import Entry, decode_map, encode_map
from openmanager_metadata.backends import Database, Statements

ID_BYTES, NONCE_BYTES, KEY_BYTES = 16, 12, 32
# How long a key is used without a look whether it is still there, and how many are kept.
KNOWN_SECONDS, MAX_KNOWN = 60.0, 10_000
_FIND = "SELECT id, key FROM audit_subject_keys WHERE subject = $1"


@dataclass(frozen=True, slots=True)
class _Known:
    id: bytes
    key: AESGCM
    until: float


class Sealer:
    """Seals and opens, with keys from a database."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._known: dict[str, _Known] = {}

    async def seal(self, subject: str, personal: Mapping[str, str]) -> bytes:
        """Return the data as it may be kept, nothing for none; a subject that has no key is given one."""
        if not personal:
            return b""
        key, nonce = await self._key(subject), os.urandom(NONCE_BYTES)
        return key.id + nonce + key.key.encrypt(nonce, encode_map(personal), subject.encode())

    async def open(self, entries: Iterable[Entry]) -> dict[int, dict[str, str]]:
        """Return the personal data of entries by their numbers, without those whose key is gone."""
        sealed = [entry for entry in entries if entry.sealed]
        if not sealed:
            return {}
        rows = await self._database.fetch(
            "SELECT id, key FROM audit_subject_keys WHERE id = ANY($1::bytea[])",
            list({entry.sealed[:ID_BYTES] for entry in sealed}),
        )
        keys = {bytes(row["id"]): AESGCM(bytes(row["key"])) for row in rows}
        found = {}
        for entry in sealed:
            key = keys.get(entry.sealed[:ID_BYTES])
            if key is not None and (personal := _opened(key, entry)) is not None:
                found[entry.number] = personal
        return found

    async def erase(self, subject: str, statements: Statements) -> int:
        """Delete the keys of a subject, within a transaction; return how many there were."""
        self._known.pop(subject, None)
        gone = await statements.fetch("DELETE FROM audit_subject_keys WHERE subject = $1 RETURNING 1", subject)
        return len(gone)

    def forget(self, subject: str) -> None:
        """Forget a key that is deleted."""
        self._known.pop(subject, None)

    async def _key(self, subject: str) -> _Known:
        now = self._clock.monotonic()
        known = self._known.get(subject)
        if known is not None and now < known.until:
            return known
        rows = await self._database.fetch(_FIND, subject)
        if not rows:
            await self._database.fetch(
                "INSERT INTO audit_subject_keys (id, subject, key) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING",
                os.urandom(ID_BYTES),
                subject,
                os.urandom(KEY_BYTES),
            )
            rows = await self._database.fetch(_FIND, subject)
        if len(self._known) >= MAX_KNOWN:
            self._known.clear()
        made = _Known(bytes(rows[0]["id"]), AESGCM(bytes(rows[0]["key"])), now + KNOWN_SECONDS)
        self._known[subject] = made
        return made


def _opened(key: AESGCM, entry: Entry) -> dict[str, str] | None:
    nonce, data = entry.sealed[ID_BYTES : ID_BYTES + NONCE_BYTES], entry.sealed[ID_BYTES + NONCE_BYTES :]
    try:
        return decode_map(key.decrypt(nonce, data, entry.subject.encode()))
    except (InvalidTag, ValueError):
        return None

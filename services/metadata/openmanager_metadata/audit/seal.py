"""Personal data under a key for each subject: who deletes the key has deleted the data, and no entry has changed.

What is sealed is 16 bytes of the key's id, 12 of a nonce, and AES-256-GCM's ciphertext with its tag; the subject is bound in.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from openmanager_metadata.audit.entry import Entry, decode_map, encode_map
from openmanager_metadata.backends import Statements

ID_BYTES, NONCE_BYTES, KEY_BYTES = 16, 12, 32


@dataclass(frozen=True, slots=True)
class SubjectKey:
    """The key of one subject."""

    id: bytes
    subject: str
    key: AESGCM

    def seal(self, personal: Mapping[str, str]) -> bytes:
        """Return the data as it may be kept."""
        nonce = os.urandom(NONCE_BYTES)
        return self.id + nonce + self.key.encrypt(nonce, encode_map(personal), self.subject.encode())


async def subject_keys(subjects: Collection[str], statements: Statements) -> dict[str, SubjectKey]:
    """Return the keys of subjects, within the transaction that appends; who has none is given one.

    They are not remembered: a key that was deleted elsewhere must not be used again.
    """
    if not subjects:
        return {}
    found = await _known(subjects, statements)
    if missing := [each for each in subjects if each not in found]:
        await statements.fetch(
            "INSERT INTO audit_subject_keys (id, subject, key)"
            " SELECT * FROM unnest($1::bytea[], $2::text[], $3::bytea[]) ON CONFLICT DO NOTHING",
            [os.urandom(ID_BYTES) for _ in missing],
            missing,
            [os.urandom(KEY_BYTES) for _ in missing],
        )
        found |= await _known(missing, statements)
    return found


async def _known(subjects: Collection[str], statements: Statements) -> dict[str, SubjectKey]:
    rows = await statements.fetch(
        "SELECT id, subject, key FROM audit_subject_keys WHERE subject = ANY($1::text[])", list(subjects)
    )
    return {row["subject"]: SubjectKey(bytes(row["id"]), row["subject"], AESGCM(bytes(row["key"]))) for row in rows}


async def erase(subject: str, statements: Statements) -> int:
    """Delete the keys of a subject, within a transaction; return how many there were."""
    gone = await statements.fetch("DELETE FROM audit_subject_keys WHERE subject = $1 RETURNING 1", subject)
    return len(gone)


async def opened(entries: Iterable[Entry], database: Statements) -> dict[int, dict[str, str]]:
    """Return the personal data of entries by their numbers, without those whose key is gone."""
    sealed = [entry for entry in entries if entry.sealed]
    if not sealed:
        return {}
    rows = await database.fetch(
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


def _opened(key: AESGCM, entry: Entry) -> dict[str, str] | None:
    nonce, data = entry.sealed[ID_BYTES : ID_BYTES + NONCE_BYTES], entry.sealed[ID_BYTES + NONCE_BYTES :]
    try:
        return decode_map(key.decrypt(nonce, data, entry.subject.encode()))
    except (InvalidTag, ValueError):
        return None

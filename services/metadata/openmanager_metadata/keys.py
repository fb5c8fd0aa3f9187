"""Keys for programs."""

from __future__ import annotations

import base64
import re
import secrets
from datetime import datetime, timedelta

from openmanager import page
from openmanager.access import Grant, check_grants
from openmanager.errors import NotFoundError, invalid, missing
from openmanager.frame import check_text
from openmanager_metadata.backends import Database
from openmanager_metadata.directory import KEYS, Directory
from openmanager_metadata.identity import Key, grants_text, key_of
from openmanager_metadata.keyring import Keyring, new_secret
from openmanager_metadata.sql import plain

ID = re.compile(r"[a-z2-7]{16}")
LIFETIME, MAX_LIFETIME = timedelta(days=90), timedelta(days=366)
OVERLAP, MAX_OVERLAP = timedelta(hours=24), timedelta(days=7)


class Keys:
    """Keys in a database."""

    def __init__(self, database: Database, directory: Directory, keyring: Keyring) -> None:
        self._database = database
        self._directory = directory
        self._keyring = keyring

    async def create(
        self, description: str, grants: tuple[Grant, ...], end: datetime | None, creator: str
    ) -> tuple[Key, str]:
        """Create a key; the second is what it is used with, and kept nowhere."""
        if not description:
            raise missing("key.description")
        check_text("key.description", description, 255)
        if not grants:
            raise missing("key.grants")
        check_grants(grants, "key.grants")
        now = self._directory.now()
        end = end or now + LIFETIME
        if not now < end <= now + MAX_LIFETIME:
            raise invalid("key.end_time", f"must be within the next {MAX_LIFETIME.days} days")
        self._keyring.check_set()
        name, secret = base64.b32encode(secrets.token_bytes(10)).decode().lower(), new_secret()
        rows = await self._database.fetch(
            "INSERT INTO api_keys (id, description, grants, secret_hash, ends, creator) VALUES ($1, $2, $3, $4, $5, $6)"
            " RETURNING *",
            name,
            description,
            grants_text(grants),
            self._keyring.hash(secret),
            plain(end),
            creator,
        )
        self._directory.put(KEYS, rows)
        return key_of(rows[0]), f"omk_{name}_{secret}"

    async def get(self, key_id: str) -> Key:
        """Return one key."""
        rows = await self._database.fetch("SELECT * FROM api_keys WHERE id = $1", _checked(key_id))
        if not rows:
            raise _not_found(key_id)
        return key_of(rows[0])

    async def list(self, size: int, token: str) -> tuple[list[Key], str]:
        """Return a page of keys by id, and the next token."""
        size = page.page_size(size)
        after = page.decode_token(("keys",), token)
        rows = await self._database.fetch(
            'SELECT * FROM api_keys WHERE id COLLATE "C" > $1 ORDER BY id COLLATE "C" LIMIT $2',
            after[0] if after else "",
            size + 1,
        )
        more = page.encode_token(("keys",), [rows[size - 1]["id"]]) if len(rows) > size else ""
        return [key_of(row) for row in rows[:size]], more

    async def rotate(self, key_id: str, overlap: timedelta) -> tuple[Key, str]:
        """Give a key a new secret; the old one works on for the overlap."""
        if not timedelta() <= overlap <= MAX_OVERLAP:
            raise invalid("overlap", f"must be 0 to {MAX_OVERLAP.days} days")
        self._keyring.check_set()
        secret = new_secret()
        rows = await self._database.fetch(
            "UPDATE api_keys SET old_secret_hash = secret_hash, old_secret_ends = $3, secret_hash = $2,"
            " rotated_at = now(), updated_at = now(), version = version + 1 WHERE id = $1 RETURNING *",
            _checked(key_id),
            self._keyring.hash(secret),
            plain(self._directory.now() + overlap),
        )
        if not rows:
            raise _not_found(key_id)
        self._directory.put(KEYS, rows)
        return key_of(rows[0]), f"omk_{key_id}_{secret}"

    async def delete(self, key_id: str) -> None:
        """Revoke a key."""
        rows = await self._database.fetch("DELETE FROM api_keys WHERE id = $1 RETURNING id", _checked(key_id))
        if not rows:
            raise _not_found(key_id)
        self._directory.drop(KEYS, [key_id])


def _checked(key_id: str) -> str:
    if not key_id:
        raise missing("id")
    if not ID.fullmatch(key_id):
        raise invalid("id", "is not the id of a key")
    return key_id


def _not_found(key_id: str) -> NotFoundError:
    return NotFoundError("there is no such key", resource=f"key/{key_id}")

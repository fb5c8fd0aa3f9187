"""Sessions: signing in, staying so, and out."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from uuid import UUID

from openmanager import page
from openmanager.access import Identity
from openmanager.errors import NotFoundError, credentials_invalid, invalid
from openmanager_metadata.backends import Database
from openmanager_metadata.directory import SESSIONS, Directory
from openmanager_metadata.identity import Session, User, session_of, user_of
from openmanager_metadata.keyring import Access, Keyring, new_secret
from openmanager_metadata.sql import plain

REFRESH = re.compile(r"omr_([0-9a-f]{32})_([A-Za-z0-9_-]{43})")
ACCESS_LIFETIME = timedelta(minutes=15)
SESSION_LIFETIME = timedelta(hours=12)
# Who lost the answer to a refresh may ask once more with the same token, for so long.
AGAIN = timedelta(seconds=10)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """What a session is used with: kept nowhere but at the user's."""

    access: str = field(repr=False)
    access_end: datetime
    refresh: str = field(repr=False)
    session_end: datetime


class Sessions:
    """Sessions in a database."""

    def __init__(self, database: Database, directory: Directory, keyring: Keyring) -> None:
        self._database = database
        self._directory = directory
        self._keyring = keyring

    async def begin(self, user: User) -> Tokens:
        """Begin a session of somebody who has shown who they are."""
        self._keyring.check_set()
        secret = new_secret()
        rows = await self._database.fetch(
            "INSERT INTO sessions (user_id, refresh_hash, ends) VALUES ($1, $2, $3) RETURNING *",
            UUID(user.id),
            self._keyring.hash(secret),
            plain(self._directory.now() + SESSION_LIFETIME),
        )
        self._directory.put(SESSIONS, rows)
        return self._tokens(session_of(rows[0]), secret)

    async def refresh(self, token: str) -> Tokens:
        """Exchange a refresh token; one that was exchanged before is somebody else's too, and ends the session."""
        match = REFRESH.fullmatch(token)
        key, secret = (UUID(match[1]), match[2]) if match else (UUID(int=0), "")
        rows = await self._database.fetch("SELECT * FROM sessions WHERE id = $1", key)
        known, now = (session_of(rows[0]) if rows else None), self._directory.now()
        is_current = self._keyring.matches(secret, known.refresh_hash if known else None)
        is_old = self._keyring.matches(secret, known.old_refresh_hash if known else None)
        if known is None or known.end <= now or not (is_current or is_old):
            raise credentials_invalid()
        if not is_current and now > known.refresh_time + AGAIN:
            await self._end(key)
            raise credentials_invalid()
        users = await self._database.fetch("SELECT * FROM users WHERE id = $1", UUID(known.user))
        if not users or user_of(users[0]).disabled:
            raise credentials_invalid()
        new = new_secret()
        rows = await self._database.fetch(
            "UPDATE sessions SET refresh_hash = $2, old_refresh_hash = $3, updated_at = $4, version = version + 1"
            " WHERE id = $1 RETURNING *",
            key,
            self._keyring.hash(new),
            self._keyring.hash(secret),
            plain(now),
        )
        if not rows:
            raise credentials_invalid()
        self._directory.put(SESSIONS, rows)
        return self._tokens(session_of(rows[0]), new)

    async def list(self, user_id: str, size: int, token: str) -> tuple[list[Session], str]:
        """Return a page of a user's sessions, the newest last, and the next token."""
        size = page.page_size(size)
        after = page.decode_token((user_id,), token)
        rows = await self._database.fetch(
            "SELECT * FROM sessions WHERE user_id::text = $1 AND ends > now() AND id::text > $2"
            " ORDER BY id::text LIMIT $3",
            user_id,
            after[0] if after else "",
            size + 1,
        )
        more = page.encode_token((user_id,), [str(rows[size - 1]["id"])]) if len(rows) > size else ""
        return [session_of(row) for row in rows[:size]], more

    async def end(self, session_id: str, user_id: str | None) -> None:
        """End a session, of one user only where one is given."""
        try:
            key = UUID(session_id)
        except ValueError as err:
            raise invalid("id", "is not the id of a session") from err
        rows = await self._database.fetch("SELECT user_id FROM sessions WHERE id = $1", key)
        if not rows or (user_id is not None and str(rows[0]["user_id"]) != user_id):
            raise NotFoundError("there is no such session", resource=f"session/{session_id}")
        await self._end(key)

    async def identity(self, credential: str) -> Identity:
        """Return whose a key or an access token is; UnauthenticatedError, without a why, when it is nobody's."""
        return await self._directory.find(credential, self._database)

    async def forget_ended(self) -> None:
        """Remove the sessions that have ended."""
        await self._database.fetch("DELETE FROM sessions WHERE ends < now()")

    async def _end(self, key: UUID) -> None:
        await self._database.fetch("DELETE FROM sessions WHERE id = $1", key)
        self._directory.drop(SESSIONS, [str(key)])

    def _tokens(self, session: Session, secret: str) -> Tokens:
        now = self._directory.now()
        end = min(now + ACCESS_LIFETIME, session.end)
        access = Access(user=session.user, session=session.id, end=int(end.timestamp()))
        return Tokens(
            access=self._keyring.access_token(access, int(now.timestamp())),
            access_end=end,
            refresh=f"omr_{UUID(session.id).hex}_{secret}",
            session_end=session.end,
        )

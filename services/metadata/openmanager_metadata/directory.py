"""Everybody who may come in, in memory: who is calling is said without asking the database, and while it is away.

Changes made here show at once, those of another metadata service with the next copy; but who came in through that one
is looked for in the database when they come here.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any
from uuid import UUID

from openmanager.access import Identity
from openmanager.errors import OpenManagerError, UnauthenticatedError, UnavailableError, credentials_invalid
from openmanager.runtime.clock import Clock, to_datetime
from openmanager_metadata.backends import Database, Row
from openmanager_metadata.identity import Key, Session, User, key_of, session_of, user_of
from openmanager_metadata.keyring import Keyring
from openmanager_metadata.sql import plain

# `omk_<id>_<secret>` is a key, `omr_…` refreshes a session, `omi_…` is an invitation: who finds one knows what it is.
KEY = re.compile(r"omk_([a-z2-7]{16})_([A-Za-z0-9_-]{43})")
USERS, KEYS, SESSIONS = "users", "api_keys", "sessions"
TABLES = (USERS, KEYS, SESSIONS)
_OF_ROW: dict[str, Callable[[Row], Any]] = {USERS: user_of, KEYS: key_of, SESSIONS: session_of}


class Directory:
    """The users, the keys, and the sessions that have not ended. Rows are kept as they were read, to be given back."""

    def __init__(self, keyring: Keyring, clock: Clock) -> None:
        self.users: dict[str, User] = {}
        self.keys: dict[str, Key] = {}
        self.sessions: dict[str, Session] = {}
        self.rows: dict[str, dict[str, Row]] = {table: {} for table in TABLES}
        self.known = False
        self._keyring = keyring
        self._clock = clock
        self._used: dict[str, datetime] = {}
        self._kept: dict[str, dict[str, Any]] = {USERS: self.users, KEYS: self.keys, SESSIONS: self.sessions}

    def now(self) -> datetime:
        """Return the time."""
        return to_datetime(self._clock.now_nanos())

    # ── keeping it ─────────────────────────────────────────────────────────────────────────────────────────────────

    async def copy(self, database: Database) -> None:
        """Read everybody; note in the database which keys were used."""
        await self._write_uses(database)
        found = {
            USERS: await database.fetch("SELECT * FROM users"),
            KEYS: await database.fetch("SELECT * FROM api_keys"),
            SESSIONS: await database.fetch("SELECT * FROM sessions WHERE ends > now()"),
        }
        for table, rows in found.items():
            self.rows[table] = {}
            self._kept[table].clear()
            self.put(table, rows)
        self.known = True

    def put(self, table: str, rows: Iterable[Row]) -> None:
        """Take rows that were just written."""
        for row in rows:
            name = str(row["id"])
            self.rows[table][name] = row
            self._kept[table][name] = _OF_ROW[table](row)

    def drop(self, table: str, names: Iterable[str]) -> None:
        """Forget rows that were just deleted."""
        for name in names:
            self.rows[table].pop(name, None)
            self._kept[table].pop(name, None)

    async def _write_uses(self, database: Database) -> None:
        used, self._used = self._used, {}
        if not used:
            return
        try:
            await database.fetch(
                "UPDATE api_keys SET used_at = greatest(used_at, u.at) FROM unnest($1::text[], $2::timestamp[])"
                " AS u(id, at) WHERE api_keys.id = u.id",
                list(used),
                [plain(at) for at in used.values()],
            )
        except OpenManagerError:
            self._used = {**used, **self._used}
            raise

    # ── asking it ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def find(self, credential: str, database: Database) -> Identity:
        """Return whose a key or an access token is, as `identity` does; who is not known here may be in the database."""
        try:
            return self.identity(credential)
        except UnauthenticatedError:
            with contextlib.suppress(UnavailableError):
                await self._look_for(credential, database)
        return self.identity(credential)

    async def _look_for(self, credential: str, database: Database) -> None:
        """Read what there is of a credential; UnauthenticatedError for a token that nobody of ours has made."""
        if match := KEY.fullmatch(credential):
            self.put(KEYS, await database.fetch("SELECT * FROM api_keys WHERE id = $1", match[1]))
            return
        access = self._keyring.read_access_token(credential, self._clock.now_nanos() / 1e9)
        session, user = UUID(access.session), UUID(access.user)
        self.put(USERS, await database.fetch("SELECT * FROM users WHERE id = $1", user))
        self.put(SESSIONS, await database.fetch("SELECT * FROM sessions WHERE id = $1 AND ends > now()", session))

    def identity(self, credential: str) -> Identity:
        """Return whose a key or an access token is; UnauthenticatedError, without a why, when it is nobody's."""
        match = KEY.fullmatch(credential)
        return self._of_key(*match.groups()) if match else self._of_token(credential)

    def _of_key(self, name: str, secret: str) -> Identity:
        key, now = self.keys.get(name), self.now()
        is_current = self._keyring.matches(secret, key.secret_hash if key else None)
        is_old = self._keyring.matches(secret, key.old_secret_hash if key else None)
        if key is None or key.end <= now:
            raise credentials_invalid()
        end = key.end
        if not is_current:
            if not is_old or key.old_secret_end is None or key.old_secret_end <= now:
                raise credentials_invalid()
            end = min(end, key.old_secret_end)
        self._used[name] = now
        return Identity(f"keys/{name}", key.grants, end=end.timestamp())

    def _of_token(self, token: str) -> Identity:
        access = self._keyring.read_access_token(token, self._clock.now_nanos() / 1e9)
        session, user = self.sessions.get(access.session), self.users.get(access.user)
        if session is None or user is None or session.user != user.id or user.disabled or session.end <= self.now():
            raise credentials_invalid()
        return Identity(user.subject, user.grants, end=float(access.end), session=session.id)

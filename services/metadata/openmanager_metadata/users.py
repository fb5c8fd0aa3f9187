"""Users: made and invited by who may manage, changed, removed; their passwords are theirs alone."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from uuid import UUID

from openmanager import page
from openmanager.access import Grant, Role, check_grants
from openmanager.errors import (
    AbortedError,
    AlreadyExistsError,
    FailedPreconditionError,
    NotFoundError,
    Reason,
    credentials_invalid,
    invalid,
    missing,
)
from openmanager.frame import check_text
from openmanager.runtime.attempts import Attempts
from openmanager_metadata.backends import USERS_LOCK, Database, Row, Statements
from openmanager_metadata.directory import SESSIONS, USERS, Directory
from openmanager_metadata.identity import User, grants_text, user_of
from openmanager_metadata.keyring import Keyring, new_secret
from openmanager_metadata.password import Passwords, check_password, is_outdated
from openmanager_metadata.sql import plain

NAME_LENGTH = 64
NAME = re.compile(rf"[a-z0-9][a-z0-9._@-]{{0,{NAME_LENGTH - 1}}}")
INVITATION = re.compile(r"omi_([0-9a-f]{32})_([A-Za-z0-9_-]{43})")
INVITATION_LIFETIME, MAX_INVITATION_LIFETIME = timedelta(days=7), timedelta(days=30)
UPDATABLE = ("name", "grants", "disabled", "lock_end_time")
# So many wrong passwords in a row, and the password is not asked for during this time.
MAX_FAILURES, LOCK_TIME = 10, timedelta(minutes=15)
_ADMINS = (
    'SELECT count(*) AS admins FROM users WHERE NOT disabled AND grants @> \'[{"role": "admin", "server_filter": ""}]\''
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Invitation:
    """What somebody sets a password with: `text` is kept nowhere."""

    text: str = field(repr=False)
    end: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """What is to become of a user; `fields` are those of UPDATABLE that are meant."""

    fields: Sequence[str]
    name: str = ""
    grants: tuple[Grant, ...] = ()
    disabled: bool = False
    clear_lock: bool = True
    etag: str = ""


class Users:
    """Users in a database."""

    def __init__(
        self, database: Database, directory: Directory, keyring: Keyring, passwords: Passwords, attempts: Attempts
    ) -> None:
        self._database = database
        self._directory = directory
        self._keyring = keyring
        self._passwords = passwords
        self._attempts = attempts

    # ── by who may manage ──────────────────────────────────────────────────────────────────────────────────────────

    async def create(self, name: str, grants: tuple[Grant, ...], lifetime: timedelta) -> tuple[User, Invitation]:
        """Create a user, and what they are invited with."""
        check_name(name, "user.name")
        check_grants(grants, "user.grants")
        self._keyring.check_set()
        secret, end = new_secret(), self._directory.now() + lifetime
        rows = await self._database.fetch(
            "INSERT INTO users (name, grants, invitation_hash, invitation_ends) VALUES ($1, $2, $3, $4)"
            " ON CONFLICT (name) DO NOTHING RETURNING *",
            name,
            grants_text(grants),
            self._keyring.hash(secret),
            plain(end),
        )
        if not rows:
            raise AlreadyExistsError("there is such a user already", resource=f"user/{name}")
        user = self._took(rows[0])
        return user, _invitation(user, secret, end)

    async def get(self, name: str) -> User:
        """Return a user by id or name."""
        if not name:
            raise missing("id")
        if not NAME.fullmatch(name):  # an id is one, too
            raise invalid("id", "is neither the id of a user nor a name")
        rows = await self._database.fetch("SELECT * FROM users WHERE id::text = $1 OR name = $1", name)
        if not rows:
            raise _not_found(name)
        return user_of(rows[0])

    async def list(self, size: int, token: str) -> tuple[list[User], str]:
        """Return a page of users by name, and the next token."""
        size = page.page_size(size)
        after = page.decode_token(("users",), token)
        rows = await self._database.fetch(
            'SELECT * FROM users WHERE name COLLATE "C" > $1 ORDER BY name COLLATE "C" LIMIT $2',
            after[0] if after else "",
            size + 1,
        )
        more = page.encode_token(("users",), [rows[size - 1]["name"]]) if len(rows) > size else ""
        return [user_of(row) for row in rows[:size]], more

    async def update(self, user_id: str, changes: Changes) -> User:
        """Change some fields; who is disabled is signed out."""
        check_text("user.etag", changes.etag, 64)
        if "name" in changes.fields:
            check_name(changes.name, "user.name")
        if "grants" in changes.fields:
            check_grants(changes.grants, "user.grants")
        if "lock_end_time" in changes.fields and not changes.clear_lock:
            raise invalid("user.lock_end_time", "can only be cleared")
        key = _uuid(user_id, "user.id")

        async def work(database: Statements) -> Row:
            await _lock(database)
            rows = await database.fetch("SELECT * FROM users WHERE id = $1", key)
            if not rows:
                raise _not_found(user_id)
            if changes.etag and changes.etag != user_of(rows[0]).etag:
                raise AbortedError("the user was changed in between: read it again")
            same = await database.fetch("SELECT 1 FROM users WHERE name = $1 AND id <> $2", changes.name, key)
            if "name" in changes.fields and same:
                raise AlreadyExistsError("there is such a user already", resource=f"user/{changes.name}")
            meant = [name in changes.fields for name in UPDATABLE]
            rows = await database.fetch(
                "UPDATE users SET name = CASE WHEN $2 THEN $6 ELSE name END,"
                " grants = CASE WHEN $3 THEN $7::jsonb ELSE grants END,"
                " disabled = CASE WHEN $4 THEN $8 ELSE disabled END,"
                " locked_until = CASE WHEN $5 THEN NULL ELSE locked_until END,"
                " failures = CASE WHEN $5 THEN 0 ELSE failures END,"
                " version = version + 1, updated_at = now() WHERE id = $1 RETURNING *",
                key,
                *meant,
                changes.name,
                grants_text(changes.grants),
                changes.disabled,
            )
            await _check_admin_left(database)
            return rows[0]

        user = self._took(await self._database.transaction(work))
        if user.disabled:
            await self._end_sessions(user.id)
        return user

    async def delete(self, user_id: str, etag: str) -> None:
        """Remove a user, and their sessions with them."""
        check_text("etag", etag, 64)
        key = _uuid(user_id, "id")

        async def work(database: Statements) -> None:
            await _lock(database)
            rows = await database.fetch("SELECT * FROM users WHERE id = $1", key)
            if not rows:
                raise _not_found(user_id)
            if etag and etag != user_of(rows[0]).etag:
                raise AbortedError("the user was changed in between: read it again")
            await database.fetch("DELETE FROM users WHERE id = $1", key)
            await _check_admin_left(database)

        await self._database.transaction(work)
        self._directory.drop(USERS, [user_id])
        self._directory.drop(SESSIONS, [each.id for each in self._directory.sessions.values() if each.user == user_id])

    async def invite(self, user_id: str, lifetime: timedelta) -> Invitation:
        """Invite a user again; an older invitation ends, the password stays until the new one is taken."""
        self._keyring.check_set()
        secret, end = new_secret(), self._directory.now() + lifetime
        rows = await self._database.fetch(
            "UPDATE users SET invitation_hash = $2, invitation_ends = $3, version = version + 1, updated_at = now()"
            " WHERE id = $1 RETURNING *",
            _uuid(user_id, "id"),
            self._keyring.hash(secret),
            plain(end),
        )
        if not rows:
            raise _not_found(user_id)
        return _invitation(self._took(rows[0]), secret, end)

    # ── by themselves ──────────────────────────────────────────────────────────────────────────────────────────────

    async def accept(self, invitation: str, password: str, source: str) -> User:
        """Take an invitation: set the password and end every session."""
        self._attempts.check(source, "")
        match = INVITATION.fullmatch(invitation)
        key = UUID(match[1]) if match else UUID(int=0)
        rows = await self._database.fetch("SELECT * FROM users WHERE id = $1", key)
        user = user_of(rows[0]) if rows else None
        fits = self._keyring.matches(match[2] if match else "", user.invitation_hash if user else None)
        if user is None or not fits or user.disabled or not self._holds(user.invitation_end):
            self._attempts.failed(source, "")
            raise credentials_invalid()
        check_password(password, user.name, "password")
        rows = await self._database.fetch(
            "UPDATE users SET password_hash = $3, invitation_hash = NULL, invitation_ends = NULL, failures = 0,"
            " locked_until = NULL, version = version + 1, updated_at = now()"
            " WHERE id = $1 AND invitation_hash = $2 RETURNING *",
            key,
            user.invitation_hash,
            await self._passwords.hash(password),
        )
        if not rows:
            raise credentials_invalid()  # somebody else took it in between
        await self._end_sessions(user.id)
        return self._took(rows[0])

    async def sign_in(self, name: str, password: str, source: str) -> User:
        """Return the user of a name and a password; the error does not tell which of the two was wrong."""
        self._attempts.check(source, name)
        rows = await self._database.fetch("SELECT * FROM users WHERE name = $1", name[: NAME_LENGTH + 1])
        user = user_of(rows[0]) if rows else None
        locked = user is not None and self._holds(user.lock_end)
        fits = await self._passwords.verify(user.password_hash if user and not locked else None, password)
        if user is None or not fits or user.disabled:
            self._attempts.failed(source, name)
            if user is not None and not locked and not fits:
                await self._count_failure(user)
            raise credentials_invalid()
        known = user.password_hash or ""
        renewed = await self._passwords.hash(password) if is_outdated(known) else known
        rows = await self._database.fetch(
            "UPDATE users SET failures = 0, locked_until = NULL, signed_in_at = now(), password_hash = $2"
            " WHERE id = $1 RETURNING *",
            UUID(user.id),
            renewed,
        )
        return self._took(rows[0])

    async def change_password(self, user_id: str, password: str, new_password: str, source: str) -> User:
        """Change the password of who knows it, and end every session."""
        rows = await self._database.fetch("SELECT * FROM users WHERE id = $1", UUID(user_id))
        if not rows:
            raise credentials_invalid()
        check_password(new_password, rows[0]["name"], "new_password")
        user = await self.sign_in(rows[0]["name"], password, source)
        rows = await self._database.fetch(
            "UPDATE users SET password_hash = $2, version = version + 1, updated_at = now() WHERE id = $1 RETURNING *",
            UUID(user.id),
            await self._passwords.hash(new_password),
        )
        await self._end_sessions(user.id)
        return self._took(rows[0])

    # ── inside ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _count_failure(self, user: User) -> None:
        rows = await self._database.fetch(
            "UPDATE users SET failures = failures % $2 + 1,"
            " locked_until = CASE WHEN failures + 1 >= $2 THEN $3::timestamp ELSE locked_until END"
            " WHERE id = $1 RETURNING *",
            UUID(user.id),
            MAX_FAILURES,
            plain(self._directory.now() + LOCK_TIME),
        )
        if rows:
            self._took(rows[0])

    async def _end_sessions(self, user_id: str) -> None:
        rows = await self._database.fetch("DELETE FROM sessions WHERE user_id = $1 RETURNING id", UUID(user_id))
        self._directory.drop(SESSIONS, [str(row["id"]) for row in rows])

    def _holds(self, end: datetime | None) -> bool:
        return end is not None and end > self._directory.now()

    def _took(self, row: Row) -> User:
        self._directory.put(USERS, [row])
        return user_of(row)


def check_name(name: str, field: str) -> None:
    """Raise InvalidArgumentError, naming the field, for what no user can be called."""
    if not name:
        raise missing(field)
    if not NAME.fullmatch(name):
        raise invalid(field, f"must be 1–{NAME_LENGTH} characters of [a-z0-9][a-z0-9._@-]*")


async def _lock(database: Statements) -> None:
    """Let changes of users follow each other, so that none of two can take the last administrator away."""
    await database.fetch("SELECT pg_advisory_xact_lock($1)", USERS_LOCK)


async def _check_admin_left(database: Statements) -> None:
    if not (await database.fetch(_ADMINS))[0]["admins"]:
        raise FailedPreconditionError(
            f"nobody with the role {Role.ADMIN} over all servers would be left", reason=Reason.LAST_ADMIN
        )


def _invitation(user: User, secret: str, end: datetime) -> Invitation:
    return Invitation(text=f"omi_{UUID(user.id).hex}_{secret}", end=end)


def _uuid(text: str, field: str) -> UUID:
    if not text:
        raise missing(field)
    try:
        return UUID(text)
    except ValueError as err:
        raise invalid(field, "is not the id of a user") from err


def _not_found(name: str) -> NotFoundError:
    return NotFoundError("there is no such user", resource=f"user/{name}")

"""Users, keys and sessions as their tables hold them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from openmanager.access import Grant, known_grants
from openmanager_metadata.sql import aware

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """A person."""

    id: str
    name: str
    grants: tuple[Grant, ...]
    disabled: bool
    password_hash: str | None
    invitation_hash: bytes | None
    invitation_end: datetime | None
    failures: int
    lock_end: datetime | None
    create_time: datetime
    sign_in_time: datetime | None
    version: int

    @property
    def subject(self) -> str:
        """How the audit names them."""
        return f"users/{self.id}"

    @property
    def etag(self) -> str:
        """Changes with every change."""
        return f"v{self.version}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """A key for a program."""

    id: str
    description: str
    grants: tuple[Grant, ...]
    secret_hash: bytes
    old_secret_hash: bytes | None
    old_secret_end: datetime | None
    end: datetime
    creator: str
    create_time: datetime
    use_time: datetime | None
    rotate_time: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """A user's being signed in."""

    id: str
    user: str
    refresh_hash: bytes
    old_refresh_hash: bytes | None
    end: datetime
    create_time: datetime
    refresh_time: datetime


def grants_of(text: str) -> tuple[Grant, ...]:
    """Return the grants of a column."""
    return known_grants((each["role"], each["server_filter"]) for each in json.loads(text))


def grants_text(grants: Sequence[Grant]) -> str:
    """Return grants as they are stored."""
    return json.dumps([{"role": str(each.role), "server_filter": each.server_filter} for each in grants])


def user_of(row: Row) -> User:
    """Return the user of a row."""
    return User(
        id=str(row["id"]),
        name=row["name"],
        grants=grants_of(row["grants"]),
        disabled=row["disabled"],
        password_hash=row["password_hash"],
        invitation_hash=row["invitation_hash"],
        invitation_end=aware(row["invitation_ends"]),
        failures=row["failures"],
        lock_end=aware(row["locked_until"]),
        create_time=aware(row["created_at"]),
        sign_in_time=aware(row["signed_in_at"]),
        version=row["version"],
    )


def key_of(row: Row) -> Key:
    """Return the key of a row."""
    return Key(
        id=row["id"],
        description=row["description"],
        grants=grants_of(row["grants"]),
        secret_hash=row["secret_hash"],
        old_secret_hash=row["old_secret_hash"],
        old_secret_end=aware(row["old_secret_ends"]),
        end=aware(row["ends"]),
        creator=row["creator"],
        create_time=aware(row["created_at"]),
        use_time=aware(row["used_at"]),
        rotate_time=aware(row["rotated_at"]),
    )


def session_of(row: Row) -> Session:
    """Return the session of a row."""
    return Session(
        id=str(row["id"]),
        user=str(row["user_id"]),
        refresh_hash=row["refresh_hash"],
        old_refresh_hash=row["old_refresh_hash"],
        end=aware(row["ends"]),
        create_time=aware(row["created_at"]),
        refresh_time=aware(row["updated_at"]),
    )

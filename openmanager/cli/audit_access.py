"""The access review of the auditor's report: who may do what, over which servers, until when, and when they were last seen."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from openmanager.cli.render import show_utc

if TYPE_CHECKING:
    from openmanager.client import Client
    from openmanager.client.people import Grant, Key, User


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """What somebody may do: one grant, or none. `name` is that of a person, or what a key is for; times are texts in UTC.

    `state` is active, invited, locked, disabled or expired; `creator` and `end` are of keys alone.
    """

    subject: str
    name: str
    state: str
    role: str = ""
    scope: str = ""
    created: str = ""
    creator: str = ""
    end: str = ""
    last_seen: str = ""

    @property
    def is_person(self) -> bool:
        """Whether it is a person, and not a program."""
        return self.subject.startswith("users/")


async def access_review(client: Client) -> list[Access]:
    """Return who may do what: a row for each grant, users first; who may do nothing has one too."""
    now = datetime.now(UTC)
    found = []
    async for user in client.users.list():
        found += [_of_user(user, grant, now) for grant in user.grants or (None,)]
    async for key in client.keys.list():
        found += [_of_key(key, grant, now) for grant in key.grants or (None,)]
    return found


def _of_user(user: User, grant: Grant | None, now: datetime) -> Access:
    if user.disabled:
        state = "disabled"
    elif not user.activated:
        state = "invited"
    else:
        state = "locked" if user.lock_end_time and user.lock_end_time > now else "active"
    return Access(
        subject=f"users/{user.id}",
        name=user.name,
        state=state,
        role=grant.role if grant else "",
        scope=_scope(grant),
        created=show_utc(user.create_time),
        last_seen=show_utc(user.sign_in_time) or "never",
    )


def _of_key(key: Key, grant: Grant | None, now: datetime) -> Access:
    return Access(
        subject=f"keys/{key.id}",
        name=key.description,
        state="expired" if key.end_time and key.end_time <= now else "active",
        role=grant.role if grant else "",
        scope=_scope(grant),
        created=show_utc(key.create_time),
        creator=key.creator,
        end=show_utc(key.end_time),
        last_seen=show_utc(key.use_time) or "never",
    )


def _scope(grant: Grant | None) -> str:
    return (grant.server_filter or "all servers") if grant else ""

"""Who may come in and what they may do: users, keys, sessions, roles."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from google.protobuf.field_mask_pb2 import FieldMask

from openmanager.api.metadata.v1 import identity_pb2 as pb
from openmanager.client import codec, rpc
from openmanager.client.rpc import DEADLINE_SECONDS, Rpc

# Hashing a password takes time on purpose, and may have to wait its turn.
PASSWORD_SECONDS = 15.0


@dataclass(frozen=True, slots=True)
class Grant:
    """A role (`viewer`, `operator`, `admin`, `auditor`, `service`) over all servers, or over those of a filter."""

    role: str
    server_filter: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """A person; `activated` once they have chosen a password."""

    id: str
    name: str
    grants: tuple[Grant, ...] = ()
    disabled: bool = False
    activated: bool = False
    lock_end_time: datetime | None = None
    etag: str = ""
    create_time: datetime | None = None
    sign_in_time: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """A key for a program, without its secret."""

    id: str
    description: str
    grants: tuple[Grant, ...]
    end_time: datetime | None = None
    creator: str = ""
    create_time: datetime | None = None
    use_time: datetime | None = None
    rotate_time: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Invitation:
    """What somebody sets a password with; shown once."""

    text: str = field(repr=False)
    end_time: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """What a session is used with."""

    access_token: str = field(repr=False)
    access_end_time: datetime
    refresh_token: str = field(repr=False)
    session_end_time: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who is calling, and what they may do."""

    subject: str
    grants: tuple[Grant, ...]
    permissions: tuple[str, ...]
    end_time: datetime | None = None


class Users:
    """Manages users; and what somebody does for themselves."""

    def __init__(self, calls: Rpc) -> None:
        self._calls = calls

    async def create(
        self,
        name: str,
        grants: Sequence[Grant],
        *,
        lifetime: timedelta | None = None,
        seconds: float = DEADLINE_SECONDS,
    ) -> tuple[User, Invitation]:
        """Create a user, and an invitation that holds for `lifetime` (7 days); AlreadyExistsError for a taken name."""
        request = pb.CreateUserRequest(user=pb.User(name=name, grants=_grants(grants)))
        if lifetime is not None:
            request.invitation_lifetime.CopyFrom(codec.duration(lifetime))
        reply = await self._calls.call(rpc.CREATE_USER, request, seconds=seconds)
        return _user(reply.user), _invitation(reply)

    async def get(self, name: str, *, seconds: float = DEADLINE_SECONDS) -> User:
        """Return a user by id or name; NotFoundError when there is none."""
        return _user((await self._calls.call(rpc.GET_USER, pb.GetUserRequest(id=name), seconds=seconds)).user)

    async def list(self, *, limit: int | None = None, seconds: float = DEADLINE_SECONDS) -> AsyncIterator[User]:
        """Yield users by name, page after page."""
        async for page in self._calls.pages(rpc.LIST_USERS, pb.ListUsersRequest(), limit=limit, seconds=seconds):
            for each in page.users:
                yield _user(each)

    async def update(
        self,
        user_id: str,
        *,
        name: str | None = None,
        grants: Sequence[Grant] | None = None,
        disabled: bool | None = None,
        unlock: bool = False,
        etag: str = "",
        seconds: float = DEADLINE_SECONDS,
    ) -> User:
        """Change what is given and return the user as it is now."""
        user = pb.User(id=user_id, etag=etag, name=name or "", grants=_grants(grants or ()), disabled=bool(disabled))
        meant = {"name": name, "grants": grants, "disabled": disabled, "lock_end_time": unlock or None}
        mask = FieldMask(paths=[field for field, value in meant.items() if value is not None])
        request = pb.UpdateUserRequest(user=user, update_mask=mask)
        return _user((await self._calls.call(rpc.UPDATE_USER, request, seconds=seconds)).user)

    async def delete(self, user_id: str, *, etag: str = "", seconds: float = DEADLINE_SECONDS) -> None:
        """Remove a user with everything that is personal."""
        await self._calls.call(rpc.DELETE_USER, pb.DeleteUserRequest(id=user_id, etag=etag), seconds=seconds)

    async def invite(
        self, user_id: str, *, lifetime: timedelta | None = None, seconds: float = DEADLINE_SECONDS
    ) -> Invitation:
        """Make a new invitation; an older one ends."""
        request = pb.InviteUserRequest(id=user_id)
        if lifetime is not None:
            request.invitation_lifetime.CopyFrom(codec.duration(lifetime))
        return _invitation(await self._calls.call(rpc.INVITE_USER, request, seconds=seconds))

    async def accept(self, invitation: str, password: str, *, seconds: float = PASSWORD_SECONDS) -> tuple[User, Tokens]:
        """Take an invitation: set the password and sign in."""
        request = pb.AcceptInvitationRequest(invitation=invitation, password=password)
        reply = await self._calls.call(rpc.ACCEPT_INVITATION, request, seconds=seconds)
        return _user(reply.user), _tokens(reply.tokens)

    async def change_password(self, password: str, new_password: str, *, seconds: float = PASSWORD_SECONDS) -> Tokens:
        """Change one's own password; all other sessions end."""
        request = pb.ChangePasswordRequest(password=password, new_password=new_password)
        return _tokens((await self._calls.call(rpc.CHANGE_PASSWORD, request, seconds=seconds)).tokens)


class Keys:
    """Manages keys."""

    def __init__(self, calls: Rpc) -> None:
        self._calls = calls

    async def create(
        self,
        description: str,
        grants: Sequence[Grant],
        *,
        end_time: datetime | None = None,
        seconds: float = DEADLINE_SECONDS,
    ) -> tuple[Key, str]:
        """Create a key that ends in 90 days unless told otherwise; the second is its secret, shown once."""
        request = pb.CreateKeyRequest(key=pb.Key(description=description, grants=_grants(grants)))
        if end_time is not None:
            request.key.end_time.CopyFrom(codec.timestamp(end_time, "end_time"))
        reply = await self._calls.call(rpc.CREATE_KEY, request, seconds=seconds)
        return _key(reply.key), reply.secret

    async def get(self, key_id: str, *, seconds: float = DEADLINE_SECONDS) -> Key:
        """Return a key; NotFoundError when there is none."""
        return _key((await self._calls.call(rpc.GET_KEY, pb.GetKeyRequest(id=key_id), seconds=seconds)).key)

    async def list(self, *, limit: int | None = None, seconds: float = DEADLINE_SECONDS) -> AsyncIterator[Key]:
        """Yield keys by id, page after page."""
        async for page in self._calls.pages(rpc.LIST_KEYS, pb.ListKeysRequest(), limit=limit, seconds=seconds):
            for each in page.keys:
                yield _key(each)

    async def rotate(
        self, key_id: str, *, overlap: timedelta | None = None, seconds: float = DEADLINE_SECONDS
    ) -> tuple[Key, str]:
        """Give a key a new secret; the old one works on for `overlap` (24 hours)."""
        request = pb.RotateKeyRequest(id=key_id)
        if overlap is not None:
            request.overlap.CopyFrom(codec.duration(overlap))
        reply = await self._calls.call(rpc.ROTATE_KEY, request, seconds=seconds)
        return _key(reply.key), reply.secret

    async def delete(self, key_id: str, *, seconds: float = DEADLINE_SECONDS) -> None:
        """Revoke a key."""
        await self._calls.call(rpc.DELETE_KEY, pb.DeleteKeyRequest(id=key_id), seconds=seconds)


class Sessions:
    """Signs in and out."""

    def __init__(self, calls: Rpc) -> None:
        self._calls = calls

    async def begin(self, name: str, password: str, *, seconds: float = PASSWORD_SECONDS) -> Tokens:
        """Sign in; UnauthenticatedError when name or password are wrong."""
        request = pb.CreateSessionRequest(name=name, password=password)
        return _tokens((await self._calls.call(rpc.CREATE_SESSION, request, seconds=seconds)).tokens)

    async def refresh(self, refresh_token: str, *, seconds: float = DEADLINE_SECONDS) -> Tokens:
        """Exchange a refresh token for new tokens."""
        request = pb.RefreshSessionRequest(refresh_token=refresh_token)
        return _tokens((await self._calls.call(rpc.REFRESH_SESSION, request, seconds=seconds)).tokens)

    async def end(self, session_id: str = "", *, seconds: float = DEADLINE_SECONDS) -> None:
        """End a session, by default the one of this client."""
        await self._calls.call(rpc.DELETE_SESSION, pb.DeleteSessionRequest(id=session_id), seconds=seconds)

    async def identity(self, *, seconds: float = DEADLINE_SECONDS) -> Identity:
        """Return who this client is and what it may do."""
        reply = await self._calls.call(rpc.GET_IDENTITY, pb.GetIdentityRequest(), seconds=seconds)
        return Identity(
            subject=reply.identity.subject,
            grants=_read_grants(reply.identity.grants),
            permissions=tuple(reply.permissions),
            end_time=codec.moment(reply.identity, "end_time"),
        )


def _grants(grants: Sequence[Grant]) -> list[pb.Grant]:
    return [pb.Grant(role=each.role, server_filter=each.server_filter) for each in grants]


def _read_grants(messages: Any) -> tuple[Grant, ...]:
    return tuple(Grant(each.role, each.server_filter) for each in messages)


def _user(message: pb.User) -> User:
    return User(
        id=message.id,
        name=message.name,
        grants=_read_grants(message.grants),
        disabled=message.disabled,
        activated=message.activated,
        lock_end_time=codec.moment(message, "lock_end_time"),
        etag=message.etag,
        create_time=codec.moment(message, "create_time"),
        sign_in_time=codec.moment(message, "sign_in_time"),
    )


def _key(message: pb.Key) -> Key:
    return Key(
        id=message.id,
        description=message.description,
        grants=_read_grants(message.grants),
        end_time=codec.moment(message, "end_time"),
        creator=message.creator,
        create_time=codec.moment(message, "create_time"),
        use_time=codec.moment(message, "use_time"),
        rotate_time=codec.moment(message, "rotate_time"),
    )


def _invitation(message: Any) -> Invitation:
    return Invitation(text=message.invitation, end_time=message.invitation_end_time.ToDatetime(tzinfo=UTC))


def _tokens(message: pb.Tokens) -> Tokens:
    return Tokens(
        access_token=message.access_token,
        access_end_time=message.access_end_time.ToDatetime(tzinfo=UTC),
        refresh_token=message.refresh_token,
        session_end_time=message.session_end_time.ToDatetime(tzinfo=UTC),
    )

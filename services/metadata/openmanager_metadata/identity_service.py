"""The edges of users, roles, keys and sessions."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

from openmanager import policy
from openmanager.access import (
    DESCRIPTIONS,
    NOBODY,
    PERMISSIONS,
    ROLES,
    Caller,
    Grant,
    Identity,
    Permission,
    Role,
    caller,
    check_role,
)
from openmanager.api.metadata.v1 import identity_pb2 as pb
from openmanager.errors import (
    FailedPreconditionError,
    NotFoundError,
    PermissionDeniedError,
    credentials_invalid,
    invalid,
    missing,
)
from openmanager.frame import check_text
from openmanager.runtime import validate
from openmanager_metadata import keys, users
from openmanager_metadata.identity import Key, Session, User
from openmanager_metadata.keys import Keys
from openmanager_metadata.sessions import Sessions, Tokens
from openmanager_metadata.users import Changes, Users

MAX_CREDENTIAL = 4096
# What everybody has, and what nobody is given.
_UNSAID = frozenset({Permission.NOTHING, Permission.SELF, Permission.MESH})
_USERS = "users/"


class UserService:
    """openmanager.api.metadata.v1.UserService."""

    def __init__(self, users: Users, sessions: Sessions) -> None:
        self._users = users
        self._sessions = sessions

    async def CreateUser(self, request: pb.CreateUserRequest, context: Any) -> pb.CreateUserResponse:  # noqa: ARG002, N802
        """Create a user and an invitation."""
        lifetime = _lifetime(request)
        user, made = await self._users.create(request.user.name, _grants(request.user.grants, "user.grants"), lifetime)
        reply = pb.CreateUserResponse(user=_user(user), invitation=made.text)
        reply.invitation_end_time.FromDatetime(made.end)
        return reply

    async def GetUser(self, request: pb.GetUserRequest, context: Any) -> pb.GetUserResponse:  # noqa: ARG002, N802
        """Return one user."""
        return pb.GetUserResponse(user=_user(await self._users.get(request.id)))

    async def ListUsers(self, request: pb.ListUsersRequest, context: Any) -> pb.ListUsersResponse:  # noqa: ARG002, N802
        """List users."""
        found, token = await self._users.list(request.page_size, request.page_token)
        return pb.ListUsersResponse(users=map(_user, found), next_page_token=token)

    async def UpdateUser(self, request: pb.UpdateUserRequest, context: Any) -> pb.UpdateUserResponse:  # noqa: ARG002, N802
        """Change some fields of a user."""
        user = request.user
        changes = Changes(
            fields=validate.mask(request.update_mask.paths, users.UPDATABLE),
            name=user.name,
            grants=_grants(user.grants, "user.grants"),
            disabled=user.disabled,
            clear_lock=not user.HasField("lock_end_time"),
            etag=user.etag,
        )
        return pb.UpdateUserResponse(user=_user(await self._users.update(user.id, changes)))

    async def DeleteUser(self, request: pb.DeleteUserRequest, context: Any) -> pb.DeleteUserResponse:  # noqa: ARG002, N802
        """Remove a user."""
        await self._users.delete(request.id, request.etag)
        return pb.DeleteUserResponse()

    async def InviteUser(self, request: pb.InviteUserRequest, context: Any) -> pb.InviteUserResponse:  # noqa: ARG002, N802
        """Invite a user again."""
        made = await self._users.invite(request.id, _lifetime(request))
        reply = pb.InviteUserResponse(invitation=made.text)
        reply.invitation_end_time.FromDatetime(made.end)
        return reply

    async def AcceptInvitation(self, request: pb.AcceptInvitationRequest, context: Any) -> pb.AcceptInvitationResponse:  # noqa: ARG002, N802
        """Set the password of who was invited, and sign in."""
        _check_secret(request.invitation, "invitation")
        _check_secret(request.password, "password")
        user = await self._users.accept(request.invitation, request.password, _source())
        return pb.AcceptInvitationResponse(user=_user(user), tokens=_tokens(await self._sessions.begin(user)))

    async def ChangePassword(self, request: pb.ChangePasswordRequest, context: Any) -> pb.ChangePasswordResponse:  # noqa: ARG002, N802
        """Change the caller's own password."""
        _check_secret(request.password, "password")
        _check_secret(request.new_password, "new_password")
        user = await self._users.change_password(_own_id(), request.password, request.new_password, _source())
        return pb.ChangePasswordResponse(tokens=_tokens(await self._sessions.begin(user)))


class RoleService:
    """openmanager.api.metadata.v1.RoleService."""

    async def ListRoles(self, request: pb.ListRolesRequest, context: Any) -> pb.ListRolesResponse:  # noqa: ARG002, N802
        """List the roles."""
        return pb.ListRolesResponse(roles=map(_role, ROLES))

    async def GetRole(self, request: pb.GetRoleRequest, context: Any) -> pb.GetRoleResponse:  # noqa: ARG002, N802
        """Return one role."""
        if not request.name:
            raise missing("name")
        check_text("name", request.name, 64)
        if request.name not in ROLES:
            raise NotFoundError("there is no such role", resource=f"role/{request.name}")
        return pb.GetRoleResponse(role=_role(Role(request.name)))


class KeyService:
    """openmanager.api.metadata.v1.KeyService."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys

    async def CreateKey(self, request: pb.CreateKeyRequest, context: Any) -> pb.CreateKeyResponse:  # noqa: ARG002, N802
        """Create a key."""
        wanted = request.key
        end = _time(wanted, "end_time", "key.end_time") if wanted.HasField("end_time") else None
        grants = _grants(wanted.grants, "key.grants")
        key, secret = await self._keys.create(wanted.description, grants, end, _who().subject)
        return pb.CreateKeyResponse(key=_key(key), secret=secret)

    async def GetKey(self, request: pb.GetKeyRequest, context: Any) -> pb.GetKeyResponse:  # noqa: ARG002, N802
        """Return one key."""
        return pb.GetKeyResponse(key=_key(await self._keys.get(request.id)))

    async def ListKeys(self, request: pb.ListKeysRequest, context: Any) -> pb.ListKeysResponse:  # noqa: ARG002, N802
        """List keys."""
        found, token = await self._keys.list(request.page_size, request.page_token)
        return pb.ListKeysResponse(keys=map(_key, found), next_page_token=token)

    async def RotateKey(self, request: pb.RotateKeyRequest, context: Any) -> pb.RotateKeyResponse:  # noqa: ARG002, N802
        """Give a key a new secret."""
        overlap = _duration(request.overlap, "overlap") if request.HasField("overlap") else keys.OVERLAP
        key, secret = await self._keys.rotate(request.id, overlap)
        return pb.RotateKeyResponse(key=_key(key), secret=secret)

    async def DeleteKey(self, request: pb.DeleteKeyRequest, context: Any) -> pb.DeleteKeyResponse:  # noqa: ARG002, N802
        """Revoke a key."""
        await self._keys.delete(request.id)
        return pb.DeleteKeyResponse()


class SessionService:
    """openmanager.api.metadata.v1.SessionService."""

    def __init__(self, sessions: Sessions, users: Users) -> None:
        self._sessions = sessions
        self._users = users

    async def CreateSession(self, request: pb.CreateSessionRequest, context: Any) -> pb.CreateSessionResponse:  # noqa: ARG002, N802
        """Sign in."""
        if not request.name:
            raise missing("name")
        check_text("name", request.name, 255)
        _check_secret(request.password, "password")
        user = await self._users.sign_in(request.name, request.password, _source())
        return pb.CreateSessionResponse(tokens=_tokens(await self._sessions.begin(user)))

    async def RefreshSession(self, request: pb.RefreshSessionRequest, context: Any) -> pb.RefreshSessionResponse:  # noqa: ARG002, N802
        """Return new tokens."""
        _check_secret(request.refresh_token, "refresh_token")
        return pb.RefreshSessionResponse(tokens=_tokens(await self._sessions.refresh(request.refresh_token)))

    async def ListSessions(self, request: pb.ListSessionsRequest, context: Any) -> pb.ListSessionsResponse:  # noqa: ARG002, N802
        """List sessions."""
        check_text("user", request.user, 64)
        own = _who().subject
        user = request.user or (own.removeprefix(_USERS) if own.startswith(_USERS) else "")
        if user and _who().subject != f"{_USERS}{user}" and not _may(Permission.AUDIT):
            raise PermissionDeniedError(f"this needs the permission {Permission.AUDIT}")
        found, token = await self._sessions.list(user, request.page_size, request.page_token)
        return pb.ListSessionsResponse(sessions=map(_session, found), next_page_token=token)

    async def DeleteSession(self, request: pb.DeleteSessionRequest, context: Any) -> pb.DeleteSessionResponse:  # noqa: ARG002, N802
        """End a session."""
        own = None if _may(Permission.MANAGE) else _own_id()
        session = request.id or _who().session
        if not session:
            raise missing("id")
        await self._sessions.end(session, own)
        return pb.DeleteSessionResponse()

    async def GetIdentity(self, request: pb.GetIdentityRequest, context: Any) -> pb.GetIdentityResponse:  # noqa: ARG002, N802
        """Tell the caller who they are."""
        who = _who()
        held = [str(each) for each in Permission if who.scope(each) is not None and each not in _UNSAID]
        return pb.GetIdentityResponse(identity=_identity(who), permissions=held)

    async def Authenticate(self, request: pb.AuthenticateRequest, context: Any) -> pb.AuthenticateResponse:  # noqa: ARG002, N802
        """Tell whose a credential is."""
        if not request.credential:
            raise missing("credential")
        if len(request.credential) > MAX_CREDENTIAL:
            raise credentials_invalid()
        return pb.AuthenticateResponse(identity=_identity(await self._sessions.identity(request.credential)))


# ── who is calling ─────────────────────────────────────────────────────────────────────────────────────────────────


def _who() -> Identity:
    return (caller() or Caller(NOBODY)).identity


def _source() -> str:
    found = caller()
    return found.source if found is not None else ""


def _may(permission: Permission) -> bool:
    return _who().scope(permission) == ""


def _own_id() -> str:
    subject = _who().subject
    if not subject.startswith(_USERS):
        raise FailedPreconditionError("only users have sessions and a password")
    return subject.removeprefix(_USERS)


# ── proto → domain ─────────────────────────────────────────────────────────────────────────────────────────────────


def _grants(messages: Iterable[pb.Grant], field: str) -> tuple[Grant, ...]:
    return tuple(Grant(check_role(each.role, f"{field}.role"), each.server_filter.strip()) for each in messages)


def _lifetime(request: Any) -> timedelta:
    if not request.HasField("invitation_lifetime"):
        return users.INVITATION_LIFETIME
    found = _duration(request.invitation_lifetime, "invitation_lifetime")
    if not timedelta() < found <= users.MAX_INVITATION_LIFETIME:
        raise invalid("invitation_lifetime", f"must be at most {users.MAX_INVITATION_LIFETIME.days} days")
    return found


def _duration(message: Any, field: str) -> timedelta:
    if message.seconds < 0 or message.nanos < 0:  # a part of a microsecond would be lost below
        raise invalid(field, "must not be negative")
    try:
        found: timedelta = message.ToTimedelta()
    except (ValueError, OverflowError) as err:
        raise invalid(field, "is no duration") from err
    return found


def _time(message: Any, name: str, field: str) -> datetime:
    try:
        found: datetime = getattr(message, name).ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError) as err:
        raise invalid(field, "is no time") from err
    return found


def _check_secret(text: str, field: str) -> None:
    """Raise InvalidArgumentError for what is no secret of anybody's; it is never part of the message."""
    if not text:
        raise missing(field)
    if len(text) > MAX_CREDENTIAL:
        raise invalid(field, f"is longer than {MAX_CREDENTIAL} characters")


# ── domain → proto ─────────────────────────────────────────────────────────────────────────────────────────────────


def _user(user: User) -> pb.User:
    message = pb.User(
        id=user.id,
        name=user.name,
        grants=map(_grant, user.grants),
        disabled=user.disabled,
        activated=user.password_hash is not None,
        etag=user.etag,
    )
    _set_times(message, create_time=user.create_time, sign_in_time=user.sign_in_time, lock_end_time=user.lock_end)
    return message


def _grant(grant: Grant) -> pb.Grant:
    return pb.Grant(role=str(grant.role), server_filter=grant.server_filter)


def _tokens(tokens: Tokens) -> pb.Tokens:
    message = pb.Tokens(access_token=tokens.access, refresh_token=tokens.refresh)
    _set_times(message, access_end_time=tokens.access_end, session_end_time=tokens.session_end)
    return message


def _role(role: Role) -> pb.Role:
    return pb.Role(
        name=str(role),
        description=DESCRIPTIONS[role],
        permissions=[str(each) for each in Permission if each in PERMISSIONS[role]],
        methods=policy.methods_of(role),
    )


def _key(key: Key) -> pb.Key:
    message = pb.Key(id=key.id, description=key.description, grants=map(_grant, key.grants), creator=key.creator)
    _set_times(
        message,
        end_time=key.end,
        create_time=key.create_time,
        use_time=key.use_time,
        rotate_time=key.rotate_time,
    )
    return message


def _session(session: Session) -> pb.Session:
    message = pb.Session(id=session.id, user=session.user)
    _set_times(message, create_time=session.create_time, refresh_time=session.refresh_time, end_time=session.end)
    return message


def _identity(identity: Identity) -> pb.Identity:
    message = pb.Identity(
        subject=identity.subject,
        grants=[_grant(each) for each in identity.grants if each.role is not Role.MESH],
        session=identity.session,
    )
    if identity.end != float("inf"):
        message.end_time.FromNanoseconds(round(identity.end * 1e9))
    return message


def _set_times(message: Any, **times: datetime | None) -> None:
    for name, time in times.items():
        if time is not None:
            getattr(message, name).FromDatetime(time)

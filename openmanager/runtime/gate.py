"""Who is calling, and whether they may: asked once for every call of every kind, before anything else is looked at."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

from openmanager import errors
from openmanager.access import LOCAL, NOBODY, Caller, Identity, Permission
from openmanager.policy import Reach, Rule
from openmanager.runtime.address import FORWARDED_FOR, Proxies, peer_address
from openmanager.runtime.mesh_key import HEADER, MeshKey

AUTHORIZATION = "authorization"
BEARER = "bearer "
MAX_CREDENTIAL = 4096


@dataclass(slots=True)
class Pass:
    """What somebody came with, as long as it holds: `error` says why it does not any more.

    Each of the `streams` that are open with it is called when that has changed. `noted` is a call that the gateway makes,
    and has written down, for who called it.
    """

    identity: Identity
    error: errors.OpenManagerError | None = None
    streams: set[Callable[[], None]] = field(default_factory=set)
    noted: bool = False

    def end(self, error: errors.OpenManagerError) -> None:
        """Let nobody in with it any more, and end the streams that are open."""
        self.error = error
        for look in tuple(self.streams):
            look()


class Authenticator(Protocol):
    """Knows people and programs by their credentials."""

    def known(self, credential: str) -> Pass | None:
        """Return whose a credential is, where that is known already."""
        ...

    async def find(self, credential: str, source: str) -> Pass:
        """Return whose a credential is; UnauthenticatedError when it is nobody's."""
        ...


class Gate:
    """Lets calls in: `anonymous` is who needs no credentials, None when everybody does.

    Without an `authenticator` only servers of the mesh, and whom they speak for, are known. `proxies` are believed when
    they say for which address they call.
    """

    def __init__(
        self,
        *,
        anonymous: Identity | None = LOCAL,
        mesh_key: MeshKey | None = None,
        authenticator: Authenticator | None = None,
        proxies: Proxies | None = None,
    ) -> None:
        self._proxies = proxies or Proxies()
        self._anonymous = Pass(anonymous) if anonymous is not None else None
        self._mesh_key = mesh_key
        self._authenticator = authenticator
        self._nobody = Pass(NOBODY)

    async def who(self, metadata: Iterable[Any], context: Any, rule: Rule, peer: str | None = None) -> tuple[Pass, str]:
        """Return who is calling, and from which address; UnauthenticatedError for nobody where somebody is needed.

        `peer` is whom the connection's certificate names, empty for nobody; None where connections have none.
        """
        authorization = token = ""
        for key, value in metadata:
            if key == AUTHORIZATION:
                authorization = value
            elif key == HEADER:
                token = value
        if token and self._mesh_key is not None:
            word = self._mesh_key.read(token)
            if peer is not None and peer != word.speaker:
                raise errors.credentials_invalid("the credentials are not those of the certificate")
            return Pass(word.identity, noted=word.noted), word.source
        if authorization and self._authenticator is not None and rule.permission is not Permission.NOTHING:
            credential = _credential(authorization)
            # Of this call: what somebody came with may come again from elsewhere.
            source = self.source(metadata, context, peer)
            return self._authenticator.known(credential) or await self._authenticator.find(credential, source), source
        if rule.permission is Permission.NOTHING:
            if self._anonymous is None:
                return self._nobody, self.source(metadata, context, peer)
            return self._anonymous, ""
        if self._anonymous is None:
            raise errors.UnauthenticatedError("credentials are required: authorization: Bearer …")
        return self._anonymous, ""

    def source(self, metadata: Iterable[Any], context: Any, peer: str | None) -> str:
        """Return the address that a call came from, without its port: of whom a trusted proxy calls for."""
        forwarded = [value for key, value in metadata if key == FORWARDED_FOR]
        return self._proxies.source(peer_address(str(context.peer())), peer or "", forwarded)


def admit(found: Pass, rule: Rule, source: str) -> Caller:
    """Return what somebody may reach by a method; PermissionDeniedError when it is nothing."""
    scope = found.identity.scope(rule.permission)
    if scope is None:
        raise errors.PermissionDeniedError(f"this needs the permission {rule.permission}")
    if scope and rule.reach is Reach.ALL:
        raise errors.PermissionDeniedError(f"this needs the permission {rule.permission} over all servers")
    return Caller(found.identity, scope if rule.reach is Reach.SOME else "", source)


def _credential(authorization: str) -> str:
    if authorization[: len(BEARER)].lower() != BEARER or len(authorization) > MAX_CREDENTIAL:
        raise errors.credentials_invalid("authorization must be “Bearer” and a token or key")
    return authorization[len(BEARER) :].strip()

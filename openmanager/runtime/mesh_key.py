"""The secret that the servers of a mesh share: who is calling goes from one to the next as a short token signed with it.

The gateway finds out who somebody is and tells the others so; what clients send of this kind is not believed without a
signature. A token lives for a minute, which is also how long a grant that was taken away could still be used at a
service by who had listened in.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import Any

import jwt

from openmanager.access import Grant, Identity, Role, server
from openmanager.config import Secret
from openmanager.errors import ConfigurationError, credentials_invalid
from openmanager.runtime.clock import Clock

HEADER = "x-openmanager-identity"
# The one server that speaks for others; the rest speak for themselves alone, but that analysis, which may read everything
# itself, reads for those who ask it.
SPEAKER, READER = "gateway", "analysis"
ALGORITHM = "HS256"
AUDIENCE = "openmanager-mesh"
LIFETIME_SECONDS = 60
# One is used for so long before the next is made.
USE_SECONDS = 20.0
SKEW_SECONDS = 60
MIN_LENGTH = 32
_REMEMBERED = 10_000
_READ_SECONDS = 5.0
_REQUIRED = ("exp", "iat", "sub", "aud", "iss")


@dataclass(frozen=True, slots=True)
class Word:
    """What a token says: who is calling, from which address, and which server says so.

    `noted`: and that it has written down what is read.
    """

    identity: Identity
    source: str
    speaker: str
    noted: bool = False


class MeshKey:
    """Signs for the server `name`, and verifies what others signed.

    The secret may have several lines: the first signs, all are believed. Where it came from a file, it is read again
    now and then, so that it can be exchanged in three steps without anybody being stopped. With `ends=False` tokens are
    believed whatever the clocks say.
    """

    def __init__(self, secret: Secret, name: str, clock: Clock, *, ends: bool = True) -> None:
        self._secret = secret
        self._name = name
        self._clock = clock
        self._ends = ends
        self._keys = _keys(secret)
        self._read = clock.monotonic()
        self._made: OrderedDict[tuple[Identity, str, bool], tuple[float, str]] = OrderedDict()
        self._known: OrderedDict[str, tuple[float, Word]] = OrderedDict()

    def token(self, identity: Identity, source: str = "", *, noted: bool = False) -> str:
        """Return a token that tells the next server who is calling, and from which address.

        A read that is `noted` has been written down, and is not to be again.
        """
        now = self._clock.monotonic()
        found = self._made.get((identity, source, noted))
        if found is not None and now < found[0]:
            return found[1]
        self._renew(now)
        begin = self._wall()
        kid, key = next(iter(self._keys.items()))
        claims = {
            "iss": self._name,
            "aud": AUDIENCE,
            "sub": identity.subject,
            "grants": [[str(each.role), each.server_filter] for each in identity.grants],
            "ses": identity.session,
            "src": source,
            "iat": begin,
            "exp": begin + LIFETIME_SECONDS,
            **({"noted": True} if noted else {}),
        }
        made = jwt.encode(claims, key, ALGORITHM, {"kid": kid})
        _keep(self._made, (identity, source, noted), (now + USE_SECONDS, made))
        return made

    def read(self, token: str) -> Word:
        """Return who is calling; UnauthenticatedError unless a server of the mesh says so, now."""
        now = self._clock.monotonic()
        found = self._known.get(token)
        if found is not None and now < found[0]:
            return found[1]
        claims = self._verified(token, now)
        try:
            grants = tuple(Grant(Role(role), str(text)) for role, text in claims["grants"])
            identity = Identity(str(claims["sub"]), grants, session=str(claims["ses"]))
            word = Word(identity, str(claims["src"]), str(claims["iss"]), claims.get("noted") is True)
            left = float(claims["exp"]) - self._wall()
        except (KeyError, TypeError, ValueError) as err:
            raise credentials_invalid() from err
        if word.speaker != SPEAKER and identity.subject != server(word.speaker).subject:
            if word.speaker != READER or identity.is_of_mesh:
                raise credentials_invalid()
            seen = tuple(Grant(Role.VIEWER, each.server_filter) for each in grants)
            word = replace(word, identity=Identity(identity.subject, seen, session=identity.session), noted=False)
        _keep(self._known, token, (now + min(max(left, 0.0), LIFETIME_SECONDS), word))
        return word

    def _verified(self, token: str, now: float) -> dict[str, Any]:
        self._renew(now)
        try:
            kid = jwt.get_unverified_header(token).get("kid")
            if kid not in self._keys:
                self._renew(now, at_once=True)
            claims: dict[str, Any] = jwt.decode(
                token,
                self._keys[str(kid)],
                algorithms=[ALGORITHM],
                audience=AUDIENCE,
                # Times are compared below, by the server's own clock.
                options={"require": list(_REQUIRED), "verify_exp": False, "verify_iat": False},
            )
        except (jwt.InvalidTokenError, KeyError, ValueError) as err:
            raise credentials_invalid() from err
        if self._ends and not claims["iat"] - SKEW_SECONDS <= self._wall() < claims["exp"] + SKEW_SECONDS:
            raise credentials_invalid()
        return claims

    def _wall(self) -> int:
        return self._clock.now_nanos() // 1_000_000_000

    def _renew(self, now: float, *, at_once: bool = False) -> None:
        if now - self._read < (1.0 if at_once else _READ_SECONDS):
            return
        self._read = now
        try:
            self._keys = _keys(self._secret.renewed())
        except ConfigurationError:
            return  # it is being replaced


def _keys(secret: Secret) -> dict[str, bytes]:
    """Return the keys of a secret by their ids, the one that signs first."""
    lines = [line.strip() for line in secret.reveal().splitlines() if line.strip()]
    if not lines or min(map(len, lines)) < MIN_LENGTH:
        raise ConfigurationError(f"OPENMANAGER_MESH_KEY must have lines of at least {MIN_LENGTH} characters")
    keys = [hashlib.sha256(b"openmanager mesh\0" + line.encode()).digest() for line in lines]
    return {hashlib.sha256(key).hexdigest()[:16]: key for key in keys}


def _keep(kept: OrderedDict[Any, Any], key: Any, value: Any) -> None:
    kept.pop(key, None)
    kept[key] = value
    if len(kept) > _REMEMBERED:
        kept.popitem(last=False)

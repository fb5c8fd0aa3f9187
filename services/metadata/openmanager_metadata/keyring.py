"""What is derived from the one secret of this service: hashes of what nobody can guess, and signatures of tokens."""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from dataclasses import dataclass
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from openmanager.config import Secret
from openmanager.errors import ConfigurationError, FailedPreconditionError, Reason, credentials_invalid

# With a public half, so that a proxy can turn away what we have not signed without being able to sign: ADR 0029.
ALGORITHM = "EdDSA"
ISSUER = "openmanager"
AUDIENCE = "openmanager"
SKEW_SECONDS = 60
MIN_SECRET = 32
_SECRET_BYTES = 32
_REQUIRED = ("exp", "iat", "sub", "sid", "aud", "iss")


@dataclass(frozen=True, slots=True)
class Access:
    """What an access token says: whose it is, of which session, and until when, in seconds since the epoch."""

    user: str
    session: str
    end: int


class Keyring:
    """Keys derived by HKDF-SHA256 (RFC 5869), one for each use, so that none can stand in for another."""

    def __init__(self, secret: Secret) -> None:
        text = secret.reveal()
        if text and len(text) < MIN_SECRET:
            raise ConfigurationError(f"metadata.identity_key is shorter than {MIN_SECRET} characters")
        self._set = bool(text)
        # Without one nothing that is made now could be recognised after the next start, and so nothing is made.
        root = text.encode() or secrets.token_bytes(_SECRET_BYTES)
        self._hashing = _derive(root, b"openmanager hash")
        self._signing = Ed25519PrivateKey.from_private_bytes(_derive(root, b"openmanager access token Ed25519"))
        self._public = self._signing.public_key()
        self._kid = _kid(self._public.public_bytes_raw())
        # What the version before signed holds for its quarter of an hour: an upgrade is not felt.
        before = _derive(root, b"openmanager access token")
        self._known: dict[str, tuple[Any, str]] = {
            self._kid: (self._public, ALGORITHM),
            _kid(before): (before, "HS256"),
        }

    def check_set(self) -> None:
        """Raise FailedPreconditionError when there is no secret."""
        if not self._set:
            raise FailedPreconditionError(
                "the metadata service has no identity key: set OPENMANAGER_METADATA_IDENTITY_KEY_FILE",
                reason=Reason.CONFIGURATION,
            )

    def hash(self, text: str) -> bytes:
        """Return the HMAC-SHA256 of a secret that nobody can guess."""
        return hmac.digest(self._hashing, text.encode(), "sha256")

    def matches(self, text: str, known: bytes | None) -> bool:
        """Say whether a secret has a hash, taking the same time whatever the answer."""
        return hmac.compare_digest(self.hash(text), known or b"\0" * 32)

    def access_token(self, access: Access, now: int) -> str:
        """Return the signed token of a session."""
        self.check_set()
        claims = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "sub": access.user,
            "sid": access.session,
            "iat": now,
            "exp": access.end,
        }
        return jwt.encode(claims, self._signing, ALGORITHM, {"kid": self._kid})

    def public_keys(self) -> dict[str, Any]:
        """Return what access tokens are verified with, as a JSON Web Key Set (RFC 7517, RFC 8037)."""
        self.check_set()
        point = base64.urlsafe_b64encode(self._public.public_bytes_raw()).rstrip(b"=").decode()
        key = {"kty": "OKP", "crv": "Ed25519", "alg": ALGORITHM, "use": "sig", "kid": self._kid, "x": point}
        return {"keys": [key]}

    def read_access_token(self, token: str, now: float) -> Access:
        """Return what a token says; UnauthenticatedError unless we signed it, for this use, and it has not ended."""
        try:
            key, algorithm = self._known[str(jwt.get_unverified_header(token).get("kid"))]
            claims: dict[str, Any] = jwt.decode(
                token,
                key,
                algorithms=[algorithm],
                audience=AUDIENCE,
                issuer=ISSUER,
                # Times are compared below, by the service's own clock.
                options={"require": list(_REQUIRED), "verify_exp": False, "verify_iat": False},
            )
        except (jwt.InvalidTokenError, KeyError, ValueError) as err:
            raise credentials_invalid() from err
        end, begin = claims["exp"], claims["iat"]
        if not isinstance(end, int) or not isinstance(begin, int) or not begin - SKEW_SECONDS <= now < end:
            raise credentials_invalid()
        return Access(user=str(claims["sub"]), session=str(claims["sid"]), end=end)


def _kid(key: bytes) -> str:
    return hashlib.sha256(key).hexdigest()[:16]


def _derive(root: bytes, use: bytes) -> bytes:
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=use).derive(root)


def new_secret() -> str:
    """Return a secret of 256 bits as text of 43 characters."""
    return secrets.token_urlsafe(_SECRET_BYTES)

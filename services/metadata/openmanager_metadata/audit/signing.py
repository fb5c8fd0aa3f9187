"""The keys that checkpoints are signed with."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Self

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from openmanager.config import Secret
from openmanager.errors import ConfigurationError

# In PEM, or the seed of RFC 8032 in hexadecimal, which fits into an environment.
_KEY = re.compile(r"-----BEGIN [A-Z0-9 ]+-----.*?-----END [A-Z0-9 ]+-----|^[0-9a-f]{64}$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Signer:
    """An Ed25519 key; `id` is the SHA-256 of its public half, the 32 bytes `public`."""

    id: bytes
    public: bytes
    key: Ed25519PrivateKey

    @classmethod
    def of(cls, key: Ed25519PrivateKey) -> Self:
        """Return the signer of a key."""
        public = key.public_key().public_bytes_raw()
        return cls(hashlib.sha256(public).digest(), public, key)

    def sign(self, body: bytes) -> bytes:
        """Return the signature, 64 bytes."""
        return self.key.sign(body)


def signers(secret: Secret) -> tuple[Signer, ...]:
    """Return the keys of a text, in PEM or as seeds: the first signs, the others may hand over to it.

    ConfigurationError for a text without keys.
    """
    text = secret.reveal()
    if not text:
        return ()
    try:
        keys = [_private(each) for each in _KEY.findall(text)]
    except (ValueError, TypeError) as err:
        raise ConfigurationError("metadata.audit_key is not a private key in PEM without a password") from err
    found = tuple(Signer.of(key) for key in keys if isinstance(key, Ed25519PrivateKey))
    if not found or len(found) != len(keys):
        raise ConfigurationError("metadata.audit_key must be an Ed25519 key: openssl genpkey -algorithm ed25519")
    return found


def _private(text: str) -> object:
    if text.startswith("-"):
        return serialization.load_pem_private_key(text.encode(), None)
    return Ed25519PrivateKey.from_private_bytes(bytes.fromhex(text))

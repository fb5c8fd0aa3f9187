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

_PEM = re.compile(r"-----BEGIN [A-Z0-9 ]+-----.*?-----END [A-Z0-9 ]+-----", re.DOTALL)


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
    """Return the keys of a PEM text: the first signs, the others may hand over to it. ConfigurationError for no keys."""
    text = secret.reveal()
    if not text:
        return ()
    try:
        keys = [serialization.load_pem_private_key(each.encode(), None) for each in _PEM.findall(text)]
    except (ValueError, TypeError) as err:
        raise ConfigurationError("metadata.audit_key is not a private key in PEM without a password") from err
    found = tuple(Signer.of(key) for key in keys if isinstance(key, Ed25519PrivateKey))
    if not found or len(found) != len(keys):
        raise ConfigurationError("metadata.audit_key must be an Ed25519 key: openssl genpkey -algorithm ed25519")
    return found

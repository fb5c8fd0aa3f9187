"""What services and clients are called in certificates.

Who somebody is stands in one URI, `spiffe://openmanager/<service>` or `spiffe://openmanager/client/<name>`; what a
client checks of the server it calls is a DNS name, `<service>.openmanager.internal`, because that is what gRPC can check.
"""

from __future__ import annotations

import re

from openmanager.errors import ConfigurationError

TRUST_DOMAIN = "openmanager"
# ICANN keeps `.internal` free of other owners.
DNS_SUFFIX = "openmanager.internal"
CLIENT = "client/"
# RFC 1035 allows a label of 63 characters.
_NAME = re.compile(r"[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?")
_PREFIX = f"spiffe://{TRUST_DOMAIN}/"


def identity_uri(identity: str) -> str:
    """Return the URI of an identity: a service's name, or `client/` and a name."""
    return _PREFIX + identity


def identity_of(uri: str) -> str | None:
    """Return the identity in a URI; None for one of another trust domain, or of another form."""
    identity = uri.removeprefix(_PREFIX)
    known = identity != uri and _NAME.fullmatch(identity.removeprefix(CLIENT))
    return identity if known else None


def check_name(name: str) -> str:
    """Return a name that may stand in a certificate; ConfigurationError otherwise."""
    if not _NAME.fullmatch(name):
        raise ConfigurationError(f"{name!r} is not a name: lower-case letters, digits and hyphens are expected")
    return name


def server_name(service: str) -> str:
    """Return the DNS name by which the mesh knows the certificate of a service, wherever it runs."""
    return f"{service}.{DNS_SUFFIX}"

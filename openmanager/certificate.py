"""X.509 certificates of a mesh: made, read, judged. The moment is always the caller's.

Who somebody is stands in one URI of the certificate's subject alternative name (`openmanager.spiffe`), and nowhere else:
a common name is for people to read.
"""

from __future__ import annotations

import ipaddress
import re
import secrets
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from openmanager.errors import ConfigurationError
from openmanager.spiffe import CLIENT, identity_of, identity_uri, server_name

AUTHORITY_LIFETIME = timedelta(days=3650)
# Clocks differ: a certificate holds from a little before it was made.
SKEW = timedelta(minutes=5)
# How long before its end a certificate is spoken of, unless a third of its life is shorter.
NOTICE = timedelta(days=14)
_HOST = re.compile(r"(?:\*\.)?[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,251}[A-Za-z0-9])?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A certificate and its private key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def certificate_pem(self) -> bytes:
        """The certificate as PEM."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        """The key as PEM, PKCS 8, without a password: whoever may read the file has it."""
        return self.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )


def new_authority(*, now: datetime, lifetime: timedelta = AUTHORITY_LIFETIME) -> Pair:
    """Return a new authority, which may sign certificates but no other authorities."""
    key = ec.generate_private_key(ec.SECP256R1())
    # Two authorities of one name, while one takes over from the other, would be hard to tell apart.
    name = _common_name(f"OpenManager CA {now:%Y-%m-%d} {secrets.token_hex(2)}")
    usage = _key_usage(signs_certificates=True)
    made = (
        _builder(name, name, key, now, lifetime)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .sign(key, hashes.SHA256())
    )
    return Pair(certificate=made, key=key)


def issue(authority: Pair, identity: str, *, hosts: Sequence[str], now: datetime, lifetime: timedelta) -> Pair:
    """Return a certificate for a service, or with `client/` for somebody who only calls.

    A service is both server and client to the others; a client may not pose as a server. `hosts` are the names and IP
    addresses at which clients reach it, beside its name within the mesh.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(identity_uri(identity))]
    purposes = [ExtendedKeyUsageOID.CLIENT_AUTH]
    if not identity.startswith(CLIENT):
        purposes.append(ExtendedKeyUsageOID.SERVER_AUTH)
        names += [_host(host) for host in dict.fromkeys((server_name(identity), *hosts))]
    signer = authority.certificate
    made = (
        _builder(_common_name(identity), signer.subject, key, now, lifetime)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key()), critical=False)
        .sign(authority.key, hashes.SHA256())
    )
    return Pair(certificate=made, key=key)


def read_certificates(data: bytes, where: str) -> list[x509.Certificate]:
    """Return the certificates of a PEM file; ConfigurationError when it has none or is damaged."""
    try:
        return x509.load_pem_x509_certificates(data)
    except ValueError as err:
        raise ConfigurationError(f"{where} is not a PEM file of certificates") from err


def read_key(data: bytes, where: str) -> PrivateKeyTypes:
    """Return the private key of a PEM file; ConfigurationError when it has none, or wants a password."""
    try:
        return serialization.load_pem_private_key(data, None)
    except (ValueError, TypeError) as err:
        raise ConfigurationError(f"{where} is not a PEM file of a private key without a password") from err


def belong_together(certificate: x509.Certificate, key: PrivateKeyTypes) -> bool:
    """Say whether a key is that of a certificate."""
    form = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return certificate.public_key().public_bytes(*form) == key.public_key().public_bytes(*form)


def is_open_to_others(path: Path) -> bool:
    """Say whether anybody but its owner and group may read a file; not of one that is not there."""
    try:
        return bool(path.stat().st_mode & stat.S_IRWXO)
    except OSError:
        return False


def remaining(certificate: x509.Certificate, now: datetime) -> timedelta:
    """Return how long a certificate still holds; negative when it is over."""
    return certificate.not_valid_after_utc - now


def is_ending(certificate: x509.Certificate, now: datetime) -> bool:
    """Say whether a certificate is so near its end that somebody should hear of it: 14 days, or a third of its life."""
    life = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    return remaining(certificate, now) < min(NOTICE, life / 3)


def trouble(certificate: x509.Certificate, now: datetime) -> str:
    """Return what is wrong with a certificate's time, one phrase; empty when nothing is."""
    left = remaining(certificate, now)
    if left <= timedelta():
        return f"ended on {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC"
    if now < certificate.not_valid_before_utc:
        return f"holds only from {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC"
    return f"ends in {show_left(left)}" if is_ending(certificate, now) else ""


def show_left(left: timedelta) -> str:
    """Return a length of time in days, or in hours when it is less than two days."""
    hours = left // timedelta(hours=1)
    return f"{left.days} days" if hours >= 48 else f"{hours} hours" if hours else "less than an hour"


def signed_by(certificate: x509.Certificate, authorities: Sequence[x509.Certificate]) -> bool:
    """Say whether one of the authorities signed a certificate."""
    for authority in authorities:
        try:
            certificate.verify_directly_issued_by(authority)
        except (ValueError, TypeError, InvalidSignature):
            continue
        return True
    return False


def identities(certificate: x509.Certificate) -> Iterator[str]:
    """Yield the identities in a certificate: exactly one in each of ours but authorities."""
    for name in alternative_names(certificate):
        if isinstance(name, x509.UniformResourceIdentifier) and (found := identity_of(name.value)):
            yield found


def alternative_names(certificate: x509.Certificate) -> list[x509.GeneralName]:
    """Return what else a certificate is for than its subject."""
    try:
        return list(certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    except x509.ExtensionNotFound:
        return []


def hosts_of(certificate: x509.Certificate) -> list[str]:
    """Return the host names and addresses in a certificate."""
    named = (x509.DNSName, x509.IPAddress)
    return [str(name.value) for name in alternative_names(certificate) if isinstance(name, named)]


def is_authority(certificate: x509.Certificate) -> bool:
    """Say whether a certificate may sign others."""
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False


def utc_now() -> datetime:
    """Return the moment, aware."""
    return datetime.now(UTC)


def _common_name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text[:64])])


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, now: datetime, lifetime: timedelta
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - SKEW)
        .not_valid_after(now + lifetime)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host.strip("[]")))
    except ValueError:
        if not _HOST.fullmatch(host):
            raise ConfigurationError(f"{host!r} is neither a host name nor an IP address") from None
        return x509.DNSName(host)

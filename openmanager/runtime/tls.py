"""TLS between services and with clients: files that may be replaced at any time, credentials made of them, identities.

A server asks the files at every new connection (gRPC's certificate fetcher), a client makes a new channel when they
change. What cannot be used, such as a pair of which only one half has been replaced, is not taken: what was read before
holds on, and the status says so.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import grpc

from openmanager.errors import ConfigurationError, UnauthenticatedError
from openmanager.runtime.address import is_loopback
from openmanager.runtime.clock import Clock
from openmanager.spiffe import identity_of

# A file that changed so recently may change again without its times telling.
SETTLE_NANOS = 1_000_000_000

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """The PEM files of one side of TLS.

    `ca` holds the authorities whose certificates are believed; without it a client believes those of the system.
    `certificate` (with its chain) and `key` are one's own: both or none, and a server needs all three. `server_name` is
    the DNS name that a client wants to find in the server's certificate; empty: the host that it calls.
    """

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    server_name: str = ""

    def paths(self) -> tuple[Path, ...]:
        """Return the files that there are."""
        return tuple(path for path in (self.ca, self.certificate, self.key) if path is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """What the files held at one moment, found to fit together."""

    ca: bytes | None
    certificate: bytes | None
    key: bytes | None
    # When the own certificate and the last of the authorities end, and their life; for the status.
    ends: tuple[tuple[str, Any], ...] = ()


class Files:
    """The files of a `Tls`, read again when they change; any thread may ask.

    ConfigurationError when they cannot be used at the start; later it is logged, and the last that could be holds on.
    """

    def __init__(self, tls: Tls) -> None:
        if (tls.certificate is None) != (tls.key is None):
            raise ConfigurationError("a certificate and its key go together: name both or neither")
        self._tls = tls
        self._lock = threading.Lock()
        self._stamp: object = None
        self._material = self._read()
        self._refused = ""

    @property
    def material(self) -> Material:
        """What was read last."""
        return self._material

    def current(self) -> Material:
        """Look at the files and return what they hold: the same object as before when they have not changed."""
        with self._lock:
            try:
                stamp = self._look()
                if stamp != self._stamp:
                    found = self._read()
                    # Whoever writes in the middle of the reading is waited for.
                    if self._look() == stamp:
                        self._take(found, stamp)
            except ConfigurationError as err:
                self._refuse(err.message)
            except OSError as err:
                self._refuse(f"{err.filename}: {err.strerror}")
            return self._material

    def warnings(self, now: datetime) -> tuple[str, ...]:
        """Return what an operator should know of them; no path is named."""
        from openmanager import certificate

        said = [f"{name} {found}" for name, each in self._material.ends if (found := certificate.trouble(each, now))]
        if self._refused:
            said.append("the files of the certificate have changed and cannot be used; the last ones still are")
        if self._tls.key is not None and certificate.is_open_to_others(self._tls.key):
            said.append("the key of the certificate can be read by others")
        return tuple(said)

    def _take(self, found: Material, stamp: tuple[tuple[int, int, int], ...]) -> None:
        same = (found.ca, found.certificate, found.key) == (
            self._material.ca,
            self._material.certificate,
            self._material.key,
        )
        if not same:
            self._material = found
            log.info("certificates have changed and are used from now on")
        self._refused = ""
        newest = max((changed for _, _, changed in stamp), default=0)
        self._stamp = stamp if time.time_ns() - newest > SETTLE_NANOS else None

    def _refuse(self, why: str) -> None:
        if why != self._refused:
            log.warning("certificates cannot be used, the last ones hold on: %s", why)
        self._refused = why

    def _look(self) -> tuple[tuple[int, int, int], ...]:
        found = [path.stat() for path in self._tls.paths()]
        return tuple((each.st_ino, each.st_size, each.st_mtime_ns) for each in found)

    def _read(self) -> Material:
        from openmanager import certificate as x509

        tls = self._tls
        ca, own, key = _read(tls.ca), _read(tls.certificate), _read(tls.key)
        ends: list[tuple[str, Any]] = []
        if ca is not None:
            authorities = x509.read_certificates(ca, str(tls.ca))
            ends.append(("the authority", max(authorities, key=lambda each: each.not_valid_after_utc)))
        if own is not None and key is not None:
            leaf = x509.read_certificates(own, str(tls.certificate))[0]
            if not x509.belong_together(leaf, x509.read_key(key, str(tls.key))):
                raise ConfigurationError(f"{tls.key} is not the key of {tls.certificate}")
            ends.append(("the certificate", leaf))
        return Material(ca=ca, certificate=own, key=key, ends=tuple(ends))


def server_files(ca: str, certificate: str, key: str) -> Files | None:
    """Return the files that a server's settings name; None when they name none, ConfigurationError for some of them."""
    named = [bool(each) for each in (ca, certificate, key)]
    if not any(named):
        return None
    if not all(named):
        raise ConfigurationError("server.tls_ca, server.tls_certificate and server.tls_key go together: all or none")
    from openmanager.certificate import is_open_to_others

    if is_open_to_others(Path(key)):
        log.warning("the key of the certificate can be read by others")
    return Files(Tls(ca=Path(ca), certificate=Path(certificate), key=Path(key)))


def client_files(tls: Tls | None) -> Files | None:
    """Return the files of a client."""
    return None if tls is None else Files(tls)


def server_credentials(files: Files, *, require_client: bool) -> grpc.ServerCredentials:
    """Return credentials that follow the files.

    Clients are asked for a certificate or they are not: gRPC's Python has nothing in between.
    """
    given = files.material

    def fetch() -> Any:
        nonlocal given
        found = files.current()
        if found is given:
            return None
        given = found
        return _configuration(found)

    return grpc.dynamic_ssl_server_credentials(_configuration(given), fetch, require_client)


def channel_credentials(material: Material) -> grpc.ChannelCredentials:
    """Return the credentials of a channel: gRPC keeps them as they are, so that new files want a new channel."""
    return grpc.ssl_channel_credentials(material.ca, material.key, material.certificate)


def peer_identity(context: Any) -> str | None:
    """Return who the certificate of a call's connection names: `gateway`, `simulator`, … or `client/NAME`.

    It comes from the one URI in the certificate's subject alternative name, which the handshake has verified. None for a
    connection without a certificate or without TLS, and for a certificate of another trust domain.
    """
    return _identity(context.auth_context())


def check_peer(context: Any, *, required: bool = False) -> str:
    """Return who the certificate of a call's connection names, empty for nobody.

    Raises UnauthenticatedError for one that names nobody of the trust domain, or has ended.

    The handshake alone would not do for the latter: a session outlives its certificate, and who resumes one is not asked
    for the certificate again. With `required` a connection that shows none is refused as well.
    """
    found = context.auth_context()
    shown: Sequence[bytes] = found.get("x509_pem_cert", ())
    if not shown and not required:
        return ""
    name = _identity(found)
    if name is None:
        raise UnauthenticatedError("the certificate names nobody of this mesh")
    if time.time() > _end(shown[0]):
        raise UnauthenticatedError("the certificate has ended")
    return name


def anyone(context: Any) -> None:
    """Let everybody in: the check of a server without TLS, where nobody can be told from others."""


def transport_warnings(address: str, files: Files | None, clock: Clock) -> tuple[str, ...]:
    """Return what an operator should know of how a server at an address is reached."""
    if files is not None:
        return files.warnings(datetime.fromtimestamp(clock.now_nanos() / 1e9, UTC))
    plain = not is_loopback(address.rpartition(":")[0])
    return ("connections from other machines are not encrypted",) if plain else ()


def _identity(found: Any) -> str | None:
    # gRPC sets it only for a certificate with one URI, which is a valid SPIFFE id.
    uris: Sequence[bytes] = found.get("peer_spiffe_id", ())
    return identity_of(uris[0].decode("utf-8", "replace")) if len(uris) == 1 else None


@lru_cache(maxsize=1024)
def _end(pem: bytes) -> float:
    """Return when a certificate ends, in seconds since the epoch."""
    from openmanager.certificate import read_certificates

    return read_certificates(pem, "the peer's certificate")[0].not_valid_after_utc.timestamp()


def _configuration(material: Material) -> grpc.ServerCertificateConfiguration:
    assert material.key is not None  # noqa: S101  (a server has all three)
    assert material.certificate is not None  # noqa: S101
    return grpc.ssl_server_certificate_configuration([(material.key, material.certificate)], material.ca)


def _read(path: Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        return path.read_bytes()
    except OSError as err:
        raise ConfigurationError(f"cannot read {path}: {err.strerror}") from err

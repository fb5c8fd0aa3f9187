"""A certificate authority in a folder, for development and for small meshes.

::

    DIR/ca/ca.pem            the authorities that are trusted: one, or two while one takes over from the other
    DIR/ca/ca.key            the key of the first of them, 0400
    DIR/NAME/certificate.pem the certificate of a service or client
    DIR/NAME/key.pem         its key, 0400
    DIR/NAME/ca.pem          a copy of the authorities: NAME's folder is all that NAME needs

Every file is written aside and renamed: whoever reads meanwhile has the old one or the new one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from openmanager import certificate
from openmanager.certificate import Pair
from openmanager.errors import ConfigurationError
from openmanager.spiffe import CLIENT

CA, CA_KEY = "ca.pem", "ca.key"
CERTIFICATE, KEY = "certificate.pem", "key.pem"
# Of a certificate's life what must be left, or it is renewed.
RENEW_SHARE = 3


class Authority:
    """The authority in a folder, which exists."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._own = folder / "ca"
        self._bundle = _read(self._own / CA)
        self._trusted = certificate.read_certificates(self._bundle, str(self._own / CA))
        key = certificate.read_key(_read(self._own / CA_KEY), str(self._own / CA_KEY))
        if not isinstance(key, ec.EllipticCurvePrivateKey) or not certificate.belong_together(self._trusted[0], key):
            raise ConfigurationError(f"{self._own / CA_KEY} is not the key of the first certificate in {CA}")
        self._pair = Pair(certificate=self._trusted[0], key=key)

    def issue(self, identity: str, hosts: Sequence[str], *, now: datetime, lifetime: timedelta) -> Path:
        """Write a new certificate and key for an identity; return their folder."""
        left = certificate.remaining(self._pair.certificate, now)
        if lifetime > left:
            raise ConfigurationError(f"the authority itself holds only for {certificate.show_left(left)} more")
        made = certificate.issue(self._pair, identity, hosts=hosts, now=now, lifetime=lifetime)
        place = self._folder / identity.removeprefix(CLIENT)
        _make_folder(place)
        # A reader that sees only the first of these finds that they do not belong together, and waits for the second.
        write(place / CA, self._bundle, 0o444)
        write(place / KEY, made.key_pem, 0o400)
        write(place / CERTIFICATE, made.certificate_pem, 0o444)
        return place

    def renew(self, *, now: datetime, everything: bool = False) -> Iterator[Path]:
        """Issue anew what has less than a third of its life left, for the same names and as long; yield the folders."""
        for place in folders(self._folder):
            old = certificate.read_certificates(_read(place / CERTIFICATE), str(place / CERTIFICATE))[0]
            life = old.not_valid_after_utc - old.not_valid_before_utc - certificate.SKEW
            identity = next(certificate.identities(old), None)
            if identity is None:
                raise ConfigurationError(f"{place / CERTIFICATE} names nobody of this mesh: issue it anew")
            if everything or certificate.remaining(old, now) < life / RENEW_SHARE:
                yield self.issue(identity, certificate.hosts_of(old), now=now, lifetime=life)

    def rotate(self, *, now: datetime) -> None:
        """Let a new authority take over: it signs from now on, and both are trusted until `retire`."""
        made = certificate.new_authority(now=now)
        write(self._own / CA_KEY, made.key_pem, 0o400)
        self._trust(made.certificate_pem + self._pair.certificate_pem)

    def retire(self) -> None:
        """Trust the present authority alone; ConfigurationError while somebody has a certificate of the other."""
        for place in folders(self._folder):
            found = certificate.read_certificates(_read(place / CERTIFICATE), str(place / CERTIFICATE))[0]
            if not certificate.signed_by(found, [self._pair.certificate]):
                raise ConfigurationError(f"{place.name} has a certificate of the old authority: renew it first")
        self._trust(self._pair.certificate_pem)

    def _trust(self, bundle: bytes) -> None:
        for place in (self._own, *folders(self._folder)):
            write(place / CA, bundle, 0o444)


def make(folder: Path, *, now: datetime) -> bool:
    """Make a new authority in a folder; False, and nothing is touched, when it has one."""
    own = folder / "ca"
    if (own / CA).exists() or (own / CA_KEY).exists():
        return False
    _make_folder(folder)
    _make_folder(own)
    made = certificate.new_authority(now=now)
    write(own / CA_KEY, made.key_pem, 0o400)
    write(own / CA, made.certificate_pem, 0o444)
    return True


def folders(folder: Path) -> list[Path]:
    """Return the folders of those who have a certificate."""
    return sorted(found.parent for found in folder.glob(f"*/{CERTIFICATE}"))


def write(path: Path, data: bytes, mode: int) -> None:
    """Write a file aside with its mode, and put it in its place."""
    aside = path.with_name(f".{path.name}.new")
    try:
        aside.unlink(missing_ok=True)
        descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except OSError as err:
        raise ConfigurationError(f"cannot write {path}: {err.strerror}") from err


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as err:
        raise ConfigurationError(f"cannot make {path}: {err.strerror}") from err


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as err:
        hint = ": make an authority with `openmanager certs init`" if path.name in {CA, CA_KEY} else ""
        raise ConfigurationError(f"{path} does not exist{hint}") from err
    except OSError as err:
        raise ConfigurationError(f"cannot read {path}: {err.strerror}") from err

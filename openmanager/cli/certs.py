"""`openmanager certs`: an authority in a folder, and the certificates of services and clients."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import click

from openmanager import suite
from openmanager.cli import render
from openmanager.errors import ConfigurationError
from openmanager.spiffe import CLIENT, check_name

if TYPE_CHECKING:
    from cryptography import x509

    from openmanager.authority import Authority

EXIT_NOT_WELL = 1
FOLDER = click.Path(path_type=Path, file_okay=False)
# Where everybody is reached by somebody on the same machine: their own health checks, for one.
LOOPBACK = ("localhost", "127.0.0.1", "::1")
MAX_DAYS = 825
_RESERVED = "ca"


@click.group(
    epilog=render.examples(
        "certs init certs", "certs issue certs --host gateway.example.net", "certs show certs", "certs renew certs"
    )
)
def certs() -> None:
    """Make, renew and look at the certificates of a mesh.

    This authority is a folder, for development and for small meshes; certificates of any other do as well, if their
    subject alternative names are those that `certs show` shows.
    """


@certs.command("init", epilog=render.examples("certs init certs"))
@click.argument("folder", metavar="DIR", type=FOLDER)
def init(folder: Path) -> None:
    """Make an authority in DIR, for ten years; one that is there already is kept."""
    from openmanager import authority, certificate

    made = authority.make(folder, now=certificate.utc_now())
    place = folder / "ca" / authority.CA
    click.echo(f"{place} is made; its key beside it signs for whoever may read it" if made else f"{place} is kept")


@certs.command("issue", epilog=render.examples("certs issue certs", "certs issue certs gateway --host 10.0.0.7"))
@click.argument("folder", metavar="DIR", type=FOLDER)
@click.argument("names", metavar="[NAME]…", nargs=-1)
@click.option("--host", "hosts", multiple=True, metavar="NAME|IP", help="Where clients reach it; may be repeated.")
@click.option("--init", "make", is_flag=True, help="Make the authority first where there is none.")
@click.option("--days", type=click.IntRange(1, MAX_DAYS), default=30, show_default=True, help="How long it holds.")
def issue(folder: Path, names: tuple[str, ...], hosts: tuple[str, ...], *, make: bool, days: int) -> None:
    """Issue a certificate and a key to each NAME: by default to every service, and to the edge.

    A service's certificate also holds its name within the mesh, its plain name, and this machine's loopback. Any other
    NAME is that of a client, who may call but not serve.
    """
    from openmanager import authority, certificate

    if make:
        authority.make(folder, now=certificate.utc_now())
    signer = _open(folder)
    for name in names or suite.CERTIFIED:
        if check_name(name) == _RESERVED:
            raise ConfigurationError(f"{_RESERVED} is the folder of the authority: choose another name")
        identity = name if name in suite.CERTIFIED else CLIENT + name
        found = (*hosts, name, *LOOPBACK) if name in suite.CERTIFIED else ()
        place = signer.issue(identity, found, now=certificate.utc_now(), lifetime=timedelta(days=days))
        click.echo(f"{place} holds for {days} days")


@certs.command("renew", epilog=render.examples("certs renew certs", "certs renew certs --all"))
@click.argument("folder", metavar="DIR", type=FOLDER)
@click.option("--all", "everything", is_flag=True, help="Also those that hold for long.")
def renew(folder: Path, *, everything: bool) -> None:
    """Issue anew what has less than a third of its life left, for the same names and as long.

    Servers and clients that use them take the new ones while they run.
    """
    from openmanager import certificate

    renewed = [place.name for place in _open(folder).renew(now=certificate.utc_now(), everything=everything)]
    click.echo(f"renewed: {', '.join(renewed)}" if renewed else "nothing has to be renewed")


@certs.command("rotate", epilog=render.examples("certs rotate certs", "certs rotate certs --finish"))
@click.argument("folder", metavar="DIR", type=FOLDER)
@click.option("--finish", is_flag=True, help="Stop trusting the old authority.")
def rotate(folder: Path, *, finish: bool) -> None:
    """Let a new authority take over from the one in DIR, in three steps.

    \b
    1.  certs rotate DIR             both are trusted: hand ca.pem to everybody
    2.  certs renew DIR --all        every certificate is the new one's
    3.  certs rotate DIR --finish    only the new one is trusted
    """  # noqa: D301  (click's mark for text that keeps its lines)
    from openmanager import certificate

    signer = _open(folder)
    if finish:
        signer.retire()
        click.echo("only the present authority is trusted now")
    else:
        signer.rotate(now=certificate.utc_now())
        click.echo("both authorities are trusted; next: openmanager certs renew DIR --all")


@certs.command("show", epilog=render.examples("certs show certs", "certs show certs/gateway/certificate.pem --json"))
@click.argument("path", metavar="FILE|DIR", type=click.Path(path_type=Path, exists=True))
@click.option("--json", "as_json", is_flag=True, help="One JSON array.")
def show(path: Path, *, as_json: bool) -> None:
    """Show certificates: whose they are, what for, how long they hold, and what is wrong.

    Exit code 1 when something is.
    """
    from openmanager import certificate

    rows = list(_rows(path, certificate.utc_now()))
    if not rows:
        raise ConfigurationError(f"there is no certificate in {path}")
    if as_json:
        click.echo(json.dumps([asdict(row) for row in rows], indent=2))
    else:
        made = render.table("subject", "until", "days", "names", right=("days",))
        made.columns[-1].no_wrap, made.columns[-1].overflow = False, "fold"
        for row in rows:
            made.add_row(row.subject, row.until[:10], str(row.days_left), ", ".join(row.names))
        out = render.console()
        out.print(made)
        for row in rows:
            for each in row.trouble:
                out.print(f"! {row.file}: {each}", style="yellow", markup=False)
    if any(row.trouble for row in rows):
        sys.exit(EXIT_NOT_WELL)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    """A certificate in a file."""

    file: str
    subject: str
    names: tuple[str, ...]
    until: str
    days_left: int
    trouble: tuple[str, ...]


def _open(folder: Path) -> Authority:
    from openmanager.authority import Authority

    return Authority(folder)


def _rows(path: Path, now: datetime) -> Iterator[_Row]:
    from openmanager import authority, certificate

    names = (authority.CA, authority.CERTIFICATE)
    files = [path] if path.is_file() else sorted(each for each in path.rglob("*.pem") if each.name in names)
    for file in files:
        # A copy of what is shown once.
        if file.name == authority.CA and file.parent != path and (file.parent / authority.CERTIFICATE).exists():
            continue
        try:
            found = certificate.read_certificates(file.read_bytes(), str(file))
        except OSError as err:
            raise ConfigurationError(f"cannot read {file}: {err.strerror}") from err
        for each in found:
            yield _Row(
                file=str(file if file == path else file.relative_to(path)),
                subject=each.subject.rfc4514_string(),
                names=tuple(str(name.value) for name in certificate.alternative_names(each)),
                until=each.not_valid_after_utc.isoformat(),
                days_left=certificate.remaining(each, now).days,
                trouble=tuple(_trouble(file, each, now)),
            )


def _trouble(file: Path, found: x509.Certificate, now: datetime) -> Iterator[str]:
    """Yield what is wrong with a certificate, and with the files beside it."""
    from openmanager import authority, certificate

    if said := certificate.trouble(found, now):
        yield said
    of_authority = certificate.is_authority(found)
    key = file.with_name(authority.CA_KEY if of_authority else authority.KEY)
    if certificate.is_open_to_others(key):
        yield f"{key.name} can be read by others"
    if of_authority:
        return
    if len(list(certificate.identities(found))) != 1:
        yield "names nobody of this mesh"
    trusted = file.with_name(authority.CA)
    try:
        if key.exists() and not certificate.belong_together(found, certificate.read_key(key.read_bytes(), str(key))):
            yield f"{key.name} is not its key"
        if trusted.exists() and not certificate.signed_by(
            found, certificate.read_certificates(trusted.read_bytes(), str(trusted))
        ):
            yield f"{trusted.name} did not sign it"
    except (OSError, ConfigurationError):
        yield f"{key.name} or {trusted.name} cannot be read"

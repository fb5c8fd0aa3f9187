"""From a command to the gateway: one connection, our sentence when nobody is there, an end by Ctrl-C without noise."""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from openmanager.errors import (
    CancelledCallError,
    DeadlineExceededError,
    Reason,
    UnauthenticatedError,
    UnavailableError,
)

if TYPE_CHECKING:
    from openmanager.client import Client
    from openmanager.client.credential import Credential
    from openmanager.runtime.tls import Tls

T = TypeVar("T")
KNOCK_SECONDS = 1.0
_TLS = "openmanager.tls"


def tls_options(command: Any) -> Any:
    """Give the program the options of an encrypted connection; `tls` returns what they say."""
    for name, metavar, text in (
        ("server-name", "NAME", "The name in the gateway's certificate, where it is not the host of --gateway."),
        ("key", "FILE", "PEM file of that certificate's key."),
        ("certificate", "FILE", "PEM file of a certificate to show, where the gateway asks for one."),
        ("ca", "FILE", "PEM file of the authority that signed the gateway's certificate; encrypts."),
    ):
        command = click.option(
            f"--tls-{name}",
            metavar=metavar,
            envvar=f"OPENMANAGER_TLS_{name.upper().replace('-', '_')}",
            expose_value=False,
            callback=_remember,
            help=text,
        )(command)
    return command


def _remember(ctx: click.Context, option: click.Parameter, value: str | None) -> None:
    name = str(option.name).removeprefix("tls_")
    if value:
        ctx.meta.setdefault(_TLS, {})[name] = value if name == "server_name" else Path(value)


def tls() -> Tls | None:
    """Return what the connection to the gateway is encrypted with; None when it is not."""
    from openmanager.runtime.tls import Tls

    files = click.get_current_context().meta.get(_TLS)
    return Tls(**files) if files else None


def address() -> str:
    """Return the gateway's address as the command line has it; a usage error when it is none."""
    context = click.get_current_context().find_root()
    found = str(context.obj)
    for each in found.split(","):  # of several gateways
        host, _, port = each.rpartition(":")
        if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
            raise click.UsageError(f"{found!r} is not an address of a gateway: host:port is expected", context)
    return found


def run(work: Callable[[Client], Coroutine[Any, Any, T]]) -> T:
    """Do the work of a command with a client of the gateway."""
    return asyncio.run(_with_client(address(), tls(), work))


def run_until_interrupted(work: Callable[[Client], Coroutine[Any, Any, None]]) -> None:
    """Do the work of a command that ends when the user says so: by Ctrl-C, without a word."""
    try:
        run(work)
    except KeyboardInterrupt:
        return


async def _with_client(target: str, tls: Tls | None, work: Callable[[Client], Coroutine[Any, Any, T]]) -> T:
    from openmanager.client import Client

    async with Client(target, tls=tls, credential=await _credential(target, tls)) as client:
        try:
            return await work(client)
        except UnauthenticatedError as err:
            if err.reason != Reason.CREDENTIALS_REQUIRED:
                raise
            raise UnauthenticatedError(
                "the gateway asks who you are: sign in with `openmanager login NAME`, or set OPENMANAGER_TOKEN_FILE",
                reason=err.reason,
            ) from err
        except (UnavailableError, DeadlineExceededError, CancelledCallError) as err:
            if (why := await _obstacle(target, tls)) is None:
                raise
            raise UnavailableError(why) from err


async def _credential(target: str, tls: Tls | None) -> Credential:
    from openmanager.cli import session

    found = session.credential(target, os.environ, tls)
    if isinstance(found, session.Session) and found.is_ending:
        await found.renew()
    return found


async def _obstacle(target: str, tls: Tls | None) -> str | None:
    """Return why no connection to an address can be had, None when it can: gRPC does not tell."""
    host, _, port = target.partition(",")[0].rpartition(":")
    host = host.strip("[]")
    try:
        async with asyncio.timeout(KNOCK_SECONDS):
            _, writer = await asyncio.open_connection(host, int(port))
            writer.close()
            return await _handshake_obstacle(host, int(port), target, tls)
    except (OSError, TimeoutError):
        return (
            f"nothing answers at {target}: start the mesh with `openmanager up`, or name another gateway with --gateway"
        )


async def _handshake_obstacle(host: str, port: int, target: str, tls: Tls | None) -> str | None:
    """Shake hands with who answers at an address, as the connection does, and return what is in the way."""
    settings = ssl.create_default_context(cafile=str(tls.ca) if tls and tls.ca else None)
    settings.set_alpn_protocols(["h2"])
    if tls is None:
        # Only to see whether the other side speaks TLS: nothing is sent.
        settings.check_hostname, settings.verify_mode = False, ssl.CERT_NONE
    elif tls.certificate and tls.key:
        settings.load_cert_chain(tls.certificate, tls.key)
    try:
        reader, writer = await asyncio.open_connection(
            host, port, ssl=settings, server_hostname=(tls.server_name if tls else "") or host
        )
    except ssl.SSLCertVerificationError as err:
        return f"the certificate of {target} is not believed: {err.verify_message.rstrip('.')}"
    except (OSError, TimeoutError):
        return None if tls is None else f"{target} does not speak TLS: leave out --tls-ca, or name another gateway"
    if not await _is_taken(reader, writer):
        shown = tls is not None and tls.certificate is not None
        return f"{target} {'does not take the certificate' if shown else 'wants a certificate: see --tls-certificate'}"
    return f"{target} speaks TLS only: name its authority with --tls-ca" if tls is None else None


async def _is_taken(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    """Say whether the other side goes on after the handshake: with TLS 1.3 a client is through before it is judged."""
    try:
        async with asyncio.timeout(KNOCK_SECONDS):
            return bool(await reader.read(1))
    except (OSError, TimeoutError):
        return False
    finally:
        writer.close()

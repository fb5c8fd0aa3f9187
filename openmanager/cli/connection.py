"""From a command to the gateway: one connection, our sentence when nobody is there, an end by Ctrl-C without noise."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine
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

T = TypeVar("T")
KNOCK_SECONDS = 1.0


def address() -> str:
    """Return the gateway's address as the command line has it; a usage error when it is none."""
    context = click.get_current_context().find_root()
    found = str(context.obj)
    host, _, port = found.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise click.UsageError(f"{found!r} is not an address of a gateway: host:port is expected", context)
    return found


def run(work: Callable[[Client], Coroutine[Any, Any, T]]) -> T:
    """Do the work of a command with a client of the gateway."""
    return asyncio.run(_with_client(address(), work))


def run_until_interrupted(work: Callable[[Client], Coroutine[Any, Any, None]]) -> None:
    """Do the work of a command that ends when the user says so: by Ctrl-C, without a word."""
    try:
        run(work)
    except KeyboardInterrupt:
        return


async def _with_client(target: str, work: Callable[[Client], Coroutine[Any, Any, T]]) -> T:
    from openmanager.client import Client

    async with Client(target, credential=await _credential(target)) as client:
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
            if await _answers(target):
                raise
            raise UnavailableError(
                f"nothing answers at {target}: start the mesh with `openmanager up`, "
                "or name another gateway with --gateway"
            ) from err


async def _credential(target: str) -> Credential:
    from openmanager.cli import session

    found = session.credential(target, os.environ)
    if isinstance(found, session.Session) and found.is_ending:
        await found.renew()
    return found


async def _answers(target: str) -> bool:
    """Say whether somebody takes connections at an address."""
    host, _, port = target.rpartition(":")
    try:
        async with asyncio.timeout(KNOCK_SECONDS):
            _, writer = await asyncio.open_connection(host.strip("[]"), int(port))
    except (OSError, TimeoutError):
        return False
    writer.close()
    return True

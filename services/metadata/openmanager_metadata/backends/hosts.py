"""Which of the servers that a URL names is connected to: the one that answered last, and the others in turn."""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable
from itertools import count
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import asyncpg

from openmanager_metadata.backends import StrangerError

Host = tuple[str, int]
PORT = 5432
SILENT_SECONDS = 0.2
_HOST = re.compile(r"\[([^\]]+)\](?::(\d+))?|(/[^:]*|[^:]*)(?::(\d+))?")

# What says that another host may fare better, the most telling last. Refused credentials do not.
_NEXT = (
    asyncpg.PostgresConnectionError,
    OSError,
    asyncpg.TargetServerAttributeNotMatched,
    asyncpg.OperatorInterventionError,
    StrangerError,
)


def hosts(url: str) -> list[Host]:
    """Return the hosts of a URL, a name, an address or the folder of a socket, with their ports; none for the default."""
    parts = urlsplit(url)
    asked = parse_qs(parts.query)
    listed = parts.netloc.rpartition("@")[2] or asked.get("host", [""])[0]
    if not listed:
        return []
    ports = asked.get("port", [str(PORT)])[0].split(",")
    found = []
    for at, text in enumerate(unquote(listed).split(",")):
        match = _HOST.fullmatch(text)
        port = (match[2] or match[4]) if match else None
        found.append(((match[1] or match[3]) if match else text, int(port or ports[min(at, len(ports) - 1)])))
    return found


class Hosts:
    """Connects to the first host that will do. Each has the whole `timeout`: one that hangs does not hide the others."""

    def __init__(self) -> None:
        self._number = count(1)
        # Less is tried earlier: the one that answered last, those that say no at once, those that were silent.
        self._order: dict[Host, int] = {}

    async def connect(
        self, url: str, *, check: Callable[[Any], Awaitable[None]] | None = None, **options: Any
    ) -> asyncpg.Connection:
        """Return a connection that `check` has nothing against; else raise the most telling of what was found."""
        known = hosts(url)
        if len(known) < 2:
            return await _connect(url, check, options)
        errors: list[Exception] = []
        for host in sorted(known, key=lambda each: self._order.get(each, 0)):
            if self._order.get(host, 0) > 0 and any(isinstance(err, StrangerError) for err in errors):
                continue  # another took its place
            start = time.monotonic()
            try:
                connection = await _connect(url, check, {**options, "host": host[0], "port": host[1]})
            except BaseException as err:
                # Also when the caller has given up: the next one must not wait for the same host.
                is_silent = time.monotonic() - start > SILENT_SECONDS
                self._order[host] = next(self._number) if is_silent else 0
                if not isinstance(err, _NEXT):
                    raise
                errors.append(err)
            else:
                self._order[host] = -1
                return connection
        raise max(errors, key=_weight)


def _weight(err: Exception) -> int:
    return max(at for at, kind in enumerate(_NEXT) if isinstance(err, kind))


async def _connect(
    url: str, check: Callable[[Any], Awaitable[None]] | None, options: dict[str, Any]
) -> asyncpg.Connection:
    connection = await asyncpg.connect(url, **options)
    if check is not None:
        try:
            await check(connection)
        except asyncpg.SyntaxOrAccessError as err:  # it has not even our tables
            connection.terminate()
            raise StrangerError from err
        except BaseException:
            connection.terminate()
            raise
    return connection

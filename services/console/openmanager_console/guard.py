"""What a request must be before anything is done for it, and what an answer says to browsers.

A page of another site can make a browser on this machine call us. It may not: the name that is called must be ours (a name
of an attacker's can be made to lead to 127.0.0.1), and what a browser says of where a request comes from must be our own
page. Nothing answers a cross-origin question with leave to read.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import re
import secrets
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, TypeVar

from aiohttp import web

from openmanager.errors import (
    DeadlineExceededError,
    InternalError,
    InvalidArgumentError,
    OpenManagerError,
    PermissionDeniedError,
    UnavailableError,
)
from openmanager.runtime import telemetry
from openmanager_console.door import connection_of
from openmanager_console.session import source
from openmanager_console.wire import error_response

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
F = TypeVar("F", bound=Callable[..., Any])

# Longer than anything that is asked of the gateway may take.
REQUEST_SECONDS = 35.0
# With the watches of all pages fewer than the gateway takes by one connection (server.connection_streams).
MAX_REQUESTS = 48

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self';"
    " form-action 'none'; base-uri 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Server": "openmanager",
}

# A name or an address, and a port: nothing else that a URL could hold before its path.
_HOST = re.compile(r"(?P<name>[a-z0-9._-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?")

log = logging.getLogger(__name__)


class Guard:
    """The middleware before every handler. `names` are those we are called by, in lower case."""

    # What aiohttp tells middlewares by.
    __middleware_version__ = 1

    def __init__(self, names: Iterable[str]) -> None:
        self._names = frozenset({"localhost", *names})
        self._serving = 0
        self.draining = False

    async def __call__(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Answer a request: checked, within its time, its error in our words."""
        connection = connection_of(request.transport)
        if connection is None:
            return await self._answer(request, handler)
        with connection.request():
            return await self._answer(request, handler)

    async def _answer(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        endless = getattr(handler, "is_endless", False)
        source.set(request.remote or "")
        try:
            self.check(request)
            if endless:
                return await handler(request)
            return await self._serve(request, handler)
        except OpenManagerError as err:
            return error_response(err)
        except web.HTTPException as err:
            return _plain(err)
        except TimeoutError:
            return error_response(DeadlineExceededError("the answer took too long"))
        except ConnectionError:
            raise  # the client has gone
        except Exception:
            ident = secrets.token_hex(6)
            log.exception("unexpected %s", request.path, extra=telemetry.fields(error_id=ident))
            return error_response(InternalError(f"internal error {ident}"))

    async def _serve(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if self._serving >= MAX_REQUESTS:
            raise UnavailableError("too many requests are under way: try again in a moment")
        self._serving += 1
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                return await handler(request)
        finally:
            self._serving -= 1

    def check(self, request: web.Request) -> None:
        """Raise PermissionDeniedError for a request that is not for us, or comes from another site's page.

        UnavailableError when it comes too late.
        """
        if self.draining:
            raise UnavailableError("the console is going down")
        host = request.headers.getall("Host", [])
        if len(host) != 1 or not self._is_ours(host[0]):
            raise PermissionDeniedError("this is not a name of this console: see console.hosts in its configuration")
        for origin in request.headers.getall("Origin", []):
            if origin != f"{request.scheme}://{host[0]}":
                raise PermissionDeniedError("pages of other sites may not call this console")
        site = request.headers.get("Sec-Fetch-Site", "none")
        # A link on another page may lead here; what it opens holds nothing yet, and cannot be framed.
        followed = request.path == "/" and request.headers.get("Sec-Fetch-Mode") == "navigate"
        if site not in {"none", "same-origin"} and not (followed and request.method == "GET"):
            raise PermissionDeniedError("pages of other sites may not call this console")

    def _is_ours(self, host: str) -> bool:
        found = _HOST.fullmatch(host.lower())
        if found is None:
            return False
        name = found["name"].strip("[]")
        if name.removesuffix(".") in self._names:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


async def add_headers(_: web.Request, response: web.StreamResponse) -> None:
    """Say what browsers may do with an answer; nothing of it is kept unless it says so itself."""
    for name, value in HEADERS.items():
        response.headers[name] = value
    response.headers.setdefault("Cache-Control", "no-store")


def endless(handler: F) -> F:
    """Mark a handler as having no end of its own."""
    handler.is_endless = True  # type: ignore[attr-defined]
    return handler


def _plain(err: web.HTTPException) -> web.StreamResponse:
    """Return aiohttp's own answers, such as for a path that is not there, in our form."""
    if err.status < 400:
        return err
    said = {404: "there is no such page", 405: "this cannot be done here", 413: "the body is too large"}
    answer = error_response(InvalidArgumentError(said.get(err.status, "the request cannot be understood")))
    answer.set_status(err.status)
    if "Allow" in err.headers:
        answer.headers["Allow"] = err.headers["Allow"]
    return answer

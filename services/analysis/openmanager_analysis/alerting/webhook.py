"""Posts documents to a webhook: to the address that was checked, once, without following anybody elsewhere."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http import HTTPStatus
from typing import Any

import aiohttp
import orjson
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from openmanager.version import VERSION
from openmanager_analysis.alerting.receivers import Receiver, WebhookError

SECONDS = 10.0
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
# Nothing else of IPv6 is given to anybody; some of it leads to one's own network, such as fec0::/10 and 64:ff9b:1::/48.
_GIVEN = ipaddress.ip_network("2000::/3")
# A resolver that hangs holds a thread: these, and none that files are written with.
_THREADS = ThreadPoolExecutor(max_workers=4, thread_name_prefix="webhook-names")


class PrivateAddressError(OSError):
    """A name leads to an address that must not be asked."""


def is_public(text: str) -> bool:
    """Say whether an address is one of the public network, whatever it is wrapped in."""
    address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour or (address.teredo or (None, None))[1]
        if address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
        if address not in _GIVEN:
            return False
    return address.is_global and not address.is_multicast


class _Resolver(AbstractResolver):
    """Resolves names, and refuses those with an address that must not be asked: the connection goes to what was checked."""

    def __init__(self, *, allow_private: bool) -> None:
        self._allow_private = allow_private

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Return the addresses of a name; PrivateAddressError when one of them must not be asked."""
        look = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM, family=family)
        found = await asyncio.get_running_loop().run_in_executor(_THREADS, look)
        results: list[ResolveResult] = []
        for kind, _, proto, _, place in found:
            if not (self._allow_private or is_public(str(place[0]))):
                raise PrivateAddressError
            address = str(place[0])
            results.append(
                ResolveResult(
                    hostname=host, host=address, port=port, family=kind, proto=proto, flags=socket.AI_NUMERICHOST
                )
            )
        return results

    async def close(self) -> None:
        """Nothing is open."""


class Webhook:
    """A receiver. Its session is opened with the first document."""

    def __init__(self, receiver: Receiver, *, seconds: float = SECONDS) -> None:
        self._receiver = receiver
        self._seconds = seconds
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """End what is open."""
        if self._session is not None:
            await self._session.close()

    async def post(self, document: dict[str, Any]) -> None:
        """Return when a document was taken, which is any answer of 2xx; WebhookError otherwise."""
        url = self._receiver.url.reveal()
        headers = {"Content-Type": "application/json", "User-Agent": f"OpenManager/{VERSION}"}
        authorization = await asyncio.to_thread(self._receiver.authorization.renewed)
        if authorization:
            headers["Authorization"] = authorization.reveal()
        try:
            async with asyncio.timeout(self._seconds):
                self._check_literal(url)
                request = self._opened().post(url, data=orjson.dumps(document), headers=headers, allow_redirects=False)
                async with request as answer:
                    status = answer.status
        except TimeoutError as err:
            raise WebhookError("does not answer") from err
        except PrivateAddressError as err:
            raise WebhookError("has an address that is not public, which its `allow_private` does not allow") from err
        except aiohttp.ClientConnectorError as err:
            private = isinstance(err.os_error, PrivateAddressError)
            why = "has an address that is not public, which its `allow_private` does not allow"
            raise WebhookError(why if private else "cannot be reached") from err
        except (aiohttp.ClientError, OSError, ValueError) as err:
            raise WebhookError("cannot be reached") from err
        if not HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES:
            raise WebhookError(f"answers {status}")

    def _check_literal(self, url: str) -> None:
        """Raise PrivateAddressError for an address in the URL itself, in whatever notation: nobody resolves it."""
        host = URL(url).host or ""
        try:
            public = is_public(host)
        except ValueError:
            # aiohttp takes digits, such as 127.1 and 2130706433, for an address; else it is a name.
            public = not (":" in host or host.replace(".", "").isdigit())
        if not public and not self._receiver.allow_private:
            raise PrivateAddressError

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            resolver = _Resolver(allow_private=self._receiver.allow_private)
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(resolver=resolver, use_dns_cache=False, limit=2, force_close=True),
                timeout=aiohttp.ClientTimeout(total=None),  # ours is the only one
                cookie_jar=aiohttp.DummyCookieJar(),
                trust_env=False,
            )
        return self._session

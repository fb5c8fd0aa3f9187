"""The console in this process: over a small mesh, or over nobody."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

import aiohttp
from client.mesh import NOBODY
from openmanager_console.config import ConsoleConfig
from openmanager_console.module import running

from openmanager.config import load
from openmanager.runtime.module import MeshConfig, ServerConfig

PROTOBUF = {"Content-Type": "application/x-protobuf"}
SECTIONS = {"mesh": MeshConfig, "server": ServerConfig, "console": ConsoleConfig}


class Console:
    """A console that runs, and a browser of sorts: it keeps cookies, and says what it is told to."""

    def __init__(self, address: str, session: aiohttp.ClientSession) -> None:
        self.address = address
        self.url = f"http://{address}"
        self.session = session

    async def ask(self, method: str, path: str, **options: Any) -> tuple[int, Any, Mapping[str, str]]:
        """Return status, body (JSON where it is) and headers of an answer."""
        async with self.session.request(method, self.url + path, **options) as response:
            body: Any = await response.read()
            if response.content_type == "application/json":
                body = json.loads(body)
            return response.status, body, response.headers

    @contextlib.asynccontextmanager
    async def events(self, **options: Any) -> AsyncIterator[AsyncIterator[tuple[str, Any]]]:
        """Follow what happens; beats are left out."""
        async with self.session.get(f"{self.url}/api/events", **options) as response:
            assert response.status == 200, await response.text()
            yield _events(response)


async def _events(response: aiohttp.ClientResponse) -> AsyncIterator[tuple[str, Any]]:
    topic = ""
    async for line in response.content:
        name, _, value = line.decode().rstrip("\n").partition(": ")
        if name == "event":
            topic = value
        elif name == "data" and topic != "beat":
            yield topic, json.loads(value)


@contextlib.asynccontextmanager
async def serving(gateway: str = NOBODY, **settings: object) -> AsyncIterator[Console]:
    """Serve a console; settings are those of its section."""
    flags: dict[tuple[str, str], object] = {("mesh", "gateway"): gateway, ("mesh", "console"): "127.0.0.1:0"}
    flags |= {("console", name): value for name, value in settings.items()}
    async with running(load(SECTIONS, flags=flags)) as address:
        # Cookies of an address are kept too, as browsers do.
        jar = aiohttp.CookieJar(unsafe=True)
        async with aiohttp.ClientSession(cookie_jar=jar, timeout=aiohttp.ClientTimeout(total=20)) as session:
            yield Console(address, session)

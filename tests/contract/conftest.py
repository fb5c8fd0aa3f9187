"""The suite in this process, on stores of the running mesh but with nothing in common with it, for every test here."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest_asyncio
from conftest import Mesh, secret

from fuzz.mesh import Method, open_mesh
from fuzz.run import answering


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def local(mesh: Mesh, tmp_path_factory) -> AsyncIterator[dict[str, Method]]:
    """Every method of every server by its name, `server:Service.Method`."""
    redis = secret(mesh, "cache", "REDIS_URL")
    url = secret(mesh, "metadata", "DATABASE_URL")
    name = f"t_{uuid.uuid4().hex[:12]}"
    admin = await asyncpg.connect(url)
    try:
        await admin.execute(f"CREATE DATABASE {name}")
        own = urlunsplit(urlsplit(url)._replace(path=f"/{name}"))
        stores = {"DATABASE_URL": own, "REDIS_URL": redis, "OPENMANAGER_REDIS_PREFIX": f"{name}:"}
        folder: Path = tmp_path_factory.mktemp("local")
        async with open_mesh(folder, stores) as methods:
            await answering(methods)
            yield {str(method): method for method in methods}
        await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
    finally:
        await admin.close()

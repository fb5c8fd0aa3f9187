from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from client.mesh import LocalMesh, local_mesh
from client.proxy import Proxy, proxy
from openmanager.client import Client


@pytest.fixture
async def local(tmp_path: Path) -> AsyncIterator[LocalMesh]:
    """A mesh of timeseries, cache and gateway."""
    async with local_mesh(tmp_path) as mesh:
        yield mesh


@pytest.fixture
async def client(local: LocalMesh) -> AsyncIterator[Client]:
    """A client of the mesh."""
    async with Client(local.gateway) as made:
        yield made


@pytest.fixture
async def road(local: LocalMesh) -> AsyncIterator[Proxy]:
    """A way to the gateway that can be cut or blocked."""
    async with proxy(local.gateway) as made:
        yield made

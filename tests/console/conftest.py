from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from client.mesh import LocalMesh, local_mesh

from console.served import Console, serving


@pytest.fixture
async def lonely() -> AsyncIterator[Console]:
    """A console whose gateway is away."""
    async with serving() as made:
        yield made


@pytest.fixture
async def local(tmp_path: Path) -> AsyncIterator[LocalMesh]:
    """A mesh of timeseries, cache and gateway."""
    async with local_mesh(tmp_path) as mesh:
        yield mesh


@pytest.fixture
async def console(local: LocalMesh) -> AsyncIterator[Console]:
    """A console of that mesh."""
    async with serving(local.gateway) as made:
        yield made

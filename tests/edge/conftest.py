from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Mesh, child, environment

from edge.proxied import Edge, running, write_files


@pytest.fixture(scope="session")
def edge_files(mesh: Mesh, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `openmanager edge` writes for the mesh of the tests."""
    folder = tmp_path_factory.mktemp("edge")
    key = environment(child(mesh, "serve\0metadata"))["OPENMANAGER_METADATA_IDENTITY_KEY_FILE"]
    write_files(folder, Path(key))
    return folder


@pytest.fixture(scope="session")
def edge(mesh: Mesh, edge_files: Path) -> Iterator[Edge]:
    """Envoy before the gateway of that mesh."""
    with running(edge_files, mesh.gateway) as made:
        yield made

"""Each engine with a real store behind it; without one its tests say what was missing."""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from openmanager_timeseries.engines.port import Engine

from engines.stores import Influx, Store, Victoria, influx_server, set_up, victoria_server

NO_VICTORIA = "victoria-metrics is missing: it is a Debian package"
NO_INFLUX = "influxd 2.x is missing: on PATH, as TEST_INFLUXD, or served at INFLUXDB_URL"


@pytest.fixture
def data() -> Iterator[Path]:
    """A folder for a store."""
    made = Path(tempfile.mkdtemp(prefix="openmanager-store-"))
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture(scope="session")
def victoria(tmp_path_factory) -> Iterator[Victoria]:
    """A VictoriaMetrics that removes repeated samples, as compose starts it."""
    server = victoria_server(tmp_path_factory.mktemp("victoria"), "-dedup.minScrapeInterval=1ms")
    if server is None:
        pytest.skip(NO_VICTORIA)
    server.start()
    yield Victoria(server)
    server.stop()


@pytest.fixture(scope="session")
def influx(tmp_path_factory) -> Iterator[Influx]:
    """An InfluxDB."""
    pytest.importorskip("openmanager_timeseries.engines.influxdb")
    if os.environ.get("INFLUXDB_URL"):
        store = Influx(None, os.environ["INFLUXDB_URL"], os.environ["INFLUXDB_TOKEN"], os.environ["INFLUXDB_ORG"])
    else:
        server = influx_server(tmp_path_factory.mktemp("influx"))
        if server is None:
            pytest.skip(NO_INFLUX)
        server.start()
        store = set_up(server)
    yield store
    store.delete_buckets()
    if store.server is not None:
        store.server.stop()


@pytest.fixture(params=["victoriametrics", "influxdb"])
def store(request) -> Store:
    """Each store in turn."""
    return request.getfixturevalue({"victoriametrics": "victoria", "influxdb": "influx"}[request.param])


@pytest.fixture
async def engine(store: Store) -> AsyncIterator[Engine]:
    """An engine that has found its store."""
    made = store.engine()
    await made.check()
    yield made
    await made.close()


@pytest.fixture
def prefix() -> str:
    """What the ids of a test's servers begin with, so that tests do not see each other's samples."""
    return f"t{uuid.uuid4().hex[:12]}"

"""A mesh that is told to end while every store and the collector of traces hang: in time, and nobody is left waiting."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import child, free_ports, start_mesh, wait_until
from openmanager_timeseries.config import TimeseriesConfig
from openmanager_timeseries.disk import PosixDisk
from openmanager_timeseries.opening import open_history
from openmanager_timeseries.query import RangeQuery

from chaos.leaving import MESH_SECONDS, Calls
from chaos.mesh import family, signalled
from openmanager.client import Client
from openmanager.errors import OpenManagerError
from openmanager.runtime.clock import SystemClock

OPTIONS = ("--servers", "2", "--interval", "500ms", "--seed", "3")
WRITER = "leaving-writer"


@contextlib.contextmanager
def hung_collector() -> Iterator[dict[str, str]]:
    """Yield the variables that name a collector which takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{server.getsockname()[1]}"}


async def write_forever(client: Client, acknowledged: list[int]) -> None:
    """Write one sample after the other; keep the times of those that were acknowledged."""
    while True:
        moment = time.time_ns() // 1_000_000 * 1_000_000
        with contextlib.suppress(OpenManagerError):
            await client.write(times=[moment], servers=[WRITER], metrics=["x"], values=[[[1.0]]])
            acknowledged.append(moment)
        await asyncio.sleep(0.005)


def is_alive(pid: int) -> bool:
    """Whether a process runs; a zombie, which only waits for its parent to look, does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.timeout(90)
async def test_up_ends_in_time_without_its_stores_and_keeps_what_it_acknowledged(tmp_path: Path):
    acknowledged: list[int] = []
    with hung_collector() as variables:
        mesh = start_mesh(tmp_path / "data", free_ports(), *OPTIONS, environment=variables)
        stores = [pid for word in ("valkey-server", "bin/postgres") for pid in family(child(mesh, word))]
        try:
            async with Client(mesh.gateway) as client:
                writing = asyncio.create_task(write_forever(client, acknowledged))
                signalled(stores, signal.SIGSTOP)
                calls = Calls(client, "up")
                calling = asyncio.create_task(calls.go_on())

                async def is_under_way() -> bool:
                    return calls.count > 50 and len(acknowledged) > 5

                await wait_until(is_under_way, 20)
                children = family(mesh.process.pid)
                assert await asyncio.to_thread(mesh.stop, signal.SIGTERM) <= MESH_SECONDS
                calling.cancel()
                longest, overdue = await calls.after(time.monotonic())
                assert (mesh.process.returncode, overdue) == (0, ())
                assert longest < 1.0
                writing.cancel()
            assert [pid for pid in children if is_alive(pid)] == []
        finally:
            signalled(stores, signal.SIGKILL)
    assert set(acknowledged) <= set(await found_at_the_next_start(tmp_path / "data" / "timeseries"))


async def found_at_the_next_start(folder: Path) -> list[int]:
    """Return the times of all samples of the writer, as timeseries finds them when it starts."""
    query = RangeQuery(
        servers=(WRITER,),
        server_filter="",
        metrics=("x",),
        start=time.time_ns() - 3600 * 10**9,
        end=time.time_ns() + 10**9,
        step=0,
        aggregation="MEAN",
        group_by="SERVER",
    )
    disk = PosixDisk(folder / "log")
    async with open_history(TimeseriesConfig(data_dir=folder), disk, SystemClock()) as history:
        answer = await history.query_range(query, 10)
    assert answer.raw is not None
    return answer.raw.times.tolist()

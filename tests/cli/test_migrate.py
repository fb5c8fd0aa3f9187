"""Migrations on the command line, of a data directory whose service stands still."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from client.mesh import frame_of, local_mesh
from openmanager_timeseries import migrate as domain
from timeseries.engines.stores import victoria_server

from openmanager.cli.main import main
from openmanager.client import Client
from openmanager.datadir import DataDir


@pytest.fixture(scope="module")
def history(tmp_path_factory) -> Path:
    """A data directory with ten servers' last hour."""
    path = tmp_path_factory.mktemp("data")

    async def fill() -> None:
        async with local_mesh(path / "timeseries") as mesh, Client(mesh.gateway) as client:
            await client.write_frame(frame_of(10, 360))

    with DataDir.open(path):
        asyncio.run(fill())
    return path


@pytest.fixture
def data(history: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(history, tmp_path / "data"))


@pytest.fixture
def victoria(tmp_path: Path) -> Iterator[str]:
    """The address of a VictoriaMetrics."""
    server = victoria_server(tmp_path / "victoria", "-dedup.minScrapeInterval=1ms")
    if server is None:
        pytest.skip("victoria-metrics is missing: it is a Debian package")
    server.start()
    yield server.url
    server.stop()


@pytest.fixture
def migrate(data, capsys, monkeypatch):
    """Runs a migration and returns the exit code and what was printed."""
    monkeypatch.setenv("COLUMNS", "80")
    for name in ("INFLUXDB_URL", "VICTORIAMETRICS_WRITE_URL", "VICTORIAMETRICS_READ_URL"):
        monkeypatch.delenv(name, raising=False)

    def command(*options: str) -> tuple[int, str, str]:
        code = 0
        try:
            main(["migrate", "--data-dir", str(data), *options])
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return command


def test_what_would_be_copied_is_counted_without_an_engine(migrate):
    code, out, err = migrate("--from", "blocks", "--to", "victoriametrics", "--dry-run")
    assert (code, err) == (0, "")
    assert re.search(r"^ +\d+ +14,400 +40 +0 +–$", out, re.MULTILINE)
    assert "nothing was written" in out


def test_blocks_are_in_the_engine_and_compared(migrate, victoria, monkeypatch, data):
    monkeypatch.setenv("VICTORIAMETRICS_WRITE_URL", victoria)
    code, out, err = migrate("--from", "blocks", "--to", "victoriametrics")
    assert (code, err) == (0, "")
    assert out.startswith("blocks → victoriametrics")
    assert re.search(r"^ +\d+ +14,400 +40 +0 +0$", out, re.MULTILINE)
    assert "has the same samples, within the 12 digits that it keeps" in " ".join(out.split())
    assert max(map(len, out.splitlines())) <= 80
    told = json.loads(migrate("--from", "blocks", "--to", "victoriametrics", "--json")[1])
    assert (told["sample_count"], told["series_count"], told["mismatch_count"]) == (14_400, 40, 0)
    assert not list((data / "timeseries").glob("migration-*"))


def test_a_series_that_differs_is_shown_and_is_exit_code_1(migrate, victoria, monkeypatch):
    monkeypatch.setenv("VICTORIAMETRICS_WRITE_URL", victoria)
    monkeypatch.setattr(domain, "LOOK_AGAIN_SECONDS", 60.0)  # longer than anything may stay invisible

    async def flush(_: float) -> None:
        await asyncio.to_thread(lambda: urllib.request.urlopen(f"{victoria}/internal/force_flush", timeout=10).close())

    monkeypatch.setitem(domain.Migration.__init__.__kwdefaults__, "pause", flush)
    more = urllib.request.Request(
        f"{victoria}/write?precision=ms",
        data=f"server_metrics,environment=production,role=database,server_id=web-00 cpu_usage=1 {millis()}\n".encode(),
    )
    urllib.request.urlopen(more, timeout=10).close()
    code, out, _ = migrate("--from", "blocks", "--to", "victoriametrics")
    assert code == 1
    source, target = map(int, re.search(r"^web-00 +cpu_usage +(\d+) +(\d+)$", out, re.MULTILINE).groups())
    assert target == source + 1


def millis() -> int:
    """Return a time of the last hour at which no sample is."""
    return time.time_ns() // 10**10 * 10_000 - 1_795_001


def test_a_data_directory_in_use_is_not_touched(migrate, data):
    with DataDir.open(data):
        code, out, err = migrate("--from", "blocks", "--to", "victoriametrics", "--dry-run")
    assert (code, out) == (78, "")
    assert re.fullmatch(rf"openmanager: the data directory {data} is in use by process \d+\n", err)


def test_an_engine_that_nothing_says_where_it_is_or_that_is_away_is_one_sentence(migrate, monkeypatch):
    code, out, err = migrate("--from", "blocks", "--to", "influxdb")
    assert (code, out) == (78, "")
    assert "INFLUXDB_URL does not say where it is" in err
    monkeypatch.setenv("VICTORIAMETRICS_WRITE_URL", "http://127.0.0.1:1")
    code, out, err = migrate("--from", "blocks", "--to", "victoriametrics")
    assert (code, out, err) == (69, "", "openmanager: victoriametrics does not answer\n")


def test_what_cannot_be_is_said_before_anything_is_opened(migrate, data):
    assert migrate("--from", "influxdb", "--to", "influxdb")[0] == 2
    assert migrate("--from", "blocks", "--to", "blocks")[0] == 2
    code, _, err = migrate("--from", "blocks", "--to", "influxdb", "--data-dir", str(data / "no"))
    assert (code, "holds no history" in err) == (1, True)
    assert not (data / "no").exists()

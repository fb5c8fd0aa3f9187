"""The console beyond this machine: encrypted, and for people who are known."""

from __future__ import annotations

import ssl
from pathlib import Path

import aiohttp
import pytest
from click.testing import CliRunner
from openmanager_console.module import running

from console.served import PROTOBUF, SECTIONS
from openmanager.cli.main import cli
from openmanager.config import Configuration, load
from openmanager.errors import ConfigurationError

NOBODY = "127.0.0.1:1"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The certificate of a console."""
    made = tmp_path_factory.mktemp("certs")
    done = CliRunner().invoke(cli, ["certs", "issue", str(made), "console", "--init"])
    assert done.exit_code == 0, done.output
    return made / "console"


def configured(folder: Path, listen: str) -> Configuration:
    files = {"tls_ca": "ca.pem", "tls_certificate": "certificate.pem", "tls_key": "key.pem"}
    given = {("server", name): str(folder / file) for name, file in files.items()}
    return load(SECTIONS, flags={**given, ("mesh", "console"): listen, ("mesh", "gateway"): NOBODY})


async def test_browsers_are_spoken_with_by_tls(folder: Path):
    trusted = ssl.create_default_context(cafile=str(folder / "ca.pem"))
    async with running(configured(folder, "127.0.0.1:0")) as address, aiohttp.ClientSession() as session:
        url = f"https://localhost:{address.rpartition(':')[2]}"
        async with session.get(f"{url}/", ssl=trusted, headers={"Origin": url}) as response:
            assert response.status == 200
        with pytest.raises(aiohttp.ClientError):
            await session.get(f"http://{address}/")


@pytest.mark.parametrize(("method", "path"), [("GET", "/api/events"), ("GET", "/metrics"), ("POST", "/v1/metrics")])
async def test_nobody_is_the_local_administrator_from_elsewhere(folder: Path, method, path):
    async with running(configured(folder, "0.0.0.0:0")) as address, aiohttp.ClientSession() as session:
        url = f"https://127.0.0.1:{address.rpartition(':')[2]}{path}"
        async with session.request(method, url, ssl=False, headers=PROTOBUF, data=b"") as response:
            assert response.status == 401


async def test_it_does_not_listen_there_unencrypted():
    flags = {("mesh", "console"): "0.0.0.0:0", ("mesh", "gateway"): NOBODY}
    with pytest.raises(ConfigurationError, match="not a loopback address"):
        async with running(load(SECTIONS, flags=flags)):
            pass

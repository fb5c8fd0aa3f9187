"""What is said of a secret that cannot be used: not the secret."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from click.testing import CliRunner
from openmanager_cache.backends.redis import open_redis
from openmanager_metadata.audit.signing import signers
from openmanager_metadata.backends.postgresql import PostgresqlDatabase, open_database
from openmanager_metadata.backends.tables import dump
from openmanager_metadata.config import MetadataConfig
from openmanager_metadata.directory import Directory
from openmanager_metadata.keyring import Keyring
from openmanager_metadata.memory import Memory

from openmanager import config, suite
from openmanager.certificate import read_key
from openmanager.cli.schema import schema
from openmanager.config import Secret
from openmanager.errors import ConfigurationError, OpenManagerError
from openmanager.runtime.clock import SystemClock
from openmanager.runtime.mesh_key import MeshKey

CANARY = "canary-secret-xxxxxxxxxxxxxxxxxxxxxxxxxxxx"
SHORT = CANARY[:30]
PEM = f"-----BEGIN PRIVATE KEY-----\n{CANARY}\n-----END PRIVATE KEY-----\n"


def redis(url: str) -> None:
    open_redis(Secret(url), prefix="", seconds=1, connect_seconds=1, connections=1, clock=SystemClock())


def database(url: str) -> None:
    clock = SystemClock()
    memory = Memory(clock, 1, Directory(Keyring(Secret("")), clock))
    open_database(MetadataConfig(database_url=Secret(url)), memory, clock)


UNUSABLE = {
    "a URL of Redis": lambda: redis(f"redis://:{CANARY}@host:{CANARY}/0"),
    "a URL of Sentinels": lambda: redis(f"redis+sentinel://:{CANARY}@host:{CANARY}/hot"),
    "a URL of a cluster": lambda: redis(f"redis+cluster://:{CANARY}@host,{CANARY}:x"),
    "a URL of no Redis": lambda: redis(f"https://{CANARY}@host"),
    "a URL of another database": lambda: database(f"mysql://openmanager:{CANARY}@host/x"),
    "an audit key in PEM": lambda: signers(Secret(PEM)),
    "an audit key": lambda: signers(Secret(CANARY)),
    "a short key of the mesh": lambda: MeshKey(Secret(SHORT), "gateway", SystemClock()),
    "a short identity key": lambda: Keyring(Secret(SHORT)),
    "the key of a certificate": lambda: read_key(PEM.encode(), "key.pem"),
}
FILES = {
    "no TOML": f"[metadata]\ndatabase_url = {CANARY}\n",
    "ends early": f'[metadata]\ndatabase_url = "{CANARY}\n',
    "outside a section": f'database_url = "{CANARY}"\n',
    "of another setting": f'[simulator]\nservers = "redis://:{CANARY}@host"\n',
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_the_error_does_not_repeat_it(name: str):
    with pytest.raises(ConfigurationError) as caught:
        UNUSABLE[name]()
    assert SHORT not in str(caught.value)


@pytest.mark.parametrize("name", FILES)
def test_the_error_about_a_file_does_not_repeat_it(name: str, tmp_path: Path):
    (tmp_path / "openmanager.toml").write_text(FILES[name])
    with pytest.raises(ConfigurationError) as caught:
        config.load(suite.sections(), file=tmp_path / "openmanager.toml")
    assert SHORT not in str(caught.value)


URLS = [
    f"postgresql://openmanager:{CANARY}@[host/x",
    f"postgresql://openmanager:{CANARY}@host:{CANARY}/x",
    f"postgresql://openmanager:{CANARY}@127.0.0.1:1/x?sslmode={CANARY}",
    f"postgresql://openmanager:pass/{CANARY}@host/x",
]


@pytest.mark.parametrize("url", URLS)
async def test_neither_log_nor_status_repeat_a_url_of_the_database_that_cannot_be_used(url: str, caplog):
    database = PostgresqlDatabase(MetadataConfig(database_url=Secret(url)))
    async with database.connecting():
        found = await database.look()
    assert SHORT not in f"{found} {caplog.text}"
    assert caplog.text


@pytest.mark.parametrize("url", URLS)
async def test_no_command_repeats_a_url_of_the_database_that_cannot_be_used(url: str, tmp_path: Path):
    with pytest.raises(OpenManagerError) as of_backup:
        await dump(url, tmp_path / "copy")
    of_schema = await asyncio.to_thread(CliRunner().invoke, schema, env={"DATABASE_URL": url})
    assert isinstance(of_schema.exception, OpenManagerError)
    assert SHORT not in f"{of_backup.value} {of_schema.exception}"

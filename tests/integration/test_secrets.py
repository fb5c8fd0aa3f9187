"""No secret comes out: not by logs, traces, measures, answers, commands, arguments, environments or files."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import jwt
import pytest
from canaries import Canaries, Collector, Onlooker, canary, collecting, echoing
from click.testing import CliRunner
from conftest import PORTS, Mesh, child, clean_environment, free_ports, secret, start_mesh, wait_until
from contract.rpc import METHODS, Method
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from openmanager import config, suite
from openmanager.cli.main import cli
from openmanager.client import Client
from openmanager.client.credential import Token
from openmanager.client.people import Grant
from openmanager.config import Secret
from openmanager.errors import OpenManagerError

pytestmark = pytest.mark.timeout(180)
PROGRAM = (sys.executable, "-m", "openmanager.cli")
SERVICES = {f"openmanager-{name}" for name in ("gateway", "timeseries", "cache", "metadata", "analysis", "simulator")}
# Libraries have more to say than we.
VERBOSE = {"OPENMANAGER_SERVER_LOG_LEVEL": "debug"}
# Files below the data directory that somebody reads a secret from, and which.
HOLDERS = {
    "credentials/mesh": {"mesh key"},
    "credentials/identity": {"identity key"},
    "credentials/audit-key.pem": {"audit key"},
    "credentials/valkey": {"valkey password"},
    "credentials/postgresql": {"postgresql password"},
    "credentials/admin-invitation": {"first invitation"},  # which is taken: it goes at the next start
    "valkey/valkey.conf": {"valkey password"},
}


@dataclass
class World:
    """A mesh that asks for credentials, everything that it lets out, and who looks on."""

    folder: Path
    mesh: Mesh
    canaries: Canaries
    collector: Collector
    collector_url: str
    onlooker: Onlooker
    influxdb_url: str
    told: list[tuple[str, bytes | str]] = field(default_factory=list)
    children: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def file(self, name: str, text: str) -> str:
        """Write what a `_FILE` variable or an option names; return its path."""
        (self.folder / name).write_text(text)
        return str(self.folder / name)

    def command(self, *words: str, codes: tuple[int, ...] = (0,), **variables: str) -> str:
        """Run a command; keep what it says, and return it."""
        home = {"XDG_CONFIG_HOME": str(self.folder / "home"), "OPENMANAGER_GATEWAY": self.mesh.gateway}
        environment = {**clean_environment(), **home, **variables}
        done = subprocess.run(
            [*PROGRAM, *words], env=environment, capture_output=True, text=True, check=False, timeout=30
        )
        assert done.returncode in codes, done
        self.told.append((f"`openmanager {' '.join(words[:2])}`", done.stdout + done.stderr))
        return done.stdout + done.stderr

    def serve(self, service: str, title: str, port: int, **variables: str) -> str:
        """Start one service more, whose log is kept; return its address."""
        environment = {
            "OPENMANAGER_SERVER_LISTEN": f"127.0.0.1:{port}",
            "OPENMANAGER_MESH_KEY_FILE": str(self.mesh.data / "credentials" / "mesh"),
            "OPENMANAGER_TIMESERIES_DATA_DIR": str(self.folder / title),
            "OPENMANAGER_TIMESERIES_BALLAST_SIZE": "1MiB",
            "OTEL_EXPORTER_OTLP_ENDPOINT": self.collector_url,
            **VERBOSE,
            **variables,
        }
        with (self.folder / f"{title}.log").open("wb") as log:
            self.children.append(
                subprocess.Popen(
                    [*PROGRAM, "serve", service], env={**clean_environment(), **environment}, stdout=log, stderr=log
                )
            )
        return environment["OPENMANAGER_SERVER_LISTEN"]

    async def ask_all(self, target: str, server: str, *bearers: str) -> None:
        """Call every method of a server as everybody that is named, with an empty message, and keep the refusals."""
        methods = [method for method in METHODS if method.server == server]
        async with grpc.aio.insecure_channel(target, [("grpc.enable_http_proxy", 0)]) as channel:
            for bearer in bearers:
                await asyncio.gather(*(self._ask(channel, method, bearer) for method in methods))

    async def _ask(self, channel: grpc.aio.Channel, method: Method, bearer: str) -> None:
        descriptor = method.descriptor
        kinds = ("stream" if each else "unary" for each in (descriptor.client_streaming, descriptor.server_streaming))
        request = iter([b""]) if descriptor.client_streaming else b""
        metadata = [("authorization", f"Bearer {bearer}")] if bearer else []
        call = getattr(channel, "_".join(kinds))(method.path)(request, timeout=3, metadata=metadata)
        try:
            await (call.read() if descriptor.server_streaming else call)
        except grpc.aio.AioRpcError as refused:
            text = f"{refused.details()} {refused.debug_error_string()} {refused.trailing_metadata()}"
            self.told.append((f"the answer to {method}", text))
        finally:
            call.cancel()

    async def refused(self, call: Awaitable[Any]) -> None:
        """Keep what is said of a call that must fail."""
        with pytest.raises(OpenManagerError) as caught:
            await call
        self.told.append(("an error", f"{caught.value!r} {caught.value} {caught.value.reason} {caught.value.resource}"))

    def outlets(self) -> Iterator[tuple[str, bytes | str]]:
        """Yield everything that came out."""
        yield from self.told
        yield from ((f"an export to {method}", data) for method, data in self.collector.exports)
        yield from self.onlooker.seen()
        yield "the screen before", self.mesh.screen
        for file in [*self.folder.glob("*.log"), *(self.mesh.data / "logs").iterdir()]:
            yield f"the log {file.name}", file.read_bytes()


def credentials(folder: Path, canaries: Canaries) -> None:
    """Put keys and passwords where the first start would put random ones."""
    folder.mkdir(parents=True, mode=0o700)
    for name, text in {
        "mesh": canaries.make("mesh key"),
        "identity": canaries.make("identity key"),
        "valkey": canaries.make("valkey password"),
        "postgresql": canaries.make("postgresql password"),
        "audit-key.pem": private_key(canaries, "audit key"),
    }.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o600)


def private_key(canaries: Canaries, name: str) -> str:
    pem = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    canaries.add(name, pem.splitlines()[1][-40:])
    return pem


def other_password(url: str, password: str) -> str:
    """Return a store's URL with another password."""
    return re.sub(r"(?<=openmanager:)[^@]+(?=@)|(?<=password=)[^&]+", password, url)


async def serves(log: Path) -> None:
    """Return when a service says so in its log."""

    async def said() -> bool:
        return '"serving"' in await asyncio.to_thread(log.read_text)

    await wait_until(said, 30)


async def come_in(world: World) -> str:
    """Sign in, by right and wrong credentials; return the key of a program."""
    canaries, data = world.canaries, world.mesh.data
    invitation = data / "credentials" / "admin-invitation"

    async def invited() -> bool:
        return invitation.exists()

    await wait_until(invited)
    canaries.add("first invitation", invitation.read_text().strip())
    password = canaries.make("user password")
    chosen, wrong = world.file("password", password), world.file("wrong", canaries.make("wrong password"))
    await asyncio.to_thread(world.command, "login", "--invitation-file", str(invitation), "--password-file", chosen)
    await asyncio.to_thread(world.command, "login", "admin", "--password-file", wrong, codes=(1,))
    kept = json.loads((world.folder / "home" / "openmanager" / "sessions.json").read_text())[world.mesh.gateway]
    canaries.add("refresh token", kept["refresh_token"])
    access = canaries.add("access token", kept["access_token"])
    async with Client(world.mesh.gateway, credential=Token(access)) as admin:
        _, made = await admin.users.create("alice", [Grant("viewer")])
        _, key = await admin.keys.create("reads", [Grant("viewer"), Grant("auditor")])
        tokens = await admin.sessions.begin("admin", password)
        canaries.add("other access token", tokens.access_token)
        canaries.add("other refresh token", tokens.refresh_token)
        world.told.append(("what a program may print", f"{tokens!r} {made!r} {Token(key)!r}"))
        canaries.add("invitation", made.text)
        canaries.add("API key", key)
        await world.refused(admin.users.accept(made.text, "short"))
        await world.refused(admin.users.accept(canaries.make("wrong invitation"), password))
        await world.refused(admin.users.change_password(canaries.make("other wrong password"), password))
        await world.refused(admin.sessions.refresh(canaries.make("wrong refresh token")))
    return key


def serve_badly(world: World) -> dict[str, tuple[str, str]]:
    """Start services whose secrets are wrong or lead nowhere; return which service is where."""
    make, ports, certs = world.canaries.make, free_ports(PORTS), world.folder / "certs" / "timeseries"
    secrets = {
        "away": f"postgresql://openmanager:{make('password of a database that is away')}@127.0.0.1:1/openmanager",
        "owner": f"postgresql://owner:{make('password of the owner')}@127.0.0.1:1/openmanager",
        "refused": other_password(secret(world.mesh, "metadata", "DATABASE_URL"), make("wrong database password")),
        "redis": other_password(secret(world.mesh, "cache", "REDIS_URL"), make("wrong redis password")),
        "basic": f"http://openmanager:{make('password of an engine')}@127.0.0.1:1",
        "token": make("InfluxDB token"),
    }
    files = {name: world.file(f"secret-{name}", text) for name, text in secrets.items()}
    owner = {"DATABASE_MIGRATION_URL_FILE": files["owner"]}
    tls = {"CA": "ca.pem", "CERTIFICATE": "certificate.pem", "KEY": "key.pem"}
    encrypted = {f"OPENMANAGER_SERVER_TLS_{name}": str(certs / file) for name, file in tls.items()}
    services = {
        "away": ("metadata", {"DATABASE_URL_FILE": files["away"], **owner}),
        "refused": ("metadata", {"DATABASE_URL_FILE": files["refused"], **owner}),
        "redis": ("cache", {"REDIS_URL_FILE": files["redis"]}),
        "basic": ("timeseries", {"VICTORIAMETRICS_WRITE_URL_FILE": files["basic"]}),
        "token": (
            "timeseries",
            {"INFLUXDB_URL": world.influxdb_url, "INFLUXDB_TOKEN_FILE": files["token"], **encrypted},
        ),
    }
    return {
        title: (service, world.serve(service, title, ports + at, OPENMANAGER_ALLOW_INSECURE="1", **variables))
        for at, (title, (service, variables)) in enumerate(services.items())
    }


async def drive(world: World) -> None:
    """Do everything that might make a secret come out."""
    beside = await asyncio.to_thread(serve_badly, world)
    key = await come_in(world)
    reader = world.file("key", key)
    await world.ask_all(world.mesh.gateway, "gateway", "", key)
    await asyncio.to_thread(world.command, "audit", "list", "--json", OPENMANAGER_TOKEN_FILE=reader)
    show_configuration(world)
    for title, (service, address) in beside.items():
        await serves(world.folder / f"{title}.log")
        await world.ask_all(address, service, "")
    await lose_the_stores(world)
    await world.ask_all(world.mesh.gateway, "gateway", key)
    seen = ""
    while "STORAGE_STATE_DOWN" not in seen:  # they are soon started again
        await lose_the_stores(world)
        seen = await asyncio.to_thread(world.command, "status", "--json", codes=(0, 1), OPENMANAGER_TOKEN_FILE=reader)
    # Last: whoever shows too many of these is not let in for a while.
    await world.ask_all(world.mesh.gateway, "gateway", world.canaries.make("wrong key"))


async def lose_the_stores(world: World) -> None:
    """Kill the stores of the mesh that are there."""
    for name in ("valkey", "postgres"):
        with contextlib.suppress(pytest.fail.Exception, ProcessLookupError):
            os.kill(child(world.mesh, name), signal.SIGKILL)


def show_configuration(world: World) -> None:
    """Show a configuration of nothing but secrets, and keep what is shown."""
    make = world.canaries.make
    secrets = {key.variable: make(key.variable) for key in config.keys(suite.sections()) if key.kind is Secret}
    urls = ("INFLUXDB_URL", "VICTORIAMETRICS_WRITE_URL", "VICTORIAMETRICS_READ_URL")
    secrets |= {name: f"https://openmanager:{make(name)}@db.example.net/x" for name in urls}
    for options in (["show"], ["show", "--diff"], ["show", "--json"], ["check"], ["keys"]):
        shown = CliRunner().invoke(cli, ["config", *options], env=secrets)
        assert shown.exit_code == 0, shown
        world.told.append((f"`openmanager config {' '.join(options)}`", shown.output))


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    """A world in which everything has happened, and whose services have ended."""
    folder, canaries = Path(tempfile.mkdtemp(prefix="om-")), Canaries()
    credentials(folder / "data" / "credentials", canaries)
    done = subprocess.run(
        [*PROGRAM, "certs", "issue", str(folder / "certs"), "--init"], capture_output=True, check=True, timeout=30
    )
    canaries.add("private key", (folder / "certs" / "timeseries" / "key.pem").read_text().splitlines()[1][-40:])
    with collecting() as (collector, url), echoing() as (shown, store), Onlooker() as onlooker:
        environment = {
            "OPENMANAGER_AUTH": "required",
            "OPENMANAGER_TIMESERIES_BALLAST_SIZE": "1MiB",
            "OTEL_EXPORTER_OTLP_ENDPOINT": url,
            "OTEL_METRIC_EXPORT_INTERVAL": "1000",
            **VERBOSE,
        }
        mesh = start_mesh(folder / "data", free_ports(), "--servers", "3", "--interval", "1s", environment=environment)
        made = World(folder, mesh, canaries, collector, url, onlooker, store)
        made.told.append(("`openmanager certs`", done.stdout + done.stderr))
        try:
            asyncio.run(drive(made))
        finally:
            for each in made.children:
                each.terminate()
            for each in made.children:
                each.wait(20)
            mesh.process.send_signal(signal.SIGINT)
            made.told.append(("the screen", mesh.process.communicate(timeout=30)[0]))
        assert any(canary("InfluxDB token") in each for each in shown)
    yield made
    shutil.rmtree(folder, ignore_errors=True)


def test_nothing_that_comes_out_holds_a_secret(world: World):
    leaks = world.canaries.leaks(world.outlets())
    assert not leaks, "\n".join(leaks)


def test_every_service_has_told_of_itself(world: World):
    spans = world.collector.spans()
    assert {service for service, _ in spans} == SERVICES
    assert world.collector.measured() == SERVICES
    calls = {name.partition(" ")[0].rpartition("/")[2] for _, name in spans}
    assert {"redis", "postgresql", "CreateSession", "AcceptInvitation", "CreateKey", "RefreshSession"} <= calls


def test_secrets_were_refused_and_stores_were_away(world: World):
    logs = {
        title: (world.folder / f"{title}.log").read_text() for title in ("away", "refused", "redis", "basic", "token")
    }
    assert "PostgreSQL cannot be reached" in logs["away"]
    assert "auth: the credentials are refused" in logs["refused"]
    texts = "".join(str(text) for _, text in world.told)
    assert "valkey ended and is started again" in texts
    for said in (
        "the credentials are not valid",
        "CREDENTIALS_INVALID",
        "PostgreSQL does not answer",
        "STORAGE_STATE_DOWN",
    ):
        assert said in texts


def test_arguments_and_environments_of_all_programs_were_read(world: World):
    arguments = b"\n".join(world.onlooker.arguments)
    for program in (
        b"initdb",
        b"bin/postgres",
        b"valkey-server",
        b"login",
        *(f"serve\0{name}".encode() for name in suite.NAMES),
    ):
        assert program in arguments
    assert any(b"DATABASE_URL_FILE=" in each for each in world.onlooker.environments)


def test_only_files_that_must_hold_a_secret_do(world: World):
    data = world.mesh.data
    files = [file for file in data.rglob("*") if file.is_file()]
    found = {str(file.relative_to(data)): world.canaries.plainly_in(file.read_bytes()) for file in files}
    assert {name: names for name, names in found.items() if names} == HOLDERS


def test_files_with_a_secret_are_for_their_owner_alone(world: World):
    files = [world.mesh.data / name for name in HOLDERS]
    files += [world.folder / "home" / "openmanager" / "sessions.json", *(world.folder / "certs").rglob("key.pem")]
    assert len(files) > len(HOLDERS) + 5
    assert {str(file): oct(file.stat().st_mode) for file in files if file.stat().st_mode & 0o077} == {}


@pytest.mark.parametrize(
    "said",
    [
        f"redis://:{canary('one')}@host",
        b"\x0a\x10" + canary("one").encode(),
        canary("one").encode().hex(),
        base64.b64encode(f"me:{canary('one')}".encode()),
        base64.b64encode(f"user:{canary('one')}".encode()),
    ],
    ids=["plain", "in a message", "hexadecimal", "base64 after three", "base64 after five"],
)
def test_a_secret_that_comes_out_is_found(said: str | bytes):
    canaries = Canaries()
    canaries.make("one")
    canaries.make("another")
    assert canaries.leaks([("a log", said), ("a trace", b"nothing")]) == ["one in a log"]


def test_a_token_of_somebody_is_found():
    token = jwt.encode({"sub": "somebody"}, 40 * "k", "HS256")
    assert Canaries().leaks([("a log", f"authorization: Bearer {token}")]) == ["a token in a log"]

"""Commands, the client and the agent over TLS, and what people are told when it does not work."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from conftest import clean_environment

from openmanager import authority, certificate, config, suite
from openmanager.agent import AgentEvent, run_agent
from openmanager.cli import render, status
from openmanager.cli.connection import _obstacle
from openmanager.cli.main import main
from openmanager.client import Client, Tls, codec
from openmanager.errors import ConfigurationError, UnavailableError
from openmanager.runtime.clock import SystemClock
from openmanager.runtime.module import Runtime, ServerConfig, Service
from openmanager.runtime.server import Server
from openmanager.runtime.tls import Files

SECONDS = 20


@pytest.fixture(scope="module")
def certs(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("tls") / "certs"
    authority.make(made, now=certificate.utc_now())
    for identity in ("gateway", "client/alice"):
        issue(made, identity)
    return made


def issue(folder: Path, identity: str) -> None:
    lifetime = timedelta(days=1)
    authority.Authority(folder).issue(identity, ("localhost",), now=certificate.utc_now(), lifetime=lifetime)


def files(folder: Path) -> Tls:
    return Tls(ca=folder / "ca.pem", certificate=folder / "certificate.pem", key=folder / "key.pem")


@contextlib.asynccontextmanager
async def serving(tls: Tls | None, servicers: dict[str, object] | None = None, **config) -> AsyncIterator[int]:
    server = Server(
        service=Service(servicers=servicers or {}, public=True),
        name="gateway",
        address="127.0.0.1:0",
        config=ServerConfig(grace=timedelta(seconds=0.2), **config),
        clock=SystemClock(),
        files=None if tls is None else Files(tls),
    )
    async with server.running():
        yield server.port


async def health(port: int, *options: str, host: str = "localhost", **variables: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "openmanager.cli", "--gateway", f"{host}:{port}", *options, "health"]
    done = await asyncio.to_thread(
        subprocess.run,
        command,
        env={**clean_environment(), **variables},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    return done.returncode, (done.stdout + done.stderr).strip()


def options(folder: Path) -> list[str]:
    return [f"--tls-certificate={folder / 'certificate.pem'}", f"--tls-key={folder / 'key.pem'}"]


async def test_a_command_speaks_tls_by_its_options_or_the_environment(certs):
    async with serving(files(certs / "gateway")) as port:
        ca = str(certs / "ca/ca.pem")
        assert await health(port, f"--tls-ca={ca}") == (0, "SERVING")
        variables = {"OPENMANAGER_TLS_CA": ca, "OPENMANAGER_TLS_SERVER_NAME": "gateway.openmanager.internal"}
        assert await health(port, host="127.0.0.1", **variables) == (0, "SERVING")


async def test_a_command_shows_its_certificate_where_one_is_required(certs):
    ca = f"--tls-ca={certs / 'ca/ca.pem'}"
    async with serving(files(certs / "gateway"), tls_clients=True) as port:
        assert await health(port, ca, *options(certs / "alice")) == (0, "SERVING")


async def test_who_is_plain_with_an_encrypted_gateway_is_told_so(certs):
    async with serving(files(certs / "gateway")) as port:
        assert await health(port) == (
            69,
            f"openmanager: localhost:{port} speaks TLS only: name its authority with --tls-ca",
        )


async def told(port: int, tls: Tls | None, host: str = "localhost") -> str:
    """Return what a command says of a connection that it cannot have."""
    return await _obstacle(f"{host}:{port}", tls) or "nothing"


async def test_who_encrypts_with_a_plain_gateway_is_told_so(certs):
    async with serving(None) as port:
        assert "does not speak TLS" in await told(port, Tls(ca=certs / "ca/ca.pem"))


async def test_who_shows_no_certificate_or_a_wrong_one_is_told_so(certs, tmp_path):
    authority.make(tmp_path, now=certificate.utc_now())
    issue(tmp_path, "client/alice")
    stranger = files(tmp_path / "alice")
    async with serving(files(certs / "gateway"), tls_clients=True) as port:
        ca = certs / "ca/ca.pem"
        assert "wants a certificate: see --tls-certificate" in await told(port, Tls(ca=ca))
        wrong = Tls(ca=ca, certificate=stranger.certificate, key=stranger.key)
        assert "does not take the certificate" in await told(port, wrong)
        assert await told(port, files(certs / "alice")) == "nothing"


async def test_a_certificate_that_is_not_believed_is_told_with_the_reason(certs, tmp_path):
    authority.make(tmp_path, now=certificate.utc_now())
    async with serving(files(certs / "gateway")) as port:
        said = await told(port, Tls(ca=tmp_path / "ca/ca.pem"))
        assert "is not believed: unable to get local issuer certificate" in said
        named = Tls(ca=certs / "ca/ca.pem", server_name="gateway.openmanager.internal")
        assert await told(port, named, host="127.0.0.1") == "nothing"
        assert "IP address mismatch" in await told(port, Tls(ca=certs / "ca/ca.pem"), host="127.0.0.1")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["--tls-ca=nothing.pem"], "cannot read nothing.pem"),
        (["--tls-ca=/dev/null"], "is not a PEM file of certificates"),
        (["--tls-certificate=x.pem"], "name both or neither"),
    ],
)
def test_files_that_cannot_be_used_are_named(wrong, said, capsys):
    with pytest.raises(SystemExit) as end:
        main([*wrong, "health"])
    found = capsys.readouterr().err
    assert (end.value.code, said in found, len(found.splitlines())) == (78, True, 1)


async def test_the_client_takes_the_same_files(certs):
    async with serving(files(certs / "gateway"), tls_clients=True) as port:
        several = replace(files(certs / "alice"), server_name="gateway.openmanager.internal")
        async with Client(f"127.0.0.1:{port},127.0.0.1:{port}", tls=several) as client:
            assert await client.rpc.peer.unary_bytes("/grpc.health.v1.Health/Check", b"", seconds=5)
        with pytest.raises(UnavailableError):
            async with Client(f"localhost:{port}", tls=Tls(ca=certs / "ca/ca.pem")) as client:
                await client.rpc.peer.unary_bytes("/grpc.health.v1.Health/Check", b"", seconds=5)
    with pytest.raises(ConfigurationError):
        Client("localhost:1", tls=Tls(ca=certs / "nothing"))


class Taking:
    """Takes every export."""

    async def Export(self, request, context):
        from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2

        return metrics_service_pb2.ExportMetricsServiceResponse()


@pytest.mark.filterwarnings("ignore::ResourceWarning")
async def test_the_agent_reports_over_tls_and_follows_its_certificate(certs):
    name = "opentelemetry.proto.collector.metrics.v1.MetricsService"
    exported, stop = asyncio.Queue[int](), asyncio.Event()
    loop = asyncio.get_running_loop()

    def hear(event: AgentEvent) -> None:
        if event.kind == "exported":
            loop.call_soon_threadsafe(exported.put_nowait, event.count)

    async with serving(files(certs / "gateway"), {name: Taking()}, tls_clients=True) as port:
        agent = asyncio.create_task(
            run_agent(
                f"127.0.0.1:{port}",
                interval=timedelta(milliseconds=100),
                server_id="this-host",
                attributes={},
                on_event=hear,
                stop=stop,
                tls=replace(files(certs / "alice"), server_name="gateway.openmanager.internal"),
            )
        )
        async with asyncio.timeout(SECONDS):
            await exported.get()
            issue(certs, "client/alice")
            for _ in range(3):
                await exported.get()
        stop.set()
        await agent


@pytest.mark.parametrize(
    ("days", "address", "said"),
    [
        (1, "127.0.0.1:0", "the certificate ends in"),
        (30, "0.0.0.0:0", ""),
        (0, "0.0.0.0:0", "connections from other machines are not encrypted"),
        (0, "127.0.0.1:0", ""),
    ],
)
async def test_the_status_of_the_mesh_shows_how_the_gateway_is_reached(tmp_path, capsys, days, address, said):
    tls = None
    if days:
        authority.make(tmp_path, now=certificate.utc_now())
        begun = certificate.utc_now() - timedelta(days=20 if days == 1 else 0)
        authority.Authority(tmp_path).issue(
            "gateway", (), now=begun, lifetime=timedelta(days=21 if days == 1 else days)
        )
        tls = Files(files(tmp_path / "gateway"))
    suite.load_protos()
    nobody = {("mesh", name): "127.0.0.1:1" for name in suite.NAMES}
    configuration = config.load(suite.sections(), flags={**nobody, ("gateway", "patience"): "0s"})
    module = suite.load_module("gateway")
    runtime = Runtime(configuration=configuration, name="gateway", address=address, version="0.1.0", tls=tls)
    async with module.open(runtime) as service:
        board = service.servicers["openmanager.api.gateway.v1.GatewayService"]._board
        found = codec.board(await board.collect())
    out = render.console()
    for part in status._parts(found, "gateway.example.net:50050"):
        out.print(part)
    shown = [line for line in capsys.readouterr().out.splitlines() if line.startswith("! ")]
    assert [line.startswith(f"! gateway: {said}") for line in shown] == [True] * bool(said)


@pytest.mark.parametrize(
    ("command", "variables"),
    [
        (["up", "--data-dir", "data"], {"OPENMANAGER_SERVER_TLS_CERTIFICATE": "x.pem"}),
        (["serve", "cache"], {"OPENMANAGER_SERVER_TLS_CERTIFICATE": "x.pem"}),
        (["serve", "gateway"], {"OPENMANAGER_SERVER_TLS_CERTIFICATE": "x.pem"}),
        (["serve", "cache"], {}),
    ],
)
def test_settings_that_would_not_do_what_they_say_are_refused(tmp_path, monkeypatch, capsys, command, variables):
    monkeypatch.chdir(tmp_path)
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    monkeypatch.setattr("openmanager.runtime.telemetry.set_up_logging", lambda _: None)
    with pytest.raises(SystemExit) as end:
        main(command)
    assert (end.value.code, len(capsys.readouterr().err.splitlines())) == (78, 1)

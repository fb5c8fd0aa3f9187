"""Who gets in, who does not, and what happens when certificates change: on real servers, with real handshakes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import ExtendedKeyUsageOID
from google.protobuf import wrappers_pb2
from h2.config import H2Configuration
from h2.connection import H2Connection
from test_edge import NAME, RULES, TestService, describe

from openmanager import authority, certificate
from openmanager.authority import Authority
from openmanager.certificate import Pair
from openmanager.errors import ConfigurationError, OpenManagerError, Reason, UnauthenticatedError, UnavailableError
from openmanager.runtime import tls
from openmanager.runtime.clock import SystemClock
from openmanager.runtime.line import Line
from openmanager.runtime.module import ServerConfig, Service
from openmanager.runtime.peer import Peer
from openmanager.runtime.server import Server, check_address
from openmanager.runtime.tls import Files, Tls
from openmanager.spiffe import identity_of, server_name

DAY = timedelta(days=1)


class Who(TestService):
    """Says who is calling, and counts."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.released = asyncio.Event()

    async def Call(self, request, context):
        self.calls += 1
        if request.value == "slow":
            await self.released.wait()
        return wrappers_pb2.BytesValue(value=(tls.peer_identity(context) or "nobody").encode())


@dataclass(frozen=True)
class Mesh:
    """An authority and the folders of those who have a certificate of it."""

    folder: Path

    @property
    def authority(self) -> Authority:
        return Authority(self.folder)

    def issue(self, name: str, lifetime: timedelta = DAY, now: datetime | None = None) -> Path:
        hosts = () if name.startswith("client/") else ("127.0.0.1",)
        return self.authority.issue(name, hosts, now=now or certificate.utc_now(), lifetime=lifetime)

    def tls(self, name: str) -> Tls:
        place = self.folder / name
        return Tls(ca=place / "ca.pem", certificate=place / "certificate.pem", key=place / "key.pem")

    def pair(self) -> Pair:
        """The authority itself, to sign what the program would not."""
        own = self.folder / "ca"
        made = certificate.read_key((own / "ca.key").read_bytes(), "")
        return Pair(certificate=certificate.read_certificates((own / "ca.pem").read_bytes(), "")[0], key=made)


@pytest.fixture
def mesh(tmp_path: Path) -> Mesh:
    authority.make(tmp_path / "certs", now=certificate.utc_now())
    made = Mesh(tmp_path / "certs")
    for name in ("cache", "gateway"):
        made.issue(name)
    return made


def forged(
    signer: Pair,
    *,
    uri: str = "spiffe://openmanager/gateway",
    purposes: Sequence[x509.ObjectIdentifier] = (ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH),
    begins: timedelta = -DAY,
    ends: timedelta = DAY,
    itself: bool = False,
) -> Pair:
    """Return a certificate as nobody should have one."""
    now = certificate.utc_now()
    key = certificate.new_authority(now=now).key
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "gateway")])
    names = [*map(x509.UniformResourceIdentifier, uri.split()), x509.DNSName("cache.openmanager.internal")]
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name if itself else signer.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + begins)
        .not_valid_after(now + ends)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        .sign(key if itself else signer.key, hashes.SHA256())
    )
    return Pair(certificate=made, key=key)


def written(folder: Path, pair: Pair, ca: Path) -> Tls:
    folder.mkdir(exist_ok=True)
    (folder / "certificate.pem").write_bytes(pair.certificate_pem)
    (folder / "key.pem").write_bytes(pair.key_pem)
    return Tls(ca=ca, certificate=folder / "certificate.pem", key=folder / "key.pem")


@asynccontextmanager
async def serving(files: Tls | None, *, public: bool = False, **config) -> AsyncIterator[tuple[Who, str, Server]]:
    describe()
    service = Who()
    server = Server(
        service=Service(rules=RULES, servicers={NAME: service}, public=public),
        name="cache",
        address="127.0.0.1:0",
        config=ServerConfig(**{"grace": timedelta(seconds=0.2), **config}),
        clock=SystemClock(),
        files=None if files is None else Files(files),
    )
    async with server.running():
        yield service, f"127.0.0.1:{server.port}", server


def peer(address: str, files: Tls | None, name: str = "cache") -> Peer:
    return Peer(name, address, tls=tls.client_files(files), server_name=server_name(name))


async def ask(through: Peer, value: str = "", seconds: float = 5.0) -> str:
    request = wrappers_pb2.StringValue(value=value)
    return (await through.unary(f"/{NAME}/Call", request, wrappers_pb2.BytesValue, seconds=seconds)).value.decode()


async def asked(address: str, files: Tls | None, name: str = "cache") -> str:
    async with peer(address, files, name) as through:
        return await ask(through)


# --- who gets in --------------------------------------------------------------------------------------------------


async def test_a_service_hears_which_service_calls(mesh):
    async with serving(mesh.tls("cache")) as (_, address, _server):
        assert await asked(address, mesh.tls("gateway")) == "gateway"


async def test_a_client_is_told_from_a_service_of_the_same_name(mesh):
    certificates = certificate.issue(mesh.pair(), "client/gateway", hosts=(), now=certificate.utc_now(), lifetime=DAY)
    files = written(mesh.folder / "posing", certificates, mesh.folder / "ca" / "ca.pem")
    async with serving(mesh.tls("cache")) as (_, address, _server):
        assert await asked(address, files) == "client/gateway"


async def test_the_public_port_asks_nobody_for_a_certificate_and_the_port_for_services_does(mesh, unused_tcp_port):
    listen = f"127.0.0.1:{unused_tcp_port}"
    only_ca = Tls(ca=mesh.folder / "ca" / "ca.pem")
    async with serving(mesh.tls("gateway"), public=True, tls_listen=listen) as (service, address, _server):
        assert await asked(address, only_ca, "gateway") == "nobody"
        assert await asked(listen, mesh.tls("cache"), "gateway") == "cache"
        with pytest.raises(UnavailableError):
            await asked(listen, only_ca, "gateway")
        assert service.calls == 2


HEALTH = "/grpc.health.v1.Health/"


async def test_health_alone_is_told_to_whoever_asks_at_a_port_of_its_own(mesh):
    async with serving(mesh.tls("cache"), health_listen="127.0.0.1:0") as (service, address, server):
        plain = f"127.0.0.1:{server.health_port}"
        async with peer(plain, None) as through:
            assert await through.unary_bytes(f"{HEALTH}Check", b"", seconds=5) == b"\x08\x01"
            for path in (f"/{NAME}/Call", "/openmanager.api.status.v1.StatusService/GetStatus"):
                with pytest.raises(OpenManagerError) as refused:
                    await through.unary_bytes(path, b"", seconds=5)
                assert refused.value.reason == Reason.METHOD_UNKNOWN
        async with peer(address, None) as through:
            with pytest.raises(UnavailableError):
                await through.unary_bytes(f"{HEALTH}Check", b"", seconds=5)
        assert service.calls == 0


async def test_the_port_for_health_says_that_a_server_is_going_while_it_finishes_its_calls(mesh):
    config = {"health_listen": "127.0.0.1:0", "grace": timedelta(seconds=5)}
    async with contextlib.AsyncExitStack() as stack:
        running = await stack.enter_async_context(contextlib.AsyncExitStack())
        service, address, server = await running.enter_async_context(serving(mesh.tls("cache"), **config))
        probe = await stack.enter_async_context(peer(f"127.0.0.1:{server.health_port}", None))
        through = await stack.enter_async_context(peer(address, mesh.tls("gateway")))
        call = asyncio.create_task(ask(through, "slow"))
        told = probe.server_stream(f"{HEALTH}Watch", b"", seconds=20)
        assert await anext(told) == b"\x08\x01"
        while not service.calls:
            await asyncio.sleep(0.01)
        stopping = asyncio.create_task(running.aclose())
        assert await anext(told) == b"\x08\x02"
        assert await probe.unary_bytes(f"{HEALTH}Check", b"", seconds=5) == b"\x08\x02"
        await told.aclose()
        service.released.set()
        assert await call == "gateway"
        await stopping


async def test_a_gateway_may_require_certificates_of_everybody(mesh):
    async with serving(mesh.tls("gateway"), public=True, tls_clients=True) as (service, address, _server):
        with pytest.raises(UnavailableError):
            await asked(address, Tls(ca=mesh.folder / "ca" / "ca.pem"), "gateway")
        assert service.calls == 0


async def test_without_tls_nobody_is_anybody():
    async with serving(None) as (_, address, _server):
        assert await asked(address, None) == "nobody"


@pytest.mark.parametrize(
    ("uri", "identity"),
    [
        ("spiffe://openmanager/gateway", "gateway"),
        ("spiffe://openmanager/client/alice", "client/alice"),
        ("spiffe://openmanager.example/gateway", None),
        ("spiffe://openmanager/", None),
        ("spiffe://openmanager/gateway/", None),
        ("spiffe://openmanager/client/", None),
        ("spiffe://openmanager/client/client/alice", None),
        ("spiffe://openmanager/Gateway", None),
        ("spiffe://openmanager/g\u0430teway", None),
        ("spiffe://openmanager/gateway\n", None),
        ("https://openmanager/gateway", None),
        ("gateway", None),
        ("", None),
    ],
)
def test_an_identity_is_read_from_its_exact_form_alone(uri, identity):
    assert identity_of(uri) == identity


# --- who does not -------------------------------------------------------------------------------------------------


def other_authority(mesh: Mesh) -> Pair:
    return certificate.new_authority(now=certificate.utc_now())


STRANGERS = {
    "another authority's": lambda mesh: forged(other_authority(mesh)),
    "one that has expired": lambda mesh: forged(mesh.pair(), ends=-timedelta(seconds=1)),
    "one that does not hold yet": lambda mesh: forged(mesh.pair(), begins=timedelta(minutes=10)),
    "a server's": lambda mesh: forged(mesh.pair(), purposes=[ExtendedKeyUsageOID.SERVER_AUTH]),
    "a self-signed one": lambda mesh: forged(mesh.pair(), itself=True),
    "a self-signed one that may sign": other_authority,
}


@pytest.mark.parametrize("stranger", STRANGERS)
async def test_a_handshake_is_refused_with(mesh, stranger):
    files = written(mesh.folder / "stranger", STRANGERS[stranger](mesh), mesh.folder / "ca" / "ca.pem")
    async with serving(mesh.tls("cache")) as (service, address, _server):
        with pytest.raises(UnavailableError):
            await asked(address, files)
        assert service.calls == 0
        assert await asked(address, mesh.tls("gateway")) == "gateway"


@pytest.mark.parametrize(
    "uri",
    [
        "spiffe://elsewhere/gateway",
        "https://openmanager/gateway",
        "spiffe://openmanager/gateway spiffe://openmanager/cache",
        "spiffe://openmanager/gateway/cache",
        "",
    ],
)
async def test_a_certificate_of_another_trust_domain_is_refused_before_a_handler_runs(mesh, uri):
    files = written(mesh.folder / "stranger", forged(mesh.pair(), uri=uri), mesh.folder / "ca" / "ca.pem")
    async with serving(mesh.tls("cache")) as (service, address, _server):
        with pytest.raises(OpenManagerError) as refused:
            await asked(address, files)
        # The health that the channel watches first is refused too.
        assert isinstance(refused.value, UnauthenticatedError | UnavailableError)
        async with grpc.aio.secure_channel(
            address,
            tls.channel_credentials(Files(files).material),
            [("grpc.ssl_target_name_override", server_name("cache"))],
        ) as channel:
            for kind, path in (("unary_unary", "Call"), ("unary_stream", "Watch"), ("stream_stream", "Talk")):
                call = getattr(channel, kind)(f"/{NAME}/{path}")
                begun = call(iter([b""]) if kind == "stream_stream" else b"", timeout=5)
                assert await begun.code() == grpc.StatusCode.UNAUTHENTICATED
        assert (service.calls, service.ended) == (0, [])


async def test_a_client_without_a_certificate_is_refused(mesh):
    async with serving(mesh.tls("cache")) as (service, address, _server):
        with pytest.raises(UnavailableError):
            await asked(address, Tls(ca=mesh.folder / "ca" / "ca.pem"))
        assert service.calls == 0


async def test_a_client_refuses_a_service_that_is_another_one(mesh):
    async with serving(mesh.tls("cache")) as (service, address, _server):
        with pytest.raises(UnavailableError):
            await asked(address, mesh.tls("gateway"), "metadata")
        assert service.calls == 0


async def test_a_client_refuses_a_server_of_another_authority(mesh, tmp_path):
    authority.make(tmp_path / "other", now=certificate.utc_now())
    async with serving(mesh.tls("cache")) as (service, address, _server):
        files = mesh.tls("gateway")
        with pytest.raises(UnavailableError):
            await asked(address, Tls(ca=tmp_path / "other/ca/ca.pem", certificate=files.certificate, key=files.key))
        assert service.calls == 0


async def test_a_certificate_of_a_client_does_not_serve(mesh):
    mesh.issue("client/alice")
    pair = forged(mesh.pair(), purposes=[ExtendedKeyUsageOID.CLIENT_AUTH])
    files = written(mesh.folder / "posing", pair, mesh.folder / "ca" / "ca.pem")
    async with serving(files) as (service, address, _server):
        with pytest.raises(UnavailableError):
            await asked(address, mesh.tls("gateway"))
        assert service.calls == 0


async def test_plaintext_to_an_encrypted_port_is_cut_off_and_the_server_lives(mesh):
    async with serving(mesh.tls("cache")) as (service, address, _server):
        with pytest.raises(UnavailableError):
            await asked(address, None)
        for first in (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", os.urandom(512), b"\x16\x03\x01"):
            reader, writer = await asyncio.open_connection(*address.split(":"))
            writer.write(first)
            writer.write_eof()
            async with asyncio.timeout(5):
                assert b"HTTP" not in await reader.read()
            writer.close()
        assert service.calls == 0
        assert await asked(address, mesh.tls("gateway")) == "gateway"


async def test_tls_to_a_plain_port_is_cut_off_and_the_server_lives(mesh):
    async with serving(None) as (service, address, _server):
        with pytest.raises(UnavailableError):
            await asked(address, mesh.tls("gateway"))
        with pytest.raises((OSError, ssl.SSLError)):
            await asyncio.wait_for(handshake(address, mesh), 5)
        assert service.calls == 0
        assert await asked(address, None) == "nobody"


def client_settings(mesh: Mesh, version: ssl.TLSVersion | None = None) -> ssl.SSLContext:
    settings = ssl.create_default_context(cafile=str(mesh.folder / "ca/ca.pem"))
    files = mesh.tls("gateway")
    settings.load_cert_chain(files.certificate, files.key)
    settings.set_alpn_protocols(["h2"])
    if version is not None:
        settings.set_ciphers("DEFAULT:@SECLEVEL=0")
        settings.minimum_version = settings.maximum_version = version
    return settings


async def handshake(address: str, mesh: Mesh, *, version: ssl.TLSVersion | None = None):
    """Shake hands as Python's own TLS does, and return the connection."""

    def work():
        settings = client_settings(mesh, version)
        host, port = address.split(":")
        with contextlib.ExitStack() as stack:
            raw = stack.enter_context(socket.create_connection((host, int(port)), timeout=5))
            made = stack.enter_context(settings.wrap_socket(raw, server_hostname="127.0.0.1"))
            return made.version()

    return await asyncio.to_thread(work)


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion")
async def test_tls_is_of_version_1_2_at_least(mesh):
    async with serving(mesh.tls("cache")) as (_, address, _server):
        assert await handshake(address, mesh) == "TLSv1.3"
        assert await handshake(address, mesh, version=ssl.TLSVersion.TLSv1_2) == "TLSv1.2"
        for old in (ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1):
            with pytest.raises((OSError, ssl.SSLError)):
                await handshake(address, mesh, version=old)


# --- certificates that change -------------------------------------------------------------------------------------


async def eventually(condition, seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        await asyncio.sleep(0.02)


@pytest.fixture
def quick(monkeypatch):
    """Look at the files often, and close replaced channels soon."""
    monkeypatch.setattr("openmanager.runtime.line.LOOK_SECONDS", 0.05)
    monkeypatch.setattr("openmanager.runtime.line.LINGER_SECONDS", 0.05)


async def test_both_sides_change_certificates_under_load_and_no_call_fails(mesh, quick):
    files = Files(mesh.tls("gateway"))
    async with (
        serving(mesh.tls("cache"), tls_session=timedelta(seconds=1)) as (service, address, _server),
        Peer("cache", address, tls=files, server_name=server_name("cache")) as through,
    ):
        await ask(through)
        slow = asyncio.create_task(ask(through, "slow"))
        channels = {through._line.channel}
        begun: list[asyncio.Task[str]] = []
        loop = asyncio.get_running_loop()
        start = loop.time()
        for number in range(400):  # 200 calls a second
            begun.append(asyncio.create_task(ask(through)))
            if number % 100 == 50:
                mesh.issue("cache")
                mesh.issue("gateway")
            channels.add(through._line.channel)
            await asyncio.sleep(start + (number + 1) / 200 - loop.time())
        answers = await asyncio.gather(*begun, return_exceptions=True)
        assert [each for each in answers if each != "gateway"] == []
        assert service.calls == 402
        # Both have changed, and the last of it is used.
        newest = (mesh.folder / "gateway/certificate.pem").read_bytes()
        await eventually(lambda: through._line._material.certificate == newest)
        assert len(channels) > 1
        service.released.set()
        assert await slow == "gateway"
        await eventually(lambda: not through._line._retiring)


async def test_a_call_under_way_ends_on_the_channel_it_began_on(mesh, quick):
    async with serving(mesh.tls("cache")) as (service, address, _server), peer(address, mesh.tls("gateway")) as through:
        await ask(through)
        old = through._line.channel
        slow = asyncio.create_task(ask(through, "slow"))
        await eventually(lambda: service.calls == 2)
        mesh.issue("gateway")
        await eventually(lambda: through._line.channel is not old)
        assert not slow.done()
        service.released.set()
        assert await slow == "gateway"


@pytest.fixture
def later(monkeypatch):
    """Sets the clock by which calls are judged to two days from now, where every certificate has ended."""

    def set_clock() -> None:
        moved = SimpleNamespace(time=lambda: time.time() + 2 * DAY.total_seconds(), time_ns=time.time_ns)
        monkeypatch.setattr(tls, "time", moved)

    return set_clock


async def test_an_old_certificate_is_refused_when_it_has_ended_although_its_connection_is_there(mesh, quick, later):
    old = written(mesh.folder / "old", _read(mesh.tls("gateway")), mesh.folder / "ca" / "ca.pem")
    async with (
        serving(mesh.tls("cache")) as (service, address, _server),
        peer(address, old) as stale,
        peer(address, mesh.tls("gateway")) as fresh,
    ):
        assert (await ask(stale), await ask(fresh)) == ("gateway", "gateway")
        mesh.issue("gateway", 30 * DAY)
        newest = (mesh.folder / "gateway/certificate.pem").read_bytes()
        await eventually(lambda: fresh._line._material.certificate == newest)
        later()
        with pytest.raises(UnauthenticatedError, match="has ended"):
            await ask(stale)
        assert service.calls == 2
        assert await ask(fresh) == "gateway"


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_a_session_that_is_resumed_does_not_outlive_its_certificate(mesh, version, later):
    async with serving(mesh.tls("cache")) as (service, address, _server):
        settings = client_settings(mesh, version)
        first = await asyncio.to_thread(status_of_a_call, address, settings, None)
        again = await asyncio.to_thread(status_of_a_call, address, settings, first.session)
        assert (first.status, again.status, again.resumed) == (b"0", b"0", True)
        later()
        late = await asyncio.to_thread(status_of_a_call, address, settings, again.session)
        assert (late.status, late.resumed) == (b"16", True)
        assert service.calls == 2


@dataclass(frozen=True)
class Called:
    status: bytes
    resumed: bool
    session: ssl.SSLSession


def status_of_a_call(address: str, settings: ssl.SSLContext, session: ssl.SSLSession | None) -> Called:
    """Make one call on a connection of its own, which may resume a session, and return its gRPC status."""
    host, port = address.split(":")
    with (
        socket.create_connection((host, int(port)), timeout=5) as raw,
        settings.wrap_socket(raw, server_hostname=host, session=session) as made,
    ):
        http = H2Connection(H2Configuration(header_encoding=None))
        http.initiate_connection()
        headers = [(":method", "POST"), (":scheme", "https"), (":path", f"/{NAME}/Call"), (":authority", "cache")]
        http.send_headers(1, [*headers, ("content-type", "application/grpc"), ("te", "trailers")])
        http.send_data(1, bytes(5), end_stream=True)
        made.sendall(http.data_to_send())
        found = {}
        while b"grpc-status" not in found:
            data = made.recv(65536)
            assert data, "the connection was closed"
            for event in http.receive_data(data):
                found |= dict(getattr(event, "headers", None) or ())
        assert made.session is not None
        return Called(found[b"grpc-status"], made.session_reused, made.session)


def _read(files: Tls) -> Pair:
    key = certificate.read_key(files.key.read_bytes(), "")
    return Pair(certificate=certificate.read_certificates(files.certificate.read_bytes(), "")[0], key=key)


async def test_an_authority_takes_over_from_another_and_no_call_fails(mesh, quick):
    async with serving(mesh.tls("cache")) as (_, address, _server), peer(address, mesh.tls("gateway")) as through:
        old = written(mesh.folder.parent / "old", _read(mesh.tls("gateway")), mesh.folder / "ca" / "ca.pem")
        for step in (
            lambda: mesh.authority.rotate(now=certificate.utc_now()),
            lambda: list(mesh.authority.renew(now=certificate.utc_now(), everything=True)),
            lambda: mesh.authority.retire(),  # noqa: PLW0108  (read anew by then)
        ):
            assert await ask(through) == "gateway"
            channel = through._line.channel
            step()
            assert await ask(through) == "gateway"
            await eventually(lambda channel=channel: through._line.channel is not channel)
        assert await ask(through) == "gateway"
        with pytest.raises(UnavailableError):
            await asked(address, old)


async def test_a_pair_of_which_one_half_was_replaced_is_not_taken(mesh, quick):
    new = certificate.issue(mesh.pair(), "gateway", hosts=(), now=certificate.utc_now(), lifetime=DAY)
    place = mesh.folder / "gateway"
    files = Files(mesh.tls("gateway"))
    first = files.current()
    authority.write(place / "key.pem", new.key_pem, 0o400)
    assert files.current() is first
    assert any("cannot be used" in each for each in files.warnings(certificate.utc_now()))
    authority.write(place / "certificate.pem", new.certificate_pem, 0o444)
    assert files.current().certificate == new.certificate_pem
    assert files.warnings(certificate.utc_now()) == ()


@pytest.mark.parametrize("what", [b"", b"nonsense", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
@pytest.mark.parametrize("name", ["ca.pem", "certificate.pem", "key.pem"])
async def test_what_is_no_certificate_is_not_taken_and_the_server_goes_on(mesh, name, what):
    async with serving(mesh.tls("cache")) as (_, address, server):
        authority.write(mesh.folder / "cache" / name, what, 0o400)
        assert await asked(address, mesh.tls("gateway")) == "gateway"
        assert any("cannot be used" in each for each in server.status.message().warnings)


async def test_files_that_vanish_do_not_stop_a_server(mesh):
    async with serving(mesh.tls("cache")) as (_, address, _server):
        (mesh.folder / "cache").rename(mesh.folder / "away")
        assert await asked(address, mesh.tls("gateway")) == "gateway"


async def test_a_channel_stays_when_the_peer_does_not_take_the_new_certificate(mesh, quick):
    async with serving(mesh.tls("cache")) as (_, address, _server), peer(address, mesh.tls("gateway")) as through:
        await ask(through)
        channel = through._line.channel
        written(
            mesh.folder / "gateway", forged(other_authority(mesh)), mesh.folder / "ca" / "ca.pem"
        ) if False else None
        stranger = forged(other_authority(mesh))
        authority.write(mesh.folder / "gateway/key.pem", stranger.key_pem, 0o400)
        authority.write(mesh.folder / "gateway/certificate.pem", stranger.certificate_pem, 0o444)
        end = time.monotonic() + 0.5
        while time.monotonic() < end:
            assert await ask(through) == "gateway"
        assert through._line.channel is channel
        mesh.issue("gateway")
        await eventually(lambda: through._line.channel is not channel)
        assert await ask(through) == "gateway"


async def test_closing_while_a_new_channel_connects_leaves_nothing_behind(mesh, quick):
    line = Line("127.0.0.1:1", (), Files(mesh.tls("gateway")))
    line.connect()
    mesh.issue("gateway")
    await asyncio.sleep(0.2)
    await line.close()
    assert line._following.done()


# --- what the settings say ----------------------------------------------------------------------------------------


def test_settings_name_all_files_or_none(mesh):
    files = mesh.tls("cache")
    assert tls.server_files("", "", "") is None
    assert tls.server_files(str(files.ca), str(files.certificate), str(files.key)) is not None
    with pytest.raises(ConfigurationError, match="all or none"):
        tls.server_files("", str(files.certificate), str(files.key))
    with pytest.raises(ConfigurationError, match="both or neither"):
        Files(Tls(certificate=files.certificate))


def test_files_that_do_not_belong_together_are_refused_at_the_start(mesh):
    with pytest.raises(ConfigurationError, match="is not the key of"):
        Files(Tls(certificate=mesh.folder / "cache/certificate.pem", key=mesh.folder / "gateway/key.pem"))
    with pytest.raises(ConfigurationError, match="cannot read"):
        Files(Tls(ca=mesh.folder / "nothing.pem"))


def test_a_key_that_others_can_read_is_warned_of(mesh):
    files = Files(mesh.tls("cache"))
    assert files.warnings(certificate.utc_now()) == ()
    (mesh.folder / "cache/key.pem").chmod(0o444)
    assert files.warnings(certificate.utc_now()) == ("the key of the certificate can be read by others",)


@pytest.mark.parametrize(
    ("lifetime", "left", "warned"),
    [
        (timedelta(days=90), timedelta(days=15), False),
        (timedelta(days=90), timedelta(days=13), True),
        (timedelta(days=3), timedelta(days=2), False),
        (timedelta(days=3), timedelta(hours=23), True),
    ],
)
def test_an_end_is_warned_of_two_weeks_or_a_third_of_a_life_before(mesh, lifetime, left, warned):
    now = certificate.utc_now()
    mesh.issue("cache", lifetime, now)
    said = Files(mesh.tls("cache")).warnings(now + lifetime - left)
    assert [each.startswith("the certificate ends in") for each in said] == [True] * warned


@pytest.mark.parametrize(
    ("address", "warned"), [("127.0.0.1:50052", False), ("[::1]:50052", False), ("0.0.0.0:50052", True)]
)
def test_a_server_that_others_reach_unencrypted_says_so(address, warned):
    assert bool(tls.transport_warnings(address, None, SystemClock())) is warned


@pytest.mark.parametrize("address", ["0.0.0.0:50052", "10.0.0.7:50052", "cache.example.net:50052", "[::]:50052"])
@pytest.mark.parametrize("allow_insecure", [False, True])
@pytest.mark.parametrize("encrypted", [False, True])
def test_only_loopback_is_served_unencrypted_without_leave(address, allow_insecure, encrypted):
    check_address("127.0.0.1:50052", allow_insecure=False)
    if encrypted or allow_insecure:
        check_address(address, allow_insecure=allow_insecure, encrypted=encrypted)
    else:
        with pytest.raises(ConfigurationError, match="openmanager certs"):
            check_address(address, allow_insecure=False)


@pytest.mark.parametrize("session", [timedelta(), timedelta(milliseconds=999), timedelta(days=21)])
async def test_a_session_that_cannot_be_is_refused_at_the_start(mesh, session):
    with pytest.raises(ConfigurationError, match="tls_session"):
        async with serving(mesh.tls("cache"), tls_session=session):
            pytest.fail("it serves")

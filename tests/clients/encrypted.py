"""A mesh as clients elsewhere meet it: TLS by an authority of its own, and credentials asked of everybody."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TypeVar

import grpc
from conftest import PATIENT, clean_environment, free_ports

from openmanager import authority, certificate, embedded
from openmanager.client import Client, Tls
from openmanager.client.credential import bearer
from openmanager.client.people import Grant
from openmanager.datadir import DataDir
from openmanager.errors import DeadlineExceededError, UnavailableError
from openmanager.runtime.peer import Peer
from openmanager.runtime.supervisor import ChildSpec, Supervisor
from openmanager.runtime.tls import Files

SERVICES = ("gateway", "metadata", "timeseries", "cache")
ABSENT = ("simulator", "analysis")
START_SECONDS = 120
T = TypeVar("T")


@dataclass(frozen=True)
class EncryptedMesh:
    """What somebody is told who is to write a client: an address, a file and a key."""

    gateway: str
    ca: Path
    key: str

    def client(self) -> Client:
        return Client(self.gateway, tls=Tls(ca=self.ca), credential=self.key)

    def environment(self) -> dict[str, str]:
        told = {"OPENMANAGER_GATEWAY": self.gateway, "OPENMANAGER_TLS_CA": str(self.ca), "OPENMANAGER_TOKEN": self.key}
        return {**clean_environment(), **told}


@contextlib.asynccontextmanager
async def encrypted_mesh() -> AsyncIterator[EncryptedMesh]:
    """Run the services that a client needs, each in a process of its own, over embedded stores."""
    with tempfile.TemporaryDirectory(prefix="om-") as folder, DataDir.open(folder) as data:
        certs, base = Path(folder) / "certs", free_ports()
        authority.make(certs, now=certificate.utc_now())
        for name in SERVICES:
            authority.Authority(certs).issue(
                name, ("localhost",), now=certificate.utc_now(), lifetime=timedelta(days=1)
            )
        stores = {"DATABASE_URL": embedded.postgresql(data), "REDIS_URL": embedded.valkey(data)}
        services = _services(data, certs, base, {name: store.url.reveal() for name, store in stores.items()})
        async with Supervisor([store.spec for store in stores.values()]) as children:
            gateway, ca = f"localhost:{base}", certs / "ca" / "ca.pem"
            async with asyncio.timeout(START_SECONDS):
                await children.wait_ready()
                for service in services:
                    children.start(service)
                key = await _key(gateway, ca, data.path / "invitation")
            yield EncryptedMesh(gateway, ca, key)


def _services(data: DataDir, certs: Path, base: int, urls: dict[str, str]) -> Iterator[ChildSpec]:
    addresses = {name: f"127.0.0.1:{base + at}" for at, name in enumerate((*SERVICES, *ABSENT))}
    common = {"OPENMANAGER_GATEWAY": addresses.pop("gateway")}
    common |= {f"OPENMANAGER_MESH_{name.upper()}": address for name, address in addresses.items()}
    for name, url in urls.items():
        (data.path / name).write_text(url)
    for name in SERVICES:
        own = {
            **{
                f"OPENMANAGER_SERVER_TLS_{part}": str(certs / name / f"{file}.pem")
                for part, file in (("CA", "ca"), ("CERTIFICATE", "certificate"), ("KEY", "key"))
            },
            "OPENMANAGER_MESH_KEY_FILE": str(data.credential_file("mesh")),
            "OPENMANAGER_TIMESERIES_DATA_DIR": str(data.timeseries),
            "OPENMANAGER_METADATA_IDENTITY_KEY_FILE": str(data.credential_file("identity")),
            "OPENMANAGER_METADATA_ADMIN_FILE": str(data.path / "invitation"),
            **{f"{store}_FILE": str(data.path / store) for store in urls},
            "OPENMANAGER_SERVER_GRACE": "500ms",
            **PATIENT,
        }
        yield ChildSpec(
            name=name,
            argv=(sys.executable, "-m", "openmanager.cli", "serve", name),
            env={**clean_environment(), **common, **own},
            stop_group=0 if name == "gateway" else 1,
            log_path=data.logs / f"{name}.log",
            lock_path=data.locks / name,
        )


async def _key(gateway: str, ca: Path, invitation: Path) -> str:
    """Become the administrator as soon as there is somebody to ask, and make a key for a program."""
    async with Client(gateway, tls=Tls(ca=ca)) as client:
        _, tokens = await _patiently(
            lambda: client.users.accept(invitation.read_text().strip(), "correct horse battery staple")
        )
    async with Client(gateway, tls=Tls(ca=ca), credential=tokens.access_token) as admin:
        grants = [Grant("viewer"), Grant("service")]
        _, key = await _patiently(lambda: admin.keys.create("a client in another language", grants))
    return key


async def _patiently(call: Callable[[], Awaitable[T]]) -> T:
    while True:
        with contextlib.suppress(UnavailableError, DeadlineExceededError, FileNotFoundError):
            return await call()
        await asyncio.sleep(0.1)


@contextlib.asynccontextmanager
async def unsteady(mesh: EncryptedMesh) -> AsyncIterator[str]:
    """A door without TLS before the gateway, that answers UNAVAILABLE twice before it lets a call through."""
    calls = 0

    async def answer(path: str, request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        nonlocal calls
        calls += 1
        if calls % 3:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "not now")
        return await gateway.unary_bytes(path, request, seconds=5)

    class Door(grpc.GenericRpcHandler):
        def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
            return grpc.unary_unary_rpc_method_handler(partial(answer, details.method))

    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Door(),))
    port = server.add_insecure_port("127.0.0.1:0")
    files = Files(Tls(ca=mesh.ca))
    async with Peer("gateway", mesh.gateway, identify=lambda: (bearer(mesh.key),), tls=files) as gateway:
        await server.start()
        try:
            yield f"127.0.0.1:{port}"
        finally:
            await server.stop(None)
    assert calls % 3 == 0, "a client gave up, or tried once more than it had to"

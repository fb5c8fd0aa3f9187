"""`openmanager up`: the whole mesh on this machine, with embedded stores."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click
from google.protobuf.message import Message

from openmanager import config, embedded, suite
from openmanager.cli import configuration, layout
from openmanager.config import Configuration, Secret
from openmanager.datadir import DataDir, write_durably
from openmanager.embedded import EmbeddedConfig, Store
from openmanager.errors import ConfigurationError, UnavailableError
from openmanager.runtime.clock import SystemClock
from openmanager.runtime.module import MeshConfig, ServerConfig
from openmanager.runtime.peer import Identify
from openmanager.runtime.supervisor import ChildSpec, ChildStatus, State, Supervisor
from openmanager.shard import SHARDED

START_SECONDS = 60.0
# For the first administrator's invitation, and for the gateway to find everybody.
FIRST_SECONDS = 5.0
FRONT = ("gateway", "simulator", suite.CONSOLE)
# These end first, within 3 s, and what they wait for is about to end too.
FRONT_GRACE = "1s"
M = TypeVar("M", bound=Message)


@click.command(epilog="Example: openmanager up --servers 100 --interval 5s --data-dir ./data")
@click.option("--data-dir", metavar="DIR", type=click.Path(path_type=Path), help="Where everything is kept.")
@click.option(
    "--gateway",
    metavar="HOST:PORT",
    help="Where the gateway listens; the others take the next five ports, the console the thirtieth after it.",
)
@click.option(
    "--shards",
    type=click.IntRange(1, layout.MAX_LOCAL_SHARDS),
    help="Shards of history, hot state and analysis by server.  [default: what the data directory has, else 1]",
)
@click.option(
    "--gateways", type=click.IntRange(1, layout.MAX_LOCAL_GATEWAYS), help="Gateways beside each other.  [default: 1]"
)
@click.option("--servers", type=click.IntRange(1, 100_000), help="Servers of the simulated fleet.  [default: 20]")
@click.option("--interval", metavar="DURATION", help="Time between the fleet's ticks.  [default: 10s]")
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), help="Seed of the fleet.  [default: 1]")
@click.option("--no-simulation", is_flag=True, help="Start the simulator without letting it tick.")
@click.option("--own-metrics", is_flag=True, help="Store what the services measure of themselves here too.")
def up(**options: Any) -> None:
    """Start the mesh: PostgreSQL, Valkey, and every service, until Ctrl-C.

    REDIS_URL and DATABASE_URL, when they are set, are used instead of the embedded stores.
    """
    path = options["data_dir"] or default_data_dir()
    flags = _flags(options, layout.held_shards(path))
    loaded = configuration.load(flags)
    with DataDir.open(path) as data:
        layout.hold_shards(data.path, loaded.section(MeshConfig).shard_count)
        asyncio.run(_run(data, loaded, flags))


def default_data_dir() -> Path:
    """Return where data goes when nothing is said: the usual place of the user's, or the system's for root."""
    if os.geteuid() == 0:
        return Path("/var/lib/openmanager")
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "openmanager"


def _flags(options: Mapping[str, Any], held: int | None) -> dict[tuple[str, str], Any]:
    shards, gateways = options["shards"] or (held if held != 1 else None), options["gateways"]
    flags: dict[tuple[str, str], Any] = {
        ("simulator", "servers"): options["servers"],
        ("simulator", "interval"): options["interval"],
        ("simulator", "seed"): options["seed"],
        ("simulator", "autostart"): False if options["no_simulation"] else None,
        ("mesh", "shard_count"): shards,
        ("server", "own_metrics"): True if options["own_metrics"] else None,
    }
    gateway = options["gateway"] or os.environ.get("OPENMANAGER_GATEWAY")
    if shards or gateways:
        gateway = gateway or MeshConfig().gateway
    if gateway:
        found = layout.addresses(gateway.partition(",")[0], shards or 1, gateways or 1)
        flags |= {("mesh", name): address for name, address in found.items()}
    return {place: value for place, value in flags.items() if value is not None}


async def _run(data: DataDir, loaded: Configuration, flags: Mapping[tuple[str, str], Any]) -> None:
    mesh = loaded.section(MeshConfig)
    _check_addresses(mesh, loaded.section(ServerConfig))
    stores = _stores(data, loaded)
    is_first = not (data.credentials / "identity").exists()
    services = {spec.name: spec for spec in _services(data, loaded, flags, stores)}
    gateways = mesh.addresses("gateway")
    # Nobody waits for it: it starts when the mesh is up.
    console = services.pop(suite.CONSOLE)
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    progress = _Progress()
    specs = [*(store.spec for store in stores.values()), *services.values()]
    async with Supervisor(specs, on_change=progress.show) as children:
        if await _ready_or(stop, children):
            for gateway in gateways:
                await _within_reach(gateway, _identify(data, loaded))
            if is_first:
                await _appears(admin_file(data))
            progress.end()
            _print_screen(data, mesh, stores, children, loaded.section(ServerConfig).auth)
            children.start(console)
            await stop.wait()
        progress.end()
        click.echo("stopping", err=True)
    click.echo("stopped", err=True)


def _check_addresses(mesh: MeshConfig, server: ServerConfig) -> None:
    from openmanager.runtime.server import check_address, port_is_taken

    if server.tls_certificate or server.tls_listen or server.health_listen:
        raise ConfigurationError(
            "`up` runs on loopback, unencrypted: server.tls_* and server.health_listen are for `serve`"
        )
    for part in layout.parts(mesh):
        check_address(part.address, allow_insecure=server.allow_insecure)
        if port_is_taken(part.address):
            raise ConfigurationError(
                f"{part.address}, the address of {part.name}, is taken by another program: choose others with"
                " --gateway HOST:PORT"
            )


def _stores(data: DataDir, loaded: Configuration) -> dict[str, Store]:
    """Return the embedded stores that no URL replaces, by the variable that their URL goes to."""
    options = loaded.section(EmbeddedConfig)
    made = {"DATABASE_URL": embedded.postgresql, "REDIS_URL": embedded.valkey}
    given = {value.key.variable for value in loaded.values.values() if value.key.kind is Secret and value.value}
    return {variable: make(data, options) for variable, make in made.items() if variable not in given}


def _services(
    data: DataDir, loaded: Configuration, flags: Mapping[tuple[str, str], Any], stores: Mapping[str, Store]
) -> list[ChildSpec]:
    variables = {(key.section, key.name): key.variable for key in config.keys(suite.sections())}
    environment = {
        **{name: text for name, text in os.environ.items() if name not in stores},
        **{variables[place]: config.show(value) for place, value in flags.items()},
        **_url_files(data, stores),
        "OPENMANAGER_ALLOW_INSECURE": "1",  # the addresses were checked above
        "OPENMANAGER_AUTH": loaded.section(ServerConfig).auth or "local",
        **_mesh_key(data, loaded),
    }
    own = {"metadata": _of_metadata(data, loaded)} | {name: {"OPENMANAGER_SERVER_GRACE": FRONT_GRACE} for name in FRONT}
    identify = _identify(data, loaded)
    return [
        ChildSpec(
            name=part.name,
            argv=(sys.executable, "-m", "openmanager.cli", "serve", part.service, *_where(part)),
            env=_of_service(part.service, {**own.get(part.service, {}), **environment, **_of_part(part, data, loaded)}),
            stop_group=0 if part.service in FRONT else 1,
            log_path=data.logs / f"{part.file_name}.log",
            lock_path=data.locks / part.file_name,
            ready=_answering(part.address) if part.service == suite.CONSOLE else _serving(part.address, identify),
        )
        for part in layout.parts(loaded.section(MeshConfig))
    ]


def _where(part: layout.Part) -> tuple[str, ...]:
    """Return the options of `serve` that say which of several gateways one is."""
    return ("--listen", part.address) if part.service == "gateway" and part.count > 1 else ()


def _of_part(part: layout.Part, data: DataDir, loaded: Configuration) -> dict[str, str]:
    """Return what a shard alone is told: which one it is, and its folder."""
    if part.service not in SHARDED:
        return {}
    found = {"OPENMANAGER_SHARD_INDEX": str(part.number)} if part.count > 1 else {}
    folder = layout.folder(data.path, part.service, part.number, part.count)
    place = loaded.values.get((part.service, "data_dir"))
    if place is not None and part.count > 1 and place.origin != "default":
        raise ConfigurationError(f"{part.service}.data_dir is one folder, and there are {part.count} shards")
    if place is not None and place.origin == "default":
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found[place.key.variable] = str(folder)
    return found


def _url_files(data: DataDir, stores: Mapping[str, Store]) -> dict[str, str]:
    """Return where the URLs of the embedded stores are, written to files: an environment can be read."""
    files = {variable: data.runtime / variable.lower() for variable in stores}
    for variable, file in files.items():
        write_durably(file, stores[variable].url.reveal())
    return {f"{variable}_FILE": str(file) for variable, file in files.items()}


def _of_service(name: str, environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without what other services, or commands, are told: it may be secret."""
    known = config.keys(suite.sections())
    hidden = {
        "OPENMANAGER_TOKEN",
        *(key.variable for key in known if key.section in {*suite.PROGRAMS, "backup"} - {name}),
    }
    if name == suite.CONSOLE:  # it speaks for nobody
        hidden |= {key.variable for key in known if (key.section, key.name) == ("server", "mesh_key")}
    return {each: text for each, text in environment.items() if hidden.isdisjoint({each, each.removesuffix("_FILE")})}


def _mesh_key(data: DataDir, loaded: Configuration) -> dict[str, str]:
    """Return where the key of the mesh is: made here unless one was given."""
    if loaded.values["server", "mesh_key"].origin != "default":
        return {}
    return {"OPENMANAGER_MESH_KEY_FILE": str(data.credential_file("mesh"))}


def _of_metadata(data: DataDir, loaded: Configuration) -> dict[str, str]:
    """Return what the metadata service alone is told: its secrets, and where it writes what is for people."""
    files = {
        "identity_key": ("_FILE", data.credential_file("identity")),
        "admin_file": ("", admin_file(data)),
        "audit_key": ("_FILE", _audit_key(data)),
        "audit_checkpoints": ("", data.path / "audit-checkpoints.jsonl"),
    }
    given = {name: loaded.values["metadata", name] for name in files}
    return {
        f"{given[name].key.variable}{suffix}": str(file)
        for name, (suffix, file) in files.items()
        if given[name].origin == "default"
    }


def _audit_key(data: DataDir) -> Path:
    """Return the file of the key that signs the audit log, made when first asked for, with its public half beside the data."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    file = data.credentials / "audit-key.pem"
    if not file.exists():
        key = Ed25519PrivateKey.generate()
        pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
        public = key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
        write_durably(data.path / "audit-public.pem", public.decode())
        write_durably(file, key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain).decode())
    return file


def admin_file(data: DataDir) -> Path:
    """Return where the invitation of the first administrator is."""
    return data.credentials / "admin-invitation"


def _identify(data: DataDir, loaded: Configuration) -> Identify:
    """Return what says that it is we who ask the services how they are."""
    from openmanager.access import server
    from openmanager.runtime.mesh_key import HEADER, MeshKey

    key = MeshKey(loaded.section(ServerConfig).mesh_key or data.credential("mesh"), "up", SystemClock())
    return lambda: ((HEADER, key.token(server("up"))),)


def _serving(address: str, identify: Identify) -> Callable[[], Awaitable[bool]]:
    """Return what asks the server at an address whether it serves and its stores are fine."""

    async def ready() -> bool:
        from openmanager.api.status.v1 import status_pb2

        path = "/openmanager.api.status.v1.StatusService/GetStatus"
        reply = await _asked(address, identify, path, status_pb2.GetStatusRequest(), status_pb2.GetStatusResponse)
        fine = (status_pb2.STORAGE_STATE_OK, status_pb2.STORAGE_STATE_SLOW)
        return reply is not None and reply.status.state in fine

    return ready


async def _within_reach(gateway: str, identify: Identify) -> None:
    """Wait until the gateway has connected to every service: the first call may be for any of them."""
    from openmanager.api.gateway.v1 import gateway_pb2 as pb
    from openmanager.api.status.v1 import status_pb2

    path = "/openmanager.api.gateway.v1.GatewayService/GetStorageStatus"
    away = (status_pb2.STORAGE_STATE_DOWN, status_pb2.STORAGE_STATE_HUNG)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(FIRST_SECONDS):
            while True:
                board = await _asked(gateway, identify, path, pb.GetStorageStatusRequest(), pb.GetStorageStatusResponse)
                if board is not None and not any(service.state in away for service in board.services):
                    return
                await asyncio.sleep(0.02)


async def _asked(address: str, identify: Identify, path: str, request: Message, reply: type[M]) -> M | None:
    """Call a method of the server at an address; None when it does not answer."""
    from openmanager.errors import OpenManagerError
    from openmanager.runtime.peer import Peer

    try:
        async with Peer("service", address, identify=identify) as peer:
            return await peer.unary(path, request, reply, seconds=1.0)
    except OpenManagerError:
        return None


def _answering(address: str) -> Callable[[], Awaitable[bool]]:
    """Return what asks the console at an address whether it answers."""

    async def ready() -> bool:
        host, _, port = address.rpartition(":")
        reader, writer = await asyncio.open_connection(host.strip("[]"), int(port))
        with contextlib.closing(writer):
            writer.write(b"GET /healthz HTTP/1.0\r\nHost: localhost\r\n\r\n")
            async with asyncio.timeout(1.0):
                return (await reader.readline()).split()[1:2] == [b"200"]

    return ready


async def _ready_or(stop: asyncio.Event, children: Supervisor) -> bool:
    """Wait until everything serves; False when the stop came first."""
    ready = asyncio.create_task(children.wait_ready())
    stopped = asyncio.create_task(stop.wait())
    done, _ = await asyncio.wait({ready, stopped}, timeout=START_SECONDS, return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    if ready in done:
        ready.result()
        return True
    ready.cancel()
    if not done:
        late = ", ".join(
            f"{child.name} ({child.last_error or child.state})"
            for child in children.children()
            if child.state is not State.READY
        )
        raise UnavailableError(f"not everything started within {START_SECONDS:.0f} s: {late}")
    return False


class _Progress:
    """A line on the terminal that says what is being waited for."""

    def __init__(self) -> None:
        self._tty = sys.stderr.isatty()
        self._states: dict[str, State] = {}
        self._started = False

    def show(self, child: ChildStatus) -> None:
        """Take the new state of a child."""
        self._states[child.name] = child.state
        if child.last_error and child.state is State.WAITING:
            self._line(f"{child.name} ended and is started again: {child.last_error}\n")
        if self._tty and not self._started:
            ready = sum(state is State.READY for state in self._states.values())
            waiting = [name for name, state in self._states.items() if state is not State.READY]
            bar = "█" * ready + "░" * len(waiting)
            self._line(f"starting {bar} {', '.join(waiting)}")

    def end(self) -> None:
        """Everything is up: clear the line."""
        self._line("")
        self._started = True

    def _line(self, text: str) -> None:
        if self._tty:
            sys.stderr.write("\r\x1b[K")
        if text.endswith("\n") or self._tty:
            sys.stderr.write(text)
        sys.stderr.flush()


async def _appears(file: Path) -> None:
    """Wait for what the metadata service writes as soon as it has read its database for the first time."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(FIRST_SECONDS):
            while not file.exists():  # noqa: ASYNC110, ASYNC240  (nobody tells, and it is quick)
                await asyncio.sleep(0.05)


def _access(data: DataDir, auth: str) -> str:
    """Return who is let in, and where the first invitation is until it was taken."""
    text = "with credentials" if auth == "required" else "without credentials, from this machine"
    file = admin_file(data)
    return f"{text}; the administrator's invitation is in {file}" if file.exists() else text


def _print_screen(
    data: DataDir, mesh: MeshConfig, stores: Mapping[str, Store], children: Supervisor, auth: str
) -> None:
    database = "embedded PostgreSQL" if "DATABASE_URL" in stores else "PostgreSQL of DATABASE_URL"
    cache = "embedded Valkey" if "REDIS_URL" in stores else "Redis of REDIS_URL"
    option = "" if mesh.gateway == MeshConfig().gateway else f" --gateway {mesh.gateway}"
    folder = layout.folder(data.path, "timeseries", 0, mesh.shard_count)
    history = folder if mesh.shard_count == 1 else folder.parent.parent
    seconds = max((child.seconds_to_ready or 0.0) for child in children.children())
    click.echo(
        f"""
OpenManager is up ({seconds:.1f} s).

  gateway      {mesh.gateway}   everything is asked here: gRPC, OTLP, reflection
  simulator    {mesh.simulator}   cache {mesh.cache}   timeseries {mesh.timeseries}
  metadata     {mesh.metadata}   analysis {mesh.analysis}
  console      http://{mesh.console}   a page for browsers; OTLP by HTTP, and /metrics

  hot state    {cache}
  history      log and Parquet blocks in {history}
  inventory    {database}
  logs         {data.logs}
  access       {_access(data, auth)}

Try next, in a second terminal:

  openmanager{option} status
  openmanager{option} top
  openmanager{option} query cpu_usage --last 15m

Ctrl-C stops everything; what was acknowledged stays in {data.path}.
"""
    )

"""What a service hands to the runtime: its servicers, its stores, and how long they live."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Literal, Protocol

from google.protobuf import descriptor_pool
from google.protobuf.descriptor import ServiceDescriptor

from openmanager import access
from openmanager.api.status.v1 import status_pb2
from openmanager.config import Configuration, Secret, setting
from openmanager.errors import ConfigurationError
from openmanager.policy import POLICY, Rule
from openmanager.runtime.audit import Auditor
from openmanager.runtime.breaker import Breaker
from openmanager.runtime.clock import Clock, SystemClock
from openmanager.runtime.gate import Authenticator
from openmanager.runtime.peer import Peer, retried
from openmanager.runtime.status import Storage
from openmanager.runtime.tls import Files, transport_warnings
from openmanager.shard import MAX_SHARDS, SHARDED, Shard
from openmanager.spiffe import server_name

IdentifyAs = Callable[[access.Caller | None], Sequence[tuple[str, str]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class MeshConfig:
    """Where the services are; each listens there itself unless its own section says otherwise."""

    gateway: str = setting(
        "127.0.0.1:50050",
        "Address of the gateway, for clients too; several, by commas, are called in turn.",
        env="OPENMANAGER_GATEWAY",
    )
    simulator: str = setting("127.0.0.1:50051", "Address of the simulator.")
    cache: str = setting("127.0.0.1:50052", "Address of the cache service; those of its shards by commas, in order.")
    timeseries: str = setting("127.0.0.1:50053", "Address of the time-series service; of its shards as of `cache`.")
    metadata: str = setting("127.0.0.1:50054", "Address of the metadata service.")
    analysis: str = setting("127.0.0.1:50055", "Address of the analysis service; of its shards as of `cache`.")
    console: str = setting("127.0.0.1:50080", "Address of the console, and of OTLP by HTTP.")
    shard_count: int = setting(
        1, "Shards of timeseries, cache and analysis, 1–64: the same for all services.", env="OPENMANAGER_SHARD_COUNT"
    )
    shard_index: int = setting(
        0, "Which of them a timeseries, cache or analysis service is, from 0.", env="OPENMANAGER_SHARD_INDEX"
    )

    def addresses(self, name: str) -> list[str]:
        """Return the addresses of a service, of one with shards in their order; ConfigurationError for another number."""
        found = [each.strip() for each in str(getattr(self, name)).split(",")]
        if not 1 <= self.shard_count <= MAX_SHARDS:
            raise ConfigurationError(f"mesh.shard_count must be 1–{MAX_SHARDS}")
        if not 0 <= self.shard_index < self.shard_count:
            raise ConfigurationError(f"mesh.shard_index must be 0–{self.shard_count - 1}, below mesh.shard_count")
        if name in SHARDED and len(found) != self.shard_count:
            raise ConfigurationError(
                f"mesh.{name} has {len(found)} addresses, and mesh.shard_count is {self.shard_count}"
            )
        return found

    def own_address(self, name: str) -> str:
        """Return where a service listens unless it is told otherwise; ConfigurationError when that is not one place."""
        found = self.addresses(name)
        if name in SHARDED:
            return found[self.shard_index]
        if len(found) > 1:
            raise ConfigurationError(f"mesh.{name} has several addresses: server.listen must say which one this is")
        return found[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """What holds for every server process."""

    listen: str = setting("", "Address to listen on; empty: the service's own in `mesh`.")
    allow_insecure: bool = setting(
        False, "Serve without credentials, also on addresses other than loopback.", env="OPENMANAGER_ALLOW_INSECURE"
    )
    auth: Literal["", "required", "local"] = setting(
        "",
        "Who needs credentials: `required`, everybody; `local`, nobody: without them one is the local administrator."
        " Empty: `local` under `up` and where serving without credentials is allowed, otherwise `required`.",
        env="OPENMANAGER_AUTH",
    )
    mesh_key: Secret = setting(
        Secret(""),
        "What the servers of a mesh know each other by: the same for all of them, at least 32 characters; of several"
        " lines the first signs and all are believed.",
        env="OPENMANAGER_MESH_KEY",
    )
    tls_certificate: str = setting(
        "", "PEM file of the certificate, with its chain; empty: connections are not encrypted."
    )
    tls_key: str = setting("", "PEM file of its key.")
    tls_ca: str = setting("", "PEM file of the authorities that peers' certificates are checked by.")
    tls_clients: bool = setting(
        False, "The gateway takes only clients that show a certificate; the other services always do."
    )
    tls_listen: str = setting(
        "", "Where the gateway also listens for services, which show a certificate there; empty: nowhere."
    )
    health_listen: str = setting(
        "",
        "Where health alone is served too, unencrypted and to anybody: for probes that show no certificate, such as"
        " those of Kubernetes; empty: nowhere.",
    )
    tls_session: timedelta = setting(
        timedelta(hours=12), "An encrypted connection between services is ended after so long, 1s–20d, and made anew."
    )
    trusted_proxies: str = setting(
        "",
        "Whose `x-forwarded-for` is believed, separated by commas: addresses (`10.0.0.7`), networks (`10.0.0.0/24`), or"
        " who a certificate names (`edge`, `console`); empty: nobody's.",
    )
    own_metrics: bool = setting(
        False, "Store what the services measure of themselves in this mesh too, as the server `openmanager-<host>`."
    )
    log_level: str = setting("info", "The least grave log lines to write: debug, info, warning or error.")
    max_calls: int = setting(1000, "Unary calls under way at once; more are refused with OVERLOADED.")
    write_timeout: timedelta = setting(
        timedelta(seconds=20), "A stream whose reader takes nothing for so long is ended with WATCH_TOO_SLOW."
    )
    read_timeout: timedelta = setting(
        timedelta(seconds=20), "A call whose message has not come whole after so long is ended with DEADLINE_EXCEEDED."
    )
    idle_timeout: timedelta = setting(
        timedelta(seconds=60),
        "A stream whose sender says nothing for so long, all else being answered, is ended with STREAM_IDLE.",
    )
    connection_streams: int = setting(100, "Calls that one connection to the gateway may have open; more must wait.")
    grace: timedelta = setting(
        timedelta(seconds=4),
        "How long calls under way may take when the server is told to end; then they are answered.",
    )
    max_streams: int = setting(10_000, "Streams under way at once; more are refused with OVERLOADED.")
    default_deadline: timedelta = setting(timedelta(seconds=5), "How long a unary call may take that has no deadline.")
    max_deadline: timedelta = setting(
        timedelta(seconds=30), "How long a unary call may take whatever its deadline, unless it is known to take long."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """An assembled service: what to serve while it is open."""

    servicers: Mapping[str, object]
    storages: Sequence[Storage] = ()
    ledger: Callable[[], status_pb2.Ledger] | None = None
    # Those that are not of a storage.
    breakers: Sequence[Breaker] = ()
    # Names that reflection lists although another server answers them.
    routed: Sequence[str] = ()
    # Whether clients come to it directly: what one connection may do is then limited, and connections grow old.
    public: bool = False
    # Knows people and programs by their credentials; without one only servers of the mesh are known.
    authenticator: Authenticator | None = None
    # What writes to the audit; where there is none of one's own, one that tells the metadata service.
    auditor: Auditor | None = None
    # What its methods need.
    rules: Mapping[str, Mapping[str, Rule]] = field(default_factory=lambda: POLICY)
    # Called when the server is about to stop, before streams are ended.
    on_drain: Callable[[], None] = field(default=lambda: None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """What a module gets: the configuration, the clock, its own name and address."""

    configuration: Configuration
    name: str
    address: str
    version: str
    clock: Clock = field(default_factory=SystemClock)
    # What calls to other servers carry to say who makes them: a caller whose call is passed on, None for ourselves.
    identify: IdentifyAs = lambda _: ()
    # What connections to and from other services are encrypted with; None: they are not.
    tls: Files | None = None

    def section(self, cls: type[Any]) -> Any:
        """Return a section of the configuration."""
        return self.configuration.section(cls)

    @property
    def mesh(self) -> MeshConfig:
        """Where the services are."""
        found: MeshConfig = self.configuration.section(MeshConfig)
        return found

    @property
    def shard(self) -> Shard:
        """Which shard this service is, of one that has some."""
        return Shard(self.mesh.shard_index, self.mesh.shard_count)

    def peer(
        self,
        name: str,
        *services: str,
        patience: timedelta = timedelta(),
        passes_on: bool = False,
        shard: int | None = None,
    ) -> Peer:
        """Return the peer `name` at its address in `mesh`; `services` are those whose reads may be retried.

        One that `passes_on` is called in the name of who is calling us, where somebody is. Of a service with shards it is
        that of our own `shard`, or of another one, which is then named `timeseries/1` and the like.
        """
        addresses = self.mesh.addresses(name)
        target = (
            addresses[self.mesh.shard_index if shard is None else shard] if name in SHARDED else ",".join(addresses)
        )
        is_numbered = name in SHARDED and shard is not None and len(addresses) > 1
        methods = [entry for service in services for entry in retried(service, service_methods(service))]

        def identify() -> Sequence[tuple[str, str]]:
            return self.identify(access.caller() if passes_on else None)

        return Peer(
            f"{name}/{shard}" if is_numbered else name,
            target,
            retried=methods,
            patience=patience,
            identify=identify,
            tls=self.tls,
            server_name=server_name(name),
        )

    def warnings(self) -> tuple[str, ...]:
        """Return what an operator should know of how this server is reached."""
        return transport_warnings(self.address, self.tls, self.clock)


class Module(Protocol):
    """A service of the suite as `suite.py` lists it."""

    name: str
    config: type[Any]

    def open(self, runtime: Runtime) -> AbstractAsyncContextManager[Service]:
        """Return the assembled service for the life of the context. Stores that are away do not fail it."""
        ...


def service_descriptor(full_name: str) -> ServiceDescriptor:
    """Return the descriptor of a service whose generated module was imported."""
    return descriptor_pool.Default().FindServiceByName(full_name)


def service_methods(full_name: str) -> list[str]:
    """Return the names of a service's methods."""
    return [method.name for method in service_descriptor(full_name).methods]

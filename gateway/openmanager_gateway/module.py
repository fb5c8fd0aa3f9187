"""Assembly of the gateway."""

from __future__ import annotations

import contextlib
import random
from collections.abc import AsyncIterator

from openmanager.api.status.v1 import status_pb2
from openmanager.runtime import measure
from openmanager.runtime.background import working
from openmanager.runtime.breaker import Breaker
from openmanager.runtime.module import Runtime, Service, service_descriptor
from openmanager.runtime.peer import Peer
from openmanager.runtime.status import Storage
from openmanager_gateway.authenticator import Authenticator
from openmanager_gateway.config import GatewayConfig
from openmanager_gateway.replica import Replica
from openmanager_gateway.router import Route, Upstream
from openmanager_gateway.service import GatewayService, MetricsService
from openmanager_gateway.status import StatusBoard, probe

OWN = "openmanager.api.gateway.v1.GatewayService"
OTLP = "opentelemetry.proto.collector.metrics.v1.MetricsService"


class GatewayModule:
    """The module `gateway`. `routes` maps the name of each other service of the suite to its proto services."""

    name = "gateway"
    config = GatewayConfig

    def __init__(self, routes: dict[str, tuple[str, ...]]) -> None:
        self._routes = routes

    @contextlib.asynccontextmanager
    async def open(self, runtime: Runtime) -> AsyncIterator[Service]:
        """Connect to the services and follow the cache."""
        config: GatewayConfig = runtime.section(GatewayConfig)
        async with contextlib.AsyncExitStack() as stack:
            peers: dict[str, Peer] = {}
            for name, services in self._routes.items():
                peers[name] = await stack.enter_async_context(
                    runtime.peer(name, *services, patience=config.patience, passes_on=True)
                )
            replica = Replica(
                cache=peers["cache"],
                timeseries=peers["timeseries"],
                clock=runtime.clock,
                jitter=random.Random(),  # noqa: S311  (jitter)
                head_interval=config.head_interval,
            )
            measure.observe_staleness(replica.staleness)
            copy = Storage(name="replica", role="hot state", engine="memory", check=replica.look, clock=runtime.clock)
            started = runtime.clock.now_nanos()
            board = StatusBoard(
                peers=list(peers.values()),
                own=lambda: _own_row(runtime, copy, started),
                clock=runtime.clock,
                wait=config.status_timeout,
            )
            authenticator = Authenticator(peers["metadata"], runtime.clock, config.identity_grace)
            upstreams = {name: _upstream(peer, runtime) for name, peer in peers.items()}
            routes = {
                service: Route(service_descriptor(service), upstreams[name])
                for name, services in self._routes.items()
                for service in services
            }
            async with working(
                replica.run(),
                replica.run_fallback(),
                authenticator.run(),
                *(probe(each) for each in upstreams.values()),
            ):
                yield Service(
                    servicers={
                        OWN: GatewayService(replica=replica, board=board, timeseries=upstreams["timeseries"]),
                        OTLP: MetricsService(upstreams["timeseries"], runtime.clock),
                        **routes,
                    },
                    storages=[copy],
                    breakers=[each.breaker for each in upstreams.values()],
                    authenticator=authenticator,
                    public=True,
                )


def _upstream(peer: Peer, runtime: Runtime) -> Upstream:
    # How long a call takes is for the caller to say: some take minutes.
    breaker = Breaker(peer.name, "calls", runtime.clock, random.Random(), slow_seconds=float("inf"))  # noqa: S311
    return Upstream(peer, breaker, runtime.clock)


def _own_row(runtime: Runtime, copy: Storage, started_nanos: int) -> status_pb2.ServiceStatus:
    storage = copy.message()
    row = status_pb2.ServiceStatus(
        service=runtime.name,
        address=runtime.address,
        state=storage.state,
        version=runtime.version,
        storages=[storage],
        reason=f"replica {storage.reason}" if storage.reason else "",
        warnings=runtime.warnings(),
    )
    row.start_time.FromNanoseconds(started_nanos)
    return row

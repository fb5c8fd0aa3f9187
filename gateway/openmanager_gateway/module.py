"""Assembly of the gateway."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable, Sequence

from openmanager.api.status.v1 import status_pb2
from openmanager.hot import HotFleet
from openmanager.hot_service import HotService
from openmanager.runtime import measure
from openmanager.runtime.background import working
from openmanager.runtime.breaker import Breaker
from openmanager.runtime.module import Runtime, Service, service_descriptor
from openmanager.runtime.peer import Peer
from openmanager.runtime.status import Storage, worst
from openmanager.shard import SHARDED, shard_of
from openmanager_gateway.authenticator import Authenticator
from openmanager_gateway.config import GatewayConfig
from openmanager_gateway.replica import Replica, Replicas
from openmanager_gateway.router import Route, Upstream
from openmanager_gateway.service import GatewayService, MetricsService
from openmanager_gateway.shards.calls import Shards
from openmanager_gateway.shards.table import ShardedRoute
from openmanager_gateway.status import StatusBoard, probe

CACHE = "openmanager.api.cache.v1.CacheService"
OWN = "openmanager.api.gateway.v1.GatewayService"
OTLP = "opentelemetry.proto.collector.metrics.v1.MetricsService"
# How long a gateway waits to know the fleet before it serves.
FILL_SECONDS = 3.0


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
            peers: dict[str, list[Peer]] = {}
            for name, services in self._routes.items():
                count = len(runtime.mesh.addresses(name)) if name in SHARDED else 1
                peers[name] = [
                    await stack.enter_async_context(
                        runtime.peer(name, *services, patience=config.patience, passes_on=True, shard=shard)
                    )
                    for shard in range(count)
                ]
            parts = _replicas(peers["cache"], peers["timeseries"], config, runtime)
            replicas = Replicas(parts)
            copies = [
                Storage(
                    name="replica" if len(parts) == 1 else f"replica/{shard}",
                    role="hot state",
                    engine="memory",
                    check=part.look,
                    clock=runtime.clock,
                )
                for shard, part in enumerate(parts)
            ]
            measure.observe_staleness(replicas.staleness)
            started = runtime.clock.now_nanos()
            board = StatusBoard(
                peers=[peer for shards in peers.values() for peer in shards],
                own=lambda: _own_row(runtime, copies, started),
                clock=runtime.clock,
                wait=config.status_timeout,
            )
            authenticator = Authenticator(peers["metadata"][0], runtime.clock, config.identity_grace)
            upstreams = {name: [_upstream(peer, runtime) for peer in shards] for name, shards in peers.items()}
            everyone = [upstream for shards in upstreams.values() for upstream in shards]
            routes = {
                service: _route(service, upstreams[name], replicas)
                for name, services in self._routes.items()
                for service in services
            }
            async with working(
                *(part.run() for part in parts),
                *(part.run_fallback() for part in parts),
                authenticator.run(),
                *(probe(each) for each in everyone),
            ):
                await _filled(replicas)
                yield Service(
                    servicers={
                        OWN: GatewayService(replicas=replicas, board=board, timeseries=upstreams["timeseries"]),
                        OTLP: MetricsService(upstreams["timeseries"], runtime.clock),
                        **routes,
                    },
                    storages=copies,
                    breakers=[each.breaker for each in everyone],
                    authenticator=authenticator,
                    public=True,
                )


async def _filled(replicas: Replicas) -> None:
    """Return when every shard was heard of, so that who is asked can answer; without a cache after `FILL_SECONDS`."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(FILL_SECONDS):
            while replicas.unheard():  # noqa: ASYNC110  (once, at the start)
                await asyncio.sleep(0.02)


def _replicas(
    caches: Sequence[Peer], logs: Sequence[Peer], config: GatewayConfig, runtime: Runtime
) -> Sequence[Replica]:
    """Return the copy of each shard, all in one fleet."""
    fleet, count = HotFleet(), len(caches)

    def ours(shard: int) -> Callable[[str], bool]:
        return lambda server: count == 1 or shard_of(server, count) == shard

    return [
        Replica(
            cache=cache,
            timeseries=timeseries,
            clock=runtime.clock,
            jitter=random.Random(),  # noqa: S311  (jitter)
            head_interval=config.head_interval,
            fleet=fleet,
            is_ours=ours(shard),
        )
        for shard, (cache, timeseries) in enumerate(zip(caches, logs, strict=True))
    ]


def _route(service: str, upstreams: Sequence[Upstream], replicas: Replicas) -> object:
    """Return what answers a service: bytes passed on, or where it has shards what is made of their answers."""
    if len(upstreams) == 1:
        return Route(service_descriptor(service), upstreams[0])
    if service == CACHE:
        return HotService(replicas.fleet, replicas.describe, replicas.known, replicas.describe_one)
    return ShardedRoute(service_descriptor(service), Shards(upstreams))


def _upstream(peer: Peer, runtime: Runtime) -> Upstream:
    # How long a call takes is for the caller to say: some take minutes.
    breaker = Breaker(peer.name, "calls", runtime.clock, random.Random(), slow_seconds=float("inf"))  # noqa: S311
    return Upstream(peer, breaker, runtime.clock)


async def _own_row(runtime: Runtime, copies: Sequence[Storage], started_nanos: int) -> status_pb2.ServiceStatus:
    await asyncio.gather(*(copy.look_again() for copy in copies))
    storages = [copy.message() for copy in copies]
    row = status_pb2.ServiceStatus(
        service=runtime.name,
        address=runtime.address,
        state=worst([storage.state for storage in storages]),
        version=runtime.version,
        storages=storages,
        reason=", ".join(f"{storage.name} {storage.reason}" for storage in storages if storage.reason),
        warnings=runtime.warnings(),
    )
    row.start_time.FromNanoseconds(started_nanos)
    return row

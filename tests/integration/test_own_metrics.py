"""What the services measure of themselves, stored in the mesh that they are."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from conftest import Mesh, running_mesh, wait_until

from openmanager.access import server
from openmanager.api.analysis.v1 import alert_pb2
from openmanager.api.timeseries.v1 import timeseries_pb2
from openmanager.cli import rules_file
from openmanager.config import Secret
from openmanager.runtime.clock import SystemClock
from openmanager.runtime.mesh_key import HEADER, MeshKey
from openmanager.runtime.peer import Peer

SERIES = "/openmanager.api.timeseries.v1.TimeseriesService/ListSeries"
RULES = "/openmanager.api.analysis.v1.RuleService/"
OWN = Path(__file__).parent.parent.parent / "deploy" / "slo" / "rules.toml"
LAG_OF_CACHE = "openmanager.consumer.lag{openmanager.consumer.name=cache}"
NAME = f"openmanager-{socket.gethostname().lower()}"


@pytest.fixture(scope="module")
def watched() -> Iterator[Mesh]:
    """A mesh that asks everybody for credentials, with its own metrics every half second."""
    variables = {"OPENMANAGER_AUTH": "required", "OTEL_METRIC_EXPORT_INTERVAL": "500"}
    with running_mesh("--own-metrics", environment=variables) as running:
        yield running


@pytest.fixture
async def gateway(watched) -> AsyncIterator[Peer]:
    """The gateway, asked as a server of the mesh."""
    key = MeshKey(Secret((watched.data / "credentials" / "mesh").read_text()), "test", SystemClock())
    async with Peer("gateway", watched.gateway, identify=lambda: ((HEADER, key.token(server("test"))),)) as peer:
        yield peer


async def series(gateway: Peer, pattern: str) -> list[str]:
    request = timeseries_pb2.ListSeriesRequest(page_size=5000)
    request.selector.servers.append(NAME)
    request.selector.metrics.append(pattern)
    reply = await gateway.unary(SERIES, request, timeseries_pb2.ListSeriesResponse, seconds=5)
    return [each.metric for each in reply.series]


@pytest.mark.timeout(90)
async def test_every_service_tells_of_itself_under_the_identity_of_the_mesh(gateway):
    services = {"gateway", "timeseries", "cache", "metadata", "analysis"}
    found: list[str] = []

    async def all_tell() -> bool:
        found[:] = await series(gateway, "rpc.server.call.duration.count")
        told = {name for name in services if any(f"openmanager-{name}" in each for each in found)}
        measured = [await series(gateway, each) for each in (LAG_OF_CACHE, "openmanager.hot.staleness")]
        return told == services and all(measured)

    await wait_until(all_tell, 30)
    # An id that is made up at every start would be new series at every start.
    assert all(f"service.instance.id={socket.gethostname()}" in each for each in found)


@pytest.mark.timeout(90)
async def test_metrics_about_writing_metrics_make_no_more_of_them(gateway):
    async def settled() -> bool:
        return len(await series(gateway, "*")) > 100

    await wait_until(settled, 30)
    assert len(await series(gateway, "*")) < 1500  # some 600 in all


@pytest.mark.timeout(90)
async def test_our_own_rules_are_applied_and_look_at_them(gateway):
    async def tells() -> bool:
        return bool(await series(gateway, "openmanager.consumer.lag")) and bool(
            await series(gateway, "openmanager.hot.*")
        )

    await wait_until(tells, 30)
    wanted = {rule.id for rule in rules_file.read(OWN)}
    for rule in rules_file.read(OWN):
        request = alert_pb2.CreateRuleRequest(rule=rule)
        await gateway.unary(f"{RULES}CreateRule", request, alert_pb2.CreateRuleResponse, seconds=5)

    async def looked_at() -> bool:
        reply = await gateway.unary(
            f"{RULES}ListRules", alert_pb2.ListRulesRequest(), alert_pb2.ListRulesResponse, seconds=5
        )
        counts = {rule.id: rule.series_count for rule in reply.rules}
        return counts.keys() == wanted and all(
            counts[name] for name in ("hot-state-stale", "reader-behind", "dead-letters")
        )

    await wait_until(looked_at, 20)

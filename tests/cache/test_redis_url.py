"""What REDIS_URL may say, and what is said of one that cannot be used."""

from __future__ import annotations

import pytest
from openmanager_cache.backends.deployment import Cluster, Limits, Server, deployment
from openmanager_cache.backends.redis import open_redis
from redis.asyncio.connection import SSLConnection
from redis.asyncio.sentinel import SentinelManagedSSLConnection

from openmanager.config import Secret
from openmanager.errors import ConfigurationError
from openmanager.runtime.clock import SystemClock

LIMITS = Limits(seconds=0.15, connect_seconds=0.2, connections=4)


@pytest.fixture
async def made(request: pytest.FixtureRequest):
    found = deployment(request.param, LIMITS)
    yield found
    await found.aclose()


def of(url: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("made", [url], indirect=True)


@of("redis+sentinel://me:p%40ss@a,b:1,[::1]:2/hot/3?sentinel_password=other")
async def test_sentinels_are_asked_with_their_own_password_and_the_master_with_its(made: Server):
    pool = made._client.connection_pool
    asked = [sentinel.connection_pool.connection_kwargs for sentinel in pool.sentinel_manager.sentinels]
    assert [(each["host"], each["port"]) for each in asked] == [("a", 26379), ("b", 1), ("::1", 2)]
    assert {(each.get("username"), each["password"]) for each in asked} == {(None, "other")}
    told = pool.connection_kwargs
    assert (pool.service_name, told["username"], told["password"], told["db"]) == ("hot", "me", "p@ss", 3)


@of("rediss+sentinel://a/hot?ssl_ca_certs=/ca.pem")
async def test_with_tls_sentinels_and_the_master_are_asked_over_it(made: Server):
    pool = made._client.connection_pool
    (sentinel,) = pool.sentinel_manager.sentinels
    assert pool.connection_class is SentinelManagedSSLConnection
    assert sentinel.connection_pool.connection_class is SSLConnection
    assert sentinel.connection_pool.connection_kwargs["ssl_ca_certs"] == "/ca.pem"
    assert pool.connection_kwargs["ssl_ca_certs"] == "/ca.pem"


@of("rediss+cluster://:pass@a,b:1/0?ssl_ca_certs=/ca.pem")
async def test_a_cluster_is_found_by_any_of_its_nodes(made: Cluster):
    nodes = made._client.nodes_manager.startup_nodes
    assert set(nodes) == {"a:6379", "b:1"}
    assert {node.connection_class for node in nodes.values()} == {SSLConnection}
    assert {node.connection_kwargs["password"] for node in nodes.values()} == {"pass"}


@pytest.mark.parametrize(
    "url",
    [
        "redis+sentinel://a,b",
        "redis+sentinel://a,b/",
        "redis+sentinel://a,b/hot/first",
        "redis+sentinel:///hot",
        "redis+sentinel://a,,b/hot",
        "redis+sentinel://a:65536/hot",
        "redis+sentinel://a:port/hot",
        "redis+sentinel://[::1/hot",
        "redis+sentinel://a/hot?socket_timeout=soon",
        "redis+sentinel://a/hot?colour=red",
        "redis+cluster://",
        "redis+cluster://a/1",
        "redis+cluster://a?db=1",
        "redis+cluster://a?colour=red",
        "redis+ring://a",
        "unix+cluster:///run/redis",
        "+sentinel://a/hot",
        "redis://a?colour=red",
    ],
)
def test_a_url_that_cannot_be_used_is_refused_at_the_start(url: str):
    with pytest.raises(ConfigurationError, match="REDIS_URL is not a URL of the form"):
        open_redis(Secret(url), prefix="", seconds=1, connect_seconds=1, connections=1, clock=SystemClock())

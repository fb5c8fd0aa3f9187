"""Configuration of the cache service."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from openmanager.config import Secret, setting


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheConfig:
    """The section `cache`."""

    redis_url: Secret = setting(
        Secret(""),
        "Where Redis or Valkey is: redis://, rediss:// or unix://, redis+sentinel://host,host/master, redis+cluster://host,host;"
        " with TLS rediss+…; empty: none.",
        env="REDIS_URL",
    )
    redis_prefix: str = setting("om:", "What every key of ours begins with.", env="OPENMANAGER_REDIS_PREFIX")
    redis_timeout: timedelta = setting(timedelta(milliseconds=150), "How long one Redis command may take.")
    redis_connect_timeout: timedelta = setting(timedelta(milliseconds=200), "How long connecting to Redis may take.")
    redis_connections: int = setting(32, "Connections to Redis, at most.")
    server_ttl: timedelta = setting(timedelta(seconds=300), "How long `server:{id}` and `servers:count` live.")
    list_ttl: timedelta = setting(timedelta(seconds=60), "How long `servers:all` and `servers:healthy` live.")
    inventory_interval: timedelta = setting(timedelta(seconds=5), "How often changes of the inventory are asked for.")

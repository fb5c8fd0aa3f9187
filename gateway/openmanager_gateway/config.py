"""Configuration of the gateway."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from openmanager.config import setting


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayConfig:
    """The section `gateway`."""

    status_timeout: timedelta = setting(
        timedelta(milliseconds=500), "How long a service may take to tell its state before its row says HUNG."
    )
    head_interval: timedelta = setting(
        timedelta(seconds=2), "How often the newest samples are read while the cache service is away."
    )
    patience: timedelta = setting(
        timedelta(seconds=5),
        "How long a service may be away, as for a restart, before calls to it fail instead of waiting.",
    )
    identity_grace: timedelta = setting(
        timedelta(minutes=10),
        "How long whom the gateway knows stays known while the metadata service cannot be asked about them.",
    )

"""What is told of the fleet's servers and metrics, beside their values."""

from __future__ import annotations

from collections.abc import Sequence

from openmanager.frame import MetricInfo, ServerInfo
from openmanager_simulator.catalogue import Catalogue
from openmanager_simulator.fleet import Server


def server_infos(fleet: Sequence[Server]) -> tuple[ServerInfo, ...]:
    """Return what is told of servers."""
    return tuple(
        ServerInfo(
            id=server.id,
            hostname=server.hostname,
            environment=server.environment,
            role=server.role,
            location=server.location,
        )
        for server in fleet
    )


def metric_infos(catalogue: Catalogue) -> tuple[MetricInfo, ...]:
    """Return what is told of metrics, once for each name."""
    kinds = {"gauge": (1, 0), "counter": (2, 1)}  # the numbers of MetricKind and Temporality
    names = {metric.name: metric for metric in catalogue.metrics}
    return tuple(
        MetricInfo(
            name=metric.name,
            unit=metric.unit,
            kind=kinds[metric.kind][0],
            temporality=kinds[metric.kind][1],
            description=metric.description,
        )
        for metric in names.values()
    )

"""The page of measures for Prometheus: how the mesh is, by what the gateway says when it is asked."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from openmanager.api.gateway.v1 import gateway_pb2
from openmanager.api.status.v1 import status_pb2
from openmanager.client import Client, rpc

CONTENT_TYPE = CONTENT_TYPE_LATEST
ASK_SECONDS = 3.0

_STATES = {
    number: name.removeprefix("STORAGE_STATE_").lower()
    for name, number in status_pb2.StorageState.items()
    if number != status_pb2.STORAGE_STATE_UNSPECIFIED
}
_FATES = ("delivered", "waiting", "dead_lettered", "resynced", "damaged")


async def page(client: Client, own: Callable[[], Iterable[Metric]]) -> bytes:
    """Return the page; UnavailableError when the gateway does not answer, so that a scrape fails as it should."""
    board = await client.rpc.call(rpc.GET_STORAGE_STATUS, gateway_pb2.GetStorageStatusRequest(), seconds=ASK_SECONDS)
    return await asyncio.to_thread(_render, board, own())


def _render(board: gateway_pb2.GetStorageStatusResponse, own: Iterable[Metric]) -> bytes:
    registry = CollectorRegistry()
    ProcessCollector(namespace="openmanager_console", registry=registry)
    registry.register(_Board(board, own))
    return generate_latest(registry)


class _Board(Collector):
    """The families of a status."""

    def __init__(self, board: gateway_pb2.GetStorageStatusResponse, own: Iterable[Metric]) -> None:
        self._board = board
        self._own = own

    def collect(self) -> Iterator[Metric]:
        """Yield them."""
        yield from self._own
        yield from _services(self._board.services)
        yield from _storages(self._board.services)
        if self._board.HasField("ledger"):
            yield from _ledger(self._board.ledger)


def _state_family(name: str, about: str, labels: tuple[str, ...]) -> GaugeMetricFamily:
    return GaugeMetricFamily(
        name, f"{about}: 1 for the state that it is in, 0 for the others.", labels=(*labels, "state")
    )


def _add_state(family: GaugeMetricFamily, labels: tuple[str, ...], found: int) -> None:
    for number, name in _STATES.items():
        family.add_metric((*labels, name), float(number == found))


def _services(services: Iterable[status_pb2.ServiceStatus]) -> Iterator[Metric]:
    state = _state_family("openmanager_service_state", "State of a service", ("service",))
    start = GaugeMetricFamily(
        "openmanager_service_start_time_seconds",
        "When a service started, since the epoch.",
        labels=("service", "version"),
    )
    for each in services:
        _add_state(state, (each.service,), each.state)
        if each.HasField("start_time"):
            start.add_metric((each.service, each.version), each.start_time.ToNanoseconds() / 1e9)
    yield state
    yield start


def _storages(services: Iterable[status_pb2.ServiceStatus]) -> Iterator[Metric]:
    labels = ("service", "storage", "engine")
    state = _state_family("openmanager_storage_state", "State of a store", labels)
    latency = GaugeMetricFamily("openmanager_storage_latency_seconds", "How long its last probe took.", labels=labels)
    size = GaugeMetricFamily("openmanager_storage_size_bytes", "What it holds.", labels=labels)
    items = GaugeMetricFamily("openmanager_storage_items", "How many items it holds.", labels=labels)
    for service in services:
        for each in service.storages:
            named = (service.service, each.name, each.engine)
            _add_state(state, named, each.state)
            if each.HasField("latency"):
                latency.add_metric(named, each.latency.ToNanoseconds() / 1e9)
            size.add_metric(named, each.size_bytes)
            items.add_metric(named, each.item_count)
    yield from (state, latency, size, items)


def _ledger(ledger: status_pb2.Ledger) -> Iterator[Metric]:
    yield CounterMetricFamily(
        "openmanager_log_accepted_samples", "Samples that were acknowledged.", value=ledger.accepted_sample_count
    )
    yield GaugeMetricFamily("openmanager_log_head_position", "Newest position of the log.", value=ledger.head_position)
    samples = GaugeMetricFamily(
        "openmanager_log_consumer_samples",
        "What became of the accepted samples for a consumer; the sum over `fate` is what was accepted.",
        labels=("consumer", "fate"),
    )
    lag = GaugeMetricFamily(
        "openmanager_log_consumer_lag_seconds", "How far a consumer is behind.", labels=("consumer",)
    )
    for each in ledger.consumers:
        for fate in _FATES:
            samples.add_metric((each.name, fate), getattr(each, f"{fate}_sample_count"))
        lag.add_metric((each.name,), each.lag.ToNanoseconds() / 1e9)
    yield samples
    yield lag

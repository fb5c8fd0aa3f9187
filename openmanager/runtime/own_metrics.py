"""Metrics of the services in the mesh's own store: exported to its own gateway, by the identity of a server of the mesh.

What is exported does not depend on what is written, so that the metrics about writing metrics are as many as without them:
one export of each service in an interval of `OTEL_METRIC_EXPORT_INTERVAL`, a minute by default.
"""

from __future__ import annotations

import asyncio
import socket
from concurrent.futures import CancelledError
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse
from opentelemetry.sdk.metrics.export import MetricExporter, MetricExportResult, MetricsData

from openmanager.errors import OpenManagerError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from openmanager.runtime.peer import Peer

EXPORT = "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export"
EXPORT_SECONDS = 5.0
ROLE = "openmanager"


class OwnMetrics(MetricExporter):
    """Exports to a peer on the event loop of the process, from the SDK's thread; fails while there is none."""

    def __init__(self) -> None:
        super().__init__()
        self._peer: Peer | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    @contextmanager
    def through(self, peer: Peer) -> Iterator[None]:
        """Export to a peer for the life of the context, whose loop is the running one."""
        self._peer, self._loop = peer, asyncio.get_running_loop()
        try:
            yield
        finally:
            self._peer = None

    def export(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **_: Any) -> MetricExportResult:  # noqa: ARG002
        """Send what was measured; FAILURE when it could not be: counters are cumulative, and say it the next time."""
        if self._peer is None or self._loop is None:
            return MetricExportResult.FAILURE
        request = encode_metrics(metrics_data)
        for each in request.resource_metrics:
            for name, text in (("host.id", f"{ROLE}-{socket.gethostname()}"), ("openmanager.role", ROLE)):
                each.resource.attributes.add(key=name).value.string_value = text
        call = self._peer.unary(EXPORT, request, ExportMetricsServiceResponse, seconds=EXPORT_SECONDS)
        try:
            answer = asyncio.run_coroutine_threadsafe(call, self._loop)
        except RuntimeError:  # the loop has ended
            call.close()
            return MetricExportResult.FAILURE
        try:
            answer.result(EXPORT_SECONDS + 1)
        except (OpenManagerError, TimeoutError, CancelledError):
            answer.cancel()
            return MetricExportResult.FAILURE
        return MetricExportResult.SUCCESS

    def force_flush(self, timeout_millis: float = 10_000) -> bool:  # noqa: ARG002
        """Nothing waits here."""
        return True

    def shutdown(self, timeout_millis: float = 30_000, **_: Any) -> None:  # noqa: ARG002
        """Export no more."""
        self._peer = None

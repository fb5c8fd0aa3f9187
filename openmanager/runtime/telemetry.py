"""Traces, metrics and logs: set up once per process from the standard `OTEL_*` variables.

Without a collector nothing is started: the API's no-ops remain, and a caller's W3C context still travels through every
hop. Exporters run in the SDK's own threads with short timeouts, so that a hung collector slows neither a call nor the
end of the process.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from opentelemetry import context as otel_context
from opentelemetry import metrics, propagate, trace
from opentelemetry.trace import SpanKind, Status, StatusCode

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics.export import MetricExporter

EXPORT_TIMEOUT_SECONDS = 2
SHUTDOWN_SECONDS = 2
QUEUE_SPANS = 2048

_ENDPOINTS = (
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT",
)
_PROPAGATED = ("traceparent", "tracestate")
_MAX_HEADER = 512


class _State:
    """Whether the SDK runs in this process."""

    def __init__(self) -> None:
        self.recording = False


_state = _State()
tracer = trace.get_tracer("openmanager")
meter = metrics.get_meter("openmanager")
# Those of the semantic conventions: the SDK's own are for milliseconds. One of them is the bound of the objective for latency.
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
_rpc_duration = meter.create_histogram(
    "rpc.server.call.duration",
    unit="s",
    description="Duration of served calls.",
    explicit_bucket_boundaries_advisory=_SECONDS,
)


def recording() -> bool:
    """Say whether spans are recorded and exported."""
    return _state.recording


def wanted(environ: Mapping[str, str], own_gateway: str) -> bool:
    """Say whether telemetry is to be exported: a collector is named and it is not this suite itself."""
    if environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    endpoints = [environ[name] for name in _ENDPOINTS if environ.get(name)]
    if any(endpoint.split("://")[-1].rstrip("/") in own_gateway.split(",") for endpoint in endpoints):
        logging.getLogger(__name__).warning("telemetry not exported: the collector named is this suite's own gateway")
        return False
    return bool(endpoints)


def set_up(service: str, version: str, own_gateway: str, own: MetricExporter | None = None) -> Callable[[], None]:
    """Start the SDK where a collector is named, or where `own` takes metrics; return what ends it within SHUTDOWN_SECONDS."""
    collected = wanted(os.environ, own_gateway)
    if not collected and own is None:
        return lambda: None
    from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    # A collector that is away is reported once by our status, not by a line for every batch.
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
    # Two of one service, on two machines, are told apart, and the same after a restart; the SDK makes an id up for each.
    named = {"service.name": f"openmanager-{service}", "service.version": version}
    if "service.instance.id" not in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", ""):
        named["service.instance.id"] = socket.gethostname()
    resource = Resource.create(named)
    exporters: list[MetricExporter] = [] if own is None else [own]
    providers: list[TracerProvider | MeterProvider] = []
    if collected:
        exporters.append(OTLPMetricExporter(timeout=EXPORT_TIMEOUT_SECONDS))
        spans = TracerProvider(resource=resource, shutdown_on_exit=False)
        spans.add_span_processor(
            BatchSpanProcessor(
                OTLPSpanExporter(timeout=EXPORT_TIMEOUT_SECONDS),
                max_queue_size=QUEUE_SPANS,
                export_timeout_millis=EXPORT_TIMEOUT_SECONDS * 1000,
            )
        )
        trace.set_tracer_provider(spans)
        providers.append(spans)
    readers = [PeriodicExportingMetricReader(exporter) for exporter in exporters]
    measures = MeterProvider(resource=resource, metric_readers=readers, shutdown_on_exit=False)
    metrics.set_meter_provider(measures)
    providers.append(measures)
    _state.recording = True

    def end() -> None:
        # In daemon threads: the SDK's own shutdown may wait a minute for a collector that hangs.
        threads = [threading.Thread(target=provider.shutdown, daemon=True) for provider in providers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(SHUTDOWN_SECONDS)

    return end


@contextmanager
def server_span(path: str, metadata: Iterable[Any]) -> Iterator[trace.Span]:
    """Continue the caller's trace with a span for a served call; without an SDK only pass the context on."""
    carrier = {key: value for key, value in metadata if key in _PROPAGATED and isinstance(value, str)}
    if not carrier and not _state.recording:
        yield trace.INVALID_SPAN
        return
    if any(len(value) > _MAX_HEADER for value in carrier.values()):
        carrier = {}
    parent = propagate.extract(carrier)
    if not _state.recording:
        token = otel_context.attach(parent)
        try:
            yield trace.INVALID_SPAN
        finally:
            otel_context.detach(token)
        return
    service, _, method = path.strip("/").partition("/")
    attributes = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": method}
    with tracer.start_as_current_span(
        f"{service}/{method}", context=parent, kind=SpanKind.SERVER, attributes=attributes, record_exception=False
    ) as span:
        yield span


def record_call(span: trace.Span, path: str, code: int, seconds: float) -> None:
    """Finish the account of a served call: its code on the span, its duration in the histogram."""
    if not _state.recording:
        return
    service, _, method = path.strip("/").partition("/")
    span.set_attribute("rpc.grpc.status_code", code)
    if code not in {0, 1, 3, 5}:  # the caller's own mistakes are no errors of the server
        span.set_status(Status(StatusCode.ERROR))
    _rpc_duration.record(seconds, {"rpc.service": service, "rpc.method": method, "rpc.grpc.status_code": code})


@contextmanager
def store_span(system: str, operation: str, parent: str = "", **attributes: Any) -> Iterator[trace.Span]:
    """Record a call to a store; `parent` is the `traceparent` of the write it belongs to, if not the current one."""
    if not _state.recording:
        yield trace.INVALID_SPAN
        return
    context = propagate.extract({"traceparent": parent}) if parent else None
    with tracer.start_as_current_span(
        f"{system} {operation}",
        context=context,
        kind=SpanKind.CLIENT,
        attributes={"db.system.name": system, "db.operation.name": operation, **attributes},
        record_exception=False,
    ) as span:
        yield span


@contextmanager
def continued(parent: str) -> Iterator[None]:
    """Make the `traceparent` of a stored write current, so that calls made on its behalf join its trace."""
    if not parent:
        yield
        return
    token = otel_context.attach(propagate.extract({"traceparent": parent}))
    try:
        yield
    finally:
        otel_context.detach(token)


def outgoing() -> tuple[tuple[str, str], ...]:
    """Return the metadata that carries the current trace to a peer."""
    if not trace.get_current_span().get_span_context().is_valid:
        return ()
    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    return tuple((key, value) for key, value in carrier.items() if key in _PROPAGATED)


def trace_parent() -> str:
    """Return the current `traceparent`, empty when there is no trace."""
    return dict(outgoing()).get("traceparent", "")


class _JsonFormatter(logging.Formatter):
    """One JSON object a line, with the trace it belongs to."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        span = trace.get_current_span().get_span_context()
        if span.is_valid:
            line["trace_id"] = f"{span.trace_id:032x}"
            line["span_id"] = f"{span.span_id:016x}"
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def set_up_logging(level: str) -> None:
    """Write the process's log as JSON lines to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


def fields(**values: Any) -> dict[str, Any]:
    """Return the `extra` of a log call that adds key-values to its line."""
    return {"fields": values}

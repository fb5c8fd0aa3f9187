"""Reports the machine it runs on, through OpenTelemetry's own SDK, host metrics and exporter.

While the mesh is away exports wait, a bounded number of them, and are sent in order when it is back.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import platform
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import psutil
from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
from opentelemetry.instrumentation.system_metrics import SystemMetricsInstrumentor
from opentelemetry.metrics import CallbackOptions, Meter, Observation
from opentelemetry.sdk.metrics import MeterProvider, MetricsTimeoutError
from opentelemetry.sdk.metrics.export import (
    MetricExporter,
    MetricExportResult,
    MetricsData,
    PeriodicExportingMetricReader,
)
from opentelemetry.sdk.resources import Resource

from openmanager.runtime.tls import Tls, channel_credentials, client_files

EXPORT_SECONDS = 2.0
STOP_SECONDS = 2.0
BUFFER_EXPORTS = 360
# The first report comes so long after the start: processor shares need two readings.
FIRST_SECONDS = 1.0
# What would be refused again however often it was sent.
REFUSALS = frozenset(
    {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.OUT_OF_RANGE, grpc.StatusCode.FAILED_PRECONDITION}
)
_MACHINE_ID = Path("/etc/machine-id")

# What tells of the host; the interpreter's own figures would be those of the agent.
_CONFIG: dict[str, Any] = {
    "system.cpu.time": ["idle", "user", "nice", "system", "irq", "softirq", "iowait", "steal"],
    "system.cpu.utilization": ["idle", "user", "nice", "system", "irq", "softirq", "iowait", "steal"],
    "system.memory.usage": ["used", "free", "cached", "buffers"],
    "system.memory.utilization": ["used", "free", "cached", "buffers"],
    "system.swap.usage": ["used", "free"],
    "system.swap.utilization": ["used", "free"],
    "system.disk.io": ["read", "write"],
    "system.disk.operations": ["read", "write"],
    "system.disk.time": ["read", "write"],
    "system.network.dropped_packets": ["transmit", "receive"],
    "system.network.packets": ["transmit", "receive"],
    "system.network.errors": ["transmit", "receive"],
    "system.network.io": ["transmit", "receive"],
    "system.network.connections": ["family", "type"],
}


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentEvent:
    """What the agent did: `exported`, `buffered`, `dropped`, `refused`, how many exports, and how many wait now."""

    kind: str
    count: int
    waiting: int
    reason: str = ""


class HostExporter(OTLPMetricExporter):
    """The SDK's exporter; it remembers the error of its last call, which it tells nobody but its log, and not each."""

    def __init__(self, endpoint: str, tls: Tls | None = None) -> None:
        self.error: grpc.RpcError | None = None
        self._files = client_files(tls)
        self._material = None if self._files is None else self._files.material
        super().__init__(
            endpoint=endpoint,
            insecure=tls is None,
            credentials=None if self._material is None else channel_credentials(self._material),
            timeout=EXPORT_SECONDS,
            channel_options=(("grpc.ssl_target_name_override", tls.server_name),) if tls and tls.server_name else None,
        )

    def follow(self) -> None:
        """Connect anew when the files of the certificate have changed."""
        if self._files is None or (found := self._files.current()) is self._material:
            return
        old: Any = self._channel
        self._material, self._credentials = found, channel_credentials(found)
        self._initialize_channel_and_stub()
        old.close()

    def _initialize_channel_and_stub(self) -> None:
        super()._initialize_channel_and_stub()  # type: ignore[no-untyped-call]
        client: Any = self._client
        call = client.Export

        def export(**arguments: Any) -> Any:
            self.error = None
            try:
                return call(**arguments)
            except grpc.RpcError as err:
                self.error = err
                raise

        client.Export = export


class BufferingExporter(MetricExporter):
    """Exports through another exporter; what it cannot deliver waits, the oldest going first when there is too much."""

    def __init__(self, inner: HostExporter, limit: int, on_event: Callable[[AgentEvent], None]) -> None:
        super().__init__(
            preferred_temporality=inner._preferred_temporality,  # noqa: SLF001  (the SDK reads it there)
            preferred_aggregation=inner._preferred_aggregation,  # noqa: SLF001
        )
        self._inner = inner
        self._limit = limit
        self._on_event = on_event
        self._waiting: deque[MetricsData] = deque()
        self._stopping = threading.Event()

    def export(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any) -> MetricExportResult:
        """Deliver what waits and then this; called by the reader's thread, never twice at once."""
        self._waiting.append(metrics_data)
        dropped = max(0, len(self._waiting) - self._limit)
        for _ in range(dropped):
            self._waiting.popleft()
        if dropped:
            self._tell("dropped", dropped)
        sent = 0
        self._inner.follow()
        while self._waiting and not self._stopping.is_set():
            result = self._inner.export(self._waiting[0], timeout_millis=timeout_millis, **kwargs)
            error = self._inner.error if result is not MetricExportResult.SUCCESS else None
            if result is not MetricExportResult.SUCCESS and (error is None or error.code() not in REFUSALS):
                break
            self._waiting.popleft()
            if error is None:
                sent += 1
            else:
                self._tell("refused", 1, error.details() or "")
        if sent:
            self._tell("exported", sent)
        if self._waiting:
            self._tell("buffered", 1)
        return MetricExportResult.FAILURE if self._waiting else MetricExportResult.SUCCESS

    def _tell(self, kind: str, count: int, reason: str = "") -> None:
        self._on_event(AgentEvent(kind=kind, count=count, waiting=len(self._waiting), reason=reason))

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        """Nothing is held back for later but what cannot be delivered."""
        return self._inner.force_flush(timeout_millis)

    def shutdown(self, timeout_millis: float = 30_000, **kwargs: Any) -> None:
        """Stop trying."""
        self._stopping.set()
        self._inner.shutdown(timeout_millis=min(timeout_millis, STOP_SECONDS * 1000), **kwargs)


def host_resource(server_id: str | None, attributes: Mapping[str, str]) -> Resource:
    """Return the resource of this machine: `attributes` go before what is found."""
    name = socket.gethostname()
    machine = _MACHINE_ID.read_text(encoding="ascii").strip() if _MACHINE_ID.is_file() else ""
    found = {
        "host.id": server_id or (name if name not in {"", "localhost"} else machine) or "this-host",
        "host.name": name,
        "host.arch": platform.machine(),
        "os.type": platform.system().lower(),
        "os.description": platform.platform(),
    }
    return Resource.create({**found, **attributes})


def _observe_filesystems(meter: Meter) -> None:
    """Add what the instrumentation lacks: how full the file systems are (semantic conventions' names)."""

    def read() -> list[tuple[dict[str, str], Any]]:
        found = []
        for part in psutil.disk_partitions(all=False):
            try:
                usage = psutil.disk_usage(part.mountpoint)
            except OSError:
                continue
            if usage.total:
                about = {"device": part.device, "mountpoint": part.mountpoint, "type": part.fstype}
                found.append((about, usage))
        return found

    def utilization(_: CallbackOptions) -> Iterable[Observation]:
        for about, usage in read():
            yield Observation(usage.used / (usage.used + usage.free), {**about, "state": "used"})

    def usage(_: CallbackOptions) -> Iterable[Observation]:
        for about, each in read():
            yield Observation(each.used, {**about, "state": "used"})
            yield Observation(each.free, {**about, "state": "free"})

    meter.create_observable_gauge("system.filesystem.utilization", [utilization], unit="1")
    meter.create_observable_up_down_counter("system.filesystem.usage", [usage], unit="By")


async def run_agent(
    endpoint: str,
    *,
    interval: timedelta,
    server_id: str | None,
    attributes: Mapping[str, str],
    on_event: Callable[[AgentEvent], None],
    stop: asyncio.Event,
    buffer_exports: int = BUFFER_EXPORTS,
    tls: Tls | None = None,
) -> None:
    """Report this machine to the gateway at `endpoint` (host:port), encrypted with `tls`, every `interval` until `stop`.

    `on_event` is called from another thread. Ends within about STOP_SECONDS, whether the mesh answers or not.
    """
    # A mesh that is away is told by events, not by the exporter's own lines.
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
    exporter = BufferingExporter(HostExporter(endpoint, tls), buffer_exports, on_event)
    # All readings are taken in one thread: psutil keeps the last processor times of each, to tell shares from.
    reader = PeriodicExportingMetricReader(exporter, math.inf, EXPORT_SECONDS * 1000)
    provider = MeterProvider([reader], host_resource(server_id, attributes), shutdown_on_exit=False)
    instrumentor = SystemMetricsInstrumentor(config=_CONFIG)
    instrumentor.instrument(meter_provider=provider)
    _observe_filesystems(provider.get_meter("openmanager.agent"))
    thread = ThreadPoolExecutor(1, "agent")
    loop = asyncio.get_running_loop()

    async def report() -> None:
        with contextlib.suppress(MetricsTimeoutError):
            await loop.run_in_executor(thread, reader.collect, EXPORT_SECONDS * 1000)

    try:
        await loop.run_in_executor(thread, lambda: psutil.cpu_times_percent(percpu=True))
        due = loop.time() + min(FIRST_SECONDS, interval.total_seconds())
        while not await _is_set(stop, due - loop.time()):
            await report()
            due = max(due + interval.total_seconds(), loop.time())
    finally:
        # Without a last report: it would tell the processor's shares of next to no time.
        thread.shutdown(wait=False, cancel_futures=True)
        ending = threading.Thread(target=provider.shutdown, args=(STOP_SECONDS * 1000,), daemon=True)
        ending.start()
        await asyncio.to_thread(ending.join, STOP_SECONDS)
        instrumentor.uninstrument()


async def _is_set(event: asyncio.Event, seconds: float) -> bool:
    """Wait for an event, at most so long, and say whether it is set."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(max(0.0, seconds)):
            await event.wait()
    return event.is_set()

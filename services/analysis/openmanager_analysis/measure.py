"""What is measured of the detector: the anomalies that go on, read from memory when exported."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from opentelemetry.metrics import CallbackOptions, Observation

from openmanager.runtime import telemetry
from openmanager_analysis.anomaly import Register

SERVER, SEVERITY = "openmanager.server.id", "openmanager.severity"


def observe_anomalies(register: Callable[[], Register]) -> None:
    """Measure how unusual every server is that has an anomaly now; of the others nothing is reported."""

    def read(_: CallbackOptions) -> Iterator[Observation]:
        for each in tuple(register().open.values()):  # in another thread, while they change
            yield Observation(each.score, {SERVER: each.server, SEVERITY: each.severity.name.lower()})

    telemetry.meter.create_observable_gauge(
        "openmanager.anomaly.score", [read], description="How unusual a server is that has an anomaly now."
    )

"""What is measured of a process beside its calls: the books of the log, and the breakers. Read from memory when exported.

Of every sample that a consumer has had or is to have it says what became of it, so that the sum over `fate` is what was
accepted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from opentelemetry.metrics import CallbackOptions, Observation

from openmanager.api.status.v1 import status_pb2
from openmanager.runtime import telemetry
from openmanager.runtime.breaker import Breaker

STATES = {
    number: name.removeprefix("STORAGE_STATE_").lower()
    for name, number in status_pb2.StorageState.items()
    if number != status_pb2.STORAGE_STATE_UNSPECIFIED
}
CONSUMER, FATE, STATE = "openmanager.consumer.name", "openmanager.sample.fate", "openmanager.state"
STORE, OPERATION = "openmanager.store", "openmanager.operation"

Books = Callable[[], status_pb2.Ledger]
Read = Callable[[status_pb2.Consumer], Iterable[Observation]]


def observe_ledger(ledger: Books) -> None:
    """Measure every consumer of a log."""
    meter = telemetry.meter
    meter.create_observable_gauge(
        "openmanager.consumer.position",
        [_of_each(ledger, lambda row: [Observation(row.position, _named(row))])],
        unit="{position}",
        description="The position of the log up to which a consumer can lose nothing any more.",
    )
    meter.create_observable_gauge(
        "openmanager.consumer.lag",
        [_of_each(ledger, lambda row: [Observation(row.lag.ToTimedelta().total_seconds(), _named(row))])],
        unit="s",
        description="How long ago a consumer that is behind took something.",
    )
    meter.create_observable_up_down_counter(
        "openmanager.consumer.samples",
        [_of_each(ledger, _fates)],
        unit="{sample}",
        description="What became of the samples that were accepted.",
    )
    meter.create_observable_up_down_counter(
        "openmanager.consumer.status",
        [_of_each(ledger, _states)],
        unit="1",
        description="1 for the state that a consumer is in, 0 for the others.",
    )


def observe_breakers(breakers: Sequence[Breaker]) -> None:
    """Measure which breakers are open."""

    def read(_: CallbackOptions) -> Iterator[Observation]:
        for each in breakers:
            yield Observation(int(each.is_open), {STORE: each.store, OPERATION: each.operation})

    telemetry.meter.create_observable_up_down_counter(
        "openmanager.breaker.open",
        [read],
        unit="1",
        description="1 while calls are kept from a store or a service, 0 else.",
    )


def observe_staleness(read: Callable[[], float | None]) -> None:
    """Measure how long the gateway's copy of hot state has not been kept up."""

    def observe(_: CallbackOptions) -> Iterator[Observation]:
        if (seconds := read()) is not None:
            yield Observation(seconds)

    telemetry.meter.create_observable_gauge(
        "openmanager.hot.staleness",
        [observe],
        unit="s",
        description="For how long nobody has told the gateway of changes of hot state; 0 while somebody does.",
    )


def _of_each(ledger: Books, read: Read) -> Callable[[CallbackOptions], Iterable[Observation]]:
    return lambda _: [found for row in ledger().consumers for found in read(row)]


def _named(row: status_pb2.Consumer) -> dict[str, str]:
    return {CONSUMER: row.name}


def _fates(row: status_pb2.Consumer) -> Iterator[Observation]:
    for fate in ("delivered", "waiting", "dead_lettered", "resynced", "damaged"):
        yield Observation(getattr(row, f"{fate}_sample_count"), {**_named(row), FATE: fate})


def _states(row: status_pb2.Consumer) -> Iterator[Observation]:
    if row.state:  # of one in another process nobody here knows it
        for number, name in STATES.items():
            yield Observation(int(row.state == number), {**_named(row), STATE: name})

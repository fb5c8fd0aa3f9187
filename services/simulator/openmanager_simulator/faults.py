"""The desk where faults are injected, listed and ended: planned by the rules, recorded, and told to the simulation."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace

from openmanager.errors import invalid
from openmanager.runtime.clock import Clock
from openmanager_simulator.fault import Fault, FaultPattern, plan_fault, scheduled_faults
from openmanager_simulator.record_book import RecordBook
from openmanager_simulator.ticker import Ticker

_DAY = 86_400 * 10**9
# No pattern lasts longer, so that this many days before a range hold all faults that reach into it.
_DAYS_BEFORE = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultRequest:
    """What somebody asks for; None means: as the pattern has it."""

    pattern: FaultPattern
    servers: tuple[str, ...]
    start_nanos: int
    end_nanos: int | None
    severity: float | None


class FaultDesk:
    """Injects faults into the running simulation."""

    def __init__(self, *, ticker: Ticker, book: RecordBook, clock: Clock, schedule: bool) -> None:
        self._ticker = ticker
        self._book = book
        self._clock = clock
        self._schedule = schedule

    def inject(self, wanted: FaultRequest, request_id: str, body: bytes) -> Fault:
        """Inject a fault, or return what the same request injected before."""
        earlier = self._book.repeated(request_id, body)
        if earlier is not None:
            return earlier
        known = {server.id for server in self._ticker.fleet}
        strangers = [server for server in wanted.servers if server not in known]
        if strangers:
            raise invalid("fault.servers", f"names {strangers[0]!r}, which is not in the simulated fleet")
        if wanted.end_nanos is not None and wanted.end_nanos <= wanted.start_nanos:
            raise invalid("fault.end_time", "must be after start_time")
        fault = plan_fault(
            id=f"fault-{secrets.token_hex(6)}",
            pattern=wanted.pattern,
            servers=wanted.servers,
            start_nanos=wanted.start_nanos,
            end_nanos=wanted.end_nanos,
            severity=wanted.severity,
            seed=secrets.randbits(62),
        )
        self._book.put(fault, request_id, body)
        return fault

    def between(self, start: int, end: int) -> list[Fault]:
        """Return the faults that reach into [start, end) nanoseconds, newest start first."""
        scheduled: list[Fault] = []
        if self._schedule:
            for day in range(start // _DAY - _DAYS_BEFORE, end // _DAY + 1):
                scheduled += scheduled_faults(self._ticker.settings.seed, self._ticker.fleet, day)
        cleared = {fault.id for fault in self._book.all()}
        faults = [*self._book.all(), *(fault for fault in scheduled if fault.id not in cleared)]
        found = [fault for fault in faults if fault.start_nanos < end and fault.end_nanos > start]
        return sorted(found, key=lambda fault: (-fault.start_nanos, fault.id))

    def clear(self, fault_id: str) -> Fault:
        """End an injected fault now."""
        fault = self._book.get(fault_id)
        now = self._clock.now_nanos()
        self._book.check_going_on(fault, now)
        ended = replace(fault, end_nanos=max(now, fault.start_nanos + 1))
        self._book.put(ended)
        return ended

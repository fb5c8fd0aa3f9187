"""The desk where faults are injected, listed and ended: planned by the rules, recorded, and told to the simulation."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace

from openmanager.errors import FailedPreconditionError, NotFoundError, Reason, invalid
from openmanager.runtime.clock import Clock
from openmanager_simulator.fault import Fault, FaultPattern, plan_fault
from openmanager_simulator.record_book import RecordBook
from openmanager_simulator.schedule import Schedule
from openmanager_simulator.ticker import Ticker


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
        self._scheduled = schedule

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

    def page(self, start: int, end: int, first: int, count: int) -> tuple[list[Fault], int]:
        """Return faults `first` … of those that reach into [start, end) nanoseconds, newest start first, and how many.

        Takes a while for a long range of a large fleet (in a thread).
        """
        told = [fault for fault in self._book.all() if fault.start_nanos < end and fault.end_nanos > start]
        found = [(-fault.start_nanos, fault.id, fault) for fault in told]
        total = len(found)
        schedule = self._schedule()
        if schedule is not None:
            drawn = schedule.between(start, end)
            total += len(drawn)
            newest = (schedule.fault(row) for row in drawn[: first + count])
            found += [(-fault.start_nanos, fault.id, fault) for fault in newest]
        found.sort(key=lambda each: each[:2])
        return [fault for _, _, fault in found[first : first + count]], total

    def clear(self, fault_id: str) -> Fault:
        """End a fault now, whoever made it: what it did so far stays as it was."""
        fault = self._book.get(fault_id)
        schedule = self._schedule()
        if fault is None and schedule is not None:
            fault = schedule.find(fault_id)
        if fault is None:
            raise NotFoundError("there is no such fault", resource=f"fault/{fault_id}")
        now = self._clock.now_nanos()
        if fault.end_nanos <= now:
            raise FailedPreconditionError("the fault is over", reason=Reason.FAULT_ENDED)
        ended = replace(fault, end_nanos=max(now, fault.start_nanos + 1))
        self._book.put(ended)
        return ended

    def _schedule(self) -> Schedule | None:
        if not self._scheduled:
            return None
        cleared = frozenset(fault.id for fault in self._book.all() if fault.origin == "scheduled")
        return Schedule(self._ticker.settings.seed, 0, len(self._ticker.fleet), cleared)

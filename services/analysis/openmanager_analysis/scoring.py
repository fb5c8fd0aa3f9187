"""How good the detector was: what it found, held against the faults that were recorded."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from openmanager_analysis.anomaly import Anomaly

MINUTE = 60 * 10**9
DAY = 24 * 60 * MINUTE
# What is found so long after the end of a fault is still its: servers recover, and a run ends later than its cause.
AFTER_NANOS = 15 * MINUTE
MAX_SERVERS = 5_000
SEVERITIES = (("below 0.4", 0.0, 0.4), ("0.4–0.7", 0.4, 0.7), ("0.7 and above", 0.7, 1.01))
# When a server's headline metric first passed its critical threshold in a range, in nanoseconds; None: never.
Crossing = Callable[[str, int, int], int | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """A fault that was recorded; times in nanoseconds, `severity` in (0, 1]."""

    pattern: str
    servers: tuple[str, ...]
    start_nanos: int
    end_nanos: int
    severity: float

    def explains(self, anomaly: Anomaly) -> bool:
        """Say whether an anomaly is of this fault."""
        return (
            anomaly.server in self.servers
            and anomaly.start_nanos <= self.end_nanos + AFTER_NANOS
            and (anomaly.end_nanos or anomaly.last_nanos) >= self.start_nanos
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """How many of some faults were found, and medians in nanoseconds; None where there is nothing to take it of."""

    name: str
    fault_count: int
    found_count: int
    delay_nanos: float | None
    lead_nanos: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """The score over a range."""

    total: Share
    patterns: tuple[Share, ...]
    severities: tuple[Share, ...]
    false_alarm_rate: float  # a server and day
    precision: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    fault: Fault
    first_nanos: int | None  # of the first alarm in it
    crossing_nanos: int | None


def score(
    faults: Sequence[Fault], anomalies: Sequence[Anomaly], *, crossing: Crossing, server_count: int, range_nanos: int
) -> Score:
    """Return how many of the faults were found, how soon, and how many anomalies nothing explains.

    Recall is by fault and precision by anomaly: adjusting by point would let chance look good.
    """
    found = [_find(fault, anomalies, crossing) for fault in faults]
    right = sum(any(fault.explains(each) for fault in faults) for each in anomalies)
    server_days = server_count * range_nanos / DAY
    patterns = sorted({fault.pattern for fault in faults})
    return Score(
        total=_share("", found),
        patterns=tuple(_share(name, [each for each in found if each.fault.pattern == name]) for name in patterns),
        severities=tuple(
            _share(name, some)
            for name, low, high in SEVERITIES
            if (some := [each for each in found if low <= each.fault.severity < high])
        ),
        false_alarm_rate=(len(anomalies) - right) / server_days if server_days else 0.0,
        precision=right / len(anomalies) if anomalies else None,
    )


def _find(fault: Fault, anomalies: Iterable[Anomaly], crossing: Crossing) -> _Found:
    starts = [max(each.start_nanos, fault.start_nanos) for each in anomalies if fault.explains(each)]
    times = [crossing(server, fault.start_nanos, fault.end_nanos) for server in fault.servers]
    return _Found(
        fault=fault,
        first_nanos=min(starts, default=None),
        crossing_nanos=min((time for time in times if time is not None), default=None),
    )


def _share(name: str, some: Sequence[_Found]) -> Share:
    delays = [each.first_nanos - each.fault.start_nanos for each in some if each.first_nanos is not None]
    leads = [
        each.crossing_nanos - each.first_nanos
        for each in some
        if each.first_nanos is not None and each.crossing_nanos is not None
    ]
    return Share(
        name=name,
        fault_count=len(some),
        found_count=len(delays),
        delay_nanos=statistics.median(delays) if delays else None,
        lead_nanos=statistics.median(leads) if leads else None,
    )

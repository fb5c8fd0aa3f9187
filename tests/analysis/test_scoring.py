"""What was found, held against what was recorded."""

from __future__ import annotations

import pytest
from openmanager_analysis.anomaly import Anomaly
from openmanager_analysis.scoring import DAY, MINUTE, Fault, score


def fault(server: str, start: int, minutes: int, *, pattern: str = "CPU_SPIKE", severity: float = 0.8) -> Fault:
    return Fault(
        pattern=pattern,
        servers=(server,),
        start_nanos=start * MINUTE,
        end_nanos=(start + minutes) * MINUTE,
        severity=severity,
    )


def run(server: str, start: int, minutes: int = 5) -> Anomaly:
    return Anomaly(
        id=f"{server}-{start}",
        server=server,
        environment="",
        start_nanos=start * MINUTE,
        last_nanos=(start + minutes) * MINUTE,
        end_nanos=(start + minutes) * MINUTE,
        score=0.8,
        confidence=1.0,
        blames=(),
        incident_id="",
    )


def scored(faults, anomalies, crossings=()):
    return score(
        faults,
        anomalies,
        crossing=lambda server, *_: dict(crossings).get(server),
        server_count=10,
        range_nanos=DAY,
    )


def test_recall_is_by_fault_and_precision_by_run():
    faults = [fault("a", 100, 30), fault("b", 100, 30, pattern="MEMORY_LEAK", severity=0.3), fault("c", 200, 30)]
    found = scored(faults, [run("a", 110), run("a", 120), run("b", 50), run("d", 110)])

    assert (found.total.fault_count, found.total.found_count) == (3, 1)
    assert found.precision == pytest.approx(0.5)
    assert found.false_alarm_rate == pytest.approx(0.2)
    assert [(each.name, each.fault_count, each.found_count) for each in found.patterns] == [
        ("CPU_SPIKE", 2, 1),
        ("MEMORY_LEAK", 1, 0),
    ]
    assert [(each.name, each.fault_count) for each in found.severities] == [("below 0.4", 1), ("0.7 and above", 2)]


def test_delay_is_from_the_start_of_a_fault_and_lead_to_its_threshold():
    faults = [fault("a", 100, 60), fault("b", 100, 60)]
    found = scored(faults, [run("a", 104), run("b", 110)], {"a": 124 * MINUTE}.items())

    assert found.total.delay_nanos == pytest.approx(7 * MINUTE)
    assert found.total.lead_nanos == pytest.approx(20 * MINUTE)


def test_what_follows_a_fault_within_a_quarter_of_an_hour_is_its():
    faults = [fault("a", 100, 10)]
    assert scored(faults, [run("a", 124)]).precision == pytest.approx(1.0)
    assert scored(faults, [run("a", 126)]).precision == pytest.approx(0.0)


def test_without_a_run_there_is_no_precision():
    found = scored([fault("a", 100, 10)], [])
    assert (found.precision, found.total.delay_nanos, found.total.found_count) == (None, None, 0)

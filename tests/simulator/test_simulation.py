from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openmanager_simulator import season
from openmanager_simulator.catalogue import load_catalogue
from openmanager_simulator.fault import (
    CPU_CAP,
    DURATIONS,
    Fault,
    FaultPattern,
    from_document,
    hits,
    load_scenario,
    plan_fault,
    scheduled_faults,
    to_document,
)
from openmanager_simulator.fleet import make_fleet
from openmanager_simulator.simulation import Simulation, saturated

from openmanager.metric import check_key

SECOND = 10**9
INTERVAL = 10 * SECOND
MONDAY = 1_790_553_600  # 2026-09-28T00:00:00Z
CATALOGUE = load_catalogue()
FLEET = make_fleet(20)
COLUMN = {metric.key: at for at, metric in enumerate(CATALOGUE.metrics)}
SERVER = {server.id: at for at, server in enumerate(FLEET)}


def simulation(**changes) -> Simulation:
    given_ = {"fleet": FLEET, "catalogue": CATALOGUE, "seed": 1, "interval_nanos": INTERVAL, "schedule": False}
    return Simulation(**{**given_, **changes})


def tick(seconds: int) -> int:
    return seconds * SECOND // INTERVAL


def test_a_server_has_exactly_511_metrics_with_canonical_keys():
    assert len(CATALOGUE.metrics) == len(COLUMN) == 511
    for metric in CATALOGUE.metrics:
        check_key(metric.key)
        assert metric.kind in {"gauge", "counter"}
        assert metric.resolution > 0
        assert metric.description.endswith(".")


def test_the_default_fleet_has_the_roles_and_environments_it_should():
    assert [server.environment for server in FLEET].count("onpremise") == 4
    assert [server.role for server in FLEET if server.environment == "kubernetes"] == ["worker", "api", "gateway"]
    assert [server.role for server in FLEET if server.environment == "aws"] == ["web", "database", "cache"]
    assert len({server.id for server in make_fleet(1000)}) == 1000
    assert make_fleet(1000)[:20] == FLEET


@given(st.integers(0, 200), st.integers(1, 70))
@settings(max_examples=15, deadline=None, derandomize=True)
def test_any_window_is_a_part_of_any_larger_one(first: int, count: int):
    start = tick(MONDAY + 9 * 3600)
    whole = simulation().values(start, 280)
    assert np.array_equal(simulation().values(start + first, count), whole[first : first + count])


def test_a_part_of_the_fleet_has_the_values_it_has_in_the_whole():
    start = tick(MONDAY)
    part = simulation(fleet=FLEET[5:8], first_server=5).values(start, 40)
    assert np.array_equal(part, simulation().values(start, 40)[:, 5:8])


def test_another_seed_gives_other_values():
    assert not np.array_equal(simulation().values(tick(MONDAY), 1), simulation(seed=2).values(tick(MONDAY), 1))


def test_every_value_is_finite_in_its_bounds_and_a_multiple_of_its_resolution():
    values = simulation(schedule=True).values(tick(MONDAY + 10 * 3600), 64)
    assert np.isfinite(values).all()
    for at, metric in enumerate(CATALOGUE.metrics):
        column = values[:, :, at]
        assert metric.minimum is None or column.min() >= metric.minimum, metric.key
        assert metric.maximum is None or column.max() <= metric.maximum, metric.key
        steps = column / metric.resolution
        assert np.allclose(steps, np.rint(steps), rtol=1e-9, atol=1e-6), metric.key


def test_the_headline_is_what_the_details_add_up_to():
    values = simulation(schedule=True).values(tick(MONDAY + 10 * 3600), 64)
    idle = values[
        :, :, [at for key, at in COLUMN.items() if key.startswith("system.cpu.utilization") and "idle" in key]
    ]
    assert np.allclose(values[:, :, COLUMN["cpu_usage"]], 100 * (1 - idle.mean(axis=2)), atol=0.01)
    states = values[:, :, [at for key, at in COLUMN.items() if key.startswith("system.memory.usage")]]
    used = values[:, :, COLUMN["system.memory.usage{state=used}"]]
    assert np.allclose(values[:, :, COLUMN["memory_usage"]], 100 * used / states.sum(axis=2), atol=0.01)
    mounts = values[:, :, [at for key, at in COLUMN.items() if key.startswith("system.filesystem.utilization")]]
    assert np.allclose(values[:, :, COLUMN["disk_usage"]], 100 * mounts.max(axis=2), atol=0.01)


def mean_cpu(seconds: int) -> float:
    return float(simulation().values(tick(seconds), 180)[:, :, COLUMN["cpu_usage"]].mean())


def test_days_are_busier_than_nights_and_mondays_than_sundays():
    assert mean_cpu(MONDAY + 10 * 3600) > 2 * mean_cpu(MONDAY + 3 * 3600)
    assert mean_cpu(MONDAY + 15 * 3600) > 1.2 * mean_cpu(MONDAY - 86_400 + 15 * 3600)


@pytest.mark.parametrize(("hour", "factor"), [(10, 1.8), (15, 1.8), (3, 0.4), (23.5, 0.4)])
def test_the_hours_have_their_factors(hour: float, factor: float):
    # A Tuesday in May has no other season.
    assert season.factor(np.array([1_778_544_000 + hour * 3600.0]))[0] == pytest.approx(factor, abs=0.01)


def test_the_integral_of_the_season_is_its_sum():
    seconds = np.arange(MONDAY - 43_200, MONDAY + 3 * 86_400, 60.0)
    steps = np.diff(season.integral(seconds))
    assert (steps > 0).all()
    middles = season.factor(seconds[:-1] + 30.0) * 60.0
    assert steps == pytest.approx(middles, rel=0.01)


def test_memory_and_response_follow_the_processor():
    values = simulation().values(tick(MONDAY + 2 * 3600), 1000)
    at = SERVER["database-aws-01"]
    cpu, memory, response = (values[:, at, COLUMN[name]] for name in ("cpu_usage", "memory_usage", "response_time"))
    assert np.corrcoef(cpu, memory)[0, 1] > 0.3
    busy = simulation().values(tick(MONDAY + 9 * 3600), 500)[:, :, COLUMN["response_time"]].mean()
    assert busy > 1.2 * response.mean()


@pytest.mark.parametrize("start", [MONDAY - 1800, MONDAY + 86_400 - 1800, 1_798_761_600 - 1800])
def test_counters_never_fall_without_a_restart(start: int):
    counters = [at for at, metric in enumerate(CATALOGUE.metrics) if metric.kind == "counter"]
    values = simulation().values(tick(start), 400)[:, :, counters]
    assert np.diff(values, axis=0).min() >= 0


def test_disks_fill_over_weeks():
    at = COLUMN["disk_usage"]
    days = np.stack([simulation().values(tick(MONDAY + day * 86_400), 1)[0, :, at] for day in range(8)])
    assert (np.median(np.diff(days, axis=0), axis=0) > 0).all()


def test_levels_saturate_softly_below_one_hundred():
    found = saturated(np.array([10.0, 70.0, 90.0, 200.0, 1e6]))
    assert found[:2].tolist() == [10.0, 70.0]
    assert np.all(np.diff(found) > 0)
    assert found[-1] < 100


def hit_by(pattern: FaultPattern, server: str = "web-aws-01", **changes) -> tuple[np.ndarray, np.ndarray, Fault]:
    """Return the values of a server through a fault of an hour, and without it."""
    start = (MONDAY + 2 * 3600) * SECOND
    given_ = {"id": "f", "pattern": pattern, "servers": (server,), "start_nanos": start, "seed": 5, "severity": 1.0}
    fault = plan_fault(**{**given_, "end_nanos": start + 3600 * SECOND, **changes})
    span = (tick(MONDAY + 2 * 3600), 420)
    at = SERVER[server]
    return simulation(faults=(fault,)).values(*span)[:, at], simulation().values(*span)[:, at], fault


@pytest.mark.parametrize(
    ("pattern", "metric", "factor"),
    [
        (FaultPattern.MEMORY_LEAK, "memory_usage", 1.4),
        (FaultPattern.CPU_SPIKE, "cpu_usage", 2.0),
        (FaultPattern.DISK_FULL, "disk_usage", 1.2),
        (FaultPattern.CASCADE_FAILURE, "cpu_usage", 2.0),
        (FaultPattern.NETWORK_LATENCY, "response_time", 5.0),
        (FaultPattern.DATABASE_LOCK, "response_time", 8.0),
        (FaultPattern.GRADUAL_DEGRADATION, "cpu_usage", 1.3),
    ],
)
def test_every_pattern_changes_the_metrics_of_whom_it_hits(pattern: FaultPattern, metric: str, factor: float):
    with_fault, without, _ = hit_by(pattern)
    last_quarter = slice(270, 350) if pattern is not FaultPattern.CPU_SPIKE else slice(140, 220)
    assert with_fault[last_quarter, COLUMN[metric]].mean() > factor * without[last_quarter, COLUMN[metric]].mean()
    if pattern is not FaultPattern.MEMORY_LEAK:
        gauges = [at for at, each in enumerate(CATALOGUE.metrics) if each.kind == "gauge"]
        assert np.array_equal(with_fault[365:, gauges], without[365:, gauges])


def test_a_fault_shows_in_the_detailed_metrics_and_within_its_cap():
    with_fault, without, _ = hit_by(FaultPattern.CPU_SPIKE)
    idle = COLUMN["system.cpu.utilization{cpu=3,state=idle}"]
    assert with_fault[180, idle] < without[180, idle] - 0.2
    rise = with_fault[:, COLUMN["cpu_usage"]] - without[:, COLUMN["cpu_usage"]]
    assert rise.max() <= CPU_CAP + 0.02


def test_a_disk_that_fills_troubles_the_processor_after_seven_tenths():
    with_fault, without, _ = hit_by(FaultPattern.DISK_FULL)
    rise = with_fault[:, COLUMN["cpu_usage"]] - without[:, COLUMN["cpu_usage"]]
    assert rise[:240].max() < 0.05
    assert rise[345:359].mean() > 5


def test_a_leak_ends_in_a_restart_of_processes_only():
    with_fault, without, _ = hit_by(FaultPattern.MEMORY_LEAK)
    process, host = COLUMN["process.cpu.time{process=app}"], COLUMN["system.cpu.time{cpu=0,state=user}"]
    assert with_fault[361, process] < 100 < without[361, process]
    assert np.diff(with_fault[:, host]).min() >= 0
    assert np.diff(with_fault[:, process])[:359].min() >= 0


def test_network_trouble_counts_retransmits():
    with_fault, without, _ = hit_by(FaultPattern.NETWORK_LATENCY)
    at = COLUMN["system.network.retransmits"]
    assert with_fault[-1, at] - without[-1, at] == pytest.approx(60 * 3600, rel=0.01)


def test_a_cascade_spreads_weaker_and_later_from_its_root():
    reached = 0
    for seed in range(20):
        fault = plan_fault(
            id="c", pattern=FaultPattern.CASCADE_FAILURE, servers=("database-onpremise-01",), start_nanos=0, seed=seed
        )
        found = hits(fault, FLEET)
        assert found == hits(fault, FLEET)
        assert (found[0].server, found[0].start_nanos, found[0].severity) == ("database-onpremise-01", 0, 0.8)
        for hit in found[1:]:
            reached += 1
            hops = round(np.log(hit.severity / 0.8) / np.log(0.6))
            assert 3 * 60 * hops <= hit.start_nanos / SECOND <= 8 * 60 * hops
            assert FLEET[SERVER[hit.server]].environment == "onpremise"
    assert 20 <= reached <= 50


@pytest.mark.parametrize("day", range(20_000, 20_010))
def test_a_day_has_two_to_nine_faults_for_twenty_servers(day: int):
    found = scheduled_faults(1, FLEET, day)
    assert 2 <= len(found) <= 9
    assert found == scheduled_faults(1, FLEET, day)
    for fault in found:
        minutes = (fault.end_nanos - fault.start_nanos) / SECOND / 60
        low, high = DURATIONS[fault.pattern]
        assert low <= minutes <= high
        assert 0 < fault.severity <= 1
        assert fault.start_nanos // SECOND // 86_400 == day


def test_a_record_gives_its_fault_back():
    fault = scheduled_faults(1, FLEET, 20_000)[0]
    assert from_document(json.loads(json.dumps(to_document(fault)))) == fault


def test_a_scenario_is_replayed_exactly(tmp_path: Path):
    file = tmp_path / "faults.json"
    file.write_text(
        json.dumps(
            [{"pattern": "cpu_spike", "servers": ["web-aws-01"], "start": MONDAY, "end": MONDAY + 600, "severity": 1}]
        )
    )
    first, second = load_scenario(file), load_scenario(file)
    assert first == second
    at = SERVER["web-aws-01"], COLUMN["cpu_usage"]
    spiked = simulation(faults=first).values(tick(MONDAY + 300), 1)[0][at]
    assert spiked > simulation().values(tick(MONDAY + 300), 1)[0][at] + 30


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("{", "is not a JSON file"),
        ("{}", "is not a list"),
        ('[{"pattern": "cpu_spike"}]', "fault 0 must have pattern, servers and start"),
        ('[{"pattern": "x", "servers": ["a"], "start": 1}]', "unknown pattern 'x'"),
        ('[{"pattern": "cpu_spike", "servers": [], "start": 1}]', "servers must be"),
        ('[{"pattern": "cpu_spike", "servers": ["a"], "start": "now"}]', "start must be seconds"),
        ('[{"pattern": "cpu_spike", "servers": ["a"], "start": 2, "end": 1}]', "end must be after start"),
        ('[{"pattern": "cpu_spike", "servers": ["a"], "start": 1, "severity": 2}]', "severity must be"),
        ('[{"pattern": "cpu_spike", "servers": ["a"], "start": 1, "colour": 2}]', "fault 0 must have"),
    ],
)
def test_a_wrong_scenario_names_its_entry(tmp_path: Path, content: str, text: str):
    file = tmp_path / "faults.json"
    file.write_text(content)
    with pytest.raises(ValueError, match=text):
        load_scenario(file)

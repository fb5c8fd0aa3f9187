from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openmanager_simulator import season
from openmanager_simulator.catalogue import load_catalogue
from openmanager_simulator.fault import (
    CPU_CAP,
    DISK_CAP,
    DURATIONS,
    MEMORY_CAP,
    Fault,
    FaultPattern,
    hits,
    plan_fault,
    retransmits,
)
from openmanager_simulator.fault_record import from_document, load_scenario, to_document
from openmanager_simulator.fleet import index_of, make_fleet
from openmanager_simulator.schedule import DAY, ERA_DAYS, Schedule
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
    assert [index_of(server.id) for server in make_fleet(1000)] == list(range(1000))
    for stranger in ("", "web", "web-aws-0", "web-aws-1", "web-mars-01", "web-aws-99999999999", "web-aws-٣"):
        assert index_of(stranger) is None


@given(st.integers(0, 200), st.integers(1, 70))
@settings(max_examples=15)
def test_any_window_is_a_part_of_any_larger_one(first: int, count: int):
    start = tick(MONDAY + 9 * 3600)
    whole = simulation().values(start, 280)
    assert np.array_equal(simulation().values(start + first, count), whole[first : first + count])


def test_a_part_of_the_fleet_has_the_values_it_has_in_the_whole():
    start = tick(MONDAY)
    part = simulation(fleet=FLEET[5:8], first_server=5).values(start, 40)
    assert np.array_equal(part, simulation().values(start, 40)[:, 5:8])


def test_a_part_of_a_large_fleet_has_the_same_faults_too():
    whole = simulation(fleet=make_fleet(60), schedule=True)
    part = simulation(fleet=make_fleet(60)[30:50], first_server=30, schedule=True)
    small = simulation(schedule=True)
    start = tick(MONDAY + 7 * 3600)
    for at in range(start, start + 3 * 8640, 2000):
        values = whole.values(at, 2)
        assert np.array_equal(part.values(at, 2), values[:, 30:50])
        assert np.array_equal(small.values(at, 2), values[:, :20])


@pytest.mark.parametrize("noise", ["normal", "table"])
def test_another_seed_is_not_the_first_one_moved(noise: str):
    at = tick(MONDAY)
    first, second = (simulation(seed=seed, noise=noise).values(at, 200)[:, 0, 0] for seed in (1, 2))
    for shift in range(1, 100):
        assert not np.array_equal(first[shift:150], second[: 150 - shift])


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


def test_the_states_of_a_core_make_up_its_whole_time():
    values = simulation(schedule=True).values(tick(MONDAY + 9 * 3600), 640)
    for core in range(16):
        shares = values[
            :, :, [at for key, at in COLUMN.items() if key.startswith(f"system.cpu.utilization{{cpu={core},")]
        ]
        assert shares.sum(axis=2) == pytest.approx(1.0, abs=1e-9)
        seconds = values[:, :, [at for key, at in COLUMN.items() if key.startswith(f"system.cpu.time{{cpu={core},")]]
        assert np.diff(seconds.sum(axis=2), axis=0) == pytest.approx(10.0, abs=1e-6)


def test_counters_fall_only_where_a_leak_has_ended_however_long_ago_faults_were():
    counters = [at for at, metric in enumerate(CATALOGUE.metrics) if metric.kind == "counter"]
    resets = np.asarray([CATALOGUE.metrics[at].resets for at in counters])
    busy = simulation(schedule=True)
    # Two hours apart, over a border of eras.
    times = np.arange(ERA_DAYS * 323 * 86_400 - 12 * 86_400, ERA_DAYS * 323 * 86_400 + 12 * 86_400, 7200)
    values = np.concatenate([busy.values(tick(int(time)), 1)[:, :, counters] for time in times])
    falls = np.diff(values, axis=0) < 0
    assert not falls[:, :, ~resets].any()
    schedule = Schedule(1, 0, 20)
    drawn = schedule.between(int(times[0]) * SECOND, int(times[-1]) * SECOND)
    leaks = [fault for row in drawn if (fault := schedule.fault(row)).pattern is FaultPattern.MEMORY_LEAK]
    ended = np.zeros(falls.shape[:2], bool)
    for fault in leaks:
        at = np.searchsorted(times, fault.end_nanos / SECOND) - 1
        if 0 <= at < len(ended):
            ended[at, SERVER[fault.servers[0]]] = True
    assert np.array_equal(falls[:, :, resets].any(axis=2), ended)
    assert ended.sum() > 8


@pytest.mark.parametrize("start", [946_684_800, 4_102_444_800 - 600])
@pytest.mark.parametrize("interval", [10, 3600])
def test_the_first_and_the_last_year_have_values_too(start: int, interval: int):
    found = simulation(interval_nanos=interval * SECOND).values(start // interval, 2)
    assert np.isfinite(found).all()


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


def test_a_cascade_spreads_weaker_and_later_from_its_root_and_names_whom_it_hits():
    reached = 0
    for seed in range(20):
        fault = plan_fault(
            id="c", pattern=FaultPattern.CASCADE_FAILURE, servers=("database-onpremise-01",), start_nanos=0, seed=seed
        )
        found = hits(fault)
        assert found == hits(fault)
        assert fault.servers == tuple(hit.server for hit in found)
        assert fault.root == found[0].server == "database-onpremise-01"
        assert (found[0].start_nanos, found[0].severity) == (0, 0.8)
        for hit in found[1:]:
            reached += 1
            hops = round(np.log(hit.severity / 0.8) / np.log(0.6))
            assert 3 * 60 * hops <= hit.start_nanos / SECOND <= 8 * 60 * hops
            assert FLEET[SERVER[hit.server]].role in {"database", "web", "api"}
    assert 100 <= reached <= 200


def test_a_cascade_stays_in_its_group_of_a_large_fleet():
    fault = plan_fault(
        id="c", pattern=FaultPattern.CASCADE_FAILURE, servers=("database-onpremise-40",), start_nanos=0, seed=1
    )
    assert {index_of(server) // 20 for server in fault.servers} == {39}


def test_overlapping_faults_stay_within_the_caps():
    start = (MONDAY + 3 * 3600) * SECOND

    def several(pattern: FaultPattern) -> list[Fault]:
        given_ = {"pattern": pattern, "servers": ("web-aws-01",), "start_nanos": start, "seed": 5, "severity": 1.0}
        return [plan_fault(id=f"f{at}", end_nanos=start + 3600 * SECOND, **given_) for at in range(4)]

    span = (tick(MONDAY + 3 * 3600), 355)
    without = simulation().values(*span)[:, SERVER["web-aws-01"]]
    for pattern, metric, cap in (
        (FaultPattern.MEMORY_LEAK, "memory_usage", MEMORY_CAP),
        (FaultPattern.DISK_FULL, "disk_usage", DISK_CAP),
    ):
        hit = simulation(faults=several(pattern)).values(*span)[:, SERVER["web-aws-01"]]
        assert (hit - without)[:, COLUMN[metric]].max() <= cap * 1.1


def test_a_cleared_fault_did_before_what_it_did():
    _, _, fault = hit_by(FaultPattern.MEMORY_LEAK)
    half = replace(fault, end_nanos=fault.start_nanos + 1800 * SECOND)
    span = (tick(MONDAY + 2 * 3600), 420)
    whole, cut, without = (
        simulation(faults=faults).values(*span)[:, SERVER["web-aws-01"]] for faults in ([fault], [half], [])
    )
    assert np.array_equal(cut[:180], whole[:180])
    gauges = [at for at, each in enumerate(CATALOGUE.metrics) if each.kind == "gauge"]
    assert np.array_equal(cut[180:, gauges], without[180:, gauges])
    assert cut[181, COLUMN["process.uptime{process=app}"]] < 100


def test_a_fault_that_is_told_while_a_block_is_made_is_in_the_next_one():
    start = (MONDAY + 2 * 3600) * SECOND
    fault = plan_fault(
        id="f", pattern=FaultPattern.DATABASE_LOCK, servers=("web-aws-01",), start_nanos=start, seed=5, severity=1.0
    )
    at = tick(MONDAY + 2 * 3600 + 600)
    found = simulation()
    read = found._sensors.read

    def tell_meanwhile(*args, **given_):
        found._sensors.read = read
        found.set_faults([fault])
        return read(*args, **given_)

    found._sensors.read = tell_meanwhile
    found.values(at, 1)
    assert np.array_equal(found.values(at, 1), simulation(faults=[fault]).values(at, 1))


@pytest.mark.parametrize("day", range(20_000, 20_010))
def test_a_day_has_two_to_nine_faults_for_twenty_servers(day: int):
    schedule = Schedule(1, 0, 20)
    found = [schedule.fault(row) for row in schedule.between(day * DAY, (day + 1) * DAY) if row["day"] == day]
    assert 2 <= len(found) <= 9
    for fault in found:
        minutes = (fault.end_nanos - fault.start_nanos) / SECOND / 60
        low, high = DURATIONS[fault.pattern]
        assert low <= minutes <= high
        assert 0.3 <= fault.severity <= 1
        assert fault.start_nanos // SECOND // 86_400 == day
        assert schedule.find(fault.id) == fault
    assert [fault.start_nanos for fault in found] == sorted((fault.start_nanos for fault in found), reverse=True)


def test_what_was_cleared_is_no_more_in_the_schedule():
    schedule = Schedule(1, 0, 20)
    rows = schedule.between(20_000 * DAY, 20_001 * DAY)
    gone = schedule.fault(rows[1])
    rest = Schedule(1, 0, 20, frozenset({gone.id, "scheduled-2-0-0-0", "nonsense"}))
    assert [rest.fault(row).id for row in rest.between(20_000 * DAY, 20_001 * DAY)] == [
        schedule.fault(row).id for row in rows if schedule.fault(row).id != gone.id
    ]
    assert rest.find(gone.id) is None


@pytest.mark.parametrize("fault_id", ["", "x", "scheduled-1-0-20000", "scheduled-1-9-20000-0", "scheduled-2-0-20000-0"])
def test_an_id_of_another_schedule_is_not_found(fault_id: str):
    assert Schedule(1, 0, 20).find(fault_id) is None


def test_what_is_left_of_the_past_is_what_its_faults_left():
    schedule = Schedule(3, 20, 20)
    now = 20_500 * DAY + 7 * 3600 * SECOND
    found = schedule.past(now)
    faults = [schedule.fault(row) for row in schedule.between(18_262 // ERA_DAYS * ERA_DAYS * DAY, now)]
    over = [hit for fault in faults if fault.end_nanos <= now for hit in hits(fault)]
    trouble, restart = np.zeros(20), np.zeros(20, np.int64)
    for hit in over:
        at = index_of(hit.server) - 20
        trouble[at] += retransmits(hit, np.asarray([now]))[0]
        if hit.pattern is FaultPattern.MEMORY_LEAK:
            restart[at] = max(restart[at], hit.end_nanos)
    assert found.trouble == pytest.approx(trouble)
    assert np.array_equal(found.restart, restart)
    assert schedule.past(now - 100 * DAY).trouble.sum() < found.trouble.sum()
    assert np.array_equal(schedule.past(now).trouble, found.trouble)


def test_a_record_gives_its_fault_back():
    schedule = Schedule(1, 0, 20)
    for row in schedule.between(20_000 * DAY, 20_003 * DAY):
        fault = schedule.fault(row)
        assert from_document(json.loads(json.dumps(to_document(fault)))) == fault


@pytest.mark.parametrize(
    "change",
    [
        {"servers": []},
        {"servers": None},
        {"pattern": "colour"},
        {"start_nanos": "x"},
        {"end_nanos": "1"},
        {"severity": 0},
        {"severity": "nan"},
        {"seed": "-1"},
        {"seed": None},
        {"end_nanos": float("inf")},
    ],
)
def test_what_is_no_record_is_refused(change: dict):
    document = to_document(
        plan_fault(id="f", pattern=FaultPattern.CPU_SPIKE, servers=("a",), start_nanos=DAY * 20_000, seed=1)
    )
    with pytest.raises(ValueError, match=r"no record|not a valid|invalid literal"):
        from_document({**document, **change})


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
        ('[{"pattern": "cpu_spike", "servers": ["web-aws-01"], "start": "now"}]', "start must be seconds"),
        ('[{"pattern": "cpu_spike", "servers": ["web-aws-01"], "start": 2e9, "end": 1e9}]', "end must be after start"),
        ('[{"pattern": "cpu_spike", "servers": ["web-aws-01"], "start": 1, "severity": 2}]', "severity must be"),
        ('[{"pattern": "cpu_spike", "servers": ["a"], "start": 1, "colour": 2}]', "fault 0 must have"),
        (
            '[{"pattern": "cpu_spike", "servers": ["nobody-01"], "start": 1}]',
            "no simulated server is named 'nobody-01'",
        ),
        ('[{"pattern": "cpu_spike", "servers": ["web-aws-01"], "start": Infinity}]', "start must be seconds"),
        ('[{"pattern": "cpu_spike", "servers": ["web-aws-01"], "start": 1e9, "seed": null}]', "seed must be"),
        ('[{"pattern": "cpu_spike", "servers": ["web-aws-01"], "start": 1e9, "seed": -1}]', "seed must be"),
    ],
)
def test_a_wrong_scenario_names_its_entry(tmp_path: Path, content: str, text: str):
    file = tmp_path / "faults.json"
    file.write_text(content)
    with pytest.raises(ValueError, match=text):
        load_scenario(file)


@pytest.mark.parametrize(
    ("noise", "digest"),
    [
        ("normal", "16a6c5c7d89da6213e71bf404052e3f6ec4d5731120586d57eb1e041198b0f1d"),
        ("table", "53558d05d4182464f620bb1da67e4c8ee0e0138071e2029ff4ac774d1cf15fea"),
    ],
)
def test_the_values_of_a_seed_are_what_they_were(noise: str, digest: str):
    values = simulation(schedule=True, noise=noise).values(tick(MONDAY + 9 * 3600), 100)
    assert hashlib.sha256(values.astype("<f8").tobytes()).hexdigest() == digest


@pytest.mark.parametrize("noise", ["normal", "table"])
@pytest.mark.parametrize(("first", "count"), [(0, 700), (-40, 333), (5, 1)])
def test_pieces_are_the_same_values_server_by_server(noise: str, first: int, count: int):
    start = (MONDAY + 2 * 3600) * SECOND
    faults = [
        plan_fault(
            id=f"{pattern}{at}",
            pattern=pattern,
            servers=("web-aws-01", "database-aws-01"),
            start_nanos=start + at * 2400 * SECOND,
            end_nanos=start + at * 2400 * SECOND + 3000 * SECOND,
            seed=at + 7,
            severity=0.77,
        )
        for at, pattern in enumerate([*FaultPattern, *FaultPattern], -7)
    ]
    made = simulation(schedule=True, noise=noise, faults=faults)
    first += tick(MONDAY + 2 * 3600)
    whole = made.values(first, count)
    found = np.full(whole.shape, np.nan)
    for piece in made.pieces(first, count):
        at = piece.tick - first
        found[at : at + len(piece.gauges), piece.server] = np.hstack((piece.gauges, piece.counts))
    assert found.tobytes() == whole.tobytes()

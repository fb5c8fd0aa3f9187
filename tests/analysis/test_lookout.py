"""The lookout: which servers of a fleet it finds, which metrics it blames, and that its state is all there is to it."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from openmanager_analysis.lookout import Lookout
from openmanager_analysis.peer import Peers

START = 1_790_000_000_000 // 86_400_000 * 86_400_000
STEP = 300_000
DAY = 86_400_000 // STEP
METRICS = (
    "cpu_usage",
    "memory_usage",
    *(f'system.cpu.utilization{{cpu="{core}",state="user"}}' for core in range(4)),
    *(f'system.memory.usage{{state="{state}"}}' for state in ("used", "free")),
    "system.disk.io",
    "response_time",
)
COUNTERS = tuple(metric == "system.disk.io" for metric in METRICS)
CPU, MEMORY = [0, 2, 3, 4, 5], [1, 6, 7]
DAYS = 2


def fleet(servers: int, *, ticks: int = DAYS * DAY, seed: int = 1) -> np.ndarray:
    """Values of a fleet with busy noons, float64[ticks, servers, metrics]: two levels of a server move its metrics."""
    random = np.random.default_rng(seed)
    load = 1 + 0.6 * np.sin(np.arange(ticks) / DAY * 2 * np.pi)[:, None]
    cpu = 25 * load * np.exp(0.1 * slow(random, ticks, servers))
    memory = 45 + 1.5 * slow(random, ticks, servers)
    values = np.empty((ticks, servers, len(METRICS)))
    values[:, :, CPU] = cpu[:, :, None]
    values[:, :, 1] = memory
    values[:, :, 6] = 0.16 * memory
    values[:, :, 7] = 16 - 0.16 * memory
    values[:, :, 8] = 1000 * load
    values[:, :, 9] = 30 * np.exp(0.1 * slow(random, ticks, servers))
    values *= 1 + 0.02 * random.standard_normal(values.shape)
    values[:, :, 8] = np.cumsum(values[:, :, 8], axis=0)
    return values


def slow(random: np.random.Generator, ticks: int, servers: int) -> np.ndarray:
    noise = random.standard_normal((ticks, servers))
    for tick in range(1, ticks):
        noise[tick] = 0.9 * noise[tick - 1] + 0.436 * noise[tick]
    return noise


def series(servers: int, first: int = 0) -> list[tuple[str, str]]:
    return [(f"web-{server:02}", metric) for server in range(first, first + servers) for metric in METRICS]


def watching(servers: int) -> Lookout:
    lookout = Lookout()
    lookout.watch(series(servers), COUNTERS * servers)
    return lookout


def copied(lookout: Lookout) -> dict[str, np.ndarray]:
    return copy.deepcopy(lookout.arrays())


def same(one: Lookout, other: Lookout) -> bool:
    return all(
        np.array_equal(array, other.arrays()[name], equal_nan=array.dtype.kind == "f")
        for name, array in one.arrays().items()
    )


def watch(lookout: Lookout, values: np.ndarray, first: int = 0):
    """The findings of each tick."""
    return [lookout.look(START + (first + tick) * STEP, row.ravel()) for tick, row in enumerate(values)]


def alarmed(findings) -> set[str]:
    return {each.server for found in findings for each in found if each.alarming}


def with_fault(values: np.ndarray, server: int, metrics: list[int], at: slice, factor: float) -> np.ndarray:
    changed = values.copy()
    changed[at, server, metrics] *= factor
    return changed


FAULT = slice(2 * DAY - 48, 2 * DAY - 12)


def test_a_server_with_a_fault_alarms_alone_within_half_an_hour_and_the_moved_metrics_are_blamed():
    findings = watch(watching(8), with_fault(fleet(8), 3, CPU, FAULT, 3.0))
    assert alarmed(findings[DAY:]) == {"web-03"}

    (first, *_) = [tick for tick, found in enumerate(findings[DAY:], DAY) if any(each.alarming for each in found)]
    assert FAULT.start <= first <= FAULT.start + 6
    (finding,) = findings[first + 2]
    assert {blame.metric for blame in finding.blames} <= {METRICS[place] for place in CPU}
    assert "cpu_usage" in {blame.metric for blame in finding.blames}
    assert [blame.score for blame in finding.blames] == sorted((each.score for each in finding.blames), reverse=True)
    assert all(blame.value > blame.high for blame in finding.blames)


def test_what_the_whole_fleet_does_is_no_fault():
    values = fleet(8)
    values[FAULT][:, :, CPU] *= 3.0
    assert alarmed(watch(watching(8), values)[DAY:]) == set()


def test_a_burst_is_no_fault_however_high():
    values = fleet(8)
    for begin in range(DAY, 2 * DAY, 31):
        values[begin, begin % 8, CPU] *= 3.5
    assert alarmed(watch(watching(8), values)[DAY:]) == set()


def test_a_slow_drift_is_found_before_it_is_over():
    values = fleet(8)
    drift = slice(2 * DAY - 72, 2 * DAY)
    values[drift, 5, 1] *= np.linspace(1, 2, 72)
    values[drift, 5, 6] *= np.linspace(1, 2, 72)
    findings = watch(watching(8), values)
    assert alarmed(findings[DAY:]) == {"web-05"}
    assert alarmed(findings[DAY : 2 * DAY - 24]) == {"web-05"}


@pytest.mark.parametrize("servers", [1, 3])
def test_servers_without_peers_are_held_against_their_own_past(servers):
    values = with_fault(fleet(servers, ticks=4 * DAY), 0, MEMORY[:2], slice(4 * DAY - 24, 4 * DAY), 1.7)
    findings = watch(watching(servers), values)
    assert alarmed(findings[2 * DAY : -24]) == set()
    assert alarmed(findings[-24:]) == {"web-00"}


def test_a_new_level_becomes_normal_within_two_days():
    values = with_fault(fleet(6, ticks=4 * DAY), 2, MEMORY[:2], slice(2 * DAY, 4 * DAY), 1.6)
    findings = watch(watching(6), values)
    assert alarmed(findings[2 * DAY : 3 * DAY]) == {"web-02"}
    assert alarmed(findings[-DAY:]) == set()


def test_missing_values_are_nothing():
    values = with_fault(fleet(8), 3, CPU, FAULT, 3.0)
    values[DAY::7, 1] = np.nan
    values[DAY + 40 : DAY + 80, 4] = np.nan
    values[:, 6, 9] = np.nan
    findings = watch(watching(8), values)
    assert alarmed(findings[DAY:]) == {"web-03"}


def test_a_server_that_has_gone_is_not_found():
    values = with_fault(fleet(8), 3, CPU, FAULT, 3.0)
    values[FAULT.start + 10 :, 3] = np.nan
    findings = watch(watching(8), values)
    assert "web-03" in alarmed(findings[FAULT])
    assert findings[FAULT.start + 10 : FAULT.stop] == [[]] * (FAULT.stop - FAULT.start - 10)


def test_a_stored_lookout_goes_on_as_if_nothing_had_happened():
    values = with_fault(fleet(6), 3, CPU, FAULT, 3.0)
    lookout = watching(6)
    watch(lookout, values[: FAULT.start + 8])
    again = Lookout.from_arrays(copied(lookout), series(6), COUNTERS * 6)
    rest = values[FAULT.start + 8 :]
    expected = watch(lookout, rest, FAULT.start + 8)
    assert expected == watch(again, rest, FAULT.start + 8)
    assert alarmed(expected) == {"web-03"}
    assert same(lookout, again)


def test_a_lookout_of_nothing_is_stored_as_nothing_and_a_damaged_one_refused():
    assert Lookout().arrays() == {}
    assert Lookout.from_arrays({}, [], []).look(START, np.empty(0)) == []
    lookout = watching(6)
    watch(lookout, fleet(6, ticks=3))
    with pytest.raises(ValueError, match="other series"):
        Lookout.from_arrays(copied(lookout), series(5), COUNTERS * 5)
    damaged = copied(lookout)
    del damaged["peers." + Peers.STATE[0]]
    with pytest.raises(ValueError, match="damaged"):
        Lookout.from_arrays(damaged, series(6), COUNTERS * 6)


def test_servers_that_come_later_change_nothing_for_the_others_and_are_watched_too():
    values = fleet(9, ticks=3 * DAY)
    values[2 * DAY + 200 : 2 * DAY + 224, 8][:, CPU] *= 3.0
    grown = watching(6)
    findings = watch(grown, values[:DAY, :6])
    grown.watch(series(9), COUNTERS * 9)
    findings += watch(grown, values[DAY:], DAY)
    assert alarmed(findings[DAY // 2 :]) == {"web-08"}
    assert same(grown, Lookout.from_arrays(copied(grown), series(9), COUNTERS * 9))


def test_servers_may_have_metrics_that_no_other_has():
    values = fleet(8)
    lookout = Lookout()
    own = [("web-03", "queue.length"), ("db-01", "locks")]
    lookout.watch([*series(8), *own], [*(COUNTERS * 8), False, False])
    random = np.random.default_rng(5)
    more = 20 + random.standard_normal((len(values), 2))
    more[FAULT, 1] += 60
    rows = np.concatenate([values.reshape(len(values), -1), more], axis=1)
    assert alarmed(watch(lookout, rows)[DAY:]) == {"db-01"}


def test_the_server_that_is_about_to_alarm_is_the_likeliest_and_is_told_before_it_does():
    values = fleet(8)
    drift = slice(2 * DAY - 72, 2 * DAY)
    values[drift, 5, 1] *= np.linspace(1, 2, 72)
    values[drift, 5, 6] *= np.linspace(1, 2, 72)
    lookout = watching(8)
    risks = []
    for tick, row in enumerate(values):
        found = lookout.look(START + tick * STEP, row.ravel())
        if tick > drift.start and any(each.alarming for each in found):
            break
        risks.append(lookout.risks())

    assert [len(each) for each in risks[-1]] == [2] * 8
    server, chances = risks[-1][0]
    assert server == "web-05"
    assert (np.diff(chances) >= 0).all()
    assert chances[2] > 0.3
    usual = np.median([dict(each)["web-05"][0] for each in risks[DAY : drift.start]])
    assert usual < 0.01 < chances[0]


def test_a_clock_that_was_ahead_and_is_put_back_makes_nothing_unusual():
    values = fleet(4, ticks=DAY + 40)
    lookout = watching(4)
    watch(lookout, values[:DAY])
    for tick in range(DAY, DAY + 40):  # it is yesterday again, at the same hour
        assert lookout.look(START + (tick - DAY) * STEP, values[tick].reshape(-1)) == []

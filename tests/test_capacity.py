"""The model of `openmanager plan`: that it agrees with what was measured, and how it refuses and grows."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from openmanager import capacity, price
from openmanager.capacity import RETENTION, Plan, Workload, used
from openmanager.errors import InvalidArgumentError
from openmanager.unit_cost import MEASURED

DOC = (Path(__file__).parent.parent / "docs" / "capacity.md").read_text(encoding="utf-8")
PRICES = price.read(price.defaults())
LARGE = replace(PRICES, machine=price.parse_machine("32:256GiB:20TiB:900"))
CLOSE = 0.25


def planned(servers: int = 20, **options) -> Plan:
    return capacity.plan(Workload(servers=servers, **options), LARGE)


def rows(heading: str) -> list[list[str]]:
    """Return the cells of the first table below a heading of the page."""
    table = DOC.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in table.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def figure(text: str) -> float:
    found = re.match(r"[\d,.]+", text)
    assert found, text
    return float(found[0].replace(",", ""))


# ── against measured points ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("row", rows("Measured points"), ids=lambda row: " ".join(row[:2]))
def test_the_model_is_within_a_quarter_of_what_was_measured_of_a_mesh(row):
    part, servers, cpu, memory = row[0], int(figure(row[1])), figure(row[2]) / 100, figure(row[3]) * 2**20
    unit = MEASURED.processes[part]
    cores, size = used(part, unit, Workload(servers=servers))
    assert unit.idle_cores.value + cores == pytest.approx(cpu, rel=CLOSE)
    if part != "analysis":  # the page's is what it takes between two times that it stores
        assert unit.idle_memory.value + size == pytest.approx(memory, rel=CLOSE)


def test_the_model_is_within_a_quarter_of_half_an_hour_of_history():
    """docs/performance.md: 6.8 % of a core and 0.61 GiB at 1,000 × 511, nobody reading."""
    part = next(part for part in planned(1000).parts if part.name == "timeseries")
    assert part.cores == pytest.approx(0.068, rel=CLOSE)
    assert part.memory_bytes - 128 * 2**20 == pytest.approx(0.61 * 2**30, rel=CLOSE)


def test_the_model_is_within_a_quarter_of_the_disk_that_a_year_took():
    """docs/performance.md: the 5 m tier of 90 days 2.3 GiB, the 1 h tier of a year 1.0 GiB, in 354,296,740 buckets."""
    tiers = {tier.name: tier for tier in planned(retention={"1h": timedelta(days=365)}).tiers}
    assert tiers["5m"].disk_bytes == pytest.approx(2.3 * 2**30, rel=CLOSE)
    assert tiers["1h"].disk_bytes == pytest.approx(1.0 * 2**30, rel=CLOSE)
    assert tiers["5m"].rows + tiers["1h"].rows == pytest.approx(354_296_740, rel=0.001)


def test_the_tiers_of_the_standard_series_take_what_was_measured_of_a_sample():
    """docs/performance.md: 0.29 B a sample."""
    costs = MEASURED.row_bytes
    assert costs["5m"].value / 30 + costs["1h"].value / 360 == pytest.approx(0.29, rel=CLOSE)


def test_a_hot_server_takes_what_was_measured_in_redis():
    """docs/performance.md: 4.20 KiB."""
    assert MEASURED.hot_bytes.value * 511 == pytest.approx(4.20 * 2**10, rel=CLOSE)


def test_the_traffic_of_a_mesh_is_what_was_counted_on_its_loopback():
    """docs/capacity.md: 42.2 bytes a sample at 1,000 × 511; the way to Redis is a Unix socket there."""
    made = planned(1000)
    counted = sum(flow.bytes_per_second for flow in made.flows if flow.target != "redis") / made.workload.rate
    assert counted == pytest.approx(42.2, rel=CLOSE)


def test_the_standard_fleet_costs_what_the_report_says():
    made = capacity.plan(Workload(servers=20), PRICES)
    assert (made.machines, made.self_hosted_month, made.managed_month) == (1, 30.0, pytest.approx(95.0))
    assert made.saved == pytest.approx(0.68, abs=0.005)


# ── growth ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_more_is_never_less():
    for growing in (
        [planned(servers) for servers in (1, 20, 1000, 20_000, 1_000_000)],
        [planned(1000, metrics=metrics) for metrics in (1, 100, 511, 5000)],
        [planned(1000, interval=timedelta(seconds=seconds)) for seconds in (3600, 60, 10, 1)],
        [planned(1000, retention={"raw": timedelta(days=days)}) for days in (1, 14, 365)],
    ):
        for figures in (
            [made.cores for made in growing],
            [made.memory_bytes for made in growing],
            [made.disk_bytes for made in growing],
            [float(made.machines) for made in growing],
        ):
            assert figures == sorted(figures)


def test_a_shard_bears_what_one_core_bears_with_its_headroom():
    made = planned(1_000_000)
    for part in made.parts:
        if MEASURED.processes[part.name].scales != "single":
            assert part.cores / part.processes <= 0.5
    assert made.shards > 100


def test_what_a_shard_has_to_be_allowed_is_said():
    assert planned(20).settings == {}
    made = planned(20_000)
    assert made.settings["timeseries.max_series"] == math.ceil(made.workload.series / made.shards)
    assert made.settings["timeseries.log_max_size"] > capacity.LOG_MAX_SIZE


def test_what_comes_less_often_than_a_bucket_has_no_more_buckets_than_samples():
    made = planned(1, metrics=1, interval=timedelta(hours=1))
    assert {tier.name: tier.rows for tier in made.tiers} == {
        name: kept / timedelta(hours=1) for name, kept in RETENTION.items()
    }


def test_an_engine_takes_its_own_beside_ours():
    made, without = planned(1000, engine="victoriametrics"), planned(1000)
    assert made.cores > without.cores
    assert made.disk_bytes > without.disk_bytes
    assert math.isfinite(made.memory_bytes)


def test_exports_of_single_servers_cost_more_than_frames_of_many():
    assert planned(1000, by_otlp=True).cores > 2 * planned(1000).cores


# ── bad input ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"servers": 0}, "servers"),
        ({"servers": -1}, "servers"),
        ({"servers": 1_000_001}, "servers"),
        ({"metrics": 0}, "metrics"),
        ({"metrics": 100_001}, "metrics"),
        ({"interval": timedelta(milliseconds=999)}, "interval"),
        ({"interval": timedelta()}, "interval"),
        ({"interval": timedelta(hours=2)}, "interval"),
        ({"retention": {"2h": timedelta(days=1)}}, "retention"),
        ({"retention": {"raw": timedelta()}}, "retention of raw"),
        ({"retention": {"1h": timedelta(days=36_501)}}, "retention of 1h"),
    ],
)
def test_a_workload_that_cannot_be_is_refused_by_the_field(options, field):
    with pytest.raises(InvalidArgumentError, match=f"^{field} "):
        Workload(**{"servers": 20, **options})


@pytest.mark.parametrize("headroom", [-0.1, 0.91, 1.0, math.nan, math.inf])
def test_headroom_leaves_something(headroom):
    with pytest.raises(InvalidArgumentError, match=r"^headroom "):
        capacity.plan(Workload(servers=20), PRICES, headroom=headroom)


def test_a_machine_that_is_too_small_is_refused_and_the_least_is_said():
    with pytest.raises(InvalidArgumentError, match=r"^machine .* gateway .* needs one with 72GiB"):
        capacity.plan(Workload(servers=1_000_000), PRICES)
    small = replace(PRICES, machine=price.parse_machine("2:512MiB:1TiB:1"))
    with pytest.raises(InvalidArgumentError, match=r"^machine is too small for timeseries"):
        capacity.plan(Workload(servers=20), small)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (("month = 95.0", "month = -1"), "managed.month"),
        (("month = 95.0", "month = nan"), "managed.month"),
        (("month = 95.0", "month = inf"), "managed.month"),
        (("month = 30.0", 'month = "30"'), "machine.month"),
        (("month = 30.0", "month = true"), "machine.month"),
        (("month = 30.0", "price = 30.0"), "machine.price"),
        (("month = 30.0", ""), "machine.month"),
        (("cores = 2", "cores = 0"), "machine.cores"),
        (('memory = "4GiB"', 'memory = "4 gigabytes"'), "machine.memory"),
        (('memory = "4GiB"', "memory = 0"), "machine.memory"),
        (('disk = "80GiB"', 'disk = "99999999TiB"'), "machine.disk"),
        (('interval = "10s"', 'interval = "0s"'), "managed.interval"),
        (('interval = "10s"', "interval = 10"), "managed.interval"),
        (("servers = 20", "servers = 0"), "managed.servers"),
        (('currency = "USD"', "currency = 5"), "currency"),
        (("[managed]", "[manager]"), "manager"),
        (("[managed]", "managed"), "the prices"),
    ],
)
def test_prices_that_cannot_be_are_refused_by_the_key(change, field):
    text = price.defaults()
    assert change[0] in text
    with pytest.raises(InvalidArgumentError, match=f"^{re.escape(field)} "):
        price.read(text.replace(*change))


@pytest.mark.parametrize("text", ["", "8", "8:32GiB", "a:1GiB:1GiB", "nan:1GiB:1GiB", "2:1GiB:1GiB:inf", "1:2:3:4:5"])
def test_a_machine_is_cores_memory_disk_and_money(text):
    with pytest.raises(InvalidArgumentError, match=r"^machine"):
        price.parse_machine(text)


def test_without_a_price_there_is_none():
    made = capacity.plan(Workload(servers=20), replace(PRICES, machine=price.parse_machine("2:4GiB:80GiB")))
    assert math.isnan(made.self_hosted_month)
    free = price.read(price.defaults().replace("month = 95.0", "month = 0"))
    assert math.isnan(capacity.plan(Workload(servers=20), free).managed_month)

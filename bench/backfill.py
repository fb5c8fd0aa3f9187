"""Rows of a backfill: history made by one process and by two, up to the bytes that would be sent."""

from __future__ import annotations

import asyncio
import itertools
import time

import numpy as np
from openmanager_simulator.catalogue import load_catalogue
from openmanager_simulator.crew import open_crew
from openmanager_simulator.plan import Tier, make_plan
from openmanager_simulator.worker import Job

from bench.data import INTERVAL
from bench.pair import Row, at_least, at_most, pairs, timed

HOUR = 3600 * 10**9
DAY = 24 * HOUR
NOW = 20_500 * DAY
TIERS = (
    Tier(name="5m", width=300 * 10**9, retention=90 * DAY),
    Tier(name="1h", width=HOUR, retention=1825 * DAY),
)
SERVERS = 20
# A year of the standard fleet in a quarter of an hour, while timeseries takes it with half a core of the two.
YEAR_SAMPLES = 365 * DAY // INTERVAL * SERVERS * 511
YEAR_SECONDS = 900.0
UNITS = 6


def rows() -> list[Row]:
    """Measure one process against drawing as many normals, and two against what a year in time needs."""
    generator = np.random.Generator(np.random.SFC64(1))
    scratch = np.empty((32, 100, 511), np.float32)
    one = pairs(
        lambda: 1 / _rate(1),
        lambda: timed(lambda: generator.standard_normal(out=scratch, dtype=np.float32), 0.4) / scratch.size,
        5,
    )
    needed = YEAR_SAMPLES / YEAR_SECONDS
    two = pairs(lambda: _rate(2), lambda: needed, 5)
    minutes = YEAR_SAMPLES / two[0] / 60
    return [
        at_most("history to buckets on the wire, one process, against float32 normals", one, 3.0, "ns/sample", 1e9),
        at_least(
            f"history to buckets, two processes (a year in {minutes:.1f} min), against a year in 15 min",
            two,
            1.5,
            "M/s",
            1e-6,
        ),
    ]


def _rate(workers: int) -> float:
    """Return samples a second once every worker is under way."""
    return asyncio.run(_read(workers))


async def _read(workers: int) -> float:
    metrics = len(load_catalogue().metrics)
    plan = make_plan(
        start=NOW - 30 * DAY,
        end=NOW,
        now=NOW,
        tiers=TIERS,
        raw=False,
        raw_retention=14 * DAY,
        server_count=SERVERS,
        metric_count=metrics,
        interval=INTERVAL,
    )
    job = Job(
        interval=INTERVAL,
        metric_count=metrics,
        seed=1,
        noise="normal",
        schedule=True,
        faults=(),
        tiers=TIERS,
        now=NOW,
        plan=plan,
    )
    samples, start = 0, 0.0
    async with open_crew(job, workers) as crew:
        for number, unit in enumerate(itertools.islice(plan.units(), (1 + UNITS) * workers)):
            async for _ in crew.requests(number):
                pass
            if number >= workers:
                samples += (unit.end - unit.start) // INTERVAL * unit.server_count * metrics
            elif number == workers - 1:
                start = time.perf_counter()
        return samples / (time.perf_counter() - start)

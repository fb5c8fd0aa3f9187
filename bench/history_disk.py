"""Rows of what lies on disk: bytes a sample beside VictoriaMetrics, the start with a day of data, a year of buckets."""

from __future__ import annotations

import asyncio
import itertools
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from openmanager_timeseries import sealed
from openmanager_timeseries.rollup_file import ROLLUPS
from openmanager_timeseries.sealed import About, Batch, Rows

from bench import store
from bench.data import delta_entropy_bytes, names, standard_series
from bench.history_ask import Asked, ask, ask_process
from bench.history_folder import HOUR, HOUR_TICKS, Series, fill, frames, opened
from bench.history_ingest import wide_lines
from bench.history_server import timeseries
from bench.pair import Row, at_most
from openmanager.rollup import COLUMNS

SERVERS, METRICS = 20, 511
YEAR_FILES = 12


# ── bytes a sample ───────────────────────────────────────────────────────────────────────────────────────────────────


def size() -> Iterator[Row]:
    """Keep the standard fleet's hour here and in VictoriaMetrics."""
    values = standard_series(HOUR_TICKS, SERVERS, METRICS)
    start = (time.time_ns() // HOUR - 3) * HOUR
    fleet = names(SERVERS, METRICS)
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(fill(Path(folder), fleet, start, 1, lambda _: values))
        blocks = store.folder_size(Path(folder) / "blocks")
        whole = blocks + sum((Path(folder) / name).stat().st_size for name in ("catalog.parquet", "rollups.json"))
        tiers = store.folder_size(Path(folder) / "tiers") + store.folder_size(Path(folder) / "sketches")
    entropy = delta_entropy_bytes(values)
    shape = f"{SERVERS} × {METRICS} × {HOUR_TICKS} standard series"
    ours = whole / values.size
    note = f"blocks and catalogue; the tiers made of them take {tiers / values.size:.2g} B more a sample"
    yield at_most(f"bytes/sample at rest, {shape}, at most 1.3 B", (ours, 1.3, ours / 1.3), 1, "B", 1, note)
    yield at_most(
        f"bytes/sample at rest, {shape}, against delta entropy", (ours, entropy, ours / entropy), 1.3, "B", 1, note
    )
    name = f"bytes/sample at rest, {shape}, against VictoriaMetrics after force_merge"
    with store.victoria() as victoria:
        if victoria is None:
            yield store.missing(name, "≤ 1", store.VICTORIA)
            return
        for body in wide_lines(list(frames(fleet, start, values))):
            victoria.request("POST", victoria.write_path, body)
        victoria.merge()
        theirs = victoria.size() / values.size
        index = store.folder_size(victoria.folder / "indexdb") / values.size
    note = f"{theirs - index:.3g} B of theirs without indexdb"
    yield at_most(name, (ours, theirs, ours / theirs), 1, "B", 1, note)


# ── a day, and a start with it ───────────────────────────────────────────────────────────────────────────────────────


def restart() -> Iterator[Row]:
    """Start the process on a day of data, and on none."""
    series, fleet = Series(SERVERS, METRICS), names(SERVERS, METRICS)
    start = (time.time_ns() // HOUR - 24) * HOUR
    with tempfile.TemporaryDirectory() as folder:
        day, empty = Path(folder) / "day", Path(folder) / "empty"
        tail = series.ticks(HOUR_TICKS - 6)
        asyncio.run(fill(day, fleet, start, 23, lambda _: series.ticks(HOUR_TICKS), tail=tail))
        question = Asked(start=start, end=start + 24 * HOUR, step=HOUR, aggregation="MAX", metrics=fleet[1][:1])
        found = []
        for _ in range(3):
            pair = []
            for each in (day, empty):
                shutil.rmtree(empty, ignore_errors=True)
                with timeseries(each) as server:
                    pair.append(server.seconds + asyncio.run(ask_process(server, [question])))
            found.append(pair)
        log = store.folder_size(day / "log")
    first, nothing = (statistics.median(side) for side in zip(*found, strict=True))
    samples = (23 * HOUR_TICKS + len(tail)) * SERVERS * METRICS
    note = f"{log / 1e6:.0f} MB of log; an empty folder takes {nothing:.2g} s"
    name = f"start to the first query's answer, a day of {SERVERS} × {METRICS} ({samples / 1e6:.0f} M samples), the last hour unsealed"
    yield at_most(f"{name}, at most 5 s", (first, 5.0, first / 5.0), 1, "s", 1, note)


# ── a year ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def year() -> Iterator[Row]:
    """Ask for a year of one metric by the hour, of all servers, from a tier whose files hold all metrics."""
    ids, keys = names(SERVERS, METRICS)
    hours = 365 * 24
    now = time.time_ns()
    start = (now // HOUR - hours - 24) * HOUR
    with tempfile.TemporaryDirectory() as folder:
        made = write_tier(Path(folder), ids, keys, start, hours)
        asked = Asked(start=start, end=start + hours * HOUR, step=HOUR, aggregation="MEAN")

        async def in_process() -> float:
            async with opened(Path(folder), kept=False) as history:
                for metric in keys[:3]:
                    answer = await ask(history, asked.of(metric))
                    assert answer.shape == (SERVERS, hours)
                    assert not np.isnan(answer).any()
                found = []
                for metric in keys[3:43]:
                    begin = time.perf_counter()
                    await ask(history, asked.of(metric))
                    found.append(time.perf_counter() - begin)
                return statistics.median(found)

        here = asyncio.run(in_process())
        with timeseries(Path(folder)) as server:
            there = asyncio.run(ask_process(server, [asked.of(metric) for metric in keys[:40]]))
    name = f"a year by the hour, 1 of {METRICS} metrics, {SERVERS} servers, {YEAR_FILES} files of a tier"
    note = f"{made / 1e6:.0f} MB of files, read from the page cache"
    yield at_most(f"{name}, in process, at most 50 ms", (here, 0.05, here / 0.05), 1, "ms", 1e3, note)
    yield at_most(f"{name}, over gRPC, at most 50 ms", (there, 0.05, there / 0.05), 1, "ms", 1e3, note)


def write_tier(folder: Path, ids: Sequence[str], keys: Sequence[str], start: int, hours: int) -> int:
    """Write a year of hourly buckets into the files that the keeper's merges would leave; return their bytes."""
    generator = np.random.default_rng(1)
    place = folder / "tiers" / "1h"
    place.mkdir(parents=True)
    edges = np.linspace(0, hours, YEAR_FILES + 1).astype(int)
    order = sorted(range(len(keys)), key=keys.__getitem__)
    total = 0
    for number, (first, last) in enumerate(itertools.pairwise(edges.tolist()), 1):
        times = start + np.arange(first, last) * HOUR
        count = len(times) * len(ids)
        codes, ticks = np.repeat(np.arange(len(ids)), len(times)), np.tile(times, len(ids))

        def batches(count=count, codes=codes, ticks=ticks) -> Iterator[Batch]:
            for at in order:
                yield Batch([keys[at]], Rows(np.zeros(count, np.int64), codes, ticks, _columns(generator, count)))

        spans = ((int(times[0]), int(times[-1]) + HOUR),)
        made = sealed.write(place, ROLLUPS, About(first=number, last=number, spans=spans), sorted(ids), batches())
        total += made.size_bytes
    return total


def _columns(generator: np.random.Generator, count: int) -> dict[str, np.ndarray]:
    """Return buckets of 360 samples of the standard series each."""
    middle = np.round(generator.uniform(10, 80, count), 2)
    low, high = (
        np.round(middle - generator.uniform(3, 8, count), 2),
        np.round(middle + generator.uniform(3, 8, count), 2),
    )
    nothing = np.full(count, np.nan)
    found = (low, high, np.round(middle * 360, 2), np.full(count, 360.0), middle, nothing, nothing)
    return dict(zip(COLUMNS, found, strict=True))

"""Rows that need no server: frames, the simulator's tick, the log, blocks."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
from openmanager_timeseries.block import write
from openmanager_timeseries.catalog import Catalog
from openmanager_timeseries.disk import PosixDisk
from openmanager_timeseries.head import Generation
from openmanager_timeseries.log import Log, LogOptions

from bench.data import INTERVAL, delta_entropy_bytes, frame, names, standard_series
from bench.pair import Row, at_least, at_most, pairs, timed
from openmanager.api.frame.v1 import frame_pb2
from openmanager.frame import Frame, FrameReader, encode
from openmanager.runtime.clock import SystemClock


def frames() -> Row:
    """Encode and decode 20 × 511 against the generated class with a list."""
    sample = frame(20, 511)
    values = sample.values.ravel()
    listed = values.tolist()

    reader = FrameReader()

    def ours() -> None:
        reader.read(encode(sample))

    def generated() -> None:
        message = frame_pb2.Frame(
            time_unix_nanos=sample.times.tolist(), servers=sample.servers, metrics=sample.metrics, values=listed
        )
        np.fromiter(frame_pb2.Frame.FromString(message.SerializeToString()).values, np.float64)

    figures = pairs(lambda: timed(ours), lambda: timed(generated))
    return at_most("frame encode + decode, 20 × 511, against generated repeated double", figures, 1 / 20, "µs", 1e6)


def tick() -> list[Row]:
    """A tick of the fleet against filling the same array with random normals."""
    from openmanager_simulator.catalogue import load_catalogue
    from openmanager_simulator.fleet import make_fleet
    from openmanager_simulator.simulation import Simulation

    rows = []
    catalogue = load_catalogue()
    block = 32
    generator = np.random.Generator(np.random.SFC64(1))
    scratch = np.empty((block, 100, 511), np.float32)

    def fill() -> None:
        generator.standard_normal(out=scratch, dtype=np.float32)

    for noise, goal in (("normal", 1.5), ("table", 0.3)):
        fleet = make_fleet(100)
        simulation = Simulation(
            fleet=fleet, catalogue=catalogue, seed=1, interval_nanos=INTERVAL, schedule=False, noise=noise
        )
        at = [180_000_000]

        def ours(simulation: Simulation = simulation, at: list[int] = at) -> None:
            at[0] += block
            simulation.values(at[0], block)

        figures = pairs(
            lambda ours=ours: timed(ours, 0.4) / scratch.size,
            lambda: timed(fill, 0.4) / scratch.size,
        )
        rows.append(at_most(f"simulator tick, noise {noise}, against float32 normals", figures, goal, "ns/value", 1e9))
    return rows


def generator() -> list[Row]:
    """Values made and encoded to be sent, a second, against TSBS' generator where it is on the path; both alone on a core."""
    from openmanager_simulator.catalogue import load_catalogue
    from openmanager_simulator.fleet import make_fleet
    from openmanager_simulator.simulation import Simulation

    binary = shutil.which("tsbs_generate_data")
    if binary is None:
        return []
    catalogue, fleet = load_catalogue(), make_fleet(100)
    ids, metrics = tuple(server.id for server in fleet), tuple(metric.key for metric in catalogue.metrics)
    simulation = Simulation(fleet=fleet, catalogue=catalogue, seed=1, interval_nanos=INTERVAL)
    ticks = 64
    at = [180_000_000]

    def ours() -> float:
        start, at[0] = time.process_time(), at[0] + ticks
        values = simulation.values(at[0], ticks)
        for tick, time_nanos in enumerate(simulation.times(at[0], ticks)):
            encode(Frame(times=time_nanos[None], servers=ids, metrics=metrics, values=values[tick : tick + 1]))
        return (time.process_time() - start) / values.size

    def peer() -> float:
        hour = ["--timestamp-start=2026-01-01T00:00:00Z", "--timestamp-end=2026-01-01T01:00:00Z"]
        options = ["--use-case=cpu-only", "--format=influx", "--scale=100", "--log-interval=10s", "--seed=1", *hour]
        before = os.times()
        subprocess.run([binary, *options], stdout=subprocess.DEVNULL, check=True)
        after = os.times()
        used = after.children_user + after.children_system - before.children_user - before.children_system
        return used / (100 * 360 * 10)

    mine, theirs, ratio = pairs(ours, peer, 5)
    name = "values made and encoded, a second of processor time, against tsbs_generate_data (cpu-only, influx)"
    return [at_least(name, (1 / mine, 1 / theirs, 1 / ratio), 1.0, "M/s", 1e-6)]


def acknowledged(servers: int, count: int, under_way: int) -> Row:
    """Append to the log until durable, against writing and syncing the same bytes in batches of the same number."""
    payload = encode(frame(servers, 511))

    def ours() -> float:
        with tempfile.TemporaryDirectory() as folder:
            return asyncio.run(_log(Path(folder), payload, count, under_way))

    def bare() -> float:
        with tempfile.TemporaryDirectory() as folder:
            return _bare(Path(folder), payload, count, under_way)

    mine, peer, ratio = pairs(ours, bare, 5)
    name = f"write → durable, {servers} × 511, {under_way} under way, samples/s against append + fdatasync"
    rates = (servers * 511 / mine, servers * 511 / peer, 1 / ratio)
    return at_least(name, rates, 0.8, "M/s", 1e-6)


async def _log(folder: Path, payload: bytes, count: int, under_way: int) -> float:
    log = await Log.open(PosixDisk(folder), LogOptions(ballast_size=0), SystemClock())
    await log.append(payload, 1)
    start = time.perf_counter()
    for _ in range(count // under_way):
        await asyncio.gather(*(log.append(payload, 1) for _ in range(under_way)))
    elapsed = time.perf_counter() - start
    await log.close()
    return elapsed / count


def _bare(folder: Path, payload: bytes, count: int, under_way: int) -> float:
    descriptor = os.open(folder / "bare", os.O_WRONLY | os.O_CREAT)
    os.write(descriptor, payload)
    os.fdatasync(descriptor)
    start = time.perf_counter()
    for _ in range(count // under_way):
        for _ in range(under_way):
            os.write(descriptor, payload)
        os.fdatasync(descriptor)
    elapsed = time.perf_counter() - start
    os.close(descriptor)
    return elapsed / count


def block() -> list[Row]:
    """Seal the standard fleet's hour: bytes a sample against the entropy of its differences, and the time."""
    ticks, servers, metrics = 360, 20, 511
    values = standard_series(ticks, servers, metrics)
    ids, keys = names(servers, metrics)
    catalog = Catalog(1_000_000)
    layout = catalog.layout(ids, keys)
    catalog.admit(layout, np.ones((servers, metrics), bool))
    generation = Generation(first=1)
    start = 1_700_000_000 * 10**9
    for at in range(ticks):
        one = Frame(times=np.array([start + at * INTERVAL]), servers=ids, metrics=keys, values=values[at : at + 1])
        generation.append(layout, one, at + 1)
    generation.close()
    generation.sample_count = values.size
    with tempfile.TemporaryDirectory() as folder:
        elapsed = min(timed(lambda: write(Path(folder), generation, catalog), 0.0) for _ in range(3))
        size = write(Path(folder), generation, catalog).size_bytes / values.size
    entropy = delta_entropy_bytes(values)
    fill = np.empty(values.shape, np.float32)
    generator = np.random.Generator(np.random.SFC64(1))
    plain = timed(lambda: generator.standard_normal(out=fill, dtype=np.float32), 0.3) / values.size
    return [
        at_most(
            "block, bytes/sample with all overhead, against delta entropy", (size, entropy, size / entropy), 1.3, "B", 1
        ),
        at_most(
            "block encode, against drawing the same number of normals",
            (elapsed / values.size, plain, elapsed / values.size / plain),
            10,
            "ns/sample",
            1e9,
        ),
    ]

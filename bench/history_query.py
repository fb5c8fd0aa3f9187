"""Rows of range queries: an hour of one metric of a hundred servers by the minute, beside SQL and real engines."""

from __future__ import annotations

import asyncio
import contextlib
import csv
import io
import itertools
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa

from bench import store
from bench.data import INTERVAL, names
from bench.history_ask import QUERY_RANGE, SECONDS, Asked, buckets
from bench.history_folder import HOUR, HOUR_TICKS, Series, fill, frames, opened, write
from bench.history_ingest import wide_field, wide_lines
from bench.history_server import Client, timeseries
from bench.pair import Row, at_least, at_most, timed
from openmanager.config import Size

SERVERS, METRICS = 100, 511
# The rivals hold fewer series than we do: to fill them takes long, and an answer does not get slower by that.
RIVAL_METRICS = 51
MINUTE = 60 * 10**9
METRICS_ASKED, REPEATS = 10, 7
_SQL = """
    SELECT server, time // 60000 AS minute, avg(value) AS mean FROM samples
    WHERE metric = ? AND time >= ? AND time < ? GROUP BY 1, 2 ORDER BY 1, 2
"""

# What answers a metric's number: float64[servers, 60].
Answer = Callable[[int], np.ndarray]


def rows() -> Iterator[Row]:
    """Ask head and blocks, in process and over gRPC, and every rival, in turn, for one metric after the other."""
    start = (time.time_ns() // HOUR - 1) * HOUR
    values = Series(SERVERS, METRICS).ticks(HOUR_TICKS)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        # Not its own run(): that sets a signal handler each time, and describes the answer to find out which.
        loop = stack.enter_context(asyncio.Runner()).get_loop()
        answers: dict[str, Answer] = {}
        _own(stack, loop, folder, start, values, answers)
        answers["SQL"] = _sql(stack, folder / "narrow", start, values)
        _rivals(stack, start, values, answers)
        found = _timed(answers, values)
    yield from _rows(found)


def _timed(answers: dict[str, Answer], values: np.ndarray) -> dict[str, list[float]]:
    """Return how long each takes to answer for one metric after the other, in turn; what they answer numpy finds too."""
    metrics = range(0, RIVAL_METRICS, RIVAL_METRICS // METRICS_ASKED)
    for name, answer in answers.items():
        for metric in metrics:
            expected = values[:, :, metric].T.reshape(SERVERS, 60, 6).mean(axis=2)
            np.testing.assert_allclose(answer(metric), expected, rtol=1e-12, err_msg=name)
    found: dict[str, list[float]] = {name: [] for name in answers}
    for _ in range(REPEATS):
        for name, answer in answers.items():
            following = itertools.cycle(metrics)
            found[name].append(timed(lambda answer=answer, following=following: answer(next(following)), 0.3))
    return found


def _rows(found: dict[str, list[float]]) -> Iterator[Row]:
    shape = f"1 of {METRICS} metrics, {SERVERS} servers, 1 h by the minute"
    sealed, gated, hot = "blocks, in process", "blocks, over gRPC", "head, in process"
    sql = f"narrow-table SQL (DuckDB, {SERVERS * METRICS * HOUR_TICKS / 1e6:.1f} M rows)"
    for ours, goal in ((sealed, 30), (gated, 1), (hot, 300)):
        figures = _pair(found[ours], found["SQL"])
        name = f"{shape}, {ours}, times faster than {sql}"
        yield at_least(name, (figures[0], figures[1], 1 / figures[2]), goal, "ms", 1e3)
    for peer, binary in (("VictoriaMetrics query_range", store.VICTORIA), ("InfluxDB Flux", store.INFLUX)):
        for ours in (sealed, gated):
            name = f"{shape}, {ours}, against {peer}"
            if peer not in found:
                yield store.missing(name, "≤ 1", binary)
                continue
            note = f"it holds {RIVAL_METRICS} of the metrics; its answer parsed into numbers, as ours"
            yield at_most(name, _pair(found[ours], found[peer]), 1, "ms", 1e3, note)


def _pair(ours: Sequence[float], peer: Sequence[float]) -> tuple[float, float, float]:
    ratio = statistics.median(a / b for a, b in zip(ours, peer, strict=True))
    return statistics.median(ours), statistics.median(peer), ratio


# ── ours ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _own(  # the stack closes what is opened
    stack: contextlib.ExitStack,
    loop: asyncio.AbstractEventLoop,
    folder: Path,
    start: int,
    values: np.ndarray,
    answers: dict[str, Answer],
) -> None:
    fleet = names(SERVERS, METRICS)
    asked = Asked(start=start, end=start + HOUR, step=MINUTE, aggregation="MEAN")

    def opened_here(where: Path, **changes: object):  # type: ignore[no-untyped-def]
        context = opened(where, kept=False, **changes)
        history = loop.run_until_complete(context.__aenter__())
        stack.callback(lambda: loop.run_until_complete(context.__aexit__(None, None, None)))
        return history

    def answer_of(history) -> Answer:  # type: ignore[no-untyped-def]
        async def ask(metric: int) -> np.ndarray:
            found = await history.query_range(asked.of(fleet[1][metric]).query(), SECONDS)
            assert found.values is not None
            return found.values

        return lambda metric: loop.run_until_complete(ask(metric))

    loop.run_until_complete(fill(folder / "own", fleet, start, 1, lambda _: values))
    shutil.copytree(folder / "own", folder / "other")
    answers["blocks, in process"] = answer_of(opened_here(folder / "own"))
    server = stack.enter_context(timeseries(folder / "other"))

    async def connected() -> Client:
        return Client(server.target)

    client = loop.run_until_complete(connected())
    stack.callback(lambda: loop.run_until_complete(client.__aexit__()))
    requests = [asked.of(key).message() for key in fleet[1]]
    answers["blocks, over gRPC"] = lambda metric: buckets(
        loop.run_until_complete(client.stream(QUERY_RANGE, requests[metric]))
    )
    head = opened_here(folder / "head", head_size=Size(512 << 20))
    loop.run_until_complete(write(head, frames(fleet, start, values)))
    answers["head, in process"] = answer_of(head)


# ── rivals ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _sql(stack: contextlib.ExitStack, path: Path, start: int, values: np.ndarray) -> Answer:
    """Return what asks a table (time, server, metric, value) in the order of arrival, names as small integers."""
    connection = stack.enter_context(duckdb.connect(str(path)))
    connection.execute("SET threads = 2")
    connection.execute("CREATE TABLE samples (time BIGINT, server SMALLINT, metric SMALLINT, value DOUBLE)")
    servers = np.repeat(np.arange(SERVERS, dtype=np.int16), METRICS)
    metrics = np.tile(np.arange(METRICS, dtype=np.int16), SERVERS)
    millis = start // 10**6
    for first in range(0, len(values), 36):
        part = values[first : first + 36]
        times = millis + np.arange(first, first + len(part)) * (INTERVAL // 10**6)
        columns = {
            "time": np.repeat(times, len(servers)),
            "server": np.tile(servers, len(part)),
            "metric": np.tile(metrics, len(part)),
            "value": part.ravel(),
        }
        batch = pa.table(columns)
        connection.register("batch", batch)
        connection.execute("INSERT INTO samples SELECT * FROM batch")
        connection.unregister("batch")
    connection.execute("CHECKPOINT")

    def ask(metric: int) -> np.ndarray:
        found = connection.execute(_SQL, [metric, millis, millis + HOUR // 10**6]).fetchnumpy()["mean"]
        return np.asarray(found).reshape(SERVERS, 60)

    return ask


def _rivals(stack: contextlib.ExitStack, start: int, values: np.ndarray, answers: dict[str, Answer]) -> None:
    victoria, influx = stack.enter_context(store.victoria()), stack.enter_context(store.influx())
    fleet = names(SERVERS, RIVAL_METRICS)
    bodies = wide_lines(list(frames(fleet, start, np.ascontiguousarray(values[:, :, :RIVAL_METRICS]))))
    for engine in filter(None, (victoria, influx)):
        for body in bodies:
            engine.request("POST", engine.write_path, body)
    if victoria is not None:
        victoria.merge()
        answers["VictoriaMetrics query_range"] = _of_victoria(victoria, start)
    if influx is not None:
        answers["InfluxDB Flux"] = _of_influx(influx, start)


def _of_victoria(victoria: store.Victoria, start: int) -> Answer:
    """Return what asks for averages of (t − 1 min, t] a millisecond before each full minute."""
    first = start // 10**9 + 60 - 0.001

    def ask(metric: int) -> np.ndarray:
        query = f"avg_over_time(server_metrics_{wide_field(metric)}[60s])"
        found = victoria.query_range(query, first, first + 59 * 60, 60)
        found.sort(key=lambda each: each["metric"]["server_id"])
        return np.array([[value for _, value in each["values"]] for each in found], np.float64)

    return ask


def _of_influx(influx: store.Influx, start: int) -> Answer:
    begin = start // 10**9

    def ask(metric: int) -> np.ndarray:
        text = f"""
            from(bucket: "{store.BUCKET}") |> range(start: {begin}, stop: {begin + 3600})
            |> filter(fn: (r) => r._measurement == "server_metrics" and r._field == "{wide_field(metric)}")
            |> aggregateWindow(every: 1m, fn: mean, timeSrc: "_start") |> keep(columns: ["_time", "_value", "server_id"])
        """
        lines = csv.reader(io.StringIO(influx.flux(text).decode()))
        found: dict[str, list[str]] = {}
        header = next(lines)
        value, server = header.index("_value"), header.index("server_id")
        for line in lines:
            if len(line) == len(header) and line[value] != "_value":
                found.setdefault(line[server], []).append(line[value])
        return np.array([found[name] for name in sorted(found)], np.float64)

    return ask

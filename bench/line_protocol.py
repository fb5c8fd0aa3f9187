"""Rows of the line-protocol encoder: against influxdb-client's Point, and against what the digits alone take."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import orjson
from influxdb_client import Point
from openmanager_timeseries.line_protocol import MEASUREMENT, LineEncoder

from bench.data import names, standard_series
from bench.pair import Row, at_least, at_most, pairs, timed
from openmanager.frame import Frame, ServerInfo
from openmanager.metric import parse_key

METRICS = 511
TIME = 1_700_000_000 * 10**9


def line_protocol() -> list[Row]:
    """Encode a tick of 20 and of 1000 servers: values of all digits and of two, one line a server, and the catalogue's."""
    rows = []
    wide = tuple(f"system.cpu.utilization_{index}" for index in range(METRICS))
    for keys, layout, sizes in ((wide, "one line", (20, 1000)), (_catalogue(), "the catalogue", (20,))):
        for servers in sizes:
            for values, digits in _values(servers):
                rows += _rows(
                    f"line protocol, {servers} × {METRICS}, {layout}, {digits}",
                    Frame(times=np.array([TIME]), servers=names(servers, 1)[0], metrics=keys, values=values),
                )
    return rows


def _catalogue() -> tuple[str, ...]:
    from openmanager_simulator.catalogue import load_catalogue

    return tuple(metric.key for metric in load_catalogue().metrics)


def _values(servers: int) -> Iterator[tuple[np.ndarray, str]]:
    yield np.random.default_rng(1).uniform(10, 80, (1, servers, METRICS)), "17 digits"
    yield standard_series(1, servers, METRICS), "2 decimals"


def _rows(name: str, frame: Frame) -> list[Row]:
    infos = {server: ServerInfo(id=server, environment="production", role="database") for server in frame.servers}
    groups: dict[tuple[tuple[str, str], ...], list[tuple[str, int]]] = {}
    for column, key in enumerate(frame.metrics):
        field, attributes = parse_key(key)
        groups.setdefault(attributes, []).append((field, column))
    encoder = LineEncoder()

    def ours() -> float:
        return timed(lambda: encoder.encode([frame], infos.__getitem__))

    def point() -> float:
        return _once(lambda: _points(frame, infos.__getitem__, list(groups.items())))

    def digits() -> float:
        return timed(lambda: orjson.dumps(frame.values, option=orjson.OPT_SERIALIZE_NUMPY))

    scale = 1e9 / frame.values.size
    mine, peer, ratio = pairs(ours, point, 5)
    return [
        at_least(f"{name}, against Point", (mine, peer, 1 / ratio), 20, "ns/value", scale),
        at_most(f"{name}, against orjson.dumps", pairs(ours, digits), 5, "ns/value", scale),
    ]


def _once(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _points(frame: Frame, info_of: Callable[[str], ServerInfo], groups: Sequence) -> bytes:
    """Return the lines of a frame of one tick as influxdb-client makes them."""
    lines = []
    millis = int(frame.times[0]) // 10**6
    for server, values in zip(frame.servers, frame.values[0].tolist(), strict=True):
        info = info_of(server)
        for attributes, fields in groups:
            point = Point(MEASUREMENT).tag("server_id", server).tag("environment", info.environment)
            point.tag("role", info.role).time(millis, "ms")
            for attribute, value in attributes:
                point.tag(attribute, value)
            for field, column in fields:
                point.field(field, values[column])
            lines.append(point.to_line_protocol())
    return "\n".join(lines).encode()

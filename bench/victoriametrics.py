"""Rows about VictoriaMetrics: the CPU of both sides when samples go to it as line protocol, and by remote write instead.

The rival is as good as we can make it: labels are put into protobuf once, and per tick numpy scatters the values and the
times into the bytes (`WriteRequest` of prometheus/prometheus, prompb/remote.proto), which are then compressed by snappy.
"""

from __future__ import annotations

import http.client
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
from openmanager_simulator.catalogue import load_catalogue
from openmanager_timeseries.line_protocol import MEASUREMENT, LineEncoder, split, tags_of

from bench.data import INTERVAL, names, standard_series
from bench.pair import Row, at_most, pairs
from openmanager.frame import NANOS_PER_MILLI, Frame, ServerInfo, length_delimited
from openmanager.metric import parse_key

SERVERS = 100
TICKS = 12
BATCH_BYTES = 1 << 20
REPEATS = 5
# A request holds so many series: about 1 MiB before compression.
SERIES_PER_REQUEST = 5000

Batches = Iterator[tuple[str, dict[str, str], bytes]]


def rows() -> Iterator[Row]:
    """Deliver 100 servers × 511 metrics, tick by tick, with names as the simulator has them and with one line a sample."""
    binary = shutil.which("victoria-metrics")
    if binary is None:
        return
    catalogue = tuple(metric.key for metric in load_catalogue().metrics)
    for what, keys in (("the simulator's names", catalogue), ("a line a sample", names(SERVERS, len(catalogue))[1])):
        with tempfile.TemporaryDirectory() as folder, _Store(binary, Path(folder)) as store:
            fleet = _Fleet(keys)
            lines, remote = _Lines(), _RemoteWrite(fleet)
            for way in (lines, remote):
                store.deliver(way, fleet, 1)  # so that every series is known
            costs: dict[str, list[_Cost]] = {"lines": [], "remote": []}

            def total(name: str, way: _Lines | _RemoteWrite, store=store, fleet=fleet, costs=costs) -> float:
                cost = store.deliver(way, fleet, TICKS)
                costs[name].append(cost)
                return cost.cpu

            figures = pairs(
                lambda total=total, lines=lines: total("lines", lines),
                lambda total=total, remote=remote: total("remote", remote),
                REPEATS,
            )
        notes = "; ".join(f"{name}: {_Cost.median(found)}" for name, found in costs.items())
        name = f"deliver to VictoriaMetrics as lines, {what}, CPU of both sides against remote write"
        yield at_most(name, figures, 1.0, "ns/sample", 1e9, notes)


@dataclass(frozen=True)
class _Cost:
    """What delivering took, per sample: our CPU, the store's and the time, in seconds; and bytes on the wire."""

    ours: float
    theirs: float
    wall: float
    size: float

    @property
    def cpu(self) -> float:
        return self.ours + self.theirs

    @classmethod
    def median(cls, costs: Sequence[_Cost]) -> _Cost:
        return cls(*(float(np.median(each)) for each in zip(*map(_Cost.figures, costs), strict=True)))

    def figures(self) -> tuple[float, float, float, float]:
        return self.ours, self.theirs, self.wall, self.size

    def __str__(self) -> str:
        ours, theirs, wall = (f"{1e9 * each:.0f}" for each in (self.ours, self.theirs, self.wall))
        return f"{ours} ns here + {theirs} ns there, {wall} ns in all, {self.size:.1f} B a sample"


class _Fleet:
    """Frames of one tick each, ever later."""

    def __init__(self, keys: tuple[str, ...]) -> None:
        self.servers = names(SERVERS, 1)[0]
        self.keys = keys
        self._values = standard_series(64, SERVERS, len(keys))
        self._start = time.time_ns() // NANOS_PER_MILLI * NANOS_PER_MILLI - 86_400 * 10**9
        self._tick = 0

    def frame(self) -> Frame:
        tick, self._tick = self._tick, self._tick + 1
        times = np.array([self._start + tick * INTERVAL])
        at = tick % len(self._values)
        return Frame(times=times, servers=self.servers, metrics=self.keys, values=self._values[at : at + 1])


def info_of(server: str) -> ServerInfo:
    return ServerInfo(id=server, environment="production", role="web")


class _Lines:
    """Line protocol, as the engine writes it."""

    def __init__(self) -> None:
        self._encoder = LineEncoder()

    def batches(self, frame: Frame) -> Batches:
        for batch in split(self._encoder.encode([frame], info_of), BATCH_BYTES):
            yield "/write?precision=ms", {}, batch


class _RemoteWrite:
    """Remote write by templates: requests whose times and values are scattered in."""

    def __init__(self, fleet: _Fleet) -> None:
        self._codec = pa.Codec("snappy")
        series = [self._series(server, key) for server in fleet.servers for key in fleet.keys]
        self._templates = [
            self._template(series[at : at + SERIES_PER_REQUEST]) for at in range(0, len(series), SERIES_PER_REQUEST)
        ]

    @staticmethod
    def _series(server: str, key: str) -> bytes:
        name, attributes = parse_key(key)
        labels = {"__name__": f"{MEASUREMENT}_{name}", "server_id": server, "environment": "production", "role": "web"}
        pairs = sorted({**labels, **tags_of(attributes)}.items())
        text = b"".join(
            length_delimited(1, length_delimited(1, label.encode()) + length_delimited(2, value.encode()))
            for label, value in pairs
        )
        # Sample: a double as field 1, and a varint of six bytes, which milliseconds take until 2109, as field 2.
        return length_delimited(1, text + length_delimited(2, b"\x09" + bytes(8) + b"\x10" + bytes(6)))

    @staticmethod
    def _template(series: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
        ends = np.cumsum([len(each) for each in series])
        return np.frombuffer(bytearray(b"".join(series)), np.uint8), ends

    def batches(self, frame: Frame) -> Batches:
        values = np.ascontiguousarray(frame.values[0]).ravel()
        millis = int(frame.times[0]) // NANOS_PER_MILLI
        stamp = np.array([(millis >> 7 * n) & 0x7F | (0x80 if n < 5 else 0) for n in range(6)], np.uint8)
        headers = {"Content-Encoding": "snappy", "Content-Type": "application/x-protobuf"}
        first = 0
        for template, ends in self._templates:
            count = len(ends)
            template[ends[:, None] - 15 + np.arange(8)] = values[first : first + count].view(np.uint8).reshape(-1, 8)
            template[ends[:, None] - 6 + np.arange(6)] = stamp
            first += count
            yield "/api/v1/write", headers, self._codec.compress(template, asbytes=True)


class _Store:
    """A VictoriaMetrics, and what it uses."""

    def __init__(self, binary: str, folder: Path) -> None:
        self._command = [binary, f"-storageDataPath={folder}/data", "-retentionPeriod=10y", "-loggerLevel=ERROR"]

    def __enter__(self) -> Self:
        port = 18_000 + os.getpid() % 10_000
        self._process = subprocess.Popen([*self._command, f"-httpListenAddr=127.0.0.1:{port}"])
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        while True:
            try:
                self._post("/health", {}, b"")
            except OSError:
                self._connection.close()
                time.sleep(0.02)
            else:
                return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()
        self._process.kill()
        self._process.wait()

    def deliver(self, way: _Lines | _RemoteWrite, fleet: _Fleet, ticks: int) -> _Cost:
        """Deliver some ticks."""
        frames = [fleet.frame() for _ in range(ticks)]
        began, ours, theirs, size = time.perf_counter(), time.process_time(), self._cpu(), 0
        for frame in frames:
            for path, headers, body in way.batches(frame):
                self._post(path, headers, body)
                size += len(body)
        wall, ours = time.perf_counter() - began, time.process_time() - ours
        count = ticks * frames[0].values.size
        return _Cost(ours / count, (self._cpu() - theirs) / count, wall / count, size / count)

    def _post(self, path: str, headers: dict[str, str], body: bytes) -> None:
        self._connection.request("POST", path, body, headers)
        answer = self._connection.getresponse()
        answer.read()
        if answer.status not in {200, 204}:
            raise OSError(answer.status)

    def _cpu(self) -> float:
        """Return the seconds of CPU that its process has used."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

"""Questions to history: put to it in this process, and to its process over gRPC."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from openmanager_timeseries.history import History
from openmanager_timeseries.query import Answer, RangeQuery

from bench.history_server import SERVICE, Client, Server
from openmanager.api.timeseries.v1 import timeseries_pb2 as pb
from openmanager.client.history import SERIES_PER_MESSAGE
from openmanager.frame import Frame

QUERY_RANGE = f"{SERVICE}QueryRange"
SECONDS = 30.0


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A range query: times and step in nanoseconds, names as in the contract."""

    start: int
    end: int
    step: int
    aggregation: str
    servers: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()
    group_by: str = "SERVER"

    def of(self, *metrics: str) -> Asked:
        return replace(self, metrics=metrics)

    def query(self) -> RangeQuery:
        """Return it as history takes it."""
        return RangeQuery(
            servers=self.servers,
            server_filter="",
            metrics=self.metrics,
            start=self.start,
            end=self.end,
            step=self.step,
            aggregation=self.aggregation,
            group_by=self.group_by,
        )

    def message(self) -> bytes:
        """Return it on the wire."""
        request = pb.QueryRangeRequest(
            aggregation=pb.Aggregation.Value(f"AGGREGATION_{self.aggregation}"),
            group_by=pb.GroupBy.Value(f"GROUP_BY_{self.group_by}"),
            series_per_message=SERIES_PER_MESSAGE,
        )
        request.selector.servers.extend(self.servers)
        request.selector.metrics.extend(self.metrics)
        request.start_time.FromNanoseconds(self.start)
        request.end_time.FromNanoseconds(self.end)
        request.step.FromNanoseconds(self.step)
        return request.SerializeToString()


@dataclass(frozen=True, slots=True, eq=False)
class Reply:
    """An answer however it came: `names` (server, metric) of each row, and the times and values of each."""

    names: Sequence[tuple[str, str]]
    times: Sequence[np.ndarray]
    values: Sequence[np.ndarray]

    @classmethod
    def of_answer(cls, answer: Answer) -> Reply:
        """Return what history answered in this process."""
        names = [(name.server, name.metric) for name in answer.names]
        if answer.values is not None:
            return cls(names, [answer.starts] * len(names), list(answer.values))
        assert answer.raw is not None
        ends = answer.raw.offsets[1:-1]
        return cls(names, np.split(answer.raw.times, ends), np.split(answer.raw.values, ends))

    @classmethod
    def of_range(cls, replies: Sequence[bytes]) -> Reply:
        """Return what QueryRange streamed: long raw series come in parts."""
        header, *parts = [pb.QueryRangeResponse.FromString(reply) for reply in replies]
        starts = np.array(header.header.time_unix_nanos)
        found: dict[tuple[str, str], list[tuple[np.ndarray, np.ndarray]]] = {}
        for series in (series for part in parts for series in part.batch.series):
            times = np.array(series.time_unix_nanos) if series.time_unix_nanos else starts
            found.setdefault((series.server, series.metric), []).append((times, np.array(series.values)))
        columns = [tuple(np.concatenate(side) for side in zip(*pieces, strict=True)) for pieces in found.values()]
        return cls(list(found), [times for times, _ in columns], [values for _, values in columns])

    @classmethod
    def of_latest(cls, frames: Sequence[Frame]) -> Reply:
        """Return the newest samples: one value of each series."""
        found = {}
        for frame in frames:
            for server, values in zip(frame.servers, frame.values[0], strict=True):
                for metric, value in zip(frame.metrics, values, strict=True):
                    if not np.isnan(value):
                        found[server, metric] = frame.times, np.array([value])
        return cls(list(found), [times for times, _ in found.values()], [values for _, values in found.values()])

    def table(self, rows: Sequence[tuple[str, str]]) -> np.ndarray:
        """Return the values of some rows by name: float64[N, B]."""
        found = dict(zip(self.names, self.values, strict=True))
        return np.array([found[name] for name in rows])


async def ask(history: History, asked: Asked) -> np.ndarray:
    """Return the buckets of each series: float64[N, B]."""
    answer = await history.query_range(asked.query(), SECONDS)
    assert answer.values is not None
    return answer.values


def buckets(replies: Sequence[bytes]) -> np.ndarray:
    """Return the buckets of each series of a streamed answer: float64[N, B]."""
    parts = [pb.QueryRangeResponse.FromString(reply) for reply in replies]
    return np.array([np.array(series.values) for part in parts[1:] for series in part.batch.series])


async def ask_process(server: Server, asked: Sequence[Asked]) -> float:
    """Put questions to a process, one after the other; return the median of seconds until the values are at hand."""
    found = []
    async with Client(server.target) as client:
        for each in asked:
            message = each.message()
            start = time.perf_counter()
            buckets(await client.stream(QUERY_RANGE, message))
            found.append(time.perf_counter() - start)
    return statistics.median(found)

"""History as the time-series service has it, in the name of who asks."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

import numpy as np

from openmanager.api.frame.v1 import frame_pb2
from openmanager.api.timeseries.v1 import timeseries_pb2 as pb
from openmanager.errors import DataLossError, Reason, ResourceExhaustedError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from openmanager.api.provenance.v1.provenance_pb2 import Provenance
    from openmanager.runtime.peer import Peer

SERVICE = "/openmanager.api.timeseries.v1.TimeseriesService"
QUERY, LIST = f"{SERVICE}/QueryRange", f"{SERVICE}/ListSeries"
SERIES_PER_PAGE = 1_000
HOUR_NANOS = 3_600 * 10**9
DAY_NANOS = 24 * HOUR_NANOS
SERIES_PER_MESSAGE = 100
MAX_BUCKETS = 11_000
Aggregation = Literal["MEAN", "MAX", "LAST"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which series: ids of servers, a filter on servers, and keys, names or globs of metrics; empty chooses all."""

    servers: tuple[str, ...] = ()
    server_filter: str = ""
    metrics: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Buckets:
    """K series over T buckets.

    `names` are (server, metric), `times` int64[T] the starts of buckets in nanoseconds, `values` float64[K, T], NaN where
    there is nothing.
    """

    names: tuple[tuple[str, str], ...]
    times: NDArray[np.int64]
    values: NDArray[np.float64]
    provenance: Provenance


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """[start, end) in nanoseconds since 1970, in buckets of `step`."""

    start: int
    end: int
    step: int

    @property
    def count(self) -> int:
        """How many buckets it has, at most."""
        return -(-self.end // self.step) - self.start // self.step

    def parts(self) -> list[Span]:
        """Return it in pieces of as many buckets as one query may have."""
        first = self.start // self.step * self.step
        width = MAX_BUCKETS * self.step
        edges = [self.start, *range(first + width, self.end, width), self.end]
        return [Span(start=a, end=b, step=self.step) for a, b in pairwise(edges)]


class History:
    """The time-series service; `seconds` is how long one query may take."""

    def __init__(self, peer: Peer, seconds: float) -> None:
        self._peer = peer
        self._seconds = seconds

    async def buckets(
        self,
        selection: Selection,
        span: Span,
        aggregation: Aggregation = "MEAN",
        *,
        most: int,
    ) -> Buckets:
        """Return the chosen series; ResourceExhaustedError for more than `most`."""
        parts = [await self._part(selection, each, aggregation, most) for each in span.parts()]
        return parts[0] if len(parts) == 1 else _joined(parts)

    async def counters(self, selection: Selection) -> frozenset[tuple[str, str]]:
        """Return which of the chosen series only grow, as (server, metric)."""
        found: list[tuple[str, str]] = []
        request = pb.ListSeriesRequest(selector=_selector(selection), page_size=SERIES_PER_PAGE)
        while True:
            reply = await self._peer.unary(LIST, request, pb.ListSeriesResponse, seconds=self._seconds)
            found.extend(
                (each.server, each.metric)
                for each in reply.series
                if each.metric_info.kind == frame_pb2.METRIC_KIND_COUNTER
            )
            if not reply.next_page_token:
                return frozenset(found)
            request.page_token = reply.next_page_token

    async def _part(self, selection: Selection, span: Span, aggregation: Aggregation, most: int) -> Buckets:
        request = pb.QueryRangeRequest(
            selector=_selector(selection),
            aggregation=pb.Aggregation.Value(f"AGGREGATION_{aggregation}"),
            series_per_message=SERIES_PER_MESSAGE,
        )
        request.start_time.FromNanoseconds(span.start)
        request.end_time.FromNanoseconds(span.end)
        request.step.FromNanoseconds(span.step)
        header: pb.QueryRangeHeader | None = None
        names: list[tuple[str, str]] = []
        rows: list[NDArray[np.float64]] = []
        async for data in self._peer.server_stream(QUERY, request, seconds=self._seconds):
            reply = pb.QueryRangeResponse.FromString(data)
            if header is None:
                header = reply.header
                if header.series_count > most:
                    raise too_many_series(header.series_count, most)
            for series in reply.batch.series:
                names.append((series.server, series.metric))
                rows.append(np.asarray(series.values, np.float64))
        if header is None:
            raise DataLossError("the history came without its header")
        times = np.asarray(header.time_unix_nanos, np.int64)
        values = np.stack(rows) if rows else np.empty((0, len(times)))
        return Buckets(names=tuple(names), times=times, values=values, provenance=header.provenance)


def _selector(selection: Selection) -> frame_pb2.Selector:
    return frame_pb2.Selector(
        servers=selection.servers, server_filter=selection.server_filter, metrics=selection.metrics
    )


def too_many_series(count: int, most: int) -> ResourceExhaustedError:
    """Return what is said of a selector that chooses too many."""
    return ResourceExhaustedError(
        f"{count:,} series are chosen, and {most:,} at most can be looked at", reason=Reason.TOO_MANY_SERIES
    )


def _joined(parts: list[Buckets]) -> Buckets:
    """Return pieces one after the other; a series that one of them lacks has nothing there."""
    names = tuple(dict.fromkeys(name for part in parts for name in part.names))
    rows = {name: row for row, name in enumerate(names)}
    times = np.concatenate([part.times for part in parts])
    values = np.full((len(names), len(times)), np.nan)
    begin = 0
    for part in parts:
        chosen = np.fromiter((rows[name] for name in part.names), np.int64, len(part.names))
        values[chosen, begin : begin + len(part.times)] = part.values
        begin += len(part.times)
    return Buckets(names=names, times=times, values=values, provenance=parts[-1].provenance)

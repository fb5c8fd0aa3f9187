"""Questions to the history, and the answers put together from their parts."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from datetime import datetime, timedelta

import numpy as np

from openmanager.api.frame.v1 import frame_pb2
from openmanager.api.provenance.v1 import provenance_pb2
from openmanager.api.timeseries.v1 import timeseries_pb2
from openmanager.client import codec, model, rpc
from openmanager.client.rpc import Away, Rpc
from openmanager.errors import DataLossError
from openmanager.frame import decode_trusted

SERIES_PER_MESSAGE = 1000


def selector(metrics: Sequence[str] | str, servers: Sequence[str] | str, where: str) -> frame_pb2.Selector:
    """Return the selector of metric keys, names or globs, server ids, and a filter on servers."""
    return frame_pb2.Selector(
        metrics=[metrics] if isinstance(metrics, str) else metrics,
        servers=[servers] if isinstance(servers, str) else servers,
        server_filter=where,
    )


def range_request(
    chosen: frame_pb2.Selector,
    *,
    start: datetime | int,
    end: datetime | int | None,
    step: timedelta | None,
    aggregation: str,
    group_by: str,
) -> timeseries_pb2.QueryRangeRequest:
    """Return the request for a range."""
    request = timeseries_pb2.QueryRangeRequest(
        selector=chosen,
        start_time=codec.timestamp(start, "start"),
        aggregation=codec.aggregation(aggregation),
        group_by=codec.group_by(group_by),
        series_per_message=SERIES_PER_MESSAGE,
    )
    if end is not None:
        request.end_time.CopyFrom(codec.timestamp(end, "end"))
    if step is not None:
        request.step.CopyFrom(codec.duration(step))
    return request


async def range_parts(
    calls: Rpc, request: timeseries_pb2.QueryRangeRequest, seconds: float
) -> AsyncIterator[model.AnswerPart]:
    """Yield the answer series by series, as it comes. The first part has no samples and no name: it is the header."""
    header: timeseries_pb2.QueryRangeHeader | None = None
    starts = np.empty(0, np.int64)
    about = model.Provenance()
    async with aclosing(rpc.closable(calls.stream(rpc.QUERY_RANGE, request, seconds=seconds))) as replies:
        async for reply in replies:
            if header is None:
                header = reply.header
                starts = np.asarray(header.time_unix_nanos, np.int64)
                about = codec.provenance(header.provenance)
                nobody = model.SeriesName(server="", metric="")
                yield model.AnswerPart(name=nobody, times=starts, values=np.empty(0), provenance=about)
                continue
            # A server of before there were batches sends each series for itself.
            for series in reply.batch.series or [reply.series]:
                times = starts if len(starts) else np.asarray(series.time_unix_nanos, np.int64)
                values = np.asarray(series.values, np.float64)
                yield model.AnswerPart(name=codec.series_name(series), times=times, values=values, provenance=about)


async def query_range(calls: Rpc, request: timeseries_pb2.QueryRangeRequest, seconds: float) -> model.RangeResult:
    """Return the whole answer."""
    parts = [part async for part in range_parts(calls, request, seconds)]
    if not parts:
        raise DataLossError("the answer came without its header")
    header, rest = parts[0], parts[1:]
    names = tuple(dict.fromkeys(part.name for part in rest))
    if request.step.ToNanoseconds():
        values = np.stack([part.values for part in rest]) if rest else np.empty((0, len(header.times)))
        return model.RangeResult(series=names, times=header.times, values=values, raw=(), provenance=header.provenance)
    return model.RangeResult(
        series=names,
        times=np.empty(0, np.int64),
        values=np.empty((len(names), 0)),
        raw=join_raw(rest),
        provenance=header.provenance,
    )


def join_raw(parts: Sequence[model.AnswerPart]) -> tuple[model.Samples, ...]:
    """Return raw samples with the parts of each long series joined; parts of one series follow each other."""
    by_name: dict[model.SeriesName, list[model.AnswerPart]] = {}
    for part in parts:
        by_name.setdefault(part.name, []).append(part)
    return tuple(
        model.Samples(
            times=np.concatenate([part.times for part in some]), values=np.concatenate([part.values for part in some])
        )
        for some in by_name.values()
    )


async def query_latest(calls: Rpc, chosen: frame_pb2.Selector, seconds: float) -> model.Latest:
    """Return the newest sample of each chosen series."""
    request = timeseries_pb2.QueryLatestRequest(selector=chosen)
    about, frames, position, token = provenance_pb2.Provenance(), [], 0, ""
    async for reply in calls.stream(rpc.QUERY_LATEST, request, seconds=seconds):
        position, token = reply.position, reply.resume_token
        if reply.WhichOneof("part") == "provenance":
            about = reply.provenance
        else:
            frames.append(decode_trusted(reply.frame))
    return model.Latest(frames=tuple(frames), position=position, provenance=codec.provenance(about), resume_token=token)


# ── moving ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def export_request(
    chosen: frame_pb2.Selector,
    *,
    start: datetime | int,
    end: datetime | int | None,
    tier: str = "",
    resume_token: str = "",
) -> timeseries_pb2.ExportSeriesRequest:
    """Return the request for an export."""
    request = timeseries_pb2.ExportSeriesRequest(
        selector=chosen, start_time=codec.timestamp(start, "start"), tier=tier, resume_token=resume_token
    )
    if end is not None:
        request.end_time.CopyFrom(codec.timestamp(end, "end"))
    return request


async def export_parts(
    calls: Rpc, request: timeseries_pb2.ExportSeriesRequest, on_away: Away | None = None
) -> AsyncIterator[timeseries_pb2.ExportSeriesResponse]:
    """Yield the header, once, and the chunks; a broken connection is taken up after the last chunk that came.

    The request is changed: its token is that of the last chunk.
    """

    async def begin() -> AsyncIterator[timeseries_pb2.ExportSeriesResponse]:
        async for reply in calls.stream(rpc.EXPORT_SERIES, request, seconds=None):
            if reply.HasField("chunk"):
                request.resume_token = reply.chunk.resume_token
            yield reply
        yield timeseries_pb2.ExportSeriesResponse()  # the end, which is not a break

    known = False
    async with aclosing(rpc.closable(calls.resumed(begin, on_away))) as replies:
        async for reply in replies:
            match reply.WhichOneof("part"):
                case None:
                    return
                case "header" if known:
                    continue
            known = True
            yield reply


async def export_series(
    calls: Rpc, request: timeseries_pb2.ExportSeriesRequest, on_away: Away | None = None
) -> AsyncIterator[model.ExportChunk]:
    """Yield the chunks of an export."""
    header = timeseries_pb2.ExportHeader()
    async with aclosing(rpc.closable(export_parts(calls, request, on_away))) as replies:
        async for reply in replies:
            if reply.HasField("header"):
                header = reply.header
            else:
                yield codec.export_chunk(reply.chunk, header)


def delete_request(
    chosen: frame_pb2.Selector, *, start: datetime | int | None, end: datetime | int | None, validate_only: bool
) -> timeseries_pb2.DeleteSeriesRequest:
    """Return the request to delete samples."""
    request = timeseries_pb2.DeleteSeriesRequest(selector=chosen, validate_only=validate_only)
    if start is not None:
        request.start_time.CopyFrom(codec.timestamp(start, "start"))
    if end is not None:
        request.end_time.CopyFrom(codec.timestamp(end, "end"))
    return request

"""History from several shards: series merged in their order, groups put together from what each shard has of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from google.protobuf.descriptor import MethodDescriptor
from numpy.typing import NDArray

from openmanager import access
from openmanager.api.timeseries.v1 import timeseries_pb2 as pb
from openmanager.errors import DataLossError, InvalidArgumentError, Reason, ResourceExhaustedError
from openmanager.runtime.edge import forwarded
from openmanager_gateway.shards.calls import Answers, Shards, join_tokens, joined_provenance

SERVICE = "/openmanager.api.timeseries.v1.TimeseriesService"
QUERY, LATEST, EXPORT = f"{SERVICE}/QueryRange", f"{SERVICE}/QueryLatest", f"{SERVICE}/ExportSeries"
# Of a message that this side asks for, and makes where it is to hold several.
SERIES_PER_MESSAGE, MAX_SERIES_PER_MESSAGE, MAX_MESSAGE_BYTES = 100, 1000, 1 << 20
# Samples of groups that are gathered here, where only all of them together give the number: 16 bytes each.
MAX_POOLED = 5_000_000
SEPARATOR = ":"
Floats = NDArray[np.float64]
Key = tuple[str, str]


def query_range(shards: Shards, _: MethodDescriptor) -> Any:
    """Return the handler of QueryRange."""
    # One at a time gathers samples: together they would fill memory.
    pool = asyncio.Lock()

    @forwarded
    async def query(request: pb.QueryRangeRequest, context: Any) -> AsyncIterator[pb.QueryRangeResponse]:
        chosen = shards.chosen(request.selector)
        if not request.HasField("end_time"):
            request.end_time.GetCurrentTime()  # the same for all
        is_grouped = request.step.ToNanoseconds() and request.group_by not in {
            pb.GROUP_BY_UNSPECIFIED,
            pb.GROUP_BY_SERVER,
        }
        if is_grouped and len(chosen) > 1:
            async for reply in _Groups(shards, request, context, pool).answer():
                yield reply
            return
        asked = _copy(request, series_per_message=request.series_per_message or SERIES_PER_MESSAGE)
        requests = dict.fromkeys(chosen, asked)
        async with shards.streams(requests, QUERY, pb.QueryRangeResponse, context) as answers:
            yield pb.QueryRangeResponse(header=_header(answers))
            series = _merged([_series(stream) for _, stream in answers.of.values()])
            async for reply in _messages(series, request.series_per_message):
                yield reply

    return query


def _copy(request: pb.QueryRangeRequest, **fields: Any) -> pb.QueryRangeRequest:
    made = pb.QueryRangeRequest()
    made.CopyFrom(request)
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def _header(answers: Answers[Any]) -> pb.QueryRangeHeader:
    headers = [first.header for first, _ in answers.of.values()]
    made = pb.QueryRangeHeader(
        provenance=joined_provenance([each.provenance for each in headers]),
        time_unix_nanos=headers[0].time_unix_nanos,
        series_count=sum(each.series_count for each in headers),
    )
    answers.mark(made.provenance)
    return made


async def _series(stream: AsyncIterator[pb.QueryRangeResponse]) -> AsyncIterator[pb.Series]:
    async for reply in stream:
        for each in reply.batch.series if reply.HasField("batch") else [reply.series]:
            yield each


async def _merged(streams: Sequence[AsyncIterator[pb.Series]]) -> AsyncIterator[pb.Series]:
    """Yield series by server and metric from streams that are so ordered; parts of one follow each other in one stream."""
    heads: dict[int, pb.Series] = {}
    for at, stream in enumerate(streams):
        if (first := await anext(stream, None)) is not None:
            heads[at] = first
    while heads:
        at = min(heads, key=lambda each: (heads[each].server, heads[each].metric))
        yield heads[at]
        if (following := await anext(streams[at], None)) is None:
            del heads[at]
        else:
            heads[at] = following


async def _messages(series: AsyncIterator[pb.Series], many: int) -> AsyncIterator[pb.QueryRangeResponse]:
    """Yield series one by one, or up to `many` in each message."""
    batch: list[pb.Series] = []
    size = 0
    async for each in series:
        if not many:
            yield pb.QueryRangeResponse(series=each)
            continue
        more = each.ByteSize()
        if batch and (len(batch) >= min(many, MAX_SERIES_PER_MESSAGE) or size + more > MAX_MESSAGE_BYTES):
            yield pb.QueryRangeResponse(batch=pb.SeriesBatch(series=batch))
            batch, size = [], 0
        batch.append(each)
        size += more
    if batch:
        yield pb.QueryRangeResponse(batch=pb.SeriesBatch(series=batch))


# ── groups ─────────────────────────────────────────────────────────────────────────────────────────────────────────

# What each aggregation of a group is made of that the shards can compute of their part of it.
_PARTS: Mapping[int, tuple[int, ...]] = {
    pb.AGGREGATION_MEAN: (pb.AGGREGATION_COUNT, pb.AGGREGATION_MEAN),
    pb.AGGREGATION_MIN: (pb.AGGREGATION_MIN,),
    pb.AGGREGATION_MAX: (pb.AGGREGATION_MAX,),
    pb.AGGREGATION_SUM: (pb.AGGREGATION_SUM,),
    pb.AGGREGATION_COUNT: (pb.AGGREGATION_COUNT,),
    pb.AGGREGATION_RATE: (pb.AGGREGATION_RATE,),
    pb.AGGREGATION_INCREASE: (pb.AGGREGATION_INCREASE,),
    pb.AGGREGATION_STDDEV: (pb.AGGREGATION_COUNT, pb.AGGREGATION_MEAN, pb.AGGREGATION_STDDEV),
}
_PERCENTS: Mapping[int, float] = {
    pb.AGGREGATION_P50: 50.0,
    pb.AGGREGATION_P90: 90.0,
    pb.AGGREGATION_P95: 95.0,
    pb.AGGREGATION_P99: 99.0,
}
_GROUP_FIELDS = {pb.GROUP_BY_ROLE: "role", pb.GROUP_BY_ENVIRONMENT: "environment"}


@dataclass(frozen=True, slots=True)
class _Part:
    """What the shards have of the groups: for each (group, metric) float64[B] of each shard that has it."""

    header: pb.QueryRangeHeader
    answered: Sequence[int]
    values: Mapping[Key, Mapping[int, Floats]]


class _Groups:
    """A question about groups whose servers several shards own."""

    def __init__(self, shards: Shards, request: pb.QueryRangeRequest, context: Any, pool: asyncio.Lock) -> None:
        self._shards, self._request, self._context, self._pool = shards, request, context, pool
        self._aggregation = request.aggregation or pb.AGGREGATION_MEAN

    async def answer(self) -> AsyncIterator[pb.QueryRangeResponse]:
        """Yield the header and the groups, by group and metric."""
        parts = _PARTS.get(self._aggregation)
        if parts is None:
            header, found = await self._pooled()
        else:
            asked = [await self._part(parts[0])]
            for each in parts[1:]:
                asked.append(await self._part(each, asked[-1].answered))
            header = asked[-1].header
            header.provenance.CopyFrom(joined_provenance([part.header.provenance for part in asked]))
            found = {}
            for key, of in asked[-1].values.items():
                # Of a shard that was away for one of the parts no other counts either.
                some = [shard for shard in of if all(shard in part.values.get(key, ()) for part in asked)]
                if some:
                    rows = [np.stack([part.values[key][shard] for shard in some]) for part in asked]
                    found[key] = _combined(self._aggregation, rows)
        header.series_count = len(found)
        yield pb.QueryRangeResponse(header=header)
        async for reply in _messages(_named(found), self._request.series_per_message):
            yield reply

    async def _part(self, aggregation: int, shards: Sequence[int] = ()) -> _Part:
        request = _copy(self._request, aggregation=aggregation, series_per_message=SERIES_PER_MESSAGE)
        requests = dict.fromkeys(shards or self._shards.chosen(request.selector), request)
        rows: dict[Key, dict[int, Floats]] = {}
        async with self._shards.streams(requests, QUERY, pb.QueryRangeResponse, self._context) as answers:
            header = _header(answers)
            width = len(header.time_unix_nanos)
            for shard, (_, stream) in answers.of.items():
                async for each in _series(stream):
                    values = np.asarray(each.values, np.float64)
                    if len(values) != width:
                        raise DataLossError("shards answered with different buckets")
                    rows.setdefault((each.group, each.metric), {})[shard] = values
        return _Part(header, list(answers.of), dict(sorted(rows.items())))

    # What only all samples together give: the first and the last, and percentiles.

    async def _pooled(self) -> tuple[pb.QueryRangeHeader, dict[Key, Floats]]:
        counted = await self._part(pb.AGGREGATION_COUNT)
        total = sum(float(np.nansum(values)) for of in counted.values.values() for values in of.values())
        if total > MAX_POOLED:
            raise ResourceExhaustedError(
                f"groups over several shards need their {total:,.0f} samples in one place for this, and {MAX_POOLED:,} at"
                " most fit: narrow the range, or ask for each server",
                reason=Reason.TOO_MANY_SERIES,
            )
        starts = np.asarray(counted.header.time_unix_nanos, np.int64)
        step = self._request.step.ToNanoseconds()
        found: dict[Key, Floats] = {}
        headers = [counted.header]
        for group in dict.fromkeys(group for group, _ in counted.values):
            async with self._pool:
                header, samples = await self._samples(group)
                headers.append(header)
                found.update(
                    {
                        (group, metric): await asyncio.to_thread(_reduced, self._aggregation, pooled, starts, step)
                        for metric, pooled in samples.items()
                    }
                )
                del samples
        about = joined_provenance([each.provenance for each in headers])
        header = pb.QueryRangeHeader(provenance=about, time_unix_nanos=counted.header.time_unix_nanos)
        return header, {key: found[key] for key in sorted(found)}

    async def _samples(self, group: str) -> tuple[pb.QueryRangeHeader, Mapping[str, tuple[Any, Floats]]]:
        """Return the times and the samples of each metric of a group, by time, those of one time by server."""
        request = _copy(self._request, group_by=pb.GROUP_BY_SERVER, series_per_message=SERIES_PER_MESSAGE)
        request.ClearField("step")
        if field := _GROUP_FIELDS.get(self._request.group_by):
            own = f"{field} = {_quoted(group)}"
            text = request.selector.server_filter
            request.selector.server_filter = f"({text}) AND {own}" if text.strip() else own
        requests = dict.fromkeys(self._shards.chosen(request.selector), request)
        rows: dict[str, list[pb.Series]] = {}
        async with self._shards.streams(requests, QUERY, pb.QueryRangeResponse, self._context) as answers:
            async for each in _merged([_series(stream) for _, stream in answers.of.values()]):
                rows.setdefault(each.metric, []).append(each)
        return _header(answers), {metric: _by_time(series) for metric, series in rows.items()}


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _by_time(series: Sequence[pb.Series]) -> tuple[Any, Floats]:
    times = np.concatenate([np.asarray(each.time_unix_nanos, np.int64) for each in series])
    values = np.concatenate([np.asarray(each.values, np.float64) for each in series])
    order = np.argsort(times, kind="stable")
    return times[order], values[order]


def _reduced(aggregation: int, samples: tuple[Any, Floats], starts: Any, step: int) -> Floats:
    """Return a percentile, the first or the last of the samples of each bucket: float64[B]."""
    times, values = samples
    out = np.full(len(starts), np.nan)
    edges = np.searchsorted(times, [*starts.tolist(), int(starts[-1]) + step]) if len(starts) else np.empty(0, np.int64)
    percent = _PERCENTS.get(aggregation)
    for at in np.flatnonzero(np.diff(edges)).tolist():
        some = values[edges[at] : edges[at + 1]]
        if percent is not None:
            out[at] = np.percentile(some, percent)
        else:
            out[at] = some[0 if aggregation == pb.AGGREGATION_FIRST else -1]
    return out


@np.errstate(over="ignore", invalid="ignore", divide="ignore")
def _combined(aggregation: int, parts: Sequence[Floats]) -> Floats:
    """Return what the parts of all shards make together: float64[B], NaN where none has something."""
    first = parts[0]
    found: Floats
    match aggregation:
        case pb.AGGREGATION_MIN:
            found = np.fmin.reduce(first)
        case pb.AGGREGATION_MAX:
            found = np.fmax.reduce(first)
        case pb.AGGREGATION_MEAN:  # counted a moment before, and still between the least and the greatest mean
            means = parts[1]
            found = np.nansum(first * means, axis=0) / np.nansum(np.where(np.isnan(means), np.nan, first), axis=0)
        case pb.AGGREGATION_STDDEV:
            found = _deviation(*(np.nan_to_num(part) for part in parts))
        case _:
            found = np.nansum(first, axis=0)
    return np.where(np.isnan(first).all(axis=0), np.nan, found)


def _deviation(counts: Floats, means: Floats, deviations: Floats) -> Floats:
    """Return the standard deviation with n − 1 of samples in parts (Chan, Golub and LeVeque 1979): of float64[K, B]."""
    count = counts.sum(axis=0)
    mean = (counts * means).sum(axis=0) / count
    squares = (deviations**2 * np.maximum(counts - 1, 0) + counts * (means - mean) ** 2).sum(axis=0)
    found: Floats = np.sqrt(squares / np.where(count > 1, count - 1, np.nan))
    return found


async def _named(found: Mapping[Key, Floats]) -> AsyncIterator[pb.Series]:
    for (group, metric), values in found.items():
        yield pb.Series(group=group, metric=metric, values=values)


# ── the newest samples, and exports ────────────────────────────────────────────────────────────────────────────────


def query_latest(shards: Shards, _: MethodDescriptor) -> Any:
    """Return the handler of QueryLatest: the frames of all shards in turn."""

    @forwarded
    async def query(request: pb.QueryLatestRequest, context: Any) -> AsyncIterator[pb.QueryLatestResponse]:
        chosen = shards.chosen(request.selector)
        requests = dict.fromkeys(chosen, request)
        async with shards.streams(requests, LATEST, pb.QueryLatestResponse, context) as answers:
            firsts = {shard: first for shard, (first, _) in answers.of.items()}
            head = pb.QueryLatestResponse(provenance=joined_provenance([each.provenance for each in firsts.values()]))
            answers.mark(head.provenance)
            if len(firsts) == len(shards):
                head.resume_token = join_tokens([str(firsts[shard].position) for shard in sorted(firsts)])
            yield head
            streams = [stream for _, stream in answers.of.values()]
            while streams:  # in turn: a shard gives up a stream that is left waiting
                for stream in list(streams):
                    if (reply := await anext(stream, None)) is None:
                        streams.remove(stream)
                    else:
                        yield pb.QueryLatestResponse(frame=reply.frame, resume_token=head.resume_token)

    return query


def export_series(shards: Shards, _: MethodDescriptor) -> Any:
    """Return the handler of ExportSeries: the rows of one shard after those of the other.

    It is written down here, once for the call, and not for each of those that are made of it.
    """

    async def export(request: pb.ExportSeriesRequest, context: Any) -> AsyncIterator[pb.ExportSeriesResponse]:
        access.noted()
        chosen = shards.chosen(request.selector)
        first, token = _export_place(request.resume_token, chosen)
        request.resume_token = ""
        requests = dict.fromkeys(chosen, request)
        # Ended before one is read after the other: whoever is left waiting would give up.
        async with shards.streams(requests, EXPORT, pb.ExportSeriesResponse, context) as headers:
            counts = {shard: reply.header.series_count for shard, (reply, _) in headers.of.items()}
            about = joined_provenance([reply.header.provenance for reply, _ in headers.of.values()])
            headers.mark(about)
        yield pb.ExportSeriesResponse(header=pb.ExportHeader(provenance=about, series_count=sum(counts.values())))
        done = 0
        for shard in sorted(counts):
            if shard >= first:
                request.resume_token = token if shard == first else ""
                async for data in shards.stream(shard, EXPORT, request, context):
                    reply = pb.ExportSeriesResponse.FromString(data)
                    if reply.HasField("chunk"):
                        reply.chunk.resume_token = f"{shard}{SEPARATOR}{reply.chunk.resume_token}"
                        reply.chunk.done_series_count += done
                        yield reply
            done += counts[shard]

    return export


def _export_place(token: str, chosen: Sequence[int]) -> tuple[int, str]:
    """Return the shard with which an export goes on, and its own token."""
    if not token:
        return chosen[0], ""
    shard, _, own = token.partition(SEPARATOR)
    if not (own and shard.isascii() and shard.isdigit() and int(shard) in chosen):
        raise InvalidArgumentError("invalid page token", reason=Reason.INVALID_PAGE_TOKEN, field="resume_token")
    return int(shard), own

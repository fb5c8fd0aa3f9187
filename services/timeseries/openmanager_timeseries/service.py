"""The edge of the time-series service."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import numpy as np

from openmanager.api.frame.v1 import frame_pb2
from openmanager.api.provenance.v1 import provenance_pb2
from openmanager.api.timeseries.v1 import timeseries_pb2 as pb
from openmanager.errors import invalid, missing
from openmanager.frame import Frame, encode, frame_of, length_delimited, packed, split
from openmanager.progress import progress_seconds
from openmanager.runtime.clock import Clock, until_next
from openmanager.runtime.edge import raw, unbounded
from openmanager.runtime.peer import RATIONED
from openmanager.watch import compacted
from openmanager_timeseries import reach
from openmanager_timeseries.deletion import delete_series
from openmanager_timeseries.export import Asked, Export
from openmanager_timeseries.history import History
from openmanager_timeseries.ledger import check_consumer
from openmanager_timeseries.log import Cursor
from openmanager_timeseries.query import BUDGET_SECONDS, EARLIEST_NANOS, LATEST_NANOS, Answer, RangeQuery
from openmanager_timeseries.quota import QuerySlots
from openmanager_timeseries.record import Payload, Record
from openmanager_timeseries.series_page import series_page
from openmanager_timeseries.tier import RAW
from openmanager_timeseries.wire import accepted_frames, ack, selector_of, time_of

RAW_PART_SAMPLES = 100_000
MAX_BATCH_SERIES = 1000
MAX_BATCH_BYTES = 1 << 20


class TimeseriesService:
    """openmanager.api.timeseries.v1.TimeseriesService."""

    def __init__(self, history: History, clock: Clock) -> None:
        self._history = history
        self._clock = clock
        self._slots = QuerySlots(history.config.max_queries)

    @raw
    async def WriteFrame(self, data: bytes, context: Any) -> pb.WriteFrameResponse:  # noqa: N802
        """Append one frame."""
        rationed = RATIONED in (context.invocation_metadata() or ())
        payload = frame_of(pb.WriteFrameRequest, data)
        reach.check_writable(self._history.catalog, payload)
        accepted = await self._history.write(payload, rationed=rationed)
        return pb.WriteFrameResponse(ack=ack(accepted))

    @raw
    async def WriteFrames(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[Any]:  # noqa: ARG002, N802
        """Append frames, many under way at once, each acknowledged in order."""
        async for each in accepted_frames(self._history, pb.WriteFramesRequest, requests, any_future=False):
            yield pb.WriteFramesResponse(ack=each)

    async def WatchFrames(  # noqa: N802
        self,
        request: pb.WatchFramesRequest,
        context: Any,  # noqa: ARG002
    ) -> AsyncIterator[Any]:
        """Stream the log."""
        cursor, progress = _cursor(self._history, request), progress_seconds(request)
        self._history.log.check_kept(cursor.position)
        yield pb.WatchFramesResponse(position=cursor.position - 1)
        while True:
            records = await self._history.log.read(cursor)
            for record in records:
                yield _watched(record, reach.readable(self._history.catalog, record.payload))
            if not records and not await _grew(self._history, cursor.position - 1, until_next(progress)):
                yield pb.WatchFramesResponse(position=cursor.position - 1)
            self._history.log.check_kept(min(cursor.position, self._history.log.state.head_position + 1))

    async def QueryRange(self, request: pb.QueryRangeRequest, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        """Stream samples or buckets."""
        query = _range_query(request, self._clock.now_nanos())
        with self._slots.one():
            answer = await self._history.query_range(query, context.time_remaining() or BUDGET_SECONDS)
        for part in _range_parts(answer, self._clock.now_nanos(), request.series_per_message):
            yield part

    async def QueryLatest(  # noqa: N802
        self,
        request: pb.QueryLatestRequest,
        context: Any,  # noqa: ARG002
    ) -> AsyncIterator[Any]:
        """Stream the newest samples."""
        position = self._history.log.state.head_position
        frames = latest_frames(self._history, request.selector)
        newest = max((int(frame.times[-1]) for frame in frames), default=self._clock.now_nanos())
        about = _provenance("head", "raw", as_of=newest, now=self._clock.now_nanos())
        yield pb.QueryLatestResponse(provenance=about, position=position)
        for frame in frames:
            yield length_delimited(2, encode(frame)) + pb.QueryLatestResponse(position=position).SerializeToString()

    async def ListSeries(self, request: pb.ListSeriesRequest, context: Any) -> pb.ListSeriesResponse:  # noqa: ARG002, N802
        """List the series."""
        now = self._clock.now_nanos()
        about = _provenance("head", "", as_of=now, now=now)
        query = selector_of(request.selector)
        return series_page(self._history.catalog, query, request.page_size, request.page_token, about)

    @unbounded
    async def DeleteSeries(self, request: pb.DeleteSeriesRequest, context: Any) -> pb.DeleteSeriesResponse:  # noqa: ARG002, N802
        """Delete samples."""
        start, end = time_of(request, "start_time", EARLIEST_NANOS), time_of(request, "end_time", LATEST_NANOS)
        selection = self._history.catalog.select(*_chosen(request.selector))
        if end <= start:
            raise invalid("end_time", "must be after start_time")
        done = await delete_series(self._history, selection, start, end, dry=request.validate_only)
        return pb.DeleteSeriesResponse(
            series_count=done.series, sample_count=done.samples, bucket_count=done.buckets, freed_bytes=done.bytes
        )

    async def ExportSeries(self, request: pb.ExportSeriesRequest, context: Any) -> AsyncIterator[Any]:  # noqa: ARG002, N802
        """Stream samples or buckets as Parquet."""
        now = self._history.clock.now_nanos()
        export = Export(self._history, _export(request, now), request.resume_token)
        source = "head+blocks" if request.tier in {"", RAW} else "tiers"
        missing_part = export.partial_reason
        about = provenance_pb2.Provenance(
            source=source, tier=request.tier or RAW, partial=bool(missing_part), reason=missing_part
        )
        about.as_of_time.FromNanoseconds(now)
        yield pb.ExportSeriesResponse(header=pb.ExportHeader(provenance=about, series_count=export.series_count))
        async for chunk in export.chunks():
            yield pb.ExportSeriesResponse(
                chunk=pb.ExportChunk(
                    parquet=chunk.parquet,
                    row_count=chunk.rows,
                    resume_token=chunk.token,
                    done_series_count=chunk.done_series,
                )
            )


# ── watching ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _cursor(history: History, request: pb.WatchFramesRequest) -> Cursor:
    if request.from_position < 0:
        raise invalid("from_position", "must not be negative")
    if request.consumer:
        check_consumer(request.consumer)
    if request.resume_token:
        raise compacted()  # of a mesh with another number of shards
    if request.from_position:
        return Cursor(request.from_position)
    books = history.ledger.books.get(request.consumer)
    return Cursor(books.position + 1 if books else history.log.state.head_position + 1)


def _watched(record: Record, frame: Payload) -> bytes:
    about = pb.WatchFramesResponse(position=record.position, trace_parent=record.trace_parent)
    about.receive_time.FromNanoseconds(record.receive_nanos)
    return about.SerializeToString() + (length_delimited(2, frame) if frame else b"")


async def _grew(history: History, position: int, seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            await history.log.wait_beyond(position)
    except TimeoutError:
        return False
    return True


# ── reading ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _chosen(selector: frame_pb2.Selector) -> tuple[tuple[str, ...], str, tuple[str, ...]]:
    """Return a selector that chooses something: nobody deletes everything by leaving a field out."""
    if not (selector.servers or selector.server_filter or selector.metrics):
        raise missing("selector")
    return selector_of(selector)


def _export(request: pb.ExportSeriesRequest, now: int) -> Asked:
    servers, text, metrics = selector_of(request.selector)
    start, end = time_of(request, "start_time", None), time_of(request, "end_time", now)
    if end <= start:
        raise invalid("end_time", "must be after start_time")
    return Asked(
        servers=servers,
        server_filter=text,
        metrics=metrics,
        start=start,
        end=end,
        tier=request.tier or RAW,
        open_end=not request.HasField("end_time"),
    )


def _range_query(request: pb.QueryRangeRequest, now: int) -> RangeQuery:
    if not request.HasField("start_time"):
        raise missing("start_time")
    if request.series_per_message < 0:
        raise invalid("series_per_message", "must not be negative")
    servers, server_filter, metrics = selector_of(request.selector)
    return RangeQuery(
        servers=servers,
        server_filter=server_filter,
        metrics=metrics,
        start=request.start_time.ToNanoseconds(),
        end=request.end_time.ToNanoseconds() if request.HasField("end_time") else now,
        step=request.step.ToNanoseconds(),
        aggregation=pb.Aggregation.Name(request.aggregation or pb.AGGREGATION_MEAN).removeprefix("AGGREGATION_"),
        group_by=pb.GroupBy.Name(request.group_by or pb.GROUP_BY_SERVER).removeprefix("GROUP_BY_"),
    )


def _provenance(source: str, tier: str, *, as_of: int, now: int, partial: str = "") -> provenance_pb2.Provenance:
    about = provenance_pb2.Provenance(source=source, tier=tier, partial=bool(partial), reason=partial)
    about.as_of_time.FromNanoseconds(as_of)
    about.staleness.FromNanoseconds(max(0, now - as_of))
    return about


def _range_provenance(answer: Answer, now: int) -> provenance_pb2.Provenance:
    sources = dict.fromkeys(name for part in answer.parts for name in part.source.split("+"))
    widths = sorted({(part.width, part.tier) for part in answer.parts}, reverse=True)
    about = _provenance(
        "+".join(sources) or "head",
        "+".join(tier for _, tier in widths) or RAW,
        as_of=now,
        now=now,
        partial=answer.partial_reason,
    )
    if answer.degraded_reason:
        about.degraded = True
        about.reason = "; ".join(filter(None, (answer.degraded_reason, answer.partial_reason)))
    if widths and widths[0][0]:
        about.resolution.FromNanoseconds(widths[0][0])
    about.rank_error = answer.rank_error
    for part in answer.parts:
        segment = about.segments.add(source=part.source, tier=part.tier)
        segment.start_time.FromNanoseconds(part.start)
        segment.end_time.FromNanoseconds(part.end)
    return about


def _range_parts(answer: Answer, now: int, many: int) -> Iterator[bytes]:
    """Yield the messages of an answer: a header, then the series one by one, or up to `many` in each."""
    header = pb.QueryRangeHeader(
        provenance=_range_provenance(answer, now), series_count=len(answer.names)
    ).SerializeToString()
    yield length_delimited(1, header + packed(2, answer.starts))
    if not many:
        for part in _series_parts(answer):
            yield length_delimited(2, part)
        return
    batch: list[bytes] = []
    size = 0
    for part in _series_parts(answer):
        if batch and (len(batch) >= min(many, MAX_BATCH_SERIES) or size + len(part) > MAX_BATCH_BYTES):
            yield length_delimited(3, b"".join(batch))
            batch, size = [], 0
        batch.append(length_delimited(1, part))
        size += len(part)
    if batch:
        yield length_delimited(3, b"".join(batch))


def _series_parts(answer: Answer) -> Iterator[bytes]:
    """Yield the wire form of each Series."""
    for row, name in enumerate(answer.names):
        about = pb.Series(server=name.server, metric=name.metric, group=name.group).SerializeToString()
        if answer.values is not None:
            yield about + packed(4, answer.values[row])
        elif answer.raw is not None:
            first, last = int(answer.raw.offsets[row]), int(answer.raw.offsets[row + 1])
            for at in range(first, max(last, first + 1), RAW_PART_SAMPLES):
                part = slice(at, min(at + RAW_PART_SAMPLES, last))
                yield about + packed(4, answer.raw.values[part]) + packed(5, answer.raw.times[part])


def latest_frames(history: History, selector: frame_pb2.Selector) -> list[Frame]:
    """Return the newest sample of each chosen series, as frames of one time each, oldest first, with all that is known."""
    catalog = history.catalog
    selection = catalog.select(*selector_of(selector))
    times, values = catalog.last(selection.ids)
    servers, metrics = catalog.server_of(selection.ids), catalog.metric_of(selection.ids)
    frames: list[Frame] = []
    for time in np.unique(times[times != np.iinfo(np.int64).min]):
        at = times == time
        some_servers, server_rows = np.unique(servers[at], return_inverse=True)
        some_metrics, metric_rows = np.unique(metrics[at], return_inverse=True)
        grid = np.full((1, len(some_servers), len(some_metrics)), np.nan)
        grid[0, server_rows, metric_rows] = values[at]
        ids = tuple(catalog.servers[index] for index in some_servers.tolist())
        infos = tuple(catalog.infos[server] for server in ids if server in catalog.infos)
        frames.extend(
            split(
                Frame(
                    times=np.asarray([time], np.int64),
                    servers=ids,
                    metrics=tuple(catalog.metrics[index] for index in some_metrics.tolist()),
                    values=grid,
                    server_infos=infos,
                )
            )
        )
    return frames

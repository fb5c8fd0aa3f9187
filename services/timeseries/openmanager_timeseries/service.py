"""The edge of the time-series service."""

from __future__ import annotations

import asyncio
import bisect
from collections.abc import AsyncIterator, Sequence
from typing import Any

import numpy as np

from openmanager import page
from openmanager.api.frame.v1 import frame_pb2
from openmanager.api.provenance.v1 import provenance_pb2
from openmanager.api.timeseries.v1 import timeseries_pb2 as pb
from openmanager.errors import invalid, missing
from openmanager.frame import Frame, encode, length_delimited, metric_message, packed, split
from openmanager.runtime import validate
from openmanager.runtime.clock import Clock
from openmanager.runtime.edge import raw
from openmanager_timeseries.history import Accepted, History
from openmanager_timeseries.ledger import OWN_CONSUMERS, check_consumer
from openmanager_timeseries.log import Cursor
from openmanager_timeseries.query import BUDGET_SECONDS, Answer, RangeQuery
from openmanager_timeseries.record import Record

PROGRESS_SECONDS = 10.0
RAW_PART_SAMPLES = 100_000
MAX_SELECTOR_ENTRIES = 10_000


class TimeseriesService:
    """openmanager.api.timeseries.v1.TimeseriesService."""

    def __init__(self, history: History, clock: Clock) -> None:
        self._history = history
        self._clock = clock

    @raw
    async def WriteFrame(self, data: bytes, context: Any) -> pb.WriteFrameResponse:  # noqa: ARG002, N802
        """Append one frame."""
        return pb.WriteFrameResponse(ack=_ack(await self._history.write(_frame_of(pb.WriteFrameRequest, data))))

    @raw
    async def WriteFrames(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[Any]:  # noqa: ARG002, N802
        """Append frames, many under way at once, each acknowledged in order."""
        async for accepted in _write_all(self._history, pb.WriteFramesRequest, requests, any_future=False):
            yield pb.WriteFramesResponse(ack=_ack(accepted))

    async def WatchFrames(  # noqa: N802
        self,
        request: pb.WatchFramesRequest,
        context: Any,  # noqa: ARG002
    ) -> AsyncIterator[Any]:
        """Stream the log."""
        cursor = _cursor(self._history, request)
        self._history.log.check_kept(cursor.position)
        yield pb.WatchFramesResponse(position=cursor.position - 1)
        while True:
            records = await self._history.log.read(cursor)
            for record in records:
                yield _watched(record)
            if not records and not await _grew(self._history, cursor.position - 1):
                yield pb.WatchFramesResponse(position=cursor.position - 1)
            self._history.log.check_kept(min(cursor.position, self._history.log.state.head_position + 1))

    async def QueryRange(self, request: pb.QueryRangeRequest, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        """Stream samples or buckets."""
        query = _range_query(request, self._clock.now_nanos())
        answer = await self._history.query_range(query, context.time_remaining() or BUDGET_SECONDS)
        for part in _range_parts(answer, self._clock.now_nanos()):
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
        size = page.page_size(request.page_size)
        query = (*_selector(request.selector),)
        after = page.decode_token(query, request.page_token, parts=2)
        return _series_page(self._history, query, size, after, self._clock.now_nanos())


class LogService:
    """openmanager.api.timeseries.v1.LogService."""

    def __init__(self, history: History) -> None:
        self._history = history

    async def GetLedger(self, request: pb.GetLedgerRequest, context: Any) -> pb.GetLedgerResponse:  # noqa: ARG002, N802
        """Return the books."""
        return pb.GetLedgerResponse(ledger=self._history.ledger.message(self._history.log))

    async def ConfirmPosition(  # noqa: N802
        self,
        request: pb.ConfirmPositionRequest,
        context: Any,  # noqa: ARG002
    ) -> pb.ConfirmPositionResponse:
        """Store a consumer's position."""
        name = check_consumer(request.consumer)
        if name in OWN_CONSUMERS:
            raise invalid(
                "consumer", f"must not be one of {', '.join(sorted(OWN_CONSUMERS))}: these are the service's own"
            )
        if request.position < 0:
            raise invalid("position", "must not be negative")
        await self._history.ledger.confirm(self._history.log, name, request.position, resynced=request.resynced)
        return pb.ConfirmPositionResponse(consumer=self._history.ledger.row(name, self._history.log))


class ImportService:
    """openmanager.api.timeseries.v1.ImportService."""

    def __init__(self, history: History) -> None:
        self._history = history

    @raw
    async def ImportFrames(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[Any]:  # noqa: ARG002, N802
        """Append frames whose times may lie in the future."""
        async for accepted in _write_all(self._history, pb.ImportFramesRequest, requests, any_future=True):
            yield pb.ImportFramesResponse(ack=_ack(accepted))


# ── writing ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _frame_of(cls: type[Any], data: bytes) -> bytes:
    """Return the bytes of the frame in a request: cut out where they are all there is in it, else through protobuf."""
    only = _only_field(data)
    if only is not None:
        return only
    request: Any = validate.decode(cls, data)
    if not request.HasField("frame"):
        raise missing("frame")
    encoded: bytes = request.frame.SerializeToString()
    return encoded


def _only_field(data: bytes) -> bytes | None:
    """Return the content of a message that is one length-delimited field 1 and nothing else."""
    if data[:1] != b"\x0a":
        return None
    size = shift = 0
    for at in range(1, min(len(data), 6)):
        size |= (data[at] & 0x7F) << shift
        shift += 7
        if data[at] < 0x80:
            return data[at + 1 :] if at + 1 + size == len(data) else None
    return None


async def _write_all(
    history: History, cls: type[Any], requests: AsyncIterator[bytes], *, any_future: bool
) -> AsyncIterator[Accepted]:
    """Write the frames of a stream, a bounded number at once, yielding what became of each in order."""
    under_way: asyncio.Queue[asyncio.Task[Accepted] | Exception | None] = asyncio.Queue(maxsize=64)

    async def receive() -> None:
        try:
            async for data in requests:
                wire = _frame_of(cls, data)
                await under_way.put(asyncio.create_task(history.write(wire, any_future=any_future)))
        except Exception as err:  # noqa: BLE001  (handed to the writer's own side of the stream, in order)
            await under_way.put(err)
        else:
            await under_way.put(None)

    receiver = asyncio.create_task(receive())
    try:
        while (item := await under_way.get()) is not None:
            if isinstance(item, Exception):
                raise item
            yield await item
    finally:
        receiver.cancel()
        await asyncio.gather(receiver, return_exceptions=True)
        while not under_way.empty():
            if isinstance(item := under_way.get_nowait(), asyncio.Task):
                item.cancel()


def _ack(accepted: Accepted) -> frame_pb2.WriteAck:
    admitted = accepted.admitted
    return frame_pb2.WriteAck(
        position=accepted.position,
        accepted_sample_count=admitted.accepted,
        rejected_sample_count=admitted.rejected,
        rejections=[
            frame_pb2.Rejection(server=r.server, metric=r.metric, reason=r.reason, sample_count=r.sample_count)
            for r in admitted.rejections
        ],
    )


# ── watching ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _cursor(history: History, request: pb.WatchFramesRequest) -> Cursor:
    if request.from_position < 0:
        raise invalid("from_position", "must not be negative")
    if request.consumer:
        check_consumer(request.consumer)
    if request.from_position:
        return Cursor(request.from_position)
    books = history.ledger.books.get(request.consumer)
    return Cursor(books.position + 1 if books else history.log.state.head_position + 1)


def _watched(record: Record) -> bytes:
    about = pb.WatchFramesResponse(position=record.position, trace_parent=record.trace_parent)
    about.receive_time.FromNanoseconds(record.receive_nanos)
    return about.SerializeToString() + length_delimited(2, record.payload)


async def _grew(history: History, position: int) -> bool:
    try:
        async with asyncio.timeout(PROGRESS_SECONDS):
            await history.log.wait_beyond(position)
    except TimeoutError:
        return False
    return True


# ── reading ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _selector(selector: frame_pb2.Selector) -> tuple[tuple[str, ...], str, tuple[str, ...]]:
    for name in ("servers", "metrics"):
        if len(getattr(selector, name)) > MAX_SELECTOR_ENTRIES:
            raise invalid(f"selector.{name}", f"has more than {MAX_SELECTOR_ENTRIES} entries")
    return tuple(selector.servers), selector.server_filter, tuple(selector.metrics)


def _range_query(request: pb.QueryRangeRequest, now: int) -> RangeQuery:
    if not request.HasField("start_time"):
        raise missing("start_time")
    servers, server_filter, metrics = _selector(request.selector)
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


def _range_parts(answer: Answer, now: int) -> Sequence[bytes]:
    header = pb.QueryRangeHeader(
        provenance=_provenance(answer.source, "raw", as_of=now, now=now, partial=answer.partial_reason),
        series_count=len(answer.names),
    ).SerializeToString()
    parts = [length_delimited(1, header + packed(2, answer.starts))]
    for row, name in enumerate(answer.names):
        about = pb.Series(server=name.server, metric=name.metric, group=name.group).SerializeToString()
        if answer.values is not None:
            parts.append(length_delimited(2, about + packed(4, answer.values[row])))
        elif answer.raw is not None:
            first, last = int(answer.raw.offsets[row]), int(answer.raw.offsets[row + 1])
            for at in range(first, max(last, first + 1), RAW_PART_SAMPLES):
                part = slice(at, min(at + RAW_PART_SAMPLES, last))
                columns = packed(4, answer.raw.values[part]) + packed(5, answer.raw.times[part])
                parts.append(length_delimited(2, about + columns))
    return parts


def latest_frames(history: History, selector: frame_pb2.Selector) -> list[Frame]:
    """Return the newest sample of each chosen series, as frames of one time each, oldest first, with all that is known."""
    catalog = history.catalog
    selection = catalog.select(*_selector(selector))
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


def _series_page(history: History, query: Any, size: int, after: list[str] | None, now: int) -> pb.ListSeriesResponse:
    catalog = history.catalog
    ids = catalog.select(*query).ids
    names = [
        (catalog.servers[s], catalog.metrics[m])
        for s, m in zip(catalog.server_of(ids).tolist(), catalog.metric_of(ids).tolist(), strict=True)
    ]
    first = 0
    if after is not None:
        first = bisect.bisect_right(names, (after[0], after[1]))
    response = pb.ListSeriesResponse(total_count=len(ids), provenance=_provenance("head", "", as_of=now, now=now))
    times, _ = catalog.last(ids[first : first + size])
    for (server, metric), time in zip(names[first : first + size], times.tolist(), strict=True):
        row = response.series.add(server=server, metric=metric, metric_info=metric_message(catalog.metric_info(metric)))
        if time > 0:
            row.last_time.FromNanoseconds(time)
    if first + size < len(names):
        response.next_page_token = page.encode_token(query, list(names[first + size - 1]))
    return response

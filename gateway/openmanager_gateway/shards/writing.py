"""Writes: a frame is split by the shards of its servers, each part acknowledged by its own, the whole when all have."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from google.protobuf.descriptor import MethodDescriptor

from openmanager.api.frame.v1 import frame_pb2
from openmanager.api.timeseries.v1 import timeseries_pb2 as pb
from openmanager.errors import OpenManagerError, UnavailableError
from openmanager.frame import FrameReader, encode_write_request, frame_of, length_delimited, of_servers
from openmanager.rollup import Grid, decode_grid, encode_grid
from openmanager.runtime.edge import forwarded, raw, unbounded
from openmanager.shard import shards_of
from openmanager_gateway.shards.calls import AWAY, Shards

MAX_REJECTIONS = 100
# Frames of a stream that are under way at once.
UNDER_WAY = 64
# What goes to which shard, as the bytes of a request.
Parts = Mapping[int, bytes]
Split = Callable[[bytes], Parts]


def frame_splitter(cls: type[Any], count: int) -> Split:
    """Return what splits requests with a frame among `count` shards; an error of `decode` for what is no frame.

    A frame whose servers are all of one shard goes on as it came. One without servers is for the first shard to judge.
    """
    reader = FrameReader()

    def split(data: bytes) -> Parts:
        frame, _ = reader.read(frame_of(cls, data))
        owners = shards_of(frame.servers, count)
        if len(owners) == 0 or (owners == owners[0]).all():
            return {int(owners[0]) if len(owners) else 0: data}
        return {
            shard: encode_write_request(of_servers(frame, owners == shard)) for shard in sorted(set(owners.tolist()))
        }

    return split


def rollup_splitter(count: int) -> Split:
    """Return what splits requests with buckets among `count` shards."""

    def split(data: bytes) -> Parts:
        tier, grid = decode_grid(bytes(frame_of(pb.ImportRollupsRequest, data)))
        owners = shards_of(grid.servers, count)
        if len(owners) == 0 or (owners == owners[0]).all():
            return {int(owners[0]) if len(owners) else 0: data}
        return {
            shard: length_delimited(1, encode_grid(tier, _of_servers(grid, owners == shard)))
            for shard in sorted(set(owners.tolist()))
        }

    return split


def _of_servers(grid: Grid, chosen: Any) -> Grid:
    servers = tuple(server for server, is_one in zip(grid.servers, chosen.tolist(), strict=True) if is_one)
    return replace(
        grid,
        servers=servers,
        columns={name: column[:, chosen] for name, column in grid.columns.items()},
        server_infos=tuple(info for info in grid.server_infos if info.id in servers),
    )


def joined_ack(acks: Mapping[int, frame_pb2.WriteAck]) -> frame_pb2.WriteAck:
    """Return the acknowledgement of a frame from those of its parts."""
    rejections = [each for ack in acks.values() for each in ack.rejections]
    return frame_pb2.WriteAck(
        accepted_sample_count=sum(ack.accepted_sample_count for ack in acks.values()),
        rejected_sample_count=sum(ack.rejected_sample_count for ack in acks.values()),
        rejections=rejections[:MAX_REJECTIONS],
        shard_positions=[
            frame_pb2.ShardPosition(shard=shard, position=ack.position) for shard, ack in acks.items() if ack.position
        ],
    )


async def write_parts(shards: Shards, path: str, parts: Parts, context: Any) -> frame_pb2.WriteAck:
    """Write the parts of a frame; an error when not all are acknowledged, which tells which are: they stay written."""
    numbers = list(parts)
    found = await asyncio.gather(
        *(shards.ask(shard, path, parts[shard], context) for shard in numbers), return_exceptions=True
    )
    acks = {
        shard: pb.WriteFrameResponse.FromString(each).ack
        for shard, each in zip(numbers, found, strict=True)
        if isinstance(each, bytes)
    }
    failed = [each for each in found if isinstance(each, BaseException)]
    if failed:
        raise _partly(next((each for each in failed if not isinstance(each, AWAY)), failed[0]), list(acks))
    return joined_ack(acks)


def _partly(error: BaseException, done: Sequence[int]) -> BaseException:
    """Return an error that says which shards have acknowledged their part."""
    if not done or not isinstance(error, OpenManagerError):
        return error
    told = copy.copy(error)
    numbers = ", ".join(map(str, done))
    told.message = f"{error.message}; the samples of shard {numbers} are acknowledged: write the frame again"
    return told


def write_frame(shards: Shards, method: MethodDescriptor) -> Any:
    """Return the handler of WriteFrame."""
    split = frame_splitter(pb.WriteFrameRequest, len(shards))
    path = "/openmanager.api.timeseries.v1.TimeseriesService/WriteFrame"
    assert method.name == "WriteFrame"  # noqa: S101  (the gateway's own and that of timeseries)

    @forwarded
    @raw
    @unbounded
    async def write(data: bytes, context: Any) -> pb.WriteFrameResponse:
        return pb.WriteFrameResponse(ack=await write_parts(shards, path, split(data), context))

    return write


def write_stream(reply: type[Any], cls: type[Any]) -> Callable[[Shards, MethodDescriptor], Any]:
    """Return what makes the handler of a stream of frames, each answered by a `reply` with its acknowledgement."""

    def join(replies: Mapping[int, Any]) -> Any:
        return reply(ack=joined_ack({shard: each.ack for shard, each in replies.items()}))

    return lambda shards, method: _streaming(shards, method, reply, frame_splitter(cls, len(shards)), join)


def import_rollups(shards: Shards, method: MethodDescriptor) -> Any:
    """Return the handler of ImportRollups."""

    def join(replies: Mapping[int, Any]) -> Any:
        counts = ("accepted_bucket_count", "rejected_bucket_count")
        return pb.ImportRollupsResponse(
            **{name: sum(getattr(each, name) for each in replies.values()) for name in counts}
        )

    return _streaming(shards, method, pb.ImportRollupsResponse, rollup_splitter(len(shards)), join)


def _streaming(
    shards: Shards, method: MethodDescriptor, reply: type[Any], split: Split, join: Callable[[Mapping[int, Any]], Any]
) -> Any:
    service = method.containing_service.name.replace("GatewayService", "TimeseriesService")
    path = f"/openmanager.api.timeseries.v1.{service}/{method.name}"

    @forwarded
    @raw
    async def stream(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[Any]:
        lanes = _Lanes(lambda shard, parts: shards.bidi(shard, path, parts, context))
        receiver = asyncio.create_task(lanes.receive(requests, split))
        try:
            while (item := await lanes.under_way.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                yield join({shard: reply.FromString(await lanes.answer(shard)) for shard in item})
        finally:
            receiver.cancel()
            await asyncio.gather(receiver, return_exceptions=True)
            await lanes.close()

    return stream


class _Lanes:
    """The streams to the shards: each begins with the first frame that has a server of its own."""

    def __init__(self, begin: Callable[[int, AsyncIterator[bytes]], AsyncIterator[bytes]]) -> None:
        self._begin = begin
        self._lanes: dict[int, _Lane] = {}
        # The shards of each frame, in order, and at last why there is none any more.
        self.under_way: asyncio.Queue[Sequence[int] | Exception | None] = asyncio.Queue(UNDER_WAY)

    async def receive(self, requests: AsyncIterator[bytes], split: Split) -> None:
        """Send the parts of every request on their ways."""
        last: Exception | None = None
        try:
            async for data in requests:
                parts = split(data)
                for shard, part in parts.items():
                    if shard not in self._lanes:
                        self._lanes[shard] = _Lane(shard, self._begin)
                    await self._lanes[shard].send(part)
                await self.under_way.put(list(parts))
        except Exception as err:  # noqa: BLE001  (handed to the answers' side, in order)
            last = err
        for lane in self._lanes.values():
            await lane.send(None)
        await self.under_way.put(last)

    async def answer(self, shard: int) -> bytes:
        """Return the next answer of a shard."""
        return await self._lanes[shard].answer()

    async def close(self) -> None:
        """End the streams."""
        for lane in self._lanes.values():
            await lane.close()


class _Lane:
    """The stream to one shard."""

    def __init__(self, shard: int, begin: Callable[[int, AsyncIterator[bytes]], AsyncIterator[bytes]]) -> None:
        self._queue: asyncio.Queue[bytes | None] = asyncio.Queue(UNDER_WAY)
        self._answers = begin(shard, self._requests())

    async def _requests(self) -> AsyncIterator[bytes]:
        while (data := await self._queue.get()) is not None:
            yield data

    async def send(self, data: bytes | None) -> None:
        await self._queue.put(data)

    async def answer(self) -> bytes:
        try:
            return await anext(self._answers)
        except StopAsyncIteration:
            raise UnavailableError("a shard ended its stream before all was answered") from None

    async def close(self) -> None:
        await self._answers.aclose()  # type: ignore[attr-defined]

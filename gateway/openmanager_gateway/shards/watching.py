"""Watches over several shards: messages as they come, each with a token that holds the place in every shard."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from google.protobuf.descriptor import MethodDescriptor

from openmanager.api.timeseries.v1 import timeseries_pb2 as pb
from openmanager.errors import UnavailableError, invalid
from openmanager.progress import progress_seconds
from openmanager.runtime import validate
from openmanager.runtime.edge import forwarded, unbounded
from openmanager.runtime.peer import backoff
from openmanager.watch import MAX_DIGITS, compacted
from openmanager_gateway.router import path_of
from openmanager_gateway.shards.calls import Shards, join_tokens, split_tokens
from openmanager_gateway.shards.merging import joined_consumer

CONFIRM = "/openmanager.api.timeseries.v1.LogService/ConfirmPosition"
# Messages of one shard that wait for the reader: each may have megabytes.
WAITING = 4
# A shard that is away is tried again at least so often.
AGAIN_SECONDS = 1.0


def watch(shards: Shards, method: MethodDescriptor) -> Any:
    """Return the handler of a watch with resume tokens."""

    @forwarded
    async def forward(request: Any, context: Any) -> AsyncIterator[Any]:
        tokens = split_tokens(request.resume_token, len(shards))

        def begin(token: str) -> Any:
            made = type(request)()
            made.CopyFrom(request)
            made.resume_token = token
            return made

        watching = _Watch(shards, method, begin, lambda message: str(message.resume_token), context)
        async for shard, message in watching.messages(tokens, progress_seconds(request)):
            if shard is not None:
                tokens[shard] = message.resume_token
            # Before every shard was heard of nothing can be resumed.
            message.resume_token = join_tokens(tokens) if all(tokens) else ""
            yield message

    return forward


def watch_frames(shards: Shards, method: MethodDescriptor) -> Any:
    """Return the handler of WatchFrames."""

    @forwarded
    async def forward(request: pb.WatchFramesRequest, context: Any) -> AsyncIterator[pb.WatchFramesResponse]:
        if request.from_position > 1:
            raise invalid("from_position", "must be 0 or 1 where history has several shards: use resume_token")
        positions = _positions(request.resume_token, len(shards))

        def begin(position: str) -> pb.WatchFramesRequest:
            made = pb.WatchFramesRequest()
            made.CopyFrom(request)
            made.ClearField("resume_token")
            if position:
                made.from_position = int(position) + 1
            return made

        watching = _Watch(shards, method, begin, lambda message: str(message.position), context, exact=True)
        async for shard, message in watching.messages(positions, progress_seconds(request)):
            if shard is not None:
                positions[shard], message.shard = str(message.position), shard
            if all(positions):
                message.resume_token = join_tokens(positions)
                yield message

    return forward


def confirm_position(shards: Shards, _: MethodDescriptor) -> Any:
    """Return the handler of ConfirmPosition."""

    @forwarded
    @unbounded
    async def confirm(request: pb.ConfirmPositionRequest, context: Any) -> pb.ConfirmPositionResponse:
        if request.position:
            raise invalid("position", "must be 0 where history has several shards: use resume_token")
        positions = _positions(request.resume_token, len(shards))
        requests = {
            shard: pb.ConfirmPositionRequest(
                consumer=request.consumer, position=int(position or 0), resynced=request.resynced
            )
            for shard, position in enumerate(positions)
        }
        answers = await shards.ask_some(requests, CONFIRM, pb.ConfirmPositionResponse, context, whole=True)
        return pb.ConfirmPositionResponse(consumer=joined_consumer([each.consumer for each in answers.of.values()]))

    return confirm


def _positions(token: str, count: int) -> list[str]:
    found = split_tokens(token, count)
    if not all(not each or (each.isascii() and each.isdigit() and len(each) < MAX_DIGITS) for each in found):
        raise compacted()
    return found


class _Watch:
    """One watch in every shard. `begin` makes a request from a place, `place_of` tells that after a message.

    A shard that is away is watched again from its place when it is back, the others going on; one that knows the place no
    more ends the watch. With `exact` nothing is told before all places are known by the first message of each shard, and one
    of which none is known ends the watch: what it would miss nobody could tell.
    """

    def __init__(
        self,
        shards: Shards,
        method: MethodDescriptor,
        begin: Callable[[str], Any],
        place_of: Callable[[Any], str],
        context: Any,
        *,
        exact: bool = False,
    ) -> None:
        self._shards, self._context = shards, context
        self._path = path_of(method)
        self._reply: Any = validate.message_class(method.output_type)
        self._begin, self._place_of, self._exact = begin, place_of, exact
        self._queue: asyncio.Queue[tuple[int, Any]] = asyncio.Queue(WAITING * len(shards))
        self._begun: set[int] = set()
        self._all_begun = asyncio.Event()

    async def messages(self, places: Sequence[str], seconds: float) -> AsyncIterator[tuple[int | None, Any]]:
        """Yield messages with the shard that each is of, as they come; an empty one of none when none came for so long."""
        if all(places):
            self._all_begun.set()
        tasks = [asyncio.create_task(self._follow(shard, place)) for shard, place in enumerate(places)]
        try:
            while True:
                try:
                    async with asyncio.timeout(seconds):
                        shard, message = await self._queue.get()
                except TimeoutError:
                    yield None, self._reply()
                    continue
                if isinstance(message, Exception):
                    raise message
                yield shard, message
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _follow(self, shard: int, place: str) -> None:
        attempt = 0
        while True:
            try:
                async for data in self._shards.stream(shard, self._path, self._begin(place), self._context):
                    message = self._reply.FromString(data)
                    place, attempt = self._place_of(message), 0
                    await self._queue.put((shard, message))
                    await self._have_all_begun(shard)
            except UnavailableError as err:
                if self._exact and not place:
                    await self._queue.put((shard, err))
                    return
            except Exception as err:  # noqa: BLE001  (handed to the reader's side)
                await self._queue.put((shard, err))
                return
            attempt += 1
            await asyncio.sleep(backoff(attempt, 1.0, cap=AGAIN_SECONDS).total_seconds())

    async def _have_all_begun(self, shard: int) -> None:
        self._begun.add(shard)
        if len(self._begun) == len(self._shards):
            self._all_begun.set()
        if self._exact:
            await self._all_begun.wait()

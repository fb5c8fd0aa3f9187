"""Writing frames on one stream: a bounded number under way, each with its own deadline."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable
from contextlib import aclosing
from typing import Generic, TypeVar

from google.protobuf.message import Message

from openmanager.client.rpc import Method, Rpc, closable
from openmanager.errors import DeadlineExceededError, Reason

F = TypeVar("F")
M = TypeVar("M", bound=Message)


class WritePipeline(Generic[F, M]):
    """One stream of writes: at most `in_flight` frames wait for their acknowledgement, none longer than `seconds`."""

    def __init__(
        self, calls: Rpc, method: Method[M], encode: Callable[[F], bytes], *, in_flight: int, seconds: float
    ) -> None:
        self._calls = calls
        self._method = method
        self._encode = encode
        self._seconds = seconds
        self._room = asyncio.Semaphore(in_flight)
        self._due: deque[float] = deque()  # until when each frame under way must be acknowledged
        self._limit: asyncio.Timeout | None = None
        self._failure: Exception | None = None
        self._coming: asyncio.Task[F] | None = None  # the producer's next frame; it outlives a stream

    async def replies(self, frames: AsyncIterable[F]) -> AsyncIterator[M]:
        """Yield the replies in order; an error of the producer comes after those of the frames before it."""
        source = aiter(frames)
        try:
            while True:
                try:
                    async with aclosing(closable(self._stream(source))) as replies:
                        async for reply in replies:
                            yield reply
                    break
                except DeadlineExceededError as err:
                    if err.reason != Reason.STREAM_IDLE or self._due or self._coming is None:
                        raise
                # The producer was silent for longer than a stream is kept: its next frame begins another.
                await asyncio.wait([self._coming])
        finally:
            if self._coming is not None:
                self._coming.cancel()
                await asyncio.gather(self._coming, return_exceptions=True)
        if self._failure is not None:
            raise self._failure

    async def _stream(self, source: AsyncIterator[F]) -> AsyncIterator[M]:
        async with aclosing(closable(self._calls.converse(self._method, self._requests(source)))) as replies:
            while (reply := await self._next(replies)) is not None:
                self._due.popleft()
                self._room.release()
                yield reply

    async def _next(self, replies: AsyncIterator[M]) -> M | None:
        try:
            async with asyncio.timeout_at(self._due[0] if self._due else None) as self._limit:
                return await anext(replies, None)
        except TimeoutError as err:
            raise DeadlineExceededError("a frame was not acknowledged in time") from err
        finally:
            self._limit = None

    async def _requests(self, source: AsyncIterator[F]) -> AsyncIterator[bytes]:
        try:
            while True:
                if self._coming is None:
                    self._coming = asyncio.ensure_future(anext(source))
                await asyncio.wait([self._coming])  # a stream that ends meanwhile does not end the producer
                coming, self._coming = self._coming, None
                frame = coming.result()
                await self._room.acquire()
                self._start_clock()
                yield self._encode(frame)
        except StopAsyncIteration:
            return
        except Exception as err:  # noqa: BLE001  (the producer's own, raised where its frames are acknowledged)
            self._failure = err

    def _start_clock(self) -> None:
        self._due.append(asyncio.get_running_loop().time() + self._seconds)
        # A producer may be silent as long as it likes: the clock runs only while a frame is under way.
        if len(self._due) == 1 and self._limit is not None:
            self._limit.reschedule(self._due[0])

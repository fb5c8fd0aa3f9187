"""The shards of a service as the gateway calls them: one, those that own some servers, or all, and who did not answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from google.protobuf.message import Message

from openmanager.api.frame.v1 import frame_pb2
from openmanager.api.provenance.v1 import provenance_pb2
from openmanager.errors import DeadlineExceededError, UnavailableError
from openmanager.shard import shard_of, shards_of
from openmanager.watch import compacted
from openmanager_gateway.router import Upstream, passed, remaining, stream_left

# Between the tokens of shards, none of which has it.
SEPARATOR = "/"
AWAY = (UnavailableError, DeadlineExceededError)
M = TypeVar("M", bound=Message)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Answers(Generic[T]):
    """What shards answered, by their numbers, and which of those that were asked did not."""

    of: Mapping[int, T]
    away: Sequence[int] = ()
    count: int = 1

    def mark(self, about: provenance_pb2.Provenance) -> None:
        """Say in a provenance whose part is missing."""
        if not self.away:
            return
        numbers = ", ".join(map(str, self.away))
        why = f"shard{'s' if len(self.away) > 1 else ''} {numbers} of {self.count} did not answer"
        about.partial, about.reason = True, "; ".join(filter(None, (about.reason, why)))


class Shards:
    """The shards of one service."""

    def __init__(self, upstreams: Sequence[Upstream]) -> None:
        self._upstreams = upstreams
        self._next = 0

    def __len__(self) -> int:
        return len(self._upstreams)

    def owner(self, server: str) -> int:
        """Return the shard of a server."""
        return shard_of(server.lower(), len(self))

    def owners(self, servers: Iterable[str]) -> list[int]:
        """Return the shards of some servers; all of them for none."""
        known = [each.lower() for each in servers]
        return sorted(set(shards_of(known, len(self)).tolist())) if known else list(range(len(self)))

    def chosen(self, selector: frame_pb2.Selector) -> list[int]:
        """Return the shards that may have something of a selector."""
        return self.owners(selector.servers)

    async def ask(self, shard: int, path: str, request: Message | bytes, context: Any) -> bytes:
        """Return what one shard answers."""
        upstream = self._upstreams[shard]
        upstream.breaker.check()
        start = upstream.clock.monotonic()
        reply = await upstream.peer.unary_bytes(path, request, seconds=remaining(context), metadata=passed(context))
        upstream.breaker.answered(start)
        return reply

    async def ask_any(self, path: str, request: Message | bytes, context: Any, *, spread: bool = False) -> bytes:
        """Return what the first shard that is there answers; `spread` begins with another one each time."""
        first = self._next if spread else 0
        self._next = (first + 1) % len(self)
        for at in range(len(self)):
            try:
                return await self.ask((first + at) % len(self), path, request, context)
            except UnavailableError:
                if at == len(self) - 1:
                    raise
        raise AssertionError  # unreachable: there is at least one

    async def ask_some(
        self,
        requests: Mapping[int, Message | bytes],
        path: str,
        reply: type[M],
        context: Any,
        *,
        whole: bool = False,
    ) -> Answers[M]:
        """Ask shards at once, each something of its own; an error where none answers, or with `whole` not all do."""

        async def one(shard: int) -> M:
            return reply.FromString(await self.ask(shard, path, requests[shard], context))

        return await self.gather(requests, one, whole=whole)

    async def gather(self, shards: Iterable[int], work: Callable[[int], Any], *, whole: bool = False) -> Answers[Any]:
        """Do some work with shards at once; an error where none answers, or with `whole` not all do."""
        numbers = list(shards)
        found = await asyncio.gather(*map(work, numbers), return_exceptions=True)
        failed = {shard: each for shard, each in zip(numbers, found, strict=True) if isinstance(each, BaseException)}
        wrong = [each for each in failed.values() if not isinstance(each, AWAY)]
        if wrong or len(failed) == len(numbers) or (whole and failed):
            raise wrong[0] if wrong else next(iter(failed.values()))
        answers = {shard: each for shard, each in zip(numbers, found, strict=True) if shard not in failed}
        return Answers(answers, sorted(failed), len(self))

    async def stream(self, shard: int, path: str, request: Message | bytes, context: Any) -> AsyncIterator[bytes]:
        """Yield what one shard streams."""
        upstream = self._upstreams[shard]
        upstream.breaker.check()
        async for data in upstream.peer.server_stream(
            path, request, seconds=stream_left(context), metadata=passed(context)
        ):
            yield data

    async def bidi(self, shard: int, path: str, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        """Yield what one shard answers to a stream."""
        upstream = self._upstreams[shard]
        upstream.breaker.check()
        async for data in upstream.peer.bidi_stream(
            path, requests, seconds=stream_left(context), metadata=passed(context)
        ):
            yield data

    async def begin_streams(
        self, requests: Mapping[int, Message | bytes], path: str, reply: type[M], context: Any
    ) -> Answers[tuple[M, AsyncIterator[M]]]:
        """Begin streams of shards at once; return the first message of each, and what follows."""

        async def one(shard: int) -> tuple[M, AsyncIterator[M]]:
            stream = _parsed(self.stream(shard, path, requests[shard], context), reply)
            try:
                return await anext(stream), stream
            except StopAsyncIteration:
                raise UnavailableError(f"shard {shard} ended its answer before it began") from None

        return await self.gather(requests, one)


async def _parsed(stream: AsyncIterator[bytes], reply: type[M]) -> AsyncIterator[M]:
    try:
        async for data in stream:
            yield reply.FromString(data)
    finally:
        await stream.aclose()  # type: ignore[attr-defined]


def joined_provenance(parts: Sequence[provenance_pb2.Provenance]) -> provenance_pb2.Provenance:
    """Return what holds for answers together: the oldest, the worst, and all stores and tiers."""
    about = provenance_pb2.Provenance()
    about.CopyFrom(min(parts, key=lambda each: each.as_of_time.ToNanoseconds()))
    about.source, about.tier = (
        "+".join(dict.fromkeys(name for each in parts for name in getattr(each, field).split("+") if name))
        for field in ("source", "tier")
    )
    about.degraded, about.partial = (any(getattr(each, field) for each in parts) for field in ("degraded", "partial"))
    about.reason = "; ".join(dict.fromkeys(filter(None, (each.reason for each in parts))))
    coarsest = max(parts, key=lambda each: each.resolution.ToNanoseconds())
    if coarsest.HasField("resolution"):
        about.resolution.CopyFrom(coarsest.resolution)
    about.rank_error = max(each.rank_error for each in parts)
    segments = {each.SerializeToString(deterministic=True): each for part in parts for each in part.segments}
    del about.segments[:]
    about.segments.extend(sorted(segments.values(), key=lambda each: each.start_time.ToNanoseconds()))
    return about


def join_tokens(tokens: Sequence[str]) -> str:
    """Return one token for those of all shards."""
    return SEPARATOR.join(tokens)


def split_tokens(token: str, count: int) -> list[str]:
    """Return the tokens of all shards; empty ones for an empty token. OutOfRangeError for one of other shards."""
    if not token:
        return [""] * count
    found = token.split(SEPARATOR)
    if len(found) != count or not all(found):
        raise compacted()
    return found

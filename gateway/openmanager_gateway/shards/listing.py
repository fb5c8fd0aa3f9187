"""Lists over several shards: pages merged in the order of the list, with a token that is one of each shard."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from google.protobuf.descriptor import MethodDescriptor

from openmanager import page
from openmanager.runtime import validate
from openmanager.runtime.edge import forwarded, unbounded
from openmanager_gateway.shards.calls import Answers, Shards, joined_provenance

# Instead of the token of a shard: it is at its beginning, or has nothing left. The page tokens of shards hold neither.
BEGINNING, ENDED = "-", "."


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """A list: the field of its items and what they are sorted by.

    `own` lets an item tell its shard, `finish` adds to a page what is more than a list.
    """

    items: str
    key: Callable[[Any], Any]
    reverse: bool = False
    own: Callable[[Any, int], None] = lambda item, shard: None
    finish: Callable[[Any, Mapping[int, Any]], None] = lambda reply, pages: None


def pages(listing: Listing) -> Callable[[Shards, MethodDescriptor], Any]:
    """Return what makes the handler of a list."""
    return lambda shards, method: _handler(listing, shards, method)


def _handler(listing: Listing, shards: Shards, method: MethodDescriptor) -> Any:
    path = f"/{method.containing_service.full_name}/{method.name}"
    reply_class: Any = validate.message_class(method.output_type)

    @forwarded
    @unbounded
    async def forward(request: Any, context: Any) -> Any:
        size = page.page_size(request.page_size)
        query = _query(request)
        tokens = _tokens(query, request.page_token, len(shards))
        chosen = shards.chosen(request.selector) if hasattr(request, "selector") else range(len(shards))
        requests = {shard: _page(request, tokens[shard], size) for shard in chosen}
        answers = await shards.ask_some(requests, path, reply_class, context)
        # What has nothing left is asked for its count alone.
        given = {
            shard: [] if tokens[shard] == ENDED else list(getattr(found, listing.items))
            for shard, found in answers.of.items()
        }
        for shard, some in given.items():
            for each in some:
                listing.own(each, shard)
        rows = [[(listing.key(each), shard, each) for each in some] for shard, some in given.items()]
        merged = heapq.merge(*rows, key=lambda row: row[0], reverse=listing.reverse)
        order = list(islice(merged, size))
        order = order[: _fitting([each for _, _, each in order])]
        reply = reply_class(total_count=sum(found.total_count for found in answers.of.values()))
        getattr(reply, listing.items).extend(each for _, _, each in order)
        _describe(reply, answers)
        taken = {shard: sum(of == shard for _, of, _ in order) for shard in given}
        after = dict(enumerate(tokens)) | await _after(
            shards, path, reply_class, context, requests, answers.of, given, taken, tokens
        )
        if any(after[shard] != ENDED for shard in given):
            reply.next_page_token = page.encode_token(query, [after[shard] for shard in range(len(shards))])
        listing.finish(reply, answers.of)
        return reply

    return forward


def _query(request: Any) -> tuple[object, ...]:
    """Return what the tokens of a list are bound to here: all of a request but the page."""
    other = type(request)()
    other.CopyFrom(request)
    other.ClearField("page_token")
    other.ClearField("page_size")
    return type(request).__name__, other.SerializeToString(deterministic=True)


def _tokens(query: tuple[object, ...], token: str, count: int) -> Sequence[str]:
    return page.decode_token(query, token, count) or [BEGINNING] * count


def _page(request: Any, token: str, size: int) -> Any:
    made = type(request)()
    made.CopyFrom(request)
    made.page_size = 1 if token == ENDED else size
    made.page_token = "" if token in {BEGINNING, ENDED} else token
    return made


# A page stays below the size of a message.
MAX_PAGE_BYTES = 3 << 20


def _fitting(items: Sequence[Any]) -> int:
    size = 0
    for count, each in enumerate(items):
        size += each.ByteSize() + 8
        if count and size > MAX_PAGE_BYTES:
            return count
    return len(items)


async def _after(  # noqa: PLR0913, PLR0917
    shards: Shards,
    path: str,
    reply_class: Any,
    context: Any,
    requests: Mapping[int, Any],
    replies: Mapping[int, Any],
    given: Mapping[int, Sequence[Any]],
    taken: Mapping[int, int],
    tokens: Sequence[str],
) -> dict[int, str]:
    """Return the token of each shard after what was taken of its page; where that is a part, a smaller page tells it."""

    async def one(shard: int) -> str:
        if taken[shard] == len(given[shard]):
            return replies[shard].next_page_token or ENDED
        if not taken[shard]:
            return tokens[shard]
        request = _page(requests[shard], "", taken[shard])
        request.page_token = requests[shard].page_token
        found = reply_class.FromString(await shards.ask(shard, path, request, context))
        return found.next_page_token or ENDED

    numbers = list(given)
    return dict(zip(numbers, await asyncio.gather(*map(one, numbers)), strict=True))


def _describe(reply: Any, answers: Answers[Any]) -> None:
    """Say where a list came from, where its reply has a place for that."""
    if "provenance" in reply.DESCRIPTOR.fields_by_name:
        reply.provenance.CopyFrom(joined_provenance([each.provenance for each in answers.of.values()]))
        answers.mark(reply.provenance)

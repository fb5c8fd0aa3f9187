"""Lists over several shards: pages merged in the order of the list, with a token that is one of each shard."""

from __future__ import annotations

import asyncio
import contextlib
import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from google.protobuf.descriptor import MethodDescriptor

from openmanager import page
from openmanager.runtime import validate
from openmanager.runtime.edge import forwarded, unbounded
from openmanager_gateway.router import path_of
from openmanager_gateway.shards.calls import FIRST_SHARE, Answers, Shards, joined_provenance

# Instead of the token of a shard: it is at its beginning, or has nothing left. The page tokens of shards hold neither.
BEGINNING, ENDED = "-", "."
# A list that changes while a page is put together is asked for again so often.
ATTEMPTS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """A list: the field of its items and what they are sorted by.

    `own` lets an item tell its shard, `finish` adds to a page, which may be the first one, what is more than a list.
    """

    items: str
    key: Callable[[Any], Any]
    reverse: bool = False
    own: Callable[[Any, int], None] | None = None
    finish: Callable[[Any, Mapping[int, Any], bool], None] | None = None


def pages(listing: Listing) -> Callable[[Shards, MethodDescriptor], Any]:
    """Return what makes the handler of a list."""
    return lambda shards, method: _handler(listing, shards, method)


def _handler(listing: Listing, shards: Shards, method: MethodDescriptor) -> Any:
    @forwarded
    @unbounded
    async def forward(request: Any, context: Any) -> Any:
        for _ in range(ATTEMPTS - 1):
            with contextlib.suppress(_ChangedError):
                return await _listed(listing, shards, method, request, context, exact=True)
        return await _listed(listing, shards, method, request, context, exact=False)

    return forward


async def _listed(
    listing: Listing, shards: Shards, method: MethodDescriptor, request: Any, context: Any, *, exact: bool
) -> Any:
    """Return a page; with `exact` _ChangedError where its token would not be where it ends."""
    path = path_of(method)
    reply_class: Any = validate.message_class(method.output_type)
    # Who cannot say that something is missing has all, or nothing.
    needs_all = "provenance" not in reply_class.DESCRIPTOR.fields_by_name
    size, query = page.page_size(request.page_size), _query(request)
    tokens = _tokens(query, request.page_token, len(shards))
    chosen = shards.chosen(request.selector) if hasattr(request, "selector") else range(len(shards))
    requests = {shard: _page(request, tokens[shard], size) for shard in chosen}
    answers = await shards.ask_some(requests, path, reply_class, context, whole=needs_all, share=FIRST_SHARE)
    # What has nothing left is asked for its count alone.
    given = {
        shard: [] if tokens[shard] == ENDED else list(getattr(found, listing.items))
        for shard, found in answers.of.items()
    }
    rows = _merged(listing, given, size)
    reply = reply_class(total_count=sum(found.total_count for found in answers.of.values()))
    getattr(reply, listing.items).extend(each for _, each in rows)
    _describe(reply, answers)

    async def after(shard: int) -> str:
        """Return the token of a shard after what was taken of its page: of a part of it a smaller page tells it."""
        if tokens[shard] == ENDED:
            return ENDED
        taken = [listing.key(each) for of, each in rows if of == shard]
        if len(taken) == len(given[shard]):
            return answers.of[shard].next_page_token or ENDED
        if not taken:
            return tokens[shard]
        smaller = _page(request, tokens[shard], len(taken))
        found = reply_class.FromString(await shards.ask(shard, path, smaller, context))
        if exact and [listing.key(each) for each in getattr(found, listing.items)] != taken:
            raise _ChangedError
        return found.next_page_token or ENDED

    following = dict(zip(given, await asyncio.gather(*map(after, given)), strict=True))
    if any(token != ENDED for token in following.values()):
        whole = [following.get(shard, tokens[shard]) for shard in range(len(shards))]
        reply.next_page_token = page.encode_token(query, whole)
    if listing.finish is not None:
        listing.finish(reply, answers.of, not request.page_token)
    return reply


class _ChangedError(Exception):
    """A list changed between two looks at it: the token of the second would leave something out, or repeat it."""


def _merged(listing: Listing, given: Mapping[int, Sequence[Any]], size: int) -> list[tuple[int, Any]]:
    """Return the first items of all pages in order, each with its shard: so many, and no more than a message holds."""
    for shard, some in given.items():
        for each in some if listing.own is not None else ():
            listing.own(each, shard)  # type: ignore[misc]
    pages = [[(shard, each) for each in some] for shard, some in given.items()]
    merged = heapq.merge(*pages, key=lambda row: listing.key(row[1]), reverse=listing.reverse)
    rows = list(islice(merged, size))
    return rows[: _fitting([each for _, each in rows])]


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


def _describe(reply: Any, answers: Answers[Any]) -> None:
    """Say where a list came from, where its reply has a place for that."""
    if "provenance" in reply.DESCRIPTOR.fields_by_name:
        reply.provenance.CopyFrom(joined_provenance([each.provenance for each in answers.of.values()]))
        answers.mark(reply.provenance)

"""Answers of all shards made one: sums, the worst state, the first and the last time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from google.protobuf.descriptor import MethodDescriptor

from openmanager.api.analysis.v1 import alert_pb2
from openmanager.api.status.v1 import status_pb2
from openmanager.api.timeseries.v1 import timeseries_pb2 as pb
from openmanager.errors import NotFoundError, UnavailableError
from openmanager.runtime import validate
from openmanager.runtime.edge import forwarded, unbounded
from openmanager.runtime.status import worst
from openmanager_gateway.router import path_of
from openmanager_gateway.shards.calls import AWAY, Shards

# Between the number of a shard and the id of a dead letter.
SEPARATOR = "-"
_SUMS = (
    "position",
    "delivered_sample_count",
    "waiting_sample_count",
    "dead_lettered_sample_count",
    "resynced_sample_count",
    "damaged_sample_count",
)
Merge = Callable[[Mapping[int, Any]], Any]
Handler = Callable[[Shards, MethodDescriptor], Any]


def first(*, spread: bool = False) -> Handler:
    """Return what makes the handler of a method that any shard can answer; `spread` asks another one each time."""

    def make(shards: Shards, method: MethodDescriptor) -> Any:
        path = path_of(method)

        @forwarded
        @unbounded
        async def forward(request: Any, context: Any) -> bytes:
            return await shards.ask_any(path, request, context, spread=spread)

        return forward

    return make


def every(merge: Merge, *, whole: bool = False) -> Handler:
    """Return what makes the handler of a method that all shards have a part in, those of a selector where there is one.

    With `whole` it fails unless all answer.
    """

    def make(shards: Shards, method: MethodDescriptor) -> Any:
        path = path_of(method)
        reply: Any = validate.message_class(method.output_type)

        @forwarded
        @unbounded
        async def forward(request: Any, context: Any) -> Any:
            chosen = shards.chosen(request.selector) if hasattr(request, "selector") else range(len(shards))
            answers = await shards.ask_some(dict.fromkeys(chosen, request), path, reply, context, whole=whole)
            return merge(answers.of)

        return forward

    return make


def summed(reply: type[Any]) -> Merge:
    """Return what adds up all fields of replies."""

    def merge(replies: Mapping[int, Any]) -> Any:
        names = [field.name for field in reply.DESCRIPTOR.fields]
        return reply(**{name: sum(getattr(each, name) for each in replies.values()) for name in names})

    return merge


def delete_series(shards: Shards, method: MethodDescriptor) -> Any:
    """Return the handler of DeleteSeries: nothing is deleted anywhere before every shard has said that it may be."""
    path = path_of(method)

    @forwarded
    @unbounded
    async def forward(request: pb.DeleteSeriesRequest, context: Any) -> pb.DeleteSeriesResponse:
        looked = pb.DeleteSeriesRequest()
        looked.CopyFrom(request)
        looked.validate_only = True
        chosen = shards.chosen(request.selector)
        for each in [looked] if request.validate_only else [looked, request]:
            answers = await shards.ask_some(
                dict.fromkeys(chosen, each), path, pb.DeleteSeriesResponse, context, whole=True
            )
        return summed(pb.DeleteSeriesResponse)(answers.of)  # type: ignore[no-any-return]

    return forward


def update_policy(shards: Shards, method: MethodDescriptor) -> Any:
    """Return the handler of UpdateRetentionPolicy: one shard after the other, each on what the one before has stored."""
    path = path_of(method)

    @forwarded
    @unbounded
    async def forward(request: pb.UpdateRetentionPolicyRequest, context: Any) -> pb.UpdateRetentionPolicyResponse:
        stored: pb.UpdateRetentionPolicyResponse | None = None
        error: UnavailableError | None = None
        for shard in range(len(shards)):
            try:
                data = await shards.ask(shard, path, request, context)
            except UnavailableError as err:  # it reads the policy when it is back
                error = err
                continue
            stored = pb.UpdateRetentionPolicyResponse.FromString(data)
            request.policy.etag = stored.policy.etag
        if stored is None:
            raise error or UnavailableError("no shard of history answers")
        return stored

    return forward


def joined_ledger(ledgers: Sequence[status_pb2.Ledger]) -> status_pb2.Ledger:
    """Return the books of several logs together."""
    by_name: dict[str, list[status_pb2.Consumer]] = {}
    for ledger in ledgers:
        for consumer in ledger.consumers:
            by_name.setdefault(consumer.name, []).append(consumer)
    return status_pb2.Ledger(
        accepted_sample_count=sum(each.accepted_sample_count for each in ledgers),
        head_position=sum(each.head_position for each in ledgers),
        consumers=[joined_consumer(by_name[name]) for name in sorted(by_name)],
    )


def joined_consumer(rows: Sequence[status_pb2.Consumer]) -> status_pb2.Consumer:
    """Return the row of a consumer of several logs."""
    made = status_pb2.Consumer()
    made.CopyFrom(max(rows, key=lambda each: each.lag.ToNanoseconds()))
    for name in _SUMS:
        setattr(made, name, sum(getattr(each, name) for each in rows))
    states = [each.state for each in rows if each.state]
    made.state = worst(states) if states else status_pb2.STORAGE_STATE_UNSPECIFIED
    of_state = [each for each in rows if each.state == made.state]
    made.reason = next((each.reason for each in of_state if each.reason), "")
    return made


def ledger(replies: Mapping[int, pb.GetLedgerResponse]) -> pb.GetLedgerResponse:
    """Return the books of all logs."""
    return pb.GetLedgerResponse(ledger=joined_ledger([each.ledger for each in replies.values()]))


def tiers(replies: Mapping[int, pb.ListTiersResponse]) -> pb.ListTiersResponse:
    """Return the tiers of all shards."""
    parts = list(replies.values())
    made = pb.ListTiersResponse(disk=_disk([each.disk for each in parts]))
    for rows in zip(*(each.tiers for each in parts), strict=False):
        tier = made.tiers.add()
        tier.CopyFrom(rows[0])
        for field in pb.Tier.DESCRIPTOR.fields:
            if field.name.endswith(("_count", "_bytes")):
                setattr(tier, field.name, sum(getattr(each, field.name) for each in rows))
        _limit(tier, rows, "oldest_time", min)
        _limit(tier, rows, "newest_time", max)
    return made


def _disk(rows: Sequence[pb.DiskBudget]) -> pb.DiskBudget:
    made = pb.DiskBudget(
        limit_bytes=sum(each.limit_bytes for each in rows),
        used_bytes=sum(each.used_bytes for each in rows),
        plan="; ".join(dict.fromkeys(each.plan for each in rows if each.plan)),
    )
    _limit(made, rows, "full_time", min)
    return made


def _limit(made: Any, rows: Sequence[Any], name: str, choose: Callable[..., Any]) -> None:
    times = [getattr(each, name) for each in rows if each.HasField(name)]
    if times:
        getattr(made, name).CopyFrom(choose(times, key=lambda time: time.ToNanoseconds()))


def counted(items: str, count: str) -> Handler:
    """Return what makes the handler of a method whose answer every shard knows, but for its own `count` in `items`.

    The first shard's answer is taken, a list or one message, and what the others count is added.
    """

    def make(shards: Shards, method: MethodDescriptor) -> Any:
        path = path_of(method)
        reply: Any = validate.message_class(method.output_type)

        @forwarded
        @unbounded
        async def forward(request: Any, context: Any) -> Any:
            unknown: dict[int, NotFoundError] = {}

            async def one(shard: int) -> Any:
                try:
                    return reply.FromString(await shards.ask(shard, path, request, context))
                except NotFoundError as err:  # it was created just now, and is followed within a second
                    unknown[shard] = err
                    return reply()

            answers = await shards.gather(range(len(shards)), one)
            asked = min(answers.of)
            if asked in unknown:
                raise unknown[asked]
            made, *others = answers.of.values()
            rows = {each.id: each for each in _listed(made, items)}
            for other in others:
                for each in _listed(other, items):
                    if each.id in rows:
                        setattr(rows[each.id], count, getattr(rows[each.id], count) + getattr(each, count))
            if "provenance" in reply.DESCRIPTOR.fields_by_name:
                answers.mark(made.provenance)
            return made

        return forward

    return make


def _listed(reply: Any, items: str) -> Sequence[Any]:
    found = getattr(reply, items)
    return [found] if hasattr(found, "id") else list(found)


def get_alert(shards: Shards, method: MethodDescriptor) -> Any:
    """Return the handler of GetAlert: nobody is told that there is none before every shard has said so."""
    path = path_of(method)

    @forwarded
    @unbounded
    async def forward(request: alert_pb2.GetAlertRequest, context: Any) -> bytes:
        asked = [
            asyncio.create_task(shards.ask(shard, path, request, context))  # at once: one of them may hang
            for shard in range(len(shards))
        ]
        error: Exception | None = None
        try:
            for answer in asyncio.as_completed(asked):
                try:
                    return await answer
                except NotFoundError as err:
                    error = error or err
                except AWAY as err:
                    error = err
        finally:
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)
        raise error or UnavailableError("no shard answers")

    return forward


# ── entries, and dead letters ──────────────────────────────────────────────────────────────────────────────────────


def entry(shards: Shards, method: MethodDescriptor) -> Any:
    """Return the handler of a method on an entry: that of the shard that owns its name."""
    path = path_of(method)

    @forwarded
    @unbounded
    async def forward(request: Any, context: Any) -> bytes:
        return await shards.ask(shards.owner(f"{request.namespace}/{request.key}"), path, request, context)

    return forward


def number_letter(letter: pb.DeadLetter, shard: int) -> None:
    """Put the number of its shard before the id of a letter."""
    letter.id = f"{shard}{SEPARATOR}{letter.id}"


def count_letters(
    reply: pb.ListDeadLettersResponse,
    replies: Mapping[int, pb.ListDeadLettersResponse],
    _: bool,  # noqa: FBT001
) -> None:
    """Sum up what a page of letters says beside them."""
    reply.forgotten_count = sum(each.forgotten_count for each in replies.values())


def chosen_letters(reply: type[Any]) -> Handler:
    """Return what makes the handler of a method on dead letters, some by ids or all of a consumer."""

    def make(shards: Shards, method: MethodDescriptor) -> Any:
        path = path_of(method)

        @forwarded
        @unbounded
        async def forward(request: Any, context: Any) -> Any:
            requests = {}
            for shard in range(len(shards)):
                made = type(request)(consumer=request.consumer)
                made.ids.extend(_own_ids(request.ids, shard, len(shards)))
                if made.ids or not request.ids:
                    requests[shard] = made
            answers = await shards.ask_some(requests, path, reply, context, whole=True)
            return summed(reply)(answers.of)

        return forward

    return make


def _own_ids(ids: Sequence[str], shard: int, count: int) -> list[str]:
    """Return those of a shard; what is no id at all is for the first shard to refuse."""
    found = []
    for each in ids:
        number, separator, own = each.partition(SEPARATOR)
        is_one = bool(separator) and number.isascii() and number.isdigit() and len(number) < 4 and int(number) < count
        if (int(number) if is_one else 0) == shard:
            found.append(own if is_one else "0")
    return found

"""Interactions: what people asked an AI, what it answered, and how good they found it."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from datetime import datetime, timedelta

from openmanager.api.metadata.v1 import interaction_pb2 as pb
from openmanager.client import codec, rpc
from openmanager.client import interaction as forms
from openmanager.client.enumeration import InteractionFormat, InteractionGroupBy, Redaction
from openmanager.client.interaction import Interaction, InteractionStatistics, SimilarInteraction
from openmanager.client.rpc import DEADLINE_SECONDS, Away, Rpc

# Many may have to go.
ERASE_SECONDS = 30.0


class Interactions:
    """Records, rates, searches, counts, exports and erases interactions."""

    def __init__(self, calls: Rpc) -> None:
        self._calls = calls

    async def create(
        self, interaction: Interaction, *, request_id: str = "", seconds: float = DEADLINE_SECONDS
    ) -> Interaction:
        """Record an interaction and return it as it was recorded.

        Repeated with the same `request_id`, by default a new one, it returns what the first call returned.
        """
        request = pb.CreateInteractionRequest(
            interaction=forms.message(interaction), request_id=request_id or uuid.uuid4().hex
        )
        reply = await self._calls.call(rpc.CREATE_INTERACTION, request, seconds=seconds)
        return forms.interaction(reply.interaction)

    async def rate(
        self, interaction_id: str, rating: int, comment: str = "", *, seconds: float = DEADLINE_SECONDS
    ) -> Interaction:
        """Rate an interaction from 1 (bad) to 5 (good), whatever it was rated before; NotFoundError."""
        request = pb.RateInteractionRequest(id=interaction_id, rating=rating, comment=comment)
        reply = await self._calls.call(rpc.RATE_INTERACTION, request, seconds=seconds)
        return forms.interaction(reply.interaction)

    async def get(self, interaction_id: str, *, seconds: float = DEADLINE_SECONDS) -> Interaction:
        """Return an interaction; NotFoundError."""
        request = pb.GetInteractionRequest(id=interaction_id)
        reply = await self._calls.call(rpc.GET_INTERACTION, request, seconds=seconds)
        return forms.interaction(reply.interaction)

    async def list(
        self,
        filter: str = "",  # noqa: A002  (the contract's word)
        *,
        search: str = "",
        order_by: str = "",
        full: bool = False,
        limit: int | None = None,
        seconds: float = DEADLINE_SECONDS,
    ) -> AsyncIterator[Interaction]:
        """Yield interactions, the newest first, page after page; `seconds` is for one page.

        `search` are words as people search the web, `order_by` may then be `relevance`. Of long texts only the first 300
        characters come unless `full`.
        """
        request = pb.ListInteractionsRequest(filter=filter, search=search, order_by=order_by, view=view(full=full))
        async for page in self._calls.pages(rpc.LIST_INTERACTIONS, request, limit=limit, seconds=seconds):
            for each in page.interactions:
                yield forms.interaction(each)

    async def similar(
        self,
        text: str,
        *,
        filter: str = "",  # noqa: A002  (the contract's word)
        limit: int = 0,
        full: bool = False,
        seconds: float = DEADLINE_SECONDS,
    ) -> Sequence[SimilarInteraction]:
        """Return interactions whose queries are most like a text, the best first: 10 unless `limit` says so."""
        request = pb.FindSimilarInteractionsRequest(text=text, filter=filter, limit=limit, view=view(full=full))
        reply = await self._calls.call(rpc.FIND_SIMILAR_INTERACTIONS, request, seconds=seconds)
        return tuple(map(forms.similar, reply.results))

    async def statistics(
        self,
        filter: str = "",  # noqa: A002  (the contract's word)
        *,
        start: datetime | None = None,
        end: datetime | None = None,
        step: timedelta | None = None,
        group_by: InteractionGroupBy = InteractionGroupBy.MODEL_AND_INTENT,
        seconds: float = DEADLINE_SECONDS,
    ) -> Sequence[InteractionStatistics]:
        """Return what was recorded in [start, end), by default in the last 30 days, by bucket, model and intent."""
        request = statistics_request(filter, start=start, end=end, step=step, group_by=group_by)
        reply = await self._calls.call(rpc.GET_INTERACTION_STATISTICS, request, seconds=seconds)
        return tuple(map(forms.statistics, reply.statistics))

    async def export(
        self,
        filter: str = "",  # noqa: A002  (the contract's word)
        *,
        form: InteractionFormat = InteractionFormat.JSONL,
        redactions: Sequence[Redaction] = (),
        on_away: Away | None = None,
    ) -> AsyncIterator[bytes]:
        """Yield chunks, the oldest interactions first: JSON lines, or whole Parquet files of at most some hundred rows.

        A connection that breaks is taken up after the last chunk; `on_away` hears of it.
        """
        request = export_request(filter, form=form, redactions=redactions)
        async with aclosing(rpc.closable(export_parts(self._calls, request, on_away))) as replies:
            async for reply in replies:
                if reply.HasField("chunk"):
                    yield reply.chunk.data

    async def erase(
        self,
        *,
        session_id: str = "",
        subject: str = "",
        validate_only: bool = False,
        seconds: float = ERASE_SECONDS,
    ) -> int:
        """Erase everything of a session or of a subject, or only count it; return how many interactions these are."""
        request = pb.EraseInteractionsRequest(validate_only=validate_only)
        if session_id:
            request.session_id = session_id
        if subject:
            request.subject = subject
        return (await self._calls.call(rpc.ERASE_INTERACTIONS, request, seconds=seconds)).erased_count


def view(*, full: bool) -> pb.InteractionView.ValueType:
    """Return how much of each interaction is asked for."""
    return pb.INTERACTION_VIEW_FULL if full else pb.INTERACTION_VIEW_BASIC


def statistics_request(
    filter: str,  # noqa: A002  (the contract's word)
    *,
    start: datetime | None,
    end: datetime | None,
    step: timedelta | None,
    group_by: InteractionGroupBy,
) -> pb.GetInteractionStatisticsRequest:
    """Return the request for statistics."""
    request = pb.GetInteractionStatisticsRequest(
        filter=filter, group_by=pb.InteractionGroupBy.Value(f"INTERACTION_GROUP_BY_{group_by}")
    )
    for name, moment in (("start_time", start), ("end_time", end)):
        if moment is not None:
            getattr(request, name).CopyFrom(codec.timestamp(moment, name))
    if step is not None:
        request.step.CopyFrom(codec.duration(step))
    return request


def export_request(
    filter: str,  # noqa: A002  (the contract's word)
    *,
    form: InteractionFormat,
    redactions: Sequence[Redaction],
) -> pb.ExportInteractionsRequest:
    """Return the request for an export."""
    return pb.ExportInteractionsRequest(
        filter=filter,
        format=pb.InteractionFormat.Value(f"INTERACTION_FORMAT_{form}"),
        redactions=[pb.Redaction.Value(f"REDACTION_{each}") for each in redactions],
    )


async def export_parts(
    calls: Rpc, request: pb.ExportInteractionsRequest, on_away: Away | None = None
) -> AsyncIterator[pb.ExportInteractionsResponse]:
    """Yield the header, once, and the chunks; a broken connection is taken up after the last chunk that came.

    The request is changed: its token is that of the last chunk.
    """

    async def begin() -> AsyncIterator[pb.ExportInteractionsResponse]:
        async for reply in calls.stream(rpc.EXPORT_INTERACTIONS, request, seconds=None):
            if reply.HasField("chunk"):
                request.resume_token = reply.chunk.resume_token
            yield reply
        yield pb.ExportInteractionsResponse()  # the end, which is not a break

    known = False
    async with aclosing(rpc.closable(calls.resumed(begin, on_away))) as replies:
        async for reply in replies:
            match reply.WhichOneof("part"):
                case None:
                    return
                case "header" if known:
                    continue
            known = True
            yield reply

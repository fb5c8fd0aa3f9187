"""The edge of the interactions: messages to the domain and back."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from openmanager.access import LOCAL, caller
from openmanager.api.metadata.v1 import interaction_pb2 as pb
from openmanager.errors import OutOfRangeError
from openmanager.runtime.clock import Clock, to_datetime
from openmanager_metadata import interaction_export as export
from openmanager_metadata import interaction_redaction as redaction
from openmanager_metadata import interaction_statistics as statistics
from openmanager_metadata.backends import Database
from openmanager_metadata.interaction import Interaction, Interactions
from openmanager_metadata.interaction_search import ListQuery, Search
from openmanager_metadata.interaction_upkeep import Upkeep

_GROUPS = {
    pb.INTERACTION_GROUP_BY_UNSPECIFIED: (statistics.MODEL, statistics.INTENT),
    pb.INTERACTION_GROUP_BY_MODEL_AND_INTENT: (statistics.MODEL, statistics.INTENT),
    pb.INTERACTION_GROUP_BY_MODEL: (statistics.MODEL,),
    pb.INTERACTION_GROUP_BY_INTENT: (statistics.INTENT,),
    pb.INTERACTION_GROUP_BY_ALL: (),
}
_REDACTIONS = {
    pb.REDACTION_UNSPECIFIED: redaction.ALL,
    pb.REDACTION_EMAIL_ADDRESS: (redaction.EMAIL_ADDRESS,),
    pb.REDACTION_IP_ADDRESS: (redaction.IP_ADDRESS,),
    pb.REDACTION_SECRET: (redaction.SECRET,),
    pb.REDACTION_HOST_NAME: (redaction.HOST_NAME,),
}
_PLAIN = ("session_id", "query", "response", "subject", "trace_id", "model", "intent")
_OPTIONAL = ("confidence", "prompt_token_count", "response_token_count")


class InteractionService:
    """openmanager.api.metadata.v1.InteractionService."""

    def __init__(self, database: Database, upkeep: Upkeep, clock: Clock) -> None:
        self._database = database
        self._interactions = Interactions(database)
        self._search = Search(database)
        self._upkeep = upkeep
        self._clock = clock

    async def CreateInteraction(  # noqa: N802
        self,
        request: pb.CreateInteractionRequest,
        context: Any,  # noqa: ARG002
    ) -> pb.CreateInteractionResponse:
        """Record an interaction."""
        made = await self._interactions.create(_asked(_interaction(request.interaction)), request.request_id)
        return pb.CreateInteractionResponse(interaction=_message(made))

    async def RateInteraction(self, request: pb.RateInteractionRequest, context: Any) -> pb.RateInteractionResponse:  # noqa: ARG002, N802
        """Rate an interaction."""
        rated = await self._interactions.rate(request.id, request.rating, request.comment)
        return pb.RateInteractionResponse(interaction=_message(rated))

    async def GetInteraction(self, request: pb.GetInteractionRequest, context: Any) -> pb.GetInteractionResponse:  # noqa: ARG002, N802
        """Return one interaction."""
        return pb.GetInteractionResponse(interaction=_message(await self._search.get(request.id)))

    async def ListInteractions(self, request: pb.ListInteractionsRequest, context: Any) -> pb.ListInteractionsResponse:  # noqa: ARG002, N802
        """List and search interactions."""
        found = await self._search.list(_list_query(request))
        return pb.ListInteractionsResponse(
            interactions=map(_message, found.interactions),
            next_page_token=found.next_page_token,
            total_count=found.total_count,
            total_count_estimated=found.is_estimate,
        )

    async def FindSimilarInteractions(  # noqa: N802
        self,
        request: pb.FindSimilarInteractionsRequest,
        context: Any,  # noqa: ARG002
    ) -> pb.FindSimilarInteractionsResponse:
        """Find interactions whose queries are like a text."""
        full = request.view == pb.INTERACTION_VIEW_FULL
        found = await self._search.similar(request.text, request.filter, request.limit, full=full)
        return pb.FindSimilarInteractionsResponse(
            results=[pb.SimilarInteraction(interaction=_message(each), similarity=score) for each, score in found]
        )

    async def GetInteractionStatistics(  # noqa: N802
        self,
        request: pb.GetInteractionStatisticsRequest,
        context: Any,  # noqa: ARG002
    ) -> pb.GetInteractionStatisticsResponse:
        """Count interactions over time."""
        now = to_datetime(self._clock.now_nanos())
        found = await statistics.statistics(self._database, _statistics_query(request), now)
        return pb.GetInteractionStatisticsResponse(statistics=map(_statistics_message, found))

    async def ExportInteractions(  # noqa: N802
        self,
        request: pb.ExportInteractionsRequest,
        context: Any,  # noqa: ARG002
    ) -> AsyncIterator[pb.ExportInteractionsResponse]:
        """Send interactions."""
        job = export.Export(self._database, _export_query(request))
        header = pb.InteractionExportHeader(estimated_count=await job.begin())
        yield pb.ExportInteractionsResponse(header=header)
        async for each in job.chunks():
            yield pb.ExportInteractionsResponse(chunk=_chunk(each))

    async def EraseInteractions(  # noqa: N802
        self,
        request: pb.EraseInteractionsRequest,
        context: Any,  # noqa: ARG002
    ) -> pb.EraseInteractionsResponse:
        """Erase the interactions of a session or of a subject."""
        whose = {"session_id": request.session_id, "subject": request.subject}
        if request.validate_only:
            return pb.EraseInteractionsResponse(erased_count=await self._interactions.count_of(**whose))
        try:
            return pb.EraseInteractionsResponse(erased_count=await self._interactions.erase(**whose))
        finally:
            self._upkeep.wanted()


# ── proto → domain ─────────────────────────────────────────────────────────────────────────────────────────────────


def _asked(interaction: Interaction) -> Interaction:
    """Return an interaction with who asked: the caller, where nobody else is named."""
    found = caller()
    if interaction.subject or found is None or found.identity is LOCAL:
        return interaction
    return replace(interaction, subject=found.identity.subject)


def _interaction(message: Any) -> Interaction:
    return Interaction(
        **{name: getattr(message, name) for name in _PLAIN},
        **{name: getattr(message, name) for name in _OPTIONAL if message.HasField(name)},
        servers=tuple(message.servers),
        metrics=tuple(message.metrics),
        labels=dict(message.labels),
        start_time=_time(message, "interaction.", "start_time"),
        end_time=_time(message, "interaction.", "end_time"),
        latency=_length(message, "interaction.", "latency"),
    )


def _time(message: Any, above: str, name: str) -> datetime | None:
    """Return a time of a message, cut to microseconds; None where it is not set."""
    if not message.HasField(name):
        return None
    try:
        found: datetime = getattr(message, name).ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError) as err:
        raise OutOfRangeError(f"{above}{name} is outside the years 1–9999", field=f"{above}{name}") from err
    return found


def _length(message: Any, above: str, name: str) -> timedelta | None:
    if not message.HasField(name):
        return None
    try:
        found: timedelta = getattr(message, name).ToTimedelta()
    except (ValueError, OverflowError) as err:
        raise OutOfRangeError(f"{above}{name} is too long", field=f"{above}{name}") from err
    # Less than a microsecond below zero is below zero too.
    return found if found or getattr(message, name).nanos >= 0 else timedelta(microseconds=-1)


def _list_query(request: pb.ListInteractionsRequest) -> ListQuery:
    return ListQuery(
        page_size=request.page_size,
        page_token=request.page_token,
        filter=request.filter,
        search=request.search,
        order_by=request.order_by,
        full=request.view == pb.INTERACTION_VIEW_FULL,
        exact_total_count=request.exact_total_count,
    )


def _statistics_query(request: pb.GetInteractionStatisticsRequest) -> statistics.StatisticsQuery:
    return statistics.StatisticsQuery(
        filter=request.filter,
        start_time=_time(request, "", "start_time"),
        end_time=_time(request, "", "end_time"),
        step=_length(request, "", "step"),
        by=_GROUPS[request.group_by],
    )


def _export_query(request: pb.ExportInteractionsRequest) -> export.ExportQuery:
    kinds = {kind for each in request.redactions for kind in _REDACTIONS[each]}
    form = export.PARQUET if request.format == pb.INTERACTION_FORMAT_PARQUET else export.JSONL
    return export.ExportQuery(
        filter=request.filter,
        form=form,
        redactions=tuple(kind for kind in redaction.ALL if kind in kinds),
        resume_token=request.resume_token,
    )


# ── domain → proto ─────────────────────────────────────────────────────────────────────────────────────────────────

_COPIED = tuple(
    each.name
    for each in fields(Interaction)
    if each.name not in {"create_time", "start_time", "end_time", "rating_time", "latency"}
)


def _message(found: Interaction) -> pb.Interaction:
    # What is empty is left out, but not a confidence of 0.
    known = {name: value for name in _COPIED if (value := getattr(found, name)) or (value is not None and value == 0)}
    message = pb.Interaction(**known)
    for name in ("create_time", "start_time", "end_time", "rating_time"):
        if (moment := getattr(found, name)) is not None:
            getattr(message, name).FromDatetime(moment)
    if found.latency is not None:
        message.latency.FromTimedelta(found.latency)
    return message


def _statistics_message(found: statistics.Statistics) -> pb.InteractionStatistics:
    names: Sequence[str] = [each.name for each in fields(statistics.Statistics)]
    times = {"start_time", "latency_p50", "latency_p95"}
    known = {name: value for name in names if name not in times and (value := getattr(found, name)) is not None}
    message = pb.InteractionStatistics(**known)
    message.start_time.FromDatetime(found.start_time)
    for name in ("latency_p50", "latency_p95"):
        if (length := getattr(found, name)) is not None:
            getattr(message, name).FromTimedelta(length)
    return message


def _chunk(each: export.Chunk) -> pb.InteractionExportChunk:
    return pb.InteractionExportChunk(
        data=each.data, interaction_count=each.count, done_count=each.done, resume_token=each.resume_token
    )

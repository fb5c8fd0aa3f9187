"""What the client gives and takes of interactions, and its messages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from openmanager.api.metadata.v1 import interaction_pb2 as pb
from openmanager.client import codec


@dataclass(frozen=True, slots=True, kw_only=True)
class Interaction:
    """One question to an AI and its answer; None is not known, or not rated.

    Only `query` is needed to record one. `id`, `create_time`, the rating and `truncated`, which says that a text is only
    its beginning, are the store's.
    """

    query: str
    id: str = ""
    session_id: str = ""
    response: str = ""
    confidence: float | None = None
    rating: int | None = None
    create_time: datetime | None = None
    subject: str = ""
    trace_id: str = ""
    servers: tuple[str, ...] = ()
    start_time: datetime | None = None
    end_time: datetime | None = None
    metrics: tuple[str, ...] = ()
    model: str = ""
    intent: str = ""
    latency: timedelta | None = None
    prompt_token_count: int | None = None
    response_token_count: int | None = None
    rating_comment: str = ""
    rating_time: datetime | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    truncated: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SimilarInteraction:
    """An interaction, and which share of a text's words, by how rare they are, its query has: in (0, 1]."""

    interaction: Interaction
    similarity: float


@dataclass(frozen=True, slots=True, kw_only=True)
class InteractionStatistics:
    """What was recorded in a bucket, of a model and an intent; empty where all are together, None where none is known."""

    start_time: datetime | None
    model: str
    intent: str
    interaction_count: int
    rated_count: int
    mean_confidence: float | None
    mean_rating: float | None
    latency_p50: timedelta | None
    latency_p95: timedelta | None
    prompt_token_count: int
    response_token_count: int


_PLAIN = ("query", "session_id", "response", "subject", "trace_id", "model", "intent")
_OPTIONAL = ("confidence", "prompt_token_count", "response_token_count")


def message(interaction: Interaction) -> pb.Interaction:
    """Return the message of an interaction that is to be recorded."""
    made = pb.Interaction(servers=interaction.servers, metrics=interaction.metrics, labels=dict(interaction.labels))
    for name in (*_PLAIN, *_OPTIONAL):
        if (value := getattr(interaction, name)) is not None:
            setattr(made, name, value)
    for name in ("start_time", "end_time"):
        if (moment := getattr(interaction, name)) is not None:
            getattr(made, name).CopyFrom(codec.timestamp(moment, name))
    if interaction.latency is not None:
        made.latency.CopyFrom(codec.duration(interaction.latency))
    return made


def interaction(found: pb.Interaction) -> Interaction:
    """Return the interaction of a message."""
    names = (*_PLAIN, "id", "rating_comment", "truncated")
    known: dict[str, Any] = {name: getattr(found, name) for name in names}
    for name in (*_OPTIONAL, "rating"):
        known[name] = _optional(found, name)
    for name in ("create_time", "start_time", "end_time", "rating_time"):
        known[name] = codec.moment(found, name)
    return Interaction(
        **known,
        latency=_length(found, "latency"),
        servers=tuple(found.servers),
        metrics=tuple(found.metrics),
        labels=dict(found.labels),
    )


def similar(found: pb.SimilarInteraction) -> SimilarInteraction:
    """Return a similar interaction."""
    return SimilarInteraction(interaction=interaction(found.interaction), similarity=found.similarity)


def statistics(found: pb.InteractionStatistics) -> InteractionStatistics:
    """Return what was recorded in a bucket."""
    return InteractionStatistics(
        start_time=codec.moment(found, "start_time"),
        model=found.model,
        intent=found.intent,
        interaction_count=found.interaction_count,
        rated_count=found.rated_count,
        mean_confidence=_optional(found, "mean_confidence"),
        mean_rating=_optional(found, "mean_rating"),
        latency_p50=_length(found, "latency_p50"),
        latency_p95=_length(found, "latency_p95"),
        prompt_token_count=found.prompt_token_count,
        response_token_count=found.response_token_count,
    )


def _optional(found: Any, name: str) -> Any:
    return getattr(found, name) if found.HasField(name) else None


def _length(found: Any, name: str) -> timedelta | None:
    length: timedelta | None = getattr(found, name).ToTimedelta() if found.HasField(name) else None
    return length

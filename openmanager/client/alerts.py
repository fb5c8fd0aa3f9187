"""Alerts, the rules that find them, and silences."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from openmanager.api.analysis.v1 import alert_pb2 as pb
from openmanager.api.analysis.v1 import analysis_pb2
from openmanager.api.status.v1 import status_pb2
from openmanager.client import codec, rpc
from openmanager.client.model import Selector
from openmanager.client.rpc import DEADLINE_SECONDS, Away, Rpc


@dataclass(frozen=True, slots=True, kw_only=True)
class ThresholdCondition:
    """A metric is above or below a value, one of the two, for `lasting`; well again at `clear`, for `clear_lasting`.

    `per_second`: not its value is, but by how much it grows in a second, as counters need it.
    """

    above: float | None = None
    below: float | None = None
    clear: float | None = None
    lasting: timedelta = timedelta()
    clear_lasting: timedelta = timedelta()
    per_second: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class AnomalyCondition:
    """A server is unlike what is usual: INFO, WARNING or CRITICAL at least, with a score in [0, 1] at least."""

    min_severity: str = "WARNING"
    min_score: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ExhaustionCondition:
    """A metric reaches `limit` within a time with a probability; 0 for the defaults."""

    limit: float
    within: timedelta
    min_probability: float = 0.0
    clear_probability: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreCondition:
    """A store or a service is in one of `states` for `lasting`; empty: all stores, all services, any state but OK."""

    services: tuple[str, ...] = ()
    stores: tuple[str, ...] = ()
    states: tuple[str, ...] = ()
    lasting: timedelta = timedelta()


@dataclass(frozen=True, slots=True, kw_only=True)
class AbsenceCondition:
    """A server, or where metrics are chosen one of those, has sent nothing for `lasting`: 30 s to 1 day."""

    lasting: timedelta


Condition = ThresholdCondition | AnomalyCondition | ExhaustionCondition | StoreCondition | AbsenceCondition


@dataclass(frozen=True, slots=True, kw_only=True)
class Inhibitor:
    """While alerts fire that `source` chooses, those of the rule with the same labels `equal` are not sent."""

    source: str
    equal: tuple[str, ...] = ("server",)


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertRule:
    """A rule; `etag`, `update_time` and `series_count` are the service's."""

    id: str
    condition: Condition
    name: str = ""
    selector: Selector = Selector()
    severity: str = "WARNING"
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    inhibitors: tuple[Inhibitor, ...] = ()
    stale: timedelta = timedelta()
    paused: bool = False
    etag: str = ""
    update_time: datetime | None = None
    series_count: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Silence:
    """Alerts that nobody is told of for a while; `state` is PENDING, ACTIVE or EXPIRED."""

    id: str
    matcher: str
    start_time: datetime | None
    end_time: datetime | None
    comment: str
    creator: str
    state: str
    alert_count: int
    etag: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """Something that a rule has found; `state` is PENDING, FIRING or RESOLVED, `severity` INFO, WARNING or CRITICAL."""

    id: str
    fingerprint: str
    rule: str
    server: str
    metric: str
    state: str
    severity: str
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    value: float
    start_time: datetime | None
    fire_time: datetime | None
    end_time: datetime | None
    sample_time: datetime | None
    stale: bool
    silenced_by: tuple[str, ...]
    inhibited_by: tuple[str, ...]
    end_reason: str


class Alerts:
    """Reads and watches alerts, and changes rules and silences."""

    def __init__(self, calls: Rpc) -> None:
        self._calls = calls

    async def list(
        self, *, where: str = "", active_only: bool = False, limit: int | None = None, seconds: float = DEADLINE_SECONDS
    ) -> list[Alert]:
        """Return alerts, the newest first."""
        request = pb.ListAlertsRequest(filter=where, active_only=active_only)
        pages = self._calls.pages(rpc.LIST_ALERTS, request, limit=limit, seconds=seconds)
        return [alert(each) async for page in pages for each in page.alerts]

    async def get(self, alert_id: str, *, seconds: float = DEADLINE_SECONDS) -> Alert:
        """Return one alert; NotFoundError when there is none, or it is no longer kept."""
        return alert((await self._calls.call(rpc.GET_ALERT, pb.GetAlertRequest(id=alert_id), seconds=seconds)).alert)

    async def watch(self, *, where: str = "", on_away: Away | None = None) -> AsyncIterator[Alert]:
        """Yield those that are pending or firing, and then each that begins, changes or ends, for ever."""
        async for reply in self._calls.watched(rpc.WATCH_ALERTS, pb.WatchAlertsRequest(filter=where), on_away):
            for each in reply.alerts:
                yield alert(each)

    async def rules(self, *, seconds: float = DEADLINE_SECONDS) -> Sequence[AlertRule]:
        """Return all rules, by id."""
        pages = self._calls.pages(rpc.LIST_RULES, pb.ListRulesRequest(), seconds=seconds)
        return [rule(each) async for page in pages for each in page.rules]

    async def get_rule(self, rule_id: str, *, seconds: float = DEADLINE_SECONDS) -> AlertRule:
        """Return one rule."""
        return rule((await self._calls.call(rpc.GET_RULE, pb.GetRuleRequest(id=rule_id), seconds=seconds)).rule)

    async def create_rule(self, wanted: AlertRule, *, seconds: float = DEADLINE_SECONDS) -> AlertRule:
        """Create a rule; AlreadyExistsError when its id exists."""
        request = pb.CreateRuleRequest(rule=rule_message(wanted))
        return rule((await self._calls.call(rpc.CREATE_RULE, request, seconds=seconds)).rule)

    async def update_rule(
        self, wanted: AlertRule, fields: Sequence[str], *, seconds: float = DEADLINE_SECONDS
    ) -> AlertRule:
        """Change the fields of a rule that are named as in the proto; AbortedError when its etag is not the stored one."""
        request = pb.UpdateRuleRequest(rule=rule_message(wanted))
        request.update_mask.paths.extend(fields)
        return rule((await self._calls.call(rpc.UPDATE_RULE, request, seconds=seconds)).rule)

    async def delete_rule(self, rule_id: str, *, etag: str = "", seconds: float = DEADLINE_SECONDS) -> AlertRule:
        """Delete a rule and return it as it was."""
        request = pb.DeleteRuleRequest(id=rule_id, etag=etag)
        return rule((await self._calls.call(rpc.DELETE_RULE, request, seconds=seconds)).rule)

    async def silences(self, *, active_only: bool = False, seconds: float = DEADLINE_SECONDS) -> Sequence[Silence]:
        """Return silences, the one that ends last first."""
        pages = self._calls.pages(rpc.LIST_SILENCES, pb.ListSilencesRequest(active_only=active_only), seconds=seconds)
        return [silence(each) async for page in pages for each in page.silences]

    async def get_silence(self, silence_id: str, *, seconds: float = DEADLINE_SECONDS) -> Silence:
        """Return one silence."""
        request = pb.GetSilenceRequest(id=silence_id)
        return silence((await self._calls.call(rpc.GET_SILENCE, request, seconds=seconds)).silence)

    async def create_silence(
        self,
        matcher: str,
        *,
        end: datetime | int,
        comment: str,
        start: datetime | int | None = None,
        seconds: float = DEADLINE_SECONDS,
    ) -> Silence:
        """Have nobody told of what a matcher chooses, from `start`, by default now, until `end`."""
        wanted = pb.Silence(matcher=matcher, end_time=codec.timestamp(end, "end"), comment=comment)
        if start is not None:
            wanted.start_time.CopyFrom(codec.timestamp(start, "start"))
        request = pb.CreateSilenceRequest(silence=wanted, request_id=uuid.uuid4().hex)
        return silence((await self._calls.call(rpc.CREATE_SILENCE, request, seconds=seconds)).silence)

    async def update_silence(
        self,
        silence_id: str,
        *,
        matcher: str | None = None,
        start: datetime | int | None = None,
        end: datetime | int | None = None,
        comment: str | None = None,
        etag: str = "",
        seconds: float = DEADLINE_SECONDS,
    ) -> Silence:
        """Change what is given of a silence; AbortedError when an etag is given and not the stored one."""
        request = silence_change(silence_id, matcher=matcher, start=start, end=end, comment=comment, etag=etag)
        return silence((await self._calls.call(rpc.UPDATE_SILENCE, request, seconds=seconds)).silence)

    async def expire_silence(self, silence_id: str, *, seconds: float = DEADLINE_SECONDS) -> Silence:
        """End a silence now."""
        request = pb.ExpireSilenceRequest(id=silence_id)
        return silence((await self._calls.call(rpc.EXPIRE_SILENCE, request, seconds=seconds)).silence)


def silence_change(
    silence_id: str,
    *,
    matcher: str | None = None,
    start: datetime | int | None = None,
    end: datetime | int | None = None,
    comment: str | None = None,
    etag: str = "",
) -> pb.UpdateSilenceRequest:
    """Return the request that changes what is given of a silence."""
    request = pb.UpdateSilenceRequest(silence=pb.Silence(id=silence_id, etag=etag))
    for name, text in (("matcher", matcher), ("comment", comment)):
        if text is not None:
            setattr(request.silence, name, text)
            request.update_mask.paths.append(name)
    for name, time in (("start", start), ("end", end)):
        if time is not None:
            getattr(request.silence, f"{name}_time").CopyFrom(codec.timestamp(time, name))
            request.update_mask.paths.append(f"{name}_time")
    return request


def alert(message: pb.Alert) -> Alert:
    """Return an alert."""
    return Alert(
        id=message.id,
        fingerprint=message.fingerprint,
        rule=message.rule,
        server=message.server,
        metric=message.metric,
        state=pb.AlertState.Name(message.state).removeprefix("ALERT_STATE_"),
        severity=_severity(message.severity),
        labels=dict(message.labels),
        annotations=dict(message.annotations),
        value=message.value,
        start_time=codec.moment(message, "start_time"),
        fire_time=codec.moment(message, "fire_time"),
        end_time=codec.moment(message, "end_time"),
        sample_time=codec.moment(message, "sample_time"),
        stale=message.stale,
        silenced_by=tuple(message.silenced_by),
        inhibited_by=tuple(message.inhibited_by),
        end_reason=message.end_reason,
    )


def _severity(number: pb.AlertSeverity.ValueType) -> str:
    return pb.AlertSeverity.Name(number).removeprefix("ALERT_SEVERITY_")


def silence(message: pb.Silence) -> Silence:
    """Return a silence."""
    return Silence(
        id=message.id,
        matcher=message.matcher,
        start_time=codec.moment(message, "start_time"),
        end_time=codec.moment(message, "end_time"),
        comment=message.comment,
        creator=message.creator,
        state=pb.SilenceState.Name(message.state).removeprefix("SILENCE_STATE_"),
        alert_count=message.alert_count,
        etag=message.etag,
    )


def rule(message: pb.AlertRule) -> AlertRule:
    """Return a rule."""
    chosen = message.selector
    return AlertRule(
        id=message.id,
        name=message.name,
        selector=Selector(metrics=tuple(chosen.metrics), servers=tuple(chosen.servers), where=chosen.server_filter),
        condition=_condition(message),
        severity=_severity(message.severity),
        labels=dict(message.labels),
        annotations=dict(message.annotations),
        inhibitors=tuple(Inhibitor(source=each.source_matcher, equal=tuple(each.equal)) for each in message.inhibitors),
        stale=message.stale_duration.ToTimedelta(),
        paused=message.paused,
        etag=message.etag,
        update_time=codec.moment(message, "update_time"),
        series_count=message.series_count,
    )


def _condition(message: pb.AlertRule) -> Condition:
    found: Any = getattr(message, message.WhichOneof("condition") or "threshold")
    match message.WhichOneof("condition"):
        case "anomaly":
            name = analysis_pb2.AnomalySeverity.Name(found.min_severity)
            return AnomalyCondition(min_severity=name.removeprefix("ANOMALY_SEVERITY_"), min_score=found.min_score)
        case "exhaustion":
            return ExhaustionCondition(
                limit=found.limit,
                within=found.within_duration.ToTimedelta(),
                min_probability=found.min_probability,
                clear_probability=found.clear_probability,
            )
        case "store":
            return StoreCondition(
                services=tuple(found.services),
                stores=tuple(found.stores),
                states=tuple(
                    status_pb2.StorageState.Name(each).removeprefix("STORAGE_STATE_") for each in found.states
                ),
                lasting=found.for_duration.ToTimedelta(),
            )
        case "absence":
            return AbsenceCondition(lasting=found.for_duration.ToTimedelta())
        case _:
            bound = found.WhichOneof("bound")
            return ThresholdCondition(
                above=found.above if bound == "above" else None,
                below=found.below if bound == "below" else None,
                clear=found.clear if found.HasField("clear") else None,
                lasting=found.for_duration.ToTimedelta(),
                clear_lasting=found.clear_duration.ToTimedelta(),
                per_second=found.per_second,
            )


def rule_message(wanted: AlertRule) -> pb.AlertRule:
    """Return the message of a rule."""
    message = pb.AlertRule(
        id=wanted.id,
        name=wanted.name,
        severity=codec.number(pb.AlertSeverity, "ALERT_SEVERITY_", wanted.severity, "severity"),
        labels=wanted.labels,
        annotations=wanted.annotations,
        inhibitors=[pb.Inhibitor(source_matcher=each.source, equal=each.equal) for each in wanted.inhibitors],
        paused=wanted.paused,
        etag=wanted.etag,
    )
    if wanted.selector != Selector():
        message.selector.CopyFrom(codec.selector_message(wanted.selector))
    if wanted.stale:
        message.stale_duration.CopyFrom(codec.duration(wanted.stale))
    match wanted.condition:
        case ThresholdCondition() as condition:
            message.threshold.SetInParent()
            for name in ("above", "below", "clear"):
                if (value := getattr(condition, name)) is not None:
                    setattr(message.threshold, name, value)
            message.threshold.for_duration.CopyFrom(codec.duration(condition.lasting))
            message.threshold.clear_duration.CopyFrom(codec.duration(condition.clear_lasting))
            message.threshold.per_second = condition.per_second
        case AnomalyCondition() as condition:
            wanted_severity = codec.number(
                analysis_pb2.AnomalySeverity, "ANOMALY_SEVERITY_", condition.min_severity, "min_severity"
            )
            message.anomaly.CopyFrom(pb.AnomalyCondition(min_severity=wanted_severity, min_score=condition.min_score))
        case ExhaustionCondition() as condition:
            message.exhaustion.limit = condition.limit
            message.exhaustion.within_duration.CopyFrom(codec.duration(condition.within))
            message.exhaustion.min_probability = condition.min_probability
            message.exhaustion.clear_probability = condition.clear_probability
        case StoreCondition() as condition:
            message.store.CopyFrom(pb.StoreCondition(services=condition.services, stores=condition.stores))
            message.store.states.extend(
                codec.number(status_pb2.StorageState, "STORAGE_STATE_", each, "states") for each in condition.states
            )
            message.store.for_duration.CopyFrom(codec.duration(condition.lasting))
        case AbsenceCondition() as condition:
            message.absence.for_duration.CopyFrom(codec.duration(condition.lasting))
    return message

"""Messages of alerts: what is asked, checked, and what is shown; and documents as they are stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from google.protobuf import json_format
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from openmanager.api.analysis.v1 import alert_pb2 as pb
from openmanager.api.analysis.v1 import analysis_pb2
from openmanager.api.frame.v1 import frame_pb2
from openmanager.api.status.v1 import status_pb2
from openmanager.errors import invalid, missing
from openmanager.frame import EARLIEST_PLAUSIBLE_NANOS, LATEST_PLAUSIBLE_NANOS, check_text
from openmanager.runtime import validate
from openmanager_analysis.alerting import matcher
from openmanager_analysis.alerting import rule as rules
from openmanager_analysis.alerting.alert import Alert
from openmanager_analysis.alerting.rule import Absent, Exhausting, Inhibitor, Rule, Threshold, Trouble, Unusual
from openmanager_analysis.alerting.silence import Silence
from openmanager_analysis.anomaly import Severity
from openmanager_analysis.history import Selection

UPDATABLE = (
    "name", "selector", "threshold", "anomaly", "exhaustion", "store", "absence", "severity", "labels", "annotations",
    "inhibitors", "stale_duration", "paused",
)  # fmt: skip
SILENCE_UPDATABLE = ("matcher", "start_time", "end_time", "comment")
_OUTPUT = ("etag", "update_time", "series_count")
_STATE = "STORAGE_STATE_"
M = TypeVar("M", bound=Message)
_time = validate.Years(EARLIEST_PLAUSIBLE_NANOS, LATEST_PLAUSIBLE_NANOS, "2000–2199").time_of


# ── rules ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def rule(message: pb.AlertRule) -> Rule:
    """Return the rule of a message; InvalidArgumentError, naming the field, for what none can be."""
    chosen = message.selector
    found = Rule(
        id=message.id,
        name=message.name or message.id,
        condition=_condition(message),
        selection=Selection(
            servers=tuple(chosen.servers), server_filter=chosen.server_filter, metrics=tuple(chosen.metrics)
        ),
        severity=Severity(message.severity or pb.ALERT_SEVERITY_WARNING),
        labels=dict(message.labels),
        annotations=dict(message.annotations),
        inhibitors=tuple(
            Inhibitor(source=each.source_matcher, equal=tuple(each.equal) or ("server",)) for each in message.inhibitors
        ),
        stale_nanos=_length(message, "stale_duration", "rule.") or rules.DEFAULT_STALE_NANOS,
        paused=message.paused,
    )
    return rules.check(found)


def _condition(message: pb.AlertRule) -> rules.Condition:
    match message.WhichOneof("condition"):
        case "threshold":
            return _threshold(message.threshold)
        case "anomaly":
            severity = message.anomaly.min_severity or analysis_pb2.ANOMALY_SEVERITY_WARNING
            return Unusual(severity=Severity(severity), score=message.anomaly.min_score)
        case "exhaustion":
            exhaustion = message.exhaustion
            for name in ("limit", "within_duration"):
                if not exhaustion.HasField(name):
                    raise missing(f"rule.exhaustion.{name}")
            probability = exhaustion.min_probability or rules.DEFAULT_PROBABILITY
            return Exhausting(
                limit=exhaustion.limit,
                within_nanos=_length(exhaustion, "within_duration", "rule.exhaustion."),
                probability=probability,
                clear=exhaustion.clear_probability or probability * rules.CLEAR_SHARE,
            )
        case "store":
            store = message.store
            if status_pb2.STORAGE_STATE_UNSPECIFIED in store.states:
                raise invalid("rule.store.states", "must be states")
            return Trouble(
                services=tuple(store.services),
                stores=tuple(store.stores),
                states=frozenset(status_pb2.StorageState.Name(each).removeprefix(_STATE) for each in store.states),
                hold_nanos=_length(store, "for_duration", "rule.store."),
            )
        case "absence":
            if not message.absence.HasField("for_duration"):
                raise missing("rule.absence.for_duration")
            return Absent(hold_nanos=_length(message.absence, "for_duration", "rule.absence."))
        case _:
            raise missing("rule.threshold, rule.anomaly, rule.exhaustion, rule.store or rule.absence")


def _threshold(threshold: pb.ThresholdCondition) -> Threshold:
    bound = threshold.WhichOneof("bound")
    if bound is None:
        raise missing("rule.threshold.above or rule.threshold.below")
    value = getattr(threshold, bound)
    return Threshold(
        bound=value,
        is_above=bound == "above",
        clear=threshold.clear if threshold.HasField("clear") else value,
        hold_nanos=_length(threshold, "for_duration", "rule.threshold."),
        clear_nanos=_length(threshold, "clear_duration", "rule.threshold."),
        per_second=threshold.per_second,
    )


def _length(message: Any, name: str, prefix: str) -> int:
    nanos: int = getattr(message, name).ToNanoseconds()
    if nanos < 0:
        raise invalid(f"{prefix}{name}", "must not be negative")
    return nanos


def rule_message(found: Rule, series_count: int = 0) -> pb.AlertRule:
    """Return the message of a rule."""
    chosen = found.selection
    message = pb.AlertRule(
        id=found.id,
        name=found.name,
        severity=pb.AlertSeverity.ValueType(found.severity),
        labels=found.labels,
        annotations=found.annotations,
        inhibitors=[pb.Inhibitor(source_matcher=each.source, equal=each.equal) for each in found.inhibitors],
        paused=found.paused,
        etag=found.etag,
        series_count=series_count,
    )
    if chosen != Selection():
        message.selector.CopyFrom(
            frame_pb2.Selector(servers=chosen.servers, server_filter=chosen.server_filter, metrics=chosen.metrics)
        )
    message.stale_duration.FromNanoseconds(found.stale_nanos)
    if found.update_nanos:
        message.update_time.FromNanoseconds(found.update_nanos)
    match found.condition:
        case Threshold() as condition:
            setattr(message.threshold, "above" if condition.is_above else "below", condition.bound)
            message.threshold.clear = condition.clear
            _set(message.threshold.for_duration, condition.hold_nanos)
            _set(message.threshold.clear_duration, condition.clear_nanos)
            message.threshold.per_second = condition.per_second
        case Unusual() as condition:
            message.anomaly.min_severity = analysis_pb2.AnomalySeverity.ValueType(condition.severity)
            message.anomaly.min_score = condition.score
        case Exhausting() as condition:
            message.exhaustion.limit = condition.limit
            _set(message.exhaustion.within_duration, condition.within_nanos)
            message.exhaustion.min_probability, message.exhaustion.clear_probability = (
                condition.probability,
                condition.clear,
            )
        case Trouble() as condition:
            message.store.services.extend(condition.services)
            message.store.stores.extend(condition.stores)
            message.store.states.extend(
                status_pb2.StorageState.Value(f"{_STATE}{each}") for each in sorted(condition.states)
            )
            _set(message.store.for_duration, condition.hold_nanos)
        case Absent() as condition:
            _set(message.absence.for_duration, condition.hold_nanos)
    return message


def changed(known: Rule, wanted: pb.AlertRule, paths: Sequence[str]) -> Rule:
    """Return a rule with the fields of a mask taken from a message."""
    return rule(_merged(rule_message(known), wanted, validate.mask(paths, UPDATABLE)))


def _merged(message: M, wanted: M, paths: Sequence[str]) -> M:
    """Return a message with some fields taken from another."""
    taken = type(message)()
    taken.CopyFrom(wanted)
    for path in message.DESCRIPTOR.fields_by_name:
        (message if path in paths else taken).ClearField(path)
    message.MergeFrom(taken)
    return message


def rule_document(found: Rule) -> dict[str, Any]:
    """Return a rule as it is stored, for `rule_from`."""
    message = rule_message(found)
    for name in _OUTPUT:
        message.ClearField(name)  # type: ignore[arg-type]
    document = json_format.MessageToDict(message, preserving_proto_field_name=True)
    return {**document, "etag": found.etag, "update_nanos": str(found.update_nanos)}


def rule_from(document: Mapping[str, Any]) -> Rule:
    """Undo `rule_document`; LookupError, TypeError, ValueError or InvalidArgumentError when it is none."""
    message = pb.AlertRule()
    _parse({name: part for name, part in document.items() if name not in {"etag", "update_nanos"}}, message)
    found = rule(message)
    return replace(found, etag=str(document.get("etag", "")), update_nanos=int(document.get("update_nanos", "0")))


def _parse(document: Mapping[str, Any], message: Any) -> None:
    try:
        json_format.ParseDict(dict(document), message, ignore_unknown_fields=True)
    except json_format.ParseError as err:
        raise ValueError("the document is none of its kind") from err


def _set(duration: Duration, nanos: int) -> None:
    duration.FromNanoseconds(nanos)


# ── silences ───────────────────────────────────────────────────────────────────────────────────────────────────────


def silence(message: pb.Silence, now: int) -> Silence:
    """Return the silence of a message, which begins now where it does not say when; it is to be checked yet."""
    start = _time(message, "start_time", now, "silence.")
    return Silence(
        id="",
        matcher=message.matcher,
        start_nanos=start,
        end_nanos=_time(message, "end_time", None, "silence."),
        comment=message.comment,
    )


def changed_silence(known: Silence, wanted: pb.Silence, paths: Sequence[str], now: int) -> Silence:
    """Return a silence with the fields of a mask taken from a message; it is to be checked yet."""
    message = _merged(silence_message(known, now), wanted, validate.mask(paths, SILENCE_UPDATABLE))
    return replace(silence(message, now), id=known.id, creator=known.creator, etag=known.etag)


def silence_message(found: Silence, now: int, alert_count: int = 0) -> pb.Silence:
    """Return the message of a silence as it is at a time."""
    message = pb.Silence(
        id=found.id,
        matcher=found.matcher,
        comment=found.comment,
        creator=found.creator,
        state=silence_state(found, now),
        alert_count=alert_count,
        etag=found.etag,
    )
    message.start_time.FromNanoseconds(found.start_nanos)
    message.end_time.FromNanoseconds(found.end_nanos)
    return message


def silence_state(found: Silence, now: int) -> pb.SilenceState.ValueType:
    """Return how a silence is at a time."""
    if now >= found.end_nanos:
        return pb.SILENCE_STATE_EXPIRED
    return pb.SILENCE_STATE_ACTIVE if found.holds(now) else pb.SILENCE_STATE_PENDING


def silence_document(found: Silence) -> dict[str, Any]:
    """Return a silence as it is stored, for `silence_from`."""
    return {
        "id": found.id,
        "matcher": found.matcher,
        "start_nanos": str(found.start_nanos),
        "end_nanos": str(found.end_nanos),
        "comment": found.comment,
        "creator": found.creator,
        "etag": found.etag,
    }


def silence_from(document: Mapping[str, Any]) -> Silence:
    """Undo `silence_document`; LookupError, TypeError, ValueError or InvalidArgumentError when it is none."""
    if matcher.parse(str(document["matcher"]), "silence.matcher") is None:
        raise ValueError("a silence of everything is none")
    return Silence(
        id=str(document["id"]),
        matcher=str(document["matcher"]),
        start_nanos=int(document["start_nanos"]),
        end_nanos=int(document["end_nanos"]),
        comment=str(document["comment"]),
        creator=str(document["creator"]),
        etag=str(document.get("etag", "")),
    )


def request_id(request: pb.CreateSilenceRequest) -> str:
    """Return the id that makes a repeated call safe, empty without one."""
    check_text("request_id", request.request_id, 64)
    return request.request_id


# ── alerts ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def alert(found: Alert) -> pb.Alert:
    """Return the message of an alert."""
    message = pb.Alert(
        id=found.id,
        fingerprint=found.fingerprint,
        rule=found.rule,
        server=found.server,
        metric=found.labels.get("metric", ""),
        state=pb.AlertState.ValueType(found.state),
        severity=pb.AlertSeverity.ValueType(found.severity),
        labels=found.labels,
        annotations=found.annotations,
        value=found.value,
        stale=found.stale,
        silenced_by=found.silenced_by,
        inhibited_by=found.inhibited_by,
        end_reason=found.end_reason,
    )
    for stamp, nanos in (
        ("start_time", found.start_nanos),
        ("fire_time", found.fire_nanos),
        ("end_time", found.end_nanos),
        ("sample_time", found.sample_nanos),
    ):
        if nanos:
            _stamp(getattr(message, stamp), nanos)
    return message


def _stamp(stamp: Timestamp, nanos: int) -> None:
    stamp.FromNanoseconds(nanos)

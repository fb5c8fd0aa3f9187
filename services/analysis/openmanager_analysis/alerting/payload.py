"""A message as Alertmanager's webhooks have it, version 4."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from openmanager_analysis.alerting.alert import Alert, State
from openmanager_analysis.alerting.outbox import Message

VERSION = "4"
# What Go writes for no time.
NEVER = "0001-01-01T00:00:00Z"


def payload(message: Message, receiver: str, external_url: str) -> dict[str, Any]:
    """Return the document of a message; it fires as long as one of its group does."""
    labels = dict(message.group)
    shown = ", ".join(f'{name}="{_escaped(value)}"' for name, value in labels.items())
    return {
        "version": VERSION,
        "groupKey": f"{{}}:{{{shown}}}",
        "truncatedAlerts": message.truncated_count,
        "status": "firing" if message.is_firing else "resolved",
        "receiver": receiver,
        "groupLabels": labels,
        "commonLabels": _common([each.labels for each in message.alerts]),
        "commonAnnotations": _common([each.annotations for each in message.alerts]),
        "externalURL": external_url,
        "alerts": [_alert(each, external_url) for each in message.alerts],
    }


def _alert(alert: Alert, external_url: str) -> dict[str, Any]:
    return {
        "status": "firing" if alert.state is State.FIRING else "resolved",
        "labels": dict(alert.labels),
        "annotations": dict(alert.annotations),
        "startsAt": _time(alert.fire_nanos),
        "endsAt": _time(alert.end_nanos) if alert.end_nanos else NEVER,
        "generatorURL": external_url,
        "fingerprint": alert.fingerprint,
    }


def _common(texts: Sequence[Mapping[str, str]]) -> dict[str, str]:
    first, *others = texts
    return {name: text for name, text in first.items() if all(each.get(name) == text for each in others)}


def _time(nanos: int) -> str:
    moment = datetime.fromtimestamp(nanos // 10**9, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{nanos // 10**6 % 1000:03d}Z"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")

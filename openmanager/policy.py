"""The policy: what every method needs, over which servers, and what of it is written to the audit.

The one table that decides. A server whose method has no line in it does not start.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto

from openmanager.access import PERMISSIONS, Permission, Role

# Goes into every audit entry; counted up whenever a line changes.
VERSION = 3


class Reach(Enum):
    """What it means for a method that a permission is over some servers only."""

    NONE = auto()  # no servers are concerned
    SOME = auto()  # the method keeps to them
    ALL = auto()  # what it does concerns all servers: the permission must be over all


@dataclass(frozen=True, slots=True)
class Rule:
    """The line of a method.

    `audited` is the object of an audited change, with fields of the request in braces; empty for what is not audited.
    `noted` is a read that is written down too, because of what it gives away. A request that is `secret` leaves no hash:
    a password could be guessed by it.
    """

    permission: Permission
    reach: Reach
    audited: str = ""
    noted: str = ""
    secret: bool = False


_API = "openmanager.api"
_P = Permission
_NONE, _SOME, _ALL = Reach.NONE, Reach.SOME, Reach.ALL

_HOT = {
    "GetServer": Rule(_P.READ, _SOME),
    "ListServers": Rule(_P.READ, _SOME),
    "WatchServers": Rule(_P.READ, _SOME),
    "GetFleetSummary": Rule(_P.READ, _SOME),
}
_WRITES = {"WriteFrame": Rule(_P.WRITE, _SOME), "WriteFrames": Rule(_P.WRITE, _SOME)}
_REFLECTION = {"ServerReflectionInfo": Rule(_P.READ, _NONE)}

POLICY: Mapping[str, Mapping[str, Rule]] = {
    f"{_API}.gateway.v1.GatewayService": {
        "GetStorageStatus": Rule(_P.READ, _NONE),
        "WatchStorageStatus": Rule(_P.READ, _NONE),
        **_HOT,
        **_WRITES,
    },
    "opentelemetry.proto.collector.metrics.v1.MetricsService": {"Export": Rule(_P.WRITE, _SOME)},
    f"{_API}.simulator.v1.SimulatorService": {
        "GetSimulation": Rule(_P.READ, _NONE),
        "StartSimulation": Rule(_P.OPERATE, _ALL, audited="simulation"),
        "StopSimulation": Rule(_P.OPERATE, _ALL, audited="simulation"),
        "AdvanceSimulation": Rule(_P.OPERATE, _ALL, audited="simulation"),
        "ListMetrics": Rule(_P.READ, _NONE),
        "StreamFrames": Rule(_P.READ, _ALL),
        "BackfillHistory": Rule(_P.OPERATE, _ALL, audited="simulation"),
    },
    f"{_API}.simulator.v1.FaultService": {
        "InjectFault": Rule(_P.OPERATE, _ALL, audited="servers/{fault.servers}"),
        "ListFaults": Rule(_P.READ, _ALL),
        "ClearFault": Rule(_P.OPERATE, _ALL, audited="faults/{id}"),
    },
    f"{_API}.cache.v1.CacheService": _HOT,
    f"{_API}.analysis.v1.AnalysisService": {
        "AnalyzeTrend": Rule(_P.READ, _SOME),
        "ForecastCapacity": Rule(_P.READ, _SOME),
        "ScoreDetection": Rule(_P.READ, _ALL),
    },
    f"{_API}.analysis.v1.AnomalyService": {
        "DetectAnomalies": Rule(_P.READ, _SOME),
        "ListAnomalies": Rule(_P.READ, _SOME),
        "WatchAnomalies": Rule(_P.READ, _SOME),
    },
    f"{_API}.analysis.v1.RuleService": {
        "CreateRule": Rule(_P.CONFIGURE, _ALL, audited="rules/{rule.id}"),
        "GetRule": Rule(_P.READ, _NONE),
        "ListRules": Rule(_P.READ, _NONE),
        "UpdateRule": Rule(_P.CONFIGURE, _ALL, audited="rules/{rule.id}"),
        "DeleteRule": Rule(_P.CONFIGURE, _ALL, audited="rules/{id}"),
    },
    f"{_API}.analysis.v1.SilenceService": {
        "CreateSilence": Rule(_P.OPERATE, _ALL, audited="silences"),
        "GetSilence": Rule(_P.READ, _ALL),
        "ListSilences": Rule(_P.READ, _ALL),
        "UpdateSilence": Rule(_P.OPERATE, _ALL, audited="silences/{silence.id}"),
        "ExpireSilence": Rule(_P.OPERATE, _ALL, audited="silences/{id}"),
    },
    f"{_API}.analysis.v1.AlertService": {
        "ListAlerts": Rule(_P.READ, _SOME),
        "GetAlert": Rule(_P.READ, _SOME),
        "WatchAlerts": Rule(_P.READ, _SOME),
    },
    f"{_API}.cache.v1.EntryService": {
        "GetEntry": Rule(_P.WRITE, _ALL),
        "SetEntry": Rule(_P.WRITE, _ALL),
        "DeleteEntry": Rule(_P.WRITE, _ALL),
    },
    f"{_API}.timeseries.v1.TimeseriesService": {
        **_WRITES,
        "WatchFrames": Rule(_P.READ, _SOME),
        "QueryRange": Rule(_P.READ, _SOME),
        "QueryLatest": Rule(_P.READ, _SOME),
        "ListSeries": Rule(_P.READ, _SOME),
        "DeleteSeries": Rule(_P.CONFIGURE, _SOME, audited="series"),
        "ExportSeries": Rule(_P.READ, _SOME, noted="series"),
    },
    f"{_API}.timeseries.v1.RetentionService": {
        "GetRetentionPolicy": Rule(_P.READ, _NONE),
        "UpdateRetentionPolicy": Rule(_P.CONFIGURE, _ALL, audited="policies/retention"),
        "ListTiers": Rule(_P.READ, _NONE),
        "RebuildTier": Rule(_P.CONFIGURE, _ALL, audited="tiers/{tier}"),
    },
    f"{_API}.timeseries.v1.LogService": {
        "GetLedger": Rule(_P.READ, _NONE),
        "ConfirmPosition": Rule(_P.WRITE, _ALL),
        "ListDeadLetters": Rule(_P.OPERATE, _ALL),
        "RetryDeadLetters": Rule(_P.OPERATE, _ALL, audited="dead_letters/{consumer}"),
        "DeleteDeadLetters": Rule(_P.OPERATE, _ALL, audited="dead_letters/{consumer}"),
    },
    f"{_API}.timeseries.v1.ImportService": {
        "ImportFrames": Rule(_P.OPERATE, _ALL, audited="history"),
        "ImportRollups": Rule(_P.OPERATE, _ALL, audited="history"),
    },
    f"{_API}.metadata.v1.ServerService": {
        "CreateServer": Rule(_P.OPERATE, _SOME, audited="servers/{server.id}"),
        "GetServer": Rule(_P.READ, _SOME),
        "ListServers": Rule(_P.READ, _SOME),
        "UpdateServer": Rule(_P.OPERATE, _SOME, audited="servers/{server.id}"),
        "DeleteServer": Rule(_P.OPERATE, _SOME, audited="servers/{id}"),
        "BatchGetServers": Rule(_P.READ, _SOME),
        "RegisterServers": Rule(_P.MESH, _ALL),
    },
    f"{_API}.metadata.v1.PolicyService": {
        "GetPolicy": Rule(_P.READ, _ALL),
        "ListPolicies": Rule(_P.READ, _ALL),
        "UpdatePolicy": Rule(_P.CONFIGURE, _ALL, audited="policies/{policy.kind}/{policy.id}"),
        "DeletePolicy": Rule(_P.CONFIGURE, _ALL, audited="policies/{kind}/{id}"),
    },
    f"{_API}.metadata.v1.InteractionService": {
        "CreateInteraction": Rule(_P.RECORD, _ALL),
        "RateInteraction": Rule(_P.RECORD, _ALL),
        "GetInteraction": Rule(_P.LEARN, _ALL),
        "ListInteractions": Rule(_P.LEARN, _ALL),
        "FindSimilarInteractions": Rule(_P.LEARN, _ALL),
        "GetInteractionStatistics": Rule(_P.LEARN, _ALL),
        "ExportInteractions": Rule(_P.LEARN, _ALL, noted="interactions"),
        "EraseInteractions": Rule(_P.MANAGE, _ALL, audited="interactions"),
    },
    f"{_API}.metadata.v1.UserService": {
        "CreateUser": Rule(_P.MANAGE, _ALL, audited="users"),
        "GetUser": Rule(_P.AUDIT, _ALL),
        "ListUsers": Rule(_P.AUDIT, _ALL),
        "UpdateUser": Rule(_P.MANAGE, _ALL, audited="users/{user.id}"),
        "DeleteUser": Rule(_P.MANAGE, _ALL, audited="users/{id}"),
        "InviteUser": Rule(_P.MANAGE, _ALL, audited="users/{id}"),
        "AcceptInvitation": Rule(_P.NOTHING, _NONE, audited="users", secret=True),
        "ChangePassword": Rule(_P.SELF, _NONE, audited="users", secret=True),
    },
    f"{_API}.metadata.v1.RoleService": {
        "ListRoles": Rule(_P.SELF, _NONE),
        "GetRole": Rule(_P.SELF, _NONE),
    },
    f"{_API}.metadata.v1.KeyService": {
        "CreateKey": Rule(_P.MANAGE, _ALL, audited="keys"),
        "GetKey": Rule(_P.AUDIT, _ALL),
        "ListKeys": Rule(_P.AUDIT, _ALL),
        "RotateKey": Rule(_P.MANAGE, _ALL, audited="keys/{id}"),
        "DeleteKey": Rule(_P.MANAGE, _ALL, audited="keys/{id}"),
    },
    f"{_API}.metadata.v1.SessionService": {
        "CreateSession": Rule(_P.NOTHING, _NONE, audited="sessions", secret=True),
        "RefreshSession": Rule(_P.NOTHING, _NONE),
        "ListSessions": Rule(_P.SELF, _NONE),
        "DeleteSession": Rule(_P.SELF, _NONE, audited="sessions/{id}"),
        "GetIdentity": Rule(_P.SELF, _NONE),
        "Authenticate": Rule(_P.MESH, _ALL),
    },
    f"{_API}.metadata.v1.AuditService": {
        "RecordIntent": Rule(_P.MESH, _ALL),
        "RecordOutcome": Rule(_P.MESH, _ALL),
        "RecordEvent": Rule(_P.MESH, _ALL),
        "ListAuditEntries": Rule(_P.AUDIT, _ALL),
        "GetAuditEntry": Rule(_P.AUDIT, _ALL),
        "ExportAuditLog": Rule(_P.AUDIT, _ALL, noted="audit"),
        "ListCheckpoints": Rule(_P.AUDIT, _ALL),
        "EraseSubject": Rule(_P.MANAGE, _ALL, audited="{subject}"),
        "GetAuditStatus": Rule(_P.AUDIT, _ALL),
    },
    f"{_API}.status.v1.StatusService": {"GetStatus": Rule(_P.READ, _NONE)},
    "grpc.health.v1.Health": {
        "Check": Rule(_P.NOTHING, _NONE),
        "List": Rule(_P.NOTHING, _NONE),
        "Watch": Rule(_P.NOTHING, _NONE),
    },
    "grpc.reflection.v1.ServerReflection": _REFLECTION,
    "grpc.reflection.v1alpha.ServerReflection": _REFLECTION,
}


def methods_of(role: Role) -> list[str]:
    """Return the methods that a role opens, by full name."""
    held = PERMISSIONS[role] | {Permission.NOTHING, Permission.SELF}
    return [
        f"{service}/{method}"
        for service, rules in POLICY.items()
        for method, each in rules.items()
        if each.permission in held
    ]

"""The typed async client of an OpenManager mesh.

::

    async with Client("127.0.0.1:50050") as client:
        server = await client.get_server("web-01")
        result = await client.query_range(["cpu_usage"], start=datetime.now(UTC) - timedelta(hours=1))

Dataclasses and numpy arrays go in and come out; what goes wrong is one of `openmanager.errors`.
"""

from openmanager.client.analysis import Analysis, Anomaly, Blame, CapacityForecast, DetectionScores, FailureRisk, Trend
from openmanager.client.audit import Audit, AuditCheckpoint, AuditEntry, AuditHold, AuditPolicy, AuditStatus
from openmanager.client.client import Client
from openmanager.client.dead_letters import DeadLetters
from openmanager.client.enumeration import (
    Aggregation,
    FaultPattern,
    GroupBy,
    InteractionFormat,
    InteractionGroupBy,
    MetricKind,
    Redaction,
    ServerState,
    StorageState,
    WatchKind,
)
from openmanager.client.interaction import Interaction, InteractionStatistics, SimilarInteraction
from openmanager.client.interactions import Interactions
from openmanager.client.inventory import Inventory
from openmanager.client.model import (
    Board,
    Consumer,
    DeadLetter,
    Deletion,
    DiskBudget,
    Entry,
    ExportChunk,
    Fault,
    FleetSummary,
    GroupSummary,
    InventoryServer,
    Latest,
    Ledger,
    LegalHold,
    LogRecord,
    Metric,
    Provenance,
    RangeResult,
    Rejection,
    RetentionPolicy,
    RetentionRule,
    RollupAck,
    Samples,
    Segment,
    Selector,
    SeriesInfo,
    SeriesName,
    Server,
    ServerEvent,
    ServiceStatus,
    Simulation,
    StorageStatus,
    Thresholds,
    Tier,
    Tiers,
    WriteAck,
)
from openmanager.client.retention import Retention
from openmanager.client.simulation import Faults, Simulator
from openmanager.frame import Frame, MetricInfo, ServerInfo, split
from openmanager.runtime.tls import Tls

__all__ = [
    "Aggregation",
    "Analysis",
    "Anomaly",
    "Audit",
    "AuditCheckpoint",
    "AuditEntry",
    "AuditHold",
    "AuditPolicy",
    "AuditStatus",
    "Blame",
    "Board",
    "CapacityForecast",
    "Client",
    "Consumer",
    "DeadLetter",
    "DeadLetters",
    "Deletion",
    "DetectionScores",
    "DiskBudget",
    "Entry",
    "ExportChunk",
    "FailureRisk",
    "Fault",
    "FaultPattern",
    "Faults",
    "FleetSummary",
    "Frame",
    "GroupBy",
    "GroupSummary",
    "Interaction",
    "InteractionFormat",
    "InteractionGroupBy",
    "InteractionStatistics",
    "Interactions",
    "Inventory",
    "InventoryServer",
    "Latest",
    "Ledger",
    "LegalHold",
    "LogRecord",
    "Metric",
    "MetricInfo",
    "MetricKind",
    "Provenance",
    "RangeResult",
    "Redaction",
    "Rejection",
    "Retention",
    "RetentionPolicy",
    "RetentionRule",
    "RollupAck",
    "Samples",
    "Segment",
    "Selector",
    "SeriesInfo",
    "SeriesName",
    "Server",
    "ServerEvent",
    "ServerInfo",
    "ServerState",
    "ServiceStatus",
    "SimilarInteraction",
    "Simulation",
    "Simulator",
    "StorageState",
    "StorageStatus",
    "Thresholds",
    "Tier",
    "Tiers",
    "Tls",
    "Trend",
    "WatchKind",
    "WriteAck",
    "split",
]

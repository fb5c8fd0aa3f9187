"""The typed async client of an OpenManager mesh.

::

    async with Client("127.0.0.1:50050") as client:
        server = await client.get_server("web-01")
        result = await client.query_range(["cpu_usage"], start=datetime.now(UTC) - timedelta(hours=1))

Dataclasses and numpy arrays go in and come out; what goes wrong is one of `openmanager.errors`.
"""

from openmanager.client.client import Client
from openmanager.client.enumeration import (
    Aggregation,
    FaultPattern,
    GroupBy,
    MetricKind,
    ServerState,
    StorageState,
    WatchKind,
)
from openmanager.client.inventory import Inventory
from openmanager.client.model import (
    Board,
    Consumer,
    Entry,
    Fault,
    FleetSummary,
    GroupSummary,
    InventoryServer,
    Latest,
    Ledger,
    LogRecord,
    Metric,
    Provenance,
    RangeResult,
    Rejection,
    Samples,
    SeriesInfo,
    SeriesName,
    Server,
    ServerEvent,
    ServiceStatus,
    Simulation,
    StorageStatus,
    Thresholds,
    WriteAck,
)
from openmanager.client.simulation import Faults, Simulator
from openmanager.frame import Frame, MetricInfo, ServerInfo, split

__all__ = [
    "Aggregation",
    "Board",
    "Client",
    "Consumer",
    "Entry",
    "Fault",
    "FaultPattern",
    "Faults",
    "FleetSummary",
    "Frame",
    "GroupBy",
    "GroupSummary",
    "Inventory",
    "InventoryServer",
    "Latest",
    "Ledger",
    "LogRecord",
    "Metric",
    "MetricInfo",
    "MetricKind",
    "Provenance",
    "RangeResult",
    "Rejection",
    "Samples",
    "SeriesInfo",
    "SeriesName",
    "Server",
    "ServerEvent",
    "ServerInfo",
    "ServerState",
    "ServiceStatus",
    "Simulation",
    "Simulator",
    "StorageState",
    "StorageStatus",
    "Thresholds",
    "WatchKind",
    "WriteAck",
    "split",
]

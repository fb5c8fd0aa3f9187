"""The closed sets of words that the client gives and takes: the contract's, without their prefixes."""

from __future__ import annotations

from enum import StrEnum


class ServerState(StrEnum):
    """The states of a server."""

    HEALTHY = "HEALTHY"
    WARNING = "WARNING"
    CRITICAL = "CRITICAL"
    OFFLINE = "OFFLINE"


class StorageState(StrEnum):
    """The states of a store or a service."""

    OK = "OK"
    SLOW = "SLOW"
    DOWN = "DOWN"
    HUNG = "HUNG"
    EMPTY = "EMPTY"
    READONLY = "READONLY"
    RECOVERING = "RECOVERING"

    @property
    def is_useful(self) -> bool:
        """Whether what is in this state still does its work: OK, SLOW or RECOVERING."""
        return self in {StorageState.OK, StorageState.SLOW, StorageState.RECOVERING}


class Aggregation(StrEnum):
    """What is computed of the samples of a bucket; STDDEV with n − 1, percentiles linear."""

    MEAN = "MEAN"
    MIN = "MIN"
    MAX = "MAX"
    SUM = "SUM"
    COUNT = "COUNT"
    FIRST = "FIRST"
    LAST = "LAST"
    STDDEV = "STDDEV"
    P50 = "P50"
    P90 = "P90"
    P95 = "P95"
    P99 = "P99"
    RATE = "RATE"
    INCREASE = "INCREASE"


class GroupBy(StrEnum):
    """Whose samples are pooled in one bucket."""

    SERVER = "SERVER"
    ROLE = "ROLE"
    ENVIRONMENT = "ENVIRONMENT"
    ALL = "ALL"


class WatchKind(StrEnum):
    """What an event of a watch is."""

    CREATED = "CREATED"
    SNAPSHOT = "SNAPSHOT"
    DELTA = "DELTA"
    PROGRESS = "PROGRESS"


class MetricKind(StrEnum):
    """Whether the values of a metric may fall."""

    UNSPECIFIED = "UNSPECIFIED"
    GAUGE = "GAUGE"
    COUNTER = "COUNTER"


class FaultPattern(StrEnum):
    """What goes wrong; UNSPECIFIED in an answer is one that this version does not know."""

    UNSPECIFIED = "UNSPECIFIED"
    MEMORY_LEAK = "MEMORY_LEAK"
    CPU_SPIKE = "CPU_SPIKE"
    DISK_FULL = "DISK_FULL"
    CASCADE_FAILURE = "CASCADE_FAILURE"
    NETWORK_LATENCY = "NETWORK_LATENCY"
    DATABASE_LOCK = "DATABASE_LOCK"
    GRADUAL_DEGRADATION = "GRADUAL_DEGRADATION"


class InteractionGroupBy(StrEnum):
    """What statistics of interactions are separated by."""

    MODEL_AND_INTENT = "MODEL_AND_INTENT"
    MODEL = "MODEL"
    INTENT = "INTENT"
    ALL = "ALL"


class InteractionFormat(StrEnum):
    """The formats of an export of interactions."""

    JSONL = "JSONL"
    PARQUET = "PARQUET"


class Redaction(StrEnum):
    """What is replaced in an export of interactions."""

    EMAIL_ADDRESS = "EMAIL_ADDRESS"
    IP_ADDRESS = "IP_ADDRESS"
    SECRET = "SECRET"  # noqa: S105  (a kind, not a secret)
    HOST_NAME = "HOST_NAME"

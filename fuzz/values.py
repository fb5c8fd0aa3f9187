"""Values that have broken other programs: by the type of a field, and by its name where the name says what it means."""

from __future__ import annotations

import math
import time

from google.protobuf.descriptor import FieldDescriptor as Field

NOW = time.time_ns() // 10**9 // 60 * 60
HOUR = 3600

_INT32 = (0, 1, -1, 2, 3, 7, -10, 20, 64, 99, 100, 101, 999, 1000, 1001, 65_535, 2**31 - 1, -(2**31))
_INT64 = (*_INT32, 2**31, 2**32, 2**53, 2**53 + 1, 2**62, 2**63 - 1, -(2**63))
_UNSIGNED = (0, 1, 2, 7, 1000, 2**31, 2**32 - 1)
_DOUBLE = (0.0, -0.0, 1.0, -1.0, 0.5, 100.0, 5e-324, 1.8e308, 1e300, 2.0**53 + 2, math.nan, math.inf, -math.inf)
_TEXTS = (
    "",
    "a",
    "default",
    "A" * 255,
    "a" * 256,
    "a" * 513,
    "x" * 5000,
    "\0",
    "a\0b",
    "a\nb",
    "a\\b",
    "'\"`",
    "'; DROP TABLE servers;--",
    '"; from(bucket:"x")',
    "${jndi:ldap://x/y}",
    "../../x",
    "%s%n%d",
    "{}{0}{a.b}",
    "\u202eabc",
    "😀",
    "\u0301",
    "é",
    "e\u0301",
    "ﬁ",
    "İ",
    "аdmin",
    "\ufeff",
    "\U0010ffff",
    "(a+)+$",
    "*" * 200,
    "a*" * 100,
    "[!a",
    "_measurement",
    "om_x",
    "time",
    "null",
    "NaN",
    "-1",
    "9" * 30,
)
NUMBERS: dict[int, tuple[int | float, ...]] = {
    Field.TYPE_INT32: _INT32,
    Field.TYPE_SINT32: _INT32,
    Field.TYPE_SFIXED32: _INT32,
    Field.TYPE_INT64: _INT64,
    Field.TYPE_SINT64: _INT64,
    Field.TYPE_SFIXED64: _INT64,
    Field.TYPE_UINT32: _UNSIGNED,
    Field.TYPE_FIXED32: _UNSIGNED,
    Field.TYPE_UINT64: (*_UNSIGNED, 2**63, 2**64 - 1),
    Field.TYPE_FIXED64: (*_UNSIGNED, NOW * 10**9, 2**63, 2**64 - 1),
    Field.TYPE_DOUBLE: _DOUBLE,
    Field.TYPE_FLOAT: (*_DOUBLE[:7], math.nan, math.inf),
}
TEXTS = _TEXTS
BYTES = (b"", b"\0", b"x", b"\xff\xfe", b"x" * 1024, bytes(16), bytes(8), b"x" * (1 << 20), b"x" * ((1 << 20) + 1))

SERVERS = ("web-onpremise-01", "web-onpremise-02", "s1", "s2", "S3", "10.0.0.1:9100")
METRICS = ("cpu_usage", "memory_usage", "disk_usage", "x", "x{a=b}", "x{a=b,c=d}", "system.cpu.utilization{cpu=3}")
_FILTERS = (
    'role = "web"',
    'id = "s1" AND role != "db"',
    'hostname : "web"',
    'labels.a = "b"',
    "cpu_usage > 80",
    "state = CRITICAL",
    'actor = "users/1" AND kind != INTENT',
    "code = PERMISSION_DENIED OR number < 9",
    'update_time > "2020-01-01T00:00:00Z"',
    'role = "web" OR',
    "(" * 500 + 'id="a"' + ")" * 500,
    " AND ".join(['id = "a"'] * 300),
    "NOT " * 300 + 'id = "a"',
    'id = "' + "a" * 70_000 + '"',
)
# What fields of these names are given when they are to mean something.
MEANT: dict[str, tuple[str, ...]] = {
    "id": (*SERVERS, "default", "web"),
    "ids": SERVERS,
    "server": SERVERS,
    "servers": SERVERS,
    "metric": METRICS,
    "metrics": (*METRICS, "*", "cpu*", "x{a=*}"),
    "kind": ("thresholds", "fault", "retention", "audit"),
    "actor": ("users/1", "keys/2", "services/simulator", "local"),
    "via": ("gateway", "metadata"),
    "action": ("retention.deletion", "audit.pruned", "openmanager.api.metadata.v1.ServerService/DeleteServer"),
    "object": ("servers/s1", "policies/audit/default"),
    "subject": ("users/1", ""),
    "reason": ("PERMISSION_DENIED", ""),
    "namespace": ("queries", "sessions"),
    "key": ("a", "b", "k" * 512, "host.id", "service.name"),
    "filter": _FILTERS,
    "server_filter": _FILTERS,
    "order_by": ("id", "id desc", "hostname", "update_time desc", "cpu_usage desc", "labels.a"),
    "consumer": ("fuzz", "reader", "cache", "head", "registrar"),
    "tier": ("", "raw", "5m", "1h"),
    "name": ("x", "hold-1", "system.cpu.time", "openmanager.api.status.v1.StatusService"),
    "paths": ("hostname", "environment", "role", "location", "labels", "thresholds", "id", "*"),
    "request_id": ("r1", "r2", ""),
    "etag": ("v1", "v2", ""),
}
# What would only be a test of load: fields of these names stay small.
SMALL: dict[str, tuple[int, ...]] = {
    "server_count": (0, 1, 2, 4, -1, 100_001, 2**31 - 1),
    "tick_count": (0, 1, 2, 5, -1, 100_001, 2**31 - 1),
}
SECONDS = (
    0,
    1,
    -1,
    NOW,
    NOW - 60,
    NOW - HOUR,
    NOW - 24 * HOUR,
    NOW + 60,
    NOW + 24 * HOUR,
    NOW - 40 * 24 * HOUR,
    -62_135_596_800,
    -62_135_596_801,
    253_402_300_799,
    253_402_300_800,
    -9_278_409_600,  # 1675-12-23
    9_246_182_400,  # 2263-01-01
    2**63 - 1,
    -(2**63),
)
NANOS = (0, 0, 0, 0, 1, 1_000_000, 999_999_999, -1, 10**9, 2**31 - 1)
LENGTHS = (0, 1, 5, 60, 300, HOUR, 24 * HOUR, -1, 315_576_000_000, 315_576_000_001, 2**63 - 1)

"""Faults as they are written down: records of what was injected, and files with what shall be."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from openmanager_simulator.fault import DEFAULT_SEVERITY, SECOND, Fault, FaultPattern, plan_fault
from openmanager_simulator.fleet import index_of
from openmanager_simulator.season import FIRST_DAY, LAST_DAY

_SEEDS = 1 << 63
_EARLIEST, _LATEST = FIRST_DAY * 86_400, LAST_DAY * 86_400


def to_document(fault: Fault) -> dict[str, Any]:
    """Return a fault as it is recorded; whole numbers as text, for JSON has only doubles."""
    return {
        **asdict(fault),
        "pattern": str(fault.pattern),
        "servers": list(fault.servers),
        "start_nanos": str(fault.start_nanos),
        "end_nanos": str(fault.end_nanos),
        "planned_end_nanos": str(fault.planned_end_nanos),
        "seed": str(fault.seed),
    }


def from_document(document: Mapping[str, Any]) -> Fault:
    """Undo `to_document`; ValueError for what is no record."""
    try:
        fault = Fault(
            id=str(document["id"]),
            pattern=FaultPattern(document["pattern"]),
            servers=tuple(str(server) for server in document["servers"]),
            start_nanos=int(document["start_nanos"]),
            end_nanos=int(document["end_nanos"]),
            planned_end_nanos=int(document.get("planned_end_nanos", document["end_nanos"])),
            severity=float(document["severity"]),
            seed=int(document["seed"]),
            root=str(document.get("root", "")),
            origin=str(document.get("origin", "injected")),
        )
    except (KeyError, TypeError, AttributeError, OverflowError) as err:
        raise ValueError(f"no record of a fault: {err!r}") from err
    ordered = _EARLIEST * SECOND <= fault.start_nanos < fault.end_nanos <= fault.planned_end_nanos <= _LATEST * SECOND
    if not fault.id or not fault.servers or not ordered or not 0 < fault.severity <= 1 or not 0 <= fault.seed < _SEEDS:
        raise ValueError("no record of a fault: a figure is out of its range")
    return fault


def load_scenario(path: Path) -> tuple[Fault, ...]:
    """Return the faults of a file: a JSON list of objects with pattern, servers, start, end (epoch seconds), severity.

    The same file gives the same faults. ValueError naming the entry and the field for anything else.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as err:
        raise ValueError(f"{path} is not a JSON file: {err}") from err
    if not isinstance(entries, list):
        raise ValueError(f"{path} is not a list of faults")  # noqa: TRY004  (it is the value of a file)
    return tuple(_from_entry(index, entry) for index, entry in enumerate(entries))


def _from_entry(index: int, entry: Any) -> Fault:
    known = {"pattern", "servers", "start", "end", "severity", "seed"}
    if not isinstance(entry, dict) or not {"pattern", "servers", "start"} <= entry.keys() <= known:
        raise ValueError(f"fault {index} must have pattern, servers and start, and may have end, severity and seed")
    try:
        pattern = FaultPattern(entry["pattern"])
    except ValueError as err:
        raise ValueError(f"fault {index} has the unknown pattern {entry['pattern']!r}") from err
    servers, severity = entry["servers"], entry.get("severity", DEFAULT_SEVERITY)
    if not isinstance(servers, list) or not servers or not all(isinstance(each, str) for each in servers):
        raise ValueError(f"fault {index}: servers must be a list of ids")
    strangers = [server for server in servers if index_of(server) is None]
    if strangers:
        raise ValueError(f"fault {index}: no simulated server is named {strangers[0]!r}")
    if not _is_number(severity) or not 0 < severity <= 1:
        raise ValueError(f"fault {index}: severity must be more than 0 and at most 1")
    for name in ("start", "end"):
        if name in entry and not (_is_number(entry[name]) and _EARLIEST <= entry[name] < _LATEST):
            raise ValueError(f"fault {index}: {name} must be seconds since the epoch, of the years 2000–2099")
    if "end" in entry and entry["end"] <= entry["start"]:
        raise ValueError(f"fault {index}: end must be after start")
    digest = hashlib.blake2b(json.dumps(entry, sort_keys=True).encode(), digest_size=7).digest()
    seed = entry.get("seed", int.from_bytes(digest, "big"))
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < _SEEDS:
        raise ValueError(f"fault {index}: seed must be a whole number from 0 on, below 2^63")
    return plan_fault(
        id=f"scenario-{index}",
        pattern=pattern,
        servers=servers,
        start_nanos=int(entry["start"] * SECOND),
        end_nanos=int(entry["end"] * SECOND) if "end" in entry else None,
        severity=float(severity),
        seed=seed,
        origin="scenario",
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)

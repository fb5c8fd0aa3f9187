"""The simulated servers and what their roles make of them."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

MAX_SERVERS = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A simulated server. Server k is the same in a fleet of any size."""

    id: str
    hostname: str
    environment: str
    role: str
    location: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Role:
    """How servers of a role behave: levels in percent, correlations in [0, 1], the rest as factors."""

    cpu: float
    memory: float
    disk: float
    burst: float
    burst_probability: float
    cpu_memory: float
    cpu_response: float
    memory_disk: float
    stability: float
    volatility: float
    recovery_minutes: float


@cache
def _document() -> Any:
    return json.loads(resources.files(__package__).joinpath("fleet.json").read_text(encoding="utf-8"))


@cache
def roles() -> dict[str, Role]:
    """Return the roles by name."""
    return {name: Role(**values) for name, values in _document()["roles"].items()}


def make_fleet(count: int) -> tuple[Server, ...]:
    """Return the first `count` servers, 1–100,000: the default twenty, and the same again with higher numbers."""
    if not 1 <= count <= MAX_SERVERS:
        raise ValueError(f"a fleet has 1–{MAX_SERVERS} servers")
    pattern = _document()["servers"]
    seen: Counter[tuple[str, str]] = Counter()
    fleet = []
    for index in range(count):
        kind = pattern[index % len(pattern)]
        seen[kind["role"], kind["environment"]] += 1
        name = f"{kind['role']}-{kind['environment']}-{seen[kind['role'], kind['environment']]:02d}"
        fleet.append(Server(id=name, hostname=f"{name}.example.internal", **kind))
    return tuple(fleet)

"""The simulated servers and what their roles make of them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib import resources
from typing import Any

MAX_SERVERS = 100_000
# The servers that the data file tells; larger fleets are so many groups of them.
GROUP = 20


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
    return tuple(make_server(index) for index in range(count))


def make_server(index: int) -> Server:
    """Return server `index`, from 0."""
    group, place = divmod(index, GROUP)
    kind = _document()["servers"][place]
    alike = _alike()[kind["role"], kind["environment"]]
    name = f"{kind['role']}-{kind['environment']}-{group * len(alike) + alike.index(place) + 1:02d}"
    return Server(id=name, hostname=f"{name}.example.internal", **kind)


@lru_cache(maxsize=1024)
def make_group(number: int) -> tuple[Server, ...]:
    """Return the twenty servers of a group, from 0; faults come by group, so that they are the same in any fleet."""
    return tuple(make_server(index) for index in range(number * GROUP, (number + 1) * GROUP))


def index_of(server_id: str) -> int | None:
    """Return the index of a server, None for an id that no server of ours has."""
    kind, _, number = server_id.rpartition("-")
    role, _, environment = kind.partition("-")
    alike = _alike().get((role, environment))
    if alike is None or not (number.isascii() and number.isdigit()) or not 1 <= int(number) <= MAX_SERVERS:
        return None
    group, rank = divmod(int(number) - 1, len(alike))
    index = group * GROUP + alike[rank]
    return index if make_server(index).id == server_id else None


@cache
def _alike() -> dict[tuple[str, str], list[int]]:
    """Return the places in a group of each role and environment."""
    found: dict[tuple[str, str], list[int]] = {}
    for place, kind in enumerate(_document()["servers"]):
        found.setdefault((kind["role"], kind["environment"]), []).append(place)
    return found

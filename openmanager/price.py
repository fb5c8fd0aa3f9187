"""What things cost a month: read from TOML, whose first copy is `prices.toml` beside this."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

from openmanager.config import parse_duration, parse_size
from openmanager.errors import InvalidArgumentError, invalid

MAX_MONEY = 1e9
MAX_CORES, MAX_BYTES = 1024, 2**60
MAX_SECONDS = 3600.0
_KEYS: Mapping[str, frozenset[str]] = {
    "managed": frozenset({"month", "servers", "metrics", "interval"}),
    "machine": frozenset({"month", "cores", "memory", "disk"}),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A machine: cores, bytes of memory and of disk, and what a month of it costs; NaN where that is not known."""

    cores: float
    memory_bytes: int
    disk_bytes: int
    month: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """What a machine of one's own costs, and what managed services cost for a sample a second; 0 where not known."""

    currency: str
    machine: Machine
    managed_per_rate: float

    def managed(self, rate: float) -> float:
        """Return what managed services cost for so many samples a second; NaN where prices say nothing of them."""
        return self.managed_per_rate * rate or math.nan


def defaults() -> str:
    """Return the prices that hold where none are given, as TOML for people to edit."""
    return resources.files("openmanager").joinpath("prices.toml").read_text(encoding="utf-8")


def read(text: str) -> Prices:
    """Return the prices of a TOML document; InvalidArgumentError, naming the key, for what is wrong with it."""
    try:
        found = tomllib.loads(text)
    except tomllib.TOMLDecodeError as err:
        raise InvalidArgumentError(f"the prices are no TOML: {err}") from err
    _only(found, {"currency", *_KEYS}, "")
    tables = {name: _table(found, name) for name in _KEYS}
    managed, machine = tables["managed"], tables["machine"]
    currency = found.get("currency", "USD")
    if not isinstance(currency, str) or not 0 < len(currency) <= 8 or not currency.isprintable():
        raise invalid("currency", "is not a text of 1 to 8 characters")
    interval = _parsed(managed, "managed.interval", parse_duration).total_seconds()
    if not 1 <= interval <= MAX_SECONDS:
        raise invalid("managed.interval", "is not between 1s and 1h")
    rate = _number(managed, "managed.servers", 1, 1e6) * _number(managed, "managed.metrics", 1, 1e5) / interval
    return Prices(
        currency=currency,
        machine=Machine(
            cores=_number(machine, "machine.cores", 0.1, MAX_CORES),
            memory_bytes=size("machine.memory", machine.get("memory")),
            disk_bytes=size("machine.disk", machine.get("disk")),
            month=_number(machine, "machine.month", 0, MAX_MONEY),
        ),
        managed_per_rate=_number(managed, "managed.month", 0, MAX_MONEY) / rate,
    )


def parse_machine(text: str) -> Machine:
    """Return the machine of a text such as `8:32GiB:1TiB:120`: cores, memory, disk, and its price a month."""
    parts = text.split(":")
    if len(parts) not in {3, 4}:
        raise invalid(
            "machine", f"{text!r} is not CORES:MEMORY:DISK or CORES:MEMORY:DISK:MONEY, as in 8:32GiB:1TiB:120"
        )
    cores, memory, disk, *money = parts
    return Machine(
        cores=number("machine cores", cores, 0.1, MAX_CORES),
        memory_bytes=size("machine memory", memory),
        disk_bytes=size("machine disk", disk),
        month=number("machine price", money[0], 0, MAX_MONEY) if money else math.nan,
    )


def number(name: str, raw: Any, least: float, most: float) -> float:
    """Return a finite number within bounds; InvalidArgumentError, naming it, for anything else."""
    try:
        found = math.nan if isinstance(raw, bool) or raw is None else float(raw)
    except (TypeError, ValueError, OverflowError):
        found = math.nan
    if not least <= found <= most:
        raise invalid(name, f"is not a number between {least:g} and {most:g}")
    return found


def size(name: str, raw: Any) -> int:
    """Return the bytes of a size; InvalidArgumentError, naming it, for none, for 0 and for more than an EiB."""
    try:
        found = int(parse_size(raw))
    except ValueError as err:
        raise invalid(name, f"{raw!r} is no size: 4GiB or 2TiB is expected") from err
    if not 0 < found <= MAX_BYTES:
        raise invalid(name, "is not between 1 byte and 1 EiB")
    return found


def _only(found: Mapping[str, Any], known: set[str] | frozenset[str], where: str) -> None:
    if unknown := sorted(found.keys() - known):
        raise invalid(f"{where}{unknown[0]}", f"is no price; there is {', '.join(sorted(known))}")


def _table(found: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    table = found.get(name)
    if not isinstance(table, dict):
        raise invalid(name, "is missing: a table is expected")
    _only(table, _KEYS[name], f"{name}.")
    if absent := sorted(_KEYS[name] - table.keys()):
        raise invalid(f"{name}.{absent[0]}", "is missing")
    return table


def _number(table: Mapping[str, Any], name: str, least: float, most: float) -> float:
    raw = table[name.partition(".")[2]]
    return number(name, None if isinstance(raw, str) else raw, least, most)


def _parsed(table: Mapping[str, Any], name: str, parse: Callable[[Any], Any]) -> Any:
    try:
        return parse(table[name.partition(".")[2]])
    except (ValueError, OverflowError) as err:
        raise invalid(name, f"{err}") from err

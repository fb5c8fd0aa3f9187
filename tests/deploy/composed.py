"""docker-compose.yml as Compose would read it with a complete .env, each of whose secrets can be recognised."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docker-compose.yml").read_text()
VARIABLE = re.compile(r"\$(?:\$|\{(\w+)(?::(-|\?)([^}]*))?\})")


def dotenv(path: Path) -> dict[str, str]:
    """Return the variables of a .env file."""
    return dict(re.findall(r"^([A-Z][A-Z0-9_]*)=(.*)$", path.read_text(), re.MULTILINE))


def interpolate(node: Any, values: dict[str, str]) -> Any:
    """Return a node with its variables replaced."""
    if isinstance(node, dict):
        return {key: interpolate(value, values) for key, value in node.items()}
    if isinstance(node, list):
        return [interpolate(value, values) for value in node]
    return VARIABLE.sub(lambda match: _value(match, values), node) if isinstance(node, str) else node


def _value(match: re.Match[str], values: dict[str, str]) -> str:
    name, kind, rest = match.groups()
    if name is None:
        return "$"
    value = values.get(name, "")
    assert value or kind == "-", f"{name}: {rest}"
    return value or str(rest)


def texts(node: Any) -> list[str]:
    """Return every text in a node."""
    if isinstance(node, dict):
        return [text for value in node.values() for text in texts(value)]
    if isinstance(node, list):
        return [text for value in node for text in texts(value)]
    return [node] if isinstance(node, str) else []


EXAMPLE = dotenv(ROOT / ".env.example")
FILLED = {name: value or f"canary-{name.lower()}".ljust(40, "x") for name, value in EXAMPLE.items()}
FILLED["AUDIT_KEY"] = "ca7a".ljust(64, "0")  # which is hexadecimal
RAW: dict[str, Any] = yaml.safe_load(TEXT)
COMPOSE: dict[str, Any] = interpolate(RAW, FILLED)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
# Gives certificates to the others and ends.
CERTS = SERVICES["certs"]
# Speaks HTTP, and is no server of the mesh.
CONSOLE = SERVICES["console"]
OWN = {name: service for name, service in SERVICES.items() if "build" in service and service not in (CERTS, CONSOLE)}
# Where the stores listen in their containers.
PORTS = {"postgres": 5432, "redis": 6379, "influxdb": 8086}


def environment(name: str) -> dict[str, str]:
    """Return the environment of a container."""
    found: dict[str, str] = SERVICES[name].get("environment", {})
    return found


def share_a_network(left: str, right: str) -> bool:
    """Say whether two containers see each other."""
    return bool(set(SERVICES[left]["networks"]) & set(SERVICES[right]["networks"]))


def mounts(name: str) -> dict[str, str]:
    """Return what a container mounts, by where; a mode is part of the source."""
    found = (entry.split(":") for entry in SERVICES[name].get("volumes", []))
    return {target: ":".join((source, *mode)) for source, target, *mode in found}

"""docker-compose.yml as Compose would read it beside what `make env` writes."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docker-compose.yml").read_text()
VARIABLE = re.compile(r"\$(?:\$|\{(\w+)(?::(-|\?)([^}]*))?\})")


def dotenv(path: Path) -> dict[str, str]:
    """Return the variables of a .env file."""
    return dict(re.findall(r"^([A-Z][A-Z0-9_]*)=(.*)$", path.read_text(), re.MULTILINE))


def prepared() -> dict[str, str]:
    """Return the secrets that `make env` writes, by the names of their files."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["sh", str(ROOT / "scripts/env.sh")]
        subprocess.run(command, cwd=folder, stdout=subprocess.DEVNULL, check=True, timeout=30)
        return {file.name: file.read_text() for file in Path(folder, "secrets").iterdir()}


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
SECRETS = prepared()
RAW: dict[str, Any] = yaml.safe_load(TEXT)
COMPOSE: dict[str, Any] = interpolate(RAW, EXAMPLE)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
# Gives certificates to the others and ends.
CERTS = SERVICES["certs"]
# Speaks HTTP, and is no server of the mesh.
CONSOLE = SERVICES["console"]
# Write files for others and end.
ONCE = (CERTS, SERVICES["edge-files"])
# Another one of a service, and of which.
REPLICAS = {"gateway-2": "gateway"}
# The second shard of a service, which is one more that owns data.
SHARDS = {f"{name}-1": name for name in ("timeseries", "cache", "analysis")}
COPIES = REPLICAS | SHARDS
OWN = {
    name: service
    for name, service in SERVICES.items()
    if "build" in service and name not in COPIES and service not in (*ONCE, CONSOLE)
}
OTHERS = {name: service for name, service in SERVICES.items() if "build" not in service}
# Where the stores listen in their containers.
PORTS = {"postgres": 5432, "redis": 6379, "influxdb": 8086, "victoriametrics": 8428, "tempo": 3200}


def sharded() -> dict[str, dict[str, Any]]:
    """Return the services that run with the lines of .env that docs/scale.md has for two shards."""
    page = (ROOT / "docs/scale.md").read_text()
    (lines,) = re.findall(r"```sh\n(COMPOSE_PROFILES=core,scale,shards\n.*?)```", page, re.DOTALL)
    given = dict(line.split("=", 1) for line in lines.splitlines())
    assert set(given) <= set(EXAMPLE)
    profiles = {*given["COMPOSE_PROFILES"].split(",")}
    services: dict[str, dict[str, Any]] = interpolate(RAW, EXAMPLE | given)["services"]
    return {name: each for name, each in services.items() if {*each["profiles"]} & profiles}


# Where containers find their secrets.
MOUNT = "/run/secrets"


def secrets_of(name: str) -> dict[str, str]:
    """Return the secrets that are mounted in a container, by the paths of their files there."""
    return {f"{MOUNT}/{each}": SECRETS[each] for each in SERVICES[name].get("secrets", [])}


def placed(name: str, folder: Path) -> dict[str, str]:
    """Return the environment of a container with its secrets, and no others, in a folder of this machine."""
    kept = folder / name
    kept.mkdir(parents=True, exist_ok=True)
    for path, secret in secrets_of(name).items():
        (kept / Path(path).name).write_text(secret)
    return moved(environment(name), MOUNT, kept)


def moved(variables: Mapping[str, str], place: str, folder: Path) -> dict[str, str]:
    """Return variables with a path of the container replaced by one of this machine."""
    return {variable: text.replace(place, str(folder)) for variable, text in variables.items()}


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

"""What `up` runs where: which processes a service has, at which addresses, in which folders of a data directory.

With one shard the folders of history are `timeseries` and `analysis`, with N of them `shards/N/0/timeseries` and so on; the
file `SHARDS` says which are used. Another number begins in folders of its own, which `openmanager reshard` fills.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from openmanager import suite
from openmanager.datadir import DataDirError, write_durably
from openmanager.errors import ConfigurationError
from openmanager.runtime.module import MeshConfig
from openmanager.shard import SHARDED

SHARDS = "SHARDS"
# So many of a mesh on one machine have ports between those of its other services.
MAX_LOCAL_SHARDS, MAX_LOCAL_GATEWAYS = 8, 8
# The ports of a mesh from the gateway's on; those of further shards follow, and beyond the console those of gateways.
PORTS = ("gateway", "simulator", "cache", "timeseries", "metadata", "analysis")
CONSOLE_OFFSET, GATEWAYS_OFFSET = 30, 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A process of a service: the `number`-th of `count`, from 0."""

    service: str
    number: int
    count: int
    address: str

    @property
    def name(self) -> str:
        """What it is called: of several with its number."""
        return self.service if self.count == 1 else f"{self.service}/{self.number}"

    @property
    def file_name(self) -> str:
        """The same for the name of a file."""
        return self.name.replace("/", "-")


def parts(mesh: MeshConfig) -> Iterator[Part]:
    """Yield every process, by service; ConfigurationError for addresses that do not fit together."""
    for service in suite.PROGRAMS:
        found = mesh.addresses(service)
        for number, address in enumerate(found):
            yield Part(service=service, number=number, count=len(found), address=address)


def addresses(gateway: str, shards: int, gateways: int) -> dict[str, str]:
    """Return the addresses of all services from that of the first gateway; ConfigurationError when it is none."""
    host, _, port = gateway.rpartition(":")
    last = 65535 - max(CONSOLE_OFFSET, GATEWAYS_OFFSET + gateways - 1 if gateways > 1 else 0)
    if not host or not port.isdigit() or not 0 < int(port) <= last:
        raise ConfigurationError(f"{gateway!r} is not an address: host:port with a port of {last} at most is expected")

    def at(*offsets: int) -> str:
        return ",".join(f"{host}:{int(port) + offset}" for offset in offsets)

    further = range(len(PORTS), len(PORTS) + len(SHARDED) * (shards - 1), len(SHARDED))
    found = {name: at(offset) for offset, name in enumerate(PORTS)}
    for place, name in enumerate(SHARDED):
        found[name] = at(PORTS.index(name), *(offset + place for offset in further))
    found["gateway"] = at(0, *(GATEWAYS_OFFSET + number for number in range(1, gateways)))
    return {**found, suite.CONSOLE: at(CONSOLE_OFFSET)}


def folder(data: Path, service: str, number: int, count: int) -> Path:
    """Return the folder of one shard of a service."""
    return data / service if count == 1 else data / "shards" / str(count) / str(number) / service


def held_shards(data: Path) -> int | None:
    """Return how many shards the history of a data directory is in; None while there is none."""
    try:
        text = (data / SHARDS).read_text(encoding="ascii").strip()
    except FileNotFoundError:
        log = data / "timeseries" / "log"
        return 1 if log.is_dir() and any(log.iterdir()) else None
    except (OSError, UnicodeDecodeError) as err:
        raise DataDirError(f"the file {SHARDS} of the data directory {data} cannot be read") from err
    if not text.isdecimal() or not 1 <= int(text) <= MAX_LOCAL_SHARDS:
        raise DataDirError(f"the file {SHARDS} of the data directory {data} does not hold a number of shards")
    return int(text)


def hold_shards(data: Path, count: int) -> None:
    """Take note of how many shards the history of a data directory is in; DataDirError when it is another number."""
    held = held_shards(data)
    if held not in {None, count}:
        raise DataDirError(
            f"the data directory {data} holds {held} shard{'s' if held != 1 else ''} and not {count}: stop everything, and"
            f" run `openmanager reshard --data-dir {data} --shards {count}`"
        )
    if held is None and count > 1:
        write_durably(data / SHARDS, f"{count}\n")


def use_shards(data: Path, count: int) -> None:
    """Use the folders of so many shards from now on."""
    write_durably(data / SHARDS, f"{count}\n")

"""Configuration of the console."""

from __future__ import annotations

from dataclasses import dataclass

from openmanager.config import setting


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsoleConfig:
    """The section `console`."""

    hosts: str = setting(
        "",
        "Names, separated by commas, by which it is called beside its own address, this machine's name for itself and IP"
        " addresses; a request to another one is refused.",
    )
    max_connections: int = setting(256, "Connections at once; for one more, the one that has been idle longest goes.")
    max_pages: int = setting(64, "Pages that follow what happens at once; more are refused and try again.")
    max_identities: int = setting(16, "People whose pages follow at once, each by four watches of the gateway.")

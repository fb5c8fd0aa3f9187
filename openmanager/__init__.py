"""OpenManager: a telemetry store for server fleets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from openmanager.client import Client as Client

__all__ = ["Client"]


def __getattr__(name: str) -> Any:
    # Imported when it is asked for: gRPC and numpy cost every process that does not need them 150 ms.
    if name == "Client":
        from openmanager.client import Client

        return Client
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

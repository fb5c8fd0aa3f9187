"""How much disk history takes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What is used of how much, in bytes; `full_nanos` when that will be all, 0 when it is not known or far away."""

    limit: int = 0
    used: int = 0
    full_nanos: int = 0
    plan: str = ""

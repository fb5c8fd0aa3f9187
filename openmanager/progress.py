"""How often a watch says something although nothing changes, so that who listens knows that it is still there."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from openmanager.errors import invalid

DEFAULT_SECONDS = 10.0
LEAST_SECONDS, MOST_SECONDS = 0.1, 20.0
# Between our own services: a peer that hangs is known after two such silences.
OWN = timedelta(seconds=1)
SILENCE_SECONDS = 2.0


def progress_seconds(request: Any) -> float:
    """Return the `progress_interval` of a request in seconds; InvalidArgumentError outside of 100 ms–20 s."""
    if not request.HasField("progress_interval"):
        return DEFAULT_SECONDS
    seconds: float = request.progress_interval.ToTimedelta().total_seconds()
    if not LEAST_SECONDS <= seconds <= MOST_SECONDS:
        raise invalid("progress_interval", f"must be {LEAST_SECONDS:g}–{MOST_SECONDS:g} s")
    return seconds

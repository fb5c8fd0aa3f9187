"""Seasons of a trend: which of them are worth showing, and how they look in a line."""

from __future__ import annotations

from collections.abc import Sequence

from openmanager.cli import render

WEEKDAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_EIGHTHS = "▁▂▃▄▅▆▇█"
# A season that explains less is not shown: anything has some shape.
_SOME = 0.05


def is_shown(profile: Sequence[float], strength: float) -> bool:
    """Return whether a season, given what it explains of the variance (0–1), says anything."""
    return bool(profile) and strength >= _SOME


def shape(profile: Sequence[float], strength: float) -> str:
    """Return a profile as a line of blocks; nothing where it explains next to nothing."""
    if not is_shown(profile, strength):
        return render.NOTHING
    low, high = min(profile), max(profile)
    return "".join(_EIGHTHS[round((value - low) / max(high - low, 1e-12) * (len(_EIGHTHS) - 1))] for value in profile)

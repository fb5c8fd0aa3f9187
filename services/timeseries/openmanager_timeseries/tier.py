"""Tiers: the resolutions in which history is kept, from raw samples to the coarsest buckets."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from openmanager.config import parse_duration, show_duration
from openmanager.errors import ConfigurationError

RAW = "raw"
_MINUTE = 60 * 10**9
_DAY = 24 * 60 * _MINUTE


@dataclass(frozen=True, slots=True, kw_only=True)
class Tier:
    """Buckets of `width` nanoseconds, kept for `retention` nanoseconds where no rule says otherwise."""

    name: str
    width: int
    retention: int


def nanos(duration: timedelta) -> int:
    """Return a duration in nanoseconds."""
    return duration // timedelta(microseconds=1) * 1000


def parse_tiers(text: str) -> tuple[Tier, ...]:
    """Return the tiers of a text such as `5m:90d,1h:1825d`, the finest first; ConfigurationError when it is none."""
    tiers: list[Tier] = []
    for part in filter(None, (each.strip() for each in text.split(","))):
        width_text, colon, retention_text = part.partition(":")
        try:
            width, retention = parse_duration(width_text), parse_duration(retention_text)
        except (ValueError, OverflowError) as err:
            raise ConfigurationError(
                f"timeseries.tiers has {part!r}: a width and a retention such as 5m:90d are expected"
            ) from err
        step = nanos(width)
        if not colon or step < _MINUTE or _DAY % step or retention < 2 * width:
            raise ConfigurationError(
                f"timeseries.tiers has {part!r}: a width is a whole part of a day from 1m on, and kept for twice that"
            )
        if tiers and (step <= tiers[-1].width or step % tiers[-1].width):
            raise ConfigurationError(f"timeseries.tiers has {part!r}, which is no multiple of the tier before")
        tiers.append(Tier(name=show_duration(width), width=step, retention=nanos(retention)))
    return tuple(tiers)

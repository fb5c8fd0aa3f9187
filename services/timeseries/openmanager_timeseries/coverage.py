"""Which tier answers which part of a range: the coarsest that is exact, and what is left from the next finer one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from openmanager_timeseries import span
from openmanager_timeseries.span import Span, Spans


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What a tier has: whole buckets of `width` ns (0: single samples) from `kept_from` on, except where it is `dirty`."""

    width: int
    kept_from: int
    dirty: Spans = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """The part of each offer, in their order, what nobody has, and of each offer the dirty buckets left to finer ones."""

    parts: tuple[Spans, ...]
    lost: Spans
    doubtful: tuple[Spans, ...]


def cover(wanted: Span, offers: Sequence[Offer]) -> Coverage:
    """Return who answers what of a range; `offers` come coarsest first."""
    parts: list[Spans] = []
    doubtful: list[Spans] = []
    rest: Spans = (wanted,)
    for offer in offers:
        there = span.clip(rest, offer.kept_from, wanted[1])
        if offer.width:
            dirty = span.outward(offer.dirty, offer.width)
            whole = span.inward(there, offer.width)
            part = span.difference(whole, dirty)
            doubtful.append(span.intersection(whole, dirty))
        else:
            part = there
            doubtful.append(())
        parts.append(part)
        rest = span.difference(rest, part)
    return Coverage(parts=tuple(parts), lost=rest, doubtful=tuple(doubtful))

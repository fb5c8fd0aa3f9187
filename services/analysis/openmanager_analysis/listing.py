"""Pages of what was found, newest first."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from openmanager import page
from openmanager_analysis.anomaly import Anomaly, fitting
from openmanager_analysis.reach import Sees
from openmanager_analysis.watch import chooser

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """Which anomalies: those that the filter chooses, that end after `start` and start before `end`, in nanoseconds.

    An `end` of 0 is open.
    """

    page_size: int
    page_token: str
    filter: str
    start: int
    end: int
    active_only: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Page(Generic[T]):
    """Some of what was found, the token of the next page, empty on the last, and how many there are."""

    found: Sequence[T]
    next_page_token: str
    total_count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Which page: a size, a token, and what the token is `bound` to."""

    page_size: int
    page_token: str
    bound: tuple[object, ...]


def page_of(
    found: Iterable[T], part: Part, place: Callable[[T], tuple[str, ...]], fitting: Callable[[Sequence[T]], Sequence[T]]
) -> Page[T]:
    """Return a page of what was found, the last by `place` first, a pair of texts; no more than `fitting` returns."""
    size = page.page_size(part.page_size)
    after = page.decode_token(part.bound, part.page_token, 2)
    ordered = sorted(found, key=place, reverse=True)
    total = len(ordered)
    if after is not None:
        ordered = [each for each in ordered if place(each) < tuple(after)]
    shown = fitting(ordered[:size])
    token = page.encode_token(part.bound, [*place(shown[-1])]) if len(ordered) > len(shown) > 0 else ""
    return Page(found=shown, next_page_token=token, total_count=total)


def list_page(anomalies: Iterable[Anomaly], query: Query, sees: Sees) -> Page[Anomaly]:
    """Return a page of those that the caller sees; InvalidArgumentError for what no query may be."""
    chooses = chooser(query.filter)
    part = Part(
        page_size=query.page_size,
        page_token=query.page_token,
        bound=("anomalies", query.filter, query.start, query.end, query.active_only),
    )
    found = (each for each in anomalies if _is_meant(each, query) and sees(each.server) and chooses(each))
    return page_of(found, part, _place, fitting)


def _is_meant(anomaly: Anomaly, query: Query) -> bool:
    if query.active_only and anomaly.end_nanos:
        return False
    if anomaly.end_nanos and anomaly.end_nanos <= query.start:
        return False
    return not query.end or anomaly.start_nanos < query.end


def _place(anomaly: Anomaly) -> tuple[str, ...]:
    """Return texts that sort as anomalies do: a token is compared and never read."""
    return f"{anomaly.start_nanos:020d}", anomaly.id

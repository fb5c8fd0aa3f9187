"""Pages of anomalies, newest first."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from openmanager import page
from openmanager_analysis.anomaly import Anomaly, fitting
from openmanager_analysis.reach import Sees
from openmanager_analysis.watch import chooser


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
class Page:
    """Some anomalies, the token of the next page, empty on the last, and how many there are."""

    anomalies: Sequence[Anomaly]
    next_page_token: str
    total_count: int


def list_page(anomalies: Iterable[Anomaly], query: Query, sees: Sees) -> Page:
    """Return a page of those that the caller sees; InvalidArgumentError for what no query may be."""
    size = page.page_size(query.page_size)
    bound = ("anomalies", query.filter, query.start, query.end, query.active_only)
    after = page.decode_token(bound, query.page_token, 2)
    chooses = chooser(query.filter)
    found = [each for each in anomalies if _is_meant(each, query) and sees(each.server) and chooses(each)]
    found.sort(key=_place, reverse=True)
    total = len(found)
    if after is not None:
        found = [each for each in found if _place(each) < tuple(after)]
    shown = fitting(found[:size])
    more = len(found) > len(shown)
    last = shown[-1] if shown else None
    token = page.encode_token(bound, [*_place(last)]) if more and last is not None else ""
    return Page(anomalies=shown, next_page_token=token, total_count=total)


def _is_meant(anomaly: Anomaly, query: Query) -> bool:
    if query.active_only and anomaly.end_nanos:
        return False
    if anomaly.end_nanos and anomaly.end_nanos <= query.start:
        return False
    return not query.end or anomaly.start_nanos < query.end


def _place(anomaly: Anomaly) -> tuple[str, ...]:
    """Return texts that sort as anomalies do: a token is compared and never read."""
    return f"{anomaly.start_nanos:020d}", anomaly.id

"""Silences: alerts that nobody is told of for a while."""

from __future__ import annotations

from dataclasses import dataclass

from openmanager.errors import invalid, missing
from openmanager.frame import check_text
from openmanager_analysis.alerting import matcher
from openmanager_analysis.history import DAY_NANOS

MAX_SILENCES = 200
MAX_COMMENT = 1_000
LONGEST_NANOS = 366 * DAY_NANOS
# Those that are over are kept so long.
KEPT_NANOS = 5 * DAY_NANOS


@dataclass(frozen=True, slots=True, kw_only=True)
class Silence:
    """What `matcher` chooses is not sent in [start_nanos, end_nanos); `etag` is that of the place where it is stored."""

    id: str
    matcher: str
    start_nanos: int
    end_nanos: int
    comment: str
    creator: str = ""
    etag: str = ""

    def holds(self, now: int) -> bool:
        """Say whether it holds at a time."""
        return self.start_nanos <= now < self.end_nanos


def check(silence: Silence, now: int) -> Silence:
    """Return a silence; InvalidArgumentError, naming the field, for what none can be."""
    if matcher.parse(silence.matcher, "silence.matcher") is None:
        raise missing("silence.matcher")
    if silence.end_nanos <= silence.start_nanos:
        raise invalid("silence.end_time", "must be after start_time")
    if silence.end_nanos <= now:
        raise invalid("silence.end_time", "must be in the future")
    if silence.end_nanos - silence.start_nanos > LONGEST_NANOS:
        raise invalid("silence.end_time", "must be at most 366 days after start_time")
    if not silence.comment.strip():
        raise missing("silence.comment")
    check_text("silence.comment", silence.comment, MAX_COMMENT)
    return silence

"""When samples were written again or late: what a store that keeps either of two values is not asked for.

Of two writes of one sample the later one counts here. A store without `Capabilities.overwrites` may answer with either,
so the minutes in which that happened are remembered, of all series together, and our own files answer for them.
"""

from __future__ import annotations

import logging
from bisect import bisect_right
from operator import itemgetter
from pathlib import Path

import numpy as np

from openmanager import durable
from openmanager_timeseries import span
from openmanager_timeseries.span import Spans

REWRITTEN = "rewritten.json"
_MINUTE = 60 * 10**9
# Before every sample, in whole minutes.
_EVER = -(1 << 62) // _MINUTE * _MINUTE
# About 40 bytes each, written as a whole for each that is new; of more the nearest are joined.
MAX_SPANS = 4096

log = logging.getLogger(__name__)


class Rewritten:
    """The minutes in which samples of a shard were written again or late, durable (on the event loop)."""

    def __init__(self, state: Path, unjudged: Spans, newest: int) -> None:
        """Load them (blocking). A new file begins with the time of samples that nobody has judged.

        What cannot be read stands for all time up to `newest`, in nanoseconds.
        """
        self._state = state
        self._stored = False
        self.spans: Spans = ()
        try:
            self.spans = tuple((int(start), int(end)) for start, end in durable.load(state)["spans"])
            self._stored = True
        except FileNotFoundError:
            self._take(unjudged)
        except (OSError, ValueError, LookupError, TypeError) as err:
            log.error(  # noqa: TRY400  (where it happened says nothing)
                "which samples were written again cannot be read, and blocks answer for all until now: %s",
                type(err).__name__,
            )
            self._take(((_EVER, newest + 1),))

    def add(self, start: int, end: int) -> None:
        """Take the minutes of [start, end) nanoseconds, durably; blocks for a write if some of them are new."""
        at = bisect_right(self.spans, start, key=itemgetter(0)) - 1
        if not (self._stored and at >= 0 and end <= self.spans[at][1]):
            self._take(((start, end),))

    def touches(self, spans: Spans) -> bool:
        """Say whether any of the minutes is in the spans."""
        for start, end in spans:
            at = bisect_right(self.spans, start, key=itemgetter(1))
            if at < len(self.spans) and self.spans[at][0] < end:
                return True
        return False

    def forget(self, before: int) -> None:
        """Forget what is older than a time, for nobody asks for it; the file has it until the next one is added."""
        if self.spans and self.spans[0][1] <= before:
            self.spans = tuple(each for each in self.spans if each[1] > before)

    def _take(self, spans: Spans) -> None:
        self.spans = _joined(span.union((*self.spans, *span.outward(spans, _MINUTE))))
        try:
            durable.replace(self._state, durable.encode({"spans": self.spans}))
            self._stored = True
        except OSError as err:
            # The samples are in the log already. It is known until this process ends, and tried again with the next.
            self._stored = False
            log.warning("that samples were written again could not be stored: %s", type(err).__name__)


def _joined(spans: Spans) -> Spans:
    """Return spans, the nearest of them joined where there are too many."""
    if len(spans) <= MAX_SPANS:
        return spans
    edges = np.asarray(spans, np.int64)
    gaps = edges[1:, 0] - edges[:-1, 1]
    kept = np.sort(np.argsort(-gaps)[: MAX_SPANS - 1])
    starts, ends = edges[[0, *kept + 1], 0], edges[[*kept, -1], 1]
    return tuple(zip(starts.tolist(), ends.tolist(), strict=True))

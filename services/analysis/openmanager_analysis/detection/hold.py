"""From evidence to alarms: one alarm an event, and what is learnt meanwhile."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from openmanager_analysis.detection.clock import DAY_SECONDS, Moment

Floats = NDArray[np.float32]

_HOLD, _LEAST_HOLD, _HOLD_DAYS = 120.0, 30.0, 3.0
_ADOPT = 200.0  # samples after which what goes on is normal


class Hold:
    """Alarms that are held back while their event goes on.

    held: float32[S], ticks until an alarm is free again; event: float32[S], ticks in alarm in the running event.
    """

    STATE = ("held", "event")

    def __init__(self, series: int) -> None:
        self.held = np.zeros(series, dtype=np.float32)
        self.event = np.zeros(series, dtype=np.float32)

    @property
    def ongoing(self) -> NDArray[np.bool_]:
        """Which series are in an event that is too young to be normal."""
        return (self.event > 0) & (self.event <= _ADOPT)

    def tick(self, moment: Moment, hot: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Return which alarms are new, and which events have just become normal. hot: evidence beyond the threshold."""
        hold = min(_HOLD, max(_LEAST_HOLD, moment.samples(_HOLD_DAYS * DAY_SECONDS)))
        alarm = hot & (self.held <= 0)
        again = np.where(hot, np.maximum(self.held - 1, hold / 4), self.held - 1)
        self.held = np.where(alarm, np.float32(hold), again).astype(np.float32)
        self.event = np.where(self.held > 0, self.event + (hot | (self.event == 0)), 0).astype(np.float32)
        return alarm, hot & (self.event == _ADOPT)

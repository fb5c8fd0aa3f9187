"""What is looked at when there is too little time: every span, or every second, fourth, … one."""

from __future__ import annotations

MOST_STRIDE = 32
# Of the time there is for a span: above the one every second span less is looked at, below the other every second more.
_TOO_MUCH, _LITTLE = 0.8, 0.3
_SMOOTHING = 0.2
# Spans that are looked at between one change and the next, so that a moment's burden changes nothing.
_STEADY = 10


class Pace:
    """Thins spans of `interval_seconds` while looking at one takes longer than there is time for.

    It goes by what a span costs and not by how far behind the log is: what was missed while the service was away is made
    up for whole, as long as that is quicker than new samples come.
    """

    def __init__(self, interval_seconds: float) -> None:
        self.stride = 1
        self.skipped_count = 0
        self._interval = interval_seconds
        self._cost = 0.0
        self._since = 0

    def is_due(self, number: int) -> bool:
        """Say whether the span of a number, counted from the epoch, is looked at; the others are counted."""
        if number % self.stride == 0:
            return True
        self.skipped_count += 1
        return False

    def took(self, seconds: float) -> None:
        """Note how long looking at a span took."""
        self._cost += _SMOOTHING * (seconds - self._cost)
        self._since += 1
        if self._since < _STEADY:
            return
        share = self._cost / (self._interval * self.stride)
        if share > _TOO_MUCH and self.stride < MOST_STRIDE:
            self.stride, self._since = self.stride * 2, 0
        elif share < _LITTLE and self.stride > 1:
            self.stride, self._since = self.stride // 2, 0

    @property
    def warning(self) -> str:
        """What the status says of it; empty while everything is looked at."""
        if self.stride == 1:
            return ""
        return (
            f"looking at all series takes {self._cost:.1f} s of the {self._interval:g} s there are: one of "
            f"{self.stride} spans is looked at, and {self.skipped_count:,} were not"
        )

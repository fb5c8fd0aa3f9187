"""The series of a server that have the same name, one for each core say, together: how long and how far they are off."""

from __future__ import annotations

from typing import Self

import numpy as np
from numpy.typing import NDArray

from openmanager_analysis.detection import state
from openmanager_analysis.detection.clock import HOUR_SECONDS, Moment
from openmanager_analysis.peer import settle

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

_RISE_SECONDS = (600.0, 2400.0)
_FALL = 3.0  # times as fast as they rise
_STEP = np.float32(5.0)  # standard deviations: more does not make them rise faster
_STATISTICS = 2 * len(_RISE_SECONDS)  # above and below what is usual
_MOST_STEPS = 3.0
_SIGMA = np.float32(1.25)
_SMALLEST = np.float32(0.35)  # of a member's standard deviation: the mean of many is not trusted to less
_FAR = np.float32(20.0)
_SHARE = np.float32(0.1)
_QUANTILE, _EXCESS = np.float32(1.5), np.float32(0.5)  # the first guess
_LEAST_QUANTILE, _LEAST_EXCESS = np.float32(0.3), np.float32(0.3)
_MOST_EXCESS = np.float32(3.0)  # what one observation may teach, in mean excesses
_TAIL_DAYS = 5.0
_TEACHING = np.float32(9.0)  # nats, from which on nothing is learnt about what is usual
_DOUBT, _SERVER_DOUBT = np.float32(6.0), np.float32(9.0)  # nats at which a level learns half as fast
_ADOPT_HOURS, _ADOPTING = 12.0, np.float32(24.0)
_YOUNG_HOURS = 4.0


class Families:
    """F families: a server's series of one name. A family has a name, as a number, and a server, as a number.

    The common factor of a family is the mean of its members' z, each weighed by how it goes along with the factor: the first
    member always counts as positive, and used and free space do not cancel. It is standardised by its own level and spread;
    u is the result. A tracker rises towards u by at most 5 standard deviations in its time, and falls three times as fast,
    so that it shows what lasts and passes over bursts, however high. Its tail is learnt from all servers together, as
    exponential beyond the 0.9 quantile q with mean excess b: surprise = log(10) + (t − q)/b nats.
    """

    STATE = ("weight", "count", "level", "spread", "trackers", "quantile", "excess", "hot_hours", "surprise", "hours")

    def __init__(self, family: Ints, name: Ints, server: Ints) -> None:
        """Take the family of each series, int64[K]; the name and the server of each family, int64[F]."""
        families, names = len(name), int(name.max()) + 1
        self._family, self._name, self._server = family, name, server
        first = np.zeros(len(family), np.bool_)
        first[np.unique(family, return_index=True)[1]] = True
        self._first = first
        self.weight: Floats = first.astype(np.float32)
        self.count = np.zeros(families, np.float32)
        self.level = np.zeros(families, np.float32)
        self.spread = np.zeros(families, np.float32)
        self.trackers = np.zeros((_STATISTICS, families), np.float32)
        self.quantile = np.full((_STATISTICS, names), _QUANTILE)
        self.excess = np.full((_STATISTICS, names), _EXCESS)
        self.hot_hours = np.zeros(families, np.float32)
        self.surprise = np.zeros(families, np.float32)
        self.hours = np.zeros(families, np.float32)

    def grown(self, family: Ints, name: Ints, server: Ints) -> Self:
        """Return one of more series, families and names, which knows of the first what this one does."""
        more = type(self)(family, name, server)
        state.carry(self, more, self.STATE)
        return more

    def rate(self) -> Floats:
        """Return how much each family is to learn, float32[F]: little where it is unusual, much where it is so for long."""
        usual = 1 / (1 + (self.surprise / _DOUBT) ** 4)
        most = np.zeros(int(self._server.max()) + 1, np.float32)
        np.maximum.at(most, self._server, self.surprise)
        rate = np.minimum(usual, (1 / (1 + (most / _SERVER_DOUBT) ** 4))[self._server])
        rate = np.where(self.hours < _YOUNG_HOURS, np.float32(1), rate)
        return np.where(self.hot_hours > _ADOPT_HOURS, _ADOPTING, rate)

    def observe(self, moment: Moment, z: Floats, seen: NDArray[np.bool_], rate: Floats) -> Floats:
        """Return the surprise of each family in nats, float32[F], 0 where nothing was seen, and learn.

        z: float32[K], of the series; seen: bool[K]; rate: what `rate` returned.
        """
        factor, present = self._factor(z, seen)
        fresh = 1 / (self.count + 1)
        day = np.float32(1 / moment.day)
        pace = np.minimum(np.maximum(day, fresh) * rate, 1) * present
        rest = factor - self.level
        scale = _SIGMA * self.spread + _SMALLEST
        u = np.clip(rest / scale, -_FAR, _FAR)
        self._weigh(z, factor, seen, day)
        settle(self.level, self.spread, rest, limit=(2 + 200 * fresh) * scale, pace=pace, rate=rate)
        self._track(moment, u, present)
        surprise = self._surprise(moment, present)
        self.count += present
        self.hours += present * np.float32(moment.interval / HOUR_SECONDS)
        return surprise

    def _factor(self, z: Floats, seen: NDArray[np.bool_]) -> tuple[Floats, Floats]:
        families = len(self._name)
        sizes = np.bincount(self._family, np.abs(self.weight) * seen, families)
        sums = np.bincount(self._family, self.weight * z, families)
        present = np.bincount(self._family[seen], minlength=families) > 0
        return (sums / (sizes + 1e-6)).astype(np.float32), present.astype(np.float32)

    def _weigh(self, z: Floats, factor: Floats, seen: NDArray[np.bool_], day: np.float32) -> None:
        """Learn how each member goes along with the factor: the mean of their product."""
        fresh = 1 / (self.count[self._family] + 1)
        pace = 0.5 * np.maximum(day, fresh) * seen
        along = np.clip(z, -3, 3) * np.clip(factor, -3, 3)[self._family]
        self.weight += pace * (along - self.weight)
        self.weight = np.where(self._first, np.maximum(self.weight, np.float32(0.05)), self.weight)

    def _track(self, moment: Moment, u: Floats, present: Floats) -> None:
        seconds = moment.interval * min(moment.steps, _MOST_STEPS)
        for place, rise in enumerate(_RISE_SECONDS):
            up = np.float32(1 - np.exp(-seconds / rise))
            down = min(np.float32(_FALL) * up, np.float32(1))
            for tracker, side in ((2 * place, u), (2 * place + 1, -u)):
                gap = side - self.trackers[tracker]
                self.trackers[tracker] += present * np.where(gap > 0, up * np.minimum(gap, _STEP), down * gap)

    def _surprise(self, moment: Moment, present: Floats) -> Floats:
        """Return the surprise of the trackers, and learn their tails from all servers that are as usual."""
        tracked = np.maximum(self.trackers, 0)
        over = (tracked - self.quantile[:, self._name]) / self.excess[:, self._name]
        surprise = np.maximum(over - np.log(_SHARE), 0)
        taught = (surprise < _TEACHING) & (present > 0)
        names = self.quantile.shape[1]
        memory = moment.day
        for row in range(_STATISTICS):
            some = taught[row]
            name, excess = self._name[some], np.clip(over[row][some], 0, _MOST_EXCESS)
            there = np.bincount(name, minlength=names)
            beyond = np.bincount(name[excess > 0], minlength=names)
            total = np.bincount(name, excess, names)
            share = 1 / np.maximum(np.bincount(self._name, minlength=names), 1)
            pace = 1 / (min(float(self.count.max()), _TAIL_DAYS * memory) + memory)
            step = 3 * pace * share * (beyond / _SHARE - there)
            b = self.excess[row]
            self.quantile[row] = np.maximum(self.quantile[row] + step * b, _LEAST_QUANTILE)
            self.excess[row] = np.maximum(b + pace / _SHARE * share * (total - beyond) * b, _LEAST_EXCESS)
        self.surprise = np.where(present > 0, surprise.max(axis=0), self.surprise).astype(np.float32)
        hours = np.float32(moment.interval / HOUR_SECONDS)
        hot = self.surprise > _DOUBT
        self.hot_hours = np.where(hot, self.hot_hours + hours * present, np.maximum(self.hot_hours - 3 * hours, 0))
        return self.surprise * present

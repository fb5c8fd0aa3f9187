"""What grows that should not: of each process of a mesh the slope of its memory, its descriptors and threads."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from chaos.usage import Usage

# A process is warm after the first third of its life: the rest is what a slope is fitted to.
WARM_SHARE = 1 / 3
# Over less than this a slope says nothing of an hour.
JUDGED_SECONDS = 1200.0
# What comes and goes within a few minutes is no growth: slopes are fitted to the medians of so long.
BLOCK_SECONDS = 300.0
RSS_PERCENT_PER_HOUR = 1.0
# A slope is too steep when it is so by so many of its standard errors.
ERRORS = 2.0


@dataclass(kw_only=True)
class Life:
    """A process from its start to its end: `at` in seconds, and what it took then."""

    name: str
    pid: int
    at: list[float] = field(default_factory=list)
    usage: list[Usage] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """How long it was seen."""
        return self.at[-1] - self.at[0]


class Lives:
    """The processes of each name, one after the other."""

    def __init__(self) -> None:
        self._lives: dict[str, list[Life]] = defaultdict(list)

    def add(self, name: str, pid: int, at: float, usage: Usage) -> None:
        """Take what a process takes now; another pid is another life."""
        lives = self._lives[name]
        if not lives or lives[-1].pid != pid:
            lives.append(Life(name=name, pid=pid))
        lives[-1].at.append(at)
        lives[-1].usage.append(usage)

    def of(self, name: str) -> Sequence[Life]:
        """Return the lives of a name in their order."""
        return self._lives[name]

    def growths(self) -> Iterator[Growth]:
        """Yield how each name grew in the longest of its lives."""
        for lives in self._lives.values():
            yield growth(max(lives, key=lambda life: life.seconds), restarts=len(lives) - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Growth:
    """How a process grew once it was warm, in its longest life."""

    name: str
    restarts: int
    seconds: float  # that the slope was fitted to
    rss: float  # MiB, in the middle of them
    pss: float
    rss_slope: float  # MiB per hour
    rss_error: float  # its standard error
    pss_slope: float
    descriptors: int  # in the median of the second half
    descriptors_growth: int  # against the first half
    threads: int
    threads_growth: int

    @property
    def percent_per_hour(self) -> float:
        """The slope of the memory, as a share of it."""
        return 100 * self.rss_slope / self.rss

    @property
    def judged(self) -> bool:
        """Whether it lived long enough for a slope to mean something."""
        return self.seconds >= JUDGED_SECONDS

    @property
    def percent_error(self) -> float:
        """The standard error of that."""
        return 100 * self.rss_error / self.rss

    def broken(self) -> Iterator[str]:
        """Yield the promises that it does not keep."""
        if self.judged and self.percent_per_hour - ERRORS * self.percent_error > RSS_PERCENT_PER_HOUR:
            yield f"{self.name}: memory grows by {self.percent_per_hour:.1f} ± {self.percent_error:.1f} % an hour"
        if self.judged and self.descriptors_growth > 0:
            yield f"{self.name}: {self.descriptors_growth} more file descriptors"
        if self.judged and self.threads_growth > 0:
            yield f"{self.name}: {self.threads_growth} more threads"


def growth(life: Life, *, restarts: int) -> Growth:
    """Fit a life once it is warm."""
    at = np.array(life.at)
    warm = at >= life.at[0] + WARM_SHARE * life.seconds
    rss, pss = (np.array([getattr(each, of) for each in life.usage])[warm] for of in ("rss", "pss"))
    descriptors, threads = (
        np.array([getattr(each, of) for each in life.usage])[warm] for of in ("descriptors", "threads")
    )
    rss_slope, rss_error = slope(at[warm], rss)
    return Growth(
        name=life.name,
        restarts=restarts,
        seconds=float(np.ptp(at[warm])),
        rss=float(np.median(rss)),
        pss=float(np.median(pss)),
        rss_slope=rss_slope,
        rss_error=rss_error,
        pss_slope=slope(at[warm], pss)[0],
        descriptors=_halves(descriptors)[1],
        descriptors_growth=int(np.subtract(*_halves(descriptors)[::-1])),
        threads=_halves(threads)[1],
        threads_growth=int(np.subtract(*_halves(threads)[::-1])),
    )


def slope(seconds: np.ndarray, values: np.ndarray) -> tuple[float, float]:
    """Return by how much values grow in an hour, by least squares, and the standard error of that."""
    blocks = ((seconds - seconds[0]) / BLOCK_SECONDS).astype(int)
    hours = np.array([seconds[blocks == each].mean() for each in np.unique(blocks)]) / 3600
    medians = np.array([np.median(values[blocks == each]) for each in np.unique(blocks)])
    if len(hours) < 3:
        return 0.0, 0.0
    (grown, _), covariance = np.polyfit(hours, medians, 1, cov="unscaled")
    left = medians - np.polyval(np.polyfit(hours, medians, 1), hours)
    return float(grown), float(np.sqrt(covariance[0, 0] * (left @ left) / (len(hours) - 2)))


def _halves(counts: np.ndarray) -> tuple[int, int]:
    """Return the median of either half."""
    half = len(counts) // 2
    return int(np.median(counts[: max(1, half)])), int(np.median(counts[half:]))

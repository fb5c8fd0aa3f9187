"""Lines of samples over time, in braille on a terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from rich.text import Text

# Numbers of the 256-colour palette that differ on light and on dark grounds.
COLOURS = (39, 208, 41, 197, 141, 178, 44, 213, 106, 245)
HEIGHT = 16
TICK_CELLS = 14
MAX_POINTS = 4000
# A series is broken where nothing came for three of its own median intervals, as a server is then OFFLINE.
GAP_INTERVALS = 3.0
_SECONDS = (1, 2, 5, 10, 15, 30)
_MINUTES = (1, 2, 5, 10, 15, 30)
_HOURS = (1, 2, 3, 6, 12)
NICE_SECONDS = (
    *_SECONDS,
    *(60 * n for n in _MINUTES),
    *(3600 * n for n in _HOURS),
    *(86_400 * n for n in (1, 2, 7, 14, 30, 90, 365)),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A series to draw: `times` int64[K] nanoseconds since the epoch ascending, `values` float64[K]; NaN is nothing."""

    times: NDArray[np.int64]
    values: NDArray[np.float64]


def nice_step(seconds: float) -> int:
    """Return the smallest usual number of seconds that is at least `seconds`."""
    return next((step for step in NICE_SECONDS if step >= seconds), NICE_SECONDS[-1])


def draw(lines: Sequence[Line], *, start: int, end: int, width: int, height: int = HEIGHT) -> Text:
    """Return a plot of `width` × `height` cells from `start` to `end`, nanoseconds; the colours are COLOURS in order."""
    import plotext
    from rich.text import Text

    figure = plotext.figure
    figure.clear()
    figure.plot_size(width, height)
    figure.canvas("default")
    figure.axes(True, pixel="default")
    figure.ruler("both", 0).pixel("default")
    figure.legend(False)
    for index, line in enumerate(lines):
        _add(figure, line, start, COLOURS[index % len(COLOURS)])
    marks = scale(*_limits(lines))
    figure.ruler("y").lim(marks[0], marks[-1])
    figure.ruler("y").ticks(marks, [f"{mark:g}" for mark in marks])
    figure.ruler("x").lim(0.0, (end - start) / 1e9)
    moments = ticks(start, end, max(2, width // TICK_CELLS))
    figure.ruler("x").ticks([(nanos - start) / 1e9 for nanos, _ in moments], [text for _, text in moments])
    drawn = Text.from_ansi(figure.build().string().rstrip("\n"))
    figure.clear()
    return drawn


def _add(figure: object, line: Line, start: int, colour: int) -> None:
    import numpy as np
    import plotext

    there = np.isfinite(line.values)
    times, values = line.times[there], line.values[there]
    if not len(times):
        return
    breaks = gaps(times)
    if len(times) > MAX_POINTS:
        keep = np.unique(np.concatenate([np.linspace(0, len(times) - 1, MAX_POINTS).astype(int), breaks, breaks - 1]))
        times, values, breaks = times[keep], values[keep], np.searchsorted(keep, breaks)
    signal = figure.signal(  # type: ignore[attr-defined]
        ((times - start) / 1e9).tolist(), values.tolist(), marker=plotext.marker("braille", colour)
    ).lines()
    for index in breaks.tolist():
        signal.line(index, False)
    figure.draw(signal)  # type: ignore[attr-defined]


def gaps(times: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the indices of the samples that come after a gap."""
    import numpy as np

    if len(times) < 3:
        return np.empty(0, np.int64)
    steps = np.diff(times)
    return np.flatnonzero(steps > GAP_INTERVALS * np.median(steps)) + 1


def _limits(lines: Sequence[Line]) -> tuple[float, float]:
    import numpy as np

    found = np.concatenate([line.values[np.isfinite(line.values)] for line in lines])
    return (float(found.min()), float(found.max())) if len(found) else (0.0, 1.0)


def scale(low: float, high: float, count: int = 5) -> list[float]:
    """Return about `count` round numbers, evenly apart, that enclose a range."""
    largest = max(abs(low), abs(high))
    # Below this, neighbouring marks would be the same number.
    span = max(high - low, largest * 1e-9, 1e-200) if high > low else max(largest, 1e-200) if largest else 1.0
    power = 10.0 ** math.floor(math.log10(span / count))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power * count >= span)
    first = math.floor(low / step)
    last = max(math.ceil(high / step), first + 1)
    return [float(f"{index * step:.12g}") for index in range(first, last + 1)]


def ticks(start: int, end: int, count: int) -> list[tuple[int, str]]:
    """Return at most `count` moments between two, in nanoseconds, with their local times as labels."""
    step = nice_step((end - start) / 1e9 / count)
    first = datetime.fromtimestamp(start / 1e9).astimezone()
    # Ticks fall on the wall clock's round times, so that they are counted from local midnight.
    midnight = first.replace(hour=0, minute=0, second=0, microsecond=0)
    at = midnight + timedelta(seconds=-(-(first - midnight).total_seconds() // step) * step)
    found = []
    while at.timestamp() * 1e9 <= end:
        found.append((int(at.timestamp()) * 10**9, _label(at, step)))
        at += timedelta(seconds=step)
    return found


def _label(at: datetime, step: int) -> str:
    if step >= 86_400 or (at.hour, at.minute, at.second) == (0, 0, 0):
        return at.strftime("%d %b")
    return at.strftime("%H:%M:%S" if step < 60 else "%H:%M")

"""The devops queries of TSBS: as questions to history, and the answers that numpy finds in the same data.

The definitions are those of github.com/timescale/tsbs at 37fced7: `cmd/tsbs_generate_queries/uses/devops` and the SQL of
`databases/timescaledb/devops.go`. Ranges are half-open and lie at random, to the millisecond; a bucket at their edge holds
the samples that are inside. What our contract has no words for is done by whoever asks, and said in `Shape.client`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from bench.history_ask import Asked, Reply
from openmanager.frame import Frame

FIELDS = ("user", "system", "idle", "nice", "iowait", "irq", "softirq", "steal", "guest", "guest_nice")
METRICS = tuple(f"usage_{name}" for name in FIELDS)
INTERVAL = 10 * 10**9
MINUTE = 60 * 10**9
HOUR = 60 * MINUTE
THRESHOLD = 90.0
LIMIT = 5


@dataclass(frozen=True, slots=True, eq=False)
class Data:
    """The hosts' samples: `values` float64[T, H, 10] at `start` and every 10 s after."""

    start: int
    values: np.ndarray

    @classmethod
    def make(cls, start: int, ticks: int, hosts: int, seed: int = 1) -> Data:
        """Return random walks of unit normal steps between 0 and 100, cut to whole numbers, as TSBS makes them."""
        generator = np.random.default_rng(seed)
        state = generator.uniform(0, 100, (hosts, len(METRICS)))
        values = np.empty((ticks, hosts, len(METRICS)))
        for tick in range(ticks):
            state = np.clip(state + generator.standard_normal(state.shape), 0, 100)
            values[tick] = state
        return cls(start, np.trunc(values, out=values))

    @property
    def hosts(self) -> tuple[str, ...]:
        return tuple(f"host_{index}" for index in range(self.values.shape[1]))

    @property
    def end(self) -> int:
        return self.start + len(self.values) * INTERVAL

    @property
    def times(self) -> np.ndarray:
        return self.start + np.arange(len(self.values)) * INTERVAL

    def frames(self, first: int = 0, last: int | None = None) -> Iterator[Frame]:
        """Yield the frame of each tick."""
        for tick in range(first, len(self.values) if last is None else last):
            times = np.array([self.start + tick * INTERVAL])
            yield Frame(times=times, servers=self.hosts, metrics=METRICS, values=self.values[tick : tick + 1])


@dataclass(frozen=True, slots=True, eq=False)
class Question:
    """One query: what is asked, what is made of the reply, and what numpy says. `asked` is None for the newest samples."""

    asked: Asked | None
    result: Callable[[Reply], np.ndarray]
    expected: np.ndarray


@dataclass(frozen=True, slots=True)
class Shape:
    """A query of TSBS: `make` draws one; `client` is what the client has to do itself."""

    name: str
    make: Callable[[Data, np.random.Generator], Question]
    client: str = ""


def _window(data: Data, generator: np.random.Generator, width: int) -> tuple[int, int]:
    """Return a range of the data, anywhere, to the millisecond."""
    latest = (data.end - width - data.start) // 10**6
    start = data.start + int(generator.integers(latest + 1)) * 10**6
    return start, start + width


def _reduced(data: Data, window: tuple[int, int], step: int, hosts: Sequence[int], metrics: int) -> list[np.ndarray]:
    """Return the samples of each bucket of a range: float64[T, H, M] for each."""
    start, end = window
    times = data.times
    found = []
    for begin in range(start // step * step, end, step):
        inside = (times >= max(begin, start)) & (times < min(begin + step, end))
        found.append(data.values[inside][:, hosts][:, :, :metrics])
    return found


def _maxima(width: int, step: int, metrics: int, hosts: int) -> Callable[[Data, np.random.Generator], Question]:
    """Return what asks for the maximum of each metric over some hosts, by time."""

    def make(data: Data, generator: np.random.Generator) -> Question:
        window = _window(data, generator, width)
        chosen = generator.choice(len(data.hosts), hosts, replace=False).tolist()
        parts = _reduced(data, window, step, chosen, metrics)
        keys = METRICS[:metrics]
        empty = np.full(metrics, np.nan)
        return Question(
            asked=Asked(
                start=window[0],
                end=window[1],
                step=step,
                aggregation="MAX",
                servers=tuple(data.hosts[at] for at in chosen),
                metrics=keys,
                group_by="ALL",
            ),
            result=lambda reply: reply.table([("", key) for key in keys]),
            expected=np.array([part.max(axis=(0, 1)) if part.size else empty for part in parts]).T,
        )

    return make


def _means(metrics: int) -> Callable[[Data, np.random.Generator], Question]:
    """Return what asks for the mean of each metric of each host, by the hour over twelve."""

    def make(data: Data, generator: np.random.Generator) -> Question:
        window = _window(data, generator, 12 * HOUR)
        parts = _reduced(data, window, HOUR, range(len(data.hosts)), metrics)
        rows = [(host, key) for host in data.hosts for key in METRICS[:metrics]]
        empty = np.full((len(data.hosts), metrics), np.nan)
        return Question(
            asked=Asked(start=window[0], end=window[1], step=HOUR, aggregation="MEAN", metrics=METRICS[:metrics]),
            result=lambda reply: reply.table(rows),
            expected=np.array([part.mean(axis=0) if part.size else empty for part in parts]).reshape(len(parts), -1).T,
        )

    return make


def _high(hosts: int) -> Callable[[Data, np.random.Generator], Question]:
    """Return what asks for the rows of twelve hours whose usage_user is above 90: of some hosts, of all with 0."""

    def make(data: Data, generator: np.random.Generator) -> Question:
        window = _window(data, generator, 12 * HOUR)
        chosen = sorted(generator.choice(len(data.hosts), hosts, replace=False).tolist()) if hosts else None
        inside = (data.times >= window[0]) & (data.times < window[1])
        some = data.values[inside][:, chosen if chosen is not None else slice(None)].transpose(1, 0, 2)
        names = data.hosts if chosen is None else tuple(data.hosts[at] for at in chosen)

        def result(reply: Reply) -> np.ndarray:
            found = dict(zip(reply.names, reply.values, strict=True))
            parts = []
            for host in names:
                columns = np.array([found[host, key] for key in METRICS])
                parts.append(columns[:, columns[0] > THRESHOLD].T)
            return np.concatenate(parts)

        return Question(
            asked=Asked(
                start=window[0],
                end=window[1],
                step=0,
                aggregation="MEAN",
                servers=names if chosen is not None else (),
                metrics=METRICS,
            ),
            result=result,
            expected=some[some[:, :, 0] > THRESHOLD],
        )

    return make


def _last_point(data: Data, _: np.random.Generator) -> Question:
    rows = [(host, key) for host in data.hosts for key in METRICS]
    return Question(asked=None, result=lambda reply: reply.table(rows), expected=data.values[-1].reshape(-1, 1))


def _newest_minutes(data: Data, generator: np.random.Generator) -> Question:
    """Ask for the maxima of the five minutes before some time: their starts follow from it, since no minute is empty."""
    _, end = _window(data, generator, HOUR)
    start = ((end - 1) // MINUTE - LIMIT + 1) * MINUTE
    parts = _reduced(data, (start, end), MINUTE, range(len(data.hosts)), 1)
    parts = [part for part in parts if part.size]
    return Question(
        asked=Asked(start=start, end=end, step=MINUTE, aggregation="MAX", metrics=METRICS[:1], group_by="ALL"),
        result=lambda reply: _without_gaps(reply.values[0])[::-1],
        expected=np.array([part.max() for part in parts])[::-1],
    )


def _without_gaps(values: np.ndarray) -> np.ndarray:
    return values[~np.isnan(values)]


SHAPES = (
    *(
        Shape(f"single-groupby-{metrics}-{hosts}-{hours}", _maxima(hours * HOUR, MINUTE, metrics, hosts))
        for metrics, hosts, hours in ((1, 1, 1), (1, 1, 12), (1, 8, 1), (5, 1, 1), (5, 1, 12), (5, 8, 1))
    ),
    Shape("cpu-max-all-1", _maxima(8 * HOUR, HOUR, len(METRICS), 1)),
    Shape("cpu-max-all-8", _maxima(8 * HOUR, HOUR, len(METRICS), 8)),
    Shape("double-groupby-1", _means(1)),
    Shape("double-groupby-5", _means(5)),
    Shape("double-groupby-all", _means(len(METRICS))),
    Shape("high-cpu-1", _high(1), "reads all samples and filters them"),
    Shape("high-cpu-all", _high(0), "reads all samples and filters them"),
    Shape("lastpoint", _last_point),
    Shape("groupby-orderby-limit", _newest_minutes, "asks for the five minutes before the end"),
)

"""Moving raw history from one store to another, offline: copied window by window, then compared window by window.

What is compared are the counts of every series and an order-independent checksum of its times and values, read from both
stores. A store that keeps fewer than 17 digits is compared within those. How far a migration has come is in a small file,
so that one that was interrupted goes on.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import timedelta
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import numpy as np

from openmanager import durable, grid
from openmanager.errors import OpenManagerError, UnavailableError
from openmanager.frame import Frame, ServerInfo
from openmanager_timeseries.catalog import Selection
from openmanager_timeseries.comparison import EXACT_DIGITS, Comparison, compare
from openmanager_timeseries.config import TimeseriesConfig
from openmanager_timeseries.engines import chosen, open_engine
from openmanager_timeseries.engines.port import Capabilities, Coded, Engine, Wanted
from openmanager_timeseries.history import History
from openmanager_timeseries.query import RangeQuery
from openmanager_timeseries.samples import Bools

# So many series are read at once: at a sample every 10 s, an hour of them is 720,000.
SERIES_AT_ONCE = 2000
READ_SECONDS = 120.0
ATTEMPTS = 6
FIRST_PAUSE_SECONDS = 0.5
LOOK_AGAIN_SECONDS = 1.0
MAX_TOLD = 100
# A migration has more patience than a service whose clients wait.
WRITE_TIMEOUT, QUERY_TIMEOUT = timedelta(seconds=30), timedelta(seconds=60)

T = TypeVar("T")


class Source(Protocol):
    """Where samples are read."""

    async def read(self, wanted: Wanted) -> Coded:
        """Return samples."""
        ...


class BlockSource:
    """Our own history as a source: blocks, and what only the log holds."""

    def __init__(self, history: History) -> None:
        self._history = history
        self._catalog = history.catalog

    async def read(self, wanted: Wanted) -> Coded:
        """Return samples."""
        selection = self._selection(wanted)
        query = RangeQuery(
            servers=(),
            server_filter="",
            metrics=(),
            start=wanted.start,
            end=wanted.end,
            step=0,
            aggregation="MEAN",
            group_by="SERVER",
        )
        found = (await self._history.query_range(query, READ_SECONDS, selection)).raw
        assert found is not None  # noqa: S101  (that is what a query without a step answers)
        servers, metrics = self._catalog.names(selection.ids)
        server_code = {name: at for at, name in enumerate(wanted.servers)}
        metric_code = {name: at for at, name in enumerate(wanted.metrics)}
        rows = found.rows
        return Coded(
            servers=wanted.servers,
            server_codes=np.asarray([server_code[name] for name in servers], np.int64)[rows],
            metrics=wanted.metrics,
            metric_codes=np.asarray([metric_code[name] for name in metrics], np.int64)[rows],
            times=found.times,
            values=found.values,
        )

    def _selection(self, wanted: Wanted) -> Selection:
        """Return the selection of some servers and exact metric keys."""
        servers, metrics = (
            np.fromiter((name in chosen for name in names), np.bool_, len(names))
            for names, chosen in (
                (self._catalog.servers, set(wanted.servers)),
                (self._catalog.metrics, set(wanted.metrics)),
            )
        )
        ids = np.arange(self._catalog.count)
        ids = ids[servers[self._catalog.server_of(ids)] & metrics[self._catalog.metric_of(ids)]]
        rows = np.full(self._catalog.count, -1, np.int64)
        rows[ids] = np.arange(len(ids))
        return Selection(servers, metrics, ids, rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """What is moved: the samples of all metrics of all servers in [start, end), a window of nanoseconds at a time."""

    servers: Sequence[str]
    metrics: Sequence[str]
    start: int
    end: int
    window: int

    def windows(self) -> list[tuple[int, int]]:
        """Return the windows, cut at multiples of their width."""
        first = self.start // self.window * self.window
        edges = [self.start, *range(first + self.window, self.end, self.window), self.end]
        return list(pairwise(edges))

    def parts(self, start: int, end: int) -> Iterator[Wanted]:
        """Yield a window in parts of not too many series."""
        servers_at_once = min(len(self.servers), SERIES_AT_ONCE)
        metrics_at_once = max(1, SERIES_AT_ONCE // max(1, len(self.servers)))
        for metric in range(0, len(self.metrics), metrics_at_once):
            for server in range(0, len(self.servers), servers_at_once):
                yield Wanted(
                    servers=self.servers[server : server + servers_at_once],
                    metrics=self.metrics[metric : metric + metrics_at_once],
                    start=start,
                    end=end,
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class Mismatch:
    """A series that is not the same in both stores, and its samples in each over the windows that differ."""

    server: str
    metric: str
    source_count: int
    target_count: int


@dataclass(slots=True, kw_only=True, eq=False)
class Progress:
    """How far a migration is. `seen` and `differs` (bool[S, M]) say which series had samples, and which differ."""

    scope: Scope
    copied_windows: int = 0
    compared_windows: int = 0
    copied_samples: int = 0
    compared_samples: int = 0
    # The sum, modulo 2^64, of the hashes of all samples that were read from the source to be compared.
    checksum: int = 0
    # Samples that the target will never take, by reason.
    refused: Counter[str] = field(default_factory=Counter)
    # At most MAX_TOLD of the series that differ.
    mismatches: dict[tuple[str, str], Mismatch] = field(default_factory=dict)
    seen: Bools = field(init=False)
    differs: Bools = field(init=False)

    def __post_init__(self) -> None:
        """Begin with no series."""
        shape = (len(self.scope.servers), len(self.scope.metrics))
        self.seen, self.differs = np.zeros(shape, np.bool_), np.zeros(shape, np.bool_)

    @property
    def window_count(self) -> int:
        """How many windows there are."""
        return len(self.scope.windows())

    @property
    def series_count(self) -> int:
        """How many series had samples."""
        return int(np.count_nonzero(self.seen))

    @property
    def mismatch_count(self) -> int:
        """How many of them differ."""
        return int(np.count_nonzero(self.differs))

    def take(self, found: Comparison, wanted: Wanted) -> None:
        """Add what the comparison of a part found."""
        self.compared_samples += found.sample_count
        self.checksum = (self.checksum + found.checksum) % 2**64
        # A part is a piece of both lists of names.
        first = self.scope.servers.index(wanted.servers[0]), self.scope.metrics.index(wanted.metrics[0])
        servers, metrics = np.divmod(found.keys, len(wanted.metrics))
        self.seen[servers + first[0], metrics + first[1]] = True
        servers, metrics = servers[found.differs], metrics[found.differs]
        self.differs[servers + first[0], metrics + first[1]] = True
        for at in np.flatnonzero(found.differs).tolist():
            server, metric = divmod(int(found.keys[at]), len(wanted.metrics))
            name = wanted.servers[server], wanted.metrics[metric]
            known = self.mismatches.get(name)
            if known is None and len(self.mismatches) >= MAX_TOLD:
                break
            self.mismatches[name] = Mismatch(
                server=name[0],
                metric=name[1],
                source_count=int(found.source_counts[at]) + (known.source_count if known else 0),
                target_count=int(found.target_counts[at]) + (known.target_count if known else 0),
            )


# ── moving ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class Migration:
    """One migration; `run` does it. `state` is the file that remembers how far it is, `between` names both stores."""

    def __init__(
        self,
        *,
        source: Source,
        target: Engine,
        scope: Scope,
        info_of: Callable[[str], ServerInfo],
        between: str,
        state: Path,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._source = source
        self._target = target
        self._info_of = info_of
        self._between = between
        self._state = state
        self._pause = pause
        self.progress = _load(state, between, scope) or Progress(scope=scope)

    async def run(self) -> AsyncIterator[Progress]:
        """Copy what is left, then compare everything; yield after each window. UnavailableError when a store is away.

        The file that remembers is deleted at the end.
        """
        progress, windows = self.progress, self.progress.scope.windows()
        while progress.copied_windows < len(windows):
            await self._copy(*windows[progress.copied_windows])
            progress.copied_windows += 1
            await self._save()
            yield progress
        while progress.compared_windows < len(windows):
            await self._compare(*windows[progress.compared_windows])
            progress.compared_windows += 1
            await self._save()
            yield progress
        await asyncio.to_thread(self._state.unlink, missing_ok=True)

    async def _copy(self, start: int, end: int) -> None:
        for wanted in self.progress.scope.parts(start, end):
            found = await self._tried(partial(self._source.read, wanted))
            self.progress.copied_samples += len(found.times)
            for frame in await asyncio.to_thread(_frames, found):
                refused = await self._tried(partial(self._target.write, [frame], self._info_of))
                for each in refused:
                    self.progress.refused[each.reason] += each.sample_count

    async def _compare(self, start: int, end: int) -> None:
        for wanted in self.progress.scope.parts(start, end):
            source = await self._tried(partial(self._source.read, wanted))
            found = await self._compared(source, wanted)
            waited = 0.0
            # What was written just now may not be visible yet.
            while found.differs.any() and waited < self._target.capabilities.visible_after.total_seconds():
                await self._pause(LOOK_AGAIN_SECONDS)
                waited += LOOK_AGAIN_SECONDS
                found = await self._compared(source, wanted)
            self.progress.take(found, wanted)

    async def _compared(self, source: Coded, wanted: Wanted) -> Comparison:
        target = await self._tried(partial(self._target.read, wanted))
        return await asyncio.to_thread(compare, source, target, wanted, self._target.capabilities)

    async def _tried(self, call: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Call a store, some times if it is away; UnavailableError when it stays so."""
        for attempt in range(ATTEMPTS):
            try:
                return await call()
            except (UnavailableError, TimeoutError) as err:
                if attempt + 1 == ATTEMPTS:
                    if isinstance(err, OpenManagerError):
                        raise
                    raise UnavailableError(f"{self._target.name} does not answer in time") from err
                await self._pause(FIRST_PAUSE_SECONDS * 2**attempt)
        raise AssertionError  # unreachable

    async def _save(self) -> None:
        progress = self.progress
        state = {
            "between": self._between,
            "scope": _scope_key(progress.scope),
            **{name: getattr(progress, name) for name in _NUMBERS},
            "refused": progress.refused,
            "mismatches": [asdict(each) for each in progress.mismatches.values()],
            **{name: np.packbits(getattr(progress, name)).tobytes().hex() for name in ("seen", "differs")},
        }
        await asyncio.to_thread(durable.replace, self._state, json.dumps(state).encode())


_NUMBERS = ("copied_windows", "compared_windows", "copied_samples", "compared_samples", "checksum")


def _scope_key(scope: Scope) -> dict[str, Any]:
    names = "\n".join((*scope.servers, "", *scope.metrics)).encode()
    return {
        "start": scope.start,
        "end": scope.end,
        "window": scope.window,
        "names": hashlib.sha256(names).hexdigest(),
    }


def begun_range(state: Path, between: str) -> tuple[int, int] | None:
    """Return the start and the end of a migration that was interrupted (blocking); None when there is none."""
    try:
        stored = json.loads(state.read_bytes())
        if stored["between"] != between:
            return None
        return int(stored["scope"]["start"]), int(stored["scope"]["end"])
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _load(state: Path, between: str, scope: Scope) -> Progress | None:
    """Return how far the same migration was when it was interrupted."""
    try:
        stored = json.loads(state.read_bytes())
        if stored["between"] != between or stored["scope"] != _scope_key(scope):
            return None
        progress = Progress(scope=scope)
        for name in _NUMBERS:
            setattr(progress, name, int(stored[name]))
        progress.refused.update(stored["refused"])
        told = [Mismatch(**each) for each in stored["mismatches"]]
        progress.mismatches = {(each.server, each.metric): each for each in told}
        for name in ("seen", "differs"):
            bits = np.frombuffer(bytes.fromhex(stored[name]), np.uint8)
            mask = getattr(progress, name)
            mask[:] = np.unpackbits(bits, count=mask.size).reshape(mask.shape)
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return progress


def _frames(found: Coded) -> list[Frame]:
    rows = grid.Rows(
        servers=found.servers,
        server_codes=found.server_codes,
        metrics=found.metrics,
        metric_codes=found.metric_codes,
        times=found.times,
        columns={"value": found.values},
    )
    return list(grid.frames(rows))


async def count(source: Source, scope: Scope) -> AsyncIterator[Progress]:
    """Count what a migration would copy; yield after each window."""
    progress = Progress(scope=scope)
    for start, end in scope.windows():
        for wanted in scope.parts(start, end):
            found = await source.read(wanted)
            progress.copied_samples += len(found.times)
            progress.take(await asyncio.to_thread(compare, found, found, wanted, EXACT), wanted)
        progress.copied_windows += 1
        yield progress


EXACT = Capabilities(
    digits=EXACT_DIGITS,
    overwrites=True,
    signed_zero=True,
    ranged_delete=False,
    metric_delete=False,
    aggregations=frozenset(),
    durable_after=timedelta(0),
    visible_after=timedelta(0),
)


# ── opening ────────────────────────────────────────────────────────────────────────────────────────────────────────


def open_patient(config: TimeseriesConfig, name: Literal["influxdb", "victoriametrics"]) -> Engine:
    """Return an engine with long timeouts; ConfigurationError when nothing says where it is."""
    patient = replace(
        config,
        engine=name,
        engine_write_timeout=max(config.engine_write_timeout, WRITE_TIMEOUT),
        engine_query_timeout=max(config.engine_query_timeout, QUERY_TIMEOUT),
    )
    engine = open_engine(patient, chosen(patient))
    assert engine is not None  # noqa: S101  (only `blocks` is none)
    return engine

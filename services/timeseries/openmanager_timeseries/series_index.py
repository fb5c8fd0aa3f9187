"""What the catalogue is built of: names with numbers, an index of keys, an order by name, layouts, remembered masks."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from openmanager_timeseries.samples import Bools, Ints

REMEMBERED = 32  # masks and answers
CELLS_PER_LAYOUT = 56  # what a layout takes besides its ids, about, in cells of 8 bytes

Ids = NDArray[np.int32]  # ids and indices where there is one for each series


@dataclass(slots=True, eq=False)
class Layout:
    """The servers and metrics of a frame, and the ids of their series: int64[S, M], −1 for a series never seen."""

    servers: Ints
    metrics: Ints
    ids: Ints
    # How often series had been forgotten when the ids were last looked through.
    checked: int = 0
    # As of how many forgettings every series had a sample, −1 where that is not known.
    lives: int = -1
    # Whether every series has an id.
    is_whole: bool = field(init=False)

    def __post_init__(self) -> None:
        self.is_whole = bool((self.ids >= 0).all())


class Names:
    """Distinct names with an index for each."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self._index: dict[str, int] = {}
        self._ranks: Ids = np.empty(0, np.int32)

    def intern(self, names: Iterable[str]) -> Ints:
        """Return the indices of names, new ones for those not seen before."""
        out = []
        for name in names:
            index = self._index.get(name)
            if index is None:
                index = len(self.names)
                self.names.append(name)
                self._index[name] = index
            out.append(index)
        return np.asarray(out, np.int64)

    def known(self, names: Sequence[str]) -> Bools:
        """Say of each name whether it was seen before."""
        return np.fromiter(map(self._index.__contains__, names), np.bool_, len(names))

    def get(self, name: str) -> int | None:
        """Return the index of a name, None when it was never seen."""
        return self._index.get(name)

    def own(self, names: Iterable[str]) -> tuple[str, ...]:
        """Return names that were seen before as the very objects that are kept here."""
        return tuple(self.names[self._index[name]] for name in names)

    def of(self, indices: NDArray[Any]) -> list[str]:
        """Return the names of some indices."""
        return list(map(self.names.__getitem__, indices.tolist()))

    def ranks(self) -> Ids:
        """Return for every index its place among the sorted names."""
        known, count = len(self._ranks), len(self.names)
        if known < count:
            ordered = np.argsort(self._ranks)
            fresh = sorted(range(known, count), key=self.names.__getitem__)
            before = np.asarray(self.names, object)[ordered]
            at = np.searchsorted(before, np.asarray([self.names[index] for index in fresh], object))
            ranks = np.empty(count, np.int32)
            ranks[np.insert(ordered, at, fresh)] = np.arange(count)
            self._ranks = ranks
        return self._ranks


class KeyIndex:
    """The ids of keys, in sorted runs each at least twice as long as the next: adding costs no sorting of all."""

    def __init__(self) -> None:
        self._runs: tuple[tuple[Ints, Ids], ...] = ()

    def find(self, keys: Ints) -> Ints:
        """Return the ids of keys, −1 for unknown ones."""
        found = np.full(keys.shape, -1, np.int64)
        for held, ids in self._runs:
            at = np.minimum(np.searchsorted(held, keys), len(held) - 1)
            np.copyto(found, ids[at], where=held[at] == keys)
        return found

    def add(self, keys: Ints, ids: Ids) -> None:
        """Take keys that are not held yet."""
        runs = list(self._runs)
        while True:
            order = np.argsort(keys, kind="stable")  # two sorted runs are merged, not sorted
            keys, ids = keys[order], ids[order]
            if not runs or len(runs[-1][0]) >= 2 * len(keys):
                break
            before = runs.pop()
            keys, ids = np.concatenate((before[0], keys)), np.concatenate((before[1], ids))
        self._runs = (*runs, (keys, ids))


class SeriesOrder(NamedTuple):
    """The living series by server name and metric key."""

    ids: Ids
    metrics: Ids  # their metrics
    servers: Ids  # the servers that have some, and where those of each begin: S' and S' + 1
    starts: Ints

    @classmethod
    def of(cls, ids: Ids, metrics: Ids, servers: Ids) -> SeriesOrder:
        """Return the order of parallel columns that are in order."""
        firsts = np.flatnonzero(servers[1:] != servers[:-1]) + 1
        firsts = np.append(0, firsts) if len(servers) else firsts
        return cls(ids, metrics, servers[firsts], np.append(firsts, len(servers)))

    def server_column(self, of_server: NDArray[Any]) -> NDArray[Any]:
        """Return for each series what `of_server` says of its server."""
        return np.repeat(of_server, np.diff(self.starts))


@dataclass(slots=True)
class MetricSet:
    """The layouts of the frames with the same metrics, by their servers."""

    metrics: Ints
    layouts: dict[tuple[str, ...], Layout] = field(default_factory=dict)


class Layouts:
    """The layouts of late, in two ages: the older one is dropped when the younger is full."""

    def __init__(self) -> None:
        self._young: dict[tuple[str, ...], MetricSet] = {}
        self._old: dict[tuple[str, ...], MetricSet] = {}
        self._cells = 0

    def find(self, servers: tuple[str, ...], metrics: tuple[str, ...]) -> Layout | None:
        """Return the layout of some names if it is of the younger age."""
        group = self._young.get(metrics)
        return group.layouts.get(servers) if group else None

    def take_old(self, servers: tuple[str, ...], metrics: tuple[str, ...]) -> Layout | None:
        """Return the layout of some names and forget it if it is of the older age."""
        group = self._old.get(metrics)
        return group.layouts.pop(servers, None) if group else None

    def put(self, servers: tuple[str, ...], metrics: tuple[str, ...], layout: Layout, limit: int) -> Layout:
        """Keep a layout, about `limit` cells in each age; return it, its metrics shared with its like."""
        group = self._young.setdefault(metrics, MetricSet(layout.metrics))
        layout.metrics = group.metrics
        if servers not in group.layouts:
            self._cells += layout.ids.size + CELLS_PER_LAYOUT
        group.layouts[servers] = layout
        if self._cells > limit:
            self._old, self._young, self._cells = self._young, {}, 0
        return layout


class Masks:
    """Answers about names that only ever grow in number, remembered by the question."""

    def __init__(self) -> None:
        self.held: dict[Any, Bools] = {}

    def get(self, question: Hashable, count: int, answer: Callable[[int], Bools]) -> Bools:
        """Return the mask of `count` names; `answer(first)` gives it from index `first` on."""
        known = self.held.pop(question, None)
        if known is None:
            known = answer(0)
        elif len(known) < count:
            known = np.concatenate((known, answer(len(known))))
        if len(self.held) >= REMEMBERED:
            del self.held[next(iter(self.held))]
        self.held[question] = known
        return known


class Facts(NamedTuple):
    """What is known of the metrics by index, as of a version of their infos."""

    version: int
    kinds: Ints
    temporalities: Ints

"""Deletions that were asked for: what of the log is not to come back.

A deletion takes what was written up to a position of the log. Our files are written anew without it at once; the log
still holds it for a while, so whoever reads the log again (a damaged block made anew, an engine that lags) leaves out
what was deleted. A deletion is remembered as long as the log has frames from before it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from openmanager.frame import Frame
from openmanager_timeseries import durable
from openmanager_timeseries.samples import Bools

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Erasure:
    """Every series of some servers and metrics in [start, end) nanoseconds, as far as written up to `position`."""

    position: int
    servers: frozenset[str]
    metrics: frozenset[str]
    start: int
    end: int
    # Whether our files have been written anew.
    done: bool = False

    def mask(self, frame: Frame) -> Bools:
        """Say which samples of a frame it takes: bool[T, S, M]."""
        times = (frame.times >= self.start) & (frame.times < self.end)
        servers = np.asarray([name in self.servers for name in frame.servers], np.bool_)
        metrics = np.asarray([name in self.metrics for name in frame.metrics], np.bool_)
        return times[:, None, None] & servers[None, :, None] & metrics[None, None, :]


class Erasures:
    """The deletions of one shard, durable."""

    def __init__(self, state: Path) -> None:
        self._state = state
        self.entries: tuple[Erasure, ...] = ()
        self._load()

    def apply(self, frame: Frame, position: int) -> Frame:
        """Return a frame of the log without what was deleted of it."""
        for each in self.entries:
            if position <= each.position and each.start <= frame.times[-1] and each.end > frame.times[0]:
                gone = each.mask(frame)
                if gone.any():
                    frame = replace(frame, values=np.where(gone, np.nan, frame.values))
        return frame

    def add(self, erasure: Erasure) -> None:
        """Remember a deletion, durably (blocking)."""
        self._store((*self.entries, erasure))

    def finish(self, erasure: Erasure) -> None:
        """Remember that our files have been written anew (blocking)."""
        self._store(replace(each, done=True) if each is erasure else each for each in self.entries)

    def forget(self, first_position: int) -> None:
        """Forget the deletions from before everything that the log still holds (blocking)."""
        kept = [each for each in self.entries if not each.done or each.position >= first_position]
        if len(kept) < len(self.entries):
            self._store(kept)

    def _store(self, entries: Iterable[Erasure]) -> None:
        entries = tuple(entries)
        stored = [
            {
                "position": each.position,
                "servers": sorted(each.servers),
                "metrics": sorted(each.metrics),
                "start": each.start,
                "end": each.end,
                "done": each.done,
            }
            for each in entries
        ]
        durable.replace(self._state, json.dumps(stored).encode())
        self.entries = entries

    def _load(self) -> None:
        try:
            stored = json.loads(self._state.read_text(encoding="utf-8"))
            self.entries = tuple(
                Erasure(
                    position=int(each["position"]),
                    servers=frozenset(each["servers"]),
                    metrics=frozenset(each["metrics"]),
                    start=int(each["start"]),
                    end=int(each["end"]),
                    done=bool(each["done"]),
                )
                for each in stored
            )
        except FileNotFoundError:
            return
        except (OSError, ValueError, LookupError, TypeError) as err:
            log.warning("the deletions of the past cannot be read: %s", type(err).__name__)

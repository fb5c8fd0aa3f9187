"""Deletions that were asked for: what of the log is not to come back.

A deletion takes what was written up to a position of the log. Our files are written anew without it at once; the log
still holds it for a while, so whoever reads the log again (a damaged block made anew, an engine that lags) leaves out
what was deleted. A deletion is remembered as long as the log has frames from before it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from openmanager import durable
from openmanager.api.frame.v1 import frame_pb2
from openmanager.frame import Frame, decode_trusted
from openmanager_timeseries.record import Record
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
    """The deletions of one shard, durable; `newest` is the position that the log has come to when they are loaded."""

    def __init__(self, state: Path, newest: int = 0) -> None:
        self._state = state
        self.entries: tuple[Erasure, ...] = ()
        # Up to here deletions may have been forgotten, for their file was damaged: nothing is made anew from the log.
        self.unknown_through = 0
        self._load(newest)

    def apply(self, frame: Frame, position: int) -> Frame:
        """Return a frame of the log without what was deleted of it."""
        for each in self.entries:
            if position <= each.position and each.start <= frame.times[-1] and each.end > frame.times[0]:
                gone = each.mask(frame)
                if gone.any():
                    frame = replace(frame, values=np.where(gone, np.nan, frame.values))
        return frame

    def frame_of(self, record: Record) -> Frame:
        """Return the frame of a record of the log without what was deleted of it."""
        return self.apply(decode_trusted(frame_pb2.Frame.FromString(bytes(record.payload))), record.position)

    def add(self, erasure: Erasure) -> None:
        """Remember a deletion, durably (blocking)."""
        self._store((*self.entries, erasure))

    def finish(self, erasure: Erasure) -> None:
        """Remember that our files have been written anew (blocking)."""
        self._store(replace(each, done=True) if each is erasure else each for each in self.entries)

    def forget(self, first_position: int) -> None:
        """Forget the deletions from before everything that the log still holds (blocking)."""
        kept = [each for each in self.entries if not each.done or each.position >= first_position]
        known = self.unknown_through < first_position
        if len(kept) < len(self.entries) or (known and self.unknown_through):
            self._store(kept, 0 if known else self.unknown_through)

    def _store(self, entries: Iterable[Erasure], unknown_through: int | None = None) -> None:
        entries = tuple(entries)
        unknown = self.unknown_through if unknown_through is None else unknown_through
        durable.replace(
            self._state, durable.encode({"entries": [_document(each) for each in entries], "unknown_through": unknown})
        )
        self.entries, self.unknown_through = entries, unknown

    def _load(self, newest: int) -> None:
        try:
            stored = durable.load(self._state)
            self.entries = tuple(_erasure_of(each) for each in stored["entries"])
            self.unknown_through = int(stored["unknown_through"])
        except FileNotFoundError:
            return
        except (OSError, ValueError, LookupError, TypeError) as err:
            self.entries, self.unknown_through = (), newest
            log.error(  # noqa: TRY400  (where it happened says nothing)
                "the deletions of the past cannot be read, and nothing is made anew from the log: %s",
                type(err).__name__,
            )


def _document(erasure: Erasure) -> dict[str, Any]:
    return {
        "position": erasure.position,
        "servers": sorted(erasure.servers),
        "metrics": sorted(erasure.metrics),
        "start": erasure.start,
        "end": erasure.end,
        "done": erasure.done,
    }


def _erasure_of(stored: Mapping[str, Any]) -> Erasure:
    return Erasure(
        position=int(stored["position"]),
        servers=frozenset(stored["servers"]),
        metrics=frozenset(stored["metrics"]),
        start=int(stored["start"]),
        end=int(stored["end"]),
        done=bool(stored["done"]),
    )

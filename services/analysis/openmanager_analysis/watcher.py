"""Watches every series as its samples arrive: the log, through the detector, into the register; and remembers it all."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Mapping
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from openmanager.api.provenance.v1 import provenance_pb2
from openmanager.api.timeseries.v1 import timeseries_pb2 as pb
from openmanager.frame import ServerInfo, decode_trusted
from openmanager.log_follower import LogFollower
from openmanager.runtime.clock import Clock
from openmanager.runtime.peer import Peer
from openmanager.runtime.status import Finding
from openmanager.shield import shielded
from openmanager.watch import Bell
from openmanager_analysis import state
from openmanager_analysis.alerting.keeper import Keeper
from openmanager_analysis.anomaly import Register
from openmanager_analysis.collector import Collector, Names, Span
from openmanager_analysis.lookout import Lookout
from openmanager_analysis.pace import Pace

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from openmanager_analysis.reach import Sees

CONSUMER = "analysis"
NANOS_PER_MILLI, NANOS_PER_SECOND = 1_000_000, 10**9
# Storing what was learnt takes at most such a share of the time.
SAVE_SHARE = 0.05

log = logging.getLogger(__name__)


class Watcher:
    """The consumer `analysis`. It looks at one span after the other beside the event loop, and the log waits for it.

    What was learnt is stored every `save_seconds`, with the position of the log that it is of: after a restart the log is
    read from there, and gives what it would have given.
    """

    def __init__(
        self,
        *,
        timeseries: Peer,
        clock: Clock,
        path: Path,
        interval_nanos: int,
        save_seconds: float,
        names: Names,
        alerts: Keeper,
        mark: str = "",
    ) -> None:
        self.interval_nanos = interval_nanos
        self.bell = Bell()
        self.register = Register(mark=mark)
        self._clock = clock
        self._path = path
        self._save_seconds = save_seconds
        self._lookout = Lookout()
        self._collector = Collector(names, interval_nanos // NANOS_PER_MILLI)
        self._pace = Pace(interval_nanos / NANOS_PER_SECOND)
        self._alerts = alerts
        # Held while the detector works, or is stored.
        self._busy = asyncio.Lock()
        self._taken = self._saved = 0  # positions
        self._is_lost = self._unsaved = False
        self._seen_nanos = self._stored_bytes = 0
        self.follower = LogFollower(
            consumer=CONSUMER,
            peer=timeseries,
            clock=clock,
            jitter=random.Random(),  # noqa: S311  (jitter)
            sync=self._sync,
            take=self._take,
            durable=self._durable,
        )

    async def run(self) -> None:
        """Watch for ever."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.follower.run())
            tasks.create_task(self._save_regularly())

    async def load(self) -> None:
        """Take up what was stored; what cannot be read is learnt anew."""
        try:
            stored = await asyncio.to_thread(state.load, self._path)
            if stored is not None:
                self._restore(*stored)
        except (OSError, ValueError, LookupError, TypeError) as err:
            log.error("what was learnt cannot be read, and is learnt anew: %s", err)  # noqa: TRY400  (it says all)

    async def save(self) -> None:
        """Store what was learnt; whoever is cancelled meanwhile leaves it to its end, and nobody else stores beside it."""
        await shielded(self._save())

    async def _save(self) -> None:
        async with self._busy:
            document = self._document()
            try:
                size = await asyncio.to_thread(lambda: state.save(self._path, document, self._lookout.arrays()))
            except OSError as err:
                self._unsaved = True
                log.warning("what was learnt cannot be stored: %s", type(err).__name__)
                return
            self._unsaved, self._stored_bytes = False, size
            self._saved = document["position"]

    async def find(self) -> Finding:
        """Return what the status says of what was learnt."""
        names = self._collector.names
        warnings = []
        if names.unwatched_count:
            warnings.append(f"more than {names.most:,} series: samples of the others are not looked at")
        if self._pace.warning:
            warnings.append(self._pace.warning)
        if self._unsaved:
            warnings.append("what was learnt cannot be stored")
        return Finding(size_bytes=self._stored_bytes, item_count=len(names.series), warnings=tuple(warnings))

    def risks(self, sees: Sees, most: int) -> list[tuple[str, NDArray[np.float64]]]:
        """Return `most` servers at most that are seen and on which no anomaly goes on, those likeliest to begin one first."""
        busy = {each.server for each in self.register.going_on()}
        found = (each for each in self._lookout.risks() if each[0] not in busy and sees(each[0]))
        return list(islice(found, most))

    def describe(self) -> provenance_pb2.Provenance:
        """Return the provenance of an answer given now."""
        about = provenance_pb2.Provenance(source="detector")
        if self._seen_nanos:
            about.as_of_time.FromNanoseconds(self._seen_nanos)
            about.staleness.FromNanoseconds(max(0, self._clock.now_nanos() - self._seen_nanos))
        if not self.follower.view.following:
            about.degraded, about.reason = True, "the log is out of reach"
        return about

    async def _sync(self) -> int:
        """Return where the log goes on: where what is known ends, or now where nothing is, or too much was missed."""
        known = [each for each in (self._taken, self._alerts.alerting.position) if each]
        if known and not self._is_lost:
            self._is_lost = True  # unless the log goes on from there
            return min(known)
        self._taken = self._saved = await self.follower.head()
        self._alerts.alerting.position = self._alerts.saved_position = self._taken
        return self._taken

    async def _take(self, part: pb.WatchFramesResponse) -> None:
        """Take a frame; of what was stored later than the rest it is known already."""
        self._is_lost = False
        frame, received = decode_trusted(part.frame), part.receive_time.ToNanoseconds()
        self._alerts.take(frame, received, part.position)
        if part.position <= self._taken:
            return
        for span in self._collector.add(frame, received, part.position):
            await self._look(span)
        self._taken = part.position

    async def _look(self, span: Span) -> None:
        if not self._pace.is_due(span.time_millis * NANOS_PER_MILLI // self.interval_nanos):
            return
        names = self._collector.names
        change = self.register.change
        async with self._busy:
            self._lookout.watch(names.series, names.is_counter)
            begin = time.monotonic()
            found = await asyncio.to_thread(self._lookout.look, span.time_millis, span.values)
            self._pace.took(time.monotonic() - begin)
            if span.time_millis * NANOS_PER_MILLI <= self._seen_nanos:  # a clock was ahead, and was put back
                self.register.step_back(span.time_millis * NANOS_PER_MILLI)
                self._alerts.alerting.step_back(span.time_millis * NANOS_PER_MILLI)
            for each in found:
                self.register.see(each, names.environment(each.server))
            self._seen_nanos = span.time_millis * NANOS_PER_MILLI
            self.register.pass_time(self._seen_nanos)
        self._alerts.alerting.see_anomalies(self.register, self._seen_nanos)
        if self.register.change != change:
            self.bell.ring()
            self._alerts.changed()

    async def _save_regularly(self) -> None:
        seconds = self._save_seconds
        while True:
            await asyncio.sleep(seconds)
            begin = time.monotonic()
            await self.save()
            seconds = max(self._save_seconds, (time.monotonic() - begin) / SAVE_SHARE)

    def _durable(self) -> int:
        return min(self._saved, self._alerts.saved_position or self._saved)

    # ── stored ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _document(self) -> dict[str, Any]:
        names = self._collector.names
        return {
            "position": self._collector.position(self._taken),
            "interval_nanos": self.interval_nanos,
            "next_millis": self._collector.next_millis,
            "seen_nanos": self._seen_nanos,
            "series": names.series,
            "is_counter": names.is_counter,
            "infos": [asdict(info) for info in names.infos.values()],
            "register": self.register.document(),
        }

    def _restore(self, stored: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
        if stored["interval_nanos"] != self.interval_nanos:
            log.warning("the interval of the detector was changed: it learns anew")
            return
        series = [(server, metric) for server, metric in stored["series"]]
        lookout = Lookout.from_arrays(arrays, series, stored["is_counter"])
        register = Register.restored(stored["register"], mark=self.register.mark)
        names = self._collector.names
        names.restore(series[: names.most], stored["is_counter"][: names.most])
        for info in stored.get("infos", ()):
            names.note(ServerInfo(**info))
        self._collector.begin(int(stored["next_millis"]))
        self._lookout, self.register = lookout, register
        self._taken = self._saved = int(stored["position"])
        self._seen_nanos = int(stored["seen_nanos"])

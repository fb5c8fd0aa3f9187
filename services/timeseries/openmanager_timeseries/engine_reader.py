"""Raw samples from an engine instead of our blocks."""

from __future__ import annotations

import asyncio
import logging

import numpy as np

from openmanager.api.status.v1 import status_pb2
from openmanager.errors import OpenManagerError, UnavailableError, store_unavailable
from openmanager.runtime.clock import Clock
from openmanager_timeseries import span
from openmanager_timeseries.catalog import Catalog, Selection
from openmanager_timeseries.engine_link import SAMPLES_PER_SECOND, EngineLink, trouble
from openmanager_timeseries.engines.port import Coded, Wanted
from openmanager_timeseries.history import History
from openmanager_timeseries.plan import Borrowed, Plan, Pushed
from openmanager_timeseries.retention import Match
from openmanager_timeseries.samples import Long
from openmanager_timeseries.span import Span

# The share of the caller's time that is the engine's: the rest is for the blocks.
SHARE = 0.25
# An engine that had less time than this and did not answer need not be in trouble: the caller was in a hurry.
FAIR_SECONDS = 0.25

log = logging.getLogger(__name__)


class EngineReader:
    """Asks the engine where it has everything that the blocks would be asked for; they answer otherwise."""

    def __init__(self, link: EngineLink, history: History, read_seconds: float, clock: Clock) -> None:
        self._link = link
        self._clock = clock
        self._history = history
        self._catalog = history.catalog
        self._seconds = read_seconds

    async def read(self, plan: Plan, first_position: int, seconds: float) -> tuple[Borrowed | None, str]:
        """Return what the engine has of a plan, or None and why the blocks are read instead, in the rest of `seconds`.

        The head holds everything from `first_position` on. No reason is given where the engine is not to be asked: it may
        have the earlier of two values of a sample.
        """
        link, rewritten = self._link, self._history.rewritten
        if rewritten is not None and not link.engine.capabilities.overwrites and rewritten.touches(plan.raw):
            return None, ""
        if why := self._why_not(first_position):
            return None, f"{link.name} {why}; read from blocks"
        start = self._clock.monotonic()
        own = min(self._seconds, SHARE * seconds)
        try:
            async with asyncio.timeout(own):
                found = await self._read(plan)
        except (UnavailableError, TimeoutError) as err:
            if own >= FAIR_SECONDS or not isinstance(err, TimeoutError):
                link.reads.failed(start, *trouble(err))
            return None, f"{link.name} does not answer{' in time' * isinstance(err, TimeoutError)}; read from blocks"
        except OpenManagerError:
            return None, f"{link.name} does not answer; read from blocks"
        except Exception:  # what it answered is not to be trusted: the blocks are there
            log.exception("the answer of %s cannot be used", link.name)
            link.reads.failed(start, status_pb2.STORAGE_STATE_DOWN, "protocol: answers what cannot be used")
            return None, f"{link.name} answers what cannot be used; read from blocks"
        link.reads.answered(start, sum(len(each.times) for each in found.samples) / SAMPLES_PER_SECOND)
        return found, ""

    def _why_not(self, first_position: int) -> str:
        """Return why the engine is not to be asked, nothing when it is."""
        link = self._link
        if not link.ready:
            return str(link.condition)
        if link.visible < first_position - 1:
            return "is behind"
        return next((each.reason for each in (link.reads, link.writes) if each.is_open), "")

    async def _read(self, plan: Plan) -> Borrowed:
        servers, metrics = self._catalog.names(plan.selection.ids)
        names = sorted(set(servers)), sorted(set(metrics))
        engine, asked = self._link.engine, plan.query
        aligned = _aligned(plan) if asked.aggregation in engine.capabilities.aggregations else None
        pushed = None
        if aligned is not None:
            wanted = Wanted(servers=names[0], metrics=names[1], start=aligned[0], end=aligned[1])
            found = await engine.read_buckets(wanted, asked.step, asked.aggregation)
            pushed = Pushed(aligned, _long(self._catalog, plan.selection, found))
        samples = []
        for start, end in span.difference(plan.raw, (aligned,) if aligned else ()):
            wanted = Wanted(servers=names[0], metrics=names[1], start=start, end=end)
            samples.append(_long(self._catalog, plan.selection, await engine.read(wanted)))
        return Borrowed(engine=self._link.name, samples=samples, pushed=pushed)

    async def delete(self, match: Match, start: int, end: int) -> None:
        """Delete series from the engine; an OpenManagerError, and nothing is deleted, when it cannot be done now."""
        if not self._link.ready:
            raise store_unavailable(self._link.name)
        wanted = Wanted(servers=sorted(match.servers), metrics=sorted(match.metrics), start=start, end=end)
        try:
            await self._link.engine.delete(wanted)
        except TimeoutError as err:
            raise store_unavailable(self._link.name) from err


def _aligned(plan: Plan) -> Span | None:
    """Return the whole buckets that no sample of the head is in, when these are to be computed by the engine."""
    asked = plan.query
    if not asked.step or asked.group_by != "SERVER" or len(plan.raw) != 1 or any(plan.coverage.parts[:-1]):
        return None
    recent = min((part[0] for each in plan.generations for part in each.spans), default=asked.end)
    start, end = plan.raw[0]
    whole = span.inward(((start, min(end, recent)),), asked.step) if recent > start else ()
    return whole[0] if whole else None


def _long(catalog: Catalog, selection: Selection, found: Coded) -> Long:
    """Return what an engine answered as samples of a selection; whatever the log has of them came later."""
    ids = catalog.find((found.servers, found.server_codes), (found.metrics, found.metric_codes))
    rows = np.where((ids >= 0) & (ids < len(selection.rows)), selection.rows[np.clip(ids, 0, None)], -1)
    keep = rows >= 0
    times = found.times[keep]
    return Long(rows[keep], times, np.zeros(len(times), np.int64), found.values[keep])

"""Plans a query on the event loop, where nothing can change under it, and computes it in a thread.

Of every part of the range the coarsest tier answers that gives the exact number, raw samples the rest: what no block
holds comes from the head, and the buckets that late samples have touched from what is finer. So there is no seam, and
what is not kept any more is said, never clipped in silence.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from openmanager.api.frame.v1 import frame_pb2
from openmanager.errors import FailedPreconditionError, Reason, ResourceExhaustedError
from openmanager.rollup import COLUMNS
from openmanager_timeseries import aggregate as buckets
from openmanager_timeseries import block, cell, coverage, query, span
from openmanager_timeseries import head as recent
from openmanager_timeseries import sketch as sketches
from openmanager_timeseries.catalog import Catalog, Selection
from openmanager_timeseries.cell import Cells
from openmanager_timeseries.coverage import Offer
from openmanager_timeseries.head import Head
from openmanager_timeseries.plan import Borrowed, Plan, asked_part, fill_in, hulls, within
from openmanager_timeseries.query import GROWTH, Answer, Limits, Part, RangeQuery, SeriesName, Stop
from openmanager_timeseries.retention import Retention
from openmanager_timeseries.roller import COUNTER, Roller, TierFiles
from openmanager_timeseries.samples import Bools, Floats, Ints, Long, Piece, Ragged, merge
from openmanager_timeseries.sealed_store import SealedStore
from openmanager_timeseries.span import Spans
from openmanager_timeseries.tier import RAW
from openmanager_timeseries.wall import RETENTION_SECONDS, Wall

DAMAGED = "a block is damaged and was set aside"
DAMAGED_TIER = "a file of a tier is damaged and was set aside"
KEPT_SHORTER = "some of the series are kept for a shorter time, and the range begins before it"
TOO_OLD = "samples are kept for a limited time, and the range begins before it"
LIGHT_SAMPLES = 50_000
LIGHT_CHUNKS = 32
# The names of so many series at most, in so many answers, are kept to be given again.
_NAMED_SERIES, _NAMED = 1000, 64
_PERCENTS = {"P50": 50.0, "P90": 90.0, "P95": 95.0, "P99": 99.0}


class Planner:
    """Decides what to read for a query, and puts the answer together."""

    def __init__(
        self,
        *,
        catalog: Catalog,
        head: Head,
        blocks: SealedStore,
        roller: Roller,
        retention: Retention,
        wall: Wall,
        limits: Limits,
    ) -> None:
        self._catalog = catalog
        self._head = head
        self._blocks = blocks
        self._roller = roller
        self._retention = retention
        self._wall = wall
        self._limits = limits
        self._named: dict[bytes, tuple[SeriesName, ...]] = {}

    # ── planning ───────────────────────────────────────────────────────────────────────────────────────────────────

    def plan(self, asked: RangeQuery, selection: Selection | None = None) -> Plan:
        """Return what a query reads; InvalidArgumentError, OutOfRangeError or ResourceExhaustedError when it may not.

        FailedPreconditionError (`TIER_CANNOT`) when what is kept of the whole range cannot answer it exactly. A
        selection that was made already stands for the one that is asked for.
        """
        query.check(asked, self._limits)
        selection = selection or self._catalog.select(asked.servers, asked.server_filter, asked.metrics)
        if len(selection.ids) > self._limits.max_series:
            raise ResourceExhaustedError(
                f"the selector chooses {len(selection.ids)} series; at most {self._limits.max_series} can be answered",
                reason=Reason.TOO_MANY_SERIES,
            )
        delta = self._catalog.temporalities(selection.ids) == frame_pb2.TEMPORALITY_DELTA
        counters = self._catalog.kinds(selection.ids) == COUNTER
        sketched = asked.step > 0 and asked.aggregation in _PERCENTS
        tiers = self._eligible(asked, counters, delta, sketched=sketched)
        now, _ = self._wall.range(RETENTION_SECONDS)
        kept = [self._retention.kept_of(name, now, selection) for name in (RAW, *(each.tier.name for each in tiers))]
        raw = Offer(width=0, kept_from=kept[0][0])
        offers = [self._offer(files, kept_from) for files, (kept_from, _) in zip(tiers, kept[1:], strict=True)]
        wanted = (asked.start - asked.lookback, asked.end)
        found = coverage.cover(wanted, [raw, *offers] if sketched else [*offers, raw])
        kept_wholly = [each for _, each in (kept if sketched else [*kept[1:], kept[0]])]
        lost = span.clip(found.lost, asked.start, asked.end)
        raw_part = found.parts[0 if sketched else -1]
        plan = Plan(
            query=asked,
            selection=selection,
            tiers=tiers,
            files=[
                [file for file in (each.sketches if sketched else each.buckets).files if file.meets(*wanted)]
                for each in tiers
            ],
            coverage=found,
            generations=tuple(self._head.generations),
            blocks=tuple(
                file
                for file in self._blocks.files
                if file.about.first < self._head.first_position
                and any(file.meets(start, end) for start, end in raw_part)
            ),
            delta=delta,
            counters=counters,
            sketched=sketched,
            partial_reason=self._missing(asked, selection, lost, raw_part) if len(selection.ids) else "",
            damages=self._damages(tiers, sketched=sketched),
        )
        if not plan.partial_reason and any(
            span.clip(part, asked.start, min(asked.end, since))
            for part, since in zip(found.parts, kept_wholly, strict=True)
        ):
            plan = replace(plan, partial_reason=KEPT_SHORTER)
        damaged = self._damaged(plan)
        return replace(plan, partial_reason=damaged) if damaged else plan

    def _damaged(self, plan: Plan) -> str:
        """Return what is to be said of files that were set aside; empty when a plan reads none of their store."""
        found = self._damages(plan.tiers, sketched=plan.sketched)
        if self._blocks.quarantined or found[0] != plan.damages[0]:
            return DAMAGED
        if found != plan.damages:
            return DAMAGED_TIER
        parts = plan.coverage.parts[1:] if plan.sketched else plan.coverage.parts[:-1]
        for files, part, doubtful in zip(plan.tiers, parts, self._doubtful(plan), strict=True):
            store = files.sketches if plan.sketched else files.buckets
            if store.quarantined and (part or doubtful):
                return DAMAGED_TIER
        return ""

    def _damages(self, tiers: Sequence[TierFiles], *, sketched: bool) -> tuple[int, int]:
        blocks = self._blocks.damages
        return blocks, blocks + sum((each.sketches if sketched else each.buckets).damages for each in tiers)

    @staticmethod
    def _doubtful(plan: Plan) -> Sequence[Spans]:
        return plan.coverage.doubtful[1:] if plan.sketched else plan.coverage.doubtful[:-1]

    def _eligible(self, asked: RangeQuery, counters: Bools, delta: Bools, *, sketched: bool) -> list[TierFiles]:
        """Return the tiers whose buckets make up those that are asked for, coarsest first."""
        name = asked.aggregation
        if not asked.step or (name not in cell.NEEDS and not sketched):
            return []
        if name in cell.OF_ONE_SERIES and asked.group_by != "SERVER":
            return []
        if name in cell.OF_COUNTERS and not (counters | (delta & (name in GROWTH))).all():
            return []
        return [files for files in reversed(self._roller.tiers) if asked.step % files.tier.width == 0]

    def _offer(self, files: TierFiles, kept_from: int) -> Offer:
        at = self._roller.tiers.index(files)
        fresh = [each for each in self._head.generations if not each.sealed or each.last > self._roller.position]
        dirty = span.union([*self._roller.dirty(at), *(part for each in fresh for part in each.spans)])
        return Offer(width=files.tier.width, kept_from=kept_from, dirty=dirty)

    def _missing(self, asked: RangeQuery, selection: Selection, lost: Spans, raw: Spans) -> str:
        """Return why something will be missing from the answer; empty when nothing will."""
        held = {files.tier.name: files.buckets.spans for files in self._roller.tiers}
        coarser = [name for name, spans in held.items() if span.intersection(spans, lost)]
        why = f"only buckets of {' and '.join(coarser)} are kept there, which do not give this exactly"
        if lost and not span.difference(((asked.start, asked.end),), lost) and coarser:
            raise FailedPreconditionError(f"{why}: widen the step", reason=Reason.TIER_CANNOT)
        if coarser:
            return f"a part of the range is left out: {why}"
        if lost:
            return TOO_OLD
        raw = span.clip(raw, asked.start, asked.end)
        data = span.union((*self._blocks.spans, *(part for each in self._head.generations for part in each.spans)))
        near = span.union((low - span.GAP_NANOS, high + span.GAP_NANOS) for low, high in data)
        coarser = [
            files.tier.name
            for files in self._roller.tiers
            if span.intersection(held[files.tier.name], span.difference(raw, span.outward(near, files.tier.width)))
        ]
        if coarser and len(selection.ids):
            return f"a part of the range has only buckets of {' and '.join(coarser)}: widen the step to see it"
        return ""

    # ── computing ──────────────────────────────────────────────────────────────────────────────────────────────────

    def compute(self, plan: Plan, stop: Stop, borrowed: Borrowed | None = None) -> Answer:
        """Return the answer to a plan (in a thread)."""
        older, recently = list(self._read_older(plan, stop, borrowed)), list(self._read_head(plan))
        samples = merge(len(plan.selection.ids), [*older, *recently])
        if len(plan.raw) > 1 or borrowed is not None:  # else no more than one range was read
            samples = within(samples, plan.raw)
        source = "+".join(
            name
            for name, used in (
                ("head", bool(recently)),
                ("blocks", borrowed is None and bool(plan.blocks)),
                (borrowed.engine if borrowed else "", borrowed is not None),
            )
            if used
        )
        stop.check()
        parts = [
            Part(source=source or "head", tier=RAW, start=start, end=end) for start, end in asked_part(plan, plan.raw)
        ]
        if plan.query.step == 0:
            answer = self._answer(plan, parts, samples)
        elif plan.sketched:
            answer = self._percentiles(plan, parts, samples, stop)
        else:
            answer = self._bucketed(plan, parts, samples, stop)
        if borrowed is not None and borrowed.pushed is not None and answer.values is not None:
            fill_in(answer.values, answer.starts, plan.query.step, borrowed.pushed)
        damaged = self._damaged(plan)  # found while reading
        return replace(answer, partial_reason=damaged) if damaged else answer

    @staticmethod
    def is_light(plan: Plan) -> bool:
        """Say whether it takes longer to find a thread for a plan than to compute it: little, and all from the head."""
        if plan.blocks or any(plan.coverage.parts[:-1]) or plan.sketched:
            return False
        chunks = [chunk for generation in plan.generations for chunk in generation.chunks]
        asked = plan.query
        buckets_asked = (asked.end - asked.start) // asked.step + 1 if asked.step else 1
        ticks = max(buckets_asked, sum(chunk.count for chunk in chunks))
        return len(chunks) <= LIGHT_CHUNKS and len(plan.selection.ids) * ticks <= LIGHT_SAMPLES

    @staticmethod
    def _read_head(plan: Plan) -> Iterator[Piece]:
        if plan.raw:
            yield from recent.pieces(plan.generations, plan.selection, plan.raw[0][0], plan.raw[-1][1])

    def _read_older(self, plan: Plan, stop: Stop, borrowed: Borrowed | None) -> Iterator[Piece | Long]:
        if not plan.raw:
            return
        if borrowed is not None:
            yield from borrowed.samples
        else:
            for file in plan.blocks:
                for start, end in hulls(plan.raw, file.spans):
                    found = self._blocks.read(file, plan.selection, start, end, block.FORMAT.names, stop.check)
                    yield from (block.samples(file, each) for each in found)

    def _answer(self, plan: Plan, parts: Sequence[Part], samples: Ragged) -> Answer:
        return Answer(
            names=self._names(plan.selection.ids),
            parts=parts,
            partial_reason=plan.partial_reason,
            starts=np.empty(0, np.int64),
            values=None,
            raw=samples,
        )

    def _bucketed(self, plan: Plan, parts: list[Part], samples: Ragged, stop: Stop) -> Answer:
        asked = plan.query
        starts = buckets.bucket_starts(asked.start, asked.end, asked.step)
        names, groups = self._groups(plan.selection.ids, asked.group_by)
        reason = plan.partial_reason
        if any(plan.coverage.parts[:-1]) or any(plan.coverage.doubtful):
            cells, used = self._cells(plan, samples, stop)
            if asked.aggregation in cell.OF_COUNTERS and self._unknown_growth(plan, cells):
                reason = reason or "of some buckets it was not known yet that they are of counters"
            values = cell.aggregate(
                cells, asked.aggregation, starts=starts, step=asked.step, groups=groups, delta=plan.delta
            )
            parts = sorted([*parts, *used], key=lambda each: each.start)
        else:
            values = buckets.aggregate(
                samples, asked.aggregation, starts=starts, step=asked.step, groups=groups, delta=plan.delta
            )
        return Answer(names=names, parts=parts, partial_reason=reason, starts=starts, values=values, raw=None)

    def _cells(self, plan: Plan, samples: Ragged, stop: Stop) -> tuple[Cells, list[Part]]:
        """Return the cells of all tiers, and which tier answered what: from the finest tier to the coarsest."""
        needed = cell.NEEDS[plan.query.aggregation]
        whole = cell.of_samples(samples, tuple(dict.fromkeys((*needed, "count"))))
        used: list[Part] = []
        for at in reversed(range(len(plan.tiers))):
            files, clean, doubtful = plan.tiers[at], plan.coverage.parts[at], plan.coverage.doubtful[at]
            if doubtful:
                coarse = self._read_tier(plan, at, doubtful, tuple(whole.columns), stop)
                whole = cell.outvoted(whole, coarse, files.tier.width)
            if clean:
                names = tuple(whole.columns)
                whole = cell.joined([whole, self._read_tier(plan, at, clean, names, stop)], names)
            used += [
                Part(source="tiers", tier=files.tier.name, start=start, end=end, width=files.tier.width)
                for start, end in asked_part(plan, clean)
            ]
        return whole, used

    def _read_tier(self, plan: Plan, at: int, spans: Spans, names: tuple[str, ...], stop: Stop) -> Cells:
        store = plan.tiers[at].buckets
        found = [
            Cells(each.rows, each.times, each.values)
            for file in plan.files[at]
            for start, end in hulls(spans, file.spans)
            for each in store.read(file, plan.selection, start, end, names, stop.check)
        ]
        cells = cell.joined(found, names)
        return cells if len(spans) == 1 else cells.take(span.inside(cells.times, spans))

    @staticmethod
    def buckets(files: TierFiles, selection: Selection, start: int, end: int, stop: Stop) -> Cells:
        """Return the buckets that a tier's files hold of a selection in [start, end), with all columns (in a thread)."""
        found = [
            Cells(each.rows, each.times, each.values)
            for file in files.buckets.files
            if file.meets(start, end)
            for each in files.buckets.read(file, selection, start, end, COLUMNS, stop.check)
        ]
        return cell.joined(found, COLUMNS)

    @staticmethod
    def _unknown_growth(plan: Plan, cells: Cells) -> bool:
        return bool((np.isnan(cells.columns["first"]) & ~plan.delta[cells.rows]).any())

    # ── percentiles beyond raw ─────────────────────────────────────────────────────────────────────────────────────

    def _percentiles(self, plan: Plan, parts: list[Part], samples: Ragged, stop: Stop) -> Answer:
        """Return percentiles: of samples where there are some, of sketches before that, of both at the border."""
        asked = plan.query
        starts = buckets.bucket_starts(asked.start, asked.end, asked.step)
        names, groups = self._groups(plan.selection.ids, asked.group_by)
        values = buckets.aggregate(
            samples, asked.aggregation, starts=starts, step=asked.step, groups=groups, delta=plan.delta
        )
        gathered: dict[int, list[bytes]] = {}
        seen = np.zeros(len(plan.selection.ids), np.bool_)
        for at, files in enumerate(plan.tiers):
            clean = span.clip(plan.coverage.parts[at + 1], asked.start, asked.end)
            blobs: dict[tuple[int, int], bytes] = {}  # of a bucket that several files have that of the last one
            for file in plan.files[at]:
                for start, end in hulls(clean, file.spans):
                    for found in files.sketches.read(file, plan.selection, start, end, ("sketch",), stop.check):
                        inside = span.inside(found.times, clean)
                        keys = zip(found.rows[inside].tolist(), found.times[inside].tolist(), strict=True)
                        blobs.update(zip(keys, found.values["sketch"][inside], strict=True))
            for (row, time), blob in blobs.items():
                seen[row] = True
                place = int(groups[row]) * len(starts) + (time - int(starts[0])) // asked.step
                gathered.setdefault(place, []).append(blob)
            parts += [
                Part(source="tiers", tier=files.tier.name, start=start, end=end, width=files.tier.width)
                for start, end in clean
            ]
        worst = self._fill(values, gathered, samples, groups, starts, asked, stop)
        reason = plan.partial_reason
        if any(plan.coverage.parts[1:]) and not seen.all():
            reason = "of some metrics no sketches are kept, and without raw samples they have no percentiles"
            if not seen.any() and not plan.raw and len(seen) and not self._damaged(plan):
                raise FailedPreconditionError(reason, reason=Reason.TIER_CANNOT)
        return Answer(
            names=names,
            parts=sorted(parts, key=lambda each: each.start),
            partial_reason=reason,
            starts=starts,
            values=values,
            raw=None,
            rank_error=worst,
        )

    @staticmethod
    def _fill(  # noqa: PLR0917
        values: Floats,
        gathered: dict[int, list[bytes]],
        samples: Ragged,
        groups: Ints,
        starts: Ints,
        asked: RangeQuery,
        stop: Stop,
    ) -> float:
        """Fill in the cells that sketches have a part in; return the largest error of a rank."""
        worst = 0.0
        if not gathered:
            return worst
        places = groups[samples.rows] * len(starts) + (samples.times - starts[0]) // asked.step
        for place, blobs in gathered.items():
            stop.check()
            whole = sketches.merged(blobs)
            if len(own := samples.values[places == place]):
                whole.update(own)
            (found,), error = sketches.percentiles(whole, [_PERCENTS[asked.aggregation]])
            values.ravel()[place] = found
            worst = max(worst, error)
        return worst

    # ── groups ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _groups(self, ids: Ints, group_by: str) -> tuple[list[SeriesName], Ints]:
        """Return the name of every group and the group of every series, groups sorted by name and metric."""
        if group_by == "SERVER":
            return self._names(ids), np.arange(len(ids))
        servers, metrics = self._catalog.names(ids)
        of_server = {server: self._group_of(server, group_by) for server in set(servers)}
        keys = [(of_server[server], metric) for server, metric in zip(servers, metrics, strict=True)]
        ordered = sorted(set(keys))
        index = {key: at for at, key in enumerate(ordered)}
        names = [SeriesName(server="", metric=metric, group=group) for group, metric in ordered]
        return names, np.asarray([index[key] for key in keys], np.int64)

    def _names(self, ids: Ints) -> list[SeriesName]:
        """Return the names of series (in any thread); those of a few are kept, as an id always means the same series."""
        if len(ids) > _NAMED_SERIES:
            return list(map(SeriesName, *self._catalog.names(ids)))
        key = ids.tobytes()
        found = self._named.get(key)
        if found is None:
            if len(self._named) >= _NAMED:
                self._named.clear()
            found = self._named[key] = tuple(map(SeriesName, *self._catalog.names(ids)))
        return list(found)

    def _group_of(self, server: str, group_by: str) -> str:
        info = self._catalog.infos.get(server)
        if group_by == "ALL":
            return "all"
        return (info.role if group_by == "ROLE" else info.environment) if info else ""

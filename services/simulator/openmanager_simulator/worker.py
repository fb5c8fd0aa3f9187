"""A process that makes its share of a backfill: requests, ready to be sent, from standard input's job to its output.

Run as `python -m openmanager_simulator.worker`. It knows no gRPC. What it writes are messages: a kind, the length of
what follows, and that.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import struct
import sys
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import IO, Any, Literal, Self

import numpy as np

from openmanager.frame import MAX_FRAME_BYTES, Frame, encode_write_request, length_delimited, split
from openmanager.rollup import COLUMNS, Grid, encode_grid
from openmanager_simulator.bucket import Buckets, Floats, Tally, coarser
from openmanager_simulator.catalogue import load_catalogue
from openmanager_simulator.fault import Fault
from openmanager_simulator.fault_record import from_document, to_document
from openmanager_simulator.fleet import Server, make_server
from openmanager_simulator.info import metric_infos, server_infos
from openmanager_simulator.noise import BLOCK
from openmanager_simulator.plan import Plan, Segment, Tier, Unit
from openmanager_simulator.simulation import Simulation

# A message: its kind and the length of its payload. REQUEST is followed by one, END of a unit by nothing.
HEADER = struct.Struct("<cI")
REQUEST, END = b"R", b"E"
# Room in a request for names and what is told of them.
_NAME_BYTES = 128 << 10
# Simulations of parts of the fleet that are kept.
_KEPT = 8
_PIPE_BYTES = 1 << 20
_PLAIN = ("interval", "metric_count", "seed", "noise", "schedule", "now")
_NICE = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What all workers need to know: the fleet and its faults, the plan, and what the tiers keep at the time `now`."""

    interval: int
    metric_count: int
    seed: int
    noise: Literal["normal", "table"]
    schedule: bool
    faults: tuple[Fault, ...]
    tiers: tuple[Tier, ...]
    now: int
    plan: Plan

    def encode(self) -> bytes:
        """Return the job as a document."""
        plain = {name: getattr(self, name) for name in _PLAIN}
        faults, tiers = [to_document(fault) for fault in self.faults], [asdict(tier) for tier in self.tiers]
        return json.dumps({**plain, "faults": faults, "tiers": tiers, "plan": asdict(self.plan)}).encode()

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Undo `encode`."""
        document: dict[str, Any] = json.loads(data)
        plan = document.pop("plan")
        segments = tuple(Segment(**segment) for segment in plan.pop("segments"))
        return cls(
            faults=tuple(from_document(fault) for fault in document.pop("faults")),
            tiers=tuple(Tier(**tier) for tier in document.pop("tiers")),
            plan=Plan(segments=segments, **plan),
            **document,
        )


class Maker:
    """Makes the requests of units."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._catalogue = load_catalogue()
        metrics = self._catalogue.metrics
        self._metrics = tuple(metric.key for metric in metrics)
        self._gauges = sum(metric.kind == "gauge" for metric in metrics)
        self._simulations: OrderedDict[int, Simulation] = OrderedDict()

    def requests(self, unit: Unit) -> Iterator[bytes]:
        """Yield the requests of a unit on the wire, of ImportFrames or of ImportRollups."""
        first = -(-unit.start // self._job.interval)
        count = -(-unit.end // self._job.interval) - first
        if count:
            yield from (self._frames if unit.raw else self._rollups)(unit, first, count)

    def _simulation(self, unit: Unit) -> Simulation:
        found = self._simulations.pop(unit.first_server, None)
        if found is None:
            found = Simulation(
                fleet=_fleet(unit),
                catalogue=self._catalogue,
                seed=self._job.seed,
                interval_nanos=self._job.interval,
                faults=self._job.faults,
                schedule=self._job.schedule,
                noise=self._job.noise,
                first_server=unit.first_server,
            )
        self._simulations[unit.first_server] = found
        while len(self._simulations) > _KEPT:
            self._simulations.popitem(last=False)
        return found

    def _frames(self, unit: Unit, first: int, count: int) -> Iterator[bytes]:
        fleet, simulation, tick = _fleet(unit), self._simulation(unit), first
        while tick < first + count:
            some = min(BLOCK - tick % BLOCK, first + count - tick)
            told = unit.begins and tick == first
            frame = Frame(
                times=simulation.times(tick, some),
                servers=tuple(server.id for server in fleet),
                metrics=self._metrics,
                values=simulation.values(tick, some),
                server_infos=server_infos(fleet) if told else (),
                metric_infos=metric_infos(self._catalogue) if told else (),
            )
            yield from map(encode_write_request, split(frame))
            tick += some

    def _rollups(self, unit: Unit, first: int, count: int) -> Iterator[bytes]:
        simulation, tiers = self._simulation(unit), self._job.tiers
        times = simulation.times(first, count)
        counters = len(self._metrics) - self._gauges
        tally = Tally(times, tiers[0].width, unit.server_count, self._gauges, counters)
        for piece in simulation.pieces(first, count):
            tally.add(piece.server, piece.tick - first, piece.gauges, piece.counts)
        buckets, fleet = tally.finish(), _fleet(unit)
        untold = unit.begins
        for tier in tiers:
            buckets = buckets if tier is tiers[0] else coarser(buckets, tier.width)
            oldest = self._job.now - tier.retention - tier.width
            for grid in self._grids(fleet, buckets, int(np.searchsorted(buckets.times, oldest, side="right"))):
                if untold:
                    untold = False
                    of_metrics = metric_infos(self._catalogue)
                    grid = replace(grid, server_infos=server_infos(fleet), metric_infos=of_metrics)  # noqa: PLW2901
                yield length_delimited(1, encode_grid(tier.name, grid))

    def _grids(self, fleet: Sequence[Server], buckets: Buckets, first: int) -> Iterator[Grid]:
        """Yield the buckets from `first` on in grids that fit into a request; gauges apart, for they have two columns less."""
        for metrics in (slice(0, self._gauges), slice(self._gauges, len(self._metrics))):
            names = self._metrics[metrics]
            size = (MAX_FRAME_BYTES - _NAME_BYTES) // (8 * len(COLUMNS) * len(fleet) * len(names))
            for at in range(first, len(buckets.times), size):
                some = slice(at, at + size)
                yield Grid(
                    times=buckets.times[some],
                    servers=tuple(server.id for server in fleet),
                    metrics=names,
                    columns=_columns(buckets, some, metrics, gauges=metrics.start == 0),
                )


def _columns(buckets: Buckets, times: slice, metrics: slice, *, gauges: bool) -> dict[str, Floats]:
    of, counts = buckets.columns, buckets.counts[times].astype(np.float64)
    found = {name: of[name][times, :, metrics] for name in ("min", "max", "sum", "last")}
    shape = found["min"].shape
    unknown = np.broadcast_to(np.nan, shape)
    found["count"] = np.broadcast_to(counts[:, None, None], shape)
    return found | {name: unknown if gauges else of[name][times] for name in ("first", "growth")}


def _fleet(unit: Unit) -> tuple[Server, ...]:
    return tuple(make_server(unit.first_server + at) for at in range(unit.server_count))


def work(job: Job, index: int, count: int, out: IO[bytes]) -> None:
    """Write the messages of every `count`-th unit of the plan, from unit `index` on."""
    maker = Maker(job)
    for unit in itertools.islice(job.plan.units(), index, None, count):
        for request in maker.requests(unit):
            out.write(HEADER.pack(REQUEST, len(request)))
            out.write(request)
        out.write(HEADER.pack(END, 0))
        out.flush()


def main() -> None:
    """Do the job of standard input; end without a word when nobody reads."""
    index, count = map(int, sys.argv[1:])
    job = Job.decode(sys.stdin.buffer.read())
    os.nice(_NICE)
    # What a library might print must not get in between.
    with os.fdopen(os.dup(1), "wb") as out:
        os.dup2(2, 1)
        with contextlib.suppress(OSError):
            fcntl.fcntl(out, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        try:
            work(job, index, count, out)
        except BrokenPipeError:
            os._exit(1)


if __name__ == "__main__":
    main()

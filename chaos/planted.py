"""Bugs that chaos has to find: each is planted in the running services, and each breaks a promise in another way.

A change gets a module that has just been imported, in every process that imports it.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import numpy as np

# How often a bug strikes that does not strike every time.
SELDOM = 50
OLD_SECONDS = 6.0

Change = Callable[[ModuleType], None]


@dataclass(frozen=True)
class Bug:
    """What goes wrong, and the changes to modules that make it so."""

    says: str
    changes: tuple[tuple[str, Change], ...]


def _every(count: int) -> Callable[[], bool]:
    """Return what is true every so many times."""
    numbers = itertools.count(1)
    return lambda: next(numbers) % count == 0


class Without:
    """Another object, some of whose methods do nothing."""

    def __init__(self, inner: Any, *methods: str) -> None:
        self._inner = inner
        self._methods = methods

    def __getattr__(self, name: str) -> Any:
        return (lambda *_: None) if name in self._methods else getattr(self._inner, name)


# ── the log ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def acknowledges_before_sync(log: ModuleType) -> None:
    segment_for = log.Log._segment_for

    def unsynced(self, size):
        segment, file = segment_for(self, size)
        return segment, Without(file, "sync")

    log.Log._segment_for = unsynced


def loses_the_name_of_a_segment(log: ModuleType) -> None:
    segment_for = log.Log._segment_for

    def unnamed(self, size):
        whole, self._disk = self._disk, Without(self._disk, "sync")
        try:
            return segment_for(self, size)
        finally:
            self._disk = whole

    log.Log._segment_for = unnamed


def trims_what_a_reader_needs(log: ModuleType) -> None:
    delete_through = log.Log.delete_through

    def eager(self, *_):
        return delete_through(self, self.state.head_position, self._clock.now_nanos())

    log.Log.delete_through = eager


def gives_positions_out_again(log: ModuleType) -> None:
    recover = log.Log._recover

    def one_back(self, floor, accepted):
        recover(self, floor, accepted)
        self._next = max(1, self._next - 1)

    log.Log._recover = one_back


def drops_a_frame_of_a_batch(log: ModuleType) -> None:
    append = log.Log._append

    def all_but_one(self, batch):
        records = append(self, batch[: max(1, len(batch) - 1)])
        return [*records, *records[-1:]][: len(batch)]

    log.Log._append = all_but_one


def forgets_the_total(log: ModuleType) -> None:
    recover = log.Log._recover

    def from_zero(self, floor, accepted):
        recover(self, floor, accepted)
        self.state.accepted = 0

    log.Log._recover = from_zero


# ── history ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _changed_in_head(change: Callable[[Any], Any]) -> Change:
    """Return what has one frame in SELDOM changed on its way into the head."""

    def plant(head: ModuleType) -> None:
        append, due = head.Head.append, _every(SELDOM)

        def changed(self, layout, frame, *rest):
            append(self, layout, change(frame) if frame.servers[0].startswith("chaos") and due() else frame, *rest)

        head.Head.append = changed

    return plant


def _half(frame: Any) -> Any:
    values = frame.values.copy()
    values[:, :, values.shape[2] // 2 :] = np.nan
    return replace(frame, values=values)


def _later(frame: Any) -> Any:
    return replace(frame, times=frame.times + 1_000_000)


def stores_values_of_another(head: ModuleType) -> None:
    append, due, before = head.Head.append, _every(SELDOM), deque[Any](maxlen=1)

    def mixed_up(self, layout, frame, *rest):
        others = before[0] if before and due() else frame
        before.append(frame)
        if others.values.shape == frame.values.shape:
            frame = replace(frame, values=others.values)
        append(self, layout, frame, *rest)

    head.Head.append = mixed_up


def replays_out_of_order(history: ModuleType) -> None:
    replay = history.History.replay

    async def disordered(self):
        read = self.log.read

        async def backwards(cursor):
            records = await read(cursor)
            return [
                replace(each, payload=other.payload, samples=other.samples)
                for each, other in zip(records, reversed(records), strict=True)
            ]

        self.log.read = backwards
        try:
            await replay(self)
        finally:
            del self.log.read

    history.History.replay = disordered


def acknowledges_what_it_never_wrote(history: ModuleType) -> None:
    write, due = history.History.write, _every(SELDOM)

    async def pretended(self, wire, **options):
        if due():
            admitted = self._admission.admit(wire, **options)
            return history.Accepted(position=self.log.state.head_position, admitted=admitted)
        return await write(self, wire, **options)

    history.History.write = pretended


def refuses_what_it_keeps(history: ModuleType) -> None:
    from openmanager.errors import ResourceExhaustedError

    write, due = history.History.write, _every(SELDOM)

    async def denied(self, wire, **options):
        accepted = await write(self, wire, **options)
        if due():
            raise ResourceExhaustedError("planted")
        return accepted

    history.History.write = denied


def seals_a_part(block: ModuleType) -> None:
    write = block.write

    def partly(folder, generation, *rest):
        generation.chunks[:] = generation.chunks[:-1] or generation.chunks
        return write(folder, generation, *rest)

    block.write = partly


def answers_samples_twice(service: ModuleType) -> None:
    packed = service.packed
    service.packed = lambda number, array: packed(number, np.append(array, array[-1:]) if number in {4, 5} else array)


def leaves_the_newest_out(service: ModuleType) -> None:
    range_query = service._range_query

    def shortened(request, now):
        query = range_query(request, now)
        return replace(query, end=max(query.start + 1, query.end - 10**9))

    service._range_query = shortened


def registers_nobody(registrar: ModuleType) -> None:
    async def passed_over(_self, _records):
        return ()

    registrar.Registrar.take = passed_over


def sets_good_frames_aside(registrar: ModuleType) -> None:
    from openmanager.errors import InvalidArgumentError

    take = registrar.Registrar.take

    async def refused(self, records):
        # By position, so that it is the same frame again when the halves of a batch are tried, and after a restart.
        if any(record.position % SELDOM == 0 for record in records):
            raise InvalidArgumentError("planted")
        return await take(self, records)

    registrar.Registrar.take = refused


# ── hot state ────────────────────────────────────────────────────────────────────────────────────────────────────────


def answers_old_as_fresh(replica: ModuleType) -> None:
    class Lazy(replica.HotFleet):  # type: ignore[misc,name-defined]
        def __init__(self):
            super().__init__()
            self._kept = {}

        def reply(self, server_id, *, full):
            made, data = self._kept.get((server_id, full), (-OLD_SECONDS, b""))
            if time.monotonic() - made > OLD_SECONDS:
                data = super().reply(server_id, full=full)
                self._kept[server_id, full] = time.monotonic(), data
            return data

    replica.HotFleet = Lazy  # type: ignore[attr-defined]


def answers_for_another(replica: ModuleType) -> None:
    class Confused(replica.HotFleet):  # type: ignore[misc,name-defined]
        due = staticmethod(_every(SELDOM))

        def reply(self, server_id, *, full):
            others = [each.message.id for each in self if each.message.id.startswith("chaos")]
            return super().reply(others[0] if others and self.due() else server_id, full=full)

    replica.HotFleet = Confused  # type: ignore[attr-defined]


def goes_back(replica: ModuleType) -> None:
    class Forgetful(replica.HotFleet):  # type: ignore[misc,name-defined]
        def __init__(self):
            super().__init__()
            self._before = deque(maxlen=SELDOM)

        def put(self, servers):
            servers = list(servers)
            self._before.append(servers)
            super().put(servers)
            if len(self._before) == SELDOM:
                super().put(self._before[0])
                self._before.clear()

    replica.HotFleet = Forgetful  # type: ignore[attr-defined]


def shows_half_a_server(fleet: ModuleType) -> None:
    apply, rest = fleet.Fleet.apply, dict[tuple[str, ...], tuple[Any, int]]()

    def in_halves(self, frame, received):
        changed = apply(self, *rest.pop(frame.servers)) if frame.servers in rest else []
        rest[frame.servers] = frame, received
        return [*changed, *apply(self, _half(frame), received)]

    fleet.Fleet.apply = in_halves


# ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _bugs() -> Iterator[tuple[str, str, str, Change]]:
    log, history, head = (f"openmanager_timeseries.{name}" for name in ("log", "history", "head"))
    service, registrar = (f"openmanager_timeseries.{name}" for name in ("service", "registrar"))
    replica = "openmanager_gateway.replica"
    half, later = _changed_in_head(_half), _changed_in_head(_later)
    yield "sync", "acknowledges a frame before it is synced", log, acknowledges_before_sync
    yield "trim", "deletes segments that a reader has not passed durably", log, trims_what_a_reader_needs
    yield "half", "shows half of a frame", head, half
    yield "order", "replays the log out of order after a restart", history, replays_out_of_order
    yield "stale", "answers an old copy as a fresh one", replica, answers_old_as_fresh
    yield "foreign", "stores the values of another server", head, stores_values_of_another
    yield "other", "answers with another server", replica, answers_for_another
    yield "half-hot", "shows half of a frame of a server as it is now", "openmanager_cache.fleet", shows_half_a_server
    yield "back", "goes back to an older state of a server", replica, goes_back
    yield "name", "does not sync the name of a segment", log, loses_the_name_of_a_segment
    yield "position", "gives a position out again after a restart", log, gives_positions_out_again
    yield "batch", "drops a frame of a batch", log, drops_a_frame_of_a_batch
    yield "total", "forgets how many samples it has accepted", log, forgets_the_total
    yield "never", "acknowledges what it never wrote", history, acknowledges_what_it_never_wrote
    yield "refused", "refuses what it keeps", history, refuses_what_it_keeps
    yield "time", "moves samples by a millisecond", head, later
    yield "seal", "seals a part of the head as if it were all", "openmanager_timeseries.block", seals_a_part
    yield "twice", "answers a sample twice", service, answers_samples_twice
    yield "newest", "leaves the newest samples out of a range", service, leaves_the_newest_out
    yield "nobody", "registers no server", registrar, registers_nobody
    yield "letters", "sets good frames aside", registrar, sets_good_frames_aside


BUGS = {name: Bug(says, ((module, change),)) for name, says, module, change in _bugs()}

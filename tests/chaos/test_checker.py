"""The checker finds each kind of defect, planted in what was told, in what was shown or in what is there."""

from __future__ import annotations

import numpy as np
import pytest

from chaos.checker import STALE_SECONDS, Found, Verdict, check
from chaos.journal import ROW, Journal, Kind, load
from chaos.load import METRICS, RANGE_SECONDS, WRITERS, registered, server_of, writer_of
from chaos.reading import check_books, check_inventory
from openmanager.api.status.v1 import status_pb2

FRAMES = 20


def row(kind: Kind, writer: int, time: int, value: float, at: float, *, degraded: bool = False) -> tuple[object, ...]:
    return kind, degraded, writer, time, value, at, 0.01


def told(kinds: dict[int, Kind] | None = None) -> np.ndarray:
    """Return the journal of writers whose frames were acknowledged, but for those with another kind, of writer 2."""
    rows = []
    for writer in range(WRITERS):
        for number in range(1, FRAMES + 1):
            value = float(number * WRITERS + writer)
            kind = (kinds or {}).get(number, Kind.OK) if writer == 2 else Kind.OK
            rows += [row(Kind.INVOKED, writer, number, value, number), row(kind, writer, number, value, number + 0.1)]
    rows.append(row(Kind.READ, 0, 0, 0.0, 0.01))
    return np.array(rows, ROW)


def there(writer: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return all that a writer wrote."""
    times = np.arange(1, FRAMES + 1)
    return {metric: (times, times * float(WRITERS) + writer) for metric in METRICS}


def without(found: Found, metric: str, time: int) -> Found:
    times, values = found[metric]
    return {**found, metric: (times[times != time], values[times != time])}


def judged(kinds: dict[int, Kind] | None = None, *more: tuple[object, ...], **changed: Found) -> Verdict:
    found = [changed.get(f"writer{writer}", there(writer)) for writer in range(WRITERS)]
    return check(np.append(told(kinds), np.array([*more], ROW)), found)


def test_all_that_was_acknowledged_and_is_there_is_sound():
    verdict = judged()
    assert verdict.sound
    assert (verdict.acknowledged, verdict.unknown) == (WRITERS * FRAMES * len(METRICS), 0)
    assert writer_of(float(7 * WRITERS + 3)) == 3


def test_what_was_acknowledged_and_is_not_there_is_lost():
    verdict = judged(writer2=without(there(2), METRICS[7], 5))
    assert (verdict.lost, verdict.sound) == (1, False)
    assert verdict.examples == [f"lost: writer 2, {METRICS[7]} at 5 (1)"]
    assert judged(writer3={}).lost == FRAMES * len(METRICS)


def test_what_was_refused_and_is_there_is_resurrected():
    verdict = judged({5: Kind.FAILED})
    assert (verdict.resurrected, verdict.lost) == (len(METRICS), 0)


@pytest.mark.parametrize("value", [5.0 * WRITERS + 3, 6.0 * WRITERS + 2, 0.0], ids=["another's", "of then", "nobody's"])
def test_a_value_that_nobody_wrote_there_is_foreign(value: float):
    found = there(2)
    times, values = found[METRICS[0]]
    found[METRICS[0]] = times, np.where(times == 5, value, values)
    verdict = judged(writer2=found)
    assert (verdict.foreign, verdict.lost) == (1, 1)


def test_a_time_that_nobody_wrote_is_foreign():
    found = there(2)
    found[METRICS[0]] = tuple(np.append(each, 999) for each in found[METRICS[0]])
    assert judged(writer2=found).foreign == 1


def test_a_sample_that_is_there_twice_is_duplicated():
    found = there(2)
    found[METRICS[0]] = tuple(np.insert(each, 4, each[4]) for each in found[METRICS[0]])
    assert judged(writer2=found).duplicated == 1


def test_of_a_frame_of_unknown_fate_all_may_be_there_or_nothing_but_not_a_half():
    assert judged({5: Kind.UNKNOWN}).sound
    nothing = there(2)
    for metric in METRICS:
        nothing = without(nothing, metric, 5)
    assert judged({5: Kind.UNKNOWN}, writer2=nothing).sound
    verdict = judged({5: Kind.UNKNOWN}, writer2=without(there(2), METRICS[9], 5))
    assert (verdict.halves, verdict.lost, verdict.sound) == (1, 0, False)
    assert verdict.unknown == len(METRICS)


# ── a time that is written twice ───────────────────────────────────────────────────────────────────────────────────

AGAIN = 100.0 * WRITERS + 2


def again(kind: Kind) -> list[tuple[object, ...]]:
    """Return what is told of a second write at the last time of writer 2."""
    return [row(Kind.INVOKED, 2, FRAMES, AGAIN, FRAMES + 0.2), row(kind, 2, FRAMES, AGAIN, FRAMES + 0.3)]


def with_last(value: float) -> Found:
    return {metric: (times, np.where(times == FRAMES, value, values)) for metric, (times, values) in there(2).items()}


FIRST = float(FRAMES * WRITERS + 2)


@pytest.mark.parametrize(
    ("first", "second", "value", "defects"),
    [
        (Kind.OK, Kind.OK, AGAIN, {}),
        (Kind.OK, Kind.OK, FIRST, {"reverted": len(METRICS)}),
        (Kind.OK, Kind.UNKNOWN, FIRST, {}),
        (Kind.OK, Kind.UNKNOWN, AGAIN, {}),
        (Kind.UNKNOWN, Kind.OK, FIRST, {}),  # it came late
        (Kind.OK, Kind.FAILED, FIRST, {}),
        (Kind.OK, Kind.FAILED, AGAIN, {"resurrected": len(METRICS)}),
    ],
)
def test_of_two_values_of_a_time_the_one_that_was_acknowledged_last_stays(
    first: Kind, second: Kind, value: float, defects: dict[str, int]
):
    assert judged({FRAMES: first}, *again(second), writer2=with_last(value)).defects == defects


# ── what was shown ─────────────────────────────────────────────────────────────────────────────────────────────────


def shown(time: int, at: float, *, kind: Kind = Kind.READ, value: float | None = None, degraded: bool = False):
    """Return an answer that showed a frame of writer 2."""
    return row(kind, 2, time, float(time * WRITERS + 2) if value is None else value, at, degraded=degraded)


@pytest.mark.parametrize("kind", [Kind.READ, Kind.LISTED, Kind.LATEST])
def test_answers_that_were_true_and_new_are_sound(kind: Kind):
    verdict = judged({}, *(shown(time, time + 0.2, kind=kind) for time in range(1, FRAMES + 1)))
    assert (verdict.defects, verdict.shown) == ({}, FRAMES)


@pytest.mark.parametrize("kind", [Kind.READ, Kind.LISTED, Kind.LATEST, Kind.RANGED])
def test_no_mark_excuses_a_value_that_nobody_wrote_there(kind: Kind):
    anothers, of_then = 20.0 * WRITERS + 3, 6.0 * WRITERS + 2
    assert judged({}, shown(20, 20.2, kind=kind, value=anothers)).defects == {"untrue": 1}
    assert judged({}, shown(20, 20.2, kind=kind, value=of_then, degraded=True)).defects == {"untrue": 1}


def test_an_answer_with_what_was_refused_is_untrue():
    without_it = {metric: (times[:-1], values[:-1]) for metric, (times, values) in there(2).items()}
    assert judged({FRAMES: Kind.FAILED}, shown(20, 20.2), writer2=without_it).defects == {"untrue": 1}


def test_an_answer_whose_metrics_disagree_or_are_missing_is_torn():
    assert judged({}, shown(20, 20.2), shown(20, 20.2, value=19.0 * WRITERS + 2)).defects == {"torn": 1, "untrue": 1}
    assert judged({}, shown(20, 20.2), shown(20, 20.2, value=np.nan)).defects == {"torn": 1}
    assert judged({}, shown(20, 20.2), shown(20, 20.3)).defects == {}


@pytest.mark.parametrize("kind", [Kind.READ, Kind.LISTED, Kind.LATEST])
def test_an_old_answer_without_a_mark_is_stale(kind: Kind):
    late = 10.1 + STALE_SECONDS
    assert judged({}, shown(9, late - 0.01, kind=kind)).defects == {}
    assert judged({}, shown(9, late + 0.01, kind=kind)).defects == {"stale": 1}
    assert judged({}, shown(9, late + 0.01, kind=kind, degraded=True)).defects == {}


def test_an_answer_that_is_older_than_one_before_it_goes_backwards():
    assert judged({}, shown(20, 20.2), shown(19, 20.3)).defects == {"backwards": 1}
    assert judged({}, shown(20, 20.2), shown(19, 20.3, degraded=True)).defects == {}
    assert judged({}, shown(20, 20.2, degraded=True), shown(19, 20.3)).defects == {"backwards": 1}
    # Of two that were under way at once neither is before the other, and places are compared with themselves.
    assert judged({}, shown(20, 20.2), shown(19, 20.205)).defects == {}
    assert judged({}, shown(20, 20.2), shown(19, 20.3, kind=Kind.LATEST)).defects == {}


def test_what_was_shown_and_is_not_there_at_the_end_has_vanished():
    without_it = {metric: (times[:-1], values[:-1]) for metric, (times, values) in there(2).items()}
    assert judged({FRAMES: Kind.UNKNOWN}, writer2=without_it).defects == {}
    assert judged({FRAMES: Kind.UNKNOWN}, shown(20, 20.2), writer2=without_it).defects == {"vanished": 1}


def ranged(times: list[int], *, at: float, degraded: bool = False) -> list[tuple[object, ...]]:
    """Return a range of all times that showed some."""
    whole = row(Kind.RANGE, 2, 0, RANGE_SECONDS, at, degraded=degraded)
    return [whole, *(shown(time, at, kind=Kind.RANGED, degraded=degraded) for time in times)]


def test_a_range_without_what_was_acknowledged_before_it_is_stale():
    assert judged({}, *ranged([*range(1, 11)], at=10.5)).defects == {}
    assert judged({}, *ranged([*range(1, 10)], at=10.5)).defects == {"stale": 1}
    assert judged({}, *ranged([*range(1, 10)], at=10.05)).defects == {}
    assert judged({}, *ranged([*range(1, 10)], at=10.5, degraded=True)).defects == {}


def test_a_range_with_what_was_corrected_before_it_is_stale():
    corrected = [*again(Kind.OK), *ranged([*range(1, FRAMES + 1)], at=21.0)]
    assert judged({}, *corrected, writer2=with_last(AGAIN)).defects == {"stale": 1}


def test_what_is_answered_while_one_looks_may_be_missing():
    half = {metric: (times[:10], values[:10]) for metric, (times, values) in there(0).items()}
    others = [there(writer) for writer in range(1, WRITERS)]
    assert check(told(), [half, *others], 10.5).defects == {}
    assert check(told(), [half, *others], 11.5).defects == {"lost": len(METRICS)}


# ── the books ──────────────────────────────────────────────────────────────────────────────────────────────────────


def books(head: int = 5, **parts: int) -> dict[str, int]:
    """Return what is wrong with the books of a reader at position 5, of ten samples."""
    row = status_pb2.Consumer(
        name="reader", position=5, **{f"{name}_sample_count": count for name, count in parts.items()}
    )
    verdict = Verdict()
    check_books(verdict, status_pb2.Ledger(accepted_sample_count=10, consumers=[row]), head)
    return verdict.defects


def test_books_that_do_not_add_up_are_seen():
    assert books(delivered=7, waiting=2, resynced=1) == {}
    assert books(delivered=7, waiting=2) == {"unbalanced": 1}
    assert books(delivered=12, waiting=-2) == {"unbalanced": 1}
    assert books(delivered=7, dead_lettered=3) == {"dead_lettered": 3}
    assert books(delivered=7, damaged=3) == {"damaged": 3}
    assert books(delivered=10, head=6) == {"behind": 1}


def test_a_server_that_was_taken_and_is_not_in_the_inventory_is_seen():
    rows = np.append(told(), np.array([row(Kind.REGISTERED, 0, 3, 0.0, 1.0)], ROW))
    there = {registered(3), *map(server_of, range(WRITERS))}
    for missing in (set(), {registered(3)}, {server_of(2)}):
        verdict = Verdict()
        check_inventory(verdict, rows, there - missing)
        assert verdict.unregistered == len(missing)


def test_a_journal_is_on_disk_when_it_is_closed(tmp_path):
    with Journal(tmp_path / "journal") as journal:
        for number in range(100):
            journal.add(Kind.OK, 3, number, number * 2.0, 1.5)
    rows = load(tmp_path / "journal")
    assert rows["time"].tolist() == list(range(100))
    assert set(rows["kind"].tolist()) == {Kind.OK}
    assert rows["value"].tolist() == [number * 2.0 for number in range(100)]

"""The checker finds each kind of defect, planted in what was told or in what is there."""

from __future__ import annotations

import numpy as np
import pytest

from chaos.checker import Found, Verdict, check
from chaos.journal import ROW, Journal, Kind, load
from chaos.load import METRICS, WRITERS, writer_of

FRAMES = 20


def told(kinds: dict[int, Kind] | None = None) -> np.ndarray:
    """Return the journal of writers whose frames were acknowledged, but for those with another kind, of writer 2."""
    rows = []
    for writer in range(WRITERS):
        for number in range(1, FRAMES + 1):
            value = float(number * WRITERS + writer)
            kind = (kinds or {}).get(number, Kind.OK) if writer == 2 else Kind.OK
            rows += [(Kind.INVOKED, writer, number, value, 0.0), (kind, writer, number, value, 0.0)]
    rows.append((Kind.READ, 0, 0, 0.01, 0.0))
    return np.array(rows, ROW)


def there(writer: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return all that a writer wrote."""
    times = np.arange(1, FRAMES + 1)
    return {metric: (times, times * float(WRITERS) + writer) for metric in METRICS}


def without(found: Found, metric: str, time: int) -> Found:
    times, values = found[metric]
    return {**found, metric: (times[times != time], values[times != time])}


def judged(kinds: dict[int, Kind] | None = None, **changed: Found) -> Verdict:
    found = [changed.get(f"writer{writer}", there(writer)) for writer in range(WRITERS)]
    return check(told(kinds), found)


def test_all_that_was_acknowledged_and_is_there_is_sound():
    verdict = judged()
    assert verdict.sound
    assert (verdict.acknowledged, verdict.unknown) == (WRITERS * FRAMES * len(METRICS), 0)
    assert writer_of(float(7 * WRITERS + 3)) == 3


def test_what_was_acknowledged_and_is_not_there_is_lost():
    verdict = judged(writer2=without(there(2), METRICS[7], 5))
    assert (verdict.lost, verdict.sound) == (1, False)
    assert verdict.examples == [f"lost: writer 2, {METRICS[7]} at 5 (1 samples)"]
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


def test_a_journal_is_on_disk_when_it_is_closed(tmp_path):
    with Journal(tmp_path / "journal") as journal:
        for number in range(100):
            journal.add(Kind.OK, 3, number, number * 2.0, 1.5)
    rows = load(tmp_path / "journal")
    assert rows["time"].tolist() == list(range(100))
    assert set(rows["kind"].tolist()) == {Kind.OK}
    assert rows["value"].tolist() == [number * 2.0 for number in range(100)]

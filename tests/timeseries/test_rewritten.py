"""The minutes of samples that were written again: kept, found, and more rather than less where something is not known."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openmanager_timeseries import rewritten, span
from openmanager_timeseries.keeper import Keeper
from openmanager_timeseries.rewritten import REWRITTEN, Rewritten
from timeseries.shard import DAY, END, MINUTE, NOW, SECOND, NoDisk, frame, opened, ticks, write

from openmanager import durable
from openmanager.frame import encode


def loaded(folder: Path, unjudged: span.Spans = ()) -> Rewritten:
    return Rewritten(folder / REWRITTEN, unjudged, NOW)


def test_whole_minutes_are_kept_and_those_that_are_known_cost_no_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    kept = loaded(tmp_path)
    kept.add(END + 5, END + 6)
    kept.add(END + 3 * MINUTE - 1, END + 3 * MINUTE + 1)
    expected = ((END, END + MINUTE), (END + 2 * MINUTE, END + 4 * MINUTE))
    assert kept.spans == loaded(tmp_path).spans == expected
    monkeypatch.setattr(durable, "replace", lambda *_: pytest.fail("written"))
    kept.add(END, END + MINUTE)
    kept.add(END + 2 * MINUTE + 7, END + 4 * MINUTE)


@given(
    st.lists(st.tuples(st.integers(-9, 99), st.integers(1, 9))),
    st.lists(st.tuples(st.integers(-9, 99), st.integers(1, 9)), max_size=3),
    st.integers(1, 5),
)
def test_nothing_that_was_added_is_missed(tmp_path_factory, added, asked, most):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rewritten, "MAX_SPANS", most)
        patch.setattr(durable, "replace", lambda *_: None)
        kept = loaded(tmp_path_factory.getbasetemp())
        for start, length in added:
            kept.add(start * MINUTE, (start + length) * MINUTE)
            assert len(kept.spans) <= most
    spans = span.union((start * MINUTE, (start + length) * MINUTE) for start, length in asked)
    assert kept.touches(spans) is bool(span.intersection(spans, kept.spans))
    assert not span.difference(span.union((a * MINUTE, (a + n) * MINUTE) for a, n in added), kept.spans)


def test_only_the_nearest_are_joined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(rewritten, "MAX_SPANS", 3)
    kept = loaded(tmp_path)
    for minute in (0, 9, 11, 30):
        kept.add(minute * MINUTE, minute * MINUTE + 1)
    assert kept.spans == ((0, MINUTE), (9 * MINUTE, 12 * MINUTE), (30 * MINUTE, 31 * MINUTE))


def test_an_unreadable_file_stands_for_all_time_until_now(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    (tmp_path / REWRITTEN).write_bytes(b"{")
    for kept in (loaded(tmp_path), loaded(tmp_path)):
        assert kept.touches(((0, 1),))
        assert kept.touches(((NOW, NOW + 1),))
        assert not kept.touches(((NOW + 2 * MINUTE, NOW + DAY),))
    assert [each.levelname for each in caplog.records] == ["ERROR"]  # it was written anew


def test_what_a_full_disk_refused_is_known_and_written_with_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    kept = loaded(tmp_path)

    def full(*_: object) -> None:
        raise OSError

    with monkeypatch.context() as patch:
        patch.setattr(durable, "replace", full)
        kept.add(END, END + 1)
    assert kept.touches(((END, END + 1),))
    assert not loaded(tmp_path).touches(((END, END + 1),))
    kept.add(END, END + 1)
    assert loaded(tmp_path).touches(((END, END + 1),))


async def test_a_shard_notes_what_is_written_again_or_late_and_goes_on_after_a_restart(tmp_path: Path):
    async with opened(tmp_path) as history:
        await write(history, ticks(END, 2), load=[1.0, 2.0])
        history.keep_rewritten()
        assert history.rewritten.spans == ((END, END + MINUTE),)  # in the head before anybody judged
        late = END + 5 * MINUTE
        await write(history, [late], load=[1.0])
        await write(history, [late], load=[1.0])  # sent again
        last = late + 5 * MINUTE
        await write(history, [last], servers=("a", "b"), load=[1.0])
        assert not history.rewritten.touches(((late, late + MINUTE),))
        await write(history, [late], load=[2.0])
        assert history.rewritten.touches(((late, late + 1),))
    async with opened(tmp_path) as history:
        assert history.rewritten.touches(((late, late + 1),))
        assert not history.rewritten.touches(((last, last + 1),))
        # A crash may have come between the log and the mark: what is sent again after a start is not believed to be noted.
        await write(history, [last], servers=("b",), load=[1.0])
        assert history.rewritten.touches(((last, last + 1),))


async def test_a_writer_that_has_gone_away_is_judged_too(tmp_path: Path):
    async with opened(tmp_path) as history:
        history.keep_rewritten()
        await history.write(encode(frame(0, {"a": {"x": 1.0}})))
        gone = history.begin_write(encode(frame(0, {"a": {"x": 2.0}})))
        history.give_up(gone)
        await history.write(encode(frame(60, {"a": {"x": 3.0}})))
        assert history.rewritten.touches(((NOW, NOW + SECOND),))


async def test_what_nobody_can_ask_for_any_more_is_forgotten(tmp_path: Path):
    async with opened(tmp_path) as history:
        history.keep_rewritten()
        old, young = END - 3650 * DAY, END - DAY
        history.rewritten.add(old, old + 1)
        history.rewritten.add(young, young + 1)
        history.retention.certain = True
        await Keeper(history, NoDisk()).expire()
        assert history.rewritten.spans == ((young, young + MINUTE),)

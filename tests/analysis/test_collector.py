"""Samples of frames become spans that all series are looked at in together."""

from __future__ import annotations

import numpy as np
import pytest
from openmanager_analysis.collector import Collector, Names

from openmanager.api.frame.v1 import frame_pb2
from openmanager.frame import Frame, MetricInfo, ServerInfo

SECOND = 10**9
MILLIS = 10_000


def frame(at: float, servers=("a",), metrics=("m",), value: float = 1.0, infos=(), kinds=()) -> Frame:
    values = np.full((1, len(servers), len(metrics)), value)
    return Frame(
        times=np.array([int(at * SECOND)]),
        servers=tuple(servers),
        metrics=tuple(metrics),
        values=values,
        server_infos=tuple(infos),
        metric_infos=tuple(kinds),
    )


def opened(most: int = 100) -> Collector:
    collector = Collector(Names(most=most), MILLIS)
    collector.begin(1_000 * 1_000)
    return collector


def added(collector: Collector, at: float, *, received: float | None = None, **more):
    spans = collector.add(frame(at, **more), int((received if received is not None else at + 0.1) * SECOND))
    return [(span.time_millis // 1000, span.values.tolist()) for span in spans]


def test_a_span_is_looked_at_once_two_more_have_begun():
    collector = opened()
    assert added(collector, 1000) == []
    assert added(collector, 1010, value=2.0) == []
    assert added(collector, 1020, value=3.0) == [(1000, [1.0])]
    assert added(collector, 1040, value=4.0) == [(1010, [2.0]), (1020, [3.0])]


def test_the_last_sample_of_a_span_counts_and_several_producers_are_put_together():
    collector = opened()
    added(collector, 1001, value=1.0)
    added(collector, 1009, value=2.0)
    added(collector, 1005, servers=("b", "c"), metrics=("m", "n"), value=5.0)
    ((_, values),) = added(collector, 1020, value=9.0)
    assert values == [2.0, 5.0, 5.0, 5.0, 5.0]
    assert collector.names.series == [("a", "m"), ("b", "m"), ("b", "n"), ("c", "m"), ("c", "n")]


def test_a_wrong_clock_hides_nothing_of_what_others_say():
    collector = opened()
    assert added(collector, 5000, received=1000.1, servers=("ahead",)) == []
    assert added(collector, 900, received=1000.2, servers=("behind",)) == []
    added(collector, 1000)
    ((time, values),) = added(collector, 1020)
    assert (time, values) == (1000, [1.0])
    assert collector.late_count == 2


def test_a_clock_of_the_log_that_was_ahead_and_is_put_back_hides_nothing():
    collector = opened()
    added(collector, 1000)
    added(collector, 4600)
    assert added(collector, 4620) == [(4600, [1.0])]
    assert added(collector, 1030, value=2.0) == []
    assert added(collector, 1040) == []
    assert added(collector, 1050) == [(1030, [2.0])]
    assert collector.late_count == 0


def test_a_clock_of_the_log_that_is_corrected_by_a_little_gives_no_span_twice():
    collector = opened()
    added(collector, 1000)
    added(collector, 1020)
    assert added(collector, 1012, received=1012.1) == []
    assert added(collector, 1030) == [(1010, [1.0])]


def test_what_comes_for_a_span_that_was_looked_at_is_counted_and_left_out():
    collector = opened()
    added(collector, 1000)
    added(collector, 1020)
    assert added(collector, 1001, received=1021) == []
    assert collector.late_count == 1


def test_series_beyond_the_most_are_not_watched():
    collector = opened(most=2)
    added(collector, 1000, servers=("a", "b", "c"))
    ((_, values),) = added(collector, 1020, servers=("a",))
    assert values == [1.0, 1.0]
    assert collector.names.unwatched_count == 1


def test_a_series_is_watched_from_its_first_sample_on():
    collector = opened()
    sparse = frame(1000, servers=("a", "b"), metrics=("m", "n"))
    sparse.values[0] = [[1.0, np.nan], [np.nan, 2.0]]
    list(collector.add(sparse, 1000 * SECOND))
    assert collector.names.series == [("a", "m"), ("b", "n")]
    sparse.values[0, 0, 1] = 3.0
    list(collector.add(sparse, 1000 * SECOND))
    ((_, values),) = added(collector, 1020)
    assert collector.names.series == [("a", "m"), ("b", "n"), ("a", "n")]
    assert values == [1.0, 2.0, 3.0]


def test_names_that_nobody_sends_again_take_no_more_memory_than_a_little(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("openmanager_analysis.collector._MAX_CELLS", 10)
    collector = opened(most=0)
    for number in range(20):
        added(collector, 1000, servers=(f"s{number}",), metrics=("a", "b", "c"))
    assert sum(each.size for each in collector._layouts.values()) <= 10


def test_counters_and_environments_are_known_from_what_producers_tell():
    collector = opened()
    kinds = (MetricInfo(name="bytes", kind=frame_pb2.METRIC_KIND_COUNTER),)
    infos = (ServerInfo(id="a", environment="production"),)
    added(collector, 1000, metrics=("bytes{device=eth0}", "level"), kinds=kinds, infos=infos)
    assert collector.names.is_counter == [True, False]
    assert collector.names.environment("a") == "production"
    assert collector.names.environment("b") == ""


def test_what_producers_tell_of_a_server_is_put_together_and_counted_once():
    collector = opened()
    for info in (
        ServerInfo(id="a", role="web", labels={"rack": "r1"}),
        ServerInfo(id="a", environment="production"),
        ServerInfo(id="a", environment="production"),
    ):
        added(collector, 1000, infos=(info,))
    assert collector.names.infos["a"] == ServerInfo(id="a", environment="production", role="web", labels={"rack": "r1"})
    assert collector.names.info_changes == 2

from __future__ import annotations

import numpy as np
import pytest
from openmanager_cache.fleet import Fleet
from openmanager_cache.threshold import Thresholds, ThresholdTable, judge

from openmanager.api.cache.v1 import cache_pb2
from openmanager.api.server.v1 import server_pb2
from openmanager.frame import Frame, ServerInfo

SECOND = 10**9
NOW = 1_790_000_000 * SECOND
HEALTHY, WARNING = server_pb2.SERVER_STATE_HEALTHY, server_pb2.SERVER_STATE_WARNING
CRITICAL, OFFLINE = server_pb2.SERVER_STATE_CRITICAL, server_pb2.SERVER_STATE_OFFLINE


class HandClock:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.nanos = NOW

    def now_nanos(self) -> int:
        return self.nanos

    def monotonic(self) -> float:
        return self.nanos / SECOND


def frame(seconds: int, values: dict[str, dict[str, float]], **more) -> Frame:
    metrics = tuple(sorted({metric for found in values.values() for metric in found}))
    grid = np.array([[[found.get(metric, np.nan) for metric in metrics] for found in values.values()]])
    return Frame(times=np.array([NOW + seconds * SECOND]), servers=tuple(values), metrics=metrics, values=grid, **more)


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def fleet(clock: HandClock) -> Fleet:
    return Fleet(clock)


def apply(fleet: Fleet, seconds: int, values: dict[str, dict[str, float]], **more) -> None:
    fleet.apply(frame(seconds, values, **more), NOW + seconds * SECOND)


def state(fleet: Fleet, server: str) -> int:
    return fleet.hot.get(server).message.state


def whole(fleet: Fleet, server: str) -> server_pb2.Server:
    return cache_pb2.GetServerResponse.FromString(fleet.hot.reply(server, full=True)).server


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        ({"cpu": 69.9, "memory": 74.9, "disk": 79.9}, HEALTHY),
        ({"cpu": 70.0}, WARNING),
        ({"memory": 75.0}, WARNING),
        ({"disk": 80.0}, WARNING),
        ({"cpu": 85.0}, CRITICAL),
        ({"memory": 90.0}, CRITICAL),
        ({"disk": 90.0, "cpu": 72.0}, CRITICAL),
        ({}, HEALTHY),
    ],
)
def test_thresholds_decide_the_state(usage: dict[str, float], expected: int):
    assert judge(usage, Thresholds(), HEALTHY)[0] == expected


def test_a_state_is_left_only_two_points_below_its_threshold():
    found = HEALTHY
    states = []
    for cpu in (69, 70, 69, 68.1, 67.9, 86, 84, 83.1, 82.9, 60):
        found, _ = judge({"cpu": cpu}, Thresholds(), found)
        states.append(found)
    assert states == [HEALTHY, WARNING, WARNING, WARNING, HEALTHY, CRITICAL, CRITICAL, CRITICAL, WARNING, HEALTHY]


def test_a_server_goes_before_its_role_before_the_default():
    table = ThresholdTable(roles={"web": {"cpu_warning": 50.0}}, servers={"w1": {"cpu_warning": 60.0, "colour": 1.0}})
    assert [table.of(*each).cpu_warning for each in (("x", "db"), ("x", "web"), ("w1", "web"))] == [70.0, 50.0, 60.0]


def test_the_newest_value_of_every_metric_is_kept(fleet: Fleet):
    apply(fleet, 0, {"a": {"cpu_usage": 10.0, "x": 1.0}})
    apply(fleet, 1, {"a": {"cpu_usage": np.nan, "x": 2.0}})
    apply(fleet, 2, {"a": {"y": 3.0}})
    apply(fleet, 1, {"a": {"x": 9.0}})  # late
    server = whole(fleet, "a")
    assert dict(zip(server.metrics, server.values, strict=True)) == {"cpu_usage": 10.0, "x": 2.0, "y": 3.0}
    assert server.metric_count == 3
    assert server.sample_time.ToNanoseconds() == NOW + 2 * SECOND


def test_a_silent_server_is_offline_after_three_of_its_own_intervals(fleet: Fleet, clock: HandClock):
    for seconds in range(0, 50, 10):
        apply(fleet, seconds, {"slow": {"cpu_usage": 1.0}})
    for seconds in range(36, 41):
        apply(fleet, seconds, {"fast": {"cpu_usage": 1.0}})
    clock.nanos = NOW + 44 * SECOND
    assert [server.message.id for server in fleet.mark_offline()] == ["fast"]
    clock.nanos = NOW + 69 * SECOND
    assert not fleet.mark_offline()
    clock.nanos = NOW + 71 * SECOND
    assert [server.message.id for server in fleet.mark_offline()] == ["slow"]
    apply(fleet, 72, {"slow": {"cpu_usage": 1.0}})
    assert (state(fleet, "slow"), state(fleet, "fast")) == (HEALTHY, OFFLINE)


def test_a_deleted_server_is_hidden_until_its_next_frame(fleet: Fleet):
    apply(fleet, 0, {"a": {"x": 1.0}})
    fleet.delete({"a": NOW + 5 * SECOND})
    assert "a" not in fleet.hot
    apply(fleet, 4, {"a": {"x": 2.0}})
    assert "a" not in fleet.hot
    apply(fleet, 6, {"a": {"x": 3.0}})
    assert "a" in fleet.hot
    fleet.delete({"a": NOW + 5 * SECOND})
    assert "a" in fleet.hot


def test_what_people_set_goes_before_what_frames_tell(fleet: Fleet):
    told = (ServerInfo(id="a", hostname="h", role="web", labels={"x": "1"}),)
    apply(fleet, 0, {"a": {"cpu_usage": 75.0}}, server_infos=told)
    fleet.learn([ServerInfo(id="a", role="db", labels={"y": "2"})])
    message = fleet.hot.get("a").message
    assert (message.hostname, message.role, dict(message.labels)) == ("h", "db", {"x": "1", "y": "2"})
    fleet.thresholds.roles["db"] = {"cpu_critical": 74.0, "cpu_warning": 50.0}
    fleet.refresh_all()
    assert state(fleet, "a") == CRITICAL


def test_a_server_without_a_sample_in_a_frame_is_left_alone(fleet: Fleet):
    apply(fleet, 0, {"a": {"x": 1.0}, "b": {"x": np.nan}})
    assert [server.message.id for server in fleet.hot] == ["a"]

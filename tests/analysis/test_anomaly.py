"""The register of anomalies: runs, incidents, what is told of them, and how they are kept."""

from __future__ import annotations

from dataclasses import replace

import pytest
from openmanager_analysis import measure, wire
from openmanager_analysis.anomaly import MINUTE, Blame, Finding, Register, Severity, fitting, gravest
from openmanager_analysis.explanation import explain
from openmanager_analysis.listing import Query, list_page
from openmanager_analysis.reach import everything
from openmanager_analysis.watch import chooser, watch
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from openmanager.errors import InvalidArgumentError, OutOfRangeError, Reason
from openmanager.watch import Bell

BEGIN = 1_790_000_000 * 10**9
SECOND = 10**9


def blame(metric: str = "cpu_usage", score: float = 0.9, at: int = 0) -> Blame:
    return Blame(metric=metric, value=93, low=41, high=58, score=score, time_nanos=BEGIN + at)


def finding(server: str = "web-01", at: int = 0, *, alarming: bool = True, metrics=("cpu_usage",)) -> Finding:
    blames = tuple(blame(metric, 0.9 - place / 100, at) for place, metric in enumerate(metrics))
    return Finding(
        server=server,
        time_nanos=BEGIN + at,
        score=0.7,
        confidence=0.5,
        alarming=alarming,
        blames=blames,
    )


def test_a_run_begins_with_an_alarm_goes_on_and_ends_when_it_has_been_quiet():
    register = Register()
    register.see(finding(alarming=False))
    assert list(register) == []

    register.see(finding(at=10 * SECOND))
    register.see(finding(at=70 * SECOND, alarming=False))
    register.pass_time(BEGIN + 5 * MINUTE)
    (run,) = register
    assert (run.start_nanos, run.last_nanos, run.end_nanos) == (BEGIN + 10 * SECOND, BEGIN + 70 * SECOND, 0)

    register.pass_time(BEGIN + 70 * SECOND + 5 * MINUTE)
    (run,) = register
    assert run.end_nanos == BEGIN + 70 * SECOND


def test_the_longer_and_the_more_metrics_the_graver():
    register = Register()
    register.see(finding())
    assert next(iter(register)).severity is Severity.INFO

    register.see(finding(at=SECOND, metrics=("cpu_usage", "memory_usage", "disk_usage")))
    assert next(iter(register)).severity is Severity.WARNING

    for at in range(0, 15 * 60, 60):
        register.see(finding(at=at * SECOND, metrics=[f"m{each}" for each in range(6)]))
    register.see(finding(at=15 * MINUTE))
    assert next(iter(register)).severity is Severity.CRITICAL


def test_of_each_metric_the_most_unusual_moment_is_kept():
    register = Register()
    register.see(finding(metrics=("cpu_usage", "memory_usage")))
    register.see(finding(at=SECOND, metrics=("memory_usage",)))
    (run,) = register
    assert [(each.metric, each.score) for each in run.blames] == [("cpu_usage", 0.9), ("memory_usage", 0.9)]


def test_what_begins_near_each_other_in_the_same_metric_and_environment_is_one_incident():
    register = Register()
    register.see(finding("db-01"))
    register.see(finding("web-01", 4 * MINUTE))
    register.see(finding("web-02", 8 * MINUTE))
    register.see(finding("web-03", 8 * MINUTE), "staging")
    register.see(finding("web-04", 8 * MINUTE, metrics=("disk_usage",)))
    register.see(finding("web-05", 11 * MINUTE))

    incidents = {each.server: each.incident_id for each in register}
    ids = {each.server: each.id for each in register}
    assert incidents == {
        "db-01": ids["db-01"],
        "web-01": ids["db-01"],
        "web-02": ids["db-01"],
        "web-03": ids["web-03"],
        "web-04": ids["web-04"],
        "web-05": ids["db-01"],  # it is near web-01, which is near db-01
    }
    assert {each.server for each in register if each.severity is Severity.CRITICAL} == {
        "db-01",
        "web-01",
        "web-02",
        "web-05",
    }


def test_a_watch_is_told_of_beginnings_changes_and_ends_alone():
    register = Register()
    register.see(finding())
    register.see(finding(at=SECOND))
    seen = register.change
    assert len(register.changed_since(0)) == 1

    register.see(finding(at=2 * SECOND))
    assert register.changed_since(seen) == []
    register.see(finding(at=3 * SECOND, metrics=("cpu_usage", "memory_usage", "disk_usage")))
    assert [each.severity for each in register.changed_since(seen)] == [Severity.WARNING]
    seen = register.change
    register.pass_time(BEGIN + 10 * MINUTE)
    assert [each.end_nanos for each in register.changed_since(seen)] == [BEGIN + 3 * SECOND]


@pytest.mark.parametrize("token", ["nonsense", "00000000-1", "{epoch}-99", "{epoch}-x", "{epoch}--1", "{epoch}-0"])
def test_a_token_of_another_life_or_of_what_was_let_go_is_refused(token: str):
    register = Register(kept=1)
    for each in range(3):
        register.see(finding(f"s{each}", each * 20 * MINUTE))
        register.pass_time(BEGIN + (each * 20 + 10) * MINUTE)

    with pytest.raises(OutOfRangeError) as refused:
        register.resume(token.format(epoch=register.epoch))

    assert refused.value.reason == Reason.HISTORY_COMPACTED
    assert register.resume(register.token_of(register.change)) == register.change
    assert register.resume("") is None


def test_what_is_stored_comes_back_in_a_new_life():
    register = Register()
    register.see(finding("a", metrics=("cpu_usage", "memory_usage")))
    register.pass_time(BEGIN + 10 * MINUTE)
    register.see(finding("b", 20 * MINUTE))

    again = Register.restored(register.document())

    assert [(each.id, each.blames, each.end_nanos) for each in again] == [
        (each.id, each.blames, each.end_nanos) for each in register
    ]
    assert again.epoch != register.epoch
    again.see(finding("c", 21 * MINUTE))
    assert len({each.id for each in again}) == 3


def test_an_explanation_has_the_figures_of_what_was_seen_and_expected():
    register = Register()
    register.see(finding(metrics=("cpu_usage", "memory_usage", "disk_usage", "swap")))
    register.see(finding(at=12 * MINUTE))
    (run,) = register
    assert explain(run) == (
        "cpu_usage 93 against 41–58 expected, for 12 min; "
        "also memory_usage 93 against 41–58 expected, disk_usage 93 against 41–58 expected and 1 more"
    )


def test_no_more_go_into_a_message_than_fit():
    register = Register()
    long = [f"m{each}{{path={'x' * 500}}}" for each in range(10)]
    for each in range(600):
        register.see(finding(f"s{each:03}", metrics=long))
    found = list(register)

    some = fitting(found)

    assert 100 < len(some) < 600
    assert sum(wire.anomaly(each).ByteSize() for each in some) < 4 << 20
    assert len(fitting(found[:1])) == 1
    assert len(gravest(found, 50)) == 50


async def test_a_watch_tells_what_goes_on_then_what_changes_and_that_it_is_there():
    register, bell = Register(), Bell()
    register.see(finding("a"))
    register.see(finding("b", metrics=("disk_usage",)))
    told = watch(register, bell, chooser("server = a"), fitting, token="", progress=0.01)

    token, found = await anext(told)
    assert [each.server for each in found] == ["a"]
    assert (await anext(told))[1] == ()
    assert (await anext(told))[1] == ()
    register.pass_time(BEGIN + 10 * MINUTE)
    bell.ring()
    while not (found := (await anext(told))[1]):
        pass
    assert [(each.server, each.end_nanos) for each in found] == [("a", BEGIN)]
    await told.aclose()

    again = watch(register, bell, chooser(""), fitting, token=token, progress=0.01)
    _, found = await anext(again)
    assert {each.server for each in found} == {"a", "b"}
    await again.aclose()


def test_pages_are_newest_first_of_what_is_meant_and_seen():
    register = Register()
    for each in range(5):
        register.see(finding(f"s{each}", each * 20 * MINUTE))
        register.pass_time(BEGIN + (each * 20 + 10 * (each < 4)) * MINUTE)
    query = Query(page_size=2, page_token="", filter="", start=0, end=0, active_only=False)

    first = list_page(register, query, lambda server: server != "s3")
    second = list_page(register, replace(query, page_token=first.next_page_token), lambda server: server != "s3")

    assert [each.server for each in (*first.found, *second.found)] == ["s4", "s2", "s1", "s0"]
    assert (first.total_count, second.next_page_token) == (4, "")
    assert [each.server for each in list_page(register, replace(query, active_only=True), everything).found] == ["s4"]
    since = replace(query, start=BEGIN + 30 * MINUTE, end=BEGIN + 50 * MINUTE)
    assert [each.server for each in list_page(register, since, everything).found] == ["s2"]
    with pytest.raises(InvalidArgumentError):
        list_page(register, replace(query, filter="x = 1", page_token=first.next_page_token), everything)


def test_what_goes_on_is_measured_and_what_is_over_no_longer(monkeypatch):
    reader, register = InMemoryMetricReader(), Register()
    meter = MeterProvider(metric_readers=[reader]).get_meter("test")
    monkeypatch.setattr(measure.telemetry, "meter", meter)
    measure.observe_anomalies(lambda: register)
    register.see(finding("web-01"))
    register.see(finding("web-02"))
    assert measured(reader) == {("web-01", "info"): 0.7, ("web-02", "info"): 0.7}
    register.pass_time(BEGIN + 3 * MINUTE)
    register.see(finding("web-02", at=3 * MINUTE))
    register.pass_time(BEGIN + 7 * MINUTE)
    assert {server for server, _ in measured(reader)} == {"web-02"}


def measured(reader):
    data = reader.get_metrics_data()
    metrics = [each for resource in data.resource_metrics for scope in resource.scope_metrics for each in scope.metrics]
    (metric,) = metrics
    assert (metric.name, metric.unit) == ("openmanager.anomaly.score", "")
    return {
        (point.attributes["openmanager.server.id"], point.attributes["openmanager.severity"]): point.value
        for point in metric.data.data_points
    }

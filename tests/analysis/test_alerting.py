"""What rules find: hysteresis, durations, gaps, missing data, and what becomes of alerts when rules change."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from analysis.alerting import BEGIN, SECOND, Judge, rule, stored
from openmanager_analysis.alerting import engine
from openmanager_analysis.alerting.alert import State
from openmanager_analysis.alerting.engine import Look
from openmanager_analysis.alerting.listening import Listening
from openmanager_analysis.alerting.rule import Absent, Exhausting, Rule, Threshold, Unusual, check
from openmanager_analysis.anomaly import Anomaly, Blame, Severity
from openmanager_analysis.history import Selection

from openmanager.errors import InvalidArgumentError
from openmanager.frame import Frame, ServerInfo


def test_it_fires_above_the_bound_and_is_over_at_the_clear_value_only():
    judge = Judge(rule(above=90, clear=80))
    assert judge.see(0, 90) == []
    assert judge.see(10, 91) == [("web-1", "FIRING")]
    assert judge.see(20, 85) == [("web-1", "FIRING")]
    assert judge.see(30, 80) == []
    assert judge.see(40, 85) == []
    (over,) = judge.over
    assert (over.start_nanos, over.fire_nanos, over.end_nanos) == tuple(BEGIN + at * SECOND for at in (10, 10, 30))


def test_below_is_above_upside_down():
    low = Rule(
        id="low", name="low", condition=Threshold(bound=5, is_above=False, clear=10),
        selection=Selection(metrics=("cpu",)),
    )  # fmt: skip
    judge = Judge(low)
    assert judge.see(0, 5) == []
    assert judge.see(1, 4) == [("web-1", "FIRING")]
    assert judge.see(2, 9) == [("web-1", "FIRING")]
    assert judge.see(3, 10) == []


def test_it_is_pending_until_the_condition_has_held_for_long_enough_without_a_break():
    judge = Judge(rule(hold=60))
    assert judge.see(0, 95) == [("web-1", "PENDING")]
    assert judge.see(50, 95) == [("web-1", "PENDING")]
    assert judge.see(55, 50) == []
    assert judge.see(60, 95) == [("web-1", "PENDING")]
    assert judge.see(119, 95) == [("web-1", "PENDING")]
    assert judge.see(120, 95) == [("web-1", "FIRING")]
    assert judge.one().start_nanos == BEGIN + 60 * SECOND
    assert judge.one().fire_nanos == BEGIN + 120 * SECOND
    assert judge.over == []  # one that was pending and never fired is nobody's news


def test_it_is_over_when_it_was_well_for_long_enough_without_a_break():
    judge = Judge(rule(clear_for=60))
    judge.see(0, 95)
    assert judge.see(10, 50) == [("web-1", "FIRING")]
    assert judge.see(60, 95) == [("web-1", "FIRING")]
    assert judge.see(70, 50) == [("web-1", "FIRING")]
    assert judge.see(129, 50) == [("web-1", "FIRING")]
    assert judge.see(130, 50) == []


def test_what_nobody_saw_has_not_held():
    judge = Judge(rule(hold=600, stale_nanos=300 * SECOND))
    judge.see(0, 95)
    assert judge.see(700, 95) == [("web-1", "PENDING")]
    assert judge.one().start_nanos == BEGIN + 700 * SECOND


def test_a_metric_that_comes_seldom_holds_from_one_sample_to_the_next():
    judge = Judge(rule(hold=1800))
    for at in (0, 600):
        judge.see(at, 95)
        judge.alerting.pass_time(BEGIN + (at + 301) * SECOND)
        assert judge.states() == []  # nobody knows yet how often it comes
    for at in (1200, 1800, 2400):
        assert judge.see(at, 95) == [("web-1", "PENDING")]
        judge.alerting.pass_time(BEGIN + (at + 599) * SECOND)
        assert judge.states() == [("web-1", "PENDING")]
    assert judge.see(3000, 95) == [("web-1", "FIRING")]
    assert judge.one().start_nanos == BEGIN + 1200 * SECOND
    judge.alerting.pass_time(BEGIN + 3800 * SECOND)
    assert not judge.one().stale
    judge.alerting.pass_time(BEGIN + 4000 * SECOND)
    assert judge.one().stale


def test_one_sample_too_few_of_a_metric_that_comes_seldom_is_a_gap():
    judge = Judge(rule(hold=1800))
    for at in (0, 600, 1200, 1800):
        judge.see(at, 95)
    assert judge.one().start_nanos == BEGIN + 1200 * SECOND
    assert judge.see(3000, 95) == [("web-1", "PENDING")]
    assert judge.one().start_nanos == BEGIN + 3000 * SECOND


def test_one_gap_is_not_taken_for_a_habit():
    judge = Judge(rule())
    for at in (0, 10, 20, 86_400):
        judge.see(at, 95)
    judge.alerting.pass_time(BEGIN + 86_400 * SECOND + 301 * SECOND)
    assert judge.one().stale


# ── counters ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_of_a_counter_its_growth_is_judged_from_the_second_sample_on():
    judge = Judge(rule(above=5, per_second=True))
    assert judge.see(0, 1_000_000) == []
    assert judge.see(10, 1_000_050) == []
    assert judge.see(20, 1_000_110) == [("web-1", "FIRING")]
    assert judge.one().annotations["summary"] == "web-1: cpu grows by 6/s, above 5/s for 0 s"
    assert judge.see(40, 1_000_210) == []
    assert judge.over[0].value == 5


def test_a_counter_that_began_anew_grew_from_nothing():
    judge = Judge(rule(above=5, per_second=True))
    judge.see(0, 1_000_000)
    assert judge.see(10, 40) == []
    assert judge.see(20, 10) == []  # again, at 1 a second
    assert judge.see(30, 100) == [("web-1", "FIRING")]
    assert judge.one().value == 9


def test_what_comes_late_twice_or_not_at_all_grows_nothing():
    judge = Judge(rule(above=5, per_second=True))
    judge.see(0, 0)
    judge.see(10, 60)
    assert judge.one().value == 6
    for at, value in ((5, 1000), (10, 1000), (15, float("nan"))):
        assert judge.see(at, value) == [("web-1", "FIRING")]
    assert judge.one().value == 6
    assert judge.see(20, 70) == []


def test_a_counter_without_growth_is_below():
    still = Rule(
        id="still", name="still", condition=Threshold(bound=1, is_above=False, clear=1, per_second=True),
        selection=Selection(metrics=("cpu",)),
    )  # fmt: skip
    judge = Judge(still)
    assert judge.see(0, 500) == []
    assert judge.see(10, 500) == [("web-1", "FIRING")]


def test_the_growth_of_what_fires_goes_on_after_a_restart():
    rules = [rule(above=5, per_second=True)]
    judge = Judge(*rules)
    judge.see(0, 0)
    judge.see(10, 60)
    again = Judge(*rules)
    again.alerting.restore(stored(judge.alerting), rules, [])
    again.position = judge.position
    assert again.see(20, 130) == [("web-1", "FIRING")]
    assert again.one().value == 7


# ── who sends nothing ──────────────────────────────────────────────────────────────────────────────────────────────


def absent(seconds: int = 60, **more) -> Rule:
    return check(Rule(**{"id": "gone", "name": "gone", "condition": Absent(hold_nanos=seconds * SECOND)} | more))


def heard(judge: Judge, begin: int, end: int, *servers: str, step: int = 10) -> list[tuple[str, str]]:
    """Let servers send something every few seconds of the log."""
    for at in range(begin, end, step):
        for server in servers:
            judge.see(at, 50, server=server)
    return judge.states()


def test_a_server_that_sends_nothing_while_others_do_fires_until_it_sends_again():
    judge = Judge(absent())
    assert heard(judge, 0, 60, "web-1", "web-2") == []
    assert heard(judge, 60, 120, "web-1") == []
    assert heard(judge, 120, 160, "web-1") == [("web-2", "FIRING")]
    alert = judge.alerting.now(next(iter(judge.alerting.register.open.values())))
    assert alert.annotations["summary"] == "web-2 has sent nothing for 2 min"
    judge.alerting.pass_time(BEGIN + 10_000 * SECOND)
    assert not alert.stale
    judge.see(160, 50, server="web-2")
    assert heard(judge, 161, 175, "web-1") == []
    (over,) = judge.over
    assert over.annotations["summary"] == "web-2 has sent nothing for 2 min"


def test_a_metric_that_is_not_sent_any_more_fires_while_its_server_sends_others():
    judge = Judge(absent(selection=Selection(metrics=("cpu",))))
    judge.see(0, 1, metric="cpu")
    for at in range(0, 100, 10):
        judge.see(at, 1, metric="other")
    (alert,) = judge.alerting.register.open.values()
    assert (alert.labels["metric"], alert.state) == ("cpu", State.FIRING)


def test_nobody_is_absent_while_the_log_is_away_or_its_clock_jumps():
    judge = Judge(absent())
    heard(judge, 0, 60, "web-1", "web-2")
    assert judge.see(3_600, 50, server="web-1") == []  # an hour in which nobody could write
    assert heard(judge, 3_610, 3_640, "web-1", "web-2") == []
    assert judge.see(60, 50, server="web-1") == []  # an hour back
    assert heard(judge, 70, 150, "web-1") == [("web-2", "FIRING")]


def test_all_are_absent_when_nothing_comes_though_the_log_can_be_read():
    judge = Judge(absent())
    heard(judge, 0, 10, "web-1")
    for at in range(1, 60):
        judge.alerting.wait(SECOND, BEGIN + at * SECOND)
    assert judge.states() == []
    for at in range(60, 63):
        judge.alerting.wait(SECOND, BEGIN + at * SECOND)
    assert judge.states() == [("web-1", "FIRING")]


@pytest.mark.parametrize("step", [0.01, 0.5, 3.0, 30.0])
def test_time_is_counted_once_whoever_counts_it(step: float):
    listening = Listening()
    sent = 0.0
    for second in range(1, 601):
        while sent <= second:
            listening.hear(BEGIN + round(sent * SECOND))
            sent += step
        listening.wait(SECOND)
    assert listening.nanos / SECOND == pytest.approx(600, abs=max(2 * step, 2))


def test_who_was_heard_is_known_after_a_restart_and_when_other_rules_change():
    rules = [absent()]
    judge = Judge(*rules)
    heard(judge, 0, 60, "web-1", "web-2")
    judge.alerting.adopt([*rules, rule()], BEGIN)
    again = Judge(*rules)
    again.alerting.restore(stored(judge.alerting), rules, [])
    again.position = judge.position
    assert heard(again, 60, 150, "web-1") == [("web-2", "FIRING")]
    third = Judge(*rules)
    third.alerting.restore(stored(again.alerting), rules, [])
    assert third.alerting.register.open == again.alerting.register.open


def test_who_a_rule_is_no_longer_about_is_not_missed():
    judge = Judge(absent())
    heard(judge, 0, 60, "web-1", "web-2")
    judge.alerting.adopt([absent(selection=Selection(servers=("web-1",)))], BEGIN)
    assert heard(judge, 60, 300, "web-1") == []


def test_after_seven_days_nobody_waits_any_more():
    judge = Judge(absent())
    heard(judge, 0, 10, "web-1")
    for at in range(1, 8 * 86_400 // 15):
        judge.alerting.wait(15 * SECOND, BEGIN + at * 15 * SECOND)
    assert judge.states() == []
    assert [each.end_reason for each in judge.over] == ["NO_DATA"]


@pytest.mark.parametrize("seconds", [0, 29, 86_401])
def test_a_time_that_nobody_can_be_absent_for_is_refused(seconds: int):
    with pytest.raises(InvalidArgumentError, match="must be 30 s to 1 day"):
        absent(seconds)


# ── all else ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_clear_value_is_no_break_of_a_gap_either():
    judge = Judge(rule(clear_for=600, stale_nanos=300 * SECOND))
    judge.see(0, 95)
    judge.see(10, 50)
    assert judge.see(700, 50) == [("web-1", "FIRING")]
    judge.see(1000, 50)
    assert judge.see(1300, 50) == []


def test_missing_data_makes_an_alert_stale_and_resolves_nothing():
    judge = Judge(rule())
    judge.see(0, 95)
    judge.alerting.pass_time(BEGIN + 299 * SECOND)
    assert not judge.one().stale
    judge.alerting.pass_time(BEGIN + 301 * SECOND)
    assert (judge.one().stale, judge.states()) == (True, [("web-1", "FIRING")])
    judge.see(310, 95)
    judge.alerting.pass_time(BEGIN + 311 * SECOND)
    assert not judge.one().stale


def test_after_seven_days_without_data_it_is_over_and_says_why():
    judge = Judge(rule())
    judge.see(0, 95)
    judge.alerting.pass_time(BEGIN + 8 * 86_400 * SECOND)
    assert [each.end_reason for each in judge.over] == ["NO_DATA"]


def test_a_pending_alert_without_data_is_none():
    judge = Judge(rule(hold=600))
    judge.see(0, 95)
    judge.alerting.pass_time(BEGIN + 301 * SECOND)
    assert judge.states() == []
    assert judge.over == []


def test_samples_that_come_late_twice_or_not_at_all_change_nothing():
    judge = Judge(rule())
    judge.see(100, 95)
    assert judge.see(90, 10) == [("web-1", "FIRING")]
    assert judge.see(100, 10) == [("web-1", "FIRING")]
    assert judge.see(110, float("nan")) == [("web-1", "FIRING")]
    assert judge.one().sample_nanos == BEGIN + 100 * SECOND


def test_imported_history_and_an_imported_future_are_nobodys_present():
    judge = Judge(rule())
    assert judge.see(0, 95, heard=3600) == []
    assert judge.see(7200, 95, heard=3601) == []
    assert judge.see(3602, 95) == [("web-1", "FIRING")]


@pytest.mark.parametrize("hold", [0, 30])
def test_a_clock_that_was_ahead_and_is_put_back_hides_nothing(hold):
    day = 86_400
    judge = Judge(rule(hold=hold))
    judge.see(day, 10)
    judge.see(day + 5, 95, server="web-2")
    assert judge.see(10, 95)[0] == ("web-1", "PENDING" if hold else "FIRING")
    assert judge.see(40, 95)[0] == ("web-1", "FIRING")
    judge.see(41, 95, server="web-2")
    assert judge.see(75, 96, server="web-2") == [("web-1", "FIRING"), ("web-2", "FIRING")]
    judge.see(80, 10)
    assert judge.see(80, 10, server="web-2") == []
    assert [each.value for each in judge.over] == [10, 10]


def test_each_series_is_judged_by_itself():
    judge = Judge(rule(metrics=("cpu*",)))
    judge.see(0, 95)
    judge.see(1, 95, server="web-2")
    judge.see(2, 95, server="web-2", metric="cpu{core=1}")
    judge.see(3, 95, server="web-3", metric="memory")
    assert judge.states() == [("web-1", "FIRING"), ("web-2", "FIRING"), ("web-2", "FIRING")]
    assert len({each.fingerprint for each in judge.alerting.register.open.values()}) == 3


def test_a_selector_chooses_servers_by_what_is_known_of_them_as_soon_as_it_is():
    judge = Judge(rule(selection=Selection(metrics=("cpu",), server_filter="role = web AND labels.rack = r1")))
    assert judge.see(0, 95) == []
    info = ServerInfo(id="web-1", role="web", environment="production", labels={"rack": "r1"})
    assert judge.see(1, 95, infos=(info,)) == [("web-1", "FIRING")]
    labels = {"alertname": "cpu", "rule": "cpu", "severity": "warning", "server": "web-1", "metric": "cpu"}
    assert judge.one().labels == labels | {"environment": "production", "role": "web"}


def test_a_server_that_becomes_another_is_no_longer_chosen_and_one_that_does_not_needs_no_new_plan():
    judge = Judge(rule(selection=Selection(metrics=("cpu",), server_filter="role = web")))

    def is_(role: str, rack: str = "") -> tuple[ServerInfo, ...]:
        return (ServerInfo(id="web-1", role=role, labels={"rack": rack}),)

    judge.see(0, 10, infos=is_("web"))
    plan = judge.alerting._planner.plan(("web-1",), ("cpu",))
    judge.see(1, 10, infos=is_("web", "r1"))
    assert judge.alerting._planner.plan(("web-1",), ("cpu",)) is plan
    assert judge.see(2, 95, infos=is_("database")) == []
    assert judge.see(3, 95, infos=is_("web")) == [("web-1", "FIRING")]


def test_texts_are_made_of_the_figures_of_now():
    judge = Judge(
        rule(
            annotations={"text": "{name} of {server}: {metric} {value} > {limit}, {labels.team}!"}, labels={"team": "a"}
        )
    )
    judge.see(0, 95)
    judge.see(600, 97.5)
    assert judge.one().annotations == {
        "text": "cpu of web-1: cpu 97.5 > 90, a!",
        "summary": "web-1: cpu is 97.5, above 90 for 10 min",
    }


def test_a_text_does_not_grow_with_its_placeholders():
    judge = Judge(rule(labels={"a": "x" * 255}, annotations={"text": "{labels.a}" * 102}))
    judge.see(0, 95)
    assert judge.one().annotations["text"] == "x" * 1024


def test_the_same_trouble_has_the_same_fingerprint_another_time_and_another_id():
    judge = Judge(rule())
    judge.see(0, 95)
    first = judge.one()
    judge.see(10, 10)
    judge.see(20, 95)
    assert (judge.one().fingerprint == first.fingerprint, judge.one().id == first.id) == (True, False)


# ── rules that change ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (None, "RULE_DELETED"),
        ({"paused": True}, "RULE_CHANGED"),
        ({"severity": Severity.CRITICAL}, "RULE_CHANGED"),
        ({"labels": {"team": "b"}}, "RULE_CHANGED"),
        ({"selection": Selection(metrics=("memory",))}, "RULE_CHANGED"),
    ],
)
def test_alerts_of_a_rule_that_is_another_are_over_and_say_why(change, reason):
    judge = Judge(rule())
    judge.see(0, 95)
    judge.alerting.adopt([replace(rule(), **change)] if change else [], BEGIN + SECOND)
    assert (judge.states(), [each.end_reason for each in judge.over]) == ([], [reason])


def test_alerts_go_on_when_only_bounds_change_and_are_judged_by_the_new_ones():
    judge = Judge(rule(above=90))
    judge.see(0, 95)
    began = judge.one()
    judge.alerting.adopt([rule(above=96, clear=94)], BEGIN + SECOND)
    assert (judge.one().id, judge.states()) == (began.id, [("web-1", "FIRING")])
    assert judge.see(10, 95) == [("web-1", "FIRING")]
    assert judge.see(20, 94) == []


# ── limits ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_there_are_so_many_alerts_at_most_and_the_others_come_when_there_is_room(monkeypatch):
    monkeypatch.setattr(engine, "MAX_ALIVE", 1)
    monkeypatch.setattr(engine, "RESERVED", 0)
    judge = Judge(rule())
    judge.see(0, 95)
    judge.see(1, 95, server="web-2")
    assert (judge.states(), judge.alerting.left_out_count) == ([("web-1", "FIRING")], 1)
    judge.see(2, 10)
    assert judge.see(3, 95, server="web-2") == [("web-2", "FIRING")]


def test_a_rule_that_is_about_everything_leaves_room_for_what_is_critical(monkeypatch):
    monkeypatch.setattr(engine, "MAX_ALIVE", 2)
    monkeypatch.setattr(engine, "RESERVED", 1)
    judge = Judge(rule(metrics=("*",)), rule("grave", metrics=("disk",), severity=Severity.CRITICAL))
    judge.see(0, 95)
    assert judge.see(1, 95, server="web-2") == [("web-1", "FIRING")]
    assert judge.see(2, 95, server="web-3", metric="disk") == [("web-1", "FIRING"), ("web-3", "FIRING")]
    assert judge.alerting.left_out_count == 2


def test_series_that_send_nothing_any_more_make_room_for_others_and_alerts_go_on(monkeypatch):
    monkeypatch.setattr(engine, "MAX_SLOTS", 2)
    day = 86_400
    judge = Judge(rule())
    judge.see(0, 10, server="gone")
    judge.see(0, 95)
    judge.see(day / 2, 95, server="new")
    judge.alerting.pass_time(BEGIN + day // 2 * SECOND)
    judge.see(day + 1, 95, server="new")
    assert judge.states() == [("web-1", "FIRING")]
    judge.alerting.pass_time(BEGIN + (day + 1) * SECOND)
    assert judge.see(day + 2, 95, server="new") == [("new", "FIRING"), ("web-1", "FIRING")]
    assert judge.see(day + 3, 10) == [("new", "FIRING")]


def test_those_that_never_fired_are_let_go_before_those_that_did():
    judge = Judge(rule(hold=5), rule("at-once"))
    judge.alerting.register.kept = 2
    judge.see(0, 95)
    judge.see(1, 10)
    for at in range(2, 10, 2):
        judge.see(at, 95)
        judge.see(at + 1, 10)
    kept = list(judge.alerting.register.over)
    assert [bool(each.fire_nanos) for each in kept] == [True, True]


def test_who_watches_is_told_of_all_that_end_at_once():
    servers = tuple(f"s{n}" for n in range(3_000))
    judge = Judge(rule())

    def tick(at: int, value: float) -> None:
        values = np.full((1, len(servers), 1), value)
        times = np.array([BEGIN + at * SECOND])
        judge.alerting.take(Frame(times=times, servers=servers, metrics=("cpu",), values=values), times[0], at + 1)

    tick(0, 95)
    register = judge.alerting.register
    seen = register.change
    tick(1, 10)
    assert {each.server for each in register.changed_since(seen)} == {*servers}
    assert (len(register.over), len(list(judge.alerting.alerts()))) == (1_000, 1_000)
    assert judge.alerting.document()["forgotten"] == register.over[0].change - 1


def test_a_tick_is_judged_as_a_whole():
    servers = tuple(f"s{n}" for n in range(50))
    values = np.arange(50.0)[None, :, None]
    judge = Judge(rule(above=44.5))
    judge.alerting.take(Frame(times=np.array([BEGIN]), servers=servers, metrics=("cpu",), values=values), BEGIN, 1)
    assert [server for server, _ in judge.states()] == ["s45", "s46", "s47", "s48", "s49"]


# ── anomalies, exhaustion ──────────────────────────────────────────────────────────────────────────────────────────


def anomaly(**more) -> Anomaly:
    blame = Blame(metric="cpu", value=9, low=1, high=2, score=0.9, time_nanos=BEGIN)
    fields = {
        "id": "a", "server": "web-1", "environment": "", "start_nanos": BEGIN, "last_nanos": BEGIN, "end_nanos": 0,
        "score": 0.9, "confidence": 0.9, "blames": (blame,) * 3, "incident_id": "a",
    }  # fmt: skip
    return Anomaly(**fields | more)


def odd(**more) -> Judge:
    return Judge(Rule(id="odd", name="odd", condition=Unusual(**more)))


def test_an_anomaly_that_is_grave_enough_is_an_alert_until_it_is_over():
    judge = odd(severity=Severity.WARNING)
    judge.see(0, 1)
    judge.alerting.see_anomalies([anomaly(blames=anomaly().blames[:1])], BEGIN)
    assert judge.states() == []
    judge.alerting.see_anomalies([anomaly()], BEGIN + SECOND)
    assert judge.states() == [("web-1", "FIRING")]
    assert "cpu 9 against 1–2 expected" in judge.one().annotations["summary"]
    judge.see(2, 1)
    judge.alerting.see_anomalies([anomaly(end_nanos=BEGIN + SECOND)], BEGIN + 2 * SECOND)
    assert judge.states() == []


def test_an_anomaly_that_ends_because_nothing_is_sent_any_more_is_stale_and_not_over():
    judge = odd()
    judge.see(0, 1)
    judge.alerting.see_anomalies([anomaly()], BEGIN + SECOND)
    judge.alerting.see_anomalies([], BEGIN + 400 * SECOND)
    judge.alerting.pass_time(BEGIN + 400 * SECOND)
    assert (judge.states(), judge.one().stale) == ([("web-1", "FIRING")], True)
    judge.see(410, 1)
    judge.alerting.see_anomalies([], BEGIN + 410 * SECOND)
    assert judge.states() == []


def test_anomalies_are_judged_on_after_a_clock_that_was_ahead_was_put_back():
    judge = odd()
    judge.see(0, 1)
    judge.alerting.see_anomalies([anomaly()], BEGIN + 86_400 * SECOND)
    judge.alerting.step_back(BEGIN + 10 * SECOND)
    judge.see(10, 1)
    judge.alerting.see_anomalies([], BEGIN + 10 * SECOND)
    assert judge.states() == []


def test_anomalies_that_the_log_gives_again_say_nothing_of_what_is_known_already():
    judge = odd()
    judge.see(0, 1)
    judge.alerting.see_anomalies([anomaly()], BEGIN + 10 * SECOND)
    judge.alerting.see_anomalies([], BEGIN + 5 * SECOND)
    assert judge.states() == [("web-1", "FIRING")]


def test_what_is_expected_to_be_full_is_an_alert_until_that_is_improbable():
    exhausting = Rule(
        id="disk", name="disk", condition=Exhausting(limit=90, within_nanos=86_400 * SECOND, probability=0.8, clear=0.6),
        selection=Selection(metrics=("disk",)),
    )  # fmt: skip
    judge = Judge(exhausting)

    def expected(at: int, chance: float) -> list[tuple[str, str]]:
        look = Look(
            subject=("disk", "web-1", "disk"), over=chance >= 0.8, well=chance < 0.6, value=chance,
            detail="disk 80: reaches 90 in 5 h", heard=BEGIN + at * SECOND,
        )  # fmt: skip
        judge.alerting.see(exhausting, [look], BEGIN + at * SECOND)
        return judge.states()

    assert expected(0, 0.79) == []
    assert expected(900, 0.8) == [("web-1", "FIRING")]
    assert judge.one().annotations["summary"] == "web-1: disk 80: reaches 90 in 5 h"
    judge.alerting.pass_time(BEGIN + 900 * SECOND + 2 * 900 * SECOND)
    assert not judge.one().stale  # it comes so seldom
    assert expected(1800, 0.7) == [("web-1", "FIRING")]
    assert expected(2700, 0.59) == []


# ── as it was ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("crash", range(9))
def test_what_was_stored_goes_on_as_if_nothing_had_been_wherever_it_was_cut(crash):
    samples = [(0, 95), (30, 95), (60, 95), (90, 85), (100, 70), (110, 95), (130, 70), (160, 70), (200, 95)]
    rules = [rule(hold=60, clear=80, clear_for=30)]
    whole = Judge(*rules)
    for at, value in samples:
        whole.see(at, value)
    cut = Judge(*rules)
    for at, value in samples[:crash]:
        cut.see(at, value)
    again = Judge(*rules)
    again.alerting.restore(stored(cut.alerting), rules, [])
    for at, value in samples:  # the log gives all of it again
        again.see(at, value)
    assert [*again.alerting.register] == [*whole.alerting.register]
    assert [each.id for each in (*cut.over, *again.over)] == [each.id for each in whole.over]
    assert again.alerting.register.change == whole.alerting.register.change


def test_a_file_of_the_version_before_is_read():
    judge = Judge(rule(hold=60))
    judge.see(0, 95)
    known = stored(judge.alerting)
    columns, alerts = known.pop("slots"), known.pop("open")
    before = {
        name: column[0]
        for name, column in columns.items()
        if name not in {"pace", "interval", "last", "last_nanos", "beat"}
    }
    again = Judge()
    again.alerting.restore({**known, "alerts": [{"alert": alerts[0], "slot": before}]}, [rule(hold=60)], [])
    again.position = judge.position
    assert again.see(60, 95) == [("web-1", "FIRING")]


def test_the_states_have_numbers_that_the_contract_has_too():
    from openmanager.api.analysis.v1 import alert_pb2

    assert {f"ALERT_STATE_{each.name}": each.value for each in State} == {
        name: value for name, value in alert_pb2.AlertState.items() if value
    }

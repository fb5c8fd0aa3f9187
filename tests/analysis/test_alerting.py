"""What rules find: hysteresis, durations, gaps, missing data, and what becomes of alerts when rules change."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from analysis.alerting import BEGIN, SECOND, Judge, rule
from openmanager_analysis.alerting import engine
from openmanager_analysis.alerting.alert import State
from openmanager_analysis.alerting.engine import Look
from openmanager_analysis.alerting.rule import Exhausting, Rule, Threshold, Unusual
from openmanager_analysis.anomaly import Anomaly, Blame, Severity
from openmanager_analysis.history import Selection

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
    stored = cut.alerting.document()
    again = Judge(*rules)
    again.alerting.restore(stored, rules, [])
    for at, value in samples:  # the log gives all of it again
        again.see(at, value)
    assert [*again.alerting.register] == [*whole.alerting.register]
    assert [each.id for each in (*cut.over, *again.over)] == [each.id for each in whole.over]
    assert again.alerting.register.change == whole.alerting.register.change


def test_the_states_have_numbers_that_the_contract_has_too():
    from openmanager.api.analysis.v1 import alert_pb2

    assert {f"ALERT_STATE_{each.name}": each.value for each in State} == {
        name: value for name, value in alert_pb2.AlertState.items() if value
    }

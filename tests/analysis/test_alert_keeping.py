"""What receivers are told, how often, in what words; silences and inhibition; and what a restart makes of it all."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest
from analysis.alerting import BEGIN, SECOND, Desk, Hook, StillClock, frame, rule
from openmanager_analysis.alerting import engine, matcher, outbox
from openmanager_analysis.alerting.payload import NEVER
from openmanager_analysis.alerting.rule import OPEN_LABELS, Inhibitor, check, check_acyclic
from openmanager_analysis.alerting.silence import Silence
from openmanager_analysis.anomaly import Severity

from openmanager import durable
from openmanager.errors import InvalidArgumentError, OutOfRangeError

FIRING, RESOLVED = "firing", "resolved"


@pytest.fixture
def hook() -> Hook:
    return Hook()


@pytest.fixture
def desk(tmp_path: Path, hook: Hook) -> Desk:
    found = Desk(tmp_path, hook, StillClock())
    found.adopt(rule())
    return found


async def test_a_group_is_told_of_once_when_it_has_waited_for_more_of_it_and_again_when_it_changes(
    desk: Desk, hook: Hook
):
    await desk.see(95)
    await desk.look(2)
    await desk.see(95, server="web-2")
    assert hook.told == []
    await desk.look(4)
    assert hook.statuses == [(FIRING, [("web-1", FIRING), ("web-2", FIRING)])]
    await desk.look(600)
    assert len(hook.told) == 1
    await desk.see(10, server="web-2")
    await desk.look(6)
    assert hook.statuses[1:] == [(FIRING, [("web-2", RESOLVED), ("web-1", FIRING)])]
    await desk.see(10)
    await desk.look(6)
    assert len(hook.told) == 2  # the interval between messages of a group
    await desk.look(60)
    assert hook.statuses[2:] == [(RESOLVED, [("web-1", RESOLVED)])]
    await desk.look(100_000)
    assert len(hook.told) == 3


async def test_what_still_fires_is_told_again_after_the_interval_for_that(desk: Desk, hook: Hook):
    await desk.see(95)
    await desk.look(5)
    for _ in range(59):
        await desk.look(60)
        await desk.see(95)
    assert len(hook.told) == 1
    await desk.look(61)
    assert hook.statuses == [(FIRING, [("web-1", FIRING)])] * 2


async def test_a_message_is_as_alertmanager_has_it(tmp_path: Path, hook: Hook):
    desk = Desk(tmp_path, hook, StillClock())
    desk.keeper._external_url = "https://om.example"
    desk.adopt(
        rule(name="cpu", severity=Severity.CRITICAL, labels={"team": 'a"b'}, annotations={"runbook": "see {server}"})
    )
    await desk.see(95)
    await desk.look(5)
    (told,) = hook.told
    (alert,) = told["alerts"]
    assert told | {"alerts": []} == {
        "version": "4",
        "groupKey": '{}:{alertname="cpu"}',
        "truncatedAlerts": 0,
        "status": "firing",
        "receiver": "ops",
        "groupLabels": {"alertname": "cpu"},
        "commonLabels": alert["labels"],
        "commonAnnotations": alert["annotations"],
        "externalURL": "https://om.example",
        "alerts": [],
    }
    assert alert["labels"] == {
        "alertname": "cpu", "rule": "cpu", "severity": "critical", "server": "web-1", "metric": "cpu", "team": 'a"b',
    }  # fmt: skip
    assert alert["annotations"] == {"runbook": "see web-1", "summary": "web-1: cpu is 95, above 90 for 0 s"}
    assert (alert["status"], alert["startsAt"], alert["endsAt"]) == ("firing", "2026-09-21T14:13:20.001Z", NEVER)
    assert len(alert["fingerprint"]) == 16
    await desk.see(10)
    await desk.look(60)
    (over,) = hook.told[1]["alerts"]
    assert (over["startsAt"], over["endsAt"]) == (alert["startsAt"], "2026-09-21T14:13:25.002Z")
    assert over["fingerprint"] == alert["fingerprint"]


async def test_more_than_one_message_holds_comes_in_the_next_and_says_so(desk: Desk, hook: Hook, monkeypatch):
    monkeypatch.setattr(outbox, "MAX_ALERTS", 2)
    for name in ("a", "b", "c"):
        await desk.see(95, server=name)
    await desk.look(5)
    assert (len(hook.told[0]["alerts"]), hook.told[0]["truncatedAlerts"]) == (2, 1)
    await desk.look()
    assert hook.statuses[1][1][0] == ("c", FIRING)
    await desk.look(60)
    assert len(hook.told) == 2


async def test_what_began_and_ended_while_a_receiver_was_away_is_told_when_it_is_back(desk: Desk, hook: Hook):
    hook.refuses = "answers 500"
    await desk.see(95)
    await desk.look(5)
    await desk.see(10)
    (warning,) = (await desk.keeper.find()).warnings
    assert warning == "webhook ops answers 500; alerts that wait: 1"
    await desk.look(301)
    hook.refuses = ""
    await desk.look(301)
    assert hook.statuses == [(RESOLVED, [("web-1", RESOLVED)])]
    assert (await desk.keeper.find()).warnings == ()


async def test_a_receiver_that_refuses_is_asked_seldom(desk: Desk, hook: Hook, monkeypatch):
    asked = []
    post = hook.post

    async def counted(document):
        asked.append(desk.clock.nanos)
        await post(document)

    monkeypatch.setattr(hook, "post", counted)
    hook.refuses = "does not answer"
    desk.keeper._jitter.random = lambda: 0.99
    await desk.see(95)
    for _ in range(600):
        await desk.look(1)
    assert 5 <= len(asked) <= 11


async def test_too_much_for_a_receiver_is_dropped_counted_and_said(desk: Desk, hook: Hook, monkeypatch):
    monkeypatch.setattr(outbox, "MAX_OWED", 1)
    hook.refuses = "answers 500"
    for name in ("a", "b"):
        await desk.see(95, server=name)
        await desk.see(10, server=name)
        desk.clock.go(1)
    assert "webhook ops: 1 alerts that were over are lost to it" in (await desk.keeper.find()).warnings


async def test_a_group_fires_as_long_as_one_of_it_does_even_if_that_is_left_out_of_the_message(
    desk: Desk, hook: Hook, monkeypatch
):
    monkeypatch.setattr(outbox, "MAX_ALERTS", 2)
    for name in ("a", "b", "c"):
        await desk.see(95, server=name)
    await desk.look(5)
    await desk.look(60)
    for name in ("a", "b"):
        await desk.see(10, server=name)
    await desk.look(60)
    assert hook.statuses[-1] == (FIRING, [("a", RESOLVED), ("b", RESOLVED)])


async def test_a_group_that_is_larger_than_a_message_waits_between_messages_as_others_do(
    desk: Desk, hook: Hook, monkeypatch
):
    monkeypatch.setattr(outbox, "MAX_ALERTS", 2)
    for name in ("a", "b", "c"):
        await desk.see(95, server=name)
    await desk.look(5)
    await desk.look()
    count = len(hook.told)
    await desk.see(10, server="a")
    await desk.look(10)
    assert len(hook.told) == count
    await desk.look(50)
    assert len(hook.told) == count + 1


async def test_a_clock_that_was_ahead_and_is_put_back_keeps_nobody_from_being_told(desk: Desk, hook: Hook):
    desk.clock.go(86_400)
    await desk.see(95)
    await desk.look(5)
    await desk.see(95, server="web-2")  # it waits by the clock that is wrong
    desk.clock.go(-86_400)
    desk.keeper._lines[0].asked_at = 0.0
    await desk.look()
    await desk.look(60)
    assert hook.statuses[1:] == [(FIRING, [("web-2", FIRING), ("web-1", FIRING)])]


async def test_storing_and_telling_takes_half_of_the_time_at_most(desk: Desk, monkeypatch):
    rests = []

    class RestedError(Exception):
        pass

    async def look() -> None:
        desk.clock.go(0.5)

    async def rest(seconds: float) -> None:
        rests.append(seconds)
        raise RestedError

    monkeypatch.setattr(desk.keeper, "look", look)
    desk.keeper.changed()
    monkeypatch.setattr(asyncio, "sleep", rest)
    with pytest.raises(RestedError):
        await desk.keeper.run()
    assert rests == [0.5]


async def test_the_status_says_that_alerts_are_left_out_as_long_as_there_is_no_room(desk: Desk, monkeypatch):
    monkeypatch.setattr(engine, "MAX_ALIVE", 2)
    monkeypatch.setattr(engine, "RESERVED", 1)
    await desk.see(95)
    await desk.see(95, server="web-2")
    assert (await desk.keeper.find()).warnings == ("alerts are left out: 1 are alive",)
    await desk.see(10)
    assert (await desk.keeper.find()).warnings == ()


# ── silences and inhibition ────────────────────────────────────────────────────────────────────────────────────────


def silence(matcher: str, start: float, end: float, name: str = "s1") -> Silence:
    return Silence(
        id=name,
        matcher=matcher,
        comment="c",
        start_nanos=BEGIN + int(start * SECOND),
        end_nanos=BEGIN + int(end * SECOND),
    )


async def test_a_silence_keeps_what_it_chooses_from_being_told_while_it_holds(desk: Desk, hook: Hook):
    desk.alerting.adopt_silences([silence("server = web-1 AND severity = WARNING", 0, 100)])
    await desk.see(95)
    await desk.see(95, server="web-2")
    await desk.look(5)
    assert hook.statuses == [(FIRING, [("web-2", FIRING)])]
    one, two = sorted(desk.alerting.alerts(), key=lambda each: each.server)
    assert (one.silenced_by, two.silenced_by) == (("s1",), ())
    await desk.look(95)
    assert all(not each.silenced_by for each in desk.alerting.alerts())
    await desk.look(5)
    assert hook.statuses[1:] == [(FIRING, [("web-1", FIRING), ("web-2", FIRING)])]


async def test_who_was_told_that_it_fires_is_told_that_it_is_over_silence_or_not(desk: Desk, hook: Hook):
    await desk.see(95)
    await desk.look(5)
    desk.alerting.adopt_silences([silence("server = web-1", 0, 1000)])
    await desk.look(60)
    await desk.see(10)
    await desk.see(95)
    await desk.see(10)
    await desk.look(60)
    assert hook.statuses == [(FIRING, [("web-1", FIRING)]), (RESOLVED, [("web-1", RESOLVED)])]


async def test_who_may_have_been_told_that_it_fires_is_told_that_it_is_over_though_it_was_silenced_meanwhile(
    desk: Desk, hook: Hook, monkeypatch
):
    post = hook.post

    async def silenced_meanwhile(document):
        await post(document)
        monkeypatch.undo()
        desk.alerting.adopt_silences([silence("server = web-1", 0, 1000)])
        await desk.keeper.look()
        desk.clock.go(1)
        desk.keeper.take(frame(7, 10), desk.clock.nanos, 2)

    monkeypatch.setattr(hook, "post", silenced_meanwhile)
    desk.clock.go(0.001)
    desk.keeper.take(frame(0.001, 95), desk.clock.nanos, 1)
    await desk.look()
    desk.clock.go(5)
    await desk.keeper.look()
    await desk.look()
    await desk.look(60)
    await desk.look(5)
    assert hook.statuses == [(FIRING, [("web-1", FIRING)]), (RESOLVED, [("web-1", RESOLVED)])]


async def test_who_may_have_been_told_before_a_crash_is_told_that_it_is_over_silenced_or_not(desk: Desk, hook: Hook):
    await desk.see(95)
    stored = []
    post = hook.post

    async def seen(document):
        stored.append((desk.folder / "alerts.state").read_bytes())
        await post(document)

    hook.post = seen
    await desk.look(5)
    (desk.folder / "alerts.state").write_bytes(stored[0])
    again = await desk.restarted()
    again.alerting.adopt_silences([silence("server = web-1", 0, 1000)])
    await again.look()
    await again.see(10)
    await again.look(60)
    assert hook.statuses[1:] == [(RESOLVED, [("web-1", RESOLVED)])]


@pytest.mark.parametrize("source", ["", "disk"])
async def test_what_begins_and_ends_between_two_looks_is_suppressed_as_all_else(desk: Desk, hook: Hook, source: str):
    grave = rule("grave", metrics=("disk",), severity=Severity.CRITICAL)
    desk.adopt(rule(inhibitors=(Inhibitor(source="rule = grave"),)), grave)
    if source:
        desk.keeper.take(frame(0, 95, metric=source), BEGIN, 1)
    else:
        desk.alerting.adopt_silences([silence("rule = cpu", 0, 1000)])
    desk.keeper.take(frame(0, 95), BEGIN, 2)
    desk.keeper.take(frame(1, 10), BEGIN + SECOND, 3)
    await desk.look(1)
    for _ in range(3):
        await desk.look(60)
    told = {alert["labels"]["alertname"] for each in hook.told for alert in each["alerts"]}
    assert told == ({"grave"} if source else set())


async def test_a_rule_that_is_deleted_as_its_alerts_end_keeps_nobody_from_being_told(desk: Desk, hook: Hook):
    await desk.see(95)
    await desk.look(5)
    desk.adopt()
    await desk.look(60)
    await desk.look(5)
    assert hook.statuses[1:] == [(RESOLVED, [("web-1", RESOLVED)])]


async def test_an_alert_is_inhibited_while_another_of_its_server_fires(desk: Desk, hook: Hook):
    grave = rule("grave", above=98, severity=Severity.CRITICAL)
    desk.adopt(rule(inhibitors=(Inhibitor(source="severity = critical"),)), grave)
    await desk.see(95)
    await desk.see(99, server="web-2")
    await desk.look(5)
    told = {
        (each["groupLabels"]["alertname"], alert["labels"]["server"]) for each in hook.told for alert in each["alerts"]
    }
    await desk.look()
    told |= {
        (each["groupLabels"]["alertname"], alert["labels"]["server"]) for each in hook.told for alert in each["alerts"]
    }
    assert told == {("cpu", "web-1"), ("grave", "web-2")}
    (source,) = (each.fingerprint for each in desk.alerting.alerts() if each.rule == "grave")
    assert [each.inhibited_by for each in desk.alerting.alerts() if (each.rule, each.server) == ("cpu", "web-2")] == [
        (source,)
    ]
    await desk.see(95, server="web-2")
    assert all(not each.inhibited_by for each in desk.alerting.alerts())


def test_rules_that_would_inhibit_each_other_are_refused():
    def by(name: str, source: str, **more):
        return rule(name, inhibitors=(Inhibitor(source=source),), **more)

    first = by("a", "rule = b")
    check_acyclic(first, [rule("b"), by("c", "rule = a")])
    for wanted, others in (
        (by("a", "rule = a"), []),
        (by("a", "server = web-1"), []),
        (first, [by("b", "rule = a")]),
        (first, [by("b", "rule = c"), by("c", "NOT rule = b AND severity = warning AND rule != c")]),
    ):
        with pytest.raises(InvalidArgumentError) as refused:
            check_acyclic(wanted, others)
        assert refused.value.field == "rule.inhibitors"
    check_acyclic(by("a", "severity = critical"), [rule("b", severity=Severity.CRITICAL)])


@pytest.mark.parametrize("source", ["", "colour = red", "severity = grave", "server ="])
def test_a_matcher_that_is_none_is_refused(source: str):
    with pytest.raises(InvalidArgumentError) as refused:
        check(rule(inhibitors=(Inhibitor(source=source),)))
    assert refused.value.field == "rule.inhibitors.source_matcher"


# ── restarts ───────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_after_a_restart_nothing_is_lost_and_nothing_told_again(desk: Desk, hook: Hook):
    await desk.see(95)
    await desk.look(5)
    again = await desk.restarted()
    assert again.states() == [("web-1", "FIRING")]
    assert again.alerting.rules == desk.alerting.rules
    await again.see(95, position=1)  # the log gives it again
    await again.look(60)
    assert len(hook.told) == 1
    await again.see(10)
    await again.look(5)
    assert hook.statuses[1:] == [(RESOLVED, [("web-1", RESOLVED)])]


async def test_a_crash_before_anything_is_told_loses_nothing(desk: Desk, hook: Hook):
    await desk.see(95)
    await desk.see(95, server="web-2")
    await desk.see(10, server="web-2")
    again = await desk.restarted()
    await again.look(5)
    await again.look(5)
    assert hook.statuses == [(FIRING, [("web-1", FIRING), ("web-2", RESOLVED)])]


async def test_a_crash_between_telling_and_noting_tells_again_the_same(desk: Desk, hook: Hook):
    await desk.see(95)
    before = (desk.folder / "alerts.state").read_bytes()
    await desk.look(5)
    (desk.folder / "alerts.state").write_bytes(before)
    again = await desk.restarted()
    await again.look()
    await again.look(5)
    assert len(hook.told) == 2
    first, second = (each["alerts"][0] for each in hook.told)
    assert (first["fingerprint"], first["startsAt"]) == (second["fingerprint"], second["startsAt"])


async def test_silences_hold_on_after_a_restart(desk: Desk, hook: Hook):
    desk.alerting.adopt_silences([silence("server = web-1", 0, 100)])
    await desk.see(95)
    again = await desk.restarted()
    await again.look(50)
    assert hook.told == []
    assert [each.silenced_by for each in again.alerting.alerts()] == [("s1",)]


async def test_a_watch_goes_on_where_it_was_after_a_restart(desk: Desk):
    await desk.see(95)
    register = desk.alerting.register
    token = register.token_of(register.settled)
    again = await desk.restarted()
    await again.see(95, server="web-2")
    shown = again.alerting.register.stored
    seen = shown.resume(token)
    assert [each.server for each in shown.changed_since(seen)] == ["web-2"]
    with pytest.raises(OutOfRangeError):
        shown.resume(f"{register.epoch}-9999")


async def test_nothing_is_shown_to_watches_before_it_is_stored(desk: Desk):
    desk.keeper.take(frame(0, 95), BEGIN, 1)
    shown = desk.alerting.register.stored
    assert (shown.change, shown.going_on()) == (0, [])
    await desk.keeper.look()
    assert [each.server for each in shown.going_on()] == ["web-1"]


@pytest.mark.parametrize("damage", [lambda raw: raw[:-9], lambda raw: b"", lambda raw: raw.replace(b"web-1", b"web-2")])
async def test_a_damaged_file_is_not_read_and_alerts_begin_anew(desk: Desk, hook: Hook, damage):
    await desk.see(95)
    file = desk.folder / "alerts.state"
    file.write_bytes(damage(file.read_bytes()))
    again = await desk.restarted()
    assert (again.states(), again.alerting.position) == ([], 0)


async def test_storing_goes_to_its_end_though_nobody_waits_for_it_before_it_is_stored_again(
    desk: Desk, hook: Hook, monkeypatch
):
    writes, replaced = [], durable.replace
    begun, release = threading.Event(), threading.Event()

    def slow(path, content):
        writes.append("begins")
        begun.set()
        assert release.wait(30)
        replaced(path, content)
        writes.append("ends")

    monkeypatch.setattr(durable, "replace", slow)
    first = asyncio.create_task(desk.keeper.save())
    await asyncio.to_thread(begun.wait, 30)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    second = asyncio.create_task(desk.keeper.save())
    await asyncio.sleep(0)
    await asyncio.to_thread(lambda: None)
    release.set()
    await second
    assert writes == ["begins", "ends"] * 2


async def test_a_stored_rule_that_can_be_none_any_more_keeps_nobody_from_beginning_anew(desk: Desk, caplog):
    await desk.see(95)
    file = desk.folder / "alerts.state"
    document = durable.load(file)
    document["rules"][0]["threshold"]["clear"] = 99.0
    file.write_bytes(durable.encode(document))
    again = await desk.restarted()
    assert (again.states(), "begin anew" in caplog.text) == ([], True)


async def test_a_disk_that_takes_nothing_is_said_and_alerts_are_told_nevertheless(desk: Desk, hook: Hook, monkeypatch):
    def full(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(durable, "replace", full)
    await desk.see(95)
    await desk.look(5)
    assert hook.statuses == [(FIRING, [("web-1", FIRING)])]
    assert "alerts cannot be stored: a restart may tell some again" in (await desk.keeper.find()).warnings
    assert desk.keeper.saved_position == 0
    monkeypatch.undo()
    await desk.look(61)
    assert (await desk.keeper.find()).warnings == ()


async def test_what_is_old_while_the_log_is_read_again_is_not_stale(desk: Desk):
    await desk.see(95)
    again = await desk.restarted()
    again.keeper.is_following = lambda: False
    again.keeper._followed_at = again.clock.monotonic()
    again.clock.go(200)
    again.keeper._followed_at = again.clock.monotonic()
    await again.look(200)
    assert [each.stale for each in again.alerting.alerts()] == [False]
    again.keeper.is_following = lambda: True
    await again.look()
    assert [each.stale for each in again.alerting.alerts()] == [True]


def test_a_matcher_on_what_may_be_anything_may_match():
    node = matcher.parse("rule = a AND (server = x OR NOT severity = critical)", "matcher")
    assert matcher.may_match(node, {"rule": "a", "severity": "critical"}, OPEN_LABELS)
    assert not matcher.may_match(node, {"rule": "b", "severity": "info"}, OPEN_LABELS)
    fixed = matcher.parse("rule = a AND NOT severity = critical", "matcher")
    assert not matcher.may_match(fixed, {"rule": "a", "severity": "critical"}, OPEN_LABELS)

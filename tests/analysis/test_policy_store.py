"""Rules and silences as somebody else stores them: changed at once, damaged, and all gone."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from analysis.alerting import BEGIN, SECOND, Desk, Hook, StillClock, rule
from google.protobuf import json_format
from openmanager_analysis.alert_service import RuleService, SilenceService
from openmanager_analysis.alerting import policy_store, wire
from openmanager_analysis.alerting.policy_store import PolicyStore
from openmanager_analysis.alerting.rule import Inhibitor
from openmanager_analysis.alerting.silence import Silence

from openmanager.api.analysis.v1 import alert_pb2
from openmanager.api.metadata.v1 import metadata_pb2 as pb
from openmanager.errors import AlreadyExistsError, InvalidArgumentError


class Policies:
    """A metadata service that takes its time: some turns of the event loop for each call."""

    def __init__(self) -> None:
        self.known: dict[tuple[str, str], pb.Policy] = {}

    async def unary(self, path: str, request: Any, reply: Any, *, seconds: float) -> Any:
        for _ in range(5):
            await asyncio.sleep(0)
        match path.rpartition("/")[2]:
            case "ListPolicies":
                return reply(policies=[each for each in self.known.values() if each.kind == request.kind])
            case "UpdatePolicy":
                self.known[request.policy.kind, request.policy.id] = request.policy
                return reply(policy=request.policy)
            case "DeletePolicy":
                del self.known[request.kind, request.id]
                return reply()

    def put(self, kind: str, name: str, document: dict[str, Any]) -> None:
        policy = self.known[kind, name] = pb.Policy(kind=kind, id=name)
        json_format.ParseDict(document, policy.document)


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path, Hook(), StillClock())


@pytest.fixture
def policies() -> Policies:
    return Policies()


@pytest.fixture
def store(desk: Desk, policies: Policies) -> PolicyStore:
    return PolicyStore(policies, desk.keeper, desk.clock)  # type: ignore[arg-type]


def asked(name: str, source: str = "") -> alert_pb2.CreateRuleRequest:
    inhibitors = (Inhibitor(source=source),) if source else ()
    return alert_pb2.CreateRuleRequest(rule=wire.rule_message(rule(name, inhibitors=inhibitors)))


async def test_rules_that_are_created_at_once_are_checked_against_each_other(desk: Desk, store: PolicyStore):
    service = RuleService(desk.keeper, store, desk.clock)

    async def refused(*requests: alert_pb2.CreateRuleRequest) -> list[type]:
        found = await asyncio.gather(*(service.CreateRule(each, None) for each in requests), return_exceptions=True)
        return [type(each) for each in found if isinstance(each, BaseException)]

    assert await refused(asked("a", "rule = b"), asked("b", "rule = a")) == [InvalidArgumentError]
    assert await refused(asked("c"), asked("c")) == [AlreadyExistsError]


async def test_a_silence_that_is_created_twice_at_once_is_one(desk: Desk, store: PolicyStore, policies: Policies):
    service = SilenceService(desk.keeper, store, desk.clock)
    request = alert_pb2.CreateSilenceRequest(
        request_id="again", silence=alert_pb2.Silence(matcher="rule = cpu", comment="disk")
    )
    request.silence.end_time.FromNanoseconds(BEGIN + 60 * SECOND)
    first = asyncio.create_task(service.CreateSilence(request, None))
    await asyncio.sleep(0)
    desk.clock.go(1)
    again = asyncio.create_task(service.CreateSilence(request, None))
    assert (await first).silence.start_time == (await again).silence.start_time


async def test_a_rule_or_silence_that_cannot_be_read_any_more_goes_on_as_it_was_known_and_that_is_said(
    desk: Desk, store: PolicyStore, policies: Policies
):
    silence = Silence(id="s", matcher="rule = x", start_nanos=BEGIN, end_nanos=BEGIN + 60 * SECOND, comment="c")
    await store.put_rule(rule(), "")
    await store.put_silence(silence)
    await desk.see(95)
    policies.put(policy_store.RULE, "cpu", {"threshold": {"above": "high"}})
    policies.put(policy_store.SILENCE, "s", {**wire.silence_document(silence), "matcher": "colour = red"})
    policies.put(policy_store.SILENCE, "all", {**wire.silence_document(silence), "matcher": ""})
    await store.look()
    assert (desk.states(), list(desk.alerting.silences.values())) == ([("web-1", "FIRING")], [silence])
    assert desk.keeper.rules_warning == "3 rules or silences cannot be read"
    await desk.look()

"""The edge of alerts."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from openmanager import access, page
from openmanager.api.analysis.v1 import alert_pb2 as pb
from openmanager.api.provenance.v1 import provenance_pb2
from openmanager.errors import AlreadyExistsError, NotFoundError, Reason, ResourceExhaustedError, missing
from openmanager.frame import check_server_id, check_text
from openmanager.progress import progress_seconds
from openmanager.runtime.clock import Clock
from openmanager_analysis.alerting import matcher, wire
from openmanager_analysis.alerting import silence as silences
from openmanager_analysis.alerting.alert import Alert, fitting
from openmanager_analysis.alerting.keeper import Keeper
from openmanager_analysis.alerting.policy_store import PolicyStore
from openmanager_analysis.alerting.rule import MAX_RULES, Rule, Threshold, check_acyclic, check_id
from openmanager_analysis.alerting.silence import MAX_SILENCES, Silence
from openmanager_analysis.history import Selection
from openmanager_analysis.listing import Part, page_of
from openmanager_analysis.reach import Reach
from openmanager_analysis.watch import watch

NONE_YET = "v0"


class RuleService:
    """openmanager.api.analysis.v1.RuleService."""

    def __init__(self, keeper: Keeper, store: PolicyStore, clock: Clock) -> None:
        self._keeper, self._store, self._clock = keeper, store, clock

    async def CreateRule(self, request: pb.CreateRuleRequest, context: Any) -> pb.CreateRuleResponse:  # noqa: ARG002, N802
        """Create a rule."""
        rule = wire.rule(request.rule)
        async with self._store.changing:
            rules = self._keeper.alerting.rules
            if rule.id in rules:
                raise AlreadyExistsError("a rule of this id exists", resource=f"rule/{rule.id}")
            if len(rules) >= MAX_RULES:
                raise ResourceExhaustedError(f"there are {MAX_RULES} rules already", reason=Reason.TOO_MANY_RULES)
            check_acyclic(rule, rules.values())
            return pb.CreateRuleResponse(rule=wire.rule_message(await self._store.put_rule(rule, NONE_YET)))

    async def GetRule(self, request: pb.GetRuleRequest, context: Any) -> pb.GetRuleResponse:  # noqa: ARG002, N802
        """Return one rule."""
        return pb.GetRuleResponse(rule=self._message(self._rule(request.id, "id")))

    async def ListRules(self, request: pb.ListRulesRequest, context: Any) -> pb.ListRulesResponse:  # noqa: ARG002, N802
        """List rules."""
        size, after = page.page_size(request.page_size), page.decode_token(("rules",), request.page_token)
        rules = self._keeper.alerting.rules
        names = sorted(name for name in rules if after is None or name > after[0])
        shown, counts = names[:size], self._keeper.alerting.series_counts()
        return pb.ListRulesResponse(
            rules=[wire.rule_message(rules[name], counts.get(name, 0)) for name in shown],
            next_page_token=page.encode_token(("rules",), [shown[-1]]) if len(names) > size else "",
            total_count=len(rules),
            provenance=_provenance(self._keeper, self._clock),
        )

    async def UpdateRule(self, request: pb.UpdateRuleRequest, context: Any) -> pb.UpdateRuleResponse:  # noqa: ARG002, N802
        """Change some fields of a rule."""
        check_text("rule.etag", request.rule.etag, 64)
        async with self._store.changing:
            # What is wrong in a request is told before what is not there.
            found = self._keeper.alerting.rules.get(check_id(request.rule.id, "rule.id"))
            rule = wire.changed(found or _any_rule(request.rule.id), request.rule, request.update_mask.paths)
            known = self._rule(request.rule.id, "rule.id")
            check_acyclic(rule, self._keeper.alerting.rules.values())
            stored = await self._store.put_rule(rule, request.rule.etag or known.etag)
            return pb.UpdateRuleResponse(rule=self._message(stored))

    async def DeleteRule(self, request: pb.DeleteRuleRequest, context: Any) -> pb.DeleteRuleResponse:  # noqa: ARG002, N802
        """Delete a rule."""
        check_text("etag", request.etag, 64)
        async with self._store.changing:
            rule = self._rule(request.id, "id")
            await self._store.delete_rule(rule, request.etag)
            return pb.DeleteRuleResponse(rule=wire.rule_message(rule))

    def _rule(self, rule_id: str, field: str) -> Rule:
        check_id(rule_id, field)
        rule = self._keeper.alerting.rules.get(rule_id)
        if rule is None:
            raise NotFoundError("there is no such rule", resource=f"rule/{rule_id}")
        return rule

    def _message(self, rule: Rule) -> pb.AlertRule:
        return wire.rule_message(rule, self._keeper.alerting.series_counts().get(rule.id, 0))


class SilenceService:
    """openmanager.api.analysis.v1.SilenceService."""

    def __init__(self, keeper: Keeper, store: PolicyStore, clock: Clock) -> None:
        self._keeper, self._store, self._clock = keeper, store, clock

    async def CreateSilence(self, request: pb.CreateSilenceRequest, context: Any) -> pb.CreateSilenceResponse:  # noqa: ARG002, N802
        """Create a silence."""
        now = self._clock.now_nanos()
        wanted = silences.check(wire.silence(request.silence, now), now)
        caller, key = access.caller(), wire.request_id(request)
        creator = caller.identity.subject if caller is not None else ""
        wanted = replace(wanted, creator=creator, id=_silence_id(creator, key))
        async with self._store.changing:
            known = self._keeper.alerting.silences
            if wanted.id in known:
                return pb.CreateSilenceResponse(silence=self._message(known[wanted.id]))
            self._check_room(now)
            return pb.CreateSilenceResponse(silence=self._message(await self._store.put_silence(wanted)))

    async def GetSilence(self, request: pb.GetSilenceRequest, context: Any) -> pb.GetSilenceResponse:  # noqa: ARG002, N802
        """Return one silence."""
        return pb.GetSilenceResponse(silence=self._message(self._silence(request.id)))

    async def ListSilences(self, request: pb.ListSilencesRequest, context: Any) -> pb.ListSilencesResponse:  # noqa: ARG002, N802
        """List silences."""
        now, known = self._clock.now_nanos(), self._keeper.alerting.silences
        part = Part(
            page_size=request.page_size,
            page_token=request.page_token,
            bound=("silences", request.active_only),
        )
        meant = (each for each in known.values() if not request.active_only or each.end_nanos > now)
        found = page_of(meant, part, lambda each: (f"{each.end_nanos:020d}", each.id), list)
        return pb.ListSilencesResponse(
            silences=[self._message(each) for each in found.found],
            next_page_token=found.next_page_token,
            total_count=found.total_count,
            provenance=_provenance(self._keeper, self._clock),
        )

    async def UpdateSilence(self, request: pb.UpdateSilenceRequest, context: Any) -> pb.UpdateSilenceResponse:  # noqa: ARG002, N802
        """Change some fields of a silence."""
        check_text("silence.etag", request.silence.etag, 64)
        paths, now = request.update_mask.paths, self._clock.now_nanos()
        async with self._store.changing:
            # What is wrong in a request is told before what is not there.
            found = self._keeper.alerting.silences.get(request.silence.id) or _any_silence(now)
            wanted = silences.check(wire.changed_silence(found, request.silence, paths, now), now)
            known = self._silence(request.silence.id, "silence.id")
            if known.end_nanos <= now:
                self._check_room(now)
            stored = await self._store.put_silence(wanted, request.silence.etag or known.etag)
            return pb.UpdateSilenceResponse(silence=self._message(stored))

    async def ExpireSilence(self, request: pb.ExpireSilenceRequest, context: Any) -> pb.ExpireSilenceResponse:  # noqa: ARG002, N802
        """End a silence."""
        async with self._store.changing:
            silence, now = self._silence(request.id), self._clock.now_nanos()
            if silence.end_nanos > now:
                silence = replace(silence, start_nanos=min(silence.start_nanos, now), end_nanos=now)
                silence = await self._store.put_silence(silence)
            return pb.ExpireSilenceResponse(silence=self._message(silence))

    def _check_room(self, now: int) -> None:
        if sum(1 for each in self._keeper.alerting.silences.values() if each.end_nanos > now) >= MAX_SILENCES:
            raise ResourceExhaustedError(f"there are {MAX_SILENCES} silences already", reason=Reason.TOO_MANY_RULES)

    def _silence(self, silence_id: str, field: str = "id") -> Silence:
        if not silence_id:
            raise missing(field)
        check_server_id(silence_id, field)
        silence = self._keeper.alerting.silences.get(silence_id)
        if silence is None:
            raise NotFoundError("there is no such silence", resource=f"silence/{silence_id}")
        return silence

    def _message(self, silence: Silence) -> pb.Silence:
        alerts = self._keeper.alerting.register.open.values()
        count = sum(1 for each in alerts if silence.id in each.silenced_by)
        return wire.silence_message(silence, self._clock.now_nanos(), count)


class AlertService:
    """openmanager.api.analysis.v1.AlertService."""

    def __init__(self, keeper: Keeper, reach: Reach) -> None:
        self._keeper, self._reach = keeper, reach

    async def ListAlerts(self, request: pb.ListAlertsRequest, context: Any) -> pb.ListAlertsResponse:  # noqa: ARG002, N802
        """List alerts."""
        chooses, sees = chooser(request.filter), await self._reach.sees()
        part = Part(
            page_size=request.page_size,
            page_token=request.page_token,
            bound=("alerts", request.filter, request.active_only),
        )
        found = page_of(
            (
                each
                for each in self._keeper.alerting.alerts()
                if not (request.active_only and each.end_nanos) and sees(each.server) and chooses(each)
            ),
            part,
            _place,
            fitting,
        )
        return pb.ListAlertsResponse(
            alerts=[wire.alert(self._keeper.alerting.now(each)) for each in found.found],
            next_page_token=found.next_page_token,
            total_count=found.total_count,
            provenance=self._keeper.describe(),
        )

    async def GetAlert(self, request: pb.GetAlertRequest, context: Any) -> pb.GetAlertResponse:  # noqa: ARG002, N802
        """Return one alert."""
        if not request.id:
            raise missing("id")
        check_server_id(request.id, "id")
        sees = await self._reach.sees()
        for each in self._keeper.alerting.alerts():
            if each.id == request.id and sees(each.server):
                return pb.GetAlertResponse(alert=wire.alert(self._keeper.alerting.now(each)))
        raise NotFoundError("there is no such alert", resource=f"alert/{request.id}")

    async def WatchAlerts(  # noqa: N802
        self,
        request: pb.WatchAlertsRequest,
        context: Any,  # noqa: ARG002
    ) -> AsyncIterator[pb.WatchAlertsResponse]:
        """Stream alerts."""
        chooses, seconds = chooser(request.filter), progress_seconds(request)
        register = self._keeper.alerting.register.stored
        watched = watch(register, self._keeper.bell, chooses, fitting, token=request.resume_token, progress=seconds)
        async with aclosing(watched) as told:
            async for token, found in told:
                sees = await self._reach.sees()
                seen = [wire.alert(each) for each in found if sees(each.server)]
                yield pb.WatchAlertsResponse(resume_token=token, alerts=seen)


def chooser(text: str) -> Callable[[Alert], bool]:
    """Return what a filter chooses; InvalidArgumentError for one that is none."""
    node = matcher.parse(text, "filter", "id", "fingerprint", "state")

    def chooses(alert: Alert) -> bool:
        own = {"id": alert.id, "fingerprint": alert.fingerprint, "state": alert.state.name}
        return matcher.matches(node, {**alert.labels, **own})

    return chooses


def _any_rule(rule_id: str) -> Rule:
    bound = Threshold(bound=0.0, is_above=True, clear=0.0)
    return Rule(id=rule_id, name=rule_id, condition=bound, selection=Selection(metrics=("*",)))


def _any_silence(now: int) -> Silence:
    return Silence(id="", matcher="rule = x", start_nanos=now, end_nanos=now + silences.LONGEST_NANOS, comment="x")


def _place(alert: Alert) -> tuple[str, ...]:
    return f"{alert.start_nanos:020d}", alert.id


def _silence_id(creator: str, request_id: str) -> str:
    """Return an id that is the same for the same call of the same caller."""
    if not request_id:
        return uuid.uuid4().hex[:12]
    return hashlib.blake2b(f"{creator}\0{request_id}".encode(), digest_size=6).hexdigest()


def _provenance(keeper: Keeper, clock: Clock) -> provenance_pb2.Provenance:
    about = provenance_pb2.Provenance(source="snapshot" if keeper.rules_warning else "postgresql")
    about.degraded, about.reason = bool(keeper.rules_warning), keeper.rules_warning
    about.as_of_time.FromNanoseconds(clock.now_nanos())
    return about

"""Where rules and silences are stored: with the metadata service, in PostgreSQL; the last known ones go on without it."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from google.protobuf import json_format

from openmanager.api.metadata.v1 import metadata_pb2 as pb
from openmanager.errors import DeadlineExceededError, NotFoundError, OpenManagerError, invalid, store_unavailable
from openmanager.runtime.clock import Clock
from openmanager.runtime.peer import Peer
from openmanager_analysis.alerting import wire
from openmanager_analysis.alerting.keeper import Keeper
from openmanager_analysis.alerting.rule import Rule
from openmanager_analysis.alerting.silence import KEPT_NANOS, Silence

SERVICE = "/openmanager.api.metadata.v1.PolicyService"
RULE, SILENCE = "rule", "silence"
SECONDS = 2.0
PAGE = 1_000
FOLLOW_SECONDS, RETRY_SECONDS = 60.0, 1.0
MAX_DOCUMENT_BYTES = 60 * 1024
AWAY = "the metadata service does not answer: the last known rules and silences go on"
EMPTY = "the metadata service has no rules and silences: those that were known go on"

log = logging.getLogger(__name__)
T = TypeVar("T")


class PolicyStore:
    """Rules and silences as the metadata service has them, and as they apply here."""

    def __init__(self, metadata: Peer, keeper: Keeper, clock: Clock, *, is_alone: bool = True) -> None:
        self._metadata, self._keeper, self._clock = metadata, keeper, clock
        # Else somebody else changes what is stored.
        self._is_alone = is_alone
        # One change at a time: each is checked against all others.
        self.changing = asyncio.Lock()
        self.is_known = False

    async def put_rule(self, rule: Rule, etag: str) -> Rule:
        """Store a rule and let it apply; AbortedError when its etag is not the stored one, `v0` for none."""
        document = {
            name: part for name, part in wire.rule_document(rule).items() if name not in {"etag", "update_nanos"}
        }
        stored = await self._put(RULE, rule.id, document, etag, "rule")
        found = replace(rule, etag=stored.etag, update_nanos=stored.update_time.ToNanoseconds())
        self._adopt({**self._keeper.alerting.rules, found.id: found})
        return found

    async def delete_rule(self, rule: Rule, etag: str) -> None:
        """Delete a rule, here too; AbortedError when its etag is not the stored one."""
        await self._delete(RULE, rule.id, etag)
        self._adopt({name: each for name, each in self._keeper.alerting.rules.items() if name != rule.id})

    async def put_silence(self, silence: Silence, etag: str = "") -> Silence:
        """Store a silence and let it apply; AbortedError when an etag is given and not the stored one."""
        document = {name: part for name, part in wire.silence_document(silence).items() if name != "etag"}
        found = replace(silence, etag=(await self._put(SILENCE, silence.id, document, etag, "silence")).etag)
        self._adopt_silences({**self._keeper.alerting.silences, found.id: found})
        return found

    async def follow(self) -> None:
        """Let what is stored apply here, also after somebody else has changed it; for ever."""
        while True:
            try:
                async with self.changing:
                    await self.look()
            except OpenManagerError as err:
                log.debug("rules and silences cannot be read: %s", err)
                self._keeper.rules_warning = AWAY
                self.is_known = False
            except Exception:
                log.exception("rules and silences cannot be followed")
                self._keeper.rules_warning = AWAY
            await asyncio.sleep(FOLLOW_SECONDS if self.is_known and self._is_alone else RETRY_SECONDS)

    async def look(self) -> None:
        """Let what is stored apply as it is now; an OpenManagerError when nobody can say."""
        alerting, now = self._keeper.alerting, self._clock.now_nanos()
        rules, unread = await self._read(RULE, alerting.rules, _rule_of)
        silences, more = await self._read(SILENCE, alerting.silences, _silence_of)
        unread += more
        self.is_known = True
        if not rules and not silences and not unread and (alerting.rules or alerting.silences):
            self._keeper.rules_warning = EMPTY  # it may have lost them
            return
        self._keeper.rules_warning = f"{unread} rules or silences cannot be read" if unread else ""
        for name in [name for name, each in silences.items() if now - each.end_nanos > KEPT_NANOS]:
            await self._delete(SILENCE, name, "")
            del silences[name]
        if rules != alerting.rules:
            self._adopt(rules)
        if silences != alerting.silences:
            self._adopt_silences(silences)

    async def _read(
        self, kind: str, known: Mapping[str, T], parse: Callable[[pb.Policy], T]
    ) -> tuple[dict[str, T], int]:
        """Return what is stored of a kind, and how much of it cannot be read: of that what is known goes on."""
        found: dict[str, T] = {}
        unread = 0
        async for policy in self._list(kind):
            try:
                found[policy.id] = parse(policy)
            except (LookupError, TypeError, ValueError, OpenManagerError) as err:
                log.warning("the %s %s cannot be read: %s", kind, policy.id, err)
                unread += 1
                if policy.id in known:
                    found[policy.id] = known[policy.id]
        return found, unread

    def _adopt(self, rules: Mapping[str, Rule]) -> None:
        self._keeper.alerting.adopt(rules.values(), self._clock.now_nanos())
        self._keeper.changed(always=True)

    def _adopt_silences(self, silences: Mapping[str, Silence]) -> None:
        self._keeper.alerting.adopt_silences(silences.values())
        self._keeper.changed(always=True)

    async def _list(self, kind: str) -> AsyncIterator[pb.Policy]:
        request = pb.ListPoliciesRequest(kind=kind, page_size=PAGE)
        while True:
            path = f"{SERVICE}/ListPolicies"
            reply = await self._metadata.unary(path, request, pb.ListPoliciesResponse, seconds=SECONDS)
            for policy in reply.policies:
                yield policy
            if not reply.next_page_token:
                return
            request.page_token = reply.next_page_token

    async def _put(self, kind: str, name: str, document: Mapping[str, Any], etag: str, field: str) -> pb.Policy:
        if len(json.dumps(document).encode()) > MAX_DOCUMENT_BYTES:
            raise invalid(field, "is larger than 60 KiB")
        policy = pb.Policy(kind=kind, id=name, etag=etag)
        json_format.ParseDict(dict(document), policy.document)
        request = pb.UpdatePolicyRequest(policy=policy)
        try:
            path = f"{SERVICE}/UpdatePolicy"
            reply = await self._metadata.unary(path, request, pb.UpdatePolicyResponse, seconds=SECONDS)
        except DeadlineExceededError as err:
            raise store_unavailable("the metadata service") from err
        return reply.policy

    async def _delete(self, kind: str, name: str, etag: str) -> None:
        request = pb.DeletePolicyRequest(kind=kind, id=name, etag=etag)
        try:
            path = f"{SERVICE}/DeletePolicy"
            await self._metadata.unary(path, request, pb.DeletePolicyResponse, seconds=SECONDS)
        except NotFoundError:
            return  # somebody else did
        except DeadlineExceededError as err:
            raise store_unavailable("the metadata service") from err


def _rule_of(policy: pb.Policy) -> Rule:
    found = wire.rule_from({**_document(policy), "id": policy.id})
    return replace(found, etag=policy.etag, update_nanos=policy.update_time.ToNanoseconds())


def _silence_of(policy: pb.Policy) -> Silence:
    return wire.silence_from({**_document(policy), "id": policy.id, "etag": policy.etag})


def _document(policy: pb.Policy) -> dict[str, Any]:
    found: dict[str, Any] = json_format.MessageToDict(policy.document)
    return found

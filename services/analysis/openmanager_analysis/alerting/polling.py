"""What rules need that does not come with the log: how stores are, and when limits are reached."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

from openmanager.api.cache.v1 import cache_pb2
from openmanager.api.gateway.v1 import gateway_pb2
from openmanager.api.status.v1 import status_pb2
from openmanager.errors import FailedPreconditionError, OpenManagerError
from openmanager.frame import server_info
from openmanager.metric import glob, select
from openmanager.runtime.clock import Clock, until_next
from openmanager.runtime.peer import Peer
from openmanager_analysis.alerting.engine import Look
from openmanager_analysis.alerting.keeper import Keeper
from openmanager_analysis.alerting.plan import chooses
from openmanager_analysis.alerting.rule import Rule
from openmanager_analysis.analyst import MAX_CAPACITIES, Analyst
from openmanager_analysis.collector import Names
from openmanager_analysis.history import DAY_NANOS, HOUR_NANOS, Selection, Span
from openmanager_analysis.reach import LIST, PAGE

STATUS = "/openmanager.api.gateway.v1.GatewayService/GetStorageStatus"
STATUS_SECONDS, STATUS_TIMEOUT_SECONDS = 2.0, 2.0
INVENTORY_SECONDS, RETRY_SECONDS, INVENTORY_TIMEOUT_SECONDS = 300.0, 2.0, 2.0
HISTORY_DAYS = 90
MAX_SERIES = 2_000
OK, DOWN = "OK", "DOWN"
# What is well without a reason.
Row = tuple[str, str, str, str]

log = logging.getLogger(__name__)


class Stores:
    """Asks the gateway how services and stores are, and has the rules about them judged."""

    def __init__(self, gateway: Peer, keeper: Keeper, clock: Clock) -> None:
        self._gateway, self._keeper, self._clock = gateway, keeper, clock

    async def run(self) -> None:
        """Go on for ever; nobody is asked as long as there is no such rule."""
        while True:
            try:
                if self._keeper.alerting.troubles():
                    await self.look()
            except Exception:
                log.exception("rules about stores cannot be judged")
            await asyncio.sleep(until_next(STATUS_SECONDS))

    async def look(self) -> None:
        """Judge once. A gateway that does not answer is DOWN, and nobody knows of the others."""
        try:
            request = gateway_pb2.GetStorageStatusRequest()
            reply = await self._gateway.unary(
                STATUS, request, gateway_pb2.GetStorageStatusResponse, seconds=STATUS_TIMEOUT_SECONDS
            )
            rows = [row for service in reply.services for row in rows_of(service)]
        except OpenManagerError:
            rows = [("gateway", "", DOWN, "does not answer")]
        now = self._clock.now_nanos()
        for rule in self._keeper.alerting.troubles():
            self._keeper.alerting.see(rule, looks_of(rule, rows, now), now)
        self._keeper.changed()


def rows_of(service: status_pb2.ServiceStatus) -> list[Row]:
    """Return a service and its stores: service, store, state and reason. What a store is not is not held against its service."""
    stores = [(service.service, each.name, _state(each.state), each.reason) for each in service.storages]
    own = (service.service, "", _state(service.state) if not stores else OK, service.reason)
    return [own, *stores]


def _state(state: status_pb2.StorageState.ValueType) -> str:
    return status_pb2.StorageState.Name(state).removeprefix("STORAGE_STATE_")


def looks_of(rule: Rule, rows: Sequence[Row], now: int) -> list[Look]:
    """Return what a rule about stores finds in rows."""
    condition: Any = rule.condition
    services, stores = ([glob(each) for each in getattr(condition, name)] for name in ("services", "stores"))
    looks = []
    for service, store, state, reason in rows:
        if (services and not any(test(service) for test in services)) or (
            stores and not (store and any(test(store) for test in stores))
        ):
            continue
        over = state in condition.states if condition.states else state != OK
        detail = f"is {state}" + (f": {reason}" if reason else "")
        looks.append(
            Look(subject=(rule.id, service, store), over=over, well=not over, value=1.0, detail=detail, heard=now)
        )
    return looks


class Outlooks:
    """Has rules about exhaustion judged by what history lets expect, every `seconds`."""

    def __init__(self, analyst: Analyst, keeper: Keeper, clock: Clock, seconds: float) -> None:
        self._analyst, self._keeper, self._clock, self._seconds = analyst, keeper, clock, seconds
        self._judged: dict[str, tuple[Any, float]] = {}

    async def run(self) -> None:
        """Go on for ever; a rule that is new or was changed is judged within a second."""
        while True:
            moment = self._clock.monotonic()
            for rule in self._keeper.alerting.exhausting():
                known = self._judged.get(rule.id)
                if known is not None and known[0] == (rule.condition, rule.selection) and moment < known[1]:
                    continue
                self._judged[rule.id] = (rule.condition, rule.selection), moment + self._seconds
                try:
                    await self.look(rule)
                except OpenManagerError as err:
                    log.info("the rule %s cannot be judged now: %s", rule.id, err)
                except Exception:
                    log.exception("the rule %s cannot be judged", rule.id)
            await asyncio.sleep(until_next(1.0))

    async def look(self, rule: Rule) -> None:
        """Judge a rule once: its series in portions, those of which too little is known left as they are."""
        condition: Any = rule.condition
        now = self._clock.now_nanos()
        end = now // HOUR_NANOS * HOUR_NANOS
        span = Span(start=end - HISTORY_DAYS * DAY_NANOS, end=end, step=HOUR_NANOS)
        hours = -(-condition.within_nanos // HOUR_NANOS)
        for servers in await asyncio.to_thread(self._portions, rule):
            chosen = Selection(servers=tuple(servers), metrics=rule.selection.metrics)
            try:
                answer = await self._analyst.capacities(chosen, span, condition.limit, hours, now)
            except FailedPreconditionError:
                continue
            looks = [
                Look(
                    subject=(rule.id, found.server, found.metric),
                    over=found.exhaustion.chance >= condition.probability,
                    well=found.exhaustion.chance < condition.clear,
                    value=found.exhaustion.chance,
                    detail=found.explanation,
                    heard=now,
                )
                for found in answer.found
            ]
            self._keeper.alerting.see(rule, looks, now)
            self._keeper.changed()

    def _portions(self, rule: Rule) -> list[list[str]]:
        """Return the servers of a rule, so many at once as one question may have series."""
        names = self._keeper.alerting.names
        counts: dict[str, int] = {}
        places = select([metric for _, metric in names.series], rule.selection.metrics)
        for place in places:
            server = names.series[place][0]
            counts[server] = counts.get(server, 0) + 1
        portions: list[list[str]] = []
        total = size = 0
        for server, count in counts.items():
            if not chooses(rule, server, names.infos.get(server)):
                continue
            total += count
            if total > MAX_SERIES:
                log.warning("the rule %s looks at more than %d series: the others are left out", rule.id, MAX_SERIES)
                break
            if not portions or size + count > MAX_CAPACITIES:
                portions.append([])
                size = 0
            portions[-1].append(server)
            size += count
        return portions


class Inventory:
    """Asks the cache service what servers are like that have not told it since the log was followed."""

    def __init__(self, cache: Peer, names: Names) -> None:
        self._cache, self._names = cache, names

    async def run(self) -> None:
        """Go on for ever."""
        while True:
            seconds = INVENTORY_SECONDS
            try:
                await self.look()
            except OpenManagerError:
                seconds = RETRY_SECONDS
            except Exception:
                log.exception("the inventory cannot be read")
            await asyncio.sleep(seconds)

    async def look(self) -> None:
        """Note what is known of servers that nothing is known of here: a producer knows best what it is."""
        request = cache_pb2.ListServersRequest(page_size=PAGE)
        while True:
            reply = await self._cache.unary(
                LIST, request, cache_pb2.ListServersResponse, seconds=INVENTORY_TIMEOUT_SECONDS
            )
            for server in reply.servers:
                if server.id not in self._names.infos:
                    self._names.note(server_info(server))
            if not reply.next_page_token:
                return
            request.page_token = reply.next_page_token

"""Rules, frames and clocks for tests of alerts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from openmanager_analysis.alerting.alert import Alert, State
from openmanager_analysis.alerting.engine import Alerting
from openmanager_analysis.alerting.keeper import Keeper
from openmanager_analysis.alerting.outbox import Cadence
from openmanager_analysis.alerting.receivers import Receiver, WebhookError
from openmanager_analysis.alerting.rule import Rule, Threshold, check
from openmanager_analysis.collector import Names
from openmanager_analysis.history import Selection

from openmanager.config import Secret
from openmanager.frame import Frame, ServerInfo

SECOND = 10**9
BEGIN = 1_790_000_000 * SECOND
OUTLOOK = 900 * SECOND


def rule(
    name: str = "cpu", *, metrics=("cpu",), above=90.0, clear=None, hold=0, clear_for=0, per_second=False, **more: Any
) -> Rule:
    """Return a checked rule on a metric, by seconds."""
    condition = Threshold(
        bound=above,
        is_above=True,
        clear=above if clear is None else clear,
        hold_nanos=hold * SECOND,
        clear_nanos=clear_for * SECOND,
        per_second=per_second,
    )
    return check(
        Rule(**{"id": name, "name": name, "condition": condition, "selection": Selection(metrics=metrics)} | more)
    )


def frame(at: float, value: float, *, server="web-1", metric="cpu", infos: tuple[ServerInfo, ...] = ()) -> Frame:
    """Return one sample, `at` seconds after the begin."""
    return Frame(
        times=np.array([BEGIN + int(at * SECOND)]),
        servers=(server,),
        metrics=(metric,),
        values=np.full((1, 1, 1), float(value)),
        server_infos=infos,
    )


def stored(alerting: Alerting) -> dict[str, Any]:
    """Return what a file holds of it."""
    found: dict[str, Any] = orjson.loads(orjson.dumps(alerting.document(), option=orjson.OPT_SERIALIZE_NUMPY))
    return found


class Judge:
    """Alerting at work on frames that come as they were measured."""

    def __init__(self, *rules: Rule) -> None:
        self.over: list[Alert] = []
        self.alerting = Alerting(Names(most=100_000), OUTLOOK, self.over.append)
        self.alerting.adopt(rules, BEGIN)
        self.position = 0

    def see(self, at: float, value: float, **more: Any) -> list[tuple[str, str]]:
        """Take a sample; return the states of what goes on, by server."""
        self.position += 1
        heard = more.pop("heard", at)
        self.alerting.take(frame(at, value, **more), BEGIN + int(heard * SECOND), self.position)
        return self.states()

    def states(self) -> list[tuple[str, str]]:
        return sorted((each.server, each.state.name) for each in self.alerting.register.open.values())

    def one(self) -> Alert:
        (found,) = self.alerting.register.open.values()
        return self.alerting.now(found)


class StillClock:
    """A clock that goes when it is told."""

    def __init__(self) -> None:
        self.nanos = BEGIN

    def now_nanos(self) -> int:
        return self.nanos

    def monotonic(self) -> float:
        return self.nanos / SECOND

    def go(self, seconds: float) -> None:
        self.nanos += int(seconds * SECOND)


class Hook:
    """A receiver that notes what it is told; `refuses` says why it does not take it."""

    def __init__(self) -> None:
        self.told: list[dict[str, Any]] = []
        self.refuses = ""

    async def post(self, document: dict[str, Any]) -> None:
        if self.refuses:
            raise WebhookError(self.refuses)
        self.told.append(document)

    async def close(self) -> None:
        pass

    @property
    def statuses(self) -> list[tuple[str, list[tuple[str, str]]]]:
        """What was told: the status, and each alert's server and status."""
        return [
            (each["status"], [(alert["labels"].get("server", ""), alert["status"]) for alert in each["alerts"]])
            for each in self.told
        ]


RECEIVER = Receiver(name="ops", url=Secret("http://127.0.0.1/"))
CADENCE = Cadence(wait_nanos=5 * SECOND, interval_nanos=60 * SECOND, repeat_nanos=3600 * SECOND)


class Desk:
    """A keeper with one receiver, on a clock; `restarted` is another one with the same file."""

    def __init__(self, folder: Path, hook: Hook, clock: StillClock, receiver: Receiver = RECEIVER) -> None:
        self.folder, self.hook, self.clock, self.receiver = folder, hook, clock, receiver
        self.keeper = Keeper(
            names=Names(most=1000),
            path=folder / "alerts.state",
            clock=clock,
            cadence=CADENCE,
            outlook_nanos=OUTLOOK,
            receivers=[(receiver, hook)],
        )

    @property
    def alerting(self) -> Alerting:
        return self.keeper.alerting

    def adopt(self, *rules: Rule) -> None:
        self.alerting.adopt(rules, self.clock.nanos)

    async def see(self, value: float, *, server: str = "web-1", position: int | None = None) -> None:
        """Take a sample of now."""
        self.clock.go(0.001)
        at = (self.clock.nanos - BEGIN) / SECOND
        self.keeper.take(frame(at, value, server=server), self.clock.nanos, position or self.alerting.position + 1)
        await self.look()

    async def look(self, seconds: float = 0.0) -> None:
        """Let time pass, and have what is due told."""
        self.clock.go(seconds)
        await self.keeper.look()
        for line in self.keeper._lines:
            if line.sending is not None:
                await line.sending

    async def restarted(self) -> Desk:
        found = Desk(self.folder, self.hook, self.clock, self.receiver)
        await found.keeper.load()
        return found

    def states(self) -> list[tuple[str, str]]:
        return sorted((each.server, each.state.name) for each in self.alerting.register.open.values())


def fired(alert: Alert) -> Alert:
    return replace(alert, state=State.FIRING, fire_nanos=alert.start_nanos)

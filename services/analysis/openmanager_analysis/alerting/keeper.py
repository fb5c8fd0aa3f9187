"""Keeps alerts and what was told of them, in one file, and has receivers told of nothing that is not in it."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import orjson

from openmanager import durable
from openmanager.api.provenance.v1 import provenance_pb2
from openmanager.errors import OpenManagerError
from openmanager.frame import Frame
from openmanager.runtime.clock import Clock, until_next
from openmanager.runtime.peer import backoff
from openmanager.runtime.status import Finding
from openmanager.shield import shielded
from openmanager.watch import Bell
from openmanager_analysis.alerting import wire
from openmanager_analysis.alerting.alert import Alert
from openmanager_analysis.alerting.engine import MAX_SLOTS, Alerting
from openmanager_analysis.alerting.outbox import Cadence, Message, Outbox
from openmanager_analysis.alerting.payload import payload
from openmanager_analysis.alerting.receivers import Receiver, WebhookError
from openmanager_analysis.alerting.suppression import tester
from openmanager_analysis.collector import Names

# 1 had a document of each slot; it is still read.
VERSION = 2
TICK_SECONDS, REPEAT_LOOK_SECONDS = 1.0, 10.0
# After a refusal, with jitter.
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 1.0, 300.0

log = logging.getLogger(__name__)


class Post(Protocol):
    """A way to a receiver."""

    async def post(self, document: dict[str, Any]) -> None:
        """Return when a document was taken; WebhookError otherwise."""
        ...

    async def close(self) -> None:
        """End what is open."""
        ...


@dataclass(slots=True)
class _Line:
    """A receiver, its books, and how it is."""

    receiver: Receiver
    post: Post
    outbox: Outbox
    attempt: int = 0
    why: str = ""
    asked_at: float = 0.0
    sending: asyncio.Task[None] | None = field(default=None, repr=False)
    looked: tuple[int, float] = (-1, 0.0)

    def is_to_look(self, change: int, moment: float) -> bool:
        """Say whether something may be due: after a change, while something waits, and now and then for what is repeated."""
        known, before = self.looked
        if change == known and not self.outbox.is_waiting and moment - before < REPEAT_LOOK_SECONDS:
            return False
        self.looked = change, moment
        return True


class Keeper:
    """Has samples judged, stores what comes of it before it is told, and tells it.

    `is_following` says whether the log is read to its end.
    """

    def __init__(
        self,
        *,
        names: Names,
        path: Path,
        clock: Clock,
        cadence: Cadence,
        outlook_nanos: int,
        receivers: Sequence[tuple[Receiver, Post]] = (),
        external_url: str = "",
        save_seconds: float = 60.0,
        jitter: random.Random | None = None,
    ) -> None:
        self.bell = Bell()
        self.alerting = Alerting(names, outlook_nanos, self._on_over)
        self.saved_position = 0
        # Why rules and silences may not be what is stored elsewhere; empty: they are.
        self.rules_warning = ""
        self._heard_nanos = 0
        self._path, self._clock = path, clock
        self._save_seconds = save_seconds
        self._external_url = external_url
        self._jitter = jitter or random.Random()  # noqa: S311  (jitter)
        self._lines = [_Line(receiver, post, self._outbox(receiver, cadence)) for receiver, post in receivers]
        self._stored_bytes = 0
        self._unsaved = self._must_save = False
        self._ended: list[Alert] = []  # since the last look
        self._changed = asyncio.Event()
        self._saving = asyncio.Lock()
        self._followed_at = self._saved_at = self._looked_at = clock.monotonic()
        self.is_following: Callable[[], bool] = lambda: True

    @staticmethod
    def _outbox(receiver: Receiver, cadence: Cadence) -> Outbox:
        return Outbox(receiver.group_by, tester(receiver.matcher), cadence)

    # ── what arrives ───────────────────────────────────────────────────────────────────────────────────────────────

    def take(self, frame: Frame, heard: int, position: int) -> None:
        """Judge a frame of the log."""
        change = self.alerting.register.change
        self._heard_nanos = max(self._heard_nanos, heard)
        try:
            self.alerting.take(frame, heard, position)
        except Exception:  # a defect of ours must not keep the detector from the log
            log.exception("a frame could not be judged")
        if self.alerting.register.change != change:
            self._changed.set()

    def changed(self, *, always: bool = False) -> None:
        """Have what was changed told, once it is stored; `always`: stored even where no alert changed."""
        self._must_save |= always
        self._changed.set()

    async def run(self) -> None:
        """Store and tell for ever."""
        try:
            while True:
                try:
                    async with asyncio.timeout(until_next(TICK_SECONDS)):
                        await self._changed.wait()
                except TimeoutError:
                    pass
                self._changed.clear()
                begin = self._clock.monotonic()
                try:
                    await self.look()
                except Exception:  # nobody else goes on telling
                    log.exception("alerts could not be told")
                # All alerts are stored after each change: where there are many, others need the processor too.
                await asyncio.sleep(min(self._clock.monotonic() - begin, TICK_SECONDS))
        finally:
            tasks = [line.sending for line in self._lines if line.sending is not None]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for line in self._lines:
                await line.post.close()

    async def look(self) -> None:
        """Let time pass; store what has changed; then tell it."""
        now, moment = self._clock.now_nanos(), self._clock.monotonic()
        if self.is_following():
            if self._looked_at == self._followed_at:  # it was at the last look too
                self.alerting.wait(round((moment - self._looked_at) * 1e9), now)
            self._followed_at = moment
        self._looked_at = moment
        # While the log is read again, what is old there says nothing of what is missing now.
        if self._followed_at == moment or moment - self._followed_at > self._patience():
            self.alerting.pass_time(now)
        self.alerting.suppress(now)
        # What began and ended since the last look was not marked yet.
        ended, self._ended = self._ended, []
        for alert_id in self.alerting.suppressed(ended, now):
            for line in self._lines:
                line.outbox.suppress(alert_id)
        register = self.alerting.register
        messages = [
            (line, replace(message, alerts=tuple(map(self.alerting.now, message.alerts))))
            for line in self._lines
            if line.sending is None and moment >= line.asked_at and line.is_to_look(register.change, moment)
            for message in line.outbox.due(register.open.values(), now)[:1]
        ]
        for line, message in messages:
            self._must_save |= line.outbox.offer(message)
        if self._must_save or register.change != register.settled or moment - self._saved_at >= self._save_seconds:
            self._must_save = False
            await self.save()
        for line, message in messages:
            line.sending = asyncio.create_task(self._send(line, message))

    def _patience(self) -> float:
        return min((rule.stale_nanos for rule in self.alerting.rules.values()), default=0) / 10**9

    def _on_over(self, alert: Alert) -> None:
        self._ended.append(alert)
        for line in self._lines:
            line.outbox.over(alert)

    # ── telling ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _send(self, line: _Line, message: Message) -> None:
        try:
            await line.post.post(payload(message, line.receiver.name, self._external_url))
        except WebhookError as err:
            if str(err) != line.why:
                log.warning("alerts cannot be told to %s, which %s", line.receiver.name, err)
            line.why = str(err)
            wait = backoff(line.attempt, self._jitter.random(), first=FIRST_WAIT_SECONDS, cap=LONGEST_WAIT_SECONDS)
            line.attempt += 1
            line.asked_at = self._clock.monotonic() + wait.total_seconds()
        except Exception:  # a defect must not end it
            log.exception("alerts cannot be told to %s", line.receiver.name)
            line.why, line.asked_at = "cannot be told", self._clock.monotonic() + LONGEST_WAIT_SECONDS
        else:
            line.attempt, line.why = 0, ""
            line.outbox.taken(message, self._clock.now_nanos())
            await self.save()
        finally:
            line.sending = None
            self._changed.set()

    # ── stored ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def load(self) -> None:
        """Take up what was stored; without it alerts begin anew."""
        try:
            stored = await asyncio.to_thread(_load, self._path)
            if stored is not None:
                self._restore(stored)
        except (OSError, ValueError, LookupError, TypeError, OpenManagerError) as err:
            log.error("alerts cannot be read, and begin anew: %s", err)  # noqa: TRY400  (it says all)

    async def save(self) -> None:
        """Store alerts, rules, silences and books; what cannot be stored is told nevertheless, and the status says so.

        It goes to its end even when nobody waits for it any more: two writers at once would spoil the file.
        """
        await shielded(self._save())

    async def _save(self) -> None:
        async with self._saving:
            document, change = self._document(), self.alerting.register.change
            try:
                self._stored_bytes = await asyncio.to_thread(_save, self._path, document)
                self._unsaved, self.saved_position = False, document["alerts"]["position"]
            except OSError as err:
                if not self._unsaved:
                    log.warning("alerts cannot be stored: %s", type(err).__name__)
                self._unsaved = True
            self._saved_at = self._clock.monotonic()
            register = self.alerting.register
            if register.settled != change:
                register.settled = change
                self.bell.ring()

    def _document(self) -> dict[str, Any]:
        return {
            "version": VERSION,
            "alerts": self.alerting.document(),
            "rules": [wire.rule_document(rule) for rule in self.alerting.rules.values()],
            "silences": [wire.silence_document(each) for each in self.alerting.silences.values()],
            "outboxes": {line.receiver.name: line.outbox.document() for line in self._lines},
        }

    def _restore(self, stored: Mapping[str, Any]) -> None:
        if stored["version"] not in {1, VERSION}:
            raise ValueError("another version")
        rules = [wire.rule_from(each) for each in stored["rules"]]
        silences = [wire.silence_from(each) for each in stored["silences"]]
        self.alerting.restore(stored["alerts"], rules, silences)
        ids = [each.id for each in self.alerting.register.open.values()]
        for line in self._lines:
            if line.receiver.name in stored["outboxes"]:
                line.outbox.restore(stored["outboxes"][line.receiver.name], ids)
        self.saved_position = self.alerting.position

    # ── status ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def describe(self) -> provenance_pb2.Provenance:
        """Return the provenance of alerts that are shown now: of the newest frame that was judged."""
        about = provenance_pb2.Provenance(source="alerts")
        if self._heard_nanos:
            about.as_of_time.FromNanoseconds(self._heard_nanos)
            about.staleness.FromNanoseconds(max(0, self._clock.now_nanos() - self._heard_nanos))
        if not self.is_following():
            about.degraded, about.reason = True, "the log is out of reach"
        return about

    async def find(self) -> Finding:
        """Return what the status says of alerts: how many go on, and what an operator should know."""
        register = self.alerting.register
        warnings = [self.rules_warning] if self.rules_warning else []
        if self._unsaved:
            warnings.append("alerts cannot be stored: a restart may tell some again")
        if self.alerting.left_out_count:
            warnings.append(f"alerts are left out: {len(register.open):,} are alive")
        if self.alerting.unwatched_count:
            warnings.append(f"rules look at more than {MAX_SLOTS:,} series: the others are left out")
        for line in self._lines:
            name = line.receiver.name
            if line.why:
                waiting = line.outbox.waiting_count(register.open.values())
                warnings.append(f"webhook {name} {line.why}; alerts that wait: {waiting:,}")
            if line.outbox.dropped_count:
                warnings.append(f"webhook {name}: {line.outbox.dropped_count:,} alerts that were over are lost to it")
        return Finding(size_bytes=self._stored_bytes, item_count=len(register.open), warnings=tuple(warnings))


def _save(path: Path, document: Mapping[str, Any]) -> int:
    content = durable.seal(orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY))
    path.parent.mkdir(parents=True, exist_ok=True)
    durable.replace(path, content)
    return len(content)


def _load(path: Path) -> Any:
    try:
        return durable.load(path)
    except FileNotFoundError:
        return None

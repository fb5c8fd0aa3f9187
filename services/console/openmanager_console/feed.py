"""What happens, for pages that follow it: one watch of each kind for all pages of the same person.

A page that is slow gets what is newest when it reads again, not all that was: what waits for it is a set of names, never a
queue of messages.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from openmanager.api.analysis.v1 import alert_pb2, analysis_pb2
from openmanager.api.gateway.v1 import gateway_pb2
from openmanager.api.server.v1 import server_pb2
from openmanager.client import Client, rpc
from openmanager.client.credential import Credential
from openmanager.errors import (
    OpenManagerError,
    OutOfRangeError,
    ResourceExhaustedError,
    UnauthenticatedError,
    UnavailableError,
)
from openmanager_console.session import showing
from openmanager_console.wire import as_dict

AGAIN_SECONDS = 0.5
# Every watch says something at least every 10 s.
SILENCE_SECONDS = 12.0
# Of what a page can show; the rest is counted.
MAX_SERVERS = 5_000
MAX_ANOMALIES = 200
MAX_ALERTS = 100
# A page that goes and comes again, as by a reload, finds its watches.
LINGER_SECONDS = 5.0

STATUS, FLEET, ANOMALIES, ALERTS = "status", "fleet", "anomalies", "alerts"

_UNKNOWN = object()

log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Page:
    """One page that follows, and what it has not been told yet. `fresh`: it knows of no server.

    `refused`: a watch with its credential was, and none is begun before the credential has been checked.
    """

    credential: Credential
    told: asyncio.Event = field(default_factory=asyncio.Event)
    topics: set[str] = field(default_factory=lambda: {STATUS, FLEET, ANOMALIES, ALERTS})
    fresh: bool = True
    refused: bool = False
    servers: set[str] = field(default_factory=set)

    def note(self, topic: str) -> None:
        """Take note that something of a topic has changed."""
        self.topics.add(topic)
        self.told.set()


class Feed:
    """All that one person's pages follow. `trouble` says of each topic why it is not known now, empty where it is."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.pages: dict[Page, None] = {}
        self.board: dict[str, Any] | None = None
        self.servers: dict[str, list[Any]] = {}
        self.left_out = 0
        self.anomalies: dict[str, dict[str, Any]] = {}
        # Those that fire, by id.
        self.alerts: dict[str, dict[str, Any]] = {}
        self.trouble: dict[str, OpenManagerError | None] = {}
        self._beyond: set[str] = set()
        self._tokens: dict[str, str] = {}
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to watch."""
        watches = {STATUS: self._status, FLEET: self._fleet, ANOMALIES: self._anomalies, ALERTS: self._alerts}
        self._tasks = [asyncio.create_task(self._follow(topic, watch)) for topic, watch in watches.items()]

    async def close(self) -> None:
        """Stop watching."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def news(self, page: Page) -> dict[str, Any]:
        """Return what a page has not been told, and take it as told."""
        topics, page.topics = page.topics, set()
        page.told.clear()
        found: dict[str, Any] = {}
        for topic in topics:
            trouble = self.trouble.get(topic)
            news = {
                STATUS: self._status_news,
                FLEET: self._fleet_news,
                ANOMALIES: self._anomaly_news,
                ALERTS: self._alert_news,
            }
            content = news[topic](page)
            about = None if trouble is None else {"message": trouble.message, "reason": trouble.reason}
            if content is not None or about is not None:
                found[topic] = {"trouble": about, **(content or {})}
        return found

    def _status_news(self, _: Page) -> dict[str, Any] | None:
        return None if self.board is None else {"board": self.board}

    def _anomaly_news(self, _: Page) -> dict[str, Any] | None:
        return {"anomalies": list(self.anomalies.values())} if ANOMALIES in self.trouble else None

    def _alert_news(self, _: Page) -> dict[str, Any] | None:
        """Return the gravest and newest that fire, and how many there are of each severity."""
        if ALERTS not in self.trouble:
            return None
        found = sorted(self.alerts.values(), key=lambda each: (each["gravity"], each["since"]), reverse=True)
        return {"alerts": found[:MAX_ALERTS], "counts": Counter(each["severity"] for each in found)}

    def _fleet_news(self, page: Page) -> dict[str, Any] | None:
        if FLEET not in self.trouble:
            return None
        changed, page.servers = page.servers, set()
        if page.fresh:
            page.fresh = False
            return {"reset": True, "servers": list(self.servers.values()), "gone": [], "left_out": self.left_out}
        here = [self.servers[each] for each in changed if each in self.servers]
        gone = [each for each in changed if each not in self.servers]
        return {"reset": False, "servers": here, "gone": gone, "left_out": self.left_out}

    async def _follow(self, topic: str, watch: Callable[[], Awaitable[None]]) -> None:
        """Watch for ever, as one of those who have pages here."""
        while True:
            page = next((each for each in self.pages if not each.refused), None)
            if page is not None:
                try:
                    with showing(page.credential):
                        await watch()
                except OutOfRangeError:
                    self._tokens.pop(topic, None)
                except OpenManagerError as err:
                    self._lost(topic, err)
                    if isinstance(err, UnauthenticatedError):
                        # Another page's credential may still hold. To try this one again and again would be guessing.
                        page.refused = True
                        page.told.set()
                except Exception:
                    log.exception("a watch has failed")
            await asyncio.sleep(AGAIN_SECONDS)

    def _tell(self, topic: str) -> None:
        for page in self.pages:
            page.note(topic)

    def _well(self, topic: str) -> None:
        self.trouble[topic] = None
        self._tell(topic)

    def _lost(self, topic: str, err: OpenManagerError) -> None:
        known = self.trouble.get(topic)
        if known is None or (known.message, known.reason) != (err.message, err.reason):
            self.trouble[topic] = err
            self._tell(topic)

    async def _status(self) -> None:
        async for message in self._stream(rpc.WATCH_STORAGE_STATUS, gateway_pb2.WatchStorageStatusRequest()):
            self.board = as_dict(message.status)
            self._well(STATUS)

    async def _fleet(self) -> None:
        request = gateway_pb2.WatchServersRequest(resume_token=self._tokens.get(FLEET, ""))
        begins = not request.resume_token
        async for message in self._stream(rpc.WATCH_SERVERS, request):
            if begins and message.kind == server_pb2.WATCH_KIND_CREATED:
                self._forget_servers()
            changed = self._take(message.servers, message.deleted_ids)
            for page in self.pages:
                if not page.fresh:
                    page.servers |= changed
            # A snapshot has a token when it is whole, and is told of then.
            if message.kind != server_pb2.WATCH_KIND_CREATED and message.resume_token:
                self._tokens[FLEET] = message.resume_token
                if changed or FLEET not in self.trouble or self.trouble[FLEET] is not None:
                    self._well(FLEET)

    def _forget_servers(self) -> None:
        self.servers.clear()
        self._beyond.clear()
        for page in self.pages:
            page.fresh = True

    async def _anomalies(self) -> None:
        if ANOMALIES not in self._tokens:
            request = analysis_pb2.ListAnomaliesRequest(page_size=MAX_ANOMALIES // 2)
            found = await self._client.rpc.call(rpc.LIST_ANOMALIES, request)
            self.anomalies = {each.id: as_dict(each) for each in reversed(found.anomalies)}
            self._well(ANOMALIES)
        watch = analysis_pb2.WatchAnomaliesRequest(resume_token=self._tokens.get(ANOMALIES, ""))
        async for message in self._stream(rpc.WATCH_ANOMALIES, watch):
            self._tokens[ANOMALIES] = message.resume_token
            for each in message.anomalies:
                self.anomalies.pop(each.id, None)
                self.anomalies[each.id] = as_dict(each)
            while len(self.anomalies) > MAX_ANOMALIES:
                del self.anomalies[next(iter(self.anomalies))]
            if message.anomalies or self.trouble[ANOMALIES] is not None:
                self._well(ANOMALIES)

    async def _alerts(self) -> None:
        request = alert_pb2.WatchAlertsRequest(resume_token=self._tokens.get(ALERTS, ""))
        firing = self.alerts if request.resume_token else {}
        async for message in self._stream(rpc.WATCH_ALERTS, request):
            for each in message.alerts:
                firing.pop(each.id, None)
                if each.state == alert_pb2.ALERT_STATE_FIRING:
                    firing[each.id] = alert_row(each)
            # What fires now is whole when a message without any has come; until then the token is of a part.
            if firing is not self.alerts and message.alerts:
                continue
            is_news = (
                bool(message.alerts) or firing is not self.alerts or self.trouble.get(ALERTS, _UNKNOWN) is not None
            )
            self.alerts, self._tokens[ALERTS] = firing, message.resume_token
            if is_news:
                self._well(ALERTS)

    async def _stream(self, method: rpc.Method[Any], request: Any) -> AsyncIterator[Any]:
        """Yield the messages of a watch; UnavailableError when it ends, or says nothing."""
        async with contextlib.aclosing(rpc.closable(self._client.rpc.stream(method, request, seconds=None))) as replies:
            while True:
                try:
                    async with asyncio.timeout(SILENCE_SECONDS):
                        message = await anext(replies)
                except StopAsyncIteration:
                    raise UnavailableError("the gateway ended the watch") from None
                except TimeoutError as err:
                    raise UnavailableError("the gateway does not answer") from err
                yield message

    def _take(self, servers: Any, deleted: Any) -> set[str]:
        changed = set()
        for each in servers:
            if each.id not in self.servers and len(self.servers) >= MAX_SERVERS:
                self._beyond.add(each.id)
                continue
            self.servers[each.id] = row(each)
            changed.add(each.id)
        for name in deleted:
            self._beyond.discard(name)
            if self.servers.pop(name, None) is not None:
                changed.add(name)
        self.left_out = len(self._beyond)
        return changed


def row(server: Any) -> list[Any]:
    """Return a server as the page keeps it: short, for there may be thousands."""
    return [
        server.id,
        server_pb2.ServerState.Name(server.state).removeprefix("SERVER_STATE_"),
        *(round(getattr(server, name), 1) if server.HasField(name) else None for name in USAGES),
        server.environment,
        server.role,
        server.location,
        server.state_reason,
        server.sample_time.ToMilliseconds(),
    ]


def alert_row(alert: alert_pb2.Alert) -> dict[str, Any]:
    """Return an alert as a page shows it."""
    return {
        "id": alert.id,
        "severity": alert_pb2.AlertSeverity.Name(alert.severity).removeprefix("ALERT_SEVERITY_"),
        "gravity": alert.severity,
        "rule": alert.labels.get("alertname", alert.rule),
        "server": alert.server,
        "metric": alert.metric,
        "since": alert.fire_time.ToMilliseconds(),
        "summary": alert.annotations.get("summary", ""),
        "stale": alert.stale,
        "suppressed": "silenced" if alert.silenced_by else "inhibited" if alert.inhibited_by else "",
    }


USAGES = ("cpu_usage", "memory_usage", "disk_usage")


class Feeds:
    """The feeds of all who have pages: `most_pages` in all, of `most_people`."""

    def __init__(self, client: Client, *, most_pages: int, most_people: int) -> None:
        self._client = client
        self._most_pages = most_pages
        self._most_people = most_people
        self._feeds: dict[str, Feed] = {}
        self._closing: dict[str, asyncio.TimerHandle] = {}
        self._ended: set[asyncio.Task[None]] = set()

    @property
    def page_count(self) -> int:
        """How many pages follow."""
        return sum(len(feed.pages) for feed in self._feeds.values())

    @contextlib.contextmanager
    def follow(self, who: str, credential: Credential) -> Iterator[tuple[Feed, Page]]:
        """Yield the feed of somebody and a page on it; ResourceExhaustedError when there is no room."""
        if self.page_count >= self._most_pages:
            raise ResourceExhaustedError(f"more than {self._most_pages} pages follow")
        feed = self._feeds.get(who)
        if feed is None:
            feed = self._open(who)
        if (timer := self._closing.pop(who, None)) is not None:
            timer.cancel()
        page = Page(credential)
        feed.pages[page] = None
        try:
            yield feed, page
        finally:
            del feed.pages[page]
            if not feed.pages:
                loop = asyncio.get_running_loop()
                self._closing[who] = loop.call_later(LINGER_SECONDS, self._close, who)

    def _open(self, who: str) -> Feed:
        while len(self._feeds) >= self._most_people and self._closing:
            oldest = next(iter(self._closing))
            self._closing[oldest].cancel()
            self._close(oldest)
        if len(self._feeds) >= self._most_people:
            raise ResourceExhaustedError(f"more than {self._most_people} people have pages that follow")
        feed = self._feeds[who] = Feed(self._client)
        feed.start()
        return feed

    def _close(self, who: str) -> None:
        self._closing.pop(who, None)
        self._end(self._feeds.pop(who))

    def _end(self, feed: Feed) -> None:
        task = asyncio.create_task(feed.close())
        self._ended.add(task)
        task.add_done_callback(self._ended.discard)

    async def close(self) -> None:
        """End all of them."""
        for timer in self._closing.values():
            timer.cancel()
        feeds = list(self._feeds.values())
        self._feeds.clear()
        self._closing.clear()
        for feed in feeds:
            self._end(feed)
        await asyncio.gather(*self._ended, return_exceptions=True)

"""The edge of the console: what is answered under which path."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
from aiohttp import web
from prometheus_client.core import GaugeMetricFamily, Metric

from openmanager.api.gateway.v1 import gateway_pb2
from openmanager.api.metadata.v1 import identity_pb2
from openmanager.client import Client, rpc
from openmanager.client.credential import Credential, Token
from openmanager.errors import (
    InvalidArgumentError,
    OpenManagerError,
    PermissionDeniedError,
    Reason,
    UnauthenticatedError,
    credentials_invalid,
    invalid,
)
from openmanager.runtime.attempts import Attempts
from openmanager.runtime.clock import Clock
from openmanager.runtime.gate import BEARER, MAX_CREDENTIAL
from openmanager_console import measure, reading
from openmanager_console.feed import Feed, Feeds, Page
from openmanager_console.guard import endless
from openmanager_console.otlp import Receiver
from openmanager_console.session import ANYBODY, Session, Sessions, showing
from openmanager_console.wire import JSON, Budget, as_dict, dumps, json_response, read_body

COOKIE = "openmanager-session"
FOLDER = Path(__file__).with_name("page")
KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# Between two messages to a page: what happens meanwhile is told at once.
PACE_SECONDS = 0.25
HEARTBEAT_SECONDS = 5.0
# How often it is asked whether somebody may still see what they see.
RECHECK_SECONDS = 15.0
BODY_BUDGET = 32 * 1024 * 1024
MAX_FORM_BYTES = 8 * 1024


class ConsoleService:
    """Every handler; `connections` is set to what says how many there are."""

    def __init__(self, client: Client, *, clock: Clock, feeds: Feeds, secure: bool, anonymous: bool) -> None:
        self._client = client
        # Whether the gateway may be called without credentials, which makes one the local administrator where it is local.
        self._anonymous = anonymous
        self._feeds = feeds
        self._sessions = Sessions(client.sessions, clock)
        # Fewer than the gateway allows an address, which may be ours for everybody here.
        self._attempts = Attempts(clock, most=5)
        self._budget = Budget(BODY_BUDGET)
        self._receiver = Receiver(client, self._budget)
        self._secure = secure
        self.connections: Callable[[], int] = lambda: 0

    def routes(self) -> list[web.RouteDef]:
        """Return what is answered."""
        client = self._client
        return [
            *(web.get(path, serve) for path, serve in _files()),
            web.get("/healthz", self.health),
            web.get("/metrics", self.metrics),
            web.post("/v1/metrics", self.export),
            web.get("/api/events", self.events),
            web.get("/api/session", self.session),
            web.post("/api/session", self.sign_in),
            web.delete("/api/session", self.sign_out),
            web.get("/api/servers/{id}", self._read(lambda ask: reading.server(client, ask.match_info["id"]))),
            web.get(
                "/api/servers/{id}/anomalies",
                self._read(lambda ask: reading.anomalies(client, ask.match_info["id"], ask.query)),
            ),
            web.get(
                "/api/servers/{id}/faults",
                self._read(lambda ask: reading.faults(client, ask.match_info["id"], ask.query)),
            ),
            web.get("/api/chart", self._read(lambda ask: reading.chart(client, ask.query))),
            web.get("/api/forecast", self._read(lambda ask: reading.forecast(client, ask.query))),
        ]

    async def health(self, _: web.Request) -> web.Response:
        """Say that this process serves; how the mesh is, is another matter."""
        return web.Response(text="ok\n")

    async def metrics(self, request: web.Request) -> web.Response:
        """Return the page of measures."""
        with showing(self._credential(request)):
            body = await measure.page(self._client, self._own)
        return web.Response(body=body, headers={"Content-Type": measure.CONTENT_TYPE})

    async def export(self, request: web.Request) -> web.Response:
        """Take an export of OpenTelemetry metrics; who sends it comes with a key of their own, if one is needed."""
        return await self._receiver.export(request, lambda: _bearer(request) or self._nobody())

    def _read(self, read: Callable[[web.Request], Awaitable[Any]]) -> Callable[[web.Request], Awaitable[web.Response]]:
        """Return the handler that answers with what is read for whoever asks."""

        async def answer(request: web.Request) -> web.Response:
            with showing(self._credential(request)):
                return json_response(await read(request))

        return answer

    # ── being somebody ─────────────────────────────────────────────────────────────────────────────────────────────

    async def session(self, request: web.Request) -> web.Response:
        """Return who is asking and what they may do."""
        with showing(self._credential(request)):
            reply = await self._client.rpc.call(rpc.GET_IDENTITY, identity_pb2.GetIdentityRequest())
        return json_response({**as_dict(reply), "signed_in": COOKIE in request.cookies})

    async def sign_in(self, request: web.Request) -> web.Response:
        """Begin a session by name and password."""
        name, password = await self._form(request)
        source = request.remote or ""
        self._attempts.check(source, name)
        try:
            ident, session = await self._sessions.begin(name, password)
        except UnauthenticatedError:
            self._attempts.failed(source, name)
            raise
        response = json_response({"name": session.name})
        response.set_cookie(COOKIE, ident, httponly=True, samesite="Strict", secure=self._secure, path="/api/")
        return response

    async def sign_out(self, request: web.Request) -> web.Response:
        """End the session."""
        response = json_response({})
        response.del_cookie(COOKIE, path="/api/")
        # Here it has ended, and there it will.
        with contextlib.suppress(OpenManagerError):
            await self._sessions.end(request.cookies.get(COOKIE, ""))
        return response

    async def _form(self, request: web.Request) -> tuple[str, str]:
        if request.content_type != JSON:
            raise invalid("Content-Type", f"must be {JSON}")
        with self._budget.account() as account:
            body = await read_body(request, account, most=MAX_FORM_BYTES)
        try:
            found = orjson.loads(body)
            name, password = found["name"], found["password"]
        except (ValueError, KeyError, TypeError) as err:
            raise InvalidArgumentError("name and password are required", reason=Reason.MALFORMED_MESSAGE) from err
        if not isinstance(name, str) or not isinstance(password, str) or not name or not password:
            raise InvalidArgumentError("name and password are required", field="name")
        return name, password

    def _credential(self, request: web.Request) -> Credential:
        """Return what a request comes with: a key or token, a session, or nothing."""
        if (token := _bearer(request)) is not None:
            return token
        if (ident := request.cookies.get(COOKIE)) is not None:
            return self._sessions.find(ident)
        return self._nobody()

    def _nobody(self) -> Credential:
        if not self._anonymous:
            raise UnauthenticatedError("credentials are required")
        return ANYBODY

    # ── what happens ───────────────────────────────────────────────────────────────────────────────────────────────

    @endless
    async def events(self, request: web.Request) -> web.StreamResponse:
        """Stream what happens, as server-sent events, until the page goes or may not see it any more."""
        credential = self._credential(request)
        with showing(credential), self._feeds.follow(_who(credential), credential) as (feed, page):
            await self._check(credential)
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "X-Accel-Buffering": "no"})
            # A page that goes is the usual end.
            with contextlib.suppress(ConnectionError):
                await response.prepare(request)
                await self._tell(response, feed, page, credential)
        return response

    async def _tell(self, response: web.StreamResponse, feed: Feed, page: Page, credential: Credential) -> None:
        now = asyncio.get_running_loop().time
        checked = now()
        while True:
            news = feed.news(page)
            await response.write(
                b"".join(event(topic, content) for topic, content in news.items()) or event("beat", {})
            )
            await asyncio.sleep(PACE_SECONDS)
            try:
                async with asyncio.timeout(HEARTBEAT_SECONDS):
                    await page.told.wait()
            except TimeoutError:
                pass  # each side sees by a beat that the other is still there
            if page.refused or now() - checked > RECHECK_SECONDS:
                checked = now()
                try:
                    await self._check(credential)
                except OpenManagerError as err:
                    await response.write(event("end", {"message": err.message, "reason": err.reason}))
                    return
                page.refused = False

    async def _check(self, credential: Credential) -> None:
        """Raise UnauthenticatedError or PermissionDeniedError for whoever may not see the fleet; others are let be."""
        with showing(credential):
            try:
                await self._client.rpc.call(rpc.GET_FLEET_SUMMARY, gateway_pb2.GetFleetSummaryRequest())
            except (UnauthenticatedError, PermissionDeniedError):
                raise
            except OpenManagerError:
                return

    def _own(self) -> Iterator[Metric]:
        yield GaugeMetricFamily(
            "openmanager_console_connections", "Connections to the console.", value=self.connections()
        )
        yield GaugeMetricFamily("openmanager_console_pages", "Pages that follow.", value=self._feeds.page_count)


def event(topic: str, content: Any) -> bytes:
    """Return a server-sent event; JSON has no line breaks."""
    return b"event: %s\ndata: %s\n\n" % (topic.encode(), dumps(content))


def _who(credential: Credential) -> str:
    """Return the same for all pages of the same person."""
    if isinstance(credential, Session):
        return f"user {credential.name}"
    shown = repr(credential.metadata())
    return "" if credential is ANYBODY else f"key {hashlib.sha256(shown.encode()).hexdigest()}"


def _bearer(request: web.Request) -> Token | None:
    """Return the key or token that a request shows; None when it shows nothing."""
    text = request.headers.get("Authorization")
    if text is None:
        return None
    if text[: len(BEARER)].lower() != BEARER or len(text) > MAX_CREDENTIAL or not text.isascii():
        raise credentials_invalid("authorization must be “Bearer” and a token or key")
    return Token(text[len(BEARER) :].strip())


def _files() -> Iterator[tuple[str, Any]]:
    """Yield the files of the page, read once, with the paths that they have."""
    for file in sorted(FOLDER.rglob("*")):
        if file.suffix in KINDS:
            path = "/" + file.relative_to(FOLDER).as_posix()
            yield "/" if path == "/index.html" else path, _file(file.read_bytes(), KINDS[file.suffix])


def _file(body: bytes, kind: str) -> Any:
    tag = f'"{hashlib.sha256(body).hexdigest()[:20]}"'

    async def serve(request: web.Request) -> web.Response:
        headers = {"ETag": tag, "Cache-Control": "no-cache"}
        if request.headers.get("If-None-Match") == tag:
            return web.Response(status=304, headers=headers)
        return web.Response(body=body, headers={**headers, "Content-Type": kind})

    return serve

"""Webhooks over real HTTP: what is posted, what is refused, who is never asked, and how receivers are listed."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from openmanager_analysis.alerting.receivers import Receiver, WebhookError, load
from openmanager_analysis.alerting.webhook import Webhook, is_public

from openmanager.config import Secret
from openmanager.errors import ConfigurationError

DOCUMENT = {"version": "4", "alerts": []}
NOT_PUBLIC = "has an address that is not public, which its `allow_private` does not allow"


@contextlib.asynccontextmanager
async def served(handle: Callable[[web.Request], Any]) -> AsyncIterator[str]:
    """Serve every path on loopback; yield the URL."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}/hook?token=sesame"
    finally:
        await runner.cleanup()


@contextlib.asynccontextmanager
async def opened(url: str, *, seconds: float = 5.0, **more: Any) -> AsyncIterator[Webhook]:
    hook = Webhook(Receiver(name="ops", url=Secret(url), **{"allow_private": True} | more), seconds=seconds)
    try:
        yield hook
    finally:
        await hook.close()


async def test_a_document_is_posted_with_the_secret_as_its_file_holds_it_now(tmp_path: Path):
    seen: list[tuple[str, str, str, Any]] = []

    async def handle(request: web.Request) -> web.Response:
        seen.append((request.method, request.path_qs, request.headers.get("Authorization", ""), await request.json()))
        return web.Response(status=204)

    file = tmp_path / "token"
    file.write_text("Bearer one\n")
    async with served(handle) as url, opened(url, authorization=Secret("Bearer one", file)) as hook:
        await hook.post(DOCUMENT)
        file.write_text("Bearer two\n")
        await hook.post(DOCUMENT)
    assert seen == [("POST", "/hook?token=sesame", f"Bearer {word}", DOCUMENT) for word in ("one", "two")]


@pytest.mark.parametrize("status", [301, 302, 307, 400, 401, 404, 429, 500, 503])
async def test_any_other_answer_is_a_refusal_and_nobody_is_followed_elsewhere(status: int):
    asked = []

    async def handle(request: web.Request) -> web.Response:
        asked.append(request.path)
        return web.Response(status=status, headers={"Location": "/elsewhere"}, text="internal: sesame")

    async with served(handle) as url, opened(url) as hook:
        with pytest.raises(WebhookError, match=f"^answers {status}$"):
            await hook.post(DOCUMENT)
    assert asked == ["/hook"]


async def test_who_does_not_answer_in_time_is_given_up():
    release = asyncio.Event()

    async def handle(request: web.Request) -> web.Response:
        await release.wait()
        return web.Response()

    async with served(handle) as url, opened(url, seconds=0.2) as hook:
        with pytest.raises(WebhookError, match=r"^does not answer$"):
            await hook.post(DOCUMENT)
        release.set()


async def test_who_closes_the_connection_and_who_is_not_there_are_told_so():
    async def handle(request: web.Request) -> web.Response:
        assert request.transport is not None
        request.transport.close()
        return web.Response()

    async with served(handle) as url, opened(url) as hook:
        with pytest.raises(WebhookError, match=r"^cannot be reached$"):
            await hook.post(DOCUMENT)
    async with opened("http://127.0.0.1:1/") as hook:
        with pytest.raises(WebhookError, match=r"^cannot be reached$"):
            await hook.post(DOCUMENT)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "2130706433", "127.1", "[::1]", "[::ffff:127.0.0.1]"])
async def test_addresses_that_are_not_public_are_not_asked_unless_the_operator_allows_it(host: str):
    asked = []

    async def handle(request: web.Request) -> web.Response:
        asked.append(request.path)
        return web.Response()

    async with served(handle) as url, opened(url.replace("127.0.0.1", host), allow_private=False) as hook:
        with pytest.raises(WebhookError, match=f"^{NOT_PUBLIC}$"):
            await hook.post(DOCUMENT)
    assert asked == []


async def test_a_name_is_refused_when_any_of_its_addresses_is_not_public(monkeypatch):
    def resolved(*_: object, **__: object) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, 80)) for each in ("8.8.8.8", "10.0.0.1")]

    monkeypatch.setattr(socket, "getaddrinfo", resolved)
    async with opened("http://rebound.example/", allow_private=False) as hook:
        with pytest.raises(WebhookError, match=f"^{NOT_PUBLIC}$"):
            await hook.post(DOCUMENT)


async def test_names_that_nobody_resolves_keep_no_thread_from_those_who_write_files(monkeypatch):
    release = threading.Event()

    def hangs(*_: object, **__: object) -> list[Any]:
        release.wait(30)
        raise socket.gaierror(socket.EAI_AGAIN, "nobody answers")

    monkeypatch.setattr(socket, "getaddrinfo", hangs)
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(2))
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(release.set)
        hooks = [await stack.enter_async_context(opened("http://ops.example/", seconds=0.1)) for _ in range(6)]
        refused = await asyncio.gather(*(hook.post(DOCUMENT) for hook in hooks), return_exceptions=True)
        assert {str(each) for each in refused} == {"does not answer"}
        async with asyncio.timeout(10):
            assert await asyncio.to_thread(lambda: "written") == "written"


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1",
        "255.255.255.255", "::", "::1", "fe80::1%eth0", "fc00::1", "ff02::1", "::ffff:10.0.0.1", "64:ff9b::a00:1",
        "2002:a00:1::", "fec0::1", "64:ff9b:1::a00:1", "::127.0.0.1", "4000::1",
    ],
)  # fmt: skip
def test_these_addresses_are_not_public(address: str):
    assert not is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111", "64:ff9b::808:808", "::ffff:8.8.8.8"])
def test_these_addresses_are_public(address: str):
    assert is_public(address)


async def test_neither_the_url_nor_the_secret_is_in_an_error_a_log_or_a_repr(caplog, tmp_path: Path):
    caplog.set_level(logging.DEBUG)
    receiver = Receiver(
        name="ops", url=Secret("http://127.0.0.1:1/?token=sesame"), authorization=Secret("Bearer sesame")
    )
    hook = Webhook(receiver)
    with pytest.raises(WebhookError) as refused:
        await hook.post(DOCUMENT)
    await hook.close()
    assert "sesame" not in f"{refused.value}{receiver!r}{caplog.text}"


# ── the list ───────────────────────────────────────────────────────────────────────────────────────────────────────


def listed(folder: Path, text: str) -> list[Receiver]:
    file = folder / "receivers.toml"
    file.write_text(text, encoding="utf-8")
    return load(file)


def test_receivers_are_what_the_file_lists(tmp_path: Path):
    (tmp_path / "token").write_text("Bearer sesame\n")
    ops, chat = listed(
        tmp_path,
        f"""
        [ops]
        url = "https://ops.example/hook"
        authorization_file = "{tmp_path / "token"}"
        matcher = "severity = critical"
        group_by = ["alertname", "server"]
        [chat]
        url = "http://10.0.0.1:8080/"
        allow_private = true
        """,
    )
    assert (ops.name, ops.url.reveal(), ops.authorization.reveal()) == (
        "ops",
        "https://ops.example/hook",
        "Bearer sesame",
    )
    assert (ops.matcher, ops.group_by, ops.allow_private) == ("severity = critical", ("alertname", "server"), False)
    assert (chat.name, chat.allow_private, chat.group_by) == ("chat", True, ("alertname",))
    assert load(Path()) == []


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[ops]", "url must be"),
        ('[ops]\nurl = "ftp://x/"', "url must be"),
        ('[ops]\nurl = "file:///etc/passwd"', "url must be"),
        ('[ops]\nurl = "https://user:secret@x/"', "url must be"),
        ('[ops]\nurl = "https://x:99999/"', "url must be"),
        ('[ops]\nurl = "https://x/\\n"', "url must be"),
        ('["Ops!"]\nurl = "https://x/"', "name is"),
        ('[ops]\nurl = "https://x/"\nproxy = "y"', "'proxy'"),
        ('[ops]\nurl = "https://x/"\nallow_private = "no"', "'allow_private'"),
        ('[ops]\nurl = "https://x/"\nmatcher = "colour = red"', "unknown field"),
        ('[ops]\nurl = "https://x/"\nauthorization_file = "/nowhere"', "authorization_file cannot be read"),
        ('[ops]\nurl = "https://x/"\ngroup_by = [1]', "group_by"),
        ("ops = 1", "must be a table"),
        ("[ops", "is not a TOML file"),
        ("".join(f'[r{n}]\nurl = "https://x/"\n' for n in range(21)), "more than 20"),
    ],
)
def test_a_list_that_is_none_is_refused_at_the_start_without_showing_a_url(tmp_path: Path, text: str, why: str):
    with pytest.raises(ConfigurationError) as refused:
        listed(tmp_path, text)
    assert why in refused.value.message
    assert "secret" not in refused.value.message


def test_a_list_that_is_not_there_is_refused(tmp_path: Path):
    with pytest.raises(ConfigurationError, match="cannot read"):
        load(tmp_path / "nothing.toml")

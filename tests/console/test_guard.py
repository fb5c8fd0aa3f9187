"""Who may call the console, and what browsers are told to do with what it answers."""

from __future__ import annotations

import grpc
import pytest

from console.served import Console, serving

STRANGER = "http://evil.example"


@pytest.mark.parametrize("host", ["127.0.0.1:50080", "localhost:50080", "LOCALHOST", "[::1]:50080", "10.1.2.3"])
async def test_names_of_this_machine_and_addresses_are_taken(lonely: Console, host):
    assert (await lonely.ask("GET", "/", headers={"Host": host}))[0] == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:50080", "evil.example@127.0.0.1:x", "[::1", ""],
)
@pytest.mark.parametrize("path", ["/", "/healthz", "/metrics", "/api/session", "/api/events", "/nothing"])
async def test_a_name_that_an_attacker_leads_here_is_refused(lonely: Console, host, path):
    status, body, _ = await lonely.ask("GET", path, headers={"Host": host})
    assert (status, body["error"]["reason"]) == (403, "PERMISSION_DENIED")


async def test_a_name_of_the_configuration_is_taken():
    async with serving(hosts="console, Status.Example.net") as made:
        for host in ("console:50080", "status.example.net"):
            assert (await made.ask("GET", "/", headers={"Host": host}))[0] == 200


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"),
        ("GET", "/api/session"),
        ("GET", "/metrics"),
        ("POST", "/v1/metrics"),
        ("POST", "/api/session"),
        ("DELETE", "/api/session"),
    ],
)
@pytest.mark.parametrize("origin", [STRANGER, "null", "http://127.0.0.1:1", "https://HOST", "file://"])
async def test_a_page_of_another_origin_is_refused(lonely: Console, method, path, origin):
    headers = {"Origin": origin.replace("HOST", lonely.address)}
    status, body, told = await lonely.ask(method, path, headers=headers)
    assert (status, body["error"]["message"]) == (403, "pages of other sites may not call this console")
    assert not [name for name in told if name.lower().startswith("access-control-")]


async def test_its_own_page_is_not(lonely: Console):
    headers = {"Origin": lonely.url, "Sec-Fetch-Site": "same-origin"}
    assert (await lonely.ask("GET", "/", headers=headers))[0] == 200


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
async def test_what_the_browser_says_of_another_site_is_enough(lonely: Console, site):
    headers = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "script"}
    for path in ("/", "/main.js", "/api/session", "/metrics"):
        assert (await lonely.ask("GET", path, headers=headers))[0] == 403


async def test_a_link_of_another_site_leads_to_the_page_alone(lonely: Console):
    headers = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    assert (await lonely.ask("GET", "/", headers=headers))[0] == 200
    assert (await lonely.ask("GET", "/api/session", headers=headers))[0] == 403


async def test_a_question_for_leave_gets_none(lonely: Console):
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
    status, _, told = await lonely.ask("OPTIONS", "/v1/metrics", headers={"Origin": STRANGER, **asked})
    assert status == 403
    assert not [name for name in told if name.lower().startswith("access-control-")]


@pytest.mark.parametrize("path", ["/", "/main.js", "/api/session", "/nothing", "/metrics"])
async def test_every_answer_tells_browsers_what_they_may_not(lonely: Console, path):
    _, _, told = await lonely.ask("GET", path)
    policy = dict(part.split(" ", 1) for part in told["Content-Security-Policy"].split("; "))
    assert (policy["default-src"], policy["script-src"], policy["frame-ancestors"]) == ("'none'", "'self'", "'none'")
    assert "unsafe" not in told["Content-Security-Policy"]
    assert (told["X-Content-Type-Options"], told["Referrer-Policy"]) == ("nosniff", "no-referrer")
    assert told["Cross-Origin-Resource-Policy"] == "same-origin"
    assert "aiohttp" not in told["Server"]
    assert told["Cache-Control"] in {"no-store", "no-cache"}


async def test_the_page_has_no_script_or_style_in_it_and_needs_nobody_else(lonely: Console):
    _, body, _ = await lonely.ask("GET", "/")
    text = body.decode()
    assert "<style" not in text
    assert " style=" not in text
    assert "://" not in text
    assert text.count("<script") == 1


@pytest.mark.parametrize(
    "path",
    [
        "/../config.py",
        "/%2e%2e/config.py",
        "/page/index.html",
        "/vendor/uplot/",
        "/vendor/uplot/LICENSE",
        "//etc/passwd",
        "/index.html",
    ],
)
async def test_only_the_files_of_the_page_are_served(lonely: Console, path):
    assert (await lonely.ask("GET", path))[0] == 404


async def test_a_file_is_sent_again_only_when_it_has_changed(lonely: Console):
    status, _, told = await lonely.ask("GET", "/main.js")
    assert status == 200
    assert (await lonely.ask("GET", "/main.js", headers={"If-None-Match": told["ETag"]}))[:2] == (304, b"")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("POST", "/", 405), ("GET", "/v1/metrics", 405), ("PUT", "/api/session", 405), ("GET", "/api/nothing", 404)],
)
async def test_what_there_is_not_is_said_in_words(lonely: Console, method, path, status):
    found, body, _ = await lonely.ask(method, path)
    assert found == status
    assert body["error"]["message"] in {"this cannot be done here", "there is no such page"}


async def test_the_gateway_is_told_the_address_that_is_served():
    seen: list[dict[str, str]] = []

    async def identity(_: bytes, context: grpc.aio.ServicerContext) -> bytes:
        seen.append({key: str(value) for key, value in context.invocation_metadata() or ()})
        return b""

    server = grpc.aio.server()
    handler = grpc.unary_unary_rpc_method_handler(identity)
    service = "openmanager.api.metadata.v1.SessionService"
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {"GetIdentity": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with serving(f"127.0.0.1:{port}") as console:
            status, _, _ = await console.ask("GET", "/api/session", headers={"X-Forwarded-For": "192.0.2.1"})
    finally:
        await server.stop(None)
    assert (status, [each["x-forwarded-for"] for each in seen]) == (200, ["127.0.0.1"])

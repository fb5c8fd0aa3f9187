"""Being somebody at the console of a mesh that asks who one is."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import aiohttp
import pytest
from conftest import PATIENT, Mesh, child, environment, running_mesh, wait_until

from console.served import PROTOBUF, Console, serving
from openmanager.client import Client
from openmanager.client.people import Grant

PASSWORD = "correct horse battery staple"
pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def guarded() -> Iterator[Mesh]:
    """A mesh that asks everybody for credentials."""
    with running_mesh(environment={"OPENMANAGER_AUTH": "required", **PATIENT}) as mesh:
        yield mesh


@pytest.fixture
async def admin(guarded: Mesh) -> str:
    """The key of an administrator, made by the invitation that the first start leaves."""
    kept = guarded.data / "test-key"
    if not kept.exists():
        async with Client(guarded.gateway) as client:
            _, tokens = await client.users.accept(
                (guarded.data / "credentials/admin-invitation").read_text().strip(), PASSWORD
            )
        async with Client(guarded.gateway, credential=tokens.access_token) as client:
            _, key = await client.keys.create("test", [Grant("admin")])
            _, invitation = await client.users.create("vera", [Grant("viewer")])
            async with Client(guarded.gateway) as nobody:
                await nobody.users.accept(invitation.text, PASSWORD)
        kept.write_text(key)
    return kept.read_text()


@pytest.fixture
async def browser(guarded: Mesh, admin: str) -> AsyncIterator[Console]:
    async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as session:
        made = Console(guarded.console.removeprefix("http://"), session)

        async def answers() -> bool:
            try:
                return (await made.ask("GET", "/healthz"))[0] == 200
            except aiohttp.ClientError:
                return False

        await wait_until(answers, 30)
        yield made


async def sign_in(browser: Console, name: str = "vera", password: str = PASSWORD):
    return await browser.ask("POST", "/api/session", json={"name": name, "password": password})


@pytest.mark.parametrize(
    "path",
    ["/api/session", "/api/events", "/metrics", "/api/servers/x", "/api/chart?server=a&metric=b&start=1&end=2&step=1"],
)
async def test_nobody_sees_anything_but_the_page(browser: Console, path):
    status, body, _ = await browser.ask("GET", path)
    assert (status, body["error"]["reason"]) == (401, "CREDENTIALS_REQUIRED")
    assert (await browser.ask("GET", "/"))[0] == 200


async def test_a_session_is_in_a_cookie_that_nobody_else_sees_and_ends(browser: Console):
    status, body, told = await sign_in(browser)
    assert (status, body) == (200, {"name": "vera"})
    attributes = {each.strip().partition("=")[0].lower() for each in told["Set-Cookie"].split(";")[1:]}
    assert {"httponly", "samesite", "path"} <= attributes
    assert "SameSite=Strict" in told["Set-Cookie"]
    status, body, _ = await browser.ask("GET", "/api/session")
    assert (status, body["signed_in"], "read" in body["permissions"]) == (200, True, True)
    async with browser.events() as events:
        assert (await anext(events))[0] in {"status", "fleet", "anomalies", "alerts"}
    kept = browser.session.cookie_jar.filter_cookies(aiohttp.client.URL(f"{browser.url}/api/"))
    cookie = {"Cookie": "; ".join(f"{name}={each.value}" for name, each in kept.items())}
    assert (await browser.ask("DELETE", "/api/session"))[0] == 200
    assert (await browser.ask("GET", "/api/session"))[0] == 401
    # Its id is worth nothing any more, to whoever has copied it.
    status, body, _ = await browser.ask("GET", "/api/session", headers=cookie)
    assert (status, body["error"]["message"]) == (401, "the session has ended: sign in again")


async def test_a_viewer_may_look_but_not_write(browser: Console):
    await sign_in(browser)
    # What a browser holds is for the page: an export comes with a key of its own.
    assert (await browser.ask("POST", "/v1/metrics", data=b"", headers=PROTOBUF))[0] == 401


async def test_a_key_opens_what_it_opens_at_the_gateway(browser: Console, guarded: Mesh, admin: str):
    async with Client(guarded.gateway, credential=admin) as client:
        _, viewer = await client.keys.create("scraper", [Grant("viewer")])
        _, writer = await client.keys.create("exporter", [Grant("service")])
    as_viewer, as_writer = ({"Authorization": f"Bearer {each}"} for each in (viewer, writer))
    assert (await browser.ask("GET", "/metrics", headers=as_viewer))[0] == 200
    assert (await browser.ask("POST", "/v1/metrics", data=b"", headers={**PROTOBUF, **as_viewer}))[0] == 403
    assert (await browser.ask("POST", "/v1/metrics", data=b"", headers={**PROTOBUF, **as_writer}))[0] == 200
    assert (await browser.ask("GET", "/metrics", headers={"Authorization": "Bearer omk_wrong"}))[0] == 401


async def test_guesses_are_counted_before_they_count_against_everybody(guarded: Mesh):
    """The gateway, who counts too, knows all browsers by one address: ours."""
    async with serving(guarded.gateway) as made:
        found = [(await sign_in(made, "eve", f"guess {at} of a password"))[0] for at in range(7)]
    assert found == [401] * 5 + [429] * 2


@pytest.mark.parametrize("body", ["", "[]", "{}", '{"name": 1, "password": 2}', '{"name": "x"}', "{" * 9000])
async def test_a_form_that_is_none_is_refused(browser: Console, body):
    status, _, _ = await browser.ask("POST", "/api/session", data=body, headers={"Content-Type": "application/json"})
    assert status == (413 if len(body) > 8192 else 400)
    assert (
        await browser.ask(
            "POST", "/api/session", data='{"name": "a", "password": "b"}', headers={"Content-Type": "text/plain"}
        )
    )[0] == 400


async def test_a_session_that_is_revoked_ends_its_stream(browser: Console, guarded: Mesh, admin: str):
    async with Client(guarded.gateway, credential=admin) as client:
        user, invitation = await client.users.create("gone", [Grant("viewer")])
        async with Client(guarded.gateway) as nobody:
            await nobody.users.accept(invitation.text, PASSWORD)
        assert (await sign_in(browser, "gone"))[0] == 200
        async with browser.events(timeout=aiohttp.ClientTimeout(total=100)) as events:
            await anext(events)
            await client.users.update(user.id, disabled=True)
            found = [topic async for topic, _ in events]
        assert found[-1] == "end"
        # Its watches were not begun again and again, which would have locked everybody of this address out.
        _, key = await client.keys.create("another", [Grant("viewer")])
    assert (await browser.ask("GET", "/metrics", headers={"Authorization": f"Bearer {key}"}))[0] == 200
    assert (await browser.ask("GET", "/api/session"))[0] == 401


async def test_the_console_is_told_no_secret(guarded: Mesh, browser: Console):
    told = environment(child(guarded, "serve\0console"))
    assert not [name for name in told if "KEY" in name or name.endswith("_URL_FILE")]


async def test_what_it_logs_names_no_session(guarded: Mesh, browser: Console):
    text = (guarded.data / "logs/console.log").read_text()
    assert PASSWORD not in text
    assert "openmanager-session" not in text

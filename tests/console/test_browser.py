"""The page in a browser: Chromium without a window, as somebody with a mouse, a keyboard or a screen reader uses it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Mesh, child, running_mesh

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
# Deque Labs' checks of accessibility; from npm, and only here.
AXE = Path(os.environ.get("TEST_AXE", "/usr/lib/node_modules/axe-core/axe.min.js"))
PICTURE = Path(__file__).parents[2] / "docs/console.png"
# Milliseconds; what is measured, is measured by the page.
PATIENCE = 60_000
ALL_WEB = "[...document.querySelectorAll('a.cell[data-server]')].every((each) => each.dataset.server.includes('web'))"
pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: apt-get install chromium"),
]
sync = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")


def kept(metrics: str) -> float:
    """Return how many samples the mesh has kept, by what its console measures."""
    found = re.search(r"^openmanager_log_accepted_samples_total (.+)$", metrics, re.MULTILINE)
    return float(found[1]) if found else 0.0


@pytest.fixture(scope="module")
def mesh() -> Iterator[Mesh]:
    """A mesh of its own, with a store that may be stopped."""
    with running_mesh("--seed", "7", "--servers", "24", "--interval", "2s") as running:
        end = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{running.console}/metrics", timeout=2) as told:
                if kept(told.read().decode()) > 5 * 24 * 511:  # a chart without a sample has nothing to be read
                    break
            assert time.monotonic() < end
            time.sleep(0.1)
        yield running


@pytest.fixture(scope="module")
def chromium() -> Iterator[sync.Browser]:
    with sync.sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield made
        made.close()


@pytest.fixture(params=[(1280, "light"), (400, "dark")], ids=["1280 light", "400 dark"])
def page(request, chromium: sync.Browser, mesh: Mesh) -> Iterator[sync.Page]:
    """A page that is open on the fleet. Nothing may be wrong in it, nor any policy be broken."""
    width, scheme = request.param
    yield from opened(chromium, mesh, width, scheme)


@pytest.fixture
def wide(chromium: sync.Browser, mesh: Mesh) -> Iterator[sync.Page]:
    yield from opened(chromium, mesh, 1280, "light")


@contextlib.contextmanager
def alerting(mesh: Mesh, rule: str, metric: str, *options: str) -> Iterator[None]:
    """Have a rule."""
    command = [str(Path(sys.executable).parent / "openmanager"), "--gateway", mesh.gateway, "alerts", "rules"]
    subprocess.run([*command, "create", rule, metric, *options], check=True, stdout=subprocess.DEVNULL)
    try:
        yield
    finally:
        subprocess.run([*command, "delete", rule], check=True, stdout=subprocess.DEVNULL)


def until(page: sync.Page, expression: str) -> None:
    """Return when an expression holds. Playwright's own way to wait evaluates text, which the page's policy forbids."""
    end = time.monotonic() + PATIENCE / 1000
    while not page.evaluate(expression):
        assert time.monotonic() < end, expression
        page.wait_for_timeout(50)


def opened(chromium: sync.Browser, mesh: Mesh, width: int, scheme: str) -> Iterator[sync.Page]:
    context = chromium.new_context(viewport={"width": width, "height": 860}, color_scheme=scheme)
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda message: complaints.append(message.text) if "Content Security" in message.text else None)
    strangers: list[str] = []
    page.on(
        "request", lambda request: strangers.append(request.url) if not request.url.startswith(mesh.console) else None
    )
    page.goto(mesh.console)
    page.wait_for_selector("a.cell[aria-label]")
    yield page
    context.close()
    assert complaints == []
    assert strangers == []


def test_a_store_that_is_stopped_turns_red_within_three_seconds_and_green_again(wide: sync.Page, mesh: Mesh):
    row = "tr[data-name='redis'] .badge"
    wide.wait_for_selector(f"{row}[data-state='OK']")
    store = child(mesh, "valkey")
    # Measured by the page itself, so that what drives the browser costs nothing.
    watch = """(selector) => new Promise((done) => {
      const start = performance.now();
      const look = () => document.querySelector(selector) ? done(performance.now() - start) : setTimeout(look, 20);
      look();
    })"""
    os.kill(store, signal.SIGSTOP)
    try:
        took = wide.evaluate(watch, f"{row}:is([data-state='HUNG'], [data-state='DOWN'])")
        colour = wide.eval_on_selector(row, "(each) => getComputedStyle(each).color")
        said = wide.inner_text("#overall")
    finally:
        os.kill(store, signal.SIGCONT)
    assert took < 3000
    red, green, blue = (int(each) for each in colour[4:-1].split(", "))
    assert red > 2 * max(green, blue)
    assert "redis" in said
    wide.wait_for_selector(f"{row}[data-state='OK']")
    until(wide, "document.getElementById('overall').textContent === 'All well'")


def test_the_page_fits_and_holds_what_the_mesh_has(page: sync.Page):
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    # And one more, where another test has written it.
    shown = page.locator("a.cell[data-server]").count()
    assert shown in {24, 25}
    assert page.locator("#fleet-counts").inner_text().startswith(f"{shown} servers")
    names = page.locator("#status tbody th").all_inner_texts()
    assert {
        "gateway",
        "timeseries",
        "cache",
        "redis",
        "metadata",
        "postgresql",
        "analysis",
        "simulator",
        "log",
        "blocks",
    } <= set(names)


def test_a_server_is_found_by_the_keyboard_alone(page: sync.Page):
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    page.fill("#find", "web")  # others may have come with less than a percentage
    until(page, ALL_WEB)
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.matches('a.cell')"):
            break
    first = page.evaluate("document.activeElement.dataset.server")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("End")
    last = page.evaluate("document.activeElement.dataset.server")
    assert first != last
    assert last in page.inner_text("#fleet-readout")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    page.wait_for_selector("#server-title")
    assert page.evaluate("document.activeElement.id") == "server-title"
    assert page.inner_text("#server-title") == last
    page.wait_for_selector(".chart canvas")
    page.focus(".plot")
    page.keyboard.press("End")
    until(page, "document.querySelector('.chart .readout').textContent !== ''")
    page.keyboard.press("Home")
    first_time = page.inner_text(".chart .readout")
    page.keyboard.press("End")
    assert page.inner_text(".chart .readout") != first_time
    page.go_back()
    page.wait_for_selector("#overview:not([hidden])")
    assert page.evaluate("document.activeElement.dataset.server") == last


def test_alerts_that_fire_are_counted_listed_and_lead_to_their_charts(wide: sync.Page, mesh: Mesh):
    metric = "system.memory.usage{state=used}"
    assert wide.text_content("#alerts") == "None fires."
    with alerting(mesh, "hot", metric, "--above", "-1", "--severity", "critical"):
        wide.wait_for_selector("#alert-count a")
        until(wide, "document.querySelectorAll('#alerts li.active').length === 12")
        until(wide, "parseInt(document.querySelector('#alert-count').textContent) === 24")
        assert wide.text_content("#alert-count") == "24 alerts"
        assert wide.text_content("#alerts-counts") == "24 critical"
        assert re.match(rf"Critical.*hot.*{re.escape(metric)} is ", wide.locator("#alerts li").first.text_content())
        wide.click("button:has-text('Show 24 alerts')")
        until(wide, "document.querySelectorAll('#alerts li.active').length === 24")
        wide.focus("#alert-count a")
        wide.keyboard.press("Enter")
        until(wide, "document.activeElement.id === 'alerts-title'")
        wide.keyboard.press("Tab")
        wide.keyboard.press("Enter")
        wide.wait_for_selector(f".chart h2:has-text('{metric}')")
        wide.focus("#alert-count a")
        wide.keyboard.press("Enter")
        until(wide, "document.activeElement.id === 'alerts-title'")
    until(wide, "document.querySelector('#alerts').textContent === 'None fires.'")
    assert wide.text_content("#alert-count") == ""


def test_a_server_has_charts_and_another_metric_is_added(page: sync.Page):
    page.locator("a.cell[data-server^='web-']").first.click()  # others have come with less
    page.wait_for_selector(".chart:nth-child(3) canvas")
    assert page.locator(".chart h2").all_inner_texts() == ["cpu_usage", "memory_usage", "disk_usage"]
    page.fill("#metric", "system.memory.usage{state=used}")
    page.keyboard.press("Enter")
    page.wait_for_selector(".chart:nth-child(4) canvas")
    page.fill("#metric", "nothing")
    page.keyboard.press("Enter")
    until(page, "document.querySelector('#server .problem').textContent.includes('nothing')")
    painted = page.evaluate(
        """() => { const c = document.querySelector(".chart canvas"); const d = c.getContext("2d").getImageData(0, 0, c.width, c.height).data;
        return d.some((each) => each > 0); }"""
    )
    assert painted
    page.check("input[name=range][value='15']")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_servers_are_found_by_words_and_coloured_by_their_use(page: sync.Page):
    page.fill("#find", "web")
    until(page, ALL_WEB)
    page.click("label:has-text('Memory')")
    until(page, "/^\\\\d+$/.test(document.querySelector('a.cell[data-server]').textContent)".replace("\\\\", "\\"))
    page.fill("#find", "nobody is called so")
    page.wait_for_selector("text=No server is like that.")


def test_a_name_that_is_html_is_text(wide: sync.Page, mesh: Mesh):
    name = "<img src=x onerror=alert(1)>"
    export = {"resourceMetrics": [{"resource": {"attributes": [
        {"key": "host.id", "value": {"stringValue": "hostile"}},
        {"key": "host.role", "value": {"stringValue": name}},
    ]}, "scopeMetrics": [{"metrics": [{"name": "cpu_usage", "gauge": {"dataPoints": [{"asDouble": 5}]}}]}]}]}  # fmt: skip
    request = urllib.request.Request(
        f"{mesh.console}/v1/metrics", json.dumps(export).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=10) as response:
        assert response.status == 200
    wide.wait_for_selector("[data-server='hostile']")
    assert name in wide.inner_text("#fleet")
    assert wide.locator("#fleet img").count() == 0


def test_nothing_is_in_the_way_of_a_screen_reader(page: sync.Page):
    if not AXE.exists():
        pytest.skip(f"axe-core is not installed: npm install --global axe-core, or TEST_AXE names its file ({AXE})")
    for where in ("overview", "server"):
        if where == "server":
            page.locator("a.cell").first.click()
            page.wait_for_selector(".chart canvas")
        page.evaluate(AXE.read_text())  # evaluated, not inserted: the page's own policy forbids that
        found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
        said = [(each["id"], [node["target"] for node in each["nodes"]][:3]) for each in found["violations"]]
        assert said == []


def test_a_gateway_that_goes_is_said_in_words_and_comes_back(wide: sync.Page, mesh: Mesh):
    os.kill(child(mesh, "serve\0gateway"), signal.SIGKILL)
    wide.wait_for_selector("#banner:not([hidden])")
    assert "gateway" in wide.inner_text("#banner")
    assert wide.inner_text("#overall") == "No contact"
    assert wide.locator("a.cell[data-server]").count() >= 24  # what was known stays
    wide.wait_for_selector("#banner", state="hidden")
    until(wide, "document.getElementById('overall').textContent === 'All well'")


def test_a_console_that_goes_is_said_in_words_and_comes_back(wide: sync.Page, mesh: Mesh):
    os.kill(child(mesh, "serve\0console"), signal.SIGKILL)
    wide.wait_for_selector("#banner:not([hidden])")
    wide.wait_for_selector("#banner", state="hidden")


def test_a_picture_for_the_readme_is_taken(chromium: sync.Browser, mesh: Mesh):
    if "TEST_PICTURE" not in os.environ:
        pytest.skip("TEST_PICTURE is not set: docs/console.png is only taken anew when asked")
    with alerting(mesh, "memory", "memory_usage", "--above", "76", "--severity", "critical"):
        for page in opened(chromium, mesh, 1120, "light"):
            page.wait_for_selector("#alert-count a")
            page.click("label:has-text('Memory')")
            page.wait_for_timeout(1500)
            page.screenshot(path=PICTURE, clip={"x": 0, "y": 0, "width": 1120, "height": 660})
    assert PICTURE.stat().st_size < 100_000

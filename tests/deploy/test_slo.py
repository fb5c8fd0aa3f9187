"""Objectives, their alerts, our own rules and the runbooks: that they belong together, and that real programs take them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import slo
import yaml
from deploy.composed import ROOT
from google.protobuf import json_format
from timeseries.engines.stores import Server, ask, victoria_server

from openmanager.cli import rules_file
from openmanager.errors import InvalidArgumentError

RUNBOOKS = ROOT / "docs" / "runbooks"
OWN = ROOT / "deploy" / "slo" / "rules.toml"
SLO = yaml.safe_load(slo.SOURCE.read_text())
RULES = [rule for group in slo.rules(SLO)["groups"] for rule in group["rules"]]
ALERTS = [rule for rule in RULES if "alert" in rule]
DAYS, STEP = 3, 60
CALLS_A_STEP = 10_000


def pages_of(rule: Any) -> str:
    return rule["annotations"]["runbook"]


# ── files that belong together ─────────────────────────────────────────────────────────────────────────────────────


def test_the_rules_are_what_the_objectives_make():
    assert slo.TARGET.read_text() == slo.text(SLO)


def test_every_alert_has_a_runbook_and_every_runbook_an_alert():
    named = {pages_of(rule) for rule in ALERTS}
    named |= {rule.annotations["runbook"] for rule in rules_file.read(OWN)}
    assert named == {str(page.relative_to(ROOT)) for page in RUNBOOKS.glob("*.md")}


# ── real programs ──────────────────────────────────────────────────────────────────────────────────────────────────


def vmalert(*options: str) -> subprocess.CompletedProcess[str]:
    program = shutil.which("vmalert")
    if program is None:
        pytest.skip("vmalert is missing: it is in the Debian package victoria-metrics")
    return subprocess.run([program, *options], capture_output=True, text=True, check=False, timeout=60)


def test_vmalert_takes_the_rules(tmp_path):
    assert vmalert("-dryRun", f"-rule={slo.TARGET}").returncode == 0
    broken = tmp_path / "broken.yaml"
    broken.write_text(slo.TARGET.read_text().replace("sum(rate(", "sum(rate("[:-1], 1))
    assert vmalert("-dryRun", f"-rule={broken}").returncode != 0


@pytest.fixture(scope="module")
def victoria(tmp_path_factory) -> Iterator[Server]:
    """A VictoriaMetrics with three days of a mesh for each story, by the label `story`."""
    server = victoria_server(tmp_path_factory.mktemp("slo"), "-search.latencyOffset=0s", "-search.maxQueryDuration=60s")
    if server is None:
        pytest.skip("victoria-metrics is missing: it is a Debian package")
    server.start()
    try:
        now = int(time.time()) // STEP * STEP
        times = range(now - DAYS * 86_400, now + STEP, STEP)
        lines = [line for story in STORIES for line in told(story, times)]
        request = urllib.request.Request(f"{server.url}/api/v1/import", data="\n".join(lines).encode())
        urllib.request.urlopen(request, timeout=30).close()
        ask(f"{server.url}/internal/force_flush")
        yield server
    finally:
        server.stop()


# Of a story: the share of failed calls and of slow ones and the seconds behind, for so many of the newest minutes, and which
# alerts fire for which long windows.
STORIES: dict[str, tuple[int, dict[str, float], set[tuple[str, str]]]] = {
    "well": (10**9, {"failed": 0.0002, "slow": 0.001}, set()),
    "spike that is over": (0, {}, set()),
    "outage of an hour": (
        60,
        {"failed": 0.5},
        {("AvailabilityBudgetBurn", "1h"), ("AvailabilityBudgetBurn", "6h"), ("AvailabilityBudgetBurn", "3d")},
    ),
    "a little too much for days": (10**9, {"failed": 0.002}, {("AvailabilityBudgetBurn", "3d")}),
    "slow for an hour": (
        60,
        {"slow": 0.9},
        {("LatencyBudgetBurn", "1h"), ("LatencyBudgetBurn", "6h"), ("LatencyBudgetBurn", "3d")},
    ),
    "stale for an hour": (
        60,
        {"stale": 30.0},
        {("FreshnessBudgetBurn", "1h"), ("FreshnessBudgetBurn", "6h"), ("FreshnessBudgetBurn", "3d")},
    ),
    "behind for an hour": (
        60,
        {"lag": 120.0},
        {("LedgerBudgetBurn", "1h"), ("LedgerBudgetBurn", "6h"), ("LedgerBudgetBurn", "3d")},
    ),
    "books that differ": (10, {"lost": 3.0}, {("LedgerUnbalanced", "")}),
    "dead letters": (10, {"dead": 5.0}, {("DeadLetters", "")}),
}


def told(story: str, times: range) -> Iterator[str]:
    """Yield a story's series, as VictoriaMetrics imports them."""
    minutes, trouble, _ = STORIES[story]
    begin = max(0, len(times) - minutes)
    shares = {name: [trouble.get(name, 0.0) if at >= begin else 0.0 for at in range(len(times))] for name in KINDS}
    if story.startswith("spike"):
        shares["failed"] = [0.9 if 180 >= len(times) - at > 177 else 0.0 for at in range(len(times))]
    counts = [CALLS_A_STEP * (at + 1) for at in range(len(times))]
    failed, slow = (running(CALLS_A_STEP * share for share in shares[name]) for name in ("failed", "slow"))
    good = [count - bad for count, bad in zip(counts, failed, strict=True)]
    gateway = {"job": "openmanager-gateway", "rpc_method": "GetServer"}
    calls = "rpc_server_call_duration_seconds"
    yield series(story, f"{calls}_count", gateway | {"rpc_grpc_status_code": "0"}, good, times)
    yield series(story, f"{calls}_count", gateway | {"rpc_grpc_status_code": "14"}, failed, times)
    fast = [count - bad for count, bad in zip(counts, slow, strict=True)]
    yield series(story, f"{calls}_bucket", gateway | {"le": "0.25"}, fast, times)
    yield series(story, "openmanager_hot_staleness_seconds", {"job": "openmanager-gateway"}, shares["stale"], times)
    for reader in ("cache", "analysis"):
        about = {"job": "openmanager-timeseries", "instance": "one", "openmanager_consumer_name": reader}
        lag = shares["lag"] if reader == "analysis" else [0.0] * len(times)
        yield series(story, "openmanager_consumer_lag_seconds", about, lag, times)
        yield series(story, "openmanager_consumer_position", about, counts, times)
        dead = shares["dead"] if reader == "cache" else [0.0] * len(times)
        missing = shares["lost"] if reader == "cache" else [0.0] * len(times)
        fates = {"delivered": [a - b - c for a, b, c in zip(counts, dead, missing, strict=True)], "dead_lettered": dead}
        for fate, values in fates.items():
            yield series(
                story, "openmanager_consumer_samples", about | {"openmanager_sample_fate": fate}, values, times
            )


KINDS = ("failed", "slow", "stale", "lag", "lost", "dead")


def running(values: Iterator[float]) -> list[float]:
    total, found = 0.0, []
    for value in values:
        total += value
        found.append(total)
    return found


def series(story: str, name: str, labels: dict[str, str], values: Any, times: range) -> str:
    metric = {"__name__": name, "story": story, **labels}
    return json.dumps({"metric": metric, "values": list(values), "timestamps": [each * 1000 for each in times]})


def expanded(expression: str) -> str:
    """Return an alert's expression with what the recorded names in it are recorded from."""
    for rule in RULES:
        if "record" in rule:
            name = f'{rule["record"]}{{slo="{rule["labels"]["slo"]}"}}'
            expression = expression.replace(name, f"({rule['expr']})")
    return expression


@pytest.mark.parametrize("story", STORIES)
def test_alerts_fire_when_a_budget_burns_and_not_within_it(story, victoria):
    fired = set()
    for rule in ALERTS:
        form = {"query": expanded(rule["expr"]), "nocache": 1, "extra_filters[]": f'{{story="{story}"}}'}
        answer = json.loads(ask(f"{victoria.url}/api/v1/query?{urllib.parse.urlencode(form)}"))
        if answer["data"]["result"]:
            fired.add((rule["alert"], rule["labels"].get("window", "")))
    assert fired == STORIES[story][2]


def test_silence_of_the_mesh_itself_is_an_alert(victoria):
    (rule,) = [rule for rule in ALERTS if rule["alert"] == "TelemetryAbsent"]
    form = {"query": rule["expr"], "nocache": 1, "extra_filters[]": '{story="nobody"}'}
    assert json.loads(ask(f"{victoria.url}/api/v1/query?{urllib.parse.urlencode(form)}"))["data"]["result"]


# ── our own rules ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "has to hold"),
        ("rules = 5", "has to hold"),
        ("[[rules]]\nid = 'a'\n[more]\n", "has to hold"),
        ("[[rules]]\n", "rule 1 of rules.toml has no id"),
        ("[[rules]]\nid = 'a'\n[[rules]]\nid = 'a'\n", "'a' more than once"),
        ("[[rules]]\nid = 'a'\nthreshhold = {above = 1}\n", "threshhold"),
        ("[[rules]]\nid = 'a'\nthreshold = {above = 'much'}\n", "above"),
        ("[[rules]]\nid = 'a'\nstore = {for_duration = 'soon'}\n", "rule 1"),
        ("[[rules", "is no TOML"),
        ("rules = " + 100_000 * "[", "nested too deep"),
        ("x = '" + "y" * 2**20 + "'", "more than"),
    ],
)
def test_a_file_that_holds_no_rules_is_refused_by_the_rule(text, why, tmp_path):
    file = tmp_path / "rules.toml"
    file.write_text(text)
    with pytest.raises(InvalidArgumentError, match=re.escape(why)):
        rules_file.read(file)


@pytest.mark.parametrize("place", ["", "nowhere.toml"])
def test_a_file_that_cannot_be_read_is_refused(place, tmp_path):
    with pytest.raises(InvalidArgumentError, match="cannot be read"):
        rules_file.read(tmp_path / place)


def test_a_rule_is_what_the_file_says():
    found = {
        rule.id: json_format.MessageToDict(rule, preserving_proto_field_name=True) for rule in rules_file.read(OWN)
    }
    assert found["hot-state-stale"]["threshold"] == {"above": 10.0, "for_duration": "120s"}
    assert found["service-down"]["store"]["states"] == ["STORAGE_STATE_DOWN", "STORAGE_STATE_HUNG"]
    assert Path(ROOT / found["dead-letters"]["annotations"]["runbook"]).exists()

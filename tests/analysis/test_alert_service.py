"""Alerts behind a gateway, on a real PostgreSQL and a real receiver: from a rule to who is told, and what goes wrong."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiohttp import web
from client.mesh import LocalMesh
from conftest import clean_environment, free_ports, wait_until
from openmanager_analysis import alert_service
from openmanager_analysis.module import module as analysis
from openmanager_metadata.module import module as metadata

from chaos.replicated import Server, alone
from openmanager.client import (
    Alert,
    AlertRule,
    AnomalyCondition,
    Client,
    ExhaustionCondition,
    Inhibitor,
    Selector,
    Silence,
    StoreCondition,
    ThresholdCondition,
)
from openmanager.errors import (
    AbortedError,
    AlreadyExistsError,
    DeadlineExceededError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
    UnavailableError,
)
from openmanager.frame import Frame, ServerInfo

# A busy machine may take its time.
PATIENCE = 90.0
CPU = AlertRule(id="cpu", selector=Selector(metrics=("cpu_usage",)), condition=ThresholdCondition(above=90, clear=80))


@pytest.fixture
async def told(tmp_path: Path) -> AsyncIterator[list[dict[str, Any]]]:
    """What a receiver on loopback was told; it is listed in receivers.toml."""
    documents: list[dict[str, Any]] = []

    async def handle(request: web.Request) -> web.Response:
        documents.append(await request.json())
        return web.Response()

    app = web.Application()
    app.router.add_post("/", handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = site._server.sockets[0].getsockname()[1]
    (tmp_path / "receivers.toml").write_text(f'[ops]\nurl = "http://127.0.0.1:{port}/"\nallow_private = true\n')
    try:
        yield documents
    finally:
        await runner.cleanup()


@contextlib.asynccontextmanager
async def opened(folder: Path, database: Server | None) -> AsyncIterator[Client]:
    """Serve the analysis behind a gateway, with the metadata service where there is a database."""
    settings: dict[tuple[str, str], object] = {
        ("analysis", "data_dir"): folder / "analysis",
        ("analysis", "interval"): "1s",
        ("analysis", "alert_wait"): "10ms",
        ("analysis", "alert_interval"): "10ms",
        ("analysis", "receivers"): folder / "receivers.toml",
    }
    if database is not None:
        settings["metadata", "database_url"] = database.url("openmanager")
    mesh = LocalMesh(folder / "timeseries", settings)
    mesh.addresses["gateway"] = f"127.0.0.1:{free_ports(1)}"
    await mesh.start(*([metadata] if database is not None else []), analysis)
    try:
        async with Client(mesh.gateway) as client:
            # The analysis has looked for the gateway before, and the connection is one for all who are here.
            await wait_until(lambda: is_there(client), PATIENCE)
            yield client
    finally:
        await mesh.stop()


async def is_there(client: Client) -> bool:
    with contextlib.suppress(UnavailableError):
        await client.storage_status()
        return True
    return False


async def write(client: Client, value: float, server: str = "web-1") -> None:
    frame = Frame(
        times=np.array([time.time_ns() // 10**6 * 10**6]),
        servers=(server,),
        metrics=("cpu_usage",),
        values=np.full((1, 1, 1), float(value)),
        server_infos=(ServerInfo(id=server, environment="production", role="web"),),
    )
    await client.write_frame(frame)


async def until(client: Client, state: str, value: float | None = None, **more: Any) -> Alert:
    """Write a sample again and again, where there is one, until an alert is in a state; return it."""
    found: list[Alert] = []

    async def is_so() -> bool:
        with contextlib.suppress(UnavailableError, DeadlineExceededError):
            if value is not None:
                await write(client, value)
            found[:] = [each for each in await client.alerts.list(**more) if each.state == state]
        return bool(found)

    await wait_until(is_so, PATIENCE)
    return found[0]


async def created(client: Client, rule: AlertRule) -> AlertRule:
    """Create a rule as soon as the database answers."""
    found: list[AlertRule] = []

    async def is_so() -> bool:
        with contextlib.suppress(UnavailableError, DeadlineExceededError):
            found.append(await client.alerts.create_rule(rule))
        return bool(found)

    await wait_until(is_so, PATIENCE)
    return found[0]


async def openmanager(client: Client, *arguments: str) -> tuple[int, str, str]:
    """Run a command as a user would, on a terminal of 120 columns."""
    process = await asyncio.create_subprocess_exec(
        str(Path(sys.executable).parent / "openmanager"),
        "--gateway",
        client.rpc.peer.target,
        *arguments,
        env={**clean_environment(), "COLUMNS": "120"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    return process.returncode or 0, out.decode(), err.decode()


@pytest.mark.timeout(300)
async def test_from_a_rule_to_who_is_told_and_on_after_a_restart_without_metadata(
    tmp_path: Path, told: list[dict[str, Any]]
):
    async with alone() as database:
        async with opened(tmp_path, database) as client:
            made = await created(client, replace(CPU, severity="CRITICAL", labels={"team": "web"}))
            assert (made.etag, made.condition) == ("v1", replace(CPU.condition, lasting=timedelta(), clear=80.0))
            alert = await until(client, "FIRING", 95)
            assert (alert.rule, alert.server, alert.labels["team"], alert.labels["role"]) == (
                "cpu",
                "web-1",
                "web",
                "web",
            )
            assert (await client.alerts.get(alert.id)).fingerprint == alert.fingerprint
            await wait_until(lambda: said(told, 1), PATIENCE)
            assert (told[0]["status"], told[0]["alerts"][0]["fingerprint"]) == ("firing", alert.fingerprint)
            async with aclosing(client.alerts.watch(where="server = web-1")) as watched:
                assert (await anext(watched)).id == alert.id

            silence = await client.alerts.create_silence(
                "server = web-1", end=datetime.now(UTC) + timedelta(hours=1), comment="new disk"
            )
            await until(client, "FIRING", None, where="severity = critical")
            await wait_until(lambda: silenced(client, 1), PATIENCE)
            assert [each.id for each in await client.alerts.silences(active_only=True)] == [silence.id]
            await changed_silence(client, silence)
            assert (await client.alerts.expire_silence(silence.id)).state == "EXPIRED"
            await wait_until(lambda: silenced(client, 0), PATIENCE)
            again = await client.alerts.update_silence(silence.id, end=datetime.now(UTC) + timedelta(hours=1))
            assert again.state == "ACTIVE"
            await client.alerts.expire_silence(silence.id)
            assert [each.series_count for each in await client.alerts.rules()] == [1]
        count = len(told)
        async with opened(tmp_path, None) as client:
            again = await until(client, "FIRING")
            assert again.id == alert.id
            assert [each.id for each in await client.alerts.rules()] == ["cpu"]
            assert "go on" in (await rules_provenance(client)).reason
            with pytest.raises(UnavailableError):
                await client.alerts.create_rule(replace(CPU, id="more"))
            over = await until(client, "RESOLVED", 10)
            assert over.id == alert.id
            await wait_until(lambda: said(told, count + 1), PATIENCE)
            assert [(each["status"], each["alerts"][0]["startsAt"]) for each in told[count:]] == [
                ("resolved", told[0]["alerts"][0]["startsAt"])
            ]


async def changed_silence(client: Client, silence: Silence) -> None:
    changed = await client.alerts.update_silence(silence.id, comment="newer disk", etag=silence.etag)
    assert changed == replace(silence, comment="newer disk", etag=changed.etag, alert_count=1)
    with pytest.raises(AbortedError):
        await client.alerts.update_silence(silence.id, comment="newest", etag=silence.etag)
    yesterday = datetime.now(UTC) - timedelta(days=1)
    for refused, field in (
        ({}, "update_mask"),
        ({"comment": " "}, "silence.comment"),
        ({"matcher": ""}, "silence.matcher"),
        ({"matcher": "colour = red"}, "silence.matcher"),
        ({"end": yesterday}, "silence.end_time"),
    ):
        with pytest.raises(InvalidArgumentError) as wrong:
            await client.alerts.update_silence(silence.id, **refused)
        assert wrong.value.field == field
    with pytest.raises(NotFoundError):
        await client.alerts.update_silence("nobody", comment="x")
    assert await client.alerts.get_silence(silence.id) == changed


async def said(told: list[dict[str, Any]], count: int) -> bool:
    return len(told) >= count


async def silenced(client: Client, count: int) -> bool:
    return sum(1 for each in await client.alerts.list(active_only=True) if each.silenced_by) == count


async def rules_provenance(client: Client) -> Any:
    from openmanager.api.analysis.v1 import alert_pb2
    from openmanager.client import codec, rpc

    return codec.provenance((await client.rpc.call(rpc.LIST_RULES, alert_pb2.ListRulesRequest())).provenance)


@pytest.mark.timeout(300)
async def test_rules_change_are_refused_and_commands_show_them(
    tmp_path: Path, told: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
):
    async with alone() as database, opened(tmp_path, database) as client:
        made = await created(client, CPU)
        with pytest.raises(AlreadyExistsError):
            await client.alerts.create_rule(CPU)
        changed = await client.alerts.update_rule(replace(made, condition=ThresholdCondition(below=5)), ["threshold"])
        assert (changed.etag, changed.condition) == ("v2", ThresholdCondition(below=5, clear=5))
        with pytest.raises(AbortedError):
            await client.alerts.update_rule(made, ["name"])
        await wrong(client)
        with monkeypatch.context() as few:
            few.setattr(alert_service, "MAX_RULES", 1)
            few.setattr(alert_service, "MAX_SILENCES", 0)
            later = datetime.now(UTC) + timedelta(hours=1)
            for call in (
                client.alerts.create_rule(replace(CPU, id="more")),
                client.alerts.create_silence("rule = x", end=later, comment="x"),
            ):
                with pytest.raises(ResourceExhaustedError) as refused:
                    await call
                assert refused.value.reason == "TOO_MANY_RULES"

        code, out, _ = await openmanager(
            client, "alerts", "rules", "create", "hot", "cpu_usage", "--above", "90", "--for", "5m", "--severity", "critical",
            "--inhibited-by", "rule = stores", "--where", "role = web",
        )  # fmt: skip
        assert (code, out) == (0, "hot: above 90 for 5m, cpu_usage where role = web, critical\n")
        code, out, _ = await openmanager(client, "alerts", "rules", "create", "stores", "--store", "post*")
        assert (code, out) == (0, "stores: is not OK, stores post*, warning\n")
        await until(client, "PENDING", 95)
        code, out, _ = await openmanager(client, "alerts")
        assert (code, "pending" in out, "web-1: cpu_usage is 95, above 90" in out) == (0, True, True)
        code, out, _ = await openmanager(client, "alerts", "--json")
        assert json.loads(out)["alerts"][0]["state"] == "ALERT_STATE_PENDING"
        code, out, _ = await openmanager(client, "alerts", "rules", "pause", "hot")
        assert (code, out) == (0, "hot is paused\n")
        code, out, err = await openmanager(
            client, "alerts", "silences", "create", "rule = hot", "--for", "2h", "--comment", "x"
        )
        assert (code, "rule = hot, until" in out, err) == (0, True, "")
        code, out, _ = await openmanager(client, "alerts", "silences")
        assert (code, "local" in out, "active" in out) == (0, True, True)
        (silence,) = await client.alerts.silences()
        code, out, err = await openmanager(
            client, "alerts", "silences", "change", silence.id, "--for", "4h", "--matcher", "rule = cool"
        )
        assert (code, f"{silence.id}: rule = cool, until" in out, err) == (0, True, "")
        code, _, err = await openmanager(client, "alerts", "silences", "change", silence.id)
        assert (code, "nothing to change" in err) == (2, True)
        code, out, err = await openmanager(
            client, "alerts", "rules", "create", "gone", "--silent", "5m", "--where", "role = web"
        )
        assert (code, out, err) == (0, "gone: nothing sent for 5m, all metrics where role = web, warning\n", "")
        code, out, _ = await openmanager(
            client, "alerts", "rules", "create", "err", "e", "--above", "5", "--per-second"
        )
        assert (code, out) == (0, "err: above 5/s, e, warning\n")
        assert (await client.alerts.get_rule("err")).condition == ThresholdCondition(above=5, clear=5, per_second=True)
        code, _, err = await openmanager(client, "alerts", "silences", "create", "", "--for", "2h", "--comment", "x")
        assert (code, err) == (1, "openmanager: silence.matcher is required\n")

        database.kill()
        alert = await until(client, "FIRING", None, where="rule = stores")
        assert (alert.labels["service"], alert.labels["store"], alert.server) == ("metadata", "postgresql", "")
        assert "postgresql of metadata is DOWN" in alert.annotations["summary"]
        code, out, _ = await openmanager(client, "alerts", "rules")
        assert (code, "hot" in out, "paused" in out) == (0, True, True)


@pytest.mark.timeout(300)
async def test_a_disk_that_is_expected_to_be_full_is_told_of_before_it_is(tmp_path: Path, told: list[dict[str, Any]]):
    hour, days = 3_600 * 10**9, 12
    times = time.time_ns() // hour * hour - hour * np.arange(days * 24 - 1, -1, -1, dtype=np.int64)
    noise = np.random.default_rng(1).normal(0, 0.2, (len(times), 2))
    fills = np.stack([40 + 3 * np.arange(len(times)) / 24, np.full(len(times), 40.0)], axis=1)
    frame = Frame(times=times, servers=("web-1", "web-2"), metrics=("disk_usage",), values=(fills + noise)[:, :, None])
    async with alone() as database, opened(tmp_path, database) as client:
        await client.write_frame(frame)
        now = np.array([time.time_ns() // 10**6 * 10**6])
        await client.write_frame(replace(frame, times=now, values=frame.values[-1:]))
        rule = AlertRule(
            id="disk",
            selector=Selector(metrics=("disk*",)),
            condition=ExhaustionCondition(limit=90, within=timedelta(days=30)),
        )
        made = await created(client, rule)
        assert made.condition == ExhaustionCondition(
            limit=90, within=timedelta(days=30), min_probability=0.8, clear_probability=pytest.approx(0.6)
        )
        alert = await until(client, "FIRING")
        assert [each.server for each in await client.alerts.list()] == ["web-1"]
        assert alert.value >= 0.8
        assert "web-1: disk_usage" in alert.annotations["summary"]
        assert "reaches 90 in" in alert.annotations["summary"]


async def wrong(client: Client) -> None:
    """Ask for rules and silences that cannot be; each error names its field."""
    disk = Selector(metrics=("disk",))
    hour = timedelta(hours=1)
    for field, change in {
        "rule.id": {"id": "Not An Id"},
        "rule.name": {"name": "x" * 101},
        "rule.threshold.clear": {"condition": ThresholdCondition(above=90, clear=91)},
        "rule.threshold.above": {"condition": ThresholdCondition(above=float("inf"))},
        "rule.threshold.above or rule.threshold.below": {"condition": ThresholdCondition()},
        "rule.threshold.for_duration": {"condition": ThresholdCondition(above=1, lasting=timedelta(days=8))},
        "rule.threshold.clear_duration": {"condition": ThresholdCondition(above=1, clear_lasting=timedelta(days=8))},
        "rule.selector.metrics": {"selector": Selector()},
        "rule.selector.server_filter": {"selector": Selector(metrics=("x",), where="colour = red")},
        "rule.selector.servers": {"selector": Selector(metrics=("x",), servers=("A B",))},
        "rule.anomaly.min_score": {"condition": AnomalyCondition(min_score=1.1)},
        "rule.exhaustion.limit": {"condition": ExhaustionCondition(limit=float("nan"), within=hour), "selector": disk},
        "rule.exhaustion.within_duration": {"condition": ExhaustionCondition(limit=1, within=hour / 2), "selector": disk},
        "rule.exhaustion.min_probability": {
            "condition": ExhaustionCondition(limit=1, within=hour, min_probability=2), "selector": disk,
        },
        "rule.exhaustion.clear_probability": {
            "condition": ExhaustionCondition(limit=1, within=hour, min_probability=0.5, clear_probability=0.6),
            "selector": disk,
        },
        "rule.store.services": {"condition": StoreCondition(services=("",)), "selector": Selector()},
        "rule.selector": {"condition": StoreCondition(), "selector": disk},
        "rule.labels": {"labels": {"server": "x"}},
        "rule.annotations": {"annotations": {"text": "{secret}"}},
        "rule.inhibitors": {"inhibitors": (Inhibitor(source="severity = warning"),)},
        "rule.inhibitors.source_matcher": {"inhibitors": (Inhibitor(source=""),)},
        "rule.inhibitors.equal": {"inhibitors": (Inhibitor(source="rule = x", equal=("a b",)),)},
        "rule.stale_duration": {"stale": timedelta(seconds=1)},
    }.items():  # fmt: skip
        with pytest.raises(InvalidArgumentError) as refused:
            await client.alerts.create_rule(replace(CPU, **{"id": "wrong"} | change))
        assert refused.value.field == field
    now = datetime.now(UTC)
    for field, options in {
        "silence.matcher": {"matcher": "", "end": now + hour, "comment": "x"},
        "silence.end_time": {"matcher": "rule = x", "start": now + hour, "end": now + hour, "comment": "x"},
        "silence.comment": {"matcher": "rule = x", "end": now + hour, "comment": " "},
    }.items():
        with pytest.raises(InvalidArgumentError) as refused:
            await client.alerts.create_silence(**options)
        assert refused.value.field == field
    with pytest.raises(InvalidArgumentError):
        await client.alerts.create_silence("rule = x", end=now - hour, start=now - 2 * hour, comment="x")
    for call in (client.alerts.get, client.alerts.get_rule, client.alerts.get_silence, client.alerts.expire_silence):
        with pytest.raises(NotFoundError):
            await call("nobody")

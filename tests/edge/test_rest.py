"""The suite by HTTP and JSON, through Envoy."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import run_edge
import yaml
from conftest import Mesh
from google.api import annotations_pb2
from google.protobuf.descriptor import MethodDescriptor

from edge.proxied import Edge, curl, needs_envoy
from openmanager import suite
from openmanager.runtime.module import service_descriptor
from openmanager.runtime.peer import retried

DOCUMENT = (Path(__file__).parents[2] / "docs/edge.md").read_text(encoding="utf-8")
# By gRPC alone: streams of the client's, files in chunks, and what only services of the mesh call; and what the gateway
# answers itself, better.
BY_GRPC_ALONE = {
    "GatewayService": {"WriteFrames"},
    "TimeseriesService": {"WriteFrame", "WriteFrames", "WatchFrames", "ExportSeries"},
    "LogService": {"ConfirmPosition"},
    "ImportService": {"ImportFrames", "ImportRollups"},
    "CacheService": {"GetServer", "ListServers", "WatchServers", "GetFleetSummary"},
    "EntryService": {"GetEntry", "SetEntry", "DeleteEntry"},
    "ServerService": {"RegisterServers"},
    "SessionService": {"Authenticate"},
    "InteractionService": {"ExportInteractions"},
    "AuditService": {"RecordIntent", "RecordOutcome", "RecordEvent", "ExportAuditLog"},
    "SimulatorService": {"StreamFrames", "BackfillHistory"},
}


def methods() -> Iterator[MethodDescriptor]:
    for name in suite.PUBLIC:
        yield from service_descriptor(name).methods


def bindings(method: MethodDescriptor) -> list[tuple[str, str]]:
    """Return how a method is asked by HTTP: verbs and paths."""
    rule = method.GetOptions().Extensions[annotations_pb2.http]
    found = [(each.WhichOneof("pattern"), each) for each in (rule, *rule.additional_bindings)]
    return [(kind.upper(), getattr(each, kind)) for kind, each in found if kind]


# ── the contracts ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_method_can_be_asked_by_http_or_is_known_not_to_be():
    without: dict[str, set[str]] = {}
    for method in methods():
        if not bindings(method):
            without.setdefault(method.containing_service.name, set()).add(method.name)
    assert without == BY_GRPC_ALONE


def test_no_two_methods_are_asked_by_the_same_path():
    found = [(verb, re.sub(r"\{[^}]*\}", "*", path)) for method in methods() for verb, path in bindings(method)]
    assert len(found) == len(set(found))


def test_what_changes_something_is_never_a_get():
    for method in methods():
        if any(verb == "GET" for verb, _ in bindings(method)):
            assert method.name.startswith(
                ("Get", "List", "BatchGet", "Query", "Watch", "Analyze", "Forecast", "Score", "Detect")
            )


def test_the_table_of_the_document_is_that_of_the_contracts():
    told = re.findall(r"^\| `([A-Z]+) ([^`]+)` \| (\w+)\.(\w+) \|", DOCUMENT, re.MULTILINE)
    expected = [
        (verb, path, method.containing_service.name, method.name)
        for method in methods()
        for verb, path in bindings(method)
    ]
    assert sorted(told) == sorted(expected)


def test_envoy_transcodes_every_service_that_has_a_path():
    configured = yaml.safe_load(run_edge.CONFIGURATION.read_text())
    manager = configured["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
    (transcoder,) = (each for each in manager["http_filters"] if each["name"] == "grpc_json_transcoder")
    expected = {method.containing_service.full_name for method in methods() if bindings(method)}
    assert set(transcoder["typed_config"]["services"]) == expected


def test_envoy_asks_again_only_for_what_the_mesh_itself_asks_again_for():
    routes = yaml.safe_load(run_edge.CONFIGURATION.read_text())["static_resources"]["listeners"][0]["filter_chains"][0][
        "filters"
    ][0]["typed_config"]["route_config"]["virtual_hosts"][0]["routes"]
    pattern = re.compile(routes[0]["match"]["safe_regex"]["regex"])
    paths = {f"{method.containing_service.full_name}/{method.name}" for method in methods()}
    again = {path for path in paths if pattern.fullmatch(f"/{path}")}
    known = {
        path for name in suite.PUBLIC for path in retried(name, [m.name for m in service_descriptor(name).methods])
    }
    assert again == {path for path in known if not path.rpartition("/")[2].startswith("WriteFrame")}


# ── asking ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@needs_envoy
def test_the_status_of_every_store_is_json_at_the_path_it_always_had(edge: Edge):
    status, board = curl(f"{edge.url}/api/database/status")
    assert status == 200
    assert {each["service"] for each in board["services"]} == set(suite.NAMES)
    assert {"redis", "postgresql"} <= {each["name"] for row in board["services"] for each in row["storages"]}


@needs_envoy
def test_servers_are_listed_and_one_is_read_with_where_the_answer_came_from(edge: Edge):
    status, listed = curl(
        f"{edge.url}/v1/servers?page_size=2&order_by=id&filter=environment%3Aonpremise%20OR%20id%3Aweb"
    )
    assert status == 200
    ident = listed["servers"][0]["id"]
    status, found = curl(f"{edge.url}/v1/servers/{ident}?view=VIEW_BASIC")
    assert (status, found["server"]["id"], found["provenance"]["source"]) == (200, ident, "replica")


@needs_envoy
def test_a_query_is_a_header_and_then_a_line_for_each_series(edge: Edge):
    start = (datetime.now(UTC) - timedelta(minutes=5)).strftime("%Y-%m-%dT%H:%M:%SZ")
    asked = f"selector.metrics=cpu_usage&selector.metrics=memory_usage&start_time={start}&step=60s"
    command = ["curl", "--silent", "--max-time", "20", f"{edge.url}/v1/series:query?{asked}"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.splitlines()
    header, *series = map(json.loads, lines)
    assert len(series) == int(header["header"]["series_count"]) > 0
    assert {each["series"]["metric"] for each in series} == {"cpu_usage", "memory_usage"}
    body = json.dumps({"selector": {"metrics": ["cpu_usage"]}, "start_time": start, "step": "60s"})
    posted = curl("--header", "Content-Type: application/json", "--data", body, f"{edge.url}/v1/series:query")
    assert posted[0] == 200


@needs_envoy
@pytest.mark.parametrize(
    "path",
    [
        "fleet",
        "series?page_size=1",
        "ledger",
        "tiers",
        "retention",
        "anomalies",
        "alerts",
        "rules",
        "silences",
        "simulation",
        "faults",
        "inventory/servers",
        "users",
        "keys",
        "roles",
        "sessions",
        "identity",
        "interactions",
        "audit",
        "audit/entries",
    ],
)
def test_what_people_look_at_is_answered(edge: Edge, path: str):
    assert curl(f"{edge.url}/v1/{path}")[0] == 200


@needs_envoy
def test_a_rule_is_made_changed_by_a_mask_and_deleted(edge: Edge):
    rule = {
        "id": "edge-test",
        "selector": {"metrics": ["cpu_usage"]},
        "threshold": {"above": 99.0},
        "severity": "ALERT_SEVERITY_INFO",
    }
    as_json = ("--header", "Content-Type: application/json")
    status, made = curl(*as_json, "--data", json.dumps(rule), f"{edge.url}/v1/rules")
    assert status == 200, made
    change = json.dumps({"name": "renamed"})
    status, changed = curl(
        *as_json, "--request", "PATCH", "--data", change, f"{edge.url}/v1/rules/edge-test?update_mask=name"
    )
    assert (status, changed["rule"]["name"]) == (200, "renamed"), changed
    assert curl("--request", "DELETE", f"{edge.url}/v1/rules/edge-test")[0] == 200
    assert curl(f"{edge.url}/v1/rules/edge-test")[0] == 404


@needs_envoy
def test_a_watch_tells_each_change_as_a_line(edge: Edge):
    command = [
        "curl",
        "--silent",
        "--no-buffer",
        "--max-time",
        "20",
        f"{edge.url}/v1/servers:watch?progress_interval=0.2s",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        kinds = [json.loads(next(process.stdout))["kind"] for _ in range(4)]
        process.terminate()
    assert kinds[0] == "WATCH_KIND_CREATED"


@needs_envoy
def test_of_a_stream_that_breaks_off_every_line_is_whole(edge: Edge):
    watch = f"{edge.url}/v1/servers:watch?progress_interval=0.1s"
    command = ["curl", "--silent", "--max-time", "20", "--header", "grpc-timeout: 500m", watch]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    # Envoy cuts it off, or the gateway ends it: whoever is first.
    assert done.returncode in {0, 18}
    first, *_ = [json.loads(line) for line in done.stdout.splitlines()]
    assert first["kind"] == "WATCH_KIND_CREATED"


# ── what is wrong ──────────────────────────────────────────────────────────────────────────────────────────────────


@needs_envoy
@pytest.mark.parametrize(
    ("path", "status", "reason"),
    [
        ("servers/nobody", 404, "NOT_FOUND"),
        ("servers?page_size=-1", 400, "INVALID_FIELD"),
        ("series:query?selector.metrics=cpu_usage", 400, "INVALID_FIELD"),
        ("alerts/nothing", 404, "NOT_FOUND"),
    ],
)
def test_an_error_has_the_status_of_its_code_and_our_reason(edge: Edge, path: str, status: int, reason: str):
    found, error = curl(f"{edge.url}/v1/{path}")
    assert (found, error["details"][0]["reason"], error["details"][0]["domain"]) == (status, reason, "openmanager")


@needs_envoy
@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["servers?nope=1"], 400),
        (["servers?page_size=many"], 400),
        (["nothing"], 404),
        (["servers/a%2Fb"], 400),
        (["series:query", "--header", "Content-Type: application/json", "--data", "{"], 400),
        (["series:query", "--header", "Content-Type: text/plain", "--data", "{}"], 403),
        (["fleet", "--header", "Host: rebound.example"], 421),
        (["fleet", "--header", "x_openmanager_identity: forged"], 400),
        (["fleet", "--header", f"x-large: {20_000 * 'a'}"], 431),
        (["fleet", *(word for k in range(80) for word in ("--header", f"x-{k}: 1"))], 431),
        (["fleet", "--request", "TRACE"], 404),
    ],
)
def test_what_cannot_be_meant_is_refused_before_the_gateway(edge: Edge, arguments: list[str], status: int):
    path, *rest = arguments
    assert curl(f"{edge.url}/v1/{path}", *rest)[0] == status


@needs_envoy
def test_a_body_that_is_too_large_is_refused_and_the_next_request_is_served(edge: Edge, tmp_path: Path):
    large = tmp_path / "large"
    large.write_text(json.dumps({"selector": {"servers": [1000 * "a"] * 6000}}))
    sent = ("--header", "Content-Type: application/json", "--data-binary", f"@{large}")
    assert curl(*sent, f"{edge.url}/v1/series:query")[0] in {413, 429}
    assert curl(f"{edge.url}/v1/fleet")[0] == 200


# ── the document ───────────────────────────────────────────────────────────────────────────────────────────────────


def examples() -> list[tuple[str, str]]:
    """Return the commands of the document that ask the edge, with what they print there."""
    blocks = re.findall(r"```console\n(.*?)```", DOCUMENT, re.DOTALL)
    found = []
    for block in blocks:
        for entry in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, output = entry.replace("\\\n", " ").partition("\n")
            if "curl" in command:
                found.append((command, output))
    return found


@needs_envoy
@pytest.mark.parametrize(("command", "output"), examples())
def test_an_example_of_the_document_prints_what_it_says(edge: Edge, mesh: Mesh, command: str, output: str):
    _, listed = curl(f"{edge.url}/v1/servers?order_by=id&page_size=1")
    text = command.replace("http://127.0.0.1:50443", edge.url).replace("web-aws-01", listed["servers"][0]["id"])
    done = subprocess.run(["bash", "-c", text], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode in {0, 28}, done.stderr  # 28: a watch that was given so much time
    # The same form: the figures are those of another fleet.
    fields = re.compile(r'"[a-z_]+":')
    assert set(fields.findall(output)) <= set(fields.findall(done.stdout)), done.stdout

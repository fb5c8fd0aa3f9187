"""The commands against a mesh whose metadata and simulator are away."""

from __future__ import annotations

import csv
import io
import json
import re
from datetime import datetime

import pytest
from client.mesh import NOBODY

from openmanager.cli.main import COMMANDS

OWN = ("status", "health", "servers", "top", "query", "simulate", "fault", "version")


def documents(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


# ── status and health ──────────────────────────────────────────────────────────────────────────────────────────────


def test_status_shows_every_service_and_store_and_why_one_is_down(run):
    found = run("status")
    assert found.code == 1
    assert re.search(r"^timeseries +OK +openmanager", found.out, re.MULTILINE)
    assert re.search(r"^  log +OK +files", found.out, re.MULTILINE)
    assert "✗ metadata DOWN: cannot be reached" in found.out
    assert re.search(r"ledger: [\d,]+ samples accepted", found.out)
    assert re.search(r"^head .*✓ *$", found.out, re.MULTILINE)
    assert max(map(len, found.out.splitlines())) <= 80
    assert "\x1b" not in found.out


def test_status_as_json_is_the_reply_with_names_as_in_the_proto_and_defaults(run):
    found = run("status", "--json")
    reply = json.loads(found.out)
    assert found.code == 1
    assert reply["overall_state"] == "STORAGE_STATE_DOWN"
    assert reply["services"][0]["service"] == "gateway"
    assert reply["services"][0]["reason"] == ""
    assert int(reply["ledger"]["accepted_sample_count"]) >= 14_400


@pytest.mark.parametrize(
    "arguments",
    [
        ("status",),
        ("status", "--watch"),
        ("servers",),
        ("servers", "web-01"),
        ("top", "--once"),
        ("query", "cpu_usage"),
        ("query", "cpu_usage", "--csv"),
        ("simulate", "status"),
        ("fault", "list"),
        ("health",),
    ],
    ids=" ".join,
)
def test_a_gateway_that_is_away_is_one_sentence_that_helps(run, arguments):
    found = run(*arguments, gateway=NOBODY)
    assert found.code == 69
    assert found.out == ""
    assert found.err == (
        f"openmanager: nothing answers at {NOBODY}: start the mesh with `openmanager up`, "
        "or name another gateway with --gateway\n"
    )


@pytest.mark.parametrize("address", ["gateway", "127.0.0.1:", "127.0.0.1:0", "127.0.0.1:70000", ":50050"])
def test_an_address_that_is_none_is_a_usage_error(run, address):
    found = run("status", gateway=address)
    assert found.code == 2
    assert "host:port is expected" in found.err


def test_health_is_asked_by_full_name_by_area_and_for_the_whole(run):
    assert run("health").out == "SERVING\n"
    assert json.loads(run("health", "--json").out) == {"status": "SERVING"}
    assert run("health", "timeseries").out.count("SERVING") == 4
    assert run("health", "openmanager.api.gateway.v1.GatewayService").code == 0
    assert run("health", "--all").out.count("SERVING") > 5
    unknown = run("health", "nothing")
    assert unknown.code == 1
    assert "knows no service 'nothing'" in unknown.err


# ── servers and top ────────────────────────────────────────────────────────────────────────────────────────────────


def test_servers_are_listed_with_bars_and_where_the_answer_came_from(run):
    found = run("servers")
    assert re.search(r"^web-06 +\w+ +█\S+ +6[4-6]\.\d +\S+ 65\.0 +\S+ 65\.0 +database", found.out, re.MULTILINE)
    assert "10 servers, from replica, as of" in found.out
    assert max(map(len, found.out.splitlines())) <= 80


def test_servers_are_filtered_ordered_and_limited(run):
    found = run("servers", "--filter", "role = database", "--order-by", "cpu_usage desc", "--limit", "2")
    assert re.findall(r"^web-\d+", found.out, re.MULTILINE) == ["web-09", "web-06"]
    assert "2 of 4 servers" in found.out
    assert run("servers", "list", "--filter", "role = nothing").out.startswith("no servers: from replica")


def test_servers_as_json_are_one_page_a_line(run):
    pages = documents(run("servers", "--json").out)
    assert [server["id"] for page in pages for server in page["servers"]] == [f"web-{k:02d}" for k in range(10)]
    assert pages[0]["provenance"]["degraded"] is False
    assert pages[0]["total_count"] == "10"


def test_one_server_is_shown_with_every_metric(run):
    found = run("servers", "web-03")
    assert found.code == 0
    assert re.search(r"^hostname +web-03.example.net", found.out, re.MULTILINE)
    assert re.search(r"^memory_usage +35.00", found.out, re.MULTILINE)
    assert "system.cpu.utilization{cpu=0,state=user}" in found.out
    assert json.loads(run("servers", "get", "web-03", "--json").out)["server"]["values"][1] == 35.0


def test_a_server_that_does_not_exist_is_one_sentence(run):
    found = run("servers", "web-77")
    assert (found.code, found.out, found.err) == (1, "", "openmanager: there is no such server\n")


def test_a_filter_that_is_malformed_names_what_is_known(run):
    found = run("servers", "--filter", "colour = red")
    assert found.code == 1
    assert "unknown field 'colour'" in found.err
    assert found.err.count("\n") == 1


def test_top_prints_one_frame_where_there_is_no_terminal(run):
    found = run("top", "--sort", "memory")
    assert found.out.startswith("10 servers ")
    assert "40 series" in found.out
    assert "from replica, as of" in found.out
    assert re.findall(r"^web-\d+", found.out, re.MULTILINE) == [f"web-{k:02d}" for k in range(9, -1, -1)]
    assert max(map(len, found.out.splitlines())) <= 80


def test_top_sorts_by_id_and_filters(run):
    found = run("top", "--once", "--sort", "id", "--filter", "environment = staging")
    assert re.findall(r"^web-\d+", found.out, re.MULTILINE) == ["web-01", "web-03", "web-05", "web-07", "web-09"]
    assert len(documents(run("top", "--once", "--json").out)[0]["servers"]) == 10


# ── query ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_query_is_a_plot_a_summary_and_where_it_came_from(run):
    found = run("query", "memory_usage", "--last", "2h", "--server", "web-03", "--server", "web-04")
    assert found.code == 0
    assert "┌" in found.out
    assert re.search(r"[⠀-⣿]", found.out)
    assert re.search(r"━━ +web-03 +35.00 +35.00 +35.00 +35.00", found.out)
    assert re.search(r"^memory_usage  mean of 1m$", found.out, re.MULTILINE)
    assert "from head (raw), as of" in found.out
    assert max(map(len, found.out.splitlines())) <= 80


def test_a_query_as_csv_has_every_value_in_full(run):
    found = run("query", "cpu_usage", "memory_usage", "--last", "2h", "--server", "web-03", "--raw", "--csv")
    rows = list(csv.reader(io.StringIO(found.out)))
    assert rows[0] == ["time", "server", "metric", "value"]
    assert len(rows) == 1 + 2 * 360
    assert {(row[1], row[2]) for row in rows[1:]} == {("web-03", "cpu_usage"), ("web-03", "memory_usage")}
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d0\.000Z", row[0]) for row in rows[1:])
    assert datetime.fromisoformat(rows[2][0]) > datetime.fromisoformat(rows[1][0])
    assert any(len(row[3]) > 12 for row in rows[1:])
    assert [row[3] for row in rows[1:] if row[2] == "memory_usage"] == ["35.0"] * 360


def test_a_query_as_csv_of_groups_names_them(run):
    found = run("query", "memory_usage", "--last", "2h", "--step", "1h", "--group-by", "environment", "--csv")
    rows = list(csv.reader(io.StringIO(found.out)))
    assert rows[0] == ["time", "group", "metric", "value"]
    assert {(row[1], float(row[3])) for row in rows[1:]} == {("production", 45.0), ("staging", 55.0)}


def test_a_query_as_json_is_a_header_and_then_a_series_a_line(run):
    replies = documents(run("query", "cpu_usage", "--last", "10m", "--json").out)
    assert list(replies[0]) == ["header"]
    assert replies[0]["header"]["series_count"] == "10"
    assert [reply["series"]["server"] for reply in replies[1:]] == [f"web-{k:02d}" for k in range(10)]


def test_a_query_as_a_table_has_a_row_for_each_time(run):
    found = run("query", "memory_usage", "--last", "2h", "--step", "30m", "--group-by", "all", "--table")
    assert re.search(r"^time +all$", found.out, re.MULTILINE)
    assert re.search(r"^\d{4}-\d\d-\d\d \d\d:[03]0:00 +50.00$", found.out, re.MULTILINE)


def test_a_metric_that_does_not_exist_is_answered_with_those_that_do(run):
    found = run("query", "cpu")
    assert found.code == 1
    assert (
        found.err == "openmanager: no series of 'cpu' for these servers; there is cpu_usage, system.cpu.utilization\n"
    )


def test_more_series_than_there_are_colours_is_said(run):
    found = run("query", "cpu_usage", "memory_usage", "--last", "2h")
    assert "10 of 20 series shown" in found.out


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("--last", "1h", "--start", "2h"), "exclude each other"),
        (("--raw", "--step", "1m"), "exclude each other"),
        (("--start", "1h", "--end", "2h"), "before it begins"),
        (("--last", "yesterday"), "is no duration"),
        (("--last", "0s"), "is no duration"),
        (("--start", "soon"), "is no time"),
        (("--aggregation", "median"), "is not one of"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_question_that_cannot_be_is_a_usage_error(run, arguments, why):
    found = run("query", "cpu_usage", *arguments)
    assert found.code == 2
    assert why in found.err


# ── the rest ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("arguments", "service"),
    [
        (("simulate", "status"), "simulator"),
        (("simulate", "advance", "5"), "simulator"),
        (("fault", "list"), "simulator"),
        (("fault", "clear", "f"), "simulator"),
        (("servers", "list", "--inventory"), "metadata"),
        (("servers", "create", "new-01"), "metadata"),
        (("servers", "update", "new-01", "--role", "web"), "metadata"),
        (("servers", "delete", "new-01"), "metadata"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_service_that_is_away_is_named_in_one_sentence(run, arguments, service):
    found = run(*arguments)
    assert (found.code, found.out, found.err) == (69, "", f"openmanager: {service} cannot be reached\n")


def test_the_version_tells_what_it_stands_on_and_the_gateways(run):
    known = json.loads(run("version", "--json").out)
    assert known["gateway"] == known["openmanager"]
    assert set(known) == {"openmanager", "python", "grpc", "protobuf", "gateway", "gateway_address"}
    away = run("version", gateway=NOBODY)
    assert away.code == 0
    assert f"does not answer at {NOBODY}" in away.out


@pytest.mark.parametrize("command", OWN)
def test_help_comes_with_examples(run, command):
    assert command in COMMANDS
    found = run(command, "--help")
    assert found.code == 0
    assert found.out.startswith("Usage: openmanager")
    subcommands = command in {"simulate", "fault"}
    assert subcommands or "Examples:" in found.out


def test_what_cannot_be_changed_is_a_usage_error(run):
    assert "nothing to change" in run("servers", "update", "web-01").err
    assert "there is no threshold 'cpu'" in run("servers", "create", "x", "--threshold", "cpu=1").err
    assert "is not NAME=VALUE" in run("servers", "create", "x", "--label", "rack").err
    assert "is not NAME=PERCENT" in run("servers", "create", "x", "--threshold", "cpu_warning=much").err

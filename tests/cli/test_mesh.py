"""The commands on a whole mesh."""

from __future__ import annotations

import json
import re
import secrets
import time

import pytest


@pytest.fixture
def whole(mesh, run):
    """Runs a command against a whole mesh whose simulation ticks."""

    def command(*arguments: str):
        return run(*arguments, gateway=mesh.gateway)

    command("simulate", "start")
    yield command
    command("simulate", "start")


def a_server(whole) -> str:
    end = time.monotonic() + 10
    while True:
        found = whole("servers", "--limit", "1", "--json")
        if found.code == 0 and (servers := json.loads(found.out)["servers"]):
            return str(servers[0]["id"])
        assert time.monotonic() < end


def test_a_mesh_that_is_well_is_exit_code_0(whole):
    end = time.monotonic() + 20
    while (found := whole("status")).code:
        assert time.monotonic() < end, found.out
    assert found.out.startswith(("OK ", "SLOW ", "RECOVERING "))
    assert re.search(r"^  postgresql +OK", found.out, re.MULTILINE)


def test_the_simulation_is_shown_stopped_advanced_and_started(whole):
    assert re.search(r"^simulation +running", whole("simulate", "status").out, re.MULTILINE)
    running = whole("simulate", "advance", "3")
    assert (running.code, running.err) == (1, "openmanager: stop the simulation first\n")
    before = json.loads(whole("simulate", "stop", "--json").out)["simulation"]
    assert before["running"] is False
    advanced = json.loads(whole("simulate", "advance", "7", "--json").out)["simulation"]
    assert int(advanced["tick_count"]) == int(before["tick_count"]) + 7
    assert "3 servers × 511 metrics, seed 7" in whole("simulate", "status").out
    started = json.loads(whole("simulate", "start", "--interval", "1s", "--json").out)["simulation"]
    assert (started["running"], started["interval"]) == (True, "1s")


def test_the_metrics_of_the_simulation_are_listed(whole):
    listed = whole("simulate", "metrics").out
    assert re.search(r"^cpu_usage +% +0–100", listed, re.MULTILINE)
    pages = [json.loads(line) for line in whole("simulate", "metrics", "--json").out.splitlines()]
    assert sum(len(page["metrics"]) for page in pages) == 511


def test_a_fault_is_injected_listed_and_cleared(whole):
    server = a_server(whole)
    told = whole("fault", "inject", "cpu_spike", server, "--for", "30m", "--severity", "0.5").out
    assert f"cpu_spike of {server}, severity 0.50" in told
    fault_id = told.partition(":")[0]
    assert re.search(rf"^{fault_id} +cpu_spike .* 30 m +0.50", whole("fault", "list", "--active").out, re.MULTILINE)
    cleared = json.loads(whole("fault", "clear", fault_id, "--json").out)["fault"]
    assert cleared["id"] == fault_id
    again = whole("fault", "clear", fault_id)
    assert again.code == 1
    assert again.err.count("\n") == 1
    unknown = whole("fault", "inject", "cpu_spike", "nobody-1")
    assert (unknown.code, "not in the simulated fleet" in unknown.err) == (1, True)


def test_a_server_is_created_shown_changed_and_deleted(whole):
    server = f"made-{secrets.token_hex(4)}"
    made = whole("servers", "create", server, "--role", "web", "--label", "rack=r1", "--threshold", "cpu_warning=60")
    assert re.search(r"^labels +rack=r1", made.out, re.MULTILINE)
    assert re.search(r"^thresholds +cpu_warning 60 %", made.out, re.MULTILINE)
    etag = json.loads(whole("servers", "get", server, "--inventory", "--json").out)["server"]["etag"]
    assert re.search(r"^role +cache", whole("servers", "update", server, "--role", "cache").out, re.MULTILINE)
    stale = whole("servers", "update", server, "--role", "db", "--etag", etag)
    assert (stale.code, stale.err.count("\n")) == (1, 1)
    listed = whole("servers", "list", "--inventory", "--filter", f"id = {server}").out
    assert re.search(rf"^{server} .*cache", listed, re.MULTILINE)
    assert "1 server in the inventory, from postgresql" in listed
    assert whole("servers", "delete", server).out == f"{server} is hidden; its history stays\n"
    deleted = whole("servers", "list", "--inventory", "--show-deleted", "--filter", f"id = {server}").out
    assert "deleted, " in deleted
    assert whole("servers", "delete", server, "--purge").code == 0


def test_what_is_simulated_can_be_asked_for(whole):
    server = a_server(whole)
    end = time.monotonic() + 10
    while True:  # another test may have stopped it for long
        found = whole("query", "cpu_usage", "--server", server, "--last", "5m")
        if found.code == 0 and re.search(rf"━━ +{server} +\d+\.\d\d", found.out):
            break
        assert time.monotonic() < end, found


def test_the_books_of_the_log_are_shown_and_balance(whole):
    end = time.monotonic() + 20
    while not re.search(r"^registrar +OK", (found := whole("log")).out, re.MULTILINE):
        assert time.monotonic() < end, found.out
    assert found.code == 0
    assert re.match(r"ledger: [\d,]+ samples accepted, position [\d,]+", found.out)
    assert re.search(r"^head +OK .* ✓ *$", found.out, re.MULTILINE)
    assert "✗" not in found.out
    books = json.loads(whole("log", "--json").out)["ledger"]
    assert {"blocks", "cache", "head", "registrar", "rollups"} <= {each["name"] for each in books["consumers"]}


def test_dead_letters_are_listed_retried_and_discarded_by_name_only(whole):
    assert whole("log", "dead-letters").out == "no dead letters\n"
    assert whole("log", "retry", "--consumer", "registrar").out == "0 dead letters taken\n"
    assert (
        whole("log", "discard", "--consumer", "registrar", "--yes").out == "0 dead letters with 0 samples discarded\n"
    )
    for command in (("retry", "99"), ("discard", "99", "--yes")):
        found = whole("log", *command)
        assert (found.code, found.err) == (1, "openmanager: there is no such dead letter\n")
    for command in ("retry", "discard"):
        found = whole("log", command)
        assert found.code == 2
        assert "either ids or --consumer are needed" in found.err

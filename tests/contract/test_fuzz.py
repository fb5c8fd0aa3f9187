"""A little of `python -m fuzz`, what it found once, and proof that it finds what is there to be found."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from contract.rpc import METHODS
from contract.strategies import wire
from contract.test_catalogue import told
from fuzz import run, values
from fuzz.local import Collector
from fuzz.mesh import Method
from fuzz.run import Fuzzer, good_calls
from openmanager.api.simulator.v1 import simulator_pb2
from openmanager.errors import InvalidArgumentError, NotFoundError
from openmanager.runtime.edge import Edge, Load
from openmanager.runtime.module import service_descriptor

pytestmark = pytest.mark.asyncio(loop_scope="session")

STATUS = "openmanager.api.status.v1.StatusService"
CORPUS = {
    file.stem: json.loads(file.read_text(encoding="utf-8"))
    for file in sorted((Path(__file__).parent / "corpus").glob("*.json"))
}
BY_NAME = {str(method): method for method in METHODS}


@pytest.mark.timeout(180)
async def test_hostile_input_finds_nothing(local: dict[str, Method]):
    outcome = await Fuzzer(list(local.values()), seed=1, good=good_calls()).run(1000)
    assert outcome.findings == []
    assert sum(counts.total() for counts in outcome.codes.values()) == 1000


@pytest.mark.parametrize("name", CORPUS)
async def test_what_was_found_once_is_not_found_again(local: dict[str, Method], name: str):
    messages = [base64.b64decode(each) for each in CORPUS[name]["messages"]]
    assert (await told(local[CORPUS[name]["method"]], *messages)).fault == ""


@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(data=st.data())
async def test_any_message_of_any_method_gets_an_answer_that_a_client_may_get(local: dict[str, Method], data):
    name = data.draw(st.sampled_from(sorted(BY_NAME.keys() & local.keys())))
    assert (await told(local[name], data.draw(wire(BY_NAME[name].request)))).fault == ""


@pytest.mark.parametrize(("count", "same"), [(4, True), (100_001, True), (33_000, False), (-7, False)])
async def test_a_mutation_makes_no_fleet_that_is_only_a_test_of_load(count: int, same):
    request = simulator_pb2.StartSimulationRequest(server_count=count)
    data = request.SerializeToString()
    made = run.light(request.DESCRIPTOR, data)
    assert (made == data) is same
    assert simulator_pb2.StartSimulationRequest.FromString(made).server_count in values.SMALL["server_count"]
    assert run.light(request.DESCRIPTOR, b"\xff") == b"\xff"


# ── what there is to be found ──────────────────────────────────────────────────────────────────────────────────────


async def found_with(behaviour) -> set[str]:
    """Return what is found in a server whose only method behaves in some way."""

    class Servicer:
        GetStatus = staticmethod(behaviour)

    server, descriptor = Collector(), service_descriptor(STATUS)
    Edge(server, Load()).add(descriptor, Servicer())
    method = Method("planted", descriptor.methods_by_name["GetStatus"], server.handlers[f"/{STATUS}/GetStatus"])
    outcome = await Fuzzer([method], seed=1, good=()).run(30)
    return {each.what for each in outcome.findings}


async def test_a_defect_a_wrong_reason_and_a_text_that_tells_are_found():
    async def breaks(request, context):
        raise KeyError("x")

    async def gives_another_reason(request, context):
        raise NotFoundError("there is none", reason="MADE_UP")

    async def names_no_field(request, context):
        raise InvalidArgumentError("it is wrong")

    async def tells(request, context):
        raise NotFoundError("no such file: /var/lib/x")

    assert "answers INTERNAL" in await found_with(breaks)
    assert "gives the reason 'MADE_UP'" in await found_with(gives_another_reason)
    assert "names no field" in await found_with(names_no_field)
    assert "tells '/var/'" in await found_with(tells)


async def test_a_call_that_does_not_end_is_found(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(run, "DEADLINE_SECONDS", 0.02)
    monkeypatch.setattr(run, "GRACE_SECONDS", 0.05)

    async def blocks(request, context):
        end = time.process_time() + 0.1
        while time.process_time() < end:
            pass

    assert "outlives its deadline" in await found_with(blocks)


async def test_what_is_left_behind_is_found(monkeypatch: pytest.MonkeyPatch):
    kept, nothing_more = [], asyncio.Event()
    monkeypatch.setattr(run, "BLOCK", 10)
    monkeypatch.setattr(run, "MORE_TASKS", 5)
    monkeypatch.setattr(run, "MORE_FILES", 5)
    monkeypatch.setattr(run, "SETTLE_SECONDS", 0.1)

    async def leaves_behind(request, context):
        kept.append((asyncio.create_task(nothing_more.wait()), socket.socket()))
        raise NotFoundError("there is none")

    found = await found_with(leaves_behind)
    nothing_more.set()
    for task, open_file in kept:
        await task
        open_file.close()
    assert {"the process has more files than before", "the process has more tasks than before"} <= found

"""`openmanager interactions` and the client's `interactions`, on a whole mesh."""

from __future__ import annotations

import asyncio
import json
import re
import uuid
from contextlib import aclosing

import pyarrow.parquet as pq
import pytest
from google.protobuf.json_format import MessageToDict

from openmanager.cli.part import PartFile
from openmanager.client import Client, Interaction, InteractionFormat, InteractionGroupBy, Redaction
from openmanager.client.interactions import export_parts, export_request
from openmanager.client.rpc import closable
from openmanager.errors import NotFoundError


@pytest.fixture
def session() -> str:
    return f"s-{uuid.uuid4().hex}"


def record(run, mesh, session: str, query: str, *options: str) -> str:
    found = run("interactions", "record", query, *options, "--session", session, gateway=mesh.gateway)
    assert found.code == 0, found.err
    return re.fullmatch(r"recorded (\S+)\n", found.out)[1]


def test_an_interaction_is_recorded_rated_shown_and_found(run, mesh, session):
    options = ("--model", "m1", "--server", "web-01", "--latency", "1s", "--label", "a=b", "--confidence", "0.5")
    made = record(run, mesh, session, "Why is web-01 slow?", "Its disk is full.", *options)
    rated = run("interactions", "rate", made, "4", "--comment", "It was.", gateway=mesh.gateway)
    assert rated.out == f"{made} is rated ★★★★☆\n"
    shown = run("interactions", "show", made, gateway=mesh.gateway).out
    assert re.search(r"^rating +★★★★☆ .* It was\.$", shown, re.MULTILINE)
    assert "Its disk is full." in shown
    only = ("--filter", f"session_id = {session}")
    for command in (("list",), ("search", "full disks"), ("similar", "web-02 slow")):
        found = run("interactions", *command, *only, gateway=mesh.gateway)
        assert made in found.out, command
        assert "→ Its disk is full." in found.out
    assert "m1     –" in run("interactions", "statistics", *only, "--step", "1d", gateway=mesh.gateway).out
    page = json.loads(run("interactions", "list", *only, "--json", gateway=mesh.gateway).out)
    assert (page["total_count"], page["total_count_estimated"]) == ("1", False)


@pytest.mark.parametrize(
    ("arguments", "code", "why"),
    [
        (("rate", str(uuid.UUID(int=0)), "3"), 1, "there is no such interaction"),
        (("rate", "x", "6"), 2, "6 is not in the range"),
        (("show", "x"), 1, "id is not a UUID"),
        (("search", " "), 2, "TEXT is empty"),
        (("list", "--filter", "colour = red"), 1, "unknown field 'colour'"),
        (("record", "q", "--label", "x"), 2, "is not NAME=VALUE"),
        (("erase",), 2, "either --session or --subject"),
        (("export", "x.txt"), 2, "ends in none of .jsonl, .parquet"),
        (("export", "-", "--format", "parquet"), 2, "standard output takes JSON lines"),
    ],
    ids=str,
)
def test_what_cannot_be_is_one_sentence(run, mesh, arguments, code, why):
    found = run("interactions", *arguments, gateway=mesh.gateway)
    assert found.code == code
    assert why in found.err


def test_an_export_is_a_file_that_is_not_overwritten(run, mesh, session, tmp_path):
    for at in range(3):
        record(run, mesh, session, f"question {at} of ada@example.org")
    only = ("--filter", f"session_id = {session}")
    lines, table = tmp_path / "a.jsonl", tmp_path / "a.parquet"
    for path in (lines, table):
        found = run("interactions", "export", str(path), *only, "--redact", "--json", gateway=mesh.gateway)
        assert json.loads(found.out)["interaction_count"] == 3
    rows = [json.loads(line) for line in lines.read_text().splitlines()]
    assert [row["query"] for row in rows] == [f"question {at} of [email]" for at in range(3)]
    assert pq.read_table(table).column("query").to_pylist() == [row["query"] for row in rows]
    again = run("interactions", "export", str(lines), *only, gateway=mesh.gateway)
    assert (again.code, again.err) == (1, f"openmanager: {lines} exists: --force overwrites it\n")
    empty = run("interactions", "export", str(table), "--filter", "model = x9", "--force", gateway=mesh.gateway)
    assert empty.code == 0
    assert pq.read_table(table).num_rows == 0


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_an_export_that_was_interrupted_goes_on(run, mesh, session, tmp_path, form):
    for at in range(8):
        record(run, mesh, session, f"question {at}", "r" * 250_000)
    only = f"session_id = {session}"
    request = export_request(only, form=InteractionFormat(form.upper()), redactions=())
    asked = MessageToDict(request)

    async def first_chunk():
        async with Client(mesh.gateway) as client:
            async with aclosing(closable(export_parts(client.rpc, request))) as replies:
                await anext(replies)
                return (await anext(replies)).chunk

    path, chunk = tmp_path / f"a.{form}", asyncio.run(first_chunk())
    assert 0 < chunk.done_count < 8
    part = PartFile.begin(path, {"request": asked, "rows": 0, "token": ""})
    data = chunk.data if form == "jsonl" else len(chunk.data).to_bytes(4, "little") + chunk.data
    part.write(data, rows=chunk.done_count, token=chunk.resume_token)
    part.close()
    record(run, mesh, session, "not in it")
    command = ("interactions", "export", str(path), "--filter", only)
    assert "an interrupted export" in run(*command, gateway=mesh.gateway).err
    assert "is of something else" in run(*command, "--resume", "--redact", gateway=mesh.gateway).err
    found = run(*command, "--resume", "--json", gateway=mesh.gateway)
    assert json.loads(found.out)["interaction_count"] == 8
    rows = pq.read_table(path).to_pylist() if form == "parquet" else map(json.loads, path.read_text().splitlines())
    assert [row["query"] for row in rows] == [f"question {at}" for at in range(8)]


def test_what_is_erased_is_asked_for_first(run, mesh, session, monkeypatch):
    record(run, mesh, session, "q")
    monkeypatch.setattr("click.termui.visible_prompt_func", lambda _: "n")
    assert run("interactions", "erase", "--session", session, gateway=mesh.gateway).code == 130
    found = run("interactions", "erase", "--session", session, "--yes", gateway=mesh.gateway)
    assert found.out == "1 interaction erased\n"
    assert (
        "0 interactions" in run("interactions", "list", "--filter", f"session_id = {session}", gateway=mesh.gateway).out
    )


async def test_the_client_does_all_of_it(mesh, session):
    async with Client(mesh.gateway) as client:
        wanted = Interaction(query="Is a zeppelin a balloon?", session_id=session, servers=("a",), confidence=0.0)
        made = await client.interactions.create(wanted, request_id=session)
        assert (made.query, made.servers, made.confidence, made.rating) == (wanted.query, ("a",), 0.0, None)
        assert await client.interactions.create(wanted, request_id=session) == made
        rated = await client.interactions.rate(made.id, 5, "yes")
        assert await client.interactions.get(made.id) == rated
        only = f"session_id = {session}"
        assert [each async for each in client.interactions.list(only, search="zeppelins")] == [rated]
        (like,) = await client.interactions.similar("zeppelin", filter=only)
        assert (like.interaction, like.similarity) == (rated, 1.0)
        (figures,) = await client.interactions.statistics(only, group_by=InteractionGroupBy.ALL)
        assert (figures.interaction_count, figures.mean_rating, figures.latency_p50) == (1, 5.0, None)
        chunks = client.interactions.export(only, form=InteractionFormat.JSONL, redactions=(Redaction.SECRET,))
        assert [json.loads(chunk)["query"] async for chunk in chunks] == [wanted.query]
        assert await client.interactions.erase(session_id=session, validate_only=True) == 1
        assert await client.interactions.erase(session_id=session) == 1
        with pytest.raises(NotFoundError):
            await client.interactions.get(made.id)

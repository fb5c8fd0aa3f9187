"""`openmanager audit retention`, `holds`, `hold` and `release` on a whole mesh."""

from __future__ import annotations

import asyncio
import io
import json
import re

import pytest
from conftest import Mesh

from cli.conftest import Result
from openmanager.api.metadata.v1 import metadata_pb2
from openmanager.cli.main import main
from openmanager.client import AuditHold, Client, rpc
from openmanager.errors import AbortedError, NotFoundError


@pytest.fixture
def run(plain, mesh: Mesh, capsys: pytest.CaptureFixture[str]):
    """Runs a command; there is no policy before, nor after."""

    def command(*arguments: str) -> Result:
        code = 0
        try:
            main(["--gateway", mesh.gateway, "audit", *arguments])
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0
        printed = capsys.readouterr()
        return Result(code, printed.out, printed.err)

    asyncio.run(forget(mesh))
    yield command
    asyncio.run(forget(mesh))


async def forget(mesh: Mesh) -> None:
    async with Client(mesh.gateway) as client:
        method = rpc.Method(rpc.GET_POLICY.service, "DeletePolicy", metadata_pb2.DeletePolicyResponse)
        try:
            await client.rpc.call(method, metadata_pb2.DeletePolicyRequest(kind="audit", id="default"))
        except NotFoundError:
            return


def policy(run) -> dict[str, object]:
    return json.loads(run("holds", "--json").out)


def test_entries_are_kept_for_ever_until_somebody_says_otherwise(run, monkeypatch: pytest.MonkeyPatch):
    assert run("retention").out == "entries are kept for ever\nno holds\n"
    assert policy(run) == {"retention_days": None, "holds": [], "etag": "v0", "update_time": None}
    monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))
    refused = run("retention", "--days", "1825")
    assert (refused.code, "older than 1,825 days" in refused.err) == (130, True)
    assert re.search(r"^entries are kept for 1,825 days, since 20", run("retention", "--days", "1825", "--yes").out)
    # To keep for longer deletes nothing, and is not asked about.
    assert run("retention", "--days", "3650").code == 0
    assert policy(run)["retention_days"] == 3650
    assert run("retention", "--forever").out.startswith("entries are kept for ever, since 20")
    assert policy(run)["retention_days"] is None


def test_a_hold_is_placed_shown_and_released(run, monkeypatch: pytest.MonkeyPatch):
    placed = run("hold", "case-17", "--filter", "actor = users/3f0c", "--reason", "litigation")
    assert re.search(r"case-17 +actor = users/3f0c +the beginning +no end +litigation", placed.out)
    assert run("hold", "q3", "--from", "2026-07-01T00:00Z", "--to", "2026-10-01T00:00Z").code == 0
    shown = run("holds")
    assert re.search(r"q3 +every entry +2026-0", shown.out)
    assert max(map(len, shown.out.splitlines())) <= 80
    assert policy(run)["holds"] == [
        {"id": "case-17", "filter": "actor = users/3f0c", "reason": "litigation"},
        {"id": "q3", "range": {"start_time": "2026-07-01T00:00:00+00:00", "end_time": "2026-10-01T00:00:00+00:00"}},
    ]
    assert run("retention", "--days", "30", "--yes").code == 0
    monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))
    assert run("release", "case-17").code == 130
    released = run("release", "case-17", "--yes", "--json")
    assert [each["id"] for each in json.loads(released.out)["holds"]] == ["q3"]
    assert policy(run)["retention_days"] == 30


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("hold", "x"), 2, "--filter, --from or --to is needed"),
        (("hold", "x", "--from", "2026-10-01", "--to", "2026-07-01"), 2, "'--to': is not after --from"),
        (("hold", "x", "--from", "yesterday"), 2, "'--from': 'yesterday' is no time"),
        (("hold", "Case 17", "--filter", "actor = a"), 1, "openmanager: ID must be of [a-z0-9]"),
        (("hold", "x", "--filter", "nobody = a"), 1, "openmanager: --filter "),
        (("hold", "x", "--filter", "actor ="), 1, "openmanager: --filter "),
        (
            ("hold", "x", "--filter", "actor = a", "--reason", "r" * 1001),
            1,
            "openmanager: --reason is longer than 1000",
        ),
        (("hold", "taken", "--filter", "actor = a"), 1, "there is a hold 'taken' already"),
        (("release", "x", "--yes"), 1, "there is no hold 'x'; there is taken"),
        (("retention", "--days", "0"), 2, "'--days': 0 is not in the range"),
        (("retention", "--days", "36501"), 2, "'--days': 36501 is not in the range"),
        (("retention", "--days", "5", "--forever"), 2, "--days and --forever exclude each other"),
    ],
)
def test_what_cannot_be_is_refused_by_the_name_of_its_option(run, arguments: tuple[str, ...], code: int, says: str):
    assert run("hold", "taken", "--filter", "actor = users/1").code == 0
    before = policy(run)
    found = run(*arguments)
    assert (found.code, says in found.err) == (code, True), found.err
    assert policy(run) == before


async def test_what_somebody_else_has_changed_in_between_is_not_overwritten(mesh: Mesh):
    await forget(mesh)
    async with Client(mesh.gateway) as client:
        for _ in range(2):  # the first that is stored, and a later one
            read = await client.audit.policy()
            theirs = AuditHold(id=f"theirs-{read.etag}", filter="kind = INTENT")
            await client.audit.update_policy(type(read)(holds=(*read.holds, theirs), etag=read.etag))
            with pytest.raises(AbortedError, match="changed in between"):
                await client.audit.update_policy(read)
        assert [each.id for each in (await client.audit.policy()).holds] == ["theirs-v0", "theirs-v1"]
    await forget(mesh)

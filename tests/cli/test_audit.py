"""`openmanager audit` on a whole mesh."""

from __future__ import annotations

import asyncio
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from conftest import Mesh

from cli.conftest import Result
from openmanager.audit import Outcome, Record
from openmanager.cli.main import main
from openmanager.client import Client
from openmanager.runtime.audit import PeerRecorder
from openmanager.runtime.peer import Peer

UPDATE = "openmanager.api.metadata.v1.ServerService/UpdateServer"


@pytest.fixture(scope="module")
def recorded(mesh: Mesh) -> int:
    """Some entries, and the number of the first."""

    async def record() -> int:
        async with Peer("metadata", mesh.address("metadata")) as peer:
            recorder = PeerRecorder(peer, seconds=10)
            record = Record(actor="users/cli", via="gateway", action=UPDATE, object="servers/web-1", source="10.0.0.9")
            intent = await recorder.intent(record)
            await recorder.outcome(intent, Outcome())
            refused = Record(actor="users/cli", via="gateway", action=UPDATE)
            await recorder.event(refused, Outcome(code=7, reason="PERMISSION_DENIED"), 12)
            deleted = {"count": "120", "policy": "retention/default"}
            await recorder.event(
                Record(actor="services/timeseries", via="timeseries", action="retention.deletion", details=deleted)
            )
            return intent

    return asyncio.run(record())


@pytest.fixture
def run(plain, mesh: Mesh, recorded: int, capsys: pytest.CaptureFixture[str]):
    def command(*arguments: str) -> Result:
        code = 0
        try:
            main(["--gateway", mesh.gateway, "audit", *arguments])
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0
        printed = capsys.readouterr()
        return Result(code, printed.out, printed.err)

    return command


def covered(mesh: Mesh, number: int) -> None:
    """Return when a checkpoint covers an entry."""

    async def wait() -> None:
        async with Client(mesh.gateway) as client:
            while (found := await client.audit.status()).checkpoint is None or found.checkpoint.size < number:
                await asyncio.sleep(0.1)

    asyncio.run(asyncio.wait_for(wait(), 20))


def test_how_the_log_is_is_shown_with_what_an_operator_should_know(run):
    found = run()
    assert (found.code, "entries" in found.out) == (0, True)
    assert re.search(r"root +[0-9a-f]{20}", found.out)
    assert int(json.loads(run("--json").out)["size"]) >= 4


def test_entries_are_listed_and_filtered(run, monkeypatch: pytest.MonkeyPatch):
    assert max(map(len, run("list").out.splitlines())) <= 80
    monkeypatch.setenv("COLUMNS", "100")
    found = run("list", "--filter", 'actor = "users/cli"')
    assert re.search(r"users/cli +UpdateServer +servers/web-1 +intent", found.out)
    assert re.search(r"PERMISSION_DENIED\s+×12", found.out)
    page = json.loads(run("list", "--filter", "code = PERMISSION_DENIED", "--limit", "1", "--json").out)
    assert page["entries"][0]["occurrence_count"] == "12"
    assert "no entries" in run("list", "--filter", "actor = nobody").out
    assert run("list", "--filter", "nope = 1").code == 1
    assert "10.0.0.9" in run("list", "--personal", "--filter", 'actor = "users/cli" AND kind = INTENT').out


def test_one_entry_is_shown_with_its_proof(run, recorded: int):
    found = run("show", str(recorded))
    assert re.search(r"what +openmanager.api.metadata.v1.ServerService/UpdateServer", found.out)
    assert "proven by the checkpoint" in found.out or "no checkpoint covers it yet" in found.out
    assert run("show", "99999999").err == "openmanager: there is no such entry\n"


def test_an_exported_log_is_verified_without_a_server_and_goes_on(run, tmp_path: Path):
    log, lines = str(tmp_path / "audit.log"), str(tmp_path / "checkpoints.jsonl")
    assert run("checkpoints", "-o", lines).code == 0
    assert run("export", log).code == 0
    assert "exists" in run("export", log).err
    with open(log, "ab") as file:  # noqa: PTH123
        file.write(b"\0\0")  # as an interruption leaves it
    assert json.loads(run("export", log, "--append", "--json").out)["entry_count"] >= 0
    found = run("verify", log, "--checkpoints", lines)
    assert found.code == (0 if Path(lines).read_text() else 1)
    assert "signatures were not checked" in found.out or "nobody vouches" in found.out
    damaged = bytearray(Path(log).read_bytes())
    damaged[120] ^= 1
    Path(log).write_bytes(bytes(damaged))
    found = run("verify", log, "--checkpoints", lines, "--json")
    assert (found.code, json.loads(found.out)["sound"]) == (1, False)


def test_a_file_that_is_no_log_is_not_gone_on_with(run, tmp_path: Path):
    file = tmp_path / "notes.txt"
    file.write_text("notes")
    assert "no exported audit log" in run("export", str(file), "--append").err
    assert file.read_text() == "notes"
    (tmp_path / "key.pem").write_text("x")
    found = run("verify", str(file), "--checkpoints", str(file), "--key", str(tmp_path / "key.pem"))
    assert (found.code, "not an Ed25519 public key" in found.err) == (2, True)


def test_a_subject_is_erased_after_a_question(run, mesh: Mesh, monkeypatch: pytest.MonkeyPatch):
    async def record() -> None:
        async with Peer("metadata", mesh.address("metadata")) as peer:
            await PeerRecorder(peer).event(Record(actor="users/gone", via="x", action="x", source="10.0.0.7"))

    asyncio.run(record())
    monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))
    assert run("erase", "users/gone").code == 130
    assert "10.0.0.7" in run("list", "--personal", "--filter", "actor = users/gone").out
    assert "never be read again" in run("erase", "users/gone", "--yes").out
    assert "erased" in run("list", "--personal", "--filter", "actor = users/gone").out
    assert "no personal data" in run("erase", "users/gone", "--yes").out


class _Page(HTMLParser):
    """Notes what a page opens and does not close, and what it would load."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loaded: list[str] = []

    def handle_starttag(self, tag, attrs) -> None:
        if tag not in {"meta", "br"}:
            self.open.append(tag)
        self.loaded += [value for name, value in attrs if name == "src" or (name == "href" and value[0] != "#")]

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag


def test_a_report_says_what_an_auditor_asks(run, tmp_path: Path, recorded: int, mesh: Mesh):
    covered(mesh, 1)
    html, log = tmp_path / "report.html", json.loads(run("report", "--from", "1h", "--format", "json").out)
    assert log["changes_by_actor"]["users/cli"] == {"done": 1}
    assert {"admin (invited)"} <= {each["name"] for each in log["access"]}
    assert log["verification"]["sound"] is True
    (refused,) = [each for each in log["refused_calls"] if each["actor"] == "users/cli"]
    assert (refused["code"], refused["count"]) == ("PERMISSION_DENIED", 12)
    assert any(each["details"].get("count") == "120" for each in log["deletions"])
    assert "the log verifies" in run("report", "--from", "1h", "-o", str(html)).err
    page = _Page()
    page.feed(html.read_text())
    assert (page.open, page.loaded) == ([], [])
    text = html.read_text()
    assert "The log is as it was written." in text
    assert "retention/default" in text


def test_a_report_of_nothing_is_a_report(run):
    log = json.loads(run("report", "--from", "2020-01-01", "--to", "2020-01-02", "--format", "json").out)
    assert (log["entry_count"], log["changes"]) == (0, [])
    assert run("report", "--from", "2020-01-02", "--to", "2020-01-01").code == 2

"""`openmanager audit` on a whole mesh."""

from __future__ import annotations

import asyncio
import io
import json
import re
from dataclasses import replace
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path

import pytest
from conftest import Mesh

from cli.conftest import Result
from openmanager.audit import PRUNED, Kind, Outcome, Record
from openmanager.audit_file import Problem, Verdict
from openmanager.cli.audit_page import page_of
from openmanager.cli.audit_report import Report
from openmanager.cli.main import main
from openmanager.client import AuditEntry, AuditHold, Client
from openmanager.client.people import Grant
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
    """Notes what a page opens and does not close, what it would load, and of each table its caption, heads and rows."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loaded: list[str] = []
        self.ids: set[str] = set()
        self.targets: set[str] = set()
        self.titles: list[str] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.unscoped: list[str] = []
        self._text = ""
        self._rows: list[list[str]] = []
        self._caption = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs) -> None:
        found = dict(attrs)
        if tag not in {"meta", "br", "wbr"}:
            self.open.append(tag)
        self.loaded += [value for name, value in attrs if name == "src" or (name == "href" and value[0] != "#")]
        self.targets |= {value[1:] for name, value in attrs if name == "href"}
        self.ids |= {found["id"]} if "id" in found else set()
        if tag == "table":
            self._rows, self._caption = [], ""
        elif tag == "tr":
            self._rows.append([])
        if tag == "th" and found.get("scope") not in {"col", "row"}:
            self.unscoped.append(str(attrs))
        if tag in {"td", "th", "caption", "h2"}:
            self._text = ""

    def handle_data(self, data: str) -> None:
        self._text += data

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag
        if tag in {"td", "th"}:
            self._rows[-1].append(self._text)
        elif tag == "caption":
            self._caption = self._text
        elif tag == "h2":
            self.titles.append(self._text.partition(". ")[2])
        elif tag == "table":
            self.tables[self._caption] = self._rows


def test_a_report_says_what_an_auditor_asks(run, tmp_path: Path, recorded: int, mesh: Mesh):
    covered(mesh, 1)
    html, log = tmp_path / "report.html", json.loads(run("report", "--from", "1h", "--format", "json").out)
    assert log["changes_by_actor"]["users/cli"] == {"done": 1}
    assert ("admin", "invited", "admin", "all servers", "never") in {
        (each["name"], each["state"], each["role"], each["scope"], each["last_seen"]) for each in log["access"]
    }
    assert (log["author"], log["verification"]["sound"]) == ("local", True)
    (refused,) = [each for each in log["refused_calls"] if each["actor"] == "users/cli"]
    assert (refused["code"], refused["count"]) == ("PERMISSION_DENIED", 12)
    assert any(each["details"].get("count") == "120" for each in log["deletions"])
    assert log["summary"]["refused_calls"] >= 12
    assert "the log verifies" in run("report", "--from", "1h", "-o", str(html)).err
    page = _Page(html.read_text())
    assert (page.open, page.loaded, page.unscoped) == ([], [], [])
    assert page.targets <= page.ids
    assert page.titles[:6] == [
        "Verification", "Summary", "Access review", "Changes", "Refused calls", "Retention and holds",
    ]  # fmt: skip
    text = html.read_text()
    assert "The log fits its checkpoints. Their signatures were not checked: no key was given." in text
    assert "retention/default" in text
    (row,) = [each for each in page.tables["One by one"] if each[2] == "users/cli"]
    assert row[3:] == ["ServerService/UpdateServer", "servers/web-1", "done"]


async def test_a_report_names_keys_with_their_end_and_last_use_and_whoever_is_in_it(run, tmp_path: Path, mesh: Mesh):
    await asyncio.to_thread(covered, mesh, 1)
    async with Client(mesh.gateway) as client:
        user, _ = await client.users.create("grace", [Grant("viewer", "role = web")])
        key, _ = await client.keys.create("nightly <script>", [Grant("viewer", "")])
        async with Peer("metadata", mesh.address("metadata")) as peer:
            refused = Record(actor=f"keys/{key.id}", via="gateway", action=UPDATE)
            await PeerRecorder(peer).event(refused, Outcome(code=16, reason="CREDENTIALS_INVALID"), 3)
        hold = AuditHold(id="case-17", filter="actor = users/3", reason="litigation")
        held = await client.audit.update_policy(replace(await client.audit.policy(), holds=(hold,)))
        html = tmp_path / "report.html"
        found = await asyncio.to_thread(run, "report", "--from", "1h", "-o", str(html))
        await client.audit.update_policy(replace(held, holds=()))
    assert found.code == 0
    page = _Page(html.read_text())
    people, keys = page.tables["People, a row for each role"], page.tables["Keys of programs, a row for each role"]
    assert [f"graceusers/{user.id}", "invited", "viewer", "role = web"] in [row[:4] for row in people]
    assert keys[0] == ["Key", "State", "Role", "Scope", "Made by", "Ends", "Last seen"]
    (row,) = [each for each in keys if each[0] == f"nightly <script>keys/{key.id}"]
    assert row[1:5] == ["active", "viewer", "all servers", "local administrator"]
    assert key.end_time is not None
    assert row[5] == key.end_time.strftime("%Y-%m-%d %H:%M:%SZ")
    refusals = page.tables["Who was not let in, or may not do what they asked for"]
    (row,) = [each for each in refusals if each[0] == f"nightly <script>keys/{key.id}"]
    assert row[1:4] == ["ServerService/UpdateServer", "UNAUTHENTICATED", "3"]
    assert ["case-17", "actor = users/3", "the beginning", "no end", "litigation"] in page.tables[
        "What is kept for longer"
    ]


def test_a_report_of_a_log_that_was_changed_says_so_first():
    pruned = AuditEntry(
        number=9,
        create_time=datetime(2026, 7, 1, tzinfo=UTC),
        kind=Kind.EVENT,
        actor="services/metadata",
        via="metadata",
        action=PRUNED,
        object="entries/1-2048",
        details={"count": "2048", "first_number": "1", "last_number": "2048", "retention_days": "30",
                 "policy": "audit/default", "policy_version": "v3", "root": "ab" * 32,
                 "oldest_unix_nanos": "1780272000000000000", "newest_unix_nanos": "1780358400000000000"},
    )  # fmt: skip
    verdict = Verdict(problems=[Problem("entry 7", "is not what the checkpoint vouches for")], checkpoint_count=3)
    report = Report(start="a", end="b", made="c", author="users/1", verdict=verdict, checkpoints_from="d")
    report.take(pruned)
    page = _Page(page_of(report))
    assert "The log is NOT as it was written." in page_of(report)
    assert "entry 7: is not what the checkpoint vouches for" in page_of(report)
    (_, row) = page.tables["What the log says of each deletion, before it was done"]
    assert row[2].startswith("2,048 entries of the log, numbers 1–2,048of 2026-06-01 00:00:00Z to 2026-06-02 00:00:00Z")
    assert row[3] == f"root of what was deleted {'ab' * 32}"
    assert report.summary["deleted_entries"] == 2048


def test_a_report_of_a_log_without_checkpoints_says_that_nothing_vouches_for_it():
    verdict = Verdict(problems=[Problem("checkpoints", "there is none: nobody vouches for this log")])
    page = page_of(Report(start="a", end="b", made="c", author="users/1", verdict=verdict, checkpoints_from="d"))
    assert "Nothing vouches for this log: there is no checkpoint to hold it against." in page
    assert "as it was written" not in page


def test_a_report_of_nothing_is_a_report(run):
    log = json.loads(run("report", "--from", "2020-01-01", "--to", "2020-01-02", "--format", "json").out)
    assert (log["entry_count"], log["changes"]) == (0, [])
    assert run("report", "--from", "2020-01-02", "--to", "2020-01-01").code == 2

"""The audit log: what is recorded is durable, numbered, provable, and says when something is wrong with it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest
import pytest_asyncio
from auditing import DAY, Kept, audit_log, emptied, event, own_database, pem
from conftest import Mesh
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from openmanager_metadata.audit import reader
from openmanager_metadata.audit.entry import decode, encode
from openmanager_metadata.policy import Policies
from test_database import session

from openmanager.audit import Kind, Outcome, Record
from openmanager.errors import (
    InvalidArgumentError,
    NotFoundError,
    OutOfRangeError,
    UnavailableError,
)
from openmanager.merkle import includes, leaf_hash


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def one_url(mesh: Mesh) -> AsyncIterator[str]:
    """A database for all tests here."""
    async with own_database(mesh) as made:
        yield made


@pytest.fixture
async def url(one_url: str) -> str:
    """The same with no log in it."""
    await emptied(one_url)
    return one_url


@pytest.fixture
async def kept(url: str, tmp_path: Path) -> AsyncIterator[Kept]:
    async with audit_log(url, tmp_path) as made:
        yield made


async def listed(kept: Kept, text: str = "", *, full: bool = False):
    return [shown async for shown in _all(kept, text, full=full)]


async def _all(kept: Kept, text: str, *, full: bool):
    token = ""
    while True:
        found, token = await kept.reader.list(text, "number", 0, token, full=full)
        for shown in found:
            yield shown
        if not token:
            return


# ── recording ──────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_an_intent_and_its_outcome_are_two_entries_that_say_the_same_of_who_and_what(kept: Kept):
    asked = event(request_hash=b"h" * 32, request_id="r-1", trace_id="ab" * 16, policy_version="v3")
    intent = await kept.audit.intent(asked)
    outcome = await kept.audit.outcome(intent, Outcome(code=6, reason="ALREADY_EXISTS", after_hash=b"a" * 32))
    first, second = (shown.entry for shown in await listed(kept))
    assert (first.number, first.kind, first.request_hash) == (intent, Kind.INTENT, b"h" * 32)
    assert (second.number, second.kind, second.intent) == (outcome, Kind.OUTCOME, intent)
    assert (second.code, second.reason, second.after_hash) == (6, "ALREADY_EXISTS", b"a" * 32)
    for name in ("actor", "via", "action", "object", "request_id", "trace_id", "policy_version"):
        assert getattr(second, name) == getattr(asked, name)


async def test_an_outcome_is_told_once_however_often_it_is_told(kept: Kept):
    intent = await kept.audit.intent(event())
    told = await asyncio.gather(*(kept.audit.outcome(intent, Outcome(code=code)) for code in (0, 5, 13)))
    again = await kept.audit.outcome(intent, Outcome(code=2))
    assert {*told, again} == {2}
    assert kept.audit.head.size == 2


async def test_an_outcome_of_no_intent_is_refused_and_those_beside_it_are_taken(kept: Kept):
    number = await kept.audit.event(event())
    good = await kept.audit.intent(event())
    found = await asyncio.gather(
        kept.audit.outcome(number, Outcome()),
        kept.audit.outcome(10**15, Outcome()),
        kept.audit.outcome(good, Outcome()),
        return_exceptions=True,
    )
    assert [type(each) for each in found] == [NotFoundError, NotFoundError, int]


async def test_entries_of_many_callers_are_numbered_without_a_gap(kept: Kept):
    numbers = await asyncio.gather(*(kept.audit.event(event(f"users/{k}")) for k in range(700)))
    assert sorted(numbers) == list(range(1, 701))
    assert (await kept.reader.standing()).head.size == 700


async def test_two_services_append_to_one_log(kept: Kept, url: str, tmp_path: Path):
    async with audit_log(url, tmp_path, kept.clock) as other:
        for _ in range(3):
            await asyncio.gather(kept.fill(40), other.fill(40))
        await kept.audit.event(event())
        await kept.checkpoints().make()
    verdict = await kept.verdict()
    assert (verdict.problems, verdict.covered_number) == ([], 241)


async def test_a_start_finds_the_tree_as_it_was(kept: Kept, url: str, tmp_path: Path):
    await kept.fill(2500)
    async with audit_log(url, tmp_path, kept.clock) as again:
        await again.audit.event(event())
        await again.checkpoints().make()
        assert (await again.verdict()).problems == []


async def test_a_call_that_was_given_up_before_it_was_written_leaves_nothing(kept: Kept):
    given_up = asyncio.ensure_future(kept.audit.event(event()))
    await asyncio.sleep(0)
    given_up.cancel()
    assert await kept.audit.event(event()) == 1


@pytest.mark.parametrize(
    ("record", "field"),
    [
        (Record(actor="", via="g", action="a"), "record.actor"),
        (Record(actor="a b", via="g", action="a"), "record.actor"),
        (Record(actor="a", via="g", action="Ж"), "record.action"),
        (Record(actor="a", via="g", action="audit.key_rotated"), "record.action"),
        (Record(actor="a", via="g", action="a", object="x" * 601), "record.object"),
        (Record(actor="a", via="g", action="a", request_hash=b"1"), "record.request_hash"),
        (Record(actor="a", via="g", action="a", details={"A": "b"}), "record.details"),
        (Record(actor="a", via="g", action="a", details={"a": "Grace Ж"}), "record.details"),
        (Record(actor="a", via="g", action="a", details={f"a{k}": "" for k in range(33)}), "record.details"),
        (Record(actor="a", via="g", action="a", personal={"a": "b\0"}), "record.personal"),
        (Record(actor="a", via="g", action="a", source="1.2.3.4\n"), "record.source"),
    ],
)
async def test_what_cannot_stand_in_an_entry_names_its_field(kept: Kept, record: Record, field: str):
    with pytest.raises(InvalidArgumentError) as failure:
        await kept.audit.event(record)
    assert failure.value.field == field


async def test_nothing_is_recorded_while_the_database_takes_no_writes(kept: Kept, url: str):
    await kept.audit.event(event())
    async with session(url) as people:
        await people.execute("ALTER TABLE audit_entries RENAME TO elsewhere")
        try:
            with pytest.raises(UnavailableError):
                await kept.audit.intent(event())
        finally:
            await people.execute("ALTER TABLE elsewhere RENAME TO audit_entries")


async def test_a_user_who_may_only_insert_and_select_is_enough(url: str, kept: Kept):
    """The log needs no right to change or delete what it has written."""
    async with session(url) as people:
        base = await people.fetchval("SELECT current_database()")
        role = f"role_{base}"
        await people.execute(f"CREATE ROLE {role}")
        try:
            await people.execute(
                f"GRANT SELECT, INSERT ON audit_entries, audit_tiles, audit_checkpoints, audit_subject_keys TO {role};"
                f"GRANT SELECT ON audit_log, policies TO {role}; GRANT DELETE ON audit_subject_keys TO {role};"
                f"GRANT SELECT, INSERT, DELETE ON audit_holds TO {role};"
                f"GRANT EXECUTE ON FUNCTION audit_prune TO {role};"
                f"ALTER DATABASE {base} SET role = {role}"
            )
            await retire(kept, 1)
            await kept.database._pool.expire_connections()
            assert (await kept.database.fetch("SELECT current_user AS me"))[0]["me"] == role
            kept.clock.nanos -= 2 * DAY
            await kept.fill(1500, source="10.0.0.1")
            await kept.checkpoints().make()
            await kept.audit.erase("users/1")
            for forbidden in (
                "UPDATE audit_entries SET code = 1",
                "DELETE FROM audit_entries",
                "TRUNCATE audit_entries",
                "UPDATE audit_checkpoints SET size = 1",
                "DELETE FROM audit_checkpoints",
            ):
                with pytest.raises(UnavailableError):
                    await kept.database.fetch(forbidden)
            kept.clock.nanos += 2 * DAY
            assert await kept.pruning.prune() == 1024
            assert (await kept.verdict()).problems == []
        finally:
            await people.execute(f"ALTER DATABASE {base} RESET role; DROP OWNED BY {role}; DROP ROLE {role}")


# ── reading ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_entries_are_filtered_by_who_what_how_and_when(kept: Kept):
    await kept.fill(3, actor="users/a")
    kept.clock.nanos += DAY
    await kept.audit.event(event("users/b", request_id="r-9"), Outcome(code=7, reason="PERMISSION_DENIED"))
    await kept.audit.intent(event("users/b"))

    async def numbers(text: str) -> list[int]:
        return [shown.entry.number for shown in await listed(kept, text)]

    assert await numbers('actor = "users/a"') == [1, 2, 3]
    assert await numbers("code = PERMISSION_DENIED") == await numbers("code = 7") == [4]
    assert await numbers("kind = INTENT OR object : servers/2") == [3, 5]
    assert await numbers("NOT kind = EVENT AND number >= 2") == [5]
    assert await numbers("request_id = r-9") == [4]
    moment = json.dumps(_rfc(kept.clock.nanos - 1000))
    assert await numbers(f"create_time > {moment}") == [4, 5]
    assert await numbers('action = "\'; DROP TABLE audit_entries;--"') == []


@pytest.mark.parametrize("text", ["kind = NOTHING", "code = 17", "code = -1", "number > x", "nope = 1", "kind : I"])
async def test_a_filter_that_cannot_be_names_the_field(kept: Kept, text: str):
    with pytest.raises(InvalidArgumentError) as failure:
        await kept.reader.list(text, "", 0, "")
    assert failure.value.field == "filter"


async def test_pages_go_either_way_and_their_tokens_are_of_one_query(kept: Kept):
    await kept.fill(7)
    for order, expected in (("", [7, 6, 5, 4, 3, 2, 1]), ("number", [1, 2, 3, 4, 5, 6, 7])):
        found, token, numbers = [], "", []
        while True:
            found, token = await kept.reader.list("", order, 3, token)
            numbers += [shown.entry.number for shown in found]
            if not token:
                break
            with pytest.raises(InvalidArgumentError):
                await kept.reader.list("kind = EVENT", order, 3, token)
        assert numbers == expected


@pytest.mark.parametrize("order", ["number", "number desc"])
async def test_a_page_of_a_long_log_is_looked_for_in_parts(kept: Kept, order: str, monkeypatch):
    monkeypatch.setattr(reader, "WINDOW", 7)
    monkeypatch.setattr(reader, "QUICK_SECONDS", 0)
    await kept.fill(100)
    await kept.audit.intent(event("users/rare"))
    await kept.fill(30)
    for seconds in (10, 0.0001):  # in one call, and in many
        monkeypatch.setattr(reader, "SEARCH_SECONDS", seconds)
        found, token, calls = [], "", 0
        while not calls or token:
            some, token = await kept.reader.list("kind = INTENT OR number = 2 OR number = 131", order, 2, token)
            found += [shown.entry.number for shown in some]
            calls += 1
        assert sorted(found) == [2, 101, 131]
        assert found == sorted(found, reverse=order.endswith("desc"))
        assert calls > 10 if seconds < 1 else calls == 2


async def test_every_entry_is_proven_by_the_newest_checkpoint(kept: Kept):
    await kept.fill(2100)
    assert (await kept.reader.get(1)).checkpoint is None
    checkpoint = await kept.checkpoints().make()
    await kept.fill(3)
    for number in (1, 2, 1000, 1024, 1025, 2048, 2049, 2100):
        found = await kept.reader.get(number)
        assert found.checkpoint == await _stored(kept, checkpoint)
        proof = {"index": number - 1, "size": 2100, "proof": found.hashes, "root": checkpoint.root}
        assert includes(leaf=leaf_hash(found.shown.canonical), **proof)
        assert not includes(leaf=leaf_hash(found.shown.canonical + b"x"), **proof)
    assert (await kept.reader.get(2102)).checkpoint is None
    with pytest.raises(NotFoundError):
        await kept.reader.get(3000)


async def _stored(kept: Kept, made):
    (found,), _ = await kept.reader.checkpoints("", 0, "")
    assert found.size == made.size
    return found


async def test_an_intent_without_an_outcome_is_an_orphan_after_a_minute_until_it_is_told(kept: Kept):
    lost, told = await kept.audit.intent(event()), await kept.audit.intent(event())
    await kept.audit.outcome(told, Outcome())
    assert (await kept.reader.standing()).orphans == []
    kept.clock.nanos += 61 * 10**9
    assert (await kept.reader.standing()).orphans == [lost]
    assert [shown.orphaned for shown in await listed(kept)] == [True, False, False]
    await kept.audit.outcome(lost, Outcome())
    assert (await kept.reader.standing()).orphans == []


async def test_an_export_goes_on_where_it_was(kept: Kept):
    await kept.fill(1500)
    await kept.export()
    await kept.fill(700)
    await kept.checkpoints().make()
    await kept.export(1501)
    verdict = await kept.verdict()
    assert (verdict.problems, verdict.entry_count) == ([], 2200)
    with pytest.raises(OutOfRangeError):
        [_ async for _ in kept.reader.export(2300)]


# ── personal data ──────────────────────────────────────────────────────────────────────────────────────────────────


async def test_personal_data_is_read_until_its_subject_is_erased_and_the_chain_stays_whole(kept: Kept, url: str):
    await kept.audit.event(event("users/1", source="10.1.2.3", personal={"name": "Grace Жuk"}))
    await kept.audit.event(event("users/2", source="10.9.9.9"))
    await kept.checkpoints().make()
    first, second = await listed(kept, full=True)
    assert first.personal == {"name": "Grace Жuk", "source": "10.1.2.3"}
    assert (await listed(kept))[0].personal == {}
    assert await kept.audit.erase("users/1") == (1, 3)
    await kept.audit.event(event("users/1", source="10.1.2.4"))
    first, second, erased, later = await listed(kept, full=True)
    assert (first.personal, second.personal, later.personal) == (None, {"source": "10.9.9.9"}, {"source": "10.1.2.4"})
    assert (erased.entry.action, erased.entry.object) == ("audit.subject_erased", "users/1")
    assert erased.entry.details == {"keys": "1"}
    await kept.checkpoints().make()
    assert (await kept.verdict()).problems == []


async def test_no_personal_data_is_stored_in_clear(kept: Kept, url: str):
    await kept.audit.event(event(source="10.1.2.3", personal={"name": "Gracela"}))
    async with session(url) as people:
        rows = await people.fetch("SELECT e::text AS row, entry FROM audit_entries e")
    assert not any("Gracela" in row["row"] or b"Gracela" in row["entry"] or b"10.1.2.3" in row["entry"] for row in rows)


def test_an_entry_is_what_its_bytes_say():
    from openmanager_metadata.audit.entry import Entry

    entry = Entry(
        number=7, time_unix_nanos=1, kind=Kind.EVENT, actor="a", via="b", action="c", details={"z": "1", "a": "2"}
    )
    assert decode(encode(entry)) == entry
    assert encode(entry).endswith(b"\0\0\0\2\0\0\0\1a\0\0\0\0012\0\0\0\1z\0\0\0\0011")
    for cut in range(len(encode(entry))):
        with pytest.raises(ValueError):  # noqa: PT011
            decode(encode(entry)[:cut])


# ── checkpoints and keys ───────────────────────────────────────────────────────────────────────────────────────────


async def test_checkpoints_are_made_only_of_what_is_new_and_copied_to_the_second_place(kept: Kept, tmp_path: Path):
    key, copy = Ed25519PrivateKey.generate(), tmp_path / "copy.jsonl"
    checkpoints = kept.checkpoints(pem(key), str(copy))
    assert await checkpoints.make() is None
    for _ in range(3):
        await kept.fill(5)
        await checkpoints.make()
        assert await checkpoints.make() is None
        await checkpoints.copy()
    assert checkpoints.warnings == ()
    again = kept.checkpoints(pem(key), str(copy))
    await again.copy()
    assert copy.read_text() == (await kept.lines()).read_text()
    assert again.copied_size == 15
    assert (await kept.verdict(key)).signed_count == 3


async def test_a_log_without_a_key_says_so(kept: Kept):
    await kept.fill(1)
    checkpoints = kept.checkpoints()
    assert (await checkpoints.make()).key_id == b""
    assert any("not signed" in each for each in checkpoints.warnings)
    assert any("second place" in each for each in checkpoints.warnings)
    verdict = await kept.verdict(Ed25519PrivateKey.generate())
    assert [each.what for each in verdict.problems] == ["is not signed, and none after it is"]


async def test_a_new_key_takes_over_when_the_old_one_has_signed_that_it_does(kept: Kept):
    old, new = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    await kept.fill(3)
    await kept.checkpoints(pem(old)).make()
    both = kept.checkpoints(pem(new, old))
    handed_over = await both.make()
    await kept.fill(3)
    after = await both.make()
    assert handed_over.key_id != after.key_id
    await kept.fill(1)
    await kept.checkpoints(pem(new)).make()
    assert [shown.entry.action for shown in await listed(kept, "action : audit.")] == ["audit.key_rotated"]
    assert (await kept.verdict(old)).problems == []
    assert (await kept.verdict(new)).problems != []


async def test_a_key_that_was_exchanged_signs_no_more(kept: Kept):
    old, new = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    await kept.fill(3)
    await kept.checkpoints(pem(old)).make()
    both = kept.checkpoints(pem(new, old))
    await both.make()
    await kept.fill(1)
    await both.make()
    await kept.fill(1)
    await kept.checkpoints(pem(old)).make()  # whoever holds it
    assert "exchanged before" in (await kept.verdict(old)).problems[0].what


async def test_a_key_that_nobody_hands_over_to_is_found(kept: Kept):
    old, other = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    await kept.fill(3)
    await kept.checkpoints(pem(old)).make()
    await kept.checkpoints(pem(other)).make()
    assert "nobody vouches" in (await kept.verdict(old)).problems[0].what
    assert (await kept.verdict(old, other)).problems == []


async def test_a_log_that_came_back_old_says_so_and_does_not_verify(kept: Kept, url: str, tmp_path: Path):
    key, copy = Ed25519PrivateKey.generate(), tmp_path / "copy.jsonl"
    checkpoints = kept.checkpoints(pem(key), str(copy))
    await kept.fill(10)
    await checkpoints.make()
    await checkpoints.copy()
    async with session(url) as people:
        await people.execute("DELETE FROM audit_entries WHERE number > 6; DELETE FROM audit_checkpoints")
    await kept.audit.event(event())
    assert [shown.entry.action for shown in await listed(kept, "number > 6")] == [
        "audit.log_restored",
        "retention.deletion",
    ]
    assert any("came back with 6 of 10" in each for each in checkpoints.warnings)
    await checkpoints.make()
    await checkpoints.copy()
    assert any("second place vouches for" in each for each in checkpoints.warnings)
    from openmanager.audit_file import verify

    found = verify(await kept.export(), copy, [key.public_key()])
    assert not found.is_sound


async def test_a_clock_that_was_set_back_is_told_and_verifies(kept: Kept):
    await kept.fill(2)
    kept.clock.nanos -= 10**9
    await kept.fill(1)
    kept.clock.nanos -= DAY
    await kept.fill(1)
    await kept.checkpoints().make()
    actions = [shown.entry.action for shown in await listed(kept)]
    assert actions == ["retention.deletion"] * 3 + ["audit.clock_set_back", "retention.deletion"]
    verdict = await kept.verdict()
    assert verdict.problems == []
    assert "the clock of the server was set back" in verdict.notices[0]


# ── retention ──────────────────────────────────────────────────────────────────────────────────────────────────────


async def retire(kept: Kept, days: int, *holds: dict) -> None:
    await Policies(kept.database).update("audit", "default", {"retention_days": days, "holds": list(holds)}, "")


async def test_old_entries_are_deleted_with_evidence_and_what_is_left_verifies(kept: Kept):
    key = Ed25519PrivateKey.generate()
    checkpoints = kept.checkpoints(pem(key))
    kept.clock.nanos -= 10 * DAY
    await kept.fill(2000)
    await checkpoints.make()
    await kept.fill(1500)
    kept.clock.nanos += 10 * DAY
    await kept.fill(10)
    await checkpoints.make()
    assert await kept.pruning.prune() == 0  # no policy, no deletion
    await retire(kept, 5)
    assert await kept.pruning.prune() == 3072
    assert await kept.pruning.prune() == 0
    evidence = (await listed(kept, "action = audit.pruned"))[0].entry
    assert (evidence.object, evidence.details["count"], evidence.details["retention_days"]) == (
        "entries/1-3072",
        "3072",
        "5",
    )
    await checkpoints.make()
    verdict = await kept.verdict(key)
    assert (verdict.problems, verdict.first_number, verdict.covered_number) == ([], 3073, 3511)
    with pytest.raises(OutOfRangeError):
        await kept.reader.get(3072)
    found = await kept.reader.get(3073)
    assert includes(
        leaf=leaf_hash(found.shown.canonical), index=3072, size=3511, proof=found.hashes, root=found.checkpoint.root
    )


@pytest.mark.parametrize(
    ("hold", "deleted"),
    [
        ({"id": "case-1", "filter": 'object = "servers/1500"', "reason": "a case"}, 1024),
        ({"id": "case-1", "filter": 'NOT actor = "users/1"'}, 2048),
        ({"id": "all", "range": {"start_time": "2000-01-01T00:00:00Z"}}, 0),
        ({"id": "past", "range": {"end_time": "2000-01-01T00:00:00Z"}}, 2048),
        ({"id": "kinds", "filter": "kind = INTENT OR code = NOT_FOUND OR number < 5"}, 0),
    ],
)
async def test_what_a_hold_matches_is_kept(kept: Kept, hold: dict, deleted: int):
    kept.clock.nanos -= 10 * DAY
    await kept.fill(2100)
    kept.clock.nanos += 10 * DAY
    await kept.fill(1)
    await retire(kept, 5, hold)
    assert await kept.pruning.prune() == deleted


async def test_the_database_itself_deletes_nothing_that_is_young_held_or_not_told(kept: Kept, url: str):
    kept.clock.nanos -= 10 * DAY
    await kept.fill(2048)
    kept.clock.nanos += 10 * DAY
    async with session(url) as people:

        async def refusal(through: int) -> str:
            with pytest.raises(asyncpg.RaiseError) as failure:
                await people.fetchval("SELECT audit_prune($1)", through)
            return str(failure.value)

        assert "whole tiles" in await refusal(1000)
        assert "whole tiles" in await refusal(4096)
        assert "does not say" in await refusal(1024)
        await kept.audit.own_event("audit.pruned", "entries/1-1024", {})
        assert "retention" in await refusal(1024)
        await retire(kept, 20)
        assert "retention" in await refusal(1024)
        await retire(kept, 5)
        hold = "INSERT INTO audit_holds VALUES ('h', $1::jsonb, 0, 9223372036854775807, '')"
        for condition in (
            None,
            '{"column": "actor", "operator": "=", "value": "users/1"}',
            '{"and": [{"column": "number", "operator": "<=", "value": "9"}, {"not": {"column": "kind", "operator": "=", "value": "1"}}]}',
            '{"or": [{"column": "code", "operator": "=", "value": "7"}, {"column": "object", "operator": ":", "value": "rs/5"}]}',
            '{"column": "what nobody knows", "operator": "=", "value": ""}',
        ):
            await people.execute(hold, condition)
            assert "the hold h" in await refusal(1024)
            await people.execute("DELETE FROM audit_holds")
        await people.execute(hold, '{"column": "actor", "operator": "!=", "value": "users/1"}')
        assert await people.fetchval("SELECT audit_prune(1024)") == 1024


@pytest.mark.parametrize(
    ("document", "field"),
    [
        ({"retention_days": 0}, "policy.document.retention_days"),
        ({"retention_days": 1.5}, "policy.document.retention_days"),
        ({"retention_days": True}, "policy.document.retention_days"),
        ({"nope": 1}, "policy.document.nope"),
        ({"holds": [{"id": "a"}]}, "policy.document.holds"),
        ({"holds": [{"id": "A", "filter": "kind = EVENT"}]}, "policy.document.holds.id"),
        ({"holds": [{"id": "a", "filter": "nope = 1"}]}, "policy.document.holds.filter"),
        ({"holds": [{"id": "a", "range": {"start_time": "x"}}]}, "policy.document.holds.range.start_time"),
        ({"holds": [{"id": "a", "filter": "kind = EVENT"}] * 2}, "policy.document.holds"),
    ],
)
async def test_a_policy_that_cannot_be_applied_is_refused(kept: Kept, document: dict, field: str):
    with pytest.raises(InvalidArgumentError) as failure:
        await Policies(kept.database).update("audit", "default", document, "")
    assert failure.value.field == field


def _rfc(nanos: int) -> str:
    from openmanager.runtime.clock import to_datetime

    return to_datetime(nanos).isoformat()

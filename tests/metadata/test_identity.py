"""Users, keys and sessions on a real PostgreSQL."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import jwt
import pytest
from conftest import wait_until
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from openmanager_metadata import directory as directory_module
from openmanager_metadata import sessions as sessions_module
from openmanager_metadata.backends import AUDIT_LOCK
from openmanager_metadata.backends.postgresql import PostgresqlDatabase
from openmanager_metadata.config import MetadataConfig
from openmanager_metadata.directory import Directory
from openmanager_metadata.first_admin import FirstAdmin
from openmanager_metadata.keyring import Access, Keyring
from openmanager_metadata.keys import Keys
from openmanager_metadata.memory import Memory
from openmanager_metadata.password import Passwords
from openmanager_metadata.sessions import Sessions
from openmanager_metadata.users import LOCK_TIME, MAX_FAILURES, Changes, Users
from test_database import answers, session, url

from openmanager.access import Grant, Role
from openmanager.config import Secret
from openmanager.errors import (
    AbortedError,
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
    UnauthenticatedError,
)
from openmanager.runtime.attempts import MAX_A_MINUTE, Attempts

__all__ = ["url"]

PASSWORD = "correct horse battery"
ADMIN, VIEWER = (Grant(Role.ADMIN),), (Grant(Role.VIEWER, "role = web"),)
WEEK = timedelta(days=7)


class Clock:
    """A clock that is set, beginning now as the database does."""

    def __init__(self) -> None:
        import time

        self.ahead = 0.0
        self._now = time.time

    def now_nanos(self) -> int:
        return int((self._now() + self.ahead) * 1e9)

    def monotonic(self) -> float:
        return self._now() + self.ahead


@dataclass(frozen=True)
class People:
    """What the service does with people, on one database."""

    url: str
    database: PostgresqlDatabase
    memory: Memory
    directory: Directory
    users: Users
    keys: Keys
    sessions: Sessions
    clock: Clock

    async def user(self, name: str = "alice", grants: tuple[Grant, ...] = VIEWER) -> str:
        """Make a user with a password; return the id."""
        _, invitation = await self.users.create(name, grants, WEEK)
        return (await self.users.accept(invitation.text, PASSWORD, "")).id


@contextlib.asynccontextmanager
async def opened(url: str, key: str = "i" * 40) -> AsyncIterator[People]:
    clock = Clock()
    keyring = Keyring(Secret(key))
    directory = Directory(keyring, clock)
    memory = Memory(clock, 100, directory)
    database = PostgresqlDatabase(MetadataConfig(database_url=Secret(url)), memory)
    async with database.connecting():
        await wait_until(lambda: answers(database))
        await memory.copy(database)
        yield People(
            url=url,
            database=database,
            memory=memory,
            directory=directory,
            users=Users(database, directory, keyring, Passwords(), Attempts(clock)),
            keys=Keys(database, directory, keyring),
            sessions=Sessions(database, directory, keyring),
            clock=clock,
        )


@pytest.fixture
async def people(url: str) -> AsyncIterator[People]:
    async with opened(url) as made:
        await made.users.create("root", ADMIN, WEEK)
        yield made


# ── users ──────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_who_is_invited_chooses_a_password_and_is_known_by_the_token(people: People):
    user, invitation = await people.users.create("alice", VIEWER, WEEK)
    assert user.password_hash is None
    accepted = await people.users.accept(invitation.text, PASSWORD, "")
    tokens = await people.sessions.begin(accepted)
    found = people.directory.identity(tokens.access)
    assert (found.subject, found.grants) == (f"users/{user.id}", VIEWER)
    assert (await people.users.sign_in("alice", PASSWORD, "")).sign_in_time is not None


async def test_an_invitation_is_taken_once_and_ends(people: People):
    _, invitation = await people.users.create("alice", VIEWER, WEEK)
    await people.users.accept(invitation.text, PASSWORD, "")
    with pytest.raises(UnauthenticatedError):
        await people.users.accept(invitation.text, PASSWORD, "")
    user, invitation = await people.users.create("bob", VIEWER, timedelta(minutes=1))
    again = await people.users.invite(user.id, WEEK)
    with pytest.raises(UnauthenticatedError):
        await people.users.accept(invitation.text, PASSWORD, "")
    people.clock.ahead += WEEK.total_seconds() + 1
    with pytest.raises(UnauthenticatedError):
        await people.users.accept(again.text, PASSWORD, "")


@pytest.mark.parametrize("password", ["short", "a" * 20, "x" * 200, "alice-in-wonderland"])
async def test_a_password_that_is_too_easy_is_refused_and_the_invitation_stays(people: People, password: str):
    _, invitation = await people.users.create("alice", VIEWER, WEEK)
    with pytest.raises(InvalidArgumentError) as failure:
        await people.users.accept(invitation.text, password, "")
    assert failure.value.field == "password"
    await people.users.accept(invitation.text, PASSWORD, "")


async def test_a_wrong_name_and_a_wrong_password_are_told_alike(people: People):
    await people.user()
    told = set()
    for name, password in (("alice", "wrong"), ("nobody", PASSWORD), ("root", PASSWORD), ("x" * 300, "")):
        with pytest.raises(UnauthenticatedError) as failure:
            await people.users.sign_in(name, password, "")
        told.add((failure.value.message, failure.value.reason))
    assert told == {("the credentials are not valid", "CREDENTIALS_INVALID")}


async def test_too_many_wrong_passwords_lock_the_password_for_a_while_and_an_administrator_lets_in_again(
    people: People,
):
    user_id = await people.user()
    for _ in range(MAX_FAILURES):
        people.clock.ahead += 61  # slower than the limit of a minute
        with pytest.raises(UnauthenticatedError):
            await people.users.sign_in("alice", "wrong", "")
    with pytest.raises(UnauthenticatedError):
        await people.users.sign_in("alice", PASSWORD, "")
    await people.users.update(user_id, Changes(fields=["lock_end_time"]))
    people.clock.ahead += 61
    await people.users.sign_in("alice", PASSWORD, "")
    for _ in range(MAX_FAILURES):
        people.clock.ahead += 61
        with pytest.raises(UnauthenticatedError):
            await people.users.sign_in("alice", "wrong", "")
    people.clock.ahead += LOCK_TIME.total_seconds() + 61
    await people.users.sign_in("alice", PASSWORD, "")


async def test_guessing_is_limited_for_an_address_and_others_are_unaffected(people: People):
    await people.user()
    for at in range(MAX_A_MINUTE):
        with pytest.raises(UnauthenticatedError):
            await people.users.sign_in(f"guess-{at}", "wrong", "192.0.2.1")
    with pytest.raises(ResourceExhaustedError) as failure:
        await people.users.sign_in("alice", PASSWORD, "192.0.2.1")
    assert failure.value.reason == "TOO_MANY_ATTEMPTS"
    assert failure.value.retry_after is not None
    await people.users.sign_in("alice", PASSWORD, "192.0.2.2")
    people.clock.ahead += 61
    await people.users.sign_in("alice", PASSWORD, "192.0.2.1")


async def test_who_is_disabled_is_out_at_once_with_all_sessions(people: People):
    user_id = await people.user()
    tokens = await people.sessions.begin(await people.users.get("alice"))
    await people.users.update(user_id, Changes(fields=["disabled"], disabled=True))
    with pytest.raises(UnauthenticatedError):
        people.directory.identity(tokens.access)
    with pytest.raises(UnauthenticatedError):
        await people.sessions.refresh(tokens.refresh)
    with pytest.raises(UnauthenticatedError):
        await people.users.sign_in("alice", PASSWORD, "")


async def test_a_new_password_ends_every_session(people: People):
    user_id = await people.user()
    tokens = await people.sessions.begin(await people.users.get("alice"))
    await people.users.change_password(user_id, PASSWORD, "another good one", "")
    with pytest.raises(UnauthenticatedError):
        people.directory.identity(tokens.access)
    with pytest.raises(UnauthenticatedError):
        await people.users.sign_in("alice", PASSWORD, "")
    await people.users.sign_in("alice", "another good one", "")


async def test_somebody_who_may_manage_is_always_left(people: People):
    root = await people.users.get("root")
    other = await people.user("other", ADMIN)
    await people.users.update(root.id, Changes(fields=["grants"], grants=VIEWER))
    for change in (
        people.users.update(other, Changes(fields=["grants"], grants=(Grant(Role.ADMIN, "role = web"),))),
        people.users.update(other, Changes(fields=["disabled"], disabled=True)),
        people.users.delete(other, ""),
    ):
        with pytest.raises(FailedPreconditionError) as failure:
            await change
        assert failure.value.reason == "LAST_ADMIN"
    assert (await people.users.get("other")).grants == ADMIN


async def test_two_who_take_each_others_rights_away_at_once_leave_one(people: People):
    root = await people.users.get("root")
    other = await people.user("other", ADMIN)
    ended = await asyncio.gather(
        *(people.users.update(each, Changes(fields=["grants"])) for each in (root.id, other)), return_exceptions=True
    )
    assert [isinstance(each, FailedPreconditionError) for each in ended].count(True) == 1


async def test_a_deleted_user_leaves_nothing_personal(people: People):
    user_id = await people.user()
    await people.sessions.begin(await people.users.get("alice"))
    await people.users.delete(user_id, "")
    async with session(people.url) as other:
        dump = [str(row) for table in ("users", "sessions") for row in await other.fetch(f"SELECT * FROM {table}")]
    assert not any("alice" in row or user_id in row for row in dump)
    with pytest.raises(NotFoundError):
        await people.users.get(user_id)


async def test_names_are_unique_and_etags_hold(people: People):
    user_id = await people.user()
    with pytest.raises(AlreadyExistsError):
        await people.users.create("alice", (), WEEK)
    with pytest.raises(AlreadyExistsError):
        await people.users.update(user_id, Changes(fields=["name"], name="root"))
    old = await people.users.get("alice")
    await people.users.update(user_id, Changes(fields=["name"], name="alice.smith"))
    with pytest.raises(AbortedError):
        await people.users.update(user_id, Changes(fields=["grants"], etag=old.etag))
    assert (await people.users.get("alice.smith")).id == user_id


@pytest.mark.parametrize("name", ["", "Alice", "a b", "a" * 65, "-a", "a\0", "ä"])
async def test_names_that_cannot_be_are_refused(people: People, name: str):
    with pytest.raises(InvalidArgumentError) as failure:
        await people.users.create(name, (), WEEK)
    assert failure.value.field == "user.name"


async def test_users_are_listed_page_by_page(people: People):
    for at in range(5):
        await people.users.create(f"u{at}", (), WEEK)
    first, token = await people.users.list(4, "")
    rest, end = await people.users.list(4, token)
    assert [each.name for each in (*first, *rest)] == ["root", *(f"u{at}" for at in range(5))]
    assert end == ""


# ── sessions ───────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_refresh_token_is_good_for_one_use_and_a_second_ends_the_session(people: People):
    await people.user()
    first = await people.sessions.begin(await people.users.get("alice"))
    second = await people.sessions.refresh(first.refresh)
    assert people.directory.identity(second.access).subject.startswith("users/")
    people.clock.ahead += sessions_module.AGAIN.total_seconds() + 1
    with pytest.raises(UnauthenticatedError):
        await people.sessions.refresh(first.refresh)
    for token in (first.access, second.access):
        with pytest.raises(UnauthenticatedError):
            people.directory.identity(token)
    with pytest.raises(UnauthenticatedError):
        await people.sessions.refresh(second.refresh)


async def test_who_lost_the_answer_to_a_refresh_may_ask_again_at_once(people: People):
    await people.user()
    first = await people.sessions.begin(await people.users.get("alice"))
    await people.sessions.refresh(first.refresh)
    again = await people.sessions.refresh(first.refresh)
    assert people.directory.identity(again.access)


async def test_tokens_and_sessions_end(people: People):
    await people.user()
    tokens = await people.sessions.begin(await people.users.get("alice"))
    people.clock.ahead += sessions_module.ACCESS_LIFETIME.total_seconds() + 1
    with pytest.raises(UnauthenticatedError):
        people.directory.identity(tokens.access)
    people.clock.ahead += sessions_module.SESSION_LIFETIME.total_seconds()
    with pytest.raises(UnauthenticatedError):
        await people.sessions.refresh(tokens.refresh)


async def test_one_ends_ones_own_sessions_alone(people: People):
    mine, other = await people.user(), await people.user("bob")
    await people.sessions.begin(await people.users.get("alice"))
    (found,), _ = await people.sessions.list(mine, 10, "")
    with pytest.raises(NotFoundError):
        await people.sessions.end(found.id, other)
    await people.sessions.end(found.id, mine)
    assert (await people.sessions.list(mine, 10, ""))[0] == []


async def test_a_token_signed_for_somebody_elses_session_is_refused(people: People):
    alice, bob = await people.user(), await people.user("bob")
    await people.sessions.begin(await people.users.get("alice"))
    (found,), _ = await people.sessions.list(alice, 10, "")
    now = people.clock.now_nanos() // 10**9
    token = Keyring(Secret("i" * 40)).access_token(Access(user=bob, session=found.id, end=now + 100), now)
    with pytest.raises(UnauthenticatedError):
        people.directory.identity(token)


async def test_a_token_of_the_version_before_holds_until_it_ends(people: People):
    alice = await people.user()
    await people.sessions.begin(await people.users.get("alice"))
    (found,), _ = await people.sessions.list(alice, 10, "")
    now = people.clock.now_nanos() // 10**9
    key = HKDF(algorithm=SHA256(), length=32, salt=None, info=b"openmanager access token").derive(b"i" * 40)
    claims = {"iss": "openmanager", "aud": "openmanager", "sub": alice, "sid": found.id, "iat": now, "exp": now + 100}
    kid = hashlib.sha256(key).hexdigest()[:16]
    assert people.directory.identity(jwt.encode(claims, key, "HS256", {"kid": kid})).subject == f"users/{alice}"
    # The public half of today's key is no secret to sign with.
    public = base64.urlsafe_b64decode(Keyring(Secret("i" * 40)).public_keys()["keys"][0]["x"] + "=")
    for ident in (kid, hashlib.sha256(public).hexdigest()[:16]):
        with pytest.raises(UnauthenticatedError):
            people.directory.identity(jwt.encode(claims, public, "HS256", {"kid": ident}))


# ── keys ───────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_key_opens_until_it_is_revoked(people: People):
    key, secret = await people.keys.create("agent", VIEWER, None, "local")
    assert people.directory.identity(secret).subject == f"keys/{key.id}"
    await people.memory.copy(people.database)
    assert (await people.keys.get(key.id)).use_time is not None
    await people.keys.delete(key.id)
    with pytest.raises(UnauthenticatedError):
        people.directory.identity(secret)


async def test_a_key_that_is_exchanged_works_on_for_the_overlap(people: People):
    key, old = await people.keys.create("agent", VIEWER, None, "local")
    _, new = await people.keys.rotate(key.id, timedelta(hours=1))
    assert people.directory.identity(old).end < people.directory.identity(new).end
    people.clock.ahead += 3601
    with pytest.raises(UnauthenticatedError):
        people.directory.identity(old)
    assert people.directory.identity(new)


async def test_a_key_ends(people: People):
    _, secret = await people.keys.create("agent", VIEWER, people.directory.now() + timedelta(hours=1), "local")
    people.clock.ahead += 3601
    with pytest.raises(UnauthenticatedError):
        people.directory.identity(secret)
    with pytest.raises(InvalidArgumentError):
        await people.keys.create("agent", VIEWER, people.directory.now() + timedelta(days=400), "local")


async def test_what_is_secret_is_nowhere_in_the_database(people: People):
    _, secret = await people.keys.create("agent", VIEWER, None, "local")
    _, invitation = await people.users.create("carol", VIEWER, WEEK)
    await people.user()
    tokens = await people.sessions.begin(await people.users.get("alice"))
    async with session(people.url) as other:
        rows = [str(row) for table in directory_module.TABLES for row in await other.fetch(f"SELECT * FROM {table}")]
    for hidden in (secret, invitation.text, tokens.access, tokens.refresh):
        part = hidden.split("_", 2)[2] if hidden.startswith("om") else hidden  # a secret may have the sign too
        assert not any(part in row for row in rows)
    assert not any(PASSWORD in row for row in rows)
    assert any("$argon2id$" in row for row in rows)


@pytest.mark.parametrize(
    "credential", ["", "omk_", "omk_aaaaaaaaaaaaaaaa_" + "x" * 43, "a.b.c", "é", "x" * 4000, "omr_x"]
)
async def test_what_is_nobodys_is_refused_with_one_text(people: People, credential: str):
    with pytest.raises(UnauthenticatedError) as failure:
        people.directory.identity(credential)
    assert failure.value.message == "the credentials are not valid"


# ── beginnings and ends ────────────────────────────────────────────────────────────────────────────────────────────


async def test_the_first_start_leaves_an_invitation_that_only_its_owner_can_read(url: str, tmp_path: Path):
    file = tmp_path / "secrets" / "admin"
    async with opened(url) as people:
        await FirstAdmin(people.users, file).look()
        assert file.stat().st_mode & 0o777 == 0o600
        lost = file.read_text().strip()
        file.unlink()
        await FirstAdmin(people.users, file).look()
        with pytest.raises(UnauthenticatedError):
            await people.users.accept(lost, PASSWORD, "")
        user = await people.users.accept(file.read_text().strip(), PASSWORD, "")
        assert (user.name, user.grants) == ("admin", ADMIN)
        await FirstAdmin(people.users, file).look()
        assert not file.exists()


async def test_without_a_key_of_its_own_nothing_is_made_that_could_not_be_recognised_later(url: str, tmp_path: Path):
    async with opened(url, key="") as people:
        await FirstAdmin(people.users, tmp_path / "admin").look()
        assert not (tmp_path / "admin").exists()
        with pytest.raises(FailedPreconditionError):
            await people.keys.create("agent", VIEWER, None, "local")


async def test_who_is_known_is_known_while_the_database_is_away(people: People):
    _, secret = await people.keys.create("agent", VIEWER, None, "local")
    await people.memory.copy(people.database)
    people.database._pool.terminate()
    assert people.directory.identity(secret)


async def test_a_database_that_lost_everybody_is_given_them_back_and_revoked_ones_stay_revoked(people: People):
    user_id = await people.user()
    key, secret = await people.keys.create("agent", VIEWER, None, "local")
    gone, revoked = await people.keys.create("old agent", VIEWER, None, "local")
    tokens = await people.sessions.begin(await people.users.get("alice"))
    async with session(people.url) as other:
        before = await other.fetchrow("SELECT * FROM api_keys WHERE id = $1", gone.id)
    await people.keys.delete(gone.id)
    await people.memory.copy(people.database)
    async with session(people.url) as other:
        # As it was before the session, the new key and the revocation.
        await other.execute("TRUNCATE sessions, users")
        await other.execute("DELETE FROM api_keys")
        columns = ", ".join(before.keys())
        places = ", ".join(f"${at + 1}" for at in range(len(before)))
        await other.execute(f"INSERT INTO api_keys ({columns}) VALUES ({places})", *before.values())
        await other.execute("UPDATE epoch SET beat = 0")
        await people.memory.give_back(other)
    await people.memory.copy(people.database)
    assert people.directory.identity(secret).subject == f"keys/{key.id}"
    assert people.directory.identity(tokens.access).subject == f"users/{user_id}"
    with pytest.raises(UnauthenticatedError):
        people.directory.identity(revoked)
    assert (await people.users.sign_in("alice", PASSWORD, "")).id == user_id


async def test_a_user_is_changed_while_the_audit_log_is_busy(url: str):
    async with opened(url) as people, session(url) as auditing, auditing.transaction():
        user_id = await people.user(grants=ADMIN)
        await auditing.execute("SELECT pg_advisory_xact_lock($1)", AUDIT_LOCK)

        user = await people.users.update(user_id, Changes(fields=("name",), name="bob"))

        assert user.name == "bob"

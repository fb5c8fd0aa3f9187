"""How the gateway knows who comes: asked once, asked again, and what happens when nobody can be asked."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from openmanager_gateway import authenticator as module
from openmanager_gateway.authenticator import Authenticator
from openmanager_gateway.router import passed

from openmanager.access import Grant, Identity, Role
from openmanager.api.metadata.v1 import identity_pb2 as pb
from openmanager.errors import ResourceExhaustedError, UnauthenticatedError, UnavailableError
from openmanager.runtime.attempts import MAX_A_MINUTE

ALICE = Identity("users/a", (Grant(Role.VIEWER, "role = web"),), end=1e12)


class Clock:
    """A clock that is set."""

    def __init__(self) -> None:
        self.seconds = 1_800_000_000.0

    def now_nanos(self) -> int:
        return int(self.seconds * 1e9)

    def monotonic(self) -> float:
        return self.seconds


class Metadata:
    """The metadata service as the gateway asks it: whose each credential is, or why it cannot tell."""

    def __init__(self) -> None:
        self.people: dict[str, Identity] = {"good": ALICE}
        self.trouble: Exception | None = None
        self.asked = 0

    async def unary(self, path, request, reply, *, seconds):
        self.asked += 1
        if self.trouble is not None:
            raise self.trouble
        if request.credential not in self.people:
            raise UnauthenticatedError("the credentials are not valid")
        found = self.people[request.credential]
        message = pb.AuthenticateResponse()
        message.identity.subject = found.subject
        for grant in found.grants:
            message.identity.grants.add(role=str(grant.role), server_filter=grant.server_filter)
        message.identity.end_time.FromNanoseconds(round(min(found.end, 9e9) * 1e9))
        return message


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def metadata() -> Metadata:
    return Metadata()


@pytest.fixture
def found(metadata: Metadata, clock: Clock) -> Authenticator:
    return Authenticator(metadata, clock, timedelta(minutes=10))


async def test_who_was_asked_about_is_known_without_asking(found: Authenticator, metadata: Metadata):
    assert found.known("good") is None
    held = await found.find("good", "192.0.2.1")
    assert (held.identity.subject, held.identity.grants) == (ALICE.subject, ALICE.grants)
    assert found.known("good") is held
    assert metadata.asked == 1


async def test_a_credential_that_was_revoked_is_refused_and_its_streams_end(found: Authenticator, metadata: Metadata):
    held = await found.find("good", "192.0.2.1")
    del metadata.people["good"]
    await found._recheck()
    assert found.known("good") is None
    assert isinstance(held.error, UnauthenticatedError)
    with pytest.raises(UnauthenticatedError):
        await found.find("good", "192.0.2.1")


async def test_who_may_do_something_else_now_does_it_and_streams_are_opened_again(
    found: Authenticator, metadata: Metadata
):
    held = await found.find("good", "192.0.2.1")
    metadata.people["good"] = replace(ALICE, grants=(Grant(Role.OPERATOR),))
    await found._recheck()
    assert held.error is not None
    assert held.error.reason == "GRANTS_CHANGED"
    now = found.known("good")
    assert now is not None
    assert now.identity.grants == (Grant(Role.OPERATOR),)
    assert now.error is None


async def test_a_credential_ends_by_itself(found: Authenticator, metadata: Metadata, clock: Clock):
    metadata.people["good"] = replace(ALICE, end=clock.seconds + 100)
    held = await found.find("good", "192.0.2.1")
    clock.seconds += 101
    assert found.known("good") is None
    await found._recheck()
    assert isinstance(held.error, UnauthenticatedError)


async def test_while_nobody_can_be_asked_who_is_known_stays_known_for_the_grace(
    found: Authenticator, metadata: Metadata, clock: Clock
):
    held = await found.find("good", "192.0.2.1")
    metadata.trouble = UnavailableError("metadata cannot be reached")
    clock.seconds += 599
    found.known("good")
    await found._recheck()
    assert found.known("good") is held
    with pytest.raises(UnavailableError) as failure:
        await found.find("another", "192.0.2.1")
    assert failure.value.message == "who is calling cannot be checked"
    clock.seconds += 2
    await found._recheck()
    assert found.known("good") is None
    assert isinstance(held.error, UnavailableError)


async def test_guessing_is_limited_for_an_address_and_who_is_known_comes_in(found: Authenticator, clock: Clock):
    await found.find("good", "192.0.2.1")
    for at in range(MAX_A_MINUTE):
        with pytest.raises(UnauthenticatedError):
            await found.find(f"guess-{at}", "192.0.2.1")
    with pytest.raises(ResourceExhaustedError) as failure:
        await found.find("guess", "192.0.2.1")
    assert failure.value.retry_after is not None
    assert found.known("good") is not None
    clock.seconds += 61
    with pytest.raises(UnauthenticatedError):
        await found.find("guess", "192.0.2.1")


async def test_a_wrong_credential_that_comes_again_costs_the_metadata_service_nothing(
    found: Authenticator, metadata: Metadata, clock: Clock
):
    for _ in range(5):
        with pytest.raises(UnauthenticatedError):
            await found.find("wrong", "192.0.2.1")
    assert metadata.asked == 1
    clock.seconds += module.REFUSED_SECONDS + 1
    with pytest.raises(UnauthenticatedError):
        await found.find("wrong", "192.0.2.1")
    assert metadata.asked == 2


async def test_who_does_not_come_any_more_is_forgotten_unless_a_stream_is_open(
    found: Authenticator, metadata: Metadata, clock: Clock
):
    metadata.people["other"] = ALICE
    held = await found.find("good", "")
    (await found.find("other", "")).streams.add(lambda: None)
    clock.seconds += module.FORGET_SECONDS + 1
    await found._recheck()
    assert list(found._entries) == ["other"]
    assert held.error is None


def test_what_somebody_came_with_is_not_passed_on():
    class Context:
        def invocation_metadata(self):
            return (
                ("authorization", "Bearer omk_x"),
                ("x-openmanager-identity", "made up"),
                ("x-openmanager-rationed", "0"),
                ("x-request-id", "7"),
                ("user-agent", "curl"),
            )

    assert passed(Context()) == [("x-request-id", "7")]

"""Roles, grants over some servers, and filters that cannot be talked out of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from openmanager import access
from openmanager.access import Caller, Grant, Identity, Permission, Role
from openmanager.errors import InvalidArgumentError, NotFoundError, PermissionDeniedError
from openmanager.frame import ServerInfo

WEB = "role = web"


@pytest.fixture(autouse=True)
def nobody_calls() -> Iterator[None]:
    """Let a test say who is calling for itself alone: outside of a server nobody's task ends with the call."""
    yield
    access._caller.set(None)


def who(*grants: Grant) -> Identity:
    return Identity("users/x", grants)


def as_caller(scope: str) -> None:
    access.serve(Caller(who(), scope))


def test_without_a_grant_nothing_but_what_concerns_oneself_is_allowed():
    allowed = {each for each in Permission if who().scope(each) is not None}
    assert allowed == {Permission.NOTHING, Permission.SELF}


def test_nobody_is_given_what_servers_of_the_mesh_may():
    for role in access.ROLES:
        assert who(Grant(role)).scope(Permission.MESH) is None


def test_a_grant_over_all_servers_outweighs_those_over_some():
    assert who(Grant(Role.VIEWER, WEB), Grant(Role.OPERATOR)).scope(Permission.READ) == ""
    assert who(Grant(Role.VIEWER, WEB), Grant(Role.OPERATOR)).scope(Permission.OPERATE) == ""
    assert who(Grant(Role.VIEWER), Grant(Role.OPERATOR, WEB)).scope(Permission.OPERATE) == f"({WEB})"


def test_grants_over_some_servers_add_up():
    found = who(Grant(Role.VIEWER, WEB), Grant(Role.VIEWER, "environment = dev OR id = a"))
    as_caller(found.scope(Permission.READ) or "")
    assert access.reaches(access.fields_of(ServerInfo(id="b", role="web")))
    assert access.reaches(access.fields_of(ServerInfo(id="a")))
    assert not access.reaches(access.fields_of(ServerInfo(id="b", role="database", environment="production")))


@pytest.mark.parametrize("text", ["id = x) OR (id != y", "id = x OR", "(", "id = x) --"])
def test_a_filter_cannot_close_the_parenthesis_around_it(text: str):
    as_caller(WEB)
    with pytest.raises(InvalidArgumentError) as failure:
        access.narrowed(text, "selector.server_filter")
    assert failure.value.field == "selector.server_filter"


def test_what_is_asked_for_is_kept_to_what_one_may_reach():
    as_caller("")
    assert access.narrowed("id = a OR id = b") == "id = a OR id = b"
    as_caller(f"({WEB}) OR (id = c)")
    assert access.narrowed("") == f"({WEB}) OR (id = c)"
    assert access.narrowed("id = a OR id = b") == f"(id = a OR id = b) AND (({WEB}) OR (id = c))"


def test_whether_there_is_a_server_beyond_ones_reach_is_not_told():
    as_caller(WEB)
    with pytest.raises(NotFoundError):
        access.check_reaches(access.fields_of(ServerInfo(id="a", role="database")), "a")
    with pytest.raises(PermissionDeniedError):
        access.check_may_change(access.fields_of(ServerInfo(id="a", role="database")), "server")
    access.check_reaches(access.fields_of(ServerInfo(id="a", role="web", labels={"x": "y"})), "a")


def test_labels_are_part_of_what_a_grant_can_be_over():
    as_caller("labels.team = payments")
    assert access.reaches(access.fields_of(ServerInfo(id="a", labels={"team": "payments"})))
    assert not access.reaches(access.fields_of(ServerInfo(id="a", labels={"team": "search"})))


@pytest.mark.parametrize(
    "text", ["state = CRITICAL", "role =", "id = " + "x" * 600, " AND ".join(["id != a"] * 9), "update_time > 2020"]
)
def test_a_grant_is_over_what_does_not_change_by_itself_and_is_not_endless(text: str):
    with pytest.raises(InvalidArgumentError):
        access.check_grants((Grant(Role.VIEWER, text),), "user.grants")


def test_all_grants_that_can_be_given_together_make_one_filter():
    text = " OR ".join(f"labels.n = {at}" for at in range(4))
    access.check_grants(tuple(Grant(Role.VIEWER, text) for _ in range(access.MAX_GRANTS)), "user.grants")
    with pytest.raises(InvalidArgumentError):
        access.check_grants((Grant(Role.VIEWER),) * (access.MAX_GRANTS + 1), "user.grants")


def test_a_role_that_there_is_not_is_refused_and_so_is_that_of_servers():
    with pytest.raises(InvalidArgumentError):
        access.check_role("mesh", "user.grants.role")
    with pytest.raises(InvalidArgumentError):
        access.check_role("root", "user.grants.role")

from __future__ import annotations

import pytest

from openmanager import filter as server_filter
from openmanager.errors import InvalidArgumentError

SERVER = {"id": "web-1", "role": "web", "hostname": "Web One", "labels.team": "a b", "usage": 3.5}


def holds(text: str) -> bool:
    return server_filter.matches(server_filter.parse(text), SERVER.get)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", True),
        ("role=web", True),
        ('role = "web"', True),
        ("role != web", False),
        ("NOT role = web", False),
        ("hostname:One", True),
        ("role = web AND id = web-2", False),
        ("role = db OR id = web-1", True),
        ("role = db OR id = web-2 AND role = web", False),
        ("(role = db OR role = web) AND labels.team = 'a b'", True),
        ('labels.team = "a \\b"', True),
        ("usage > 3", True),
        ("usage <= 3", False),
        ("missing = x", False),
        ("missing != x", True),
    ],
)
def test_a_filter_holds(text: str, expected: bool):  # noqa: FBT001
    assert holds(text) is expected


@pytest.mark.parametrize(
    "text",
    [
        "role",
        "role =",
        "= web",
        "role = web AND",
        "(role = web",
        "role = web)",
        "role == web",
        "role = web id = x",
        "'",
        "a=b; --x=",
    ],
)
def test_a_malformed_filter_is_refused(text: str):
    with pytest.raises(InvalidArgumentError) as failure:
        server_filter.parse(text)
    assert failure.value.field == "filter"


@pytest.mark.parametrize(
    "text", ["(" * 10_000 + "a=b", "NOT " * 1000 + "a=b", " OR ".join(["a=b"] * 101), "a=" + "x" * 5000]
)
def test_a_filter_made_to_be_expensive_is_refused(text: str):
    with pytest.raises(InvalidArgumentError):
        server_filter.parse(text)


def test_unknown_fields_and_operators_are_named():
    node = server_filter.parse("colour = red")
    with pytest.raises(InvalidArgumentError, match="unknown field 'colour'"):
        server_filter.check_fields(node, {"role": server_filter.TEXT})
    with pytest.raises(InvalidArgumentError, match="cannot compare 'role' by '<'"):
        server_filter.check_fields(server_filter.parse("role < a"), {"role": server_filter.TEXT})

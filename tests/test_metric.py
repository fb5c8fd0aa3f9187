from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openmanager.errors import InvalidArgumentError
from openmanager.metric import check_key, make_key, parse_key, select

attributes = st.dictionaries(st.text(min_size=1, max_size=10), st.text(max_size=20), max_size=5)


@given(attributes)
@settings(max_examples=300, deadline=None, derandomize=True)
def test_a_key_comes_apart_into_what_it_was_made_of(found: dict[str, str]):
    name, parsed = parse_key(make_key("system.x", found))
    assert (name, dict(parsed)) == ("system.x", found)


@pytest.mark.parametrize("key", ["x{", "x{a}", "x{a=}b", "x{a=1,}", "x{=1}", "x{a=1", "x{a=\\}", "x{a=b=c}", "x{a{=1}"])
def test_a_malformed_key_is_refused(key: str):
    with pytest.raises(InvalidArgumentError):
        check_key(key)


@pytest.mark.parametrize("key", ["cpu", "system.cpu.time{cpu=0,state=user}", "x{path=/a b/ü€,q=\\{\\,\\=\\}}", "x{a=}"])
def test_a_canonical_key_is_taken(key: str):
    check_key(key)


KEYS = ["cpu", "cpu{core=0}", "cpu{core=1,state=user}", "disk.io{device=sda}", "memory"]


@pytest.mark.parametrize(
    ("patterns", "chosen"),
    [
        ([], KEYS),
        (["cpu"], KEYS[:3]),
        (["cpu{core=0}"], ["cpu{core=0}"]),
        (["cpu{core=*}"], KEYS[1:3]),
        (["c*"], KEYS[:3]),
        (["*{device=sd?}"], ["disk.io{device=sda}"]),
        (["memory", "disk.io"], KEYS[3:]),
        (["nothing"], []),
        (["[c]pu"], []),
    ],
)
def test_patterns_choose_by_name_glob_and_attributes(patterns: list[str], chosen: list[str]):
    assert [KEYS[at] for at in select(KEYS, patterns)] == chosen


def test_a_glob_made_to_be_slow_is_not():
    assert select(["a" * 200], ["a*" * 100 + "b"]) == []

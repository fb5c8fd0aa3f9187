from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openmanager.errors import InvalidArgumentError
from openmanager.metric import Pattern, check_key, make_key, parse_key, select

attributes = st.dictionaries(st.text(min_size=1, max_size=10), st.text(max_size=20), max_size=5)


@given(attributes)
@settings(max_examples=300)
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


names = st.sampled_from(["cpu", "cpu.time", "disk", "m"])
own = st.dictionaries(st.sampled_from("abc"), st.sampled_from(["0", "1", "10", "x,y"]), max_size=3)
keys = st.builds(make_key, names, own)
globs = st.builds(
    make_key,
    st.sampled_from(["cpu", "cpu.time", "c*", "*", "?", "d?sk", "[c]pu", "nothing"]),
    st.dictionaries(st.sampled_from("abcd"), st.sampled_from(["0", "1", "1*", "*", "?", "x,y", ""]), max_size=3),
)


@given(st.lists(keys, max_size=12), st.lists(st.one_of(keys, globs), min_size=1, max_size=12))
@settings(max_examples=500)
def test_many_patterns_choose_what_each_of_them_chooses(found: list[str], patterns: list[str]):
    matchers = [Pattern.parse(pattern).matcher() for pattern in patterns]
    expected = [at for at, key in enumerate(found) if any(matches(key) for matches in matchers)]
    assert select(found, patterns) == expected


def test_a_list_of_all_keys_chooses_all_of_them_and_asks_each_key_for_a_few_only(monkeypatch: pytest.MonkeyPatch):
    found = [make_key("cpu.time", {"cpu": str(at), "state": state}) for at in range(500) for state in ("user", "idle")]
    asked = 0
    matcher = Pattern.attribute_matcher

    def counting(self: Pattern):
        matches = matcher(self)

        def counted(own: dict[str, str]) -> bool:
            nonlocal asked
            asked += 1
            return matches(own)

        return counted

    monkeypatch.setattr(Pattern, "attribute_matcher", counting)
    assert select(found, found) == list(range(1000))
    assert asked <= 2 * len(found)


def test_a_malformed_pattern_is_refused_even_where_there_are_no_keys():
    for pattern in ("", "cpu{", "cpu{a=1", "x" * 513):
        with pytest.raises(InvalidArgumentError):
            select([], ["cpu", pattern])

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openmanager import page
from openmanager.errors import InvalidArgumentError


@given(st.lists(st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=20), max_size=3))
@settings(max_examples=100)
def test_a_token_gives_its_key_back_for_its_own_query_only(after: list[str]):
    token = page.encode_token(("a", 1), after)
    assert page.decode_token(("a", 1), token, len(after)) == after
    with pytest.raises(InvalidArgumentError, match=r"^invalid page token$"):
        page.decode_token(("a", 2), token, len(after))


@pytest.mark.parametrize("after", [["a"], ["a", "b", "c"], ["a", "b\0"]])
def test_a_token_with_another_key_than_the_methods_is_refused(after: list[str]):
    with pytest.raises(InvalidArgumentError, match=r"^invalid page token$"):
        page.decode_token((), page.encode_token((), after), parts=2)


@pytest.mark.parametrize("token", ["x", "%%%", "A" * 40, "é", "QUFBQUFBQUFbXQ"])
def test_a_forged_token_is_refused(token: str):
    with pytest.raises(InvalidArgumentError, match=r"^invalid page token$"):
        page.decode_token((), token)


@pytest.mark.parametrize(("asked", "given_"), [(0, 100), (1, 1), (1000, 1000), (2**31 - 1, 1000)])
def test_page_sizes(asked: int, given_: int):
    assert page.page_size(asked) == given_


def test_a_negative_page_size_is_refused():
    with pytest.raises(InvalidArgumentError):
        page.page_size(-1)

"""Tokens that a watch goes on with."""

from __future__ import annotations

import pytest

from openmanager.errors import OutOfRangeError, Reason
from openmanager.watch import change_of, token_of


def test_a_token_goes_on_from_its_change_and_none_begins_anew():
    assert change_of(token_of("life", 7), "life", oldest=3, newest=7) == 7
    assert change_of(token_of("life", 3), "life", oldest=3, newest=7) == 3
    assert change_of("", "life", oldest=3, newest=7) is None


@pytest.mark.parametrize(
    "token", ["life-2", "life-8", "other-5", "life-", "life", "life-x", "life--5", "life-５", "life-" + "5" * 5000]
)
def test_a_token_of_nothing_that_is_kept_is_too_old(token: str):
    with pytest.raises(OutOfRangeError) as refused:
        change_of(token, "life", oldest=3, newest=7)
    assert refused.value.reason == Reason.HISTORY_COMPACTED

"""Who has been wrong too often, by address."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from openmanager.errors import ResourceExhaustedError
from openmanager.runtime.attempts import MAX_A_MINUTE, Attempts
from openmanager.runtime.clock import SystemClock


def after(sources: Iterable[str]) -> Attempts:
    attempts = Attempts(SystemClock())
    for source in sources:
        attempts.failed(source, "")
    return attempts


def test_of_ipv6_a_caller_has_a_network_whose_addresses_are_theirs_to_choose():
    attempts = after(f"2001:db8::{number:x}" for number in range(MAX_A_MINUTE))
    for same in ("2001:db8::ffff:1:2:3", "2001:db8::1%eth0"):
        with pytest.raises(ResourceExhaustedError):
            attempts.check(same, "")
    for other in ("2001:db8:0:1::1", "192.0.2.1", "unix"):
        attempts.check(other, "")


@pytest.mark.parametrize("network", ["192.0.2.", "::ffff:192.0.2."])
def test_of_ipv4_a_caller_has_one_address(network: str):
    attempts = after(f"{network}{number}" for number in range(MAX_A_MINUTE))
    attempts.check(f"{network}1", "")

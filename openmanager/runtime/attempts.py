"""How often somebody may be wrong: per address and per name, in a minute, before more is even looked at."""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from datetime import timedelta

from openmanager.errors import Reason, ResourceExhaustedError
from openmanager.runtime.clock import Clock

MAX_A_MINUTE = 10
MINUTE = 60.0
_REMEMBERED = 10_000


class Attempts:
    """Counts what failed; who succeeds is not counted."""

    def __init__(self, clock: Clock, most: int = MAX_A_MINUTE) -> None:
        self._clock = clock
        self._most = most
        # When the minute of each began, and how many there were in it.
        self._failures: OrderedDict[str, tuple[float, int]] = OrderedDict()

    def check(self, source: str, name: str) -> None:
        """Raise ResourceExhaustedError when there were too many from this address, or under this name."""
        now = self._clock.monotonic()
        for key in _keys(source, name):
            begin, count = self._failures.get(key, (now, 0))
            if count >= self._most and now < begin + MINUTE:
                raise ResourceExhaustedError(
                    "too many attempts failed: try again later",
                    reason=Reason.TOO_MANY_ATTEMPTS,
                    retry_after=timedelta(seconds=max(1.0, begin + MINUTE - now)),
                )

    def failed(self, source: str, name: str) -> None:
        """Count one that failed."""
        now = self._clock.monotonic()
        for key in _keys(source, name):
            begin, count = self._failures.pop(key, (now, 0))
            self._failures[key] = (begin, count + 1) if now < begin + MINUTE else (now, 1)
        while len(self._failures) > _REMEMBERED:
            self._failures.popitem(last=False)


def _keys(source: str, name: str) -> list[str]:
    return [f"{kind} {value}" for kind, value in (("address", _place(source)), ("name", name)) if value]


def _place(source: str) -> str:
    """Return what one caller has of addresses: one of IPv4, or the /64 of one of IPv6, whose 2⁶⁴ are theirs to choose."""
    try:
        found = ipaddress.IPv6Address(source)
    except ValueError:
        return source
    return str(found.ipv4_mapped or ipaddress.IPv6Network((int(found) >> 64 << 64, 64)))

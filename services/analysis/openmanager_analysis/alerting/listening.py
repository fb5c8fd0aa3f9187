"""How long the log was listened to: so much time has passed for those that are waited for."""

from __future__ import annotations

from dataclasses import dataclass

# From one record of the log to the next so much is believed: what is longer may be an outage, or a clock that jumped.
LULL_NANOS = 15 * 10**9


@dataclass(slots=True)
class Listening:
    """Nanoseconds in which the log could be written, and was read: by its own time as it is read, and by ours while it is quiet.

    While it is away, or not yet read to its end, nobody can be heard, so that nobody is to be missed.
    """

    nanos: int = 1
    _until: int = 0
    # What was counted by one clock since the other one counted: the other does not count it again.
    _quiet: int = 0
    _read: int = 0

    def hear(self, received: int) -> None:
        """Note that a record was read that the log received at a time, in nanoseconds since 1970."""
        passed = min(max(0, received - self._until), LULL_NANOS) if self._until else 0
        more = max(0, passed - self._quiet)
        self._until, self._quiet = received, 0
        self._read += more
        self.nanos += more

    def wait(self, passed: int) -> None:
        """Note that nanoseconds passed in which the log was read to its end."""
        more = max(0, min(passed, LULL_NANOS) - self._read)
        self._read = 0
        self._quiet += more
        self.nanos += more

"""What watches are told of: things that begin, change and end, each change counted."""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from openmanager.watch import change_of, compacted, token_of


class Told(Protocol):
    """Something that is told of; `change` is the number of what was told of it last."""

    @property
    def change(self) -> int:
        """The number of its last change."""
        ...


T = TypeVar("T", bound=Told)


@dataclass(slots=True)
class Chronicle(Generic[T]):
    """Those that go on, by a key, and the newest `kept` of those that are over."""

    kept: int
    # Tells one life from another: changes are counted anew in each.
    epoch: str = field(default_factory=lambda: secrets.token_hex(4))
    change: int = 0
    open: dict[Hashable, T] = field(default_factory=dict)
    over: deque[T] = field(default_factory=deque)  # by end
    forgotten: int = 0  # the newest change of those that were let go

    def __iter__(self) -> Iterator[T]:
        """Yield all, those that are over first."""
        yield from self.over
        yield from self.open.values()

    def changed_since(self, change: int) -> list[T]:
        """Return those that began, changed or ended after a change, in the order of their changes.

        OutOfRangeError when one of them was let go.
        """
        if change < self.forgotten:
            raise compacted()
        return sorted((each for each in self if each.change > change), key=_change)

    def going_on(self) -> list[T]:
        """Return those that are not over, in the order of their changes."""
        return sorted(self.open.values(), key=_change)

    def resume(self, token: str) -> int | None:
        """Return the change that a token of `token_of` names, None for an empty one; OutOfRangeError when it is too old."""
        return change_of(token, self.epoch, oldest=self.forgotten, newest=self.change)

    def token_of(self, change: int) -> str:
        """Return the token that a watch goes on with after a change."""
        return token_of(self.epoch, change)

    def trim(self) -> None:
        """Let go of those that were over first."""
        while len(self.over) > self.kept:
            self.forgotten = max(self.forgotten, self.over.popleft().change)


def _change(each: Told) -> int:
    return each.change

"""Who watches what goes on, and what they are told."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from functools import partial
from typing import Protocol, TypeVar

from openmanager import filter as server_filter
from openmanager.metric import parse_key
from openmanager.watch import Bell
from openmanager_analysis.anomaly import Anomaly
from openmanager_analysis.told import Told

FILTER_FIELDS = dict.fromkeys(("id", "server", "severity", "metric", "incident_id"), server_filter.TEXT)
T = TypeVar("T", bound=Told)


class Watched(Protocol[T]):
    """What is watched, as a `Chronicle` is."""

    @property
    def change(self) -> int:
        """The number of the newest change that may be told."""
        ...

    def changed_since(self, change: int) -> list[T]:
        """Return those that changed after a change, in the order of their changes; OutOfRangeError for what is forgotten."""
        ...

    def going_on(self) -> list[T]:
        """Return those that are not over."""
        ...

    def resume(self, token: str) -> int | None:
        """Return the change that a token names, None for an empty one; OutOfRangeError when it is too old."""
        ...

    def token_of(self, change: int) -> str:
        """Return the token of a change."""
        ...


def chooser(text: str) -> Callable[[Anomaly], bool]:
    """Return what a filter chooses; InvalidArgumentError for one that is none."""
    node = server_filter.parse(text)
    server_filter.check_fields(node, FILTER_FIELDS)

    def chooses(anomaly: Anomaly) -> bool:
        return server_filter.matches(node, lambda name: _field(anomaly, name))

    return chooses


def _field(anomaly: Anomaly, name: str) -> str:
    match name:
        case "severity":
            return anomaly.severity.name
        case "metric":
            return parse_key(anomaly.blames[0].metric)[0] if anomaly.blames else ""
        case _:
            return str(getattr(anomaly, name))


async def watch(
    register: Watched[T],
    bell: Bell,
    chooses: Callable[[T], bool],
    fitting: Callable[[Sequence[T]], Sequence[T]],
    *,
    token: str,
    progress: float,
) -> AsyncGenerator[tuple[str, Sequence[T]]]:
    """Yield tokens and what is to be told with each: at first what goes on now, unless the token goes on from before.

    `fitting` returns as many of the first as go into one message. After `progress` seconds without a change there is
    nothing to tell, and that is yielded.
    """
    seen = register.resume(token)
    found = register.changed_since(seen) if seen is not None else register.going_on()
    seen = register.change
    while True:
        chosen = [each for each in found if chooses(each)]
        while chosen:
            piece = fitting(chosen)
            yield register.token_of(piece[-1].change), piece
            chosen = chosen[len(piece) :]
        yield register.token_of(seen), ()
        while not await bell.wait_until(partial(_is_past, register, seen), progress):
            yield register.token_of(seen), ()
        found, seen = register.changed_since(seen), register.change


def _is_past(register: Watched[T], change: int) -> bool:
    return register.change != change

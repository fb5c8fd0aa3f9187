"""Who watches the register, and what they are told."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from functools import partial

from openmanager import filter as server_filter
from openmanager.metric import parse_key
from openmanager.watch import Bell
from openmanager_analysis.anomaly import Anomaly, Register, fitting

FILTER_FIELDS = dict.fromkeys(("id", "server", "severity", "metric", "incident_id"), server_filter.TEXT)
Chooses = Callable[[Anomaly], bool]


def chooser(text: str) -> Chooses:
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
    register: Register, bell: Bell, chooses: Chooses, *, token: str, progress: float
) -> AsyncGenerator[tuple[str, Sequence[Anomaly]]]:
    """Yield tokens and what is to be told with each: at first what goes on now, unless the token goes on from before.

    After `progress` seconds without a change there is nothing to tell, and that is yielded.
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


def _is_past(register: Register, change: int) -> bool:
    return register.change != change

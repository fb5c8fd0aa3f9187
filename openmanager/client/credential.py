"""What a client shows to be let in: nothing, a key, or a session that is renewed while it is used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

Metadata = Sequence[tuple[str, str]]


class Credential(Protocol):
    """Something to come with."""

    def metadata(self) -> Metadata:
        """Return what goes with every call."""
        ...

    async def renew(self) -> bool:
        """Try to get something that is taken after this was refused; say whether there is."""
        ...


class Token:
    """A key or an access token that stays what it is; an empty one is nothing."""

    def __init__(self, text: str = "") -> None:
        self._metadata: Metadata = (bearer(text),) if text else ()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({'***' if self._metadata else ''})"

    def metadata(self) -> Metadata:
        """Return what goes with every call."""
        return self._metadata

    async def renew(self) -> bool:
        """There is nothing else."""
        return False


def bearer(text: str) -> tuple[str, str]:
    """Return the metadata of a key or an access token."""
    return "authorization", f"Bearer {text}"

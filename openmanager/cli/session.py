"""What the command line comes with: a key of the environment, or the session that `openmanager login` has begun.

Sessions are kept in a file that only its owner can read, one for each gateway.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openmanager.client.credential import Metadata, Token, bearer
from openmanager.datadir import write_durably
from openmanager.errors import ConfigurationError, OpenManagerError

if TYPE_CHECKING:
    from openmanager.client.credential import Credential
    from openmanager.client.people import Tokens
    from openmanager.runtime.tls import Tls

VARIABLE = "OPENMANAGER_TOKEN"
# A token is renewed that long before it ends.
EARLY = timedelta(seconds=60)


def credential(gateway: str, environ: Mapping[str, str], tls: Tls | None) -> Credential:
    """Return what there is for a gateway; nothing when nobody has signed in there."""
    if text := environ.get(VARIABLE):
        return Token(text.strip())
    if file := environ.get(f"{VARIABLE}_FILE"):
        try:
            return Token(Path(file).read_text(encoding="ascii").strip())
        except (OSError, ValueError) as err:
            raise ConfigurationError(f"{VARIABLE}_FILE names a file that cannot be read") from err
    kept = load().get(gateway)
    return Session(gateway, kept, tls) if kept else Token()


class Session:
    """A session that was begun before; its tokens are renewed as they end, and kept."""

    def __init__(self, gateway: str, kept: Mapping[str, str], tls: Tls | None) -> None:
        self._gateway = gateway
        self._tls = tls
        self._kept = kept

    def __repr__(self) -> str:
        return "Session(***)"

    def metadata(self) -> Metadata:
        """Return what goes with every call."""
        return (bearer(self._kept["access_token"]),)

    @property
    def is_ending(self) -> bool:
        """Whether the access token ends soon."""
        return datetime.fromisoformat(self._kept["access_end_time"]) - EARLY <= datetime.now(UTC)

    async def renew(self) -> bool:
        """Exchange the refresh token; another command may have done so already."""
        from openmanager.client import Client

        now = load().get(self._gateway)
        if now and now != self._kept:
            self._kept = now
            return True
        try:
            async with Client(self._gateway, tls=self._tls) as client:
                tokens = await client.sessions.refresh(self._kept["refresh_token"])
        except OpenManagerError:
            return False
        self._kept = keep(self._gateway, tokens)
        return True


def file() -> Path:
    """Return where sessions are kept."""
    folder = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    return folder / "openmanager" / "sessions.json"


def load() -> dict[str, Any]:
    """Return what is kept, by gateway; nothing when it cannot be read."""
    try:
        found = json.loads(file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def keep(gateway: str, tokens: Tokens) -> dict[str, str]:
    """Keep the tokens of a session and return them as they are kept."""
    kept = {
        "access_token": tokens.access_token,
        "access_end_time": tokens.access_end_time.isoformat(),
        "refresh_token": tokens.refresh_token,
        "session_end_time": tokens.session_end_time.isoformat(),
    }
    _write({**load(), gateway: kept})
    return kept


def forget(gateway: str) -> None:
    """Forget the session with a gateway."""
    _write({name: kept for name, kept in load().items() if name != gateway})


def _write(sessions: Mapping[str, Any]) -> None:
    file().parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_durably(file(), json.dumps(sessions, indent=1))

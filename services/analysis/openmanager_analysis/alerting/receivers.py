"""Who is told of alerts: webhooks that the operator lists in a file, and nobody else."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from openmanager.config import Secret
from openmanager.errors import ConfigurationError, InvalidArgumentError
from openmanager_analysis.alerting import matcher

MAX_RECEIVERS = 20
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_KEYS = {"url": str, "authorization_file": str, "matcher": str, "allow_private": bool, "group_by": list}


class WebhookError(Exception):
    """A document was not taken; the text says why, without addresses and secrets."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Receiver:
    """A webhook. Its URL is as secret as what `authorization` holds: many have a token in their path."""

    name: str
    url: Secret
    authorization: Secret = Secret("")
    matcher: str = ""
    allow_private: bool = False
    group_by: tuple[str, ...] = ("alertname",)


def load(file: Path) -> list[Receiver]:
    """Return the receivers of a file (blocking), none without one; ConfigurationError, in a sentence, for what is wrong."""
    if file == Path():
        return []
    try:
        tables = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as err:
        raise ConfigurationError(f"analysis.receivers: cannot read {file}: {err.strerror}") from err
    except ValueError as err:
        raise ConfigurationError(f"analysis.receivers: {file} is not a TOML file") from err
    if len(tables) > MAX_RECEIVERS:
        raise ConfigurationError(f"analysis.receivers: {file} has more than {MAX_RECEIVERS} receivers")
    return [_receiver(name, table) for name, table in tables.items()]


def _receiver(name: str, table: Any) -> Receiver:
    where = f"analysis.receivers: [{name[:63]}]"
    if not _NAME.fullmatch(name) or not isinstance(table, Mapping):
        raise ConfigurationError(f"{where} must be a table whose name is {_NAME.pattern}")
    for key, value in table.items():
        if key not in _KEYS or not isinstance(value, _KEYS[key]):
            raise ConfigurationError(
                f"{where} has {key[:40]!r}, which is no key, or not of its type: {', '.join(_KEYS)}"
            )
    url = table.get("url", "")
    try:
        parts = urlsplit(url)
        is_url = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_url = False
    if not is_url or parts.username or parts.password or parts.fragment or any(not " " < each < "\x7f" for each in url):
        raise ConfigurationError(f"{where} url must be http:// or https://, with a host and without user and password")
    try:
        matcher.parse(table.get("matcher", ""), "matcher")
    except InvalidArgumentError as err:
        raise ConfigurationError(f"{where} {err.message}") from err
    group_by = table.get("group_by", ["alertname"])
    if not all(isinstance(each, str) for each in group_by):
        raise ConfigurationError(f"{where} group_by must be a list of labels")
    return Receiver(
        name=name,
        url=Secret(url),
        authorization=_secret(where, table.get("authorization_file", "")),
        matcher=table.get("matcher", ""),
        allow_private=table.get("allow_private", False),
        group_by=tuple(group_by),
    )


def _secret(where: str, path: str) -> Secret:
    if not path:
        return Secret("")
    try:
        found = Secret(Path(path).read_text(encoding="utf-8").strip(), Path(path))
    except (OSError, UnicodeDecodeError) as err:
        raise ConfigurationError(f"{where} authorization_file cannot be read") from err
    if not found.reveal().isprintable():
        raise ConfigurationError(f"{where} authorization_file must hold one line: the value of the header")
    return found

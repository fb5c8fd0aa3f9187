"""What is not to leave with an export: addresses, secrets and host names, replaced where they are recognised.

They are recognised by their form. Every pattern takes time in proportion to the text: it begins only where a word begins
and never goes back over what it has taken.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from openmanager_metadata.interaction import Interaction

EMAIL_ADDRESS, IP_ADDRESS, SECRET, HOST_NAME = "email", "ip", "secret", "host"
# In this order: an e-mail address has a host name in it, and a secret may have either.
ALL = (SECRET, EMAIL_ADDRESS, IP_ADDRESS, HOST_NAME)

_NAMED = r"api[_-]?key|access[_-]?key|secret[_-]?key|secret|token|passwd|password|passphrase|pwd|authorization"
_SECRETS = (
    # A key as a PEM file has it, to its end or to that of the text.
    re.compile(r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----(?:[^-]++|-(?!----END ))*+(?:-----END [A-Z ]{0,40}-----)?"),
    # password=…, "api_key": "…", --token …, as far as what is named is told apart from the name.
    re.compile(
        rf"(?i)(?P<name>(?:{_NAMED})[\"']?\s{{0,4}}+[:=]\s{{0,4}}+(?:bearer\s++|basic\s++)?[\"']?)[^\s\"',;&]{{1,}}+"
    ),
    re.compile(r"(?i)(?P<name>\b(?:bearer|basic)\s{1,4}+)[\w.~+/=-]{8,}+"),
    # postgresql://user:password@host
    re.compile(r"(?P<name>[a-z][a-z0-9+.-]{0,20}+://[^\s:/@]{0,100}+:)[^\s/@]{1,200}+(?=@)"),
    # What providers mark as theirs, and JSON Web Tokens.
    re.compile(r"(?<![\w-])(?:AKIA|ASIA)[0-9A-Z]{16}\b"),
    re.compile(r"(?<![\w-])(?:gh[pousr]_|github_pat_|glpat-|xox[abprs]-|sk-|pk_|sk_|rk_|hf_|npm_|pypi-)[\w-]{12,}+"),
    re.compile(r"(?<![\w-])eyJ[\w-]{8,}+\.[\w-]{8,}+(?:\.[\w-]*+)?"),
)
# Long words of letters and digits: hashes, keys, session ids.
_LONG = re.compile(r"(?<![\w+/=-])[\w+/=-]{24,}+")
_EMAIL = re.compile(r"(?<![\w.+%-])[\w.+%-]{1,64}+@[\w-]{1,63}+(?:\.[\w-]{1,63}+){1,8}+")
_IPV4 = re.compile(r"(?<![\w.])(?:(?:25[0-5]|2[0-4]\d|1?\d?\d)\.){3}(?:25[0-5]|2[0-4]\d|1?\d?\d)(?![\w]|\.\d)")
_IPV6 = re.compile(
    r"(?<![\w:.])(?=[0-9a-fA-F]{0,4}:[0-9a-fA-F:]{0,39}+)[0-9a-fA-F:]{2,39}+(?:(?<=:)(?:\d{1,3}\.){3}\d{1,3})?(?![\w:])"
)
_HOST = re.compile(r"(?<![\w.-])(?:[a-zA-Z0-9](?:[\w-]{0,62}+)\.){1,10}+[a-zA-Z][a-zA-Z0-9-]{1,23}+(?![\w-])")
# What has the form of a host name but is, more often, a file, a metric or a piece of code.
_NO_HOSTS = frozenset(
    {
        "py",
        "js",
        "ts",
        "go",
        "rs",
        "c",
        "h",
        "cpp",
        "java",
        "rb",
        "sh",
        "sql",
        "json",
        "yaml",
        "yml",
        "toml",
        "txt",
        "md",
        "csv",
        "log",
        "conf",
        "cfg",
        "ini",
        "html",
        "css",
        "xml",
        "parquet",
        "service",
        "utilization",
        "usage",
        "total",
        "count",
        "seconds",
        "bytes",
        "percent",
        "ratio",
        "rate",
        "time",
        "state",
        "e.g",
        "i.e",
    }
)

_CLEANED = ("session_id", "query", "response", "subject", "trace_id", "model", "intent", "rating_comment")


def redacted(found: Interaction, kinds: Collection[str]) -> Interaction:
    """Return an interaction with everything of some kinds replaced in its texts: `[email]`, `[ip]`, `[secret]`, `[host]`.

    The names of its own servers count as host names wherever they are.
    """
    if not kinds:
        return found
    hosts = found.servers if HOST_NAME in kinds else ()

    def clean(text: str) -> str:
        return redacted_text(text, kinds, hosts)

    changed: dict[str, Any] = {name: clean(getattr(found, name)) for name in _CLEANED}
    return replace(
        found,
        **changed,
        servers=("[host]",) * len(found.servers) if HOST_NAME in kinds else tuple(map(clean, found.servers)),
        metrics=tuple(map(clean, found.metrics)),
        labels={clean(name): clean(value) for name, value in found.labels.items()},
    )


def redacted_text(text: str, kinds: Collection[str], hosts: Sequence[str] = ()) -> str:
    """Return a text with everything of some kinds replaced; `hosts` are names that count as host names."""
    for kind in ALL:
        if kind in kinds:
            text = _REPLACED[kind](text, hosts)
    return text


def _secrets(text: str, _: Sequence[str]) -> str:
    for pattern in _SECRETS:
        has_name = "name" in pattern.groupindex
        text = pattern.sub(r"\g<name>[secret]" if has_name else "[secret]", text)
    return _LONG.sub(lambda match: "[secret]" if _looks_random(match[0]) else match[0], text)


def _looks_random(word: str) -> bool:
    """Say whether a long word is none that a person would write: digits among letters, in more than a few places."""
    changes = sum(left.isdigit() != right.isdigit() for left, right in pairwise(word))
    return changes >= 4 and any(map(str.isalpha, word))


def _hosts(text: str, hosts: Sequence[str]) -> str:
    text = _HOST.sub(lambda match: match[0] if match[0].rpartition(".")[2].lower() in _NO_HOSTS else "[host]", text)
    named = sorted({each for each in hosts if each}, key=len, reverse=True)
    if named:
        either = "|".join(map(re.escape, named))
        text = re.sub(rf"(?i)(?<![\w.-])(?:{either})(?![\w-])", "[host]", text)
    return text


def _ip(text: str, _: Sequence[str]) -> str:
    return _IPV6.sub(lambda match: "[ip]" if match[0].count(":") >= 2 else match[0], _IPV4.sub("[ip]", text))


_REPLACED = {
    SECRET: _secrets,
    EMAIL_ADDRESS: lambda text, _: _EMAIL.sub("[email]", text),
    IP_ADDRESS: _ip,
    HOST_NAME: _hosts,
}

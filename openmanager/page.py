"""Opaque page tokens, each bound to the query it came from."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json

from openmanager.errors import InvalidArgumentError, Reason, invalid

DEFAULT_SIZE = 100
MAX_SIZE = 1000

_DIGEST_BYTES = 8


def page_size(requested: int) -> int:
    """Return the size of a page: the default for 0, the maximum for more; negative is refused."""
    if requested < 0:
        raise invalid("page_size", "must not be negative")
    return min(requested or DEFAULT_SIZE, MAX_SIZE)


def encode_token(query: tuple[object, ...], after: list[str]) -> str:
    """Return the token of the page that begins after the key `after` of the given query."""
    body = json.dumps(after, ensure_ascii=True, separators=(",", ":")).encode()
    return base64.urlsafe_b64encode(_digest(query, body) + body).decode().rstrip("=")


def decode_token(query: tuple[object, ...], token: str, parts: int = 1) -> list[str] | None:
    """Return the key of `parts` texts that a token continues after, None for an empty token.

    Raises InvalidArgumentError, always with the same text, for a token that is damaged or of another query.
    """
    if not token:
        return None
    try:
        raw = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as err:
        raise _invalid_token() from err
    digest, body = raw[:_DIGEST_BYTES], raw[_DIGEST_BYTES:]
    if not body or digest != _digest(query, body):
        raise _invalid_token()
    try:
        after = json.loads(body)
    except ValueError as err:
        raise _invalid_token() from err
    if not isinstance(after, list) or len(after) != parts:
        raise _invalid_token()
    if not all(isinstance(part, str) and "\0" not in part for part in after):
        raise _invalid_token()
    return after


def _digest(query: tuple[object, ...], body: bytes) -> bytes:
    return hashlib.blake2b(repr(query).encode() + b"\0" + body, digest_size=_DIGEST_BYTES).digest()


def _invalid_token() -> InvalidArgumentError:
    return InvalidArgumentError("invalid page token", reason=Reason.INVALID_PAGE_TOKEN, field="page_token")

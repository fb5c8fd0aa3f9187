"""What an audit entry is made of, for those who record and the one who keeps; and what may be in it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum

from openmanager.errors import invalid, missing

MAX_SUBJECT, MAX_ACTION, MAX_OBJECT, MAX_REQUEST_ID, MAX_SMALL, MAX_SOURCE = 128, 200, 600, 128, 64, 256
MAX_NAMES, MAX_DETAIL, MAX_PERSONAL = 32, 512, 1024
MAX_CODE = 16
HASH_BYTES = 32
SOURCE = "source"
OWN = "audit."
# Names of the events that the log records of itself; docs/audit.md has what each says.
KEY_ROTATED, KEY_REPLACED = "audit.key_rotated", "audit.key_replaced"
CLOCK_SET_BACK, LOG_RESTORED = "audit.clock_set_back", "audit.log_restored"
SUBJECT_ERASED, PRUNED = "audit.subject_erased", "audit.pruned"

_OPAQUE = re.compile(r"[A-Za-z0-9._:/=+@-]*")
_NAME = re.compile(r"[a-z][a-z0-9_.]{0,63}")
_DETAIL = re.compile(r"[ -~]*")
_REASON = re.compile(r"[A-Z0-9_]*")
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f]")


class Kind(IntEnum):
    """What an entry is; the numbers are those of the format and of the contract."""

    INTENT = 1
    OUTCOME = 2
    EVENT = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """Who does what to what. Only `personal` and `source` may hold what a person wrote, or is known by."""

    actor: str
    action: str
    via: str = ""
    object: str = ""
    request_hash: bytes = b""
    request_id: str = ""
    trace_id: str = ""
    policy_version: str = ""
    details: Mapping[str, str] = field(default_factory=dict)
    subject: str = ""
    personal: Mapping[str, str] = field(default_factory=dict)
    source: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How it ended: `code` is a number of `google.rpc.Code`, `after_hash` the SHA-256 of what is there now, or empty."""

    code: int = 0
    reason: str = ""
    after_hash: bytes = b""


def opaque(text: str, limit: int = MAX_REQUEST_ID) -> str:
    """Return a text that may stand in an entry: itself, or a part of its hash where it could say more than it should."""
    if len(text) <= limit and _OPAQUE.fullmatch(text):
        return text
    return f"sha256:{hashlib.sha256(text.encode(errors='surrogatepass')).hexdigest()[:32]}"


def check_record(record: Record, name: str = "record") -> None:
    """Raise InvalidArgumentError, naming the field below `name`, for what cannot stand in an entry."""
    for key, limit in (("actor", MAX_SUBJECT), ("via", MAX_SUBJECT), ("action", MAX_ACTION)):
        check_opaque(f"{name}.{key}", getattr(record, key), limit, required=True)
    if record.action.startswith(OWN):
        raise invalid(f"{name}.action", f"must not begin with {OWN}: so the log names what it does itself")
    limits = {
        "object": MAX_OBJECT,
        "request_id": MAX_REQUEST_ID,
        "trace_id": MAX_SMALL,
        "policy_version": MAX_SMALL,
        "subject": MAX_SUBJECT,
    }
    for key, limit in limits.items():
        check_opaque(f"{name}.{key}", getattr(record, key), limit)
    check_hash(f"{name}.request_hash", record.request_hash)
    _check_map(f"{name}.details", record.details, MAX_DETAIL)
    for value in record.details.values():
        if not _DETAIL.fullmatch(value):
            raise invalid(f"{name}.details", "has a value with other characters than printable ASCII")
    _check_map(f"{name}.personal", record.personal, MAX_PERSONAL)
    if len(record.source) > MAX_SOURCE or _UNPRINTABLE.search(record.source):
        raise invalid(f"{name}.source", f"has a control character, or more than {MAX_SOURCE} characters")


def check_outcome(outcome: Outcome) -> None:
    """Raise InvalidArgumentError, naming the field, for no way to end."""
    if not 0 <= outcome.code <= MAX_CODE:
        raise invalid("code", "must be a number of google.rpc.Code, 0–16")
    if len(outcome.reason) > MAX_SMALL or not _REASON.fullmatch(outcome.reason):
        raise invalid("reason", f"must be at most {MAX_SMALL} characters of [A-Z0-9_]")
    check_hash("after_hash", outcome.after_hash)


def check_opaque(name: str, text: str, limit: int, *, required: bool = False) -> str:
    """Return a text of opaque ids; InvalidArgumentError when it is not one."""
    if required and not text:
        raise missing(name)
    if len(text) > limit or not _OPAQUE.fullmatch(text):
        raise invalid(name, f"must be at most {limit} characters of [A-Za-z0-9._:/=+@-]")
    return text


def check_hash(name: str, value: bytes) -> None:
    """Raise InvalidArgumentError unless the bytes are a SHA-256, or none."""
    if len(value) not in {0, HASH_BYTES}:
        raise invalid(name, f"must be {HASH_BYTES} bytes, or none")


def _check_map(name: str, found: Mapping[str, str], limit: int) -> None:
    if len(found) > MAX_NAMES:
        raise invalid(name, f"has more than {MAX_NAMES} names")
    for key, value in found.items():
        if not _NAME.fullmatch(key):
            raise invalid(name, f"has a name that is not of {_NAME.pattern}")
        if len(value) > limit or _UNPRINTABLE.search(value):
            raise invalid(name, f"has a value with a control character, or of more than {limit} characters")

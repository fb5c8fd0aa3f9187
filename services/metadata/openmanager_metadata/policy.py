"""Policies: durable settings and records, as documents of a closed list of kinds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from openmanager import page
from openmanager.errors import AbortedError, NotFoundError, Reason, ResourceExhaustedError, invalid
from openmanager.frame import check_server_id, check_text
from openmanager_metadata.audit import rule as audit_rule
from openmanager_metadata.backends import Database, Row
from openmanager_metadata.inventory import THRESHOLDS, check_thresholds
from openmanager_metadata.sql import aware

KINDS = ("thresholds", "fault", "retention", "audit", "rule", "silence")
ALERT_CONDITIONS = ("threshold", "anomaly", "exhaustion", "store", "absence")
MAX_DOCUMENT_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """One policy."""

    kind: str
    id: str
    document: Mapping[str, Any]
    etag: str
    update_time: datetime


def check_kind(kind: str, name: str = "kind") -> str:
    """Return a kind; InvalidArgumentError when there is none such."""
    if kind not in KINDS:
        raise invalid(name, f"must be one of {', '.join(KINDS)}")
    return kind


def check_document(kind: str, document: Mapping[str, Any]) -> str:
    """Return a document as JSON; an error naming the field when it is not one of its kind."""
    if kind == "thresholds":
        known = {f"{figure}_{level}" for figure in THRESHOLDS for level in ("warning", "critical")}
        for name, value in document.items():
            if name not in known or isinstance(value, bool) or not isinstance(value, int | float):
                raise invalid(f"policy.document.{name[:40]}", f"must be a number; known are {', '.join(sorted(known))}")
        check_thresholds("policy.document", document)
    if kind == "fault":
        _check_fault(document)
    if kind == "retention":
        _check_retention(document)
    if kind == audit_rule.KIND:
        audit_rule.rule(document)
    if kind == "rule":
        _check_alert_rule(document)
    if kind == "silence":
        _check_silence(document)
    _check_printable(document)
    text = json.dumps(document, allow_nan=False)
    if len(text.encode()) > MAX_DOCUMENT_BYTES:
        raise ResourceExhaustedError(
            "policy.document is larger than 64 KiB", reason=Reason.MESSAGE_TOO_LARGE, field="policy.document"
        )
    return text


def _check_fault(document: Mapping[str, Any]) -> None:
    """Raise InvalidArgumentError, naming the field, for what no simulation could replay."""
    servers = document.get("servers")
    if not isinstance(servers, list) or not servers or not all(isinstance(each, str) and each for each in servers):
        raise invalid("policy.document.servers", "must be a list of server ids")
    for name in ("id", "pattern"):
        if not isinstance(document.get(name), str) or not document[name]:
            raise invalid(f"policy.document.{name}", "must be a text")
    numbers = {name: _check_whole(document, name) for name in ("start_nanos", "end_nanos", "seed")}
    if numbers["end_nanos"] <= numbers["start_nanos"]:
        raise invalid("policy.document.end_nanos", "must be after start_nanos")
    severity = document.get("severity")
    if isinstance(severity, bool) or not isinstance(severity, int | float) or not 0 < severity <= 1:
        raise invalid("policy.document.severity", "must be more than 0 and at most 1")


def _check_retention(document: Mapping[str, Any]) -> None:
    """Raise InvalidArgumentError for what is no list of rules and holds; what they mean is for timeseries to say."""
    for name in document:
        if name not in {"rules", "holds"}:
            raise invalid(f"policy.document.{name[:40]}", "must be rules or holds")
    for name in ("rules", "holds"):
        entries = document.get(name)
        if not isinstance(entries, list) or not all(isinstance(each, dict) for each in entries):
            raise invalid(f"policy.document.{name}", "must be a list of objects")


def _check_alert_rule(document: Mapping[str, Any]) -> None:
    """Raise InvalidArgumentError for what is no rule of alerts; what it means is for analysis to say."""
    if not isinstance(document.get("name"), str) or not document["name"]:
        raise invalid("policy.document.name", "must be a text")
    conditions = [document.get(name) for name in ALERT_CONDITIONS if name in document]
    if len(conditions) != 1 or not isinstance(conditions[0], dict):
        raise invalid("policy.document", f"must have one of {', '.join(ALERT_CONDITIONS)}, an object")


def _check_silence(document: Mapping[str, Any]) -> None:
    """Raise InvalidArgumentError for what is no silence; what it means is for analysis to say."""
    for name in ("matcher", "comment", "creator"):
        if not isinstance(document.get(name), str):
            raise invalid(f"policy.document.{name}", "must be a text")
    if not document["matcher"]:
        raise invalid("policy.document.matcher", "must not be empty")
    start, end = (_check_whole(document, name) for name in ("start_nanos", "end_nanos"))
    if end < start:
        raise invalid("policy.document.end_nanos", "must not be before start_nanos")


def _check_whole(document: Mapping[str, Any], name: str) -> int:
    text = document.get(name)
    if not isinstance(text, str) or not text.isascii() or not text.isdigit() or len(text) > 19:
        raise invalid(f"policy.document.{name}", "must be a whole number from 0 on, as a text")
    return int(text)


def _check_printable(value: Any) -> None:
    match value:
        case str():
            if "\0" in value:
                raise invalid("policy.document", "has a control character")
        case Mapping():
            for name, part in value.items():
                _check_printable(name)
                _check_printable(part)
        case list():
            for part in value:
                _check_printable(part)


def _policy(row: Row) -> Policy:
    return Policy(
        kind=row["kind"],
        id=row["id"],
        document=json.loads(row["document"]),
        etag=f"v{row['version']}",
        update_time=aware(row["updated_at"]),
    )


class Policies:
    """Policies in a database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get(self, kind: str, policy_id: str) -> Policy:
        """Return one policy."""
        rows = await self._database.fetch(
            "SELECT * FROM policies WHERE kind = $1 AND id = $2", check_kind(kind), check_server_id(policy_id, "id")
        )
        if not rows:
            raise _not_found(kind, policy_id)
        return _policy(rows[0])

    async def list(self, kind: str, size: int, token: str) -> tuple[Sequence[Policy], str]:
        """Return a page of the policies of a kind, and the next token."""
        size = page.page_size(size)
        after = page.decode_token((check_kind(kind),), token)
        rows = await self._database.fetch(
            'SELECT * FROM policies WHERE kind = $1 AND id COLLATE "C" > $2 ORDER BY id COLLATE "C" LIMIT $3',
            kind,
            after[0] if after else "",
            size + 1,
        )
        more = page.encode_token((kind,), [rows[size - 1]["id"]]) if len(rows) > size else ""
        return [_policy(row) for row in rows[:size]], more

    async def all(self) -> Sequence[Policy]:
        """Return all policies."""
        return [_policy(row) for row in await self._database.fetch("SELECT * FROM policies")]

    async def update(self, kind: str, policy_id: str, document: Mapping[str, Any], etag: str) -> Policy:
        """Create or replace a policy; AbortedError when an etag is given and is not the stored one, `v0` when there is one."""
        text = check_document(check_kind(kind, "policy.kind"), document)
        check_text("policy.etag", etag, 64)
        rows = await self._database.fetch(
            "INSERT INTO policies AS p (kind, id, document) SELECT $1::text, $2::text, $3::jsonb"
            " WHERE $4::text IN ('', 'v0') OR EXISTS (SELECT FROM policies WHERE kind = $1::text AND id = $2::text)"
            " ON CONFLICT (kind, id) DO UPDATE SET document = excluded.document, version = p.version + 1,"
            " updated_at = now() WHERE $4::text = '' OR 'v' || p.version = $4::text RETURNING *",
            kind,
            check_server_id(policy_id, "policy.id"),
            text,
            etag,
        )
        if not rows:
            raise AbortedError("the policy was changed in between: read it again")
        return _policy(rows[0])

    async def delete(self, kind: str, policy_id: str, etag: str) -> Policy:
        """Delete a policy."""
        check_text("etag", etag, 64)
        rows = await self._database.fetch(
            "DELETE FROM policies WHERE kind = $1 AND id = $2 AND ($3 = '' OR 'v' || version = $3) RETURNING *",
            check_kind(kind),
            check_server_id(policy_id, "id"),
            etag,
        )
        if not rows:
            await self.get(kind, policy_id)
            raise AbortedError("the policy was changed in between: read it again")
        return _policy(rows[0])


def _not_found(kind: str, policy_id: str) -> NotFoundError:
    return NotFoundError("there is no such policy", resource=f"policy/{kind}/{policy_id}")

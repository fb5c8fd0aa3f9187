"""Configuration of the metadata service."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from openmanager.config import Secret, setting


@dataclass(frozen=True, slots=True, kw_only=True)
class MetadataConfig:
    """The section `metadata`."""

    database_url: Secret = setting(
        Secret(""), "Where PostgreSQL is: postgresql://…; several hosts are tried in turn.", env="DATABASE_URL"
    )
    migration_url: Secret = setting(
        Secret(""),
        "The same database as the role that owns its tables, used when they are not of this version; then the role of"
        " `database_url` gets its rights, and needs no others.",
        env="DATABASE_MIGRATION_URL",
    )
    connections: int = setting(10, "Connections to PostgreSQL, at most.")
    connect_timeout: timedelta = setting(timedelta(milliseconds=500), "How long connecting may take.")
    acquire_timeout: timedelta = setting(timedelta(milliseconds=100), "How long a call waits for a connection.")
    statement_timeout: timedelta = setting(
        timedelta(seconds=1), "How long one statement may take; half of it waiting for a lock."
    )
    statement_cache: int = setting(100, "Prepared statements a connection; 0 behind PgBouncer.")
    snapshot_interval: timedelta = setting(timedelta(seconds=5), "How often the inventory is copied to memory.")
    audit_key: Secret = setting(
        Secret(""),
        "Ed25519 key in PEM that signs the audit log's checkpoints; the one before may follow it, to hand over.",
    )
    audit_checkpoints: str = setting(
        "", "File that checkpoints of the audit log are appended to, best on another disk; `-` is standard output."
    )
    audit_checkpoint_entries: int = setting(1000, "A checkpoint is made after so many entries.")
    audit_checkpoint_interval: timedelta = setting(timedelta(seconds=60), "And after so long, when there are any.")
    snapshot_servers: int = setting(20_000, "Servers that the copy in memory holds, at most.")
    identity_key: Secret = setting(
        Secret(""),
        "What keys are hashed and tokens are signed with: at least 32 characters; without it nobody can be invited.",
    )
    admin_file: Path = setting(Path(), "Where the invitation of the first administrator is written; empty: nowhere.")

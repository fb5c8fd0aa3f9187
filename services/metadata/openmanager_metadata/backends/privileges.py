"""What the application's role may do in a database that another role owns.

It changes rows, never tables; and of the audit it does no more than add to it and read it.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote, urlsplit

_ALL = "SELECT, INSERT, UPDATE, DELETE"
_RIGHTS = {
    "schema_migrations": "SELECT",
    "audit_log": "SELECT",
    "audit_entries": "SELECT, INSERT",
    "audit_tiles": "SELECT, INSERT",
    "audit_checkpoints": "SELECT, INSERT",
    "audit_subject_keys": "SELECT, INSERT, DELETE",
    "audit_holds": "SELECT, INSERT, DELETE",
}
_TABLES = "SELECT tablename FROM pg_tables WHERE schemaname = current_schema() AND tableowner = current_user"


def role_of(url: str) -> str:
    """Return the role that a URL connects as; empty where it names none."""
    return unquote(urlsplit(url).username or "")


async def grant(connection: Any, role: str) -> None:
    """Give a role what it needs of the tables of the connection's own role, and take away what it does not."""
    async with connection.transaction():
        name = await connection.fetchval("SELECT quote_ident($1)", role)
        schema = await connection.fetchval("SELECT quote_ident(current_schema())")
        await connection.execute(f"GRANT USAGE ON SCHEMA {schema} TO {name}")
        for row in await connection.fetch(_TABLES):
            table = await connection.fetchval("SELECT quote_ident($1)", row["tablename"])
            await connection.execute(f"REVOKE ALL ON {table} FROM {name}")
            await connection.execute(f"GRANT {_RIGHTS.get(row['tablename'], _ALL)} ON {table} TO {name}")
        await connection.execute(f"GRANT EXECUTE ON FUNCTION audit_prune(bigint) TO {name}")
        await connection.execute(f"GRANT USAGE ON ALL SEQUENCES IN SCHEMA {schema} TO {name}")

"""`openmanager audit`: who changed what, who was refused, and whether anybody has changed the log since."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from openmanager.cli import connection, part, render, selection
from openmanager.cli.audit_export import write_checkpoints
from openmanager.cli.audit_policy import COMMANDS
from openmanager.cli.audit_text import entries_table, print_entry, print_status, range_filter
from openmanager.cli.audit_verdict import json_of, print_verdict, show_entries, verify_files
from openmanager.cli.progress import Bar
from openmanager.cli.query import moment
from openmanager.errors import FailedPreconditionError

if TYPE_CHECKING:
    from openmanager.cli.audit_report import Report
    from openmanager.client import Client

SHOWN = 100


@click.group(invoke_without_command=True, epilog=render.examples("audit", "audit list --last 1h", "audit report"))
@render.json_option
@click.pass_context
def audit(ctx: click.Context, *, as_json: bool) -> None:
    """Show how the audit log is; list, export and verify it; report on it.

    Every change of settings, people and servers is in it, and who was refused. Verifying needs no server.
    """
    if ctx.invoked_subcommand is None:
        connection.run(lambda client: _status(client, as_json=as_json))


@audit.command(
    "list",
    epilog=render.examples(
        "audit list --last 1d", "audit list --filter 'code = PERMISSION_DENIED'", "audit list --filter 'object : web-1'"
    ),
)
@click.option("--filter", "text", metavar="FILTER", default="", help="Such as “actor = users/3f AND kind != INTENT”.")
@selection.range_options
@click.option("--limit", type=click.IntRange(1), default=SHOWN, show_default=True, help="How many, at most.")
@click.option("--oldest-first", is_flag=True, help="In the order they were recorded.")
@click.option("--personal", is_flag=True, help="Also what is known of people; that this was read is recorded.")
@render.json_option
def list_command(**options: Any) -> None:
    """List entries, the newest first."""
    connection.run(lambda client: _list(client, options))


@audit.command("show", epilog=render.examples("audit show 1042"))
@click.argument("number", type=click.IntRange(1))
@render.json_option
def show_command(*, number: int, as_json: bool) -> None:
    """Show one entry whole, and check the proof that the newest checkpoint covers it."""
    connection.run(lambda client: _show(client, number, as_json=as_json))


@audit.command("public-key", epilog=render.examples("audit public-key > audit-public.pem"))
def public_key_command() -> None:
    """Print the public key that checkpoints are verified with, in PEM. Keep it elsewhere: today's says what today's signed."""
    connection.run(_public_key)


@audit.command("export", epilog=render.examples("audit export audit.log", "audit export audit.log --append"))
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--append", is_flag=True, help="Go on with FILE after its last whole entry.")
@click.option("--force", is_flag=True, help="Overwrite FILE.")
@render.json_option
def export_command(*, file: Path, append: bool, force: bool, as_json: bool) -> None:
    """Write the log to FILE, as `openmanager audit verify` reads it."""
    if append and force:
        raise click.UsageError("--append and --force exclude each other")
    if file.exists() and not append and not force:
        raise FailedPreconditionError(f"{file} exists: --append goes on with it, --force overwrites it")
    going_on = append and file.exists()
    first, last = connection.run(lambda client: _export(client, file, append=going_on))
    if as_json:
        document = {"file": str(file), "first_number": first, "last_number": last, "entry_count": last - first + 1}
        click.echo(json.dumps(document, indent=2))
        return
    what = f"{show_entries(last - first + 1)} up to number {last:,}" if last >= first else "nothing new"
    click.echo(f"{what} in {file}, {render.show_bytes(file.stat().st_size)}", err=True)


@audit.command(
    "verify",
    epilog=render.examples("audit verify audit.log --checkpoints /mnt/other/checkpoints.jsonl --key audit-public.pem"),
)
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--checkpoints",
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="The checkpoints, best from where they were copied to.",
)
@click.option(
    "--key",
    "keys",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="PEM",
    help="The public key of the first checkpoint; may be repeated.",
)
@click.option("--tolerance", default=5.0, show_default=True, metavar="SECONDS", help="How far times may go back.")
@render.json_option
def verify_command(*, file: Path, checkpoints: Path, keys: tuple[Path, ...], tolerance: float, as_json: bool) -> None:
    """Verify an exported log without a server. Exit code 1 when anything was changed.

    Any change, deletion, insertion or reordering up to the last checkpoint is found.
    """
    verdict = verify_files(file, checkpoints, keys, tolerance=tolerance)
    if as_json:
        click.echo(json_of(verdict))
    else:
        print_verdict(verdict)
    if not verdict.is_sound:
        sys.exit(1)


@audit.command("checkpoints", epilog=render.examples("audit checkpoints", "audit checkpoints -o checkpoints.jsonl"))
@click.option("--limit", type=click.IntRange(1), default=SHOWN, show_default=True, help="How many, at most, to show.")
@click.option(
    "--output", "-o", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Write all to FILE instead."
)
@render.json_option
def checkpoints_command(*, limit: int, output: Path | None, as_json: bool) -> None:
    """List checkpoints, the newest first; or write them to a file for `openmanager audit verify`.

    Those in the second place are worth more: who replaces the log can replace these here too.
    """
    connection.run(lambda client: _checkpoints(client, limit, output, as_json=as_json))


@audit.command("erase", epilog=render.examples("audit erase users/3f0c"))
@click.argument("subject")
@click.option("--yes", is_flag=True, help="Do not ask.")
@render.json_option
def erase_command(*, subject: str, yes: bool, as_json: bool) -> None:
    """Make the personal data of SUBJECT in all entries unreadable for ever. The entries stay, and verify as before."""
    if not yes:
        click.confirm(
            f"Delete the key of {subject}? Nobody will ever read its personal data again", abort=True, err=True
        )
    connection.run(lambda client: _erase(client, subject, as_json=as_json))


@audit.command(
    "report",
    epilog=render.examples(
        "audit report --from 2026-07-01 --to 2026-10-01 -o report.html", "audit report --from 30d --format json"
    ),
)
@click.option("--from", "start", callback=moment, metavar="TIME", help="From then on: 2026-07-01, 30d (ago).")
@click.option("--to", "end", callback=moment, metavar="TIME", help="Until then, exclusive.  [default: now]")
@click.option("--format", "form", type=click.Choice(["html", "json"]), default="html", show_default=True)
@click.option(
    "--output",
    "-o",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Where to.  [default: stdout]",
)
@click.option(
    "--checkpoints",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Verify against these.  [default: those beside the log]",
)
@click.option(
    "--key",
    "keys",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="PEM",
    help="The public key of the first checkpoint; may be repeated.",
)
def report_command(**options: Any) -> None:
    """Write a report for an auditor: who may do what, who changed what, refusals, holds, deletions, keys, verification.

    Exit code 1 when the log does not verify; the report says why.
    """
    from openmanager.cli import audit_page, audit_report

    if options["start"] and options["end"] and options["start"] >= options["end"]:
        raise click.UsageError("the range ends before it begins")
    report = connection.run(lambda client: _report(client, options))
    text = audit_report.as_json(report) if options["form"] == "json" else audit_page.page_of(report)
    output: Path | None = options["output"]
    if output is None:
        click.echo(text)
    else:
        part.write(output, text.encode())
        sound = "the log verifies" if report.verdict.is_sound else "the log does NOT verify"
        click.echo(f"{show_entries(report.entry_count)} in {output}; {sound}", err=True)
    if not report.verdict.is_sound:
        sys.exit(1)


# ── reading ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def _status(client: Client, *, as_json: bool) -> None:
    from openmanager.api.metadata.v1 import audit_pb2
    from openmanager.client import audit as codec
    from openmanager.client import rpc

    reply = await client.rpc.call(rpc.GET_AUDIT_STATUS, audit_pb2.GetAuditStatusRequest())
    if as_json:
        render.print_json(reply)
        return
    print_status(codec.status(reply))


async def _list(client: Client, options: Mapping[str, Any]) -> None:
    from openmanager.api.metadata.v1 import audit_pb2
    from openmanager.client import audit as codec
    from openmanager.client import rpc

    start, end = selection.range_of(options)
    request = audit_pb2.ListAuditEntriesRequest(
        filter=range_filter(options["text"], start, end),
        order_by="number" if options["oldest_first"] else "",
        view=audit_pb2.AUDIT_VIEW_FULL if options["personal"] else audit_pb2.AUDIT_VIEW_BASIC,
    )
    found = []
    async for page in client.rpc.pages(rpc.LIST_AUDIT_ENTRIES, request, limit=options["limit"]):
        if options["as_json"]:
            render.print_json(page, line=True)
        found += [codec.entry(each) for each in page.entries]
    if options["as_json"]:
        return
    if not found:
        click.echo("no entries")
        return
    out = render.console()
    out.print(entries_table(found[: options["limit"]], personal=options["personal"]))


async def _public_key(client: Client) -> None:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    from openmanager.api.metadata.v1 import audit_pb2
    from openmanager.client import rpc

    reply = await client.rpc.call(rpc.GET_AUDIT_STATUS, audit_pb2.GetAuditStatusRequest())
    if not reply.public_key:
        raise FailedPreconditionError("the audit log is not signed: metadata.audit_key is not set")
    key = Ed25519PublicKey.from_public_bytes(reply.public_key)
    click.echo(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode(), nl=False)


async def _show(client: Client, number: int, *, as_json: bool) -> None:
    from openmanager.api.metadata.v1 import audit_pb2
    from openmanager.client import audit as codec
    from openmanager.client import rpc

    reply = await client.rpc.call(rpc.GET_AUDIT_ENTRY, audit_pb2.GetAuditEntryRequest(number=number))
    if as_json:
        render.print_json(reply)
        return
    found = codec.proven(reply)
    print_entry(found)
    if found.checkpoint is not None and not found.is_proven:
        sys.exit(1)


async def _checkpoints(client: Client, limit: int, output: Path | None, *, as_json: bool) -> None:
    from openmanager.api.metadata.v1 import audit_pb2
    from openmanager.client import rpc

    if output is not None:
        count = await write_checkpoints(client, output)
        click.echo(f"{render.show_count(count, 'checkpoint')} in {output}", err=True)
        return
    request = audit_pb2.ListCheckpointsRequest(order_by="size desc")
    made = render.table("entries", "time", "root", "key", right=("entries",))
    async for page in client.rpc.pages(rpc.LIST_CHECKPOINTS, request, limit=limit):
        if as_json:
            render.print_json(page, line=True)
        for each in page.checkpoints[:limit]:
            time = render.show_moment(each.create_time.ToDatetime(tzinfo=UTC))
            key = f"{each.key_id.hex()[:8]}…" if each.key_id else "not signed"
            made.add_row(f"{each.size:,}", time, f"{each.root.hex()[:24]}…", key)
    if not as_json:
        render.console().print(made) if made.row_count else click.echo("no checkpoints")


# ── writing ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def _export(client: Client, file: Path, *, append: bool) -> tuple[int, int]:
    from openmanager.cli.audit_export import export

    with part.told(file), Bar("exporting") as bar:
        return await export(client, file, append=append, bar=bar)


async def _erase(client: Client, subject: str, *, as_json: bool) -> None:
    from openmanager.api.metadata.v1 import audit_pb2
    from openmanager.client import rpc

    reply = await client.rpc.call(rpc.ERASE_SUBJECT, audit_pb2.EraseSubjectRequest(subject=subject))
    if as_json:
        render.print_json(reply)
    elif reply.erased_key_count:
        click.echo(f"the personal data of {subject} can never be read again (entry {reply.number})")
    else:
        click.echo(f"{subject} has no personal data here (entry {reply.number} says that it was asked for)")


async def _report(client: Client, options: Mapping[str, Any]) -> Report:
    from openmanager.cli import audit_report

    end = options["end"] or datetime.now(UTC)
    with Bar("reading") as bar:
        return await audit_report.collect(
            client, options["start"], end, bar, checkpoints=options["checkpoints"], keys=options["keys"]
        )


for each in COMMANDS:
    audit.add_command(each)

"""`openmanager audit`: who changed what, who was refused, and whether anybody has changed the log since."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from openmanager.cli import connection, render, selection
from openmanager.cli.progress import Bar
from openmanager.cli.query import moment
from openmanager.errors import FailedPreconditionError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from rich.table import Table

    from openmanager.audit_file import Verdict
    from openmanager.cli.audit_report import Report
    from openmanager.client import AuditEntry, AuditStatus, Client
    from openmanager.client.audit import ProvenEntry

SHOWN = 100
CODES = (
    "OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS",
    "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED",
    "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED",
)  # fmt: skip


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
        _print_verdict(verdict)
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
    from openmanager.cli import audit_report

    if options["start"] and options["end"] and options["start"] >= options["end"]:
        raise click.UsageError("the range ends before it begins")
    report = connection.run(lambda client: _report(client, options))
    text = audit_report.as_json(report) if options["form"] == "json" else audit_report.as_html(report)
    output: Path | None = options["output"]
    if output is None:
        click.echo(text)
    else:
        with _writing(output):
            output.write_text(text, encoding="utf-8")
        sound = "the log verifies" if report.verdict.is_sound else "the log does NOT verify"
        click.echo(f"{show_entries(report.entry_count)} in {output}; {sound}", err=True)
    if not report.verdict.is_sound:
        sys.exit(1)


# ── verifying ──────────────────────────────────────────────────────────────────────────────────────────────────────


def verify_files(file: Path, checkpoints: Path, keys: tuple[Path, ...], *, tolerance: float = 5.0) -> Verdict:
    """Return what is wrong with a log, showing how far it is."""
    from openmanager.audit_file import verify

    known = [_key(path) for path in keys]
    with Bar("verifying") as bar:

        def show(done: int, total: int) -> None:
            bar.show(done, total, f"{render.show_bytes(done)} of {render.show_bytes(total)}")

        try:
            return verify(file, checkpoints, known, tolerance_nanos=round(tolerance * 1e9), progress=show)
        except OSError as err:
            raise FailedPreconditionError(f"{err.filename or file} cannot be read: {err.strerror}") from err


def _key(path: Path) -> Ed25519PublicKey:
    from openmanager.audit_file import public_key

    try:
        return public_key(path.read_bytes())
    except (ValueError, TypeError) as err:
        raise click.BadParameter(f"{path} is not an Ed25519 public key in PEM", param_hint="--key") from err


def json_of(verdict: Verdict) -> str:
    """Return a verdict as JSON."""
    return json.dumps(verdict_document(verdict), indent=2)


def verdict_document(verdict: Verdict) -> dict[str, Any]:
    """Return a verdict as programs read it."""
    from dataclasses import asdict

    return {"sound": verdict.is_sound, **asdict(verdict), "uncovered_count": verdict.uncovered_count}


def _print_verdict(found: Verdict) -> None:
    from rich.text import Text

    out = render.console()
    for problem in found.problems:
        out.print(Text(f"✗ {problem.where}: {problem.what}", style="bold red"), soft_wrap=True)
    for notice in found.notices:
        out.print(Text(f"! {notice}", style="yellow"), soft_wrap=True)
    if found.is_sound:
        signed = f", {found.signed_count:,} of them signed" if found.signed_count else ""
        what = f"✓ {show_entries(found.entry_count)}, numbers {found.first_number:,}–{found.last_number:,}, are as they were"
        out.print(Text(f"{what}: {render.show_count(found.checkpoint_count, 'checkpoint')}{signed}", style="green"))
    if found.is_sound and found.uncovered_count:
        out.print(
            f"  {show_entries(found.uncovered_count)} after the last checkpoint ({found.covered_number:,}) are not covered: "
            "nothing is said of them",
            soft_wrap=True,
        )


def show_entries(count: int) -> str:
    """Return a number of entries."""
    return f"{count:,} {'entry' if count == 1 else 'entries'}"


# ── reading ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def _status(client: Client, *, as_json: bool) -> None:
    from openmanager.api.metadata.v1 import audit_pb2
    from openmanager.client import audit as codec
    from openmanager.client import rpc

    reply = await client.rpc.call(rpc.GET_AUDIT_STATUS, audit_pb2.GetAuditStatusRequest())
    if as_json:
        render.print_json(reply)
        return
    _print_status(codec.status(reply))


def _print_status(found: AuditStatus) -> None:
    from rich.text import Text

    out = render.console()
    rows = render.table("", "")
    rows.show_header = False
    rows.add_row(
        "entries", f"{found.size:,}" + (f", kept from {found.first_number:,}" if found.first_number > 1 else "")
    )
    rows.add_row("root", found.root.hex())
    checkpoint = found.checkpoint
    if checkpoint is not None:
        how = f"signed with {checkpoint.key_id.hex()[:16]}…" if checkpoint.key_id else "not signed"
        age = render.show_age(datetime.fromtimestamp(checkpoint.time_unix_nanos / 1e9, UTC))
        rows.add_row("checkpoint", f"of {show_entries(checkpoint.size)}, {age} ago, {how}")
    rows.add_row("not covered yet", show_entries(found.uncovered_count))
    if found.copied_size:
        rows.add_row("second place", f"has up to {show_entries(found.copied_size)}")
    out.print(rows)
    if found.orphaned_intent_count:
        some = ", ".join(f"{each}" for each in found.orphaned_intents[:10])
        what = render.show_count(found.orphaned_intent_count, "intent")
        out.print(
            Text(f"! {what} without an outcome, whether it was done is not known: {some}", style="yellow"),
            soft_wrap=True,
        )
    for warning in found.warnings:
        out.print(Text(f"! {warning}", style="yellow"), soft_wrap=True)


def range_filter(text: str, start: datetime | None, end: datetime | None) -> str:
    """Return a filter that also chooses a half-open range of time."""
    parts = [f"({text})"] if text else []
    parts += [f'create_time >= "{start.astimezone(UTC).isoformat()}"'] if start else []
    parts += [f'create_time < "{end.astimezone(UTC).isoformat()}"'] if end else []
    return " AND ".join(parts)


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
    out.print(_entries_table(found[: options["limit"]], personal=options["personal"]))


def _entries_table(entries: list[AuditEntry], *, personal: bool) -> Table:
    columns = ["number", "time", "who", "what", "object", "how", *(["personal"] if personal else [])]
    made = render.table(*columns, right=("number",))
    for column in made.columns[2:5]:
        column.no_wrap, column.overflow = False, "fold"
    for entry in entries:
        cells = [
            f"{entry.number}",
            entry.create_time.astimezone().strftime("%m-%d %H:%M:%S") if entry.create_time else render.NOTHING,
            entry.actor,
            show_action(entry.action),
            entry.object or render.NOTHING,
            show_ending(entry),
        ]
        if personal:
            cells.append(show_personal(entry))
        made.add_row(*cells)
    return made


def show_action(action: str) -> str:
    """Return an action, of a method its name alone."""
    return action.rpartition("/")[2]


def show_ending(entry: AuditEntry) -> str:
    """Return how something ended."""
    if entry.kind.name == "INTENT":
        return "intent, no outcome" if entry.orphaned else "intent"
    code = CODES[entry.code] if entry.code < len(CODES) else str(entry.code)
    times = f" ×{entry.occurrence_count:,}" if entry.occurrence_count > 1 else ""
    return f"{code}{times}"


def show_personal(entry: AuditEntry) -> str:
    """Return the personal data of an entry."""
    if entry.erased:
        return "erased"
    return ", ".join(f"{name}={value}" for name, value in sorted(entry.personal.items())) or render.NOTHING


async def _show(client: Client, number: int, *, as_json: bool) -> None:
    from openmanager.api.metadata.v1 import audit_pb2
    from openmanager.client import audit as codec
    from openmanager.client import rpc

    reply = await client.rpc.call(rpc.GET_AUDIT_ENTRY, audit_pb2.GetAuditEntryRequest(number=number))
    if as_json:
        render.print_json(reply)
        return
    _print_entry(codec.proven(reply))


def _print_entry(found: ProvenEntry) -> None:
    from rich.text import Text

    entry, out = found.entry, render.console()
    rows = render.table("", "")
    rows.show_header = False
    rows.columns[1].no_wrap, rows.columns[1].overflow = False, "fold"
    fields = {
        "number": f"{entry.number}",
        "time": render.show_moment(entry.create_time),
        "kind": entry.kind.name.lower(),
        "who": entry.actor,
        "by way of": entry.via,
        "what": entry.action,
        "object": entry.object,
        "how": show_ending(entry),
        "reason": entry.reason,
        "intent": f"{entry.intent_number}" if entry.intent_number else "",
        "request": entry.request_id,
        "request hash": entry.request_hash.hex(),
        "after hash": entry.after_hash.hex(),
        "trace": entry.trace_id,
        "policy": entry.policy_version,
        "subject": entry.subject,
        "personal": show_personal(entry) if entry.subject else "",
        **entry.details,
    }
    for name, value in fields.items():
        if value:
            rows.add_row(name, value)
    out.print(rows)
    if found.checkpoint is None:
        out.print(Text("! no checkpoint covers it yet", style="yellow"))
    elif found.is_proven:
        out.print(Text(f"✓ proven by the checkpoint of {show_entries(found.checkpoint.size)}", style="green"))
    else:
        out.print(
            Text(f"✗ the checkpoint of {show_entries(found.checkpoint.size)} does not cover it", style="bold red")
        )
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


async def write_checkpoints(client: Client, path: Path) -> int:
    """Write all checkpoints to a file; return how many."""
    lines = [each.line() async for each in client.audit.checkpoints()]
    with _writing(path):
        await asyncio.to_thread(path.write_text, "".join(lines), "ascii")
    return len(lines)


# ── writing ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def _export(client: Client, file: Path, *, append: bool) -> tuple[int, int]:
    from openmanager.cli.audit_export import export

    with _writing(file), Bar("exporting") as bar:
        return await export(client, file, append=append, bar=bar)


@contextlib.contextmanager
def _writing(file: Path) -> Iterator[None]:
    """Say in one sentence that a file cannot be written."""
    try:
        yield
    except OSError as err:
        raise FailedPreconditionError(f"{file} cannot be written: {err.strerror}") from err


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

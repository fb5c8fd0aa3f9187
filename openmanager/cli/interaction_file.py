"""Exports of interactions to a file, which go on where they were interrupted."""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from openmanager.cli import render
from openmanager.cli.part import PartFile, told
from openmanager.cli.progress import Bar, show_rate
from openmanager.cli.sink import Stdout, table_of
from openmanager.errors import OpenManagerError

if TYPE_CHECKING:
    from openmanager.api.metadata.v1.interaction_pb2 import ExportInteractionsRequest, InteractionExportChunk
    from openmanager.client import Client

FORMATS = {".jsonl": "jsonl", ".parquet": "parquet"}
STDOUT = "-"
_LENGTH_BYTES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What is to be exported, and where to; without a path to standard output."""

    request: ExportInteractionsRequest
    path: Path | None
    form: str
    resume: bool
    force: bool

    @classmethod
    def of(cls, *, file: str, form: str | None, filter_: str, redact: bool, resume: bool, force: bool) -> Job:
        """Return the job of a command line; a usage error for one that is none."""
        from openmanager.client import InteractionFormat, Redaction
        from openmanager.client.interactions import export_request

        path = None if file == STDOUT else Path(file)
        form = form or (FORMATS.get(path.suffix, "") if path else "jsonl")
        if not form:
            raise click.UsageError(f"{file} ends in none of {', '.join(FORMATS)}: say which --format it is")
        if path is None and (resume or form == "parquet"):
            raise click.UsageError("standard output takes JSON lines, and cannot be resumed")
        redactions = tuple(Redaction) if redact else ()
        request = export_request(filter_, form=InteractionFormat(form.upper()), redactions=redactions)
        return cls(request=request, path=path, form=form, resume=resume, force=force)


async def export(client: Client, job: Job, *, quiet: bool) -> dict[str, Any]:
    """Do it; return what was done."""
    from openmanager.client.interactions import export_parts

    with told(job.path):
        out = _open(job)
    began, count, estimated = time.monotonic(), int(out.state.get("rows", 0)), 0
    first = count
    try:
        with Bar("exporting") as bar:
            async for reply in export_parts(
                client.rpc, job.request, lambda err: bar.retitle(f"waiting: {err.message}")
            ):
                if reply.HasField("header"):
                    estimated = reply.header.estimated_count
                    continue
                count = reply.chunk.done_count
                with told(job.path):
                    await asyncio.to_thread(_take, out, reply.chunk, job.form)
                rate = show_rate(count - first, time.monotonic() - began)
                done = f"{render.show_count(count, 'interaction')}, {rate}"
                bar.show(count, max(estimated, count), done, title="exporting")
            with told(job.path):
                size = await asyncio.to_thread(_finish, out, job)
    except (asyncio.CancelledError, OpenManagerError):
        if job.path and PartFile.is_there(job.path):
            click.echo(f"{job.path} is not whole: the same command with --resume goes on", err=True)
        raise
    finally:
        out.close()
    seconds = time.monotonic() - began
    if not quiet and job.path is not None:
        what = render.show_count(count, "interaction")
        click.echo(f"{what} in {job.path}, {render.show_bytes(size)}, {seconds:.1f} s", err=True)
    return {
        "file": str(job.path or STDOUT),
        "format": job.form,
        "interaction_count": count,
        "size_bytes": size,
        "seconds": round(seconds, 3),
    }


def _open(job: Job) -> PartFile | Stdout:
    from google.protobuf.json_format import MessageToDict

    if job.path is None:
        return Stdout()
    asked = MessageToDict(job.request)
    part = PartFile.open(job.path, {"request": asked, "rows": 0, "token": ""}, resume=job.resume, force=job.force)
    if part.state["request"] != asked:
        raise part.refuse()
    job.request.resume_token = part.state["token"]
    return part


def _take(out: PartFile | Stdout, chunk: InteractionExportChunk, form: str) -> None:
    """Write a chunk; the end of a Parquet file can only be written once, so until then these are the chunks as they came."""
    data = chunk.data
    if form == "parquet":
        data = len(data).to_bytes(_LENGTH_BYTES, "little") + data
    out.write(data, rows=chunk.done_count, token=chunk.resume_token)


def _finish(out: PartFile | Stdout, job: Job) -> int:
    """Give the file its name; return its size."""
    if isinstance(out, Stdout):
        out.finish()
        return out.tell()
    if job.form != "parquet" or not PartFile.is_there(out.path):
        out.write(b"")
        size: int = out.state["size_bytes"]
        out.finish()
        return size
    whole = out.path.with_name(out.path.name + ".new")
    try:
        _join(out, whole)
        size = whole.stat().st_size
        out.finish(whole)
    finally:
        whole.unlink(missing_ok=True)
    return size


def _join(part: PartFile, whole: Path) -> None:
    """Make one Parquet file of the chunks."""
    import pyarrow.parquet as pq

    part.file.seek(0)
    writer: Any = None
    with whole.open("wb") as file:
        while found := part.file.read(_LENGTH_BYTES):
            table = table_of(part.file.read(int.from_bytes(found, "little")))
            writer = writer or pq.ParquetWriter(file, table.schema, compression="zstd")
            writer.write_table(table)
        writer.close()
        file.flush()
        os.fsync(file.fileno())

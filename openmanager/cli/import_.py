"""`openmanager import`: samples and rollups from files."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from openmanager.cli import connection, render
from openmanager.cli.progress import Bar, show_rate, show_rows

if TYPE_CHECKING:
    from openmanager.cli.source import Piece, Source
    from openmanager.client import Client, WriteAck
    from openmanager.frame import Frame
    from openmanager.rollup import Grid

FORMATS = ("parquet", "csv", "line-protocol")
EXIT_REJECTED = 1
# What is older than the tier is kept, or what is there has as many samples: the contract does not say which.
ROLLUP_REASON = "NOT_MORE_THAN_THERE_IS"
NOT_TOLD = "NOT_TOLD"
MALFORMED = "MALFORMED_LINE"


@click.command(
    "import",
    epilog=render.examples(
        "import cpu.parquet",
        "import 2026-06/*.csv",
        "import --precision s telegraf.lp",
        "import --tier 1h hours.csv",
    ),
)
@click.argument("files", nargs=-1, required=True, metavar="FILE...", type=click.Path(path_type=Path))
@click.option("--format", "form", type=click.Choice(FORMATS), help="The format.  [default: by the file's name]")
@click.option(
    "--precision",
    type=click.Choice(["s", "ms", "us", "ns"]),
    help="Of times that are whole numbers, also in line protocol.  [default: what the file says, else ns]",
)
@click.option("--tier", metavar="NAME", default="", help="The tier of buckets.  [default: what the file says]")
@click.option("--json", "as_json", is_flag=True, help="Print what became of the rows as JSON.")
def import_(**options: Any) -> None:
    """Write the samples of FILEs, or buckets straight into a rollup tier.

    Parquet and CSV have the columns time, server, metric and value, or those of a tier as `openmanager export` writes
    them; line protocol is InfluxDB's. Names that end in .gz are unpacked. What is there already changes nothing, so that
    an import that was interrupted is simply repeated. Exit code 1 when something was rejected.
    """
    from openmanager.cli.source import open_source

    sources = [
        open_source(path, options["form"] or "", options["precision"] or "", options["tier"])
        for path in options["files"]
    ]
    results = connection.run(lambda client: _import(client, sources))
    if options["as_json"]:
        click.echo(json.dumps(_summary(results), indent=2))
    else:
        _print(results)
    if any(result.rejected for result in results):
        sys.exit(EXIT_REJECTED)


@dataclass(slots=True, kw_only=True)
class _Result:
    """What became of a file. `reasons` counts by reason, `examples` has a series or a line of each."""

    source: Source
    text_count: int = 0
    accepted: int = 0
    rejected: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    def take(self, ack: WriteAck) -> None:
        """Count what became of a frame."""
        self.accepted += ack.accepted_sample_count
        self.rejected += ack.rejected_sample_count
        for each in ack.rejections:
            self.reasons[each.reason] += each.sample_count
            self.examples.setdefault(each.reason, f"{each.metric} of {each.server}")
        untold = ack.rejected_sample_count - sum(each.sample_count for each in ack.rejections)
        if untold:
            self.reasons[NOT_TOLD] += untold

    def read(self, piece: Piece) -> None:
        """Count what of a piece is no row."""
        self.text_count += piece.text_count
        if piece.malformed_count:
            self.rejected += piece.malformed_count
            self.reasons[MALFORMED] += piece.malformed_count
            self.examples.setdefault(MALFORMED, f"{self.source.path}, {piece.malformed}")


async def _import(client: Client, sources: list[Source]) -> list[_Result]:
    results = []
    with Bar("importing") as bar:
        for number, source in enumerate(sources, 1):
            title = source.path.name if len(sources) == 1 else f"{number}/{len(sources)} {source.path.name}"
            bar.retitle(title[-30:])
            results.append(await _import_file(client, source, bar))
    return results


async def _import_file(client: Client, source: Source, bar: Bar) -> _Result:
    from openmanager import grid

    result = _Result(source=source)
    meter = _Meter(bar, result)
    if source.is_samples:
        async for ack in client.import_frames(_made(result, meter, _frames)):
            result.take(ack)
            meter.show()
        return result
    async for taken in client.import_rollups(source.tier, _made(result, meter, lambda piece: grid.rollups(piece.rows))):
        result.accepted += taken.accepted_bucket_count
        result.rejected += taken.rejected_bucket_count
        result.reasons[ROLLUP_REASON] += taken.rejected_bucket_count
        meter.show()
    return result


class _Meter:
    """Shows how far an import is."""

    def __init__(self, bar: Bar, result: _Result) -> None:
        self._bar = bar
        self._result = result
        self._began = time.monotonic()
        self.share = 0.0

    def show(self) -> None:
        """Show what was acknowledged."""
        count = self._result.accepted + self._result.rejected
        rejected = f", {self._result.rejected:,} rejected" if self._result.rejected else ""
        rate = show_rate(count, time.monotonic() - self._began)
        self._bar.show(self.share, 1.0, f"{show_rows(count)}{rejected}, {rate}")


def _frames(piece: Piece) -> Iterator[Frame]:
    from openmanager import grid

    infos = {info.id: info for info in piece.infos}
    for frame in grid.frames(piece.rows):
        told = tuple(infos.pop(server) for server in frame.servers if server in infos)
        yield replace(frame, server_infos=told)


async def _made(result: _Result, meter: _Meter, make: Any) -> AsyncIterator[Any]:
    """Yield what is made of each piece of a file, both in a thread."""
    from openmanager.cli.source import pieces

    read = pieces(result.source)
    try:
        while (piece := await asyncio.to_thread(next, read, None)) is not None:
            result.read(piece)
            made: Iterator[Frame | Grid] = make(piece)
            while (each := await asyncio.to_thread(next, made, None)) is not None:
                yield each
            meter.share = piece.share
    finally:
        with contextlib.suppress(ValueError):  # a thread is still reading: it ends by itself
            read.close()


def _summary(results: list[_Result]) -> dict[str, Any]:
    return {
        "files": [
            {
                "file": str(each.source.path),
                "format": each.source.form,
                "tier": each.source.tier or "raw",
                "accepted_count": each.accepted,
                "rejected_count": each.rejected,
                "text_field_count": each.text_count,
                "rejections": {reason: count for reason, count in each.reasons.items() if count},
            }
            for each in results
        ],
        "accepted_count": sum(each.accepted for each in results),
        "rejected_count": sum(each.rejected for each in results),
    }


def _print(results: list[_Result]) -> None:
    out = render.console()
    made = render.table("file", "tier", "accepted", "rejected", right=("accepted", "rejected"))
    made.columns[0].no_wrap, made.columns[0].overflow = False, "fold"
    for each in results:
        made.add_row(str(each.source.path), each.source.tier or "raw", f"{each.accepted:,}", f"{each.rejected:,}")
    out.print(made)
    texts = sum(each.text_count for each in results)
    if texts:
        out.print(f"{texts:,} fields with text left out", style="dim")
    rejected = [(each, reason, count) for each in results for reason, count in each.reasons.items() if count]
    if not rejected:
        return
    why = render.table("rejected because", "rows", "such as", right=("rows",))
    why.columns[-1].no_wrap, why.columns[-1].overflow = False, "fold"
    for each, reason, count in rejected:
        why.add_row(reason, f"{count:,}", each.examples.get(reason, str(each.source.path)))
    out.print()
    out.print(why)

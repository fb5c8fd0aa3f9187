"""Reports that are sent to somebody: `--html` and `--png` of the commands that analyse."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from openmanager.cli import chart, connection, page, part, render
from openmanager.cli.chart import Chart
from openmanager.cli.progress import Bar
from openmanager.version import VERSION

if TYPE_CHECKING:
    from openmanager.client import Client, Provenance

F = TypeVar("F", bound=Callable[..., Any])
# A picture with more charts is longer than anybody scrolls; the page has them all.
MAX_DRAWN = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A part of a report: words and tables as HTML, and charts, in order."""

    title: str
    parts: Sequence[str | Chart]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A report. `lead` is the answer in a few plain sentences; `asked` what was asked, by name."""

    title: str
    lead: Sequence[str]
    asked: Mapping[str, str]
    provenance: Provenance
    sections: Sequence[Section]
    made: datetime = field(default_factory=lambda: datetime.now(UTC))

    @property
    def charts(self) -> list[Chart]:
        """All charts, in order."""
        return [each for section in self.sections for each in section.parts if isinstance(each, Chart)]

    def facts(self, trace: str) -> dict[str, str]:
        """Return what was asked, of whom, when and how it can be traced."""
        return {
            **self.asked,
            "Store": show_provenance(self.provenance),
            "Made": f"{render.show_utc(self.made)} with OpenManager {VERSION}",
            "Trace": trace,
        }


Work = Callable[["Client", Bar | None], Coroutine[Any, Any, Report | None]]


def options(command: F) -> F:
    """Give a command --html and --png."""
    for name, what in (("png", "a picture"), ("html", "a page that needs nothing else")):
        command = click.option(
            f"--{name}",
            type=click.Path(dir_okay=False, path_type=Path),
            metavar="FILE",
            help=f"Write a report to FILE instead: {what}.",
        )(command)
    return command


def run(chosen: Mapping[str, Any], work: Work) -> None:
    """Do the work of a command; where a file is chosen for a report, write what it returns."""
    files: dict[str, Path] = {kind: chosen[kind] for kind in ("html", "png") if chosen[kind] is not None}
    if not files:
        connection.run(lambda client: work(client, None))
        return
    if len({each.resolve() for each in files.values()}) < len(files):
        raise click.UsageError("--html and --png name the same file")
    chart.ready()
    trace = secrets.token_hex(16)
    with ExitStack() as stack:
        opened = {kind: stack.enter_context(part.whole(path)) for kind, path in files.items()}
        with Bar("asking") as bar:
            made = _asked(work, bar, trace)
            for kind, file in opened.items():
                content = _FORMATS[kind](made, trace, bar)
                with part.told(files[kind]):
                    file.write(content)
    for path in files.values():
        click.echo(f"{path}: {made.title.lower()}, {render.show_bytes(path.stat().st_size)}", err=True)


def _asked(work: Work, bar: Bar, trace: str) -> Report:
    """Do the work within a trace, by which its calls are found in the logs of the services."""
    from openmanager.runtime import telemetry

    async def report(client: Client) -> Report | None:
        return await work(client, bar)

    with telemetry.continued(f"00-{trace}-{secrets.token_hex(8)}-01"):
        made = connection.run(report)
    assert made is not None  # noqa: S101  (with a bar, work returns a report)
    return made


def as_html(report: Report, trace: str, bar: Bar) -> bytes:
    """Return a report as one page that needs nothing else."""
    lead = "".join(f"<p>{escape(each)}</p>" for each in report.lead)
    warned = unsound(report.provenance)
    notes = f'<div class="verdict unsound"><strong>{escape(warned)}</strong></div>' if warned else ""
    header = (
        f"<header><h1>{escape(report.title)}</h1>{lead}{notes}{page.facts(report.facts(trace))}"
        '<p class="quiet">All times are UTC.</p></header>'
    )
    drawn, total = 0, len(report.charts)
    sections = []
    for section in report.sections:
        texts = []
        for each in section.parts:
            if isinstance(each, Chart):
                drawn += 1
                bar.show(drawn, total, f"{drawn} of {total} charts", title="drawing")
                texts.append(chart.html(each))
            else:
                texts.append(each)
        sections.append((section.title, "".join(texts)))
    return page.document(report.title, header, sections).encode()


def as_png(report: Report, trace: str, bar: Bar) -> bytes:
    """Return the first charts of a report as one picture."""
    bar.show(0, None, "", title="drawing")
    charts = report.charts[:MAX_DRAWN]
    left = len(report.charts) - len(charts)
    facts = report.facts(trace)
    remarks = [*report.lead, "", *(f"{name}: {text}" for name, text in facts.items()), "All times are UTC."]
    remarks += [warned] if (warned := unsound(report.provenance)) else []
    remarks += [f"{left} more charts are in the page that --html writes."] if left else []
    return chart.png(report.title, remarks, charts, software=f"OpenManager {VERSION}")


_FORMATS = {"html": as_html, "png": as_png}


def show_provenance(about: Provenance) -> str:
    """Return where an answer came from, and of when it is."""
    tier = f", tier {about.tier}" if about.tier else ""
    as_of = f", as of {render.show_utc(about.as_of)}" if about.as_of else ""
    return f"{about.source or 'none'}{tier}{as_of}"


def unsound(about: Provenance) -> str:
    """Return what is wrong with an answer, empty for a sound one."""
    words = [word for marked, word in ((about.degraded, "degraded"), (about.partial, "partial")) if marked]
    return f"This answer is {' and '.join(words)}{f': {about.reason}' if about.reason else ''}." if words else ""


def show_range(start: datetime, end: datetime) -> str:
    """Return a half-open range of time, and how long it is."""
    return f"{render.show_utc(start)} to {render.show_utc(end)} ({render.show_length(end - start)})"


def selector(chosen: Mapping[str, Any]) -> str:
    """Return which series were chosen, as on the command line."""
    metrics = " ".join(chosen["metrics"]) or "all metrics"
    servers = f"of {', '.join(chosen['servers'])}" if chosen["servers"] else "of all servers"
    where = f" where {chosen['where']}" if chosen["where"] else ""
    return f"{metrics} {servers}{where}"

"""What the commands print with: JSON for programs; states, sizes, ages, bars and tables for people."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from google.protobuf.message import Message
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from openmanager.client import Provenance

F = TypeVar("F", bound=Callable[..., Any])

_SEVERITY_STYLES = {"INFO": "", "WARNING": "yellow", "CRITICAL": "bold red"}
STATE_STYLES = {
    "OK": "green",
    "RECOVERING": "cyan",
    "SLOW": "yellow",
    "EMPTY": "magenta",
    "READONLY": "magenta",
    "HUNG": "bold red",
    "DOWN": "bold red",
    "HEALTHY": "green",
    "WARNING": "yellow",
    "CRITICAL": "bold red",
    "OFFLINE": "bright_black",
}
NOTHING = "–"


def json_option(command: F) -> F:
    """Give a command the option --json."""
    return click.option(
        "--json", "as_json", is_flag=True, help="Print the reply as JSON; of a stream one document a line."
    )(command)


def examples(*lines: str) -> str:
    """Return the end of a help text that shows a command at work."""
    return "\b\nExamples:\n" + "\n".join(f"  openmanager {line}" for line in lines)


def print_json(message: Message, *, line: bool = False) -> None:
    """Print a message as protobuf JSON, names as in the proto and defaults included; `line` for one of a stream."""
    from google.protobuf.json_format import MessageToJson

    click.echo(
        MessageToJson(
            message,
            preserving_proto_field_name=True,
            always_print_fields_with_no_presence=True,
            ensure_ascii=False,
            indent=None if line else 2,
        )
    )


def told(reply: Message, text: str, *, as_json: bool) -> None:
    """Say what was done: the reply for programs, a line for people."""
    if as_json:
        print_json(reply)
    else:
        click.echo(text)


def print_document(document: dict[str, Any], *, err: bool = False) -> None:
    """Print what a command did as JSON; on standard error where the other holds something else."""
    import json

    click.echo(json.dumps(document, indent=2), err=err)


def console() -> Console:
    """Return the console on standard output; it colours only on a terminal and obeys NO_COLOR."""
    from rich.console import Console

    return Console(highlight=False)


def table(*columns: str, right: tuple[str, ...] = (), title: str | None = None) -> Table:
    """Return a plain table; the columns named in `right` are aligned right."""
    from rich.table import Table

    made = Table(box=None, pad_edge=False, header_style="bold", title=title, title_justify="left", title_style="bold")
    for name in columns:
        made.add_column(name, justify="right" if name in right else "left", no_wrap=True)
    return made


def state_text(state: str | None) -> Text:
    """Return a state, coloured."""
    from rich.text import Text

    return Text(state or "UNKNOWN", style=STATE_STYLES.get(state or "", ""))


def severity_text(severity: str) -> Text:
    """Return a severity, coloured."""
    from rich.text import Text

    return Text(severity.lower(), style=_SEVERITY_STYLES.get(severity, ""))


def fold(made: Table, *names: str) -> None:
    """Let the columns of these names take more than one line."""
    for column in made.columns:
        if column.header in names:
            column.no_wrap, column.overflow = False, "fold"


def bar(percent: float | None, width: int, *, warning: float, critical: float) -> Text:
    """Return a bar of `width` cells and the figure in five more, coloured by how much it is."""
    from rich.text import Text

    if percent is None:
        return Text(f"{NOTHING:>{width + 5}}", style="dim")
    style = "red" if percent >= critical else "yellow" if percent >= warning else "green"
    eighths = round(min(max(percent, 0.0), 100.0) / 100 * width * 8)
    full, rest = divmod(eighths, 8)
    cells = "█" * full + (" ▏▎▍▌▋▊▉"[rest] if rest else "")
    figure = f"{percent:.1f}" if percent < 99.95 else f"{percent:.0f}"
    return Text.assemble((f"{cells:·<{width}}", style), f" {figure:>4}")


def show_bytes(size: int) -> str:
    """Return a size in binary units with three digits or so."""
    number = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024:
            return f"{size} B" if unit == "B" else f"{number:.{0 if number >= 100 else 1}f} {unit}"
        number /= 1024
    return f"{number:.1f} TiB"


def show_count(number: int, what: str) -> str:
    """Return a number of things, `what` being one of them."""
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def show_length(length: timedelta) -> str:
    """Return a duration in its largest unit: `0.3 ms`, `12 s`, `3 m`, `2 h`, `5 d`."""
    seconds = length.total_seconds()
    if seconds < 1:
        millis = seconds * 1000
        return f"{millis:.0f} ms" if millis >= 10 else f"{millis:.1f} ms"
    for unit, size in (("d", 86_400), ("h", 3600), ("m", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def show_age(moment: datetime | None, now: datetime | None = None) -> str:
    """Return how long ago a moment was, to the second."""
    if moment is None:
        return NOTHING
    age = (now or datetime.now(UTC)) - moment
    return show_length(age) if age >= timedelta(seconds=1) else "0 s"


def show_moment(moment: datetime | None) -> str:
    """Return a moment in local time, to the second."""
    return moment.astimezone().strftime("%Y-%m-%d %H:%M:%S") if moment else NOTHING


def show_utc(moment: datetime | None) -> str:
    """Return a moment in UTC, to the second; of reports, which are read elsewhere."""
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ") if moment else ""


def show_value(value: float) -> str:
    """Return a sample for people: two decimals, or three significant digits where those would say nothing."""
    if value != value:  # noqa: PLR0124  (NaN is the one value that differs from itself)
        return NOTHING
    if value and abs(value) < 0.01:
        return f"{value:.3g}"
    return f"{value:,.0f}" if abs(value) >= 1e6 else f"{value:,.2f}"


def provenance_text(about: Provenance) -> Text:
    """Return one line on where an answer came from."""
    from rich.text import Text

    tier = f" ({about.tier})" if about.tier else ""
    age = f", {show_length(about.staleness)} old" if about.staleness >= timedelta(seconds=1) else ""
    line = Text(f"from {about.source or 'nowhere'}{tier}, as of {show_moment(about.as_of)}{age}", style="dim")
    for marked, word in ((about.degraded, "degraded"), (about.partial, "partial")):
        if marked:
            line.append(f"  {word}", style="bold yellow")
    if about.reason:
        line.append(f": {about.reason}", style="yellow")
    return line


def coverage_text(about: Provenance) -> Text | None:
    """Return one line on which tier answered which part, and how exact; None where one tier answered exactly."""
    from rich.text import Text

    parts = []
    if len(about.segments) > 1:
        shown = (f"{each.tier} until {show_moment(each.end_time)}" for each in about.segments[:-1])
        parts.append(", then ".join([*shown, about.segments[-1].tier]))
    if about.resolution is not None:
        parts.append(f"in buckets of up to {show_length(about.resolution)}")
    if about.rank_error:
        parts.append(f"percentiles within ± {100 * about.rank_error:.2g} of their rank")
    return Text("; ".join(parts), style="dim") if parts else None

"""The report of `openmanager anomalies`: when which server was unlike itself, and what each of these times looked like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from openmanager.cli import page, plot, render
from openmanager.cli.chart import BLUE, GREY, INK, ORANGE, RED, SKY, Chart, dates, legend, shorten, time_axis
from openmanager.cli.chart import unit as said
from openmanager.cli.report import Report, Section, selector, show_range
from openmanager.cli.report_series import (
    MAX_CHARTS,
    Infos,
    broken,
    fitting_step,
    nanos,
    nanos_utc,
    read,
    table,
    thinned,
)
from openmanager.cli.unit import Unit
from openmanager.cli.usual import Usual, usual

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from openmanager.cli.progress import Bar
    from openmanager.client import Anomaly, Blame, Client, Provenance

# Metrics of an anomaly that are drawn, the most unusual ones.
PANELS = 3
ROWS = 30
POINTS = 240
SECOND, MINUTE, HOUR, DAY = 10**9, 60 * 10**9, 3600 * 10**9, 86_400 * 10**9
GRAVITY = {"CRITICAL": 3, "WARNING": 2, "INFO": 1}
# Colour and height: the graver, the higher.
LOOKS = {"CRITICAL": (RED, 0.78), "WARNING": (ORANGE, 0.54), "INFO": (SKY, 0.32)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What was asked, in words, and from when on; None: from the first on."""

    words: Mapping[str, str]
    start: datetime | None
    end: datetime
    step: timedelta | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Panel:
    """A metric around an anomaly: its samples, what is usual, what the detector expected at the most unusual time."""

    blame: Blame
    unit: Unit
    line: plot.Line
    usual: Usual | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Case:
    """An anomaly with what is drawn of it, from `start` to `end`; `over` is when it was over, or the newest time."""

    anomaly: Anomaly
    begin: int
    over: int
    start: int
    end: int
    panels: Sequence[_Panel] = field(default_factory=list)


def listed(options: Mapping[str, Any], start: datetime | None) -> Asked:
    """Return what was asked of those that were found as samples arrived."""
    now = datetime.now(UTC)
    where = options["where"] or "every server"
    return Asked(
        words={
            "Asked": f"anomalies found as samples arrived: {where}{', only those that go on' if options['active'] else ''}",
            "Range": show_range(start, now) if start else f"all that are kept, until {render.show_utc(now)}",
        },
        start=start,
        end=now,
    )


def detected(options: Mapping[str, Any], start: datetime | None, end: datetime | None) -> Asked:
    """Return what was asked of stored history."""
    last = end or datetime.now(UTC)
    first = start or last - timedelta(hours=1)
    step = options["step"]
    return Asked(
        words={
            "Asked": f"the detector over stored history: {selector(options)}",
            "Range": show_range(first, last),
            **({"Step": render.show_length(step)} if step else {}),
            **({"Severity": f"{options['severity'].lower()} or graver"} if options["severity"] else {}),
        },
        start=first,
        end=last,
        step=step,
    )


async def collect(
    client: Client,
    asked: Asked,
    bar: Bar,
    *,
    found: Sequence[Anomaly],
    total: int,
    about: Provenance,
    threshold: float,
) -> Report:
    """Return the report on anomalies, with the samples around the gravest of them."""
    now = nanos(about.as_of or asked.end)
    ranked = sorted(found, key=lambda each: (-GRAVITY.get(each.severity, 0), -each.score))
    cases = [_case(each, now) for each in ranked]
    drawn = cases[:MAX_CHARTS]
    infos = await _infos(client, cases)
    sections = [_overview(cases, asked, infos)] if cases else []
    for at, case in enumerate(drawn, 1):
        bar.show(at, len(drawn), f"{at} of {len(drawn)} anomalies", title="reading")
        panels = await _panels(client, case, infos, asked.step)
        sections.append(_one(case, panels, infos, cases))
    return Report(
        title="Anomalies",
        lead=_lead(cases, total, infos),
        asked={**asked.words, "Alarming": f"from a score of {threshold:.2f} on"},
        provenance=about,
        sections=sections,
    )


def _case(each: Anomaly, now: int) -> _Case:
    begin = nanos(each.start_time) if each.start_time else now
    over = max(nanos(each.end_time) if each.end_time else now, begin)
    around = min(max(2 * (over - begin), HOUR), DAY)
    return _Case(
        anomaly=each, begin=begin, over=over, start=begin - around, end=min(over + around // 2, max(now, over + MINUTE))
    )


async def _infos(client: Client, cases: Sequence[_Case]) -> Infos:
    """Return what is known of the metrics to blame, from the servers that are drawn."""
    names = {blame.metric.partition("{")[0] for case in cases for blame in case.anomaly.blames}
    if not names:
        return Infos()
    return await Infos.read(client, sorted(names), sorted({case.anomaly.server for case in cases[:MAX_CHARTS]}))


def _unit(infos: Infos, server: str, metric: str) -> Unit:
    """Return the unit in which the detector looks at a metric: counters by what they grow a second."""
    return infos.unit(server, metric, is_rate=infos.is_counter(server, metric))


def _words(case: _Case, infos: Infos) -> str:
    """Return what happened in a sentence, with units."""
    shown = []
    for each in case.anomaly.blames[:PANELS]:
        unit = _unit(infos, case.anomaly.server, each.metric)
        shown.append(f"{each.metric} {unit.show(each.value)} where {unit.show_range(each.low, each.high)} was expected")
    more = len(case.anomaly.blames) - len(shown)
    others = [f"{more} more"] if more > 0 else []
    return f"{'; '.join([*shown, *others]) or 'unusual'}, for {_lasting(case)}"


def _lead(cases: Sequence[_Case], total: int, infos: Infos) -> list[str]:
    if not cases:
        return ["Nothing was unlike what is usual."]
    servers = len({case.anomaly.server for case in cases})
    count = {name: sum(case.anomaly.severity == name for case in cases) for name in GRAVITY}
    open_count = sum(case.anomaly.end_time is None for case in cases)
    going = f"{open_count:,} go" if open_count > 1 else "1 goes" if open_count else "none goes"
    shown = (
        f"{len(cases):,} of {total:,} anomalies are shown"
        if len(cases) < total
        else f"{total:,} {'anomaly' if total == 1 else 'anomalies'}"
    )
    by_severity = f"{count['CRITICAL']:,} critical, {count['WARNING']:,} warning, {count['INFO']:,} info"
    words = [
        f"{shown} on {render.show_count(servers, 'server')}: {by_severity}; {going} on.",
        f"Gravest is {cases[0].anomaly.server}: {_words(cases[0], infos)}.",
    ]
    if len(cases) > MAX_CHARTS:
        words.append(f"The {MAX_CHARTS} gravest are drawn; the table has them all.")
    return words


# ── all of them ────────────────────────────────────────────────────────────────────────────────────────────────────


def _overview(cases: Sequence[_Case], asked: Asked, infos: Infos) -> Section:
    rows = [
        {
            "start": nanos_utc(case.begin),
            "lasting": _lasting(case),
            "severity": case.anomaly.severity.lower(),
            "score": f"{case.anomaly.score:.2f}",
            "sure": f"{case.anomaly.confidence:.0%}",
            "server": case.anomaly.server,
            "what": _words(case, infos),
        }
        for case in cases
    ]
    columns = ("server", "severity", "start", "lasting", "score", "sure", "what")
    words = table("The gravest first; score and confidence are from 0 to 1, and 0 to 100 %", columns, rows)
    return Section(title="Overview", parts=[_timeline(cases, asked), words])


def _lasting(case: _Case) -> str:
    length = render.show_length(timedelta(seconds=(case.over - case.begin) / SECOND))
    return length if case.anomaly.end_time else f"{length}, goes on"


def _timeline(cases: Sequence[_Case], asked: Asked) -> Chart:
    servers = list(dict.fromkeys(case.anomaly.server for case in cases))
    rows = {server: row for row, server in enumerate(servers[:ROWS])}
    first, last = min(case.begin for case in cases), max(case.over for case in cases)
    start = max(nanos(asked.start), first - DAY) if asked.start and nanos(asked.start) < first else first
    margin = max((last - start) // 40, MINUTE)
    # So wide at least that it is seen.
    least = (last - start + 2 * margin) // 250

    def draw(figure: Figure, narrow: bool) -> None:  # noqa: FBT001
        axes = figure.subplots()
        for severity, (colour, height) in LOOKS.items():
            some = [case for case in cases if case.anomaly.severity == severity and case.anomaly.server in rows]
            for number, case in enumerate(some):
                row = rows[case.anomaly.server]
                edges = dates(np.array([case.begin, max(case.over, case.begin + least)]))
                label = severity.lower() if not number else None
                axes.fill_between(edges, row - height / 2, row + height / 2, color=colour, lw=0, label=label)
                if case.anomaly.end_time is None:
                    axes.plot(edges[1:], [row], marker=9, color=colour, ms=7, clip_on=False)
        axes.set_yticks(range(len(rows)), [shorten(server, 18 if narrow else 36) for server in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        time_axis(axes, start - margin, last + margin, narrow=narrow)
        axes.grid(visible=True, axis="x")
        legend(figure, [axes], narrow=narrow)

    more = f"; {len(servers) - ROWS} more servers are in the table" if len(servers) > ROWS else ""
    return Chart(
        title=f"When each server was unlike itself; the graver, the higher the bar, and an arrow goes on{more}",
        alt=f"A line for each of {len(rows)} servers with {len(cases)} anomalies from {nanos_utc(first)} to {nanos_utc(last)}. "
        "The table below has all of them.",
        height=0.8 + 0.26 * len(rows),
        narrow_height=1.3 + 0.26 * len(rows),
        draw=draw,
    )


# ── one of them ────────────────────────────────────────────────────────────────────────────────────────────────────


async def _panels(client: Client, case: _Case, infos: Infos, step: timedelta | None) -> list[_Panel]:
    """Read the samples of the most unusual metrics around an anomaly, and what was usual for them before it."""
    server, panels = case.anomaly.server, []
    for is_counter in (False, True):
        blames = [each for each in case.anomaly.blames[:PANELS] if infos.is_counter(server, each.metric) == is_counter]
        if not blames:
            continue
        metrics = [each.metric for each in blames]
        width = max(fitting_step(case.end - case.start, POINTS, 10), step or timedelta())
        kind = "RATE" if is_counter else "MEAN"
        lines = await read(client, server, metrics, start=case.start, end=case.end, step=width, aggregation=kind)
        normal = await usual(client, server, metrics, end=case.begin, is_counter=is_counter)
        panels += [
            _Panel(
                blame=each,
                unit=infos.unit(server, each.metric, is_rate=is_counter),
                line=lines[each.metric],
                usual=normal.get(each.metric),
            )
            for each in blames
            if each.metric in lines
        ]
    places = {blame.metric: place for place, blame in enumerate(case.anomaly.blames)}
    return sorted(panels, key=lambda panel: places[panel.blame.metric])


def _one(case: _Case, panels: Sequence[_Panel], infos: Infos, cases: Sequence[_Case]) -> Section:
    each = case.anomaly
    others = [
        other.anomaly.server for other in cases if other.anomaly.incident_id == each.incident_id and other is not case
    ]
    told = {
        "From": nanos_utc(case.begin),
        "To": nanos_utc(case.over) if each.end_time else "goes on",
        "Severity": f"{each.severity.lower()}, score {each.score:.2f} of 1, confidence {each.confidence:.0%}",
        "Incident": f"began near those of {', '.join(others)}" if others else "on its own",
        "Id": page.code(each.id),
    }
    chart: str | Chart = _chart(case, panels) if panels else page.quiet("no samples are kept of this time")
    return Section(
        title=f"{each.server}: {each.severity.lower()}, {nanos_utc(case.begin)}, {_lasting(case)}",
        parts=[f"<p>{escape(_words(case, infos))}.</p>", page.facts(told), chart, _blames(each, infos)],
    )


def _blames(each: Anomaly, infos: Infos) -> str:
    rows = []
    for blame in each.blames:
        unit = _unit(infos, each.server, blame.metric)
        rows.append({
            "metric": blame.metric,
            "time": render.show_utc(blame.time),
            "observed": unit.show(blame.value),
            "expected": unit.show_range(blame.low, blame.high),
            "score": f"{blame.score:.2f}",
        })  # fmt: skip
    columns = ("metric", "time", "observed", "expected", "score")
    return table("Metrics to blame, each at its most unusual", columns, rows, "no metric")


def _chart(case: _Case, panels: Sequence[_Panel]) -> Chart:
    def draw(figure: Figure, narrow: bool) -> None:  # noqa: FBT001
        grid = figure.subplots(len(panels), 1, sharex=True, squeeze=False).ravel()
        for axes, panel in zip(grid, panels, strict=True):
            _draw_panel(axes, panel, case, 40 if narrow else 110)
        time_axis(grid[-1], case.start, case.end, narrow=narrow)
        legend(figure, grid, narrow=narrow)

    return Chart(
        title=f"{case.anomaly.server} around {nanos_utc(case.begin)}: what was observed, and what was to be expected",
        alt=" ".join(
            f"{panel.blame.metric}: at its most unusual {panel.unit.show(panel.blame.value)}, expected "
            f"{panel.unit.show_range(panel.blame.low, panel.blame.high)}."
            for panel in panels
        ),
        height=0.7 + 1.5 * len(panels),
        narrow_height=1.3 + 1.5 * len(panels),
        draw=draw,
        table="".join(_panel_table(panel, case) for panel in panels),
    )


def _draw_panel(axes: Axes, panel: _Panel, case: _Case, most: int) -> None:
    line, blame = panel.line, panel.blame
    largest = float(np.abs([*line.values, blame.value, blame.low, blame.high]).max())
    divisor, symbol = panel.unit.scale(largest)
    if panel.usual is not None:
        moments = np.unique(
            np.append(np.arange(case.start, case.end, max(MINUTE, (case.end - case.start) // 400)), case.end)
        )
        low, high = panel.usual.at(moments)
        label = f"usual for the {panel.usual.name}"
        axes.fill_between(dates(moments), low / divisor, high / divisor, color=GREY, alpha=0.28, lw=0, label=label)
    axes.axvspan(*dates(np.array([case.begin, max(case.over, case.begin + MINUTE)])), color=RED, alpha=0.09, lw=0)
    moments, values = broken(line)
    axes.plot(moments, values / divisor, color=BLUE, lw=1.2, label="observed")
    inside = (line.times >= case.begin) & (line.times <= case.over)
    axes.plot(dates(line.times[inside]), line.values[inside] / divisor, ".", color=RED, ms=4, label="while it lasted")
    if blame.time is not None:
        at = dates(np.array([nanos(blame.time)]))
        middle, half = (blame.low + blame.high) / 2 / divisor, abs(blame.high - blame.low) / 2 / divisor
        axes.errorbar(
            at, [middle], [half], color=INK, capsize=4, lw=1.4, fmt="none", label="expected by the detector", zorder=4
        )
        axes.plot(at, [blame.value / divisor], "D", color=RED, ms=5, zorder=5, label="most unusual")
    said(axes, symbol, shorten(blame.metric, most))
    axes.locator_params(axis="y", nbins=4)
    axes.margins(y=0.12)


def _panel_table(panel: _Panel, case: _Case) -> str:
    line, unit, rows = panel.line, panel.unit, []
    for part in thinned(len(line.times)):
        low, high = panel.usual.at(line.times[part]) if panel.usual else (np.empty(0), np.empty(0))
        inside = ((line.times[part] >= case.begin) & (line.times[part] <= case.over)).any()
        rows.append({
            "time": nanos_utc(int(line.times[part.start])),
            "mean": unit.show(float(line.values[part].mean())),
            "interval": unit.show_range(float(line.values[part].min()), float(line.values[part].max())),
            "usual": unit.show_range(float(low.min()), float(high.max())) if panel.usual else "not known",
            "state": "unusual" if inside else "",
        })  # fmt: skip
    return table(panel.blame.metric, ("time", "mean", "interval", "usual", "state"), rows)

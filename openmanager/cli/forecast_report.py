"""The report of `openmanager forecast`: what was, what is expected, when a limit is reached, and what to add."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from openmanager.cli import page, plot, render
from openmanager.cli.chart import BLUE, GREY, INK, QUIET, RED, Chart, dates, legend, time_axis
from openmanager.cli.chart import unit as said
from openmanager.cli.report import Report, Section, selector
from openmanager.cli.report_series import (
    MAX_CHARTS,
    Infos,
    broken,
    fitting_step,
    joined,
    labels,
    nanos,
    read,
    table,
    thinned,
)
from openmanager.cli.unit import NOTHING, Unit

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from openmanager.cli.progress import Bar
    from openmanager.client import CapacityForecast, Client, Provenance

POINTS = 400
HOUR = 3600
DEFAULT = timedelta(days=90)
# A fan is drawn as far as this many times what else is there; what explodes would flatten all of it.
MOST_FAN = 2.0
# The method of a limit that is not to come.
NOW = "reached"
# Points of a fan's edges and of its middle; a narrow chart has half as many.
EDGES, MIDDLE = 240, 720


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """What was asked: the limit, until when, and of how much of the past."""

    now: datetime
    end: datetime
    past: timedelta


async def collect(
    client: Client,
    options: Mapping[str, Any],
    bar: Bar,
    *,
    found: Sequence[CapacityForecast],
    about: Provenance,
    skipped: int,
) -> Report:
    """Return the report on forecasts, with the past of each."""
    now = datetime.now(UTC)
    horizon, past = options["horizon"] or DEFAULT, options["past"] or DEFAULT
    asked = _Asked(now=now, end=now + horizon, past=past)
    infos = await Infos.read(client, options["metrics"], options["servers"], options["where"])
    sections = [_overview(found, infos, asked)]
    for at, each in enumerate(found[:MAX_CHARTS], 1):
        bar.show(at, min(len(found), MAX_CHARTS), f"{at} of {min(len(found), MAX_CHARTS)} series", title="reading")
        unit = infos.unit(each.server, each.metric)
        start = nanos(each.points[0].time or now) if each.points else nanos(now)
        shown = min(past, horizon)
        lines = await read(
            client,
            each.server,
            [each.metric],
            start=start - int(shown.total_seconds()) * 10**9,
            end=start,
            step=fitting_step(int(shown.total_seconds()) * 10**9, POINTS, HOUR),
        )
        sections.append(_one(each, joined([lines.get(each.metric)]), unit, asked))
    limits = {infos.unit(each.server, each.metric).show(each.limit) for each in found}
    return Report(
        title=f"Forecast of {', '.join(options['metrics'])}",
        lead=_lead(found, skipped, infos, asked),
        asked={
            "Asked": selector(options),
            "Limit": " or ".join(sorted(limits))
            or (f"{options['limit']:g}" if options["limit"] is not None else render.NOTHING),
            "Horizon": f"{render.show_length(horizon)}, until {render.show_utc(asked.end)}",
            "Learnt from": f"the {render.show_length(past)} before",
        },
        provenance=about,
        sections=sections,
        made=now,
    )


def _lead(found: Sequence[CapacityForecast], skipped: int, infos: Infos, asked: _Asked) -> list[str]:
    urgent = [each for each in found if each.reach_time is not None]
    words = [
        f"{len(urgent):,} of {len(found):,} series are expected to reach their limit within {render.show_length(asked.end - asked.now)}."
    ]
    if urgent:
        first = urgent[0]
        words.append(f"First is {first.server}: {_words(first, infos.unit(first.server, first.metric))}.")
    if skipped:
        words.append(f"{skipped:,} more have too few samples to judge by.")
    if len(found) > MAX_CHARTS:
        words.append(f"The {MAX_CHARTS} most urgent are drawn; the table has them all.")
    return words


# ── all of them ────────────────────────────────────────────────────────────────────────────────────────────────────


def _overview(found: Sequence[CapacityForecast], infos: Infos, asked: _Asked) -> Section:
    rows = []
    for each in found:
        unit = infos.unit(each.server, each.metric)
        rows.append({
            "server": each.server,
            "metric": each.metric,
            "now": unit.show(each.value),
            "reached": show_reached(each),
            "range_80": show_interval(each, each.reach_80),
            "chance": f"{each.reach_probability:.0%}",
            "needs": _needs(each),
            "test": _test(each),
        })  # fmt: skip
    columns = ("server", "metric", "now", "reached", "range_80", "chance", "needs", "test")
    words = table("The most urgent first; the chance is that of reaching the limit within the horizon", columns, rows)
    drawn = [each for each in found if each.reach_80[0] is not None][:MAX_CHARTS]
    parts: list[str | Chart] = [_when(drawn, asked)] if len(drawn) > 1 else []
    return Section(title="When limits are reached", parts=[*parts, words])


def show_reached(each: CapacityForecast) -> str:
    """Return when a limit is reached, as likely sooner as later."""
    if each.method == NOW:
        return "now"
    return f"{each.reach_time:%Y-%m-%d}" if each.reach_time else "not within"


def show_interval(each: CapacityForecast, ends: tuple[datetime | None, datetime | None]) -> str:
    """Return an interval of days in which a limit is reached; an end that is beyond the horizon in words."""
    if each.method == NOW or ends == (None, None):
        return NOTHING
    low, high = (f"{end:%Y-%m-%d}" if end else "later" for end in ends)
    return f"{low} to {high}"


def _needs(each: CapacityForecast) -> str:
    return f"+{each.capacity_factor - 1:.0%}" if each.capacity_factor > 1 else "nothing"


def _test(each: CapacityForecast) -> str:
    return f"{each.back_test_error:.2f}" if each.back_test_error is not None else NOTHING


def _when(found: Sequence[CapacityForecast], asked: _Asked) -> Chart:
    def draw(figure: Figure, narrow: bool) -> None:  # noqa: FBT001
        axes = figure.subplots()
        end = nanos(asked.end)
        for row, each in enumerate(found):
            for ends, width, colour, label in (
                (each.reach_95, 2.0, GREY, "95 % interval"),
                (each.reach_80, 6.0, BLUE, "80 % interval"),
            ):
                if ends[0] is not None:
                    span = np.array([nanos(ends[0]), nanos(ends[1]) if ends[1] else end])
                    axes.plot(dates(span), [row, row], lw=width, color=colour, label=label, solid_capstyle="butt")
                    if ends[1] is None:
                        axes.plot(dates(span[1:]), [row], marker=">", color=colour, ms=5, clip_on=False)
            if each.reach_time:
                at = dates(np.array([nanos(each.reach_time)]))
                axes.plot(at, [row], "o", color=INK, ms=5, label="as likely sooner as later", zorder=4)
        names = labels([(each.server, each.metric) for each in found], 18 if narrow else 44)
        axes.set_yticks(range(len(found)), names)
        axes.set_ylim(len(found) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        time_axis(axes, nanos(asked.now) - (end - nanos(asked.now)) // 50, end, narrow=narrow)
        axes.grid(visible=True, axis="x")
        legend(figure, [axes], narrow=narrow)

    first = found[0]
    return Chart(
        title="When each reaches its limit; an arrow goes on beyond the horizon",
        alt=(
            f"{len(found)} series with the days on which they are expected to reach their limit. First is {first.server} "
            f"{first.metric}: {show_reached(first)}, 80 % interval {show_interval(first, first.reach_80)}. "
            "The table below has all of them."
        ),
        height=0.9 + 0.24 * len(found),
        narrow_height=1.3 + 0.24 * len(found),
        draw=draw,
    )


# ── one of them ────────────────────────────────────────────────────────────────────────────────────────────────────


def _one(each: CapacityForecast, past: plot.Line, unit: Unit, asked: _Asked) -> Section:
    intervals = ((80, each.reach_80), (95, each.reach_95))
    likely = [f"{share} % {show_interval(each, ends)}" for share, ends in intervals if ends != (None, None)]
    told = {
        "Now": unit.show(each.value),
        "Limit": unit.show(each.limit),
        "Reached": "; ".join([show_reached(each), *(likely if each.method != NOW else [])]),
        "Chance": f"{each.reach_probability:.0%} within the horizon",
        "To be added": _added(each, unit),
        "Rests on": "the newest value" if each.method == NOW else f"what it does, which is {each.method}",
        "Back-test": _tested(each),
    }
    parts: list[str | Chart] = [f"<p>{escape(_words(each, unit))}.</p>", page.facts(told)]
    if each.points:
        parts.append(_fan(each, past, unit, asked))
    return Section(title=f"{each.server} {each.metric}", parts=parts)


def _words(each: CapacityForecast, unit: Unit) -> str:
    """Return the answer in a sentence, with units."""
    limit = unit.show(each.limit)
    text = f"{each.metric} is at {unit.show(each.value)} and "
    if each.method == NOW:
        text += f"beyond the limit of {limit} now"
    elif each.reach_time is None:
        text += f"is not expected to reach {limit} within the horizon"
    else:
        likely = show_interval(each, each.reach_80)
        text += f"is expected to reach {limit} on {show_reached(each)} (80 %: {likely})"
    if each.capacity_factor > 1:
        text += f"; to stay below it to the horizon takes {each.capacity_factor - 1:.0%} more capacity"
    return text


def _added(each: CapacityForecast, unit: Unit) -> str:
    if each.capacity_factor <= 1:
        return "nothing: the limit holds to the horizon with a probability of 90 % or more"
    by = f" by {render.show_utc(each.capacity_time)}" if each.capacity_time else ""
    of = "" if unit.ucum == "%" else f", {unit.show(each.limit * (each.capacity_factor - 1))} on the limit,"
    return (
        f"{each.capacity_factor - 1:.0%} more capacity{of}{by}, so that the limit holds to the horizon with a "
        "probability of 90 %"
    )


def _tested(each: CapacityForecast) -> str:
    if each.back_test_error is None or each.back_test_coverage is None:
        return "the past is too short to test such a forecast on"
    return (
        f"in the past such forecasts missed by {each.back_test_error:.2f} of what “as a day before” missed by; "
        f"{each.back_test_coverage:.0%} came within the 80 % interval"
    )


def _fan(each: CapacityForecast, past: plot.Line, unit: Unit, asked: _Asked) -> Chart:
    times = np.array([nanos(point.time) for point in each.points if point.time is not None])
    names = ("median", "low_80", "high_80", "low_95", "high_95")
    fan = {name: np.array([getattr(point, name) for point in each.points]) for name in names}
    low, high = _limits(past.values, fan, each.limit)
    divisor, symbol = unit.scale(max(abs(low), abs(high)))

    def draw(figure: Figure, narrow: bool) -> None:  # noqa: FBT001
        axes = figure.subplots()
        share = 2 if narrow else 1
        blocks = thinned(len(times), EDGES // share)
        at = dates(times[[part.start for part in blocks]])
        for width, alpha in (("95", 0.15), ("80", 0.3)):
            under = np.array([fan[f"low_{width}"][part].min() for part in blocks])
            over = np.array([fan[f"high_{width}"][part].max() for part in blocks])
            label = f"{width} % interval"
            axes.fill_between(at, under / divisor, over / divisor, color=BLUE, alpha=alpha, lw=0, label=label)
        every = slice(None, None, -(-len(times) * share // MIDDLE))
        middle = fan["median"][every] / divisor
        axes.plot(dates(times[every]), middle, color=BLUE, lw=1.4, ls=(0, (4, 1.5)), label="expected")
        if len(past.times):
            moments, values = broken(past)
            axes.plot(moments, values / divisor, color=INK, lw=1.1, label="observed")
        axes.axhline(each.limit / divisor, color=RED, lw=1.2, label=f"limit {unit.show(each.limit)}")
        _mark_reach(axes, each, divisor, int(times[-1]))
        axes.axvline(dates(times[:1])[0], color=QUIET, lw=0.6, ls=":")
        axes.set_ylim(low / divisor, high / divisor)
        said(axes, symbol)
        time_axis(axes, int(min([*past.times[:1].tolist(), times[0]])), int(times[-1]), narrow=narrow)
        legend(figure, [axes], narrow=narrow)

    return Chart(
        title=f"{each.server} {each.metric}: observed, and expected until {asked.end:%d %b %Y}",
        alt=f"{each.server}: {_words(each, unit)}. Expected at the end of the horizon: {unit.show(float(fan['median'][-1]))}, "
        f"80 % interval {unit.show_range(float(fan['low_80'][-1]), float(fan['high_80'][-1]))}.",
        height=3.1,
        narrow_height=3.2,
        draw=draw,
        table=_fan_table(times, fan, unit),
    )


def _limits(past: Any, fan: Mapping[str, Any], limit: float) -> tuple[float, float]:
    """Return the ends of the axis of values: all of it, but a fan only so far."""
    core = np.concatenate([past, fan["median"], fan["low_80"], fan["high_80"], [limit]])
    low, high = float(core.min()), float(core.max())
    span = max(high - low, abs(high) * 1e-3, 1e-12)
    least = max(float(fan["low_95"].min()), low - MOST_FAN * span)
    most = min(float(fan["high_95"].max()), high + MOST_FAN * span)
    low, high = min(low, least), max(high, most)
    margin = 0.06 * max(high - low, 1e-12)
    return (low if low == 0 else low - margin), high + margin


def _mark_reach(axes: Axes, each: CapacityForecast, divisor: float, end: int) -> None:
    """Mark on the limit when it is reached, with its 80 % interval."""
    level = each.limit / divisor
    if each.reach_80[0] is not None and each.method != NOW:
        span = np.array([nanos(each.reach_80[0]), nanos(each.reach_80[1]) if each.reach_80[1] else end])
        axes.plot(
            dates(span), [level, level], color=RED, lw=5, alpha=0.45, solid_capstyle="butt", label="reached, 80 %"
        )
    if each.reach_time is not None:
        axes.plot(dates(np.array([nanos(each.reach_time)])), [level], "D", color=RED, ms=5.5, zorder=5)


def _fan_table(times: Any, fan: Mapping[str, Any], unit: Unit) -> str:
    rows = [
        {
            "time": render.show_utc(datetime.fromtimestamp(int(times[part.start]) // 10**9, UTC)),
            "expected": unit.show(float(fan["median"][part.start])),
            "range_80": unit.show_range(float(fan["low_80"][part.start]), float(fan["high_80"][part.start])),
            "range_95": unit.show_range(float(fan["low_95"][part.start]), float(fan["high_95"][part.start])),
        }
        for part in thinned(len(times))
    ]
    return table(
        "What is expected",
        ("time", "expected", "range_80", "range_95"),
        rows,
    )
